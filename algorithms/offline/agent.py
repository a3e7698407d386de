"""What the value-learning rivals share: critics with slow copies, then an actor, on steps of whole episodes.

Letters: U updates, B episodes, R steps of a batch, E critics, X features, O, A. Contract: algorithms.interface.EpisodeAgent.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence

import torch

from algorithms import runtime
from algorithms.fourier import features, featurise
from algorithms.interface import AgentSpec
from algorithms.offline.config import ValueConfig
from algorithms.offline.steps import Steps, actor_parameters, critic_parameters, draw_steps, values
from algorithms.trainer import FlatAdam, FlatParameters, Loss, TrainedAgent, Trainer
from replay.schema import DataSummary, ReturnSummary, Trajectories

CRITIC_METRICS, ACTOR_METRICS = (
    ("critic_loss", "q_mean", "critic_grad_norm"),
    ("actor_loss", "alpha", "actor_grad_norm"),
)


class ValueAgent(TrainedAgent):
    """A subclass gives the two losses, each a sum over steps. Raises ValueError with every problem of ``config`` at once.

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
        self.config, draw = config, torch.Generator().manual_seed(spec.seed)
        self.data = {k: t.to(self.device) for k, t in no_data(spec.obs_dim).items()}
        seen, c = features(config.obs_waves, config.obs_wave_dims, spec.obs_dim), config
        q = critic_parameters(seen + spec.action_dim, c.critics, c.width, c.layers, c.layer_norm, "q", draw)
        pi = actor_parameters(seen, outputs, c.width, c.layers, draw)
        self.critic = FlatParameters(q | (more_critic or {}), self.device, extra=2)
        self.policy = FlatParameters(pi | (more_actor or {}), self.device, extra=2)
        self.slow = {n: t.detach().clone() for n, t in (self.critic.named | self.policy.named).items()}
        self.critic_adam = FlatAdam(self.critic.value, self.critic.gradient, lr=config.lr)
        self.actor_adam = FlatAdam(self.policy.value, self.policy.gradient, lr=config.actor_lr)
        self.critic_trainer = Trainer(self.critic, (self.critic_adam,), spec.collective, CRITIC_METRICS)
        self.actor_trainer = Trainer(self.policy, (self.actor_adam,), spec.collective, ACTOR_METRICS)
        self.trainers = (self.critic_trainer, self.actor_trainer)
        self.fitted = False

    @abc.abstractmethod
    def critic_loss(self, steps: Steps, seen_RX: torch.Tensor, next_RX: torch.Tensor) -> torch.Tensor:
        """What each step costs the critics (R,)."""

    @abc.abstractmethod
    def actor_loss(self, steps: Steps, seen_RX: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What each step costs the actor, and the temperature where there is one, (R,)."""

    def fit(self, summary: DataSummary) -> None:
        """Takes the statistics of the dataset; raises ValueError where it is of another environment."""
        if (seen := summary.obs_mean_O.shape) != (self.obs_dim,):
            raise ValueError(
                f"the dataset's observations have shape {seen}, expected ({self.obs_dim},) as the environment's: the "
                "policy could not act there; take a dataset of this environment"
            )
        self.data["obs_mean"].copy_(torch.as_tensor(summary.obs_mean_O))
        self.data["obs_std"].copy_(torch.as_tensor(summary.obs_std_O))
        self.data["longest"].fill_(summary.max_length)
        if wanted := getattr(self.config, "return_range", 0.0):
            self.data["reward_scale"].fill_(wanted / max(summary.return_max - summary.return_min, 1e-6))
        self.fitted = True

    def update(self, batches: Sequence[Trajectories]) -> dict[str, torch.Tensor]:
        """U updates of the critics, and of the actor on every ``actor_every``-th; see docs/metrics.md.

        Raises ValueError for rows of another width, RuntimeError when ``fit`` was not called.
        """
        if not self.fitted:
            raise RuntimeError("update came before fit: inputs would not be normalised; call fit(summary) first")
        expected = self.obs_dim + self.action_dim + 1
        for batch in batches:
            if batch.rows_NF.shape[1] != expected:
                raise ValueError(
                    f"a batch has rows of {batch.rows_NF.shape[1]} floats, expected {expected} = O + A + 1: columns would be "
                    "taken for others; feed episodes of the environment that the agent was made for"
                )
        with runtime.library(self.matmul):
            for batch in batches:
                self._step(batch)
        return self.read_metrics()

    def see(self, obs_RO: torch.Tensor) -> torch.Tensor:
        """Features (R, X) of raw observations."""
        return featurise(obs_RO, self.data, self.config.obs_waves, self.config.obs_wave_dims, self.obs_dim)

    def q(self, p: dict[str, torch.Tensor], seen_RX: torch.Tensor, action_RA: torch.Tensor) -> torch.Tensor:
        """What each critic gives each step, (E, R)."""
        return values(p, torch.cat([seen_RX, action_RA], -1), self.config.layers)

    def frozen(self) -> dict[str, torch.Tensor]:
        """The critics without gradient, for the actor."""
        return {name: tensor.detach() for name, tensor in self.critic.named.items()}

    def _step(self, batch: Trajectories) -> None:
        config = self.config
        noise_BP, longest = self.uniform(len(batch), config.points), self.data["longest"]
        steps = draw_steps(batch, noise_BP, self.obs_dim, self.action_dim, longest, config.gamma)
        scale, weight_R = self.data["reward_scale"], steps.weight_R
        steps = steps._replace(reward_R=steps.reward_R * scale, to_go_R=steps.to_go_R * scale)
        seen_RX, next_RX, weight = self.see(steps.obs_RO), self.see(steps.next_RO), weight_R.sum()
        self.updates += 1
        with_actor = self.updates % config.actor_every == 0
        cost_R = self.critic_loss(steps, seen_RX, next_RX)
        step = self.critic_trainer.descend(Loss((cost_R * weight_R).sum(), weight=weight))
        q_mean = self.q(self.frozen(), seen_RX, steps.action_RA).mean().detach()
        self.critic_trainer.record(step, (step.loss, q_mean, step.norm))
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

    def posteriors(self) -> list[torch.Tensor]:
        """None: nothing is inferred about episodes."""
        return []

    def start_finetuning(self) -> None:
        """Goes on as it is: online episodes come into the batches, nothing else changes."""

    def update_returns(self, returns: ReturnSummary) -> None:
        """Does nothing: no return is asked for."""

    def policy_weights(self) -> dict[str, torch.Tensor]:
        """The actor's parameters and the observations' mean and standard deviation; views, float32."""
        named = {n: t.detach() for n, t in self.policy.named.items() if n != "log_alpha"}
        return named | {name: self.data[name] for name in ("obs_mean", "obs_std")}

    def state(self) -> dict[str, torch.Tensor]:
        """Copies of everything that a bit-exact resume needs."""
        return super().state() | {"fitted": torch.tensor(self.fitted)}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Takes what ``state`` gave, in place; raises ValueError naming every missing, surplus or misshapen entry."""
        super().load_state(state)
        self.fitted = bool(state["fitted"])

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
