"""The rivals' actors for acting: one action a state, with noise where episodes are gathered.

Letters: E environments, K that begin, B batch, O, A. Contract: algorithms.interface.EpisodePolicy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from algorithms import runtime
from algorithms.fourier import features, featurise
from algorithms.imitation.agent import ImitationPolicy
from algorithms.interface import PlanRequestError, refuse_mode
from algorithms.offline.agent import no_data
from algorithms.offline.config import IQLConfig, TD3BCConfig, ValueConfig
from algorithms.offline.steps import IQL_LOG_STD, LOG_STD, actor_parameters, outputs
from replay.schema import EpisodeMetadata

NAN = float("nan")
EXPLORE = "explore"


class ValuePolicy(ImitationPolicy[ValueConfig]):
    """The deterministic action, or a sample of the policy in mode explore. The noise follows from an episode's seed and step."""

    def __init__(self, config: ValueConfig, obs_dim: int, action_dim: int) -> None:
        super().__init__(config, obs_dim, action_dim)
        heads = 1 if isinstance(config, IQLConfig | TD3BCConfig) else 2
        seen, draw = features(config.obs_fourier, config.obs_fourier_dims, obs_dim), torch.Generator().manual_seed(0)
        self._weights = actor_parameters(seen, heads * action_dim, config.width, config.layers, draw)
        if isinstance(config, IQLConfig):
            self._weights["log_std"] = torch.zeros(action_dim)
        self._weights |= {name: no_data(obs_dim)[name] for name in ("obs_mean", "obs_std")}
        self.reset(0)

    def reset(self, num_envs: int) -> None:
        """Forgets the running episodes."""
        self._seed_E = np.full(num_envs, -1, np.int64)  # -1: the episode does not explore
        self._step_E = np.zeros(num_envs, np.int64)

    def begin(self, env_K: np.ndarray, obs_KO: np.ndarray, rng: np.random.Generator) -> list[EpisodeMetadata]:
        """Metadata without a target; raises PlanRequestError for any request but to explore."""
        if self.aim.mode != EXPLORE:
            refuse_mode("a policy that follows values", self.aim.mode)
        if self.aim.target_return is not None:
            raise PlanRequestError(
                f"a policy that follows values was asked for the return {self.aim.target_return:g}, expected none: it maximises its "
                "values and aims at no return; drop the target"
            )
        explores = self.aim.mode == EXPLORE
        self._seed_E[env_K] = [stream.integers(2**62) if explores else -1 for stream in rng.spawn(len(env_K))]
        self._step_E[env_K] = 0
        return [EpisodeMetadata(episode=-1, mode=self.aim.mode, target=NAN, predicted=NAN, variance=NAN) for _ in env_K]

    def act(self, obs_EO: np.ndarray, reward_E: np.ndarray) -> np.ndarray:
        """Actions (E, A), float32, in [-1, 1]."""
        noise_EA = np.zeros((len(obs_EO), self.action_dim), np.float32)
        for e in np.flatnonzero(self._seed_E >= 0):
            noise_EA[e] = np.random.default_rng([self._seed_E[e], self._step_E[e]]).standard_normal(self.action_dim)
        self._step_E += 1
        with torch.inference_mode(), runtime.library(self._matmul):
            return self.act_on(torch.from_numpy(np.asarray(obs_EO, np.float32)), torch.from_numpy(noise_EA)).numpy()

    def act_on(self, obs_BO: torch.Tensor, noise_BA: torch.Tensor | None = None) -> torch.Tensor:
        """Actions (B, A) of the same function in torch alone; without noise the deterministic ones."""
        return acted(obs_BO, noise_BA, self._weights, self.config, self.obs_dim, self.action_dim)

    def onnx_model(self) -> bytes:
        """The serialised graph of ``act_on`` without noise; inputs ``obs`` and the weights."""
        from algorithms.onnx_graph import traced_alone  # onnx is slow to import, and learners never need it

        def act(obs: Any, given: Any) -> Any:
            return acted(obs, None, given, self.config, self.obs_dim, self.action_dim)

        used = {name: tensor for name, tensor in self._weights.items() if name != "log_std"}
        return traced_alone(act, self.obs_dim, self.action_dim, used)

    def state(self) -> dict[str, np.ndarray]:
        """Where each episode is in its noise; empty where none explores: the next actions depend on the observations alone."""
        if self.aim.mode != EXPLORE:
            return {}
        return {"seed": self._seed_E.copy(), "step": self._step_E.copy()}

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Takes what ``state`` gave, for any number of environments; raises ValueError for anything else."""
        if not state and self.aim.mode != EXPLORE:
            return
        if state.keys() != {"seed", "step"} or any(a.dtype != np.int64 or a.ndim != 1 for a in state.values()):
            raise ValueError(
                f"this state has {sorted(state)}, expected 'seed' and 'step', int64 (E,): its episodes cannot go on from it; build "
                "the policy that the state was made with"
            )
        self._seed_E, self._step_E = state["seed"].copy(), state["step"].copy()


def acted(
    obs_BO: torch.Tensor,
    noise_BA: torch.Tensor | None,
    weights: dict[str, torch.Tensor],
    config: ValueConfig,
    obs_dim: int,
    action_dim: int,
) -> torch.Tensor:
    """Actions (B, A): tanh(mean) plus noise (IQL, TD3+BC), or tanh(mean + std noise)."""
    out = outputs(
        weights, featurise(obs_BO, weights, config.obs_fourier, config.obs_fourier_dims, obs_dim), config.layers
    )
    if isinstance(config, IQLConfig | TD3BCConfig):
        mean = torch.tanh(out)
        if noise_BA is None:
            return mean
        std = config.explore_std if isinstance(config, TD3BCConfig) else weights["log_std"].clamp(*IQL_LOG_STD).exp()
        return (mean + std * noise_BA).clamp(-1.0, 1.0)
    mean, log_std = out[:, :action_dim], out[:, action_dim:]
    return torch.tanh(mean if noise_BA is None else mean + torch.clamp(log_std, *LOG_STD).exp() * noise_BA)
