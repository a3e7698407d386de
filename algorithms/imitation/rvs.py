"""Return-conditioned regression: a = tanh( f(s) + g(s) y ), y the return of the whole episode, without any latent.

Learning actions from states and an outcome is RvS (Emmons et al., 2022, "RvS: What is Essential for Offline RL via
Supervised Learning?"); that the outcome enters linearly is ours: it is GAC's preset ``linear`` with y in place of the plan.
It sees what GAC sees, Fourier features of the position too, and of the rewards only their sum. Three things decide whether it
keeps what it is asked for beyond the data: a smooth, narrow network (Swish), a step size that falls, and noise on y in training.
Without noise g is large, and means nothing, in states where the data's returns hardly differ.

Letters: B episodes, P points of each, R rows, K environments that begin, E environments, O, A.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from algorithms import runtime
from algorithms.fourier import features, featurise
from algorithms.imitation.agent import ImitationAgent, ImitationPolicy, draw_points
from algorithms.imitation.cloning import action_error, logits, uniform_parameters
from algorithms.imitation.config import ConditionedConfig
from algorithms.interface import AgentSpec, real_target, refuse_mode
from algorithms.trainer import Loss
from replay.schema import DataSummary, EpisodeMetadata, Trajectories

TARGET_REACH = 1.6  # without a target it asks for this times as far above the mean as the best return (ours)
NAN = float("nan")


class ReturnConditioned(ImitationAgent):
    """The learner of rvs; contract: algorithms.interface.EpisodeAgent. Raises ValueError with every problem of ``config`` at once."""

    def __init__(self, config: ConditionedConfig, spec: AgentSpec) -> None:
        config.check()
        self.config = config
        initial = _initial(config, spec.obs_dim, spec.action_dim, spec.seed)
        super().__init__(config, spec, initial, _no_data(spec.obs_dim))

    def learning_rate(self) -> float:
        """From lr to ``lr_end`` of it, by a cosine over ``updates``."""
        config = self.config
        share = 0.5 * (1.0 + math.cos(math.pi * min(1.0, self.updates / config.updates)))
        return super().learning_rate() * (config.lr_end + (1.0 - config.lr_end) * share)

    def _statistics(self, summary: DataSummary) -> dict[str, object]:
        target = summary.return_mean + TARGET_REACH * (summary.return_max - summary.return_mean)
        return {"return_mean": summary.return_mean, "return_std": summary.return_std, "return_target": target}

    def losses(self, batch: Trajectories) -> Loss:
        """sum_bp (1/A) |pi(s_bp, y_b + noise_b) - a_bp|^2 over their number."""
        config = self.config
        noise_B = config.return_noise * self.data["return_std"] * self.normal(len(batch))
        points = draw_points(batch, self.uniform(len(batch), config.points), self.obs_dim, self.action_dim)
        return_R = (batch.return_B + noise_B).repeat_interleave(config.points, output_size=len(batch) * config.points)
        predicted_RA = conditioned(self.parameters.named, self.data, points.obs_BPO.flatten(0, 1), return_R, config)
        weight_R = torch.ones_like(return_R)
        total = action_error(predicted_RA, points.action_BPA.flatten(0, 1), weight_R)
        return Loss(total, weight=weight_R.sum(), shared=(weight_R.mean(),))


class ReturnConditionedPolicy(ImitationPolicy[ConditionedConfig]):
    """The regression for acting; contract: algorithms.interface.EpisodePolicy.

    ``aim.target_return`` is what an episode is asked for; None: TARGET_REACH. A target beyond the data is taken as it
    is. Actions of one environment are the same beside any number of others up to float32 rounding.
    """

    def __init__(self, config: ConditionedConfig, obs_dim: int, action_dim: int) -> None:
        super().__init__(config, obs_dim, action_dim)
        self._weights = _initial(config, obs_dim, action_dim, 0) | _no_data(obs_dim)
        self.reset(0)

    def reset(self, num_envs: int) -> None:
        """Forgets what episodes were asked for."""
        self._asked_E = np.full(num_envs, NAN, np.float32)

    def begin(self, env_K: np.ndarray, obs_KO: np.ndarray, rng: np.random.Generator) -> list[EpisodeMetadata]:
        """Metadata with the requested return; nothing is drawn. Raises PlanRequestError for a request that cannot be met."""
        refuse_mode("a return-conditioned regression", self.aim.mode)
        asked = real_target(
            float(self._weights["return_target"]) if self.aim.target_return is None else self.aim.target_return
        )
        self._asked_E[env_K] = asked
        return [EpisodeMetadata(episode=-1, mode="", target=asked, predicted=NAN, variance=NAN) for _ in env_K]

    def act(self, obs_EO: np.ndarray, reward_E: np.ndarray) -> np.ndarray:
        """Actions (E, A), float32, in [-1, 1]. Raises RuntimeError where an environment has not begun."""
        if len(obs_EO) != len(self._asked_E) or np.isnan(self._asked_E).any():
            raise RuntimeError(
                f"act got {len(obs_EO)} observations for {len(self._asked_E)} environments, of which "
                f"{np.flatnonzero(np.isnan(self._asked_E)).tolist()} have not begun: there is no return to ask for; call reset with "
                "their number, and begin for each"
            )
        with torch.inference_mode(), runtime.library(self._matmul):
            obs_RO = torch.from_numpy(np.asarray(obs_EO, np.float32))
            return_R = torch.from_numpy(self._asked_E)
            return conditioned(self._weights, self._weights, obs_RO, return_R, self.config).numpy()

    def state(self) -> dict[str, np.ndarray]:
        """What each environment was asked for."""
        return {"asked": self._asked_E.copy()}

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Takes what ``state`` gave, for any number of environments; raises ValueError for anything else."""
        if state.keys() != {"asked"} or state["asked"].dtype != np.float32 or state["asked"].ndim != 1:
            raise ValueError(
                f"this state has {sorted(state)}, expected 'asked', float32 (E,): its episodes cannot go on from it; build the policy "
                "that the state was made with"
            )
        self._asked_E = state["asked"].copy()


def conditioned(
    parameters: dict[str, torch.Tensor],
    data: dict[str, torch.Tensor],
    obs_RO: torch.Tensor,
    return_R: torch.Tensor,
    config: ConditionedConfig,
) -> torch.Tensor:
    """Actions (R, A) in [-1, 1] for raw observations and returns: one network gives f and g."""
    seen_RX = featurise(obs_RO, data, config.obs_fourier, config.obs_fourier_dims, obs_RO.shape[1])
    y_R = (return_R - data["return_mean"]) / data["return_std"]
    f_RA, g_RA = logits(parameters, seen_RX, config.layers, F.silu).chunk(2, -1)
    return torch.tanh(f_RA + g_RA * y_R.unsqueeze(1))


def _initial(config: ConditionedConfig, obs_dim: int, action_dim: int, seed: int) -> dict[str, torch.Tensor]:
    sizes = [
        features(config.obs_fourier, config.obs_fourier_dims, obs_dim),
        *[config.width] * config.layers,
        2 * action_dim,
    ]
    return uniform_parameters(sizes, torch.Generator().manual_seed(seed))


def _no_data(obs_dim: int) -> dict[str, torch.Tensor]:
    numbers = {"return_mean": 0.0, "return_std": 1.0, "return_target": 0.0}
    named = {name: torch.tensor(value) for name, value in numbers.items()}
    return {"obs_mean": torch.zeros(obs_dim), "obs_std": torch.ones(obs_dim)} | named
