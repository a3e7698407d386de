"""The update that SoftGAC, its control and its rivals share: twin critics, an actor, and where it pays a cost a temperature.

Letters: U updates, C updates of a cycle, B batch rows of this learner, P particles, R = B P rows, O, A, D row width, N atoms,
T = 2 critics.
Source: arXiv 2605.08733. What is special to an algorithm (how actions and their costs arise, what its actor descends) is
its ``Actor``. An algorithm that holds more than parameters, such as a slow copy, extends ``ActorCritic``.

A cycle can be a CUDA graph (see trainer.py): warm-up is decided by tensors, who updates when by a host counter alone.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

from algorithms import c51, runtime
from algorithms.batch_renorm import Renorm
from algorithms.config import ActorCriticConfig, CriticConfig
from algorithms.critic import TwinCritic, evaluate
from algorithms.interface import AgentSpec
from algorithms.loops import Target
from algorithms.losses import actor_loss, temperature_loss
from algorithms.support import Support
from algorithms.trainer import FlatAdam, FlatParameters, Loss, TrainedAgent, Trainer
from replay.schema import Columns, RowLayout

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
    actor: torch.Tensor  # (B P, ...): what the actor's loss takes; row b's particles stand at b P .. b P + P - 1


class Rollout(NamedTuple):
    """Actions and what they cost."""

    action_RA: torch.Tensor  # in [-1, 1]
    cost_R: torch.Tensor  # nats: control energy, or log pi; zeros where nothing is paid
    sigma_mean: torch.Tensor  # 0-d, no gradient


class ActorBatch(NamedTuple):
    """What an actor's loss is made of."""

    obs_RO: torch.Tensor  # each state P times
    action_BA: torch.Tensor  # of the replay
    noise: torch.Tensor  # (R, ...), of ``draw_loss_noise``
    alpha: torch.Tensor  # 0-d, no gradient
    q: Callable[
        [torch.Tensor, torch.Tensor], torch.Tensor
    ]  # (obs, action) -> E[Z_j] (T, ...); gradients reach the action alone


class ActorLoss(NamedTuple):
    """What an actor descends, and two numbers for the metrics; 0-d."""

    value: torch.Tensor  # with gradient
    cost: torch.Tensor  # mean over the rows, no gradient: what the temperature holds at its budget
    sigma_mean: torch.Tensor  # no gradient


class Optimiser(NamedTuple):
    """How Adam moves an actor."""

    beta1: float = 0.9
    eps: float = 1e-8
    clip_norm: float | None = None  # of the gradient
    clip_value: float | None = None  # of each of its entries


class Actor(abc.ABC):
    """The part of an algorithm that its update does not know. Loss, temperature and optimiser are SoftGAC's where not replaced."""

    particles = 1
    budget = 0.0  # nats: the mean cost that the temperature holds
    budget_units = 1.0  # what one unit of cost is shared by, for the metric (K A for a bridge)
    optimiser = Optimiser()
    temperature_loss = staticmethod(temperature_loss)

    @abc.abstractmethod
    def rollout(self, obs_RO: torch.Tensor, noise: torch.Tensor, parameters: dict[str, torch.Tensor]) -> Rollout:
        """One action for each row, as in the critics' target."""

    @abc.abstractmethod
    def draw_noise(self, rows: int, generator: torch.Generator, particles: int) -> torch.Tensor:
        """Noise (rows * particles, *noise_shape) for ``rollout``; ``particles`` of 1 is plain sampling."""

    def draw_loss_noise(self, rows: int, generator: torch.Generator) -> torch.Tensor:
        """Noise (rows * self.particles, ...) for ``loss``."""
        return self.draw_noise(rows, generator, self.particles)

    def loss(self, batch: ActorBatch, parameters: dict[str, torch.Tensor]) -> ActorLoss:
        """mean[ alpha cost - min_j E[Z_j](s, a) ] over fresh actions."""
        action_RA, cost_R, sigma = self.rollout(batch.obs_RO, batch.noise, parameters)
        value = actor_loss(batch.alpha, cost_R, batch.q(batch.obs_RO, action_RA))
        return ActorLoss(value, cost_R.detach().mean(), sigma)


def renorm_of(config: CriticConfig) -> Renorm:
    """The constants of batch renormalisation that the settings name."""
    return Renorm(
        decay=config.renorm_decay,
        eps=config.renorm_eps,
        r_max=config.renorm_r_max,
        d_max=config.renorm_d_max,
        warmup=config.renorm_warmup,
        form=config.renorm_form,
    )


