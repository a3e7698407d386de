"""Vector environments of one each, side by side, where one vector of all cannot start each episode from its own seed.

Letters: E environments, O observation dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rollout_workers.env import BatchEnv, StepResult
from rollout_workers.gym_vector import VectorBatchEnv


def takes_own_seeds(env: VectorBatchEnv, seed: int) -> bool:
    """Whether equal seeds in a list give equal environments: tried by a reset and one step of all of them."""
    obs_EO = env.reset([seed] * env.num_envs)
    step = env.step(np.zeros((env.num_envs, env.action_dim), np.float32))
    columns = obs_EO, step.next_obs_EO, step.reward_E
    return not env.one_seed and all(np.array_equal(column, _first(column), equal_nan=True) for column in columns)


def _first(column: np.ndarray) -> np.ndarray:
    """The first environment's values, for all."""
    return np.broadcast_to(column[:1], column.shape)


class SingleVectors:
    """E batches of one environment each as one BatchEnv."""

    def __init__(self, parts: Sequence[BatchEnv]) -> None:
        self._parts, one = parts, parts[0]
        self.num_envs, self.obs_dim, self.action_dim = len(parts), one.obs_dim, one.action_dim
        self.action_low_A, self.action_high_A = one.action_low_A, one.action_high_A
        self.max_episode_steps = one.max_episode_steps

    @property
    def not_replayed(self) -> dict[int, str]:
        """See BatchEnv."""
        return {e: part.not_replayed[0] for e, part in enumerate(self._parts) if part.not_replayed}

    def reset(self, seeds: list[int] | None = None) -> np.ndarray:
        """See BatchEnv."""
        return np.concatenate([part.reset(None if seeds is None else [seeds[e]]) for e, part in enumerate(self._parts)])

    def step(self, actions_EA: np.ndarray) -> StepResult:
        """See BatchEnv."""
        results = [part.step(actions_EA[e : e + 1]) for e, part in enumerate(self._parts)]
        left_E = [np.zeros(1, bool) if result.left_E is None else result.left_E for result in results]
        return StepResult._make(map(np.concatenate, [*zip(*(result[:6] for result in results)), left_E]))

    def force_reset(self, env_indices: list[int]) -> np.ndarray:
        """See BatchEnv."""
        chosen = set(env_indices)
        return np.concatenate([part.force_reset([0] if e in chosen else []) for e, part in enumerate(self._parts)])

    def state(self) -> dict[str, np.ndarray]:
        """See BatchEnv."""
        states = [part.state() for part in self._parts]
        return {name: np.concatenate([state[name] for state in states]) for name in states[0]}

    def load_state(self, state: dict[str, np.ndarray]) -> np.ndarray:
        """See BatchEnv."""
        rows = [{name: value[e : e + 1] for name, value in state.items()} for e in range(self.num_envs)]
        return np.concatenate([part.load_state(row) for part, row in zip(self._parts, rows)])

    def close(self) -> None:
        """See BatchEnv."""
        for part in self._parts:
            part.close()
