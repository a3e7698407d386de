"""Noise on the actions of exploring plans, so that episodes of one start and one plan differ in what they bring.

The generator's actions are Gaussian and a plan acts by their mean ("Generative Actor Critic", arXiv 2512.21527; mean action: Latent
Plan Transformer, arXiv 2402.04647); noise while gathering is ours. Letters: E environments, K of them, A action dim, S steps of a block.
"""

from __future__ import annotations

import numpy as np

BLOCK = 64  # steps drawn at once


class ActionNoise:
    """White Gaussian noise of a deviation of each episode's own, uniform from 0 to ``most``.

    Everything follows from an episode's seed and time, so that a state needs nothing of it.
    """

    def __init__(self, num_envs: int, action_dim: int, most: float) -> None:
        self._most = most
        self._seed_E = np.zeros(num_envs, np.int64)
        self._deviation_E = np.zeros(num_envs, np.float32)
        self._block_ESA = np.zeros((num_envs, BLOCK, action_dim), np.float32)
        self._env_E = np.arange(num_envs)

    def begin(self, env_K: np.ndarray, seed_K: np.ndarray, noisy_K: np.ndarray) -> None:
        """Episodes start in ``env_K``; ``noisy_K`` (bool): which of them are disturbed."""
        self._seed_E[env_K] = seed_K
        share_K = [np.random.default_rng([seed]).uniform() if noisy else 0.0 for seed, noisy in zip(seed_K, noisy_K)]
        self._deviation_E[env_K] = self._most * np.array(share_K, np.float32)

    def restore(self, seed_E: np.ndarray, noisy_E: np.ndarray, time_E: np.ndarray) -> None:
        """Goes on with all episodes at ``time_E`` (int64)."""
        self.begin(self._env_E, seed_E, noisy_E)
        self._draw(np.flatnonzero(self._deviation_E), time_E)

    def disturbed(self, action_EA: np.ndarray, time_E: np.ndarray) -> np.ndarray:
        """The actions of the steps at ``time_E`` with their noise, in [-1, 1]; the same array where none is disturbed."""
        noisy_E = self._deviation_E > 0
        if not noisy_E.any():
            return action_EA
        self._draw(np.flatnonzero(noisy_E & (time_E % BLOCK == 0)), time_E)
        return np.clip(action_EA + self._block_ESA[self._env_E, time_E % BLOCK], -1.0, 1.0)

    def _draw(self, env_K: np.ndarray, time_E: np.ndarray) -> None:
        for e in env_K.tolist():
            rng = np.random.default_rng([int(self._seed_E[e]), int(time_E[e]) // BLOCK, 1])
            self._block_ESA[e] = rng.normal(0.0, self._deviation_E[e], self._block_ESA.shape[1:])
