"""Point mazes whose episodes begin where they are told to.

Letters: E environments.
"""

from __future__ import annotations

import numpy as np

from rollout_workers.batch_env import EnvError
from rollout_workers.envs import make_batch_env
from rollout_workers.maze import maze_of
from rollout_workers.wrapped_env import WrappedEnv

_TIME = 1  # columns before the positions in MuJoCo's state


class GivenStarts(WrappedEnv):
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
        super().__init__(make_batch_env(env_id, len(self._start_E2), 0))

    def reset(self, seeds: list[int] | None = None) -> np.ndarray:
        """See BatchEnv; at the given starts."""
        self._inner.reset(seeds)
        state = self._inner.state()
        state["physics"][:, _TIME : _TIME + 2] = self._start_E2
        state["obs"][:, :2] = self._start_E2
        return self._inner.load_state(state)
