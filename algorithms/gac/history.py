"""The newest steps of running episodes: what replanning by Eq. 3 explains.

Letters: E environments, K of them, H steps kept, O observation dim, A action dim.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch


class Steps(NamedTuple):
    """Consecutive steps of K episodes from the front, padding behind them."""

    obs_KHO: torch.Tensor  # float32, raw
    action_KHA: torch.Tensor  # float32
    time_KH: torch.Tensor  # int64, steps since the episode's start
    padding_KH: torch.Tensor  # bool, True where there is no step


class History:
    """The last H steps of E episodes, as a ring by each episode's own time; H = 0 keeps nothing."""

    def __init__(self, num_envs: int, steps: int, obs_dim: int, action_dim: int) -> None:
        self.steps = steps
        self.obs_EHO = np.zeros((num_envs, steps, obs_dim), np.float32)
        self.action_EHA = np.zeros((num_envs, steps, action_dim), np.float32)
        self._env_E = np.arange(num_envs)

    def append(self, time_E: np.ndarray, obs_EO: np.ndarray, action_EA: np.ndarray) -> None:
        """Takes the step at ``time_E`` (int64) of every episode."""
        slot_E = time_E % self.steps
        self.obs_EHO[self._env_E, slot_E] = obs_EO
        self.action_EHA[self._env_E, slot_E] = action_EA

    def newest(self, env_K: np.ndarray, time_K: np.ndarray) -> Steps:
        """The min(H, time) steps before ``time_K`` of the episodes in ``env_K``."""
        first_K1 = np.maximum(time_K - self.steps, 0)[:, None]
        time_KH = first_K1 + np.arange(self.steps)
        at = (env_K[:, None], time_KH % self.steps)
        padding_KH = time_KH >= time_K[:, None]
        return Steps(*map(torch.from_numpy, (self.obs_EHO[at], self.action_EHA[at], time_KH, padding_KH)))
