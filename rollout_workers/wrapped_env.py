"""Environments that are others but for what a subclass changes."""

from __future__ import annotations

import numpy as np

from rollout_workers.batch_env import BatchEnv, StepResult


class WrappedEnv:
    """A BatchEnv that does what ``inner`` does; a subclass overrides what it does otherwise."""

    def __init__(self, inner: BatchEnv) -> None:
        self._inner = inner
        self.num_envs, self.obs_dim, self.action_dim = inner.num_envs, inner.obs_dim, inner.action_dim
        self.action_low_A, self.action_high_A = inner.action_low_A, inner.action_high_A
        self.max_episode_steps = inner.max_episode_steps

    def reset(self, seeds: list[int] | None = None) -> np.ndarray:
        """See BatchEnv."""
        return self._inner.reset(seeds)

    def step(self, actions_EA: np.ndarray) -> StepResult:
        """See BatchEnv."""
        return self._inner.step(actions_EA)

    def cut(self, env_indices: list[int]) -> np.ndarray:
        """See BatchEnv."""
        return self._inner.cut(env_indices)

    def state(self) -> dict[str, np.ndarray]:
        """See BatchEnv."""
        return self._inner.state()

    def load_state(self, state: dict[str, np.ndarray]) -> np.ndarray:
        """See BatchEnv."""
        return self._inner.load_state(state)

    @property
    def not_replayed(self) -> dict[int, str]:
        """See BatchEnv."""
        return self._inner.not_replayed

    def close(self) -> None:
        """See BatchEnv."""
        self._inner.close()
