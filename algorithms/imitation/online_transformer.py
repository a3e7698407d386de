"""The online decision transformer: a decision transformer with a stochastic policy, which gathers what it then learns from.

Letters: B episodes, G windows, K steps of the context, E environments, A.
Source: Zheng et al. (2022), "Online Decision Transformer", arXiv 2202.05607. The policy is a tanh-Gaussian that maximises the
likelihood of the data's actions at an entropy that a temperature holds. Gathering asks for more than an evaluation does, and every
gathered episode is learned from with the return that it had (hindsight relabelling), whatever it was asked for. Ours: Adam where
theirs is LAMB, timestep embeddings, the whole context in acting (theirs: 5 of 20 steps), and stages of GAC's length.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from algorithms.imitation.config import OnlineTransformerConfig
from algorithms.imitation.decision_transformer import DecisionTransformer, DecisionTransformerPolicy
from algorithms.interface import AgentSpec
from algorithms.losses import log_prob
from algorithms.trainer import FlatAdam, FlatParameters, Loss, Trainer
from replay.schema import EpisodeMetadata, Trajectories

LOG_STD = (-5.0, 2.0)  # between these by a tanh [ODT]
LARGEST = 1.0 - 1e-6  # action whose likelihood is taken: 1 has none [ODT]
EXPLORE = "explore"


class OnlineDecisionTransformer(DecisionTransformer):
    """The learner of odt; contract: algorithms.interface.EpisodeAgent. Raises ValueError with every problem of ``config`` at once."""

    config: OnlineTransformerConfig
    heads = 2
    metrics = ("action_nll", "grad_norm", "imitated", "entropy")

    def __init__(self, config: OnlineTransformerConfig, spec: AgentSpec) -> None:
        super().__init__(config, spec)
        log_alpha = torch.full((), math.log(max(config.alpha_init, 1e-12)))
        self.heat = FlatParameters({"log_alpha": log_alpha}, self.device, extra=2)
        self.heat_adam = FlatAdam(self.heat.value, self.heat.gradient, lr=config.alpha_lr)
        self.heat_trainer = Trainer(self.heat, (self.heat_adam,), spec.collective, ("alpha",))
        self.trainers = (self.trainer, self.heat_trainer)

    def losses(self, batch: Trajectories) -> Loss:
        """sum_gk w_gk (-log pi(a_gk) - alpha H_gk) over sum_gk w_gk, H of one drawn action; shares the means of w and w H."""
        out_GKA, action_GKA, weight_GK = self.outputs(batch)
        mean_GKA, log_std_GKA = split(out_GKA)
        K, A = action_GKA.shape[1:]
        noise_GKA = self.normal(len(batch), self.config.segments, K, A).flatten(0, 1)
        log_pi_GK = log_density(atanh(action_GKA), mean_GKA, log_std_GKA)
        entropy_GK = -log_density(mean_GKA + log_std_GKA.exp() * noise_GKA, mean_GKA, log_std_GKA)
        alpha = self.heat.named["log_alpha"].detach().exp()
        cost_GK = torch.where(weight_GK > 0, -log_pi_GK - alpha * entropy_GK, 0.0)
        entropy = torch.where(weight_GK > 0, entropy_GK.detach(), 0.0).mean()
        return Loss(cost_GK.sum(), weight=weight_GK.sum(), shared=(weight_GK.mean(), entropy))

    def _step(self, batch: Trajectories) -> None:
        """An update of the network, then alpha (H - target), with H as it was, of the temperature."""
        loss = self.losses(batch)
        self.updates += 1
        self.adam.lr = self.learning_rate()
        step = self.trainer.descend(loss)
        share, entropy = step.shared[0], step.shared[1] / step.shared[0]
        self.trainer.record(step, (step.loss, step.norm, share, entropy))
        alpha = self.heat.named["log_alpha"].exp()
        kept = 1.0 - step.skipped
        over = torch.where(step.skipped > 0, 0.0, entropy - self.config.target_entropy * self.action_dim)
        heat = self.heat_trainer.descend(Loss(alpha * over * kept, weight=kept))
        self.heat_trainer.record(heat, (alpha.detach(),))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Those of a decision transformer, the temperature and its moments."""
        heat = {f"heat.{name}": tensor for name, tensor in (self.heat.named | self.heat_adam.state()).items()}
        return super().tensors() | heat


class OnlineDecisionTransformerPolicy(DecisionTransformerPolicy):
    """The policy's mean, or in mode explore a sample, of an episode that is asked for ``explore_return`` times as much.

    The noise follows from an episode's seed and step.
    """

    config: OnlineTransformerConfig
    heads = OnlineDecisionTransformer.heads

    def reset(self, num_envs: int) -> None:
        """Forgets all windows and which episodes explore."""
        super().reset(num_envs)
        self._seed_E = np.full(num_envs, -1, np.int64)  # -1: the episode does not explore

    def begin(self, env_K: np.ndarray, obs_KO: np.ndarray, rng: np.random.Generator) -> list[EpisodeMetadata]:
        """Metadata with the requested return and the mode. Raises PlanRequestError for a request that cannot be met."""
        explores = self.aim.mode == EXPLORE
        self._seed_E[env_K] = [stream.integers(2**62) if explores else -1 for stream in rng.spawn(len(env_K))]
        metadata = super().begin(env_K, obs_KO, rng)
        return [one._replace(mode=self.aim.mode) for one in metadata]

    def state(self) -> dict[str, np.ndarray]:
        """The windows and the noise of all environments, by name, as copies."""
        return super().state() | {"seed_E": self._seed_E.copy()}

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Takes what ``state`` gave, for any number of environments; raises ValueError for anything else."""
        seed_E = state.get("seed_E", np.zeros(0))
        super().load_state({name: array for name, array in state.items() if name != "seed_E"})
        if seed_E.dtype != np.int64 or seed_E.shape != self._history.length_E.shape:
            raise ValueError(
                f"this state has seeds of {seed_E.dtype} {seed_E.shape}, expected int64 {self._history.length_E.shape}: its episodes "
                "cannot go on from it; build the policy that the state was made with"
            )
        self._seed_E = seed_E.copy()

    def _action(self, out_EA: torch.Tensor) -> torch.Tensor:
        mean_EA, log_std_EA = split(out_EA)
        noise_EA = np.zeros(mean_EA.shape, np.float32)
        for e in np.flatnonzero(self._seed_E >= 0):
            draw = np.random.default_rng([self._seed_E[e], self._history.step_E[e]])
            noise_EA[e] = draw.standard_normal(self.action_dim)
        return torch.tanh(mean_EA + log_std_EA.exp() * torch.from_numpy(noise_EA))

    def _target(self) -> float:
        if self.aim.mode != EXPLORE:
            return super()._target()
        usual = self._requested()
        return usual + (self.config.explore_return - 1.0) * abs(usual)  # more, also where returns are negative


def split(out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean before the tanh and log standard deviation (..., A) of outputs (..., 2 A)."""
    mean, raw = out.chunk(2, -1)
    low, high = LOG_STD
    return mean, low + 0.5 * (high - low) * (torch.tanh(raw) + 1.0)


def atanh(action: torch.Tensor) -> torch.Tensor:
    """What the tanh of actions was taken of."""
    return torch.atanh(action.clamp(-LARGEST, LARGEST))


def log_density(x: torch.Tensor, mean: torch.Tensor, log_std: torch.Tensor) -> torch.Tensor:
    """log pi (...) of the actions tanh x, (..., A)."""
    return log_prob(x, log_std, (x - mean) * (-log_std).exp())
