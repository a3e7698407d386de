"""What the value-learning rivals share: critics with slow copies, then an actor, on steps of whole episodes.

Letters: U updates, B episodes, R steps of a batch, E critics, X features, O, A. Contract: algorithms.interface.EpisodeAgent.
"""

from __future__ import annotations

import abc

import torch

from algorithms.ensemble import ensemble_parameters, ensemble_values
from algorithms.fitted_agent import FittedAgent
from algorithms.fourier import features, featurise
from algorithms.interface import AgentSpec
from algorithms.offline.config import ValueConfig
from algorithms.offline.steps import Steps, actor_parameters, draw_steps
from algorithms.trainer import FlatAdam, FlatParameters, Loss, Trainer, lecun_normal
from replay.schema import DataSummary, Trajectories

CRITIC_METRICS, ACTOR_METRICS = (
    ("critic_loss", "q_mean", "critic_grad_norm"),
    ("actor_loss", "alpha", "actor_grad_norm"),
)
MORE = 10**6  # steps: where rewards are summed every episode ends, as one shorter than the longest does


class ValueAgent(FittedAgent):
    """A subclass gives the two losses, of each step. Raises ValueError with every problem of ``config`` at once.

    Args:
        outputs: of the actor's network.
        more_critic, more_actor: further parameters of either.
    """

    def __init__(
        self,
        config: ValueConfig,
        spec: AgentSpec,
        outputs: int,
        more_critic: dict[str, torch.Tensor] | None = None,
        more_actor: dict[str, torch.Tensor] | None = None,
    ) -> None:
        config.check()
        super().__init__(spec, config.matmul)
        self.sums = config.rewards == "sum"
        self.config, draw = config, torch.Generator().manual_seed(spec.seed)
        self.data = {k: t.to(self.device) for k, t in no_data(spec.obs_dim).items()}
        seen, c = features(config.obs_fourier, config.obs_fourier_dims, spec.obs_dim), config
        q = ensemble_parameters(
            "q", c.critics, [seen + spec.action_dim, *[c.width] * c.layers, 1], lecun_normal, draw, c.layer_norm
        )
        pi = actor_parameters(seen, outputs, c.width, c.layers, draw)
        self.critic = FlatParameters(q | (more_critic or {}), self.device, extra=2)
        self.policy = FlatParameters(pi | (more_actor or {}), self.device, extra=2)
        self.slow = {n: t.detach().clone() for n, t in (self.critic.named | self.policy.named).items()}
        self.critic_adam = FlatAdam(self.critic.value, self.critic.gradient, lr=config.lr)
        self.actor_adam = FlatAdam(self.policy.value, self.policy.gradient, lr=config.actor_lr)
        self.critic_trainer = Trainer(self.critic, (self.critic_adam,), spec.collective, CRITIC_METRICS)
        self.actor_trainer = Trainer(self.policy, (self.actor_adam,), spec.collective, ACTOR_METRICS)
        self.trainers = (self.critic_trainer, self.actor_trainer)

    delayed = False  # whether the critics' slow copies wait for the actor's updates

    @abc.abstractmethod
    def critic_loss(self, steps: Steps, seen_RX: torch.Tensor, next_RX: torch.Tensor) -> torch.Tensor:
        """What each step costs the critics (R,)."""

    @abc.abstractmethod
    def actor_loss(self, steps: Steps, seen_RX: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What each step costs the actor, and the temperature where there is one, (R,)."""

    def _statistics(self, summary: DataSummary) -> dict[str, object]:
        """The longest episode, and what rewards are scaled by; one longer than any where each ends with its sum of rewards."""
        taken: dict[str, object] = {"longest": summary.max_length + self.sums * MORE}
        if wanted := getattr(self.config, "return_range", 0.0):
            taken["reward_scale"] = wanted / max(summary.return_max - summary.return_min, 1e-6)
        return taken

    def see(self, obs_RO: torch.Tensor) -> torch.Tensor:
        """Features (R, X) of raw observations."""
        return featurise(obs_RO, self.data, self.config.obs_fourier, self.config.obs_fourier_dims, self.obs_dim)

    def q(self, p: dict[str, torch.Tensor], seen_RX: torch.Tensor, action_RA: torch.Tensor) -> torch.Tensor:
        """What each critic gives each step, (E, R)."""
        return ensemble_values("q", torch.cat([seen_RX, action_RA], -1), p)

    def frozen(self) -> dict[str, torch.Tensor]:
        """The critics without gradient, for the actor."""
        return {name: tensor.detach() for name, tensor in self.critic.named.items()}

    def _step(self, batch: Trajectories) -> None:
        config = self.config
        noise_BP, longest = self.uniform(len(batch), config.points), self.data["longest"]
        gamma = config.gamma if getattr(config, "calibrated", False) else None
        steps = draw_steps(batch, noise_BP, self.obs_dim, self.action_dim, longest, gamma)
        weight_R, steps = steps.weight_R, steps._replace(reward_R=steps.reward_R * self.data["reward_scale"])
        seen_RX, next_RX, weight = self.see(steps.obs_RO), self.see(steps.next_RO), weight_R.sum()
        self.updates += 1
        with_actor = self.updates % config.actor_every == 0
        cost_R = self.critic_loss(steps, seen_RX, next_RX)
        step = self.critic_trainer.descend(Loss((cost_R * weight_R).sum(), weight=weight))
        q_mean = self.q(self.frozen(), seen_RX, steps.action_RA).mean().detach()
        self.critic_trainer.record(step, (step.loss, q_mean, step.norm))
        if with_actor or not self.delayed:
            self._follow(self.critic, config.tau * (1.0 - step.skipped))
        if with_actor:
            weight_R = weight_R * (1.0 - step.nonfinite)  # what was not finite for the critics moves nobody
            weight = weight * (1.0 - step.nonfinite)
            cost_R, heat_R = self.actor_loss(steps, seen_RX)
            heat = None if heat_R is None else (heat_R * weight_R).sum()
            done = self.actor_trainer.descend(Loss((cost_R * weight_R).sum(), heat, weight=weight))
            self._follow(self.policy, config.tau * (1.0 - done.skipped))
            alpha = self.policy.named["log_alpha"].detach().exp() if heat_R is not None else torch.zeros_like(done.norm)
            done = done._replace(nonfinite=done.nonfinite * (1.0 - step.nonfinite))  # counted once
            self.actor_trainer.record(done, (done.loss, alpha, done.norm))

    @torch.no_grad()
    def _follow(self, of: FlatParameters, share: torch.Tensor) -> None:
        for name, tensor in of.named.items():
            self.slow[name].lerp_(tensor, share)

    def policy_weights(self) -> dict[str, torch.Tensor]:
        """The actor's parameters and the observations' mean and standard deviation; views, float32."""
        named = {n: t.detach() for n, t in self.policy.named.items() if n != "log_alpha"}
        return named | {name: self.data[name] for name in ("obs_mean", "obs_std")}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Parameters, slow copies, Adam's moments and the data's statistics."""
        named = {f"critic.{n}": t for n, t in self.critic.named.items()}
        named |= {f"actor.{n}": t for n, t in self.policy.named.items()} | {
            f"slow.{n}": t for n, t in self.slow.items()
        }
        for owner, adam in (("critic", self.critic_adam), ("actor", self.actor_adam)):
            named |= {f"{owner}.adam.{name}": tensor for name, tensor in adam.state().items()}
        return named | {f"data.{name}": tensor for name, tensor in self.data.items()}


def no_data(obs_dim: int) -> dict[str, torch.Tensor]:
    """Statistics before ``fit``."""
    numbers = {"longest": torch.ones(()), "reward_scale": torch.ones(())}
    return {"obs_mean": torch.zeros(obs_dim), "obs_std": torch.ones(obs_dim), **numbers}
