"""PointMaze of gymnasium_robotics, v3: a force-driven ball finds its way to a goal.

The registered ids are continuing tasks that keep their goal: an episode ends at its time limit alone, and being within
0.45 m of the goal pays at every step. Other arguments (``continuing_task=False``, ``reset_target=True``) are left to
the original environment.

Letters: E environments, S gathered columns, G goal dim, O observation dim, A action dim.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rollout_workers.fixed_goal import draw_start
from rollout_workers.mujoco_stack import MujocoStack
from rollout_workers.tasks import Outcome, Start, Task, never, square_sum

_MAX_SPEED = 5.0  # m/s, in each coordinate, imposed before a step
_REACHED = 0.45  # m
_NOISE = 0.25  # m, half-width around the centre of a cell


class PointMaze(Task):
    """Observes, in the order of sorted keys, achieved_goal (2), desired_goal (2), observation (position, velocity)."""

    goal_dim = 2

    def __init__(self, env: Any) -> None:
        super().__init__(env.point_env)
        self._goals: list[np.ndarray] = env.maze.unique_goal_locations
        self._starts: list[np.ndarray] = env.maze.unique_reset_locations
        self._dense: bool = env.reward_type == "dense"

    def start(self, rng: np.random.Generator) -> Start:
        goal = self._place(rng, self._goals)
        goal += self._noise(rng)
        position = self._place(rng, self._starts)
        while np.linalg.norm(position - goal) <= 0.5:
            position = self._place(rng, self._starts)
        qpos = self.init_qpos.copy()
        qpos[:2] = position + self._noise(rng)
        return Start(qpos, self.init_qvel, goal)

    def control(self, stack: MujocoStack, action_EA: np.ndarray) -> np.ndarray:
        np.clip(stack.qvel_EV, -_MAX_SPEED, _MAX_SPEED, out=stack.qvel_EV)
        return np.clip(action_EA, -1.0, 1.0)

    def observe(self, now_ES: np.ndarray, goal_EG: np.ndarray) -> np.ndarray:
        return np.concatenate([now_ES[:, :2], goal_EG, now_ES], axis=1)

    def judge(self, before_ES: np.ndarray, now_ES: np.ndarray, goal_EG: np.ndarray, action_EA: np.ndarray) -> Outcome:
        distance_E = np.sqrt(square_sum(now_ES[:, :2] - goal_EG))
        reward_E = np.exp(-distance_E) if self._dense else (distance_E <= _REACHED).astype(np.float64)
        return Outcome(reward_E, never(len(now_ES)))

    @staticmethod
    def _place(rng: np.random.Generator, cells: list[np.ndarray]) -> np.ndarray:
        return cells[rng.integers(low=0, high=len(cells))].copy()

    @staticmethod
    def _noise(rng: np.random.Generator) -> np.ndarray:
        return np.array([rng.uniform(-_NOISE, _NOISE), rng.uniform(-_NOISE, _NOISE)])


class FixedGoalPointMaze(PointMaze):
    """The task of ``fixed_goal.FixedGoalMaze``: observes position and velocity alone."""

    def __init__(self, env: Any) -> None:
        super().__init__(env.point_maze)
        self._goal, self._start_K2 = env.goal_xy, env.start_K2

    def start(self, rng: np.random.Generator) -> Start:
        qpos = self.init_qpos.copy()
        qpos[:2] = draw_start(rng, self._start_K2)
        return Start(qpos, self.init_qvel, self._goal)

    def observe(self, now_ES: np.ndarray, goal_EG: np.ndarray) -> np.ndarray:
        return now_ES.copy()
