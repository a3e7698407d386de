"""What a decision transformer remembers of running episodes: the last K steps of each environment, ragged.

Letters: E environments, K steps, O, A. Windows begin at entry 0 and have ``length_E`` steps.
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(kw_only=True)
class History:
    """Windows of E environments, each at its own step; entries after a window's end are finite and change nothing."""

    to_go_EK: np.ndarray  # float64, return still asked for, in the environment's units
    obs_EKO: np.ndarray  # float32, raw
    action_EKA: np.ndarray  # float32; that of the newest step is not read before ``acted``
    length_E: np.ndarray  # int64, steps in the window, 0 after ``begin``, -1 before
    step_E: np.ndarray  # int64, of the episode, the newest in the window; -1 after ``begin``
    asked_E: np.ndarray  # float64, what the episode was begun with

    @classmethod
    def empty(cls, num_envs: int, context: int, obs_dim: int, action_dim: int) -> History:
        """No environment has begun."""
        return cls(
            to_go_EK=np.zeros((num_envs, context)),
            obs_EKO=np.zeros((num_envs, context, obs_dim), np.float32),
            action_EKA=np.zeros((num_envs, context, action_dim), np.float32),
            length_E=np.full(num_envs, -1, np.int64),
            step_E=np.full(num_envs, -1, np.int64),
            asked_E=np.zeros(num_envs),
        )

    def begin(self, env_K: np.ndarray, asked: float) -> None:
        """Forgets the windows of some environments and takes what their new episodes are asked for."""
        self.length_E[env_K], self.step_E[env_K], self.asked_E[env_K] = 0, -1, asked
        for window in (self.to_go_EK, self.obs_EKO, self.action_EKA):
            window[env_K] = 0.0  # a NaN of the last episode would reach this one: 0 weight times NaN is NaN

    def observe(self, obs_EO: np.ndarray, reward_E: np.ndarray) -> None:
        """A new step in each environment; what its last action brought is no longer asked for."""
        every = np.arange(len(self.length_E))
        first_E = self.length_E == 0
        newest_E = np.where(first_E, 0, self.to_go_EK[every, self.length_E - 1] - reward_E)
        self._forget_oldest(self.length_E == self.to_go_EK.shape[1])
        self.to_go_EK[every, self.length_E] = np.where(first_E, self.asked_E, newest_E)
        self.obs_EKO[every, self.length_E] = obs_EO
        self.length_E += 1
        self.step_E += 1

    def acted(self, action_EA: np.ndarray) -> None:
        """What was done at the newest step of each."""
        self.action_EKA[np.arange(len(self.length_E)), self.length_E - 1] = action_EA

    def time_EK(self) -> np.ndarray:
        """Step of the episode at each entry of the windows, int64."""
        return (self.step_E - self.length_E + 1)[:, None] + np.arange(self.to_go_EK.shape[1])

    def _forget_oldest(self, full_E: np.ndarray) -> None:
        for window in (self.to_go_EK, self.obs_EKO, self.action_EKA):
            if full_E.all():
                window[:, :-1] = window[:, 1:]
            elif full_E.any():
                window[full_E, :-1] = window[full_E, 1:]
        self.length_E -= full_E
