"""The update that SoftGAC and SAC share: twin critics, an actor that pays a cost, a temperature that holds a budget.

Letters: U updates, C updates of a cycle, B batch rows of this learner, P particles, O, A, D row width, N atoms, T = 2
critics.
Source: arXiv 2605.08733. What is special to an algorithm (how actions and their costs arise) stands behind ``Actor``.

A cycle can be a CUDA graph (see trainer.py): warm-up is decided by tensors, who updates when by a host counter alone.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch

from algorithms import c51, runtime
from algorithms.batch_renorm import Renorm
from algorithms.config import ActorCriticConfig
from algorithms.critic import TwinCritic, evaluate
from algorithms.interface import AgentSpec
from algorithms.losses import actor_loss, critic_loss, temperature_loss
from algorithms.support import Support
from algorithms.trainer import FlatAdam, FlatParameters, Loss, TrainedAgent, Trainer
from replay.schema import RowLayout

LOG_ZERO = -1e4  # stands for log 0 where alpha is 0: finite, and its exponential is exactly 0
CRITIC_METRICS = ("critic_loss", "q_mean", "q_target_mean", "critic_grad_norm", "critic_entropy", "clipped_mass")
ACTOR_METRICS = (
    "actor_loss",
    "alpha",
    "control_energy",
    "control_energy_per_step_coord",
    "actor_grad_norm",
    "sigma_mean",
)


class UpdateNoise(NamedTuple):
    """Everything random in one update."""

    next: torch.Tensor  # (B, *noise_shape): the next action of each row, for the critics' target
    actor: torch.Tensor  # (B P, *noise_shape): row b's particles stand at b P .. b P + P - 1


class Rollout(NamedTuple):
    """Actions and what they cost."""

    action_RA: torch.Tensor  # in [-1, 1]
    cost_R: torch.Tensor  # nats: control energy, or log pi
    sigma_mean: torch.Tensor  # 0-d, no gradient


class Actor(Protocol):
    """The part of an algorithm that its update does not know."""

    particles: int
    budget: float  # nats: the mean cost that the temperature holds
    budget_units: float  # what one unit of cost is shared by, for the metric (K A for a bridge)

    def rollout(self, obs_RO: torch.Tensor, noise: torch.Tensor, parameters: dict[str, torch.Tensor]) -> Rollout:
        """One action for each row."""

    def draw_noise(self, rows: int, generator: torch.Generator, particles: int) -> torch.Tensor:
        """Noise (rows * particles, *noise_shape); ``particles`` of 1 is plain sampling."""


class ActorCritic(TrainedAgent):
    """The learner's side of an algorithm; see algorithms.interface.Agent for the contract."""

    def __init__(
        self,
        config: ActorCriticConfig,
        spec: AgentSpec,
        actor: Actor,
        actor_parameters: dict[str, torch.Tensor],
        draw: torch.Generator,
    ) -> None:
        super().__init__(spec, config.matmul)
        self.config, self.actor, self.cycle = config, actor, config.actor_every
        self.layout = RowLayout(obs_dim=spec.obs_dim, action_dim=spec.action_dim)
        renorm = Renorm(
            decay=config.renorm_decay,
            eps=config.renorm_eps,
            r_max=config.renorm_r_max,
            d_max=config.renorm_d_max,
            warmup=config.renorm_warmup,
            form=config.renorm_form,
        )
        inputs = spec.obs_dim + spec.action_dim
        self.critic = TwinCritic(
            inputs, config.critic_width, config.critic_layers, config.atoms, renorm, draw, self.device
        )
        log_alpha = torch.full((), math.log(config.alpha_init) if config.alpha_init else LOG_ZERO)
        self.policy = FlatParameters({**actor_parameters, "log_alpha": log_alpha}, self.device, extra=1)
        self.log_alpha = self.policy.named.pop("log_alpha")
        self.support = Support(config.v_min, config.v_max, config.atoms, self.device)
        self.y_N = self.support.y_N
        critic, policy = self.critic.parameters, self.policy
        self.critic_adam = FlatAdam(critic.value, critic.gradient, lr=config.critic_lr, beta1=config.critic_beta1)
        self.actor_adam = FlatAdam(policy.value[:-1], policy.gradient[:-1], lr=config.actor_lr)
        self.alpha_adam = FlatAdam(policy.value[-1:], policy.gradient[-1:], lr=config.alpha_lr)
        moved = (self.actor_adam, self.alpha_adam) if config.alpha_mode == "auto" else (self.actor_adam,)
        self.critic_trainer = Trainer(critic, (self.critic_adam,), spec.collective, CRITIC_METRICS)
        self.actor_trainer = Trainer(policy, moved, spec.collective, ACTOR_METRICS)
        self.trainers = (self.critic_trainer, self.actor_trainer)

    def update(self, rows_UBD: torch.Tensor) -> dict[str, torch.Tensor]:
        """U critic updates; actor and temperature follow every ``cycle``-th, counted across calls.

        Args:
            rows_UBD: float32 packed rows on the agent's device; this learner's share of each batch.
        """
        done, total = 0, rows_UBD.shape[0]
        with runtime.library(self.matmul):
            while done < total:
                to_actor = self.cycle - self.updates % self.cycle
                take = min(to_actor, total - done)
                self._group(rows_UBD[done : done + take], with_actor=take == to_actor)
                done += take
                self.updates += take
        return self.read_metrics()

    def step_cycle(self, rows_CBD: torch.Tensor) -> None:
        """One whole cycle on ``cycle`` batches, ending with the actor: tensors alone, so a CUDA graph can hold it.

        Metrics add up until ``read_metrics``, which a graph must not hold: it would throw away those of every cycle but
        the last. ``updates`` stays, because no graph can count on the host: whole cycles leave the actor's turn where
        it is. For capture, register ``generator`` with the graph.
        """
        with runtime.library(self.matmul):
            self._group(rows_CBD, with_actor=True)

    def update_with(self, rows_BD: torch.Tensor, noise: UpdateNoise, *, with_actor: bool) -> dict[str, torch.Tensor]:
        """One update with everything random given: the critics, then (``with_actor``) actor and temperature.

        The actor's step sees the same states and the updated critics. For checks against another implementation.
        """
        with runtime.library(self.matmul):
            columns = self.layout.views(rows_BD)
            following = self._follow(columns.next_obs, noise.next)
            skipped = self._critic_step(rows_BD, following.action_RA, following.cost_R)
            if with_actor:
                self._actor_step(columns.obs, noise.actor, skipped)
        self.updates += 1
        return self.read_metrics()

    def draw_noise(self, rows: int, *, particles: int = 1) -> torch.Tensor:
        """This learner's noise of ``rows`` states, of ``particles`` actions each."""
        return self.own(self.actor.draw_noise(rows * self.collective.world_size, self.generator, particles))

    def _group(self, rows_CBD: torch.Tensor, *, with_actor: bool) -> None:
        updates, rows = rows_CBD.shape[:2]
        columns = self.layout.views(rows_CBD)
        # The actor stands still until the group ends, so all its next actions are one pass.
        noise = torch.cat([self.draw_noise(rows) for _ in range(updates)])
        following = self._follow(columns.next_obs.reshape(updates * rows, -1), noise)
        actions, costs = following.action_RA.split(rows), following.cost_R.split(rows)
        for rows_BD, action_BA, cost_B in zip(rows_CBD.unbind(), actions, costs):
            skipped = self._critic_step(rows_BD, action_BA, cost_B)
        if with_actor:
            self._actor_step(columns.obs[-1], self.draw_noise(rows, particles=self.actor.particles), skipped)

    @torch.no_grad()
    def _follow(self, next_obs_RO: torch.Tensor, noise: torch.Tensor) -> Rollout:
        return self.actor.rollout(next_obs_RO, noise, self.policy.named)

    def _critic_step(
        self, rows_BD: torch.Tensor, next_action_BA: torch.Tensor, next_cost_B: torch.Tensor
    ) -> torch.Tensor:
        """One update of the critics; 1.0 (0-d) where it was skipped."""
        columns = self.layout.views(rows_BD)
        following = torch.cat([columns.next_obs, next_action_BA], -1)
        # A row begins with [obs | action]: the critics' input.
        joined_MI = torch.cat([rows_BD[:, : self.obs_dim + self.action_dim], following])
        logits_TBN, next_logits_TBN, batch = self.critic.joint(joined_MI, self.collective)
        log_p_TBN = torch.log_softmax(logits_TBN, -1)
        with torch.no_grad():
            discount_B = self.config.gamma * columns.discount
            units = self.support.units(columns.reward, discount_B, self.collective)
            reward_B = units.reward(columns.reward, discount_B)
            target_BN, clipped = self._target(reward_B, discount_B, next_cost_B, next_logits_TBN)
        step = self.critic_trainer.descend(Loss(critic_loss(log_p_TBN, target_BN, self.config.critic_entropy)))
        with torch.no_grad():
            self.critic.commit(batch, step.skipped > 0)
            self.support.commit(units, step.skipped > 0)
            p_TBN = log_p_TBN.exp()
            q, entropy = (p_TBN * self.y_N).sum(-1).mean(), -(p_TBN * log_p_TBN).sum(-1).mean()
            q_target = (target_BN * self.y_N).sum(-1).mean()
            values = (step.loss, units.value(q), units.value(q_target), step.norm, entropy, clipped)
            self.critic_trainer.record(step, values)
        return step.skipped

    def _target(
        self, reward_B: torch.Tensor, discount_B: torch.Tensor, cost_B: torch.Tensor, logits_TBN: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The distribution that both critics regress on, from rewards in the atoms' units, and the share that is clipped."""
        support = self.support
        t_BN = c51.soft_target(reward_B, discount_B, cost_B, self.log_alpha.exp(), self.y_N)
        p_BN = torch.softmax(logits_TBN, -1).mean(0)
        # Both critics' atoms land at the same places, so projecting the average is averaging the projections.
        return c51.project(p_BN, t_BN, support.v_min, support.v_max), c51.clipped_share(p_BN, t_BN, self.y_N)

    def _actor_step(self, obs_BO: torch.Tensor, noise: torch.Tensor, critic_skipped: torch.Tensor) -> None:
        particles = self.actor.particles
        obs_RO = obs_BO if particles == 1 else obs_BO.repeat_interleave(particles, 0, output_size=noise.shape[0])
        action_RA, cost_R, sigma = self.actor.rollout(obs_RO, noise, self.policy.named)
        logits_TRN = evaluate(self.critic.frozen(), torch.cat([obs_RO, action_RA], -1))
        alpha = self.log_alpha.detach().exp()
        loss = actor_loss(alpha, cost_R, c51.mean(logits_TRN, self.y_N))
        cost, temperature = cost_R.detach().mean(), None
        if self.config.alpha_mode == "auto":
            temperature = temperature_loss(self.log_alpha, self.actor.budget, cost)
        step = self.actor_trainer.descend(Loss(loss, temperature))
        values = (step.loss, alpha, cost, cost / self.actor.budget_units, step.norm, sigma)
        # Counted once where the critics' update was not finite either.
        self.actor_trainer.record(step._replace(nonfinite=step.nonfinite * (1.0 - critic_skipped)), values)

    def tensors(self) -> dict[str, torch.Tensor]:
        """See docs/softgac.md for the list."""
        named = {f"critic.{name}": tensor for name, tensor in self.critic.parameters.named.items()}
        named |= {f"critic.{name}": tensor for name, tensor in self.critic.statistics.items()}
        named["critic.passes"] = self.critic.passes
        named |= {f"critic.support.{name}": tensor for name, tensor in self.support.tensors().items()}
        named |= {f"actor.{name}": tensor for name, tensor in self.policy.named.items()}
        named["log_alpha"] = self.log_alpha
        for owner, adam in (("critic", self.critic_adam), ("actor", self.actor_adam), ("alpha", self.alpha_adam)):
            named |= {f"{owner}.adam.{name}": tensor for name, tensor in adam.state().items()}
        return named