class ActorCritic(TrainedAgent):
    """The learner's side of an algorithm; see algorithms.interface.Agent for the contract."""

    def __init__(
        self,
        config: CriticConfig,
        spec: AgentSpec,
        actor: Actor,
        actor_parameters: dict[str, torch.Tensor],
        draw: torch.Generator,
    ) -> None:
        super().__init__(spec, config.matmul)
        self.config, self.actor, self.cycle = config, actor, config.actor_every
        self.layout = RowLayout(obs_dim=spec.obs_dim, action_dim=spec.action_dim)
        inputs = spec.obs_dim + spec.action_dim
        self.critic = TwinCritic(
            inputs,
            config.critic_width,
            config.critic_layers,
            config.atoms,
            renorm_of(config),
            draw,
            self.device,
            bf16=config.precision == "bf16",
        )
        alpha = config if isinstance(config, ActorCriticConfig) else None
        self.tempered = alpha is not None and alpha.alpha_mode == "auto"
        log_alpha = torch.full((), math.log(alpha.alpha_init) if alpha and alpha.alpha_init else LOG_ZERO)
        self.policy = FlatParameters({**actor_parameters, "log_alpha": log_alpha}, self.device, extra=1)
        self.log_alpha = self.policy.named.pop("log_alpha")
        self.support = Support(config.v_min, config.v_max, config.atoms, self.device)
        self.y_N = self.support.y_N
        critic, policy = self.critic.parameters, self.policy
        self.critic_adam = FlatAdam(critic.value, critic.gradient, lr=config.critic_lr, beta1=config.critic_beta1)
        beta1, eps, clip_norm, clip_value = actor.optimiser
        self.actor_adam = FlatAdam(
            policy.value[:-1], policy.gradient[:-1], lr=config.actor_lr, beta1=beta1, eps=eps, clip=clip_value
        )
        self.alpha_adam = FlatAdam(policy.value[-1:], policy.gradient[-1:], lr=alpha.alpha_lr if alpha else 0.0)
        moved = (self.actor_adam, self.alpha_adam) if self.tempered else (self.actor_adam,)
        self.critic_trainer = Trainer(critic, (self.critic_adam,), spec.collective, CRITIC_METRICS)
        self.actor_trainer = Trainer(policy, moved, spec.collective, ACTOR_METRICS, clip=clip_norm)
        self.trainers: tuple[Trainer, ...] = (self.critic_trainer, self.actor_trainer)

    def update(self, rows_UBD: torch.Tensor) -> dict[str, torch.Tensor]:
        """U critic updates; actor and temperature follow every ``cycle``-th, counted across calls.

        Args:
            rows_UBD: float32 packed rows on the agent's device; this learner's share of each batch.
        """
        self.advance(rows_UBD)
        return self.read_metrics()

    def advance(self, rows_UBD: torch.Tensor) -> None:
        """The same, but the metrics add up until ``read_metrics``."""
        done, total = 0, rows_UBD.shape[0]
        with runtime.library(self.matmul, self.config.precision):
            while done < total:
                to_actor = self.cycle - self.updates % self.cycle
                take = min(to_actor, total - done)
                self._group(rows_UBD[done : done + take], with_actor=take == to_actor)
                done += take
                self.updates += take

    def step_cycle(self, rows_CBD: torch.Tensor) -> None:
        """One whole cycle on ``cycle`` batches, ending with the actor: tensors alone, so a CUDA graph can hold it.

        Metrics add up until ``read_metrics``, which a graph must not hold: it would throw away those of every cycle but
        the last. ``updates`` stays, because no graph can count on the host: whole cycles leave the actor's turn where
        it is. For capture, register ``generator`` with the graph.
        """
        with runtime.library(self.matmul, self.config.precision):
            self._group(rows_CBD, with_actor=True)

    def update_with(self, rows_BD: torch.Tensor, noise: UpdateNoise, *, with_actor: bool) -> dict[str, torch.Tensor]:
        """One update with everything random given: the critics, then (``with_actor``) actor and temperature.

        The actor's step sees the same states and the updated critics. For checks against another implementation.
        """
        with runtime.library(self.matmul, self.config.precision):
            columns = self.layout.views(rows_BD)
            following = self._follow(columns.next_obs, noise.next)
            skipped = self._critic_step(rows_BD, following.action_RA, following.cost_R)
            if with_actor:
                self._actor_step(columns, noise.actor, skipped)
        self.updates += 1
        return self.read_metrics()

    def draw_noise(self, rows: int, *, particles: int = 1) -> torch.Tensor:
        """This learner's noise of ``rows`` states, of ``particles`` actions each."""
        return self.own(self.actor.draw_noise(rows * self.collective.world_size, self.generator, particles))

    def draw_loss_noise(self, rows: int) -> torch.Tensor:
        """This learner's noise of the actor's loss on ``rows`` states."""
        return self.own(self.actor.draw_loss_noise(rows * self.collective.world_size, self.generator))

    def _group(self, rows_CBD: torch.Tensor, *, with_actor: bool) -> None:
        updates, rows = rows_CBD.shape[:2]
        columns = self.layout.views(rows_CBD)
        noise = torch.cat([self.draw_noise(rows) for _ in range(updates)])
        following = self._followers(columns.next_obs, noise)
        for rows_BD, (action_BA, cost_B) in zip(rows_CBD.unbind(), following):
            skipped = self._critic_step(rows_BD, action_BA, cost_B)
        if with_actor:
            self._actor_step(self.layout.views(rows_CBD[-1]), self.draw_loss_noise(rows), skipped)

    def _followers(
        self, next_obs_CBO: torch.Tensor, noise: torch.Tensor
    ) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        """Next actions (B, A) and their costs (B,) of each update of a group, in order.

        The actor stands still until the group ends, so all its next actions are one pass.
        """
        rows = next_obs_CBO.shape[1]
        following = self._follow(next_obs_CBO.flatten(0, 1), noise)
        return zip(following.action_RA.split(rows), following.cost_R.split(rows))

    @torch.no_grad()
    def _follow(self, next_obs_RO: torch.Tensor, noise: torch.Tensor) -> Rollout:
        return self.actor.rollout(next_obs_RO, noise, self.policy.named)

    @torch.no_grad()
    def _critic_step(
        self, rows_BD: torch.Tensor, next_action_BA: torch.Tensor, next_cost_B: torch.Tensor
    ) -> torch.Tensor:
        """One update of the critics; 1.0 (0-d) where it was skipped."""
        columns = self.layout.views(rows_BD)
        following = torch.cat([columns.next_obs, next_action_BA], -1)
        # A row begins with [obs | action]: the critics' input.
        joined_MI = torch.cat([rows_BD[:, : self.obs_dim + self.action_dim], following])
        joint = self.critic.joint(joined_MI, self.collective)
        discount_B = self.config.gamma * columns.discount
        units = self.support.units(columns.reward, discount_B, self.collective)
        reward_B = units.reward(columns.reward, discount_B)
        support = self.support
        target = Target(reward_B, discount_B, next_cost_B, self.log_alpha, support.y_N, support.v_min, support.v_max)
        head = self.critic.loops.head(joint.logits_TMN, target, self.config.critic_entropy)
        self.critic.backward(joint, head.grad_TBN, self.collective)
        step = self.critic_trainer.step(Loss(head.loss))
        self.critic.commit(joint.batch, step.unchanged)
        support.commit(units, step.unchanged)
        q, q_target = units.value(head.q), units.value(head.q_target)
        self.critic_trainer.record(step, (step.loss, q, q_target, step.norm, head.entropy, head.clipped))
        return step.skipped

    def _actor_step(self, columns: Columns, noise: torch.Tensor, critic_skipped: torch.Tensor) -> torch.Tensor:
        """One update of actor and temperature; 1.0 (0-d) where it was skipped."""
        particles, obs_BO = self.actor.particles, columns.obs
        obs_RO = obs_BO if particles == 1 else obs_BO.repeat_interleave(particles, 0, output_size=noise.shape[0])
        frozen, alpha = self.critic.frozen(), self.log_alpha.detach().exp()

        def q(obs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
            return c51.mean(evaluate(frozen, torch.cat([obs, action], -1)), self.y_N)

        batch = ActorBatch(obs_RO, columns.action, noise, alpha, q)
        loss, cost, sigma = self.actor.loss(batch, self.policy.named)
        temperature = self.actor.temperature_loss(self.log_alpha, self.actor.budget, cost) if self.tempered else None
        step = self.actor_trainer.descend(Loss(loss, temperature))
        values = (step.loss, alpha, cost, cost / self.actor.budget_units, step.norm, sigma)
        # Counted once where the critics' update was not finite either.
        self.actor_trainer.record(step._replace(nonfinite=step.nonfinite * (1.0 - critic_skipped)), values)
        return step.skipped

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
