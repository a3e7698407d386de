"""Point mazes whose episodes begin where they are told to.

Letters: E environments.
"""

from __future__ import annotations

import numpy as np

from rollout_workers.batch_env import BatchEnv, EnvError, StepResult
from rollout_workers.envs import make_batch_env
from rollout_workers.maze import maze_of

_TIME = 1  # columns before the positions in MuJoCo's state


class GivenStarts:
    """E point mazes with one fixed goal as a BatchEnv; the first episode of environment e begins at rest at ``start_E2[e]``.

    Later episodes begin where the environment draws them.

    Args:
        env_id: FixedGoal id.
        start_E2: (x, y) of every environment's start, m.

    Raises EnvError for an environment of another kind.
    """

    def __init__(self, env_id: str, start_E2: np.ndarray) -> None:
        maze = maze_of(env_id)
        if maze is None or maze.goal_xy is None:
            raise EnvError(
                f"{env_id} was given starts, expected a maze with one goal: its state holds no position that is known, so nothing "
                "was made; leave the starts out"
            )
        self._start_E2 = np.array(start_E2, dtype=np.float64)
        inner: BatchEnv = make_batch_env(env_id, len(self._start_E2), 0)
        self._inner = inner
        self.num_envs, self.obs_dim, self.action_dim = inner.num_envs, inner.obs_dim, inner.action_dim
        self.action_low_A, self.action_high_A = inner.action_low_A, inner.action_high_A
        self.max_episode_steps = inner.max_episode_steps

    def reset(self, seeds: list[int] | None = None) -> np.ndarray:
        """See BatchEnv; at the given starts."""
        self._inner.reset(seeds)
        state = self._inner.get_state()
        state["physics"][:, _TIME : _TIME + 2] = self._start_E2
        state["obs"][:, :2] = self._start_E2
        return self._inner.set_state(state)

    def step(self, actions_EA: np.ndarray) -> StepResult:
        """See BatchEnv."""
        return self._inner.step(actions_EA)

    def cut(self, env_indices: list[int]) -> np.ndarray:
        """See BatchEnv."""
        return self._inner.cut(env_indices)

    def get_state(self) -> dict[str, np.ndarray]:
        """See BatchEnv."""
        return self._inner.get_state()

    def set_state(self, state: dict[str, np.ndarray]) -> np.ndarray:
        """See BatchEnv."""
        return self._inner.set_state(state)

    def close(self) -> None:
        """See BatchEnv."""
        self._inner.close()
