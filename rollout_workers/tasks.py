"""What a batched MuJoCo task is: where episodes start, what is observed, what is rewarded.

A task sees all environments at once: ``now_ES`` holds, row by row, each simulation's qpos, qvel
and the derived columns that the task asked for.
The numbers are those of Gymnasium's environments with their default arguments (and of its v5 documentation).

Letters: E environments, S gathered columns, G goal dim, O observation dim, A action dim.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import mujoco
import numpy as np

from rollout_workers.mujoco_stack import MujocoStack


class Start(NamedTuple):
    """The first state of an episode."""

    qpos: np.ndarray  # float64
    qvel: np.ndarray  # float64
    goal_G: np.ndarray = np.empty(0)  # what the task keeps for the episode outside of the simulation


class Outcome(NamedTuple):
    """What one step earned, before time limits."""

    reward_E: np.ndarray  # float64
    terminated_E: np.ndarray  # bool


class Task:
    """One task's rules; subclasses give the four methods.

    Args:
        env: the unwrapped Gymnasium environment, asked for its model and constants only.
    """

    contact_forces = False
    goal_dim = 0

    def __init__(self, env: Any) -> None:
        self.model: mujoco.MjModel = env.model
        self.frame_skip: int = env.frame_skip
        self.dt: float = env.dt  # s, of one environment step
        self.init_qpos: np.ndarray = env.init_qpos.copy()
        self.init_qvel: np.ndarray = env.init_qvel.copy()

    def derived(self, data: mujoco.MjData) -> list[np.ndarray]:
        """The 1-D views of a simulation that follow qpos and qvel in its row of ``now_ES``; by default none."""
        return []

    def start(self, rng: np.random.Generator) -> Start:
        """Draws a first state, with the very draws of Gymnasium's ``reset_model``."""
        raise NotImplementedError

    def control(self, stack: MujocoStack, action_EA: np.ndarray) -> np.ndarray:
        """The controls (E, A) of the next step, by default the actions; may change ``stack.qvel_EV``."""
        return action_EA

    def observe(self, now_ES: np.ndarray, goal_EG: np.ndarray) -> np.ndarray:
        """Observations (E, O) float64, a new array."""
        raise NotImplementedError

    def judge(self, before_ES: np.ndarray, now_ES: np.ndarray, goal_EG: np.ndarray, action_EA: np.ndarray) -> Outcome:
        """Reward and termination of the step from ``before_ES`` to ``now_ES`` under ``action_EA``."""
        raise NotImplementedError


def square_sum(rows: np.ndarray) -> np.ndarray:
    """sum_i x_i^2 of each row, in the rows' own precision (Gymnasium costs float32 actions in float32)."""
    total: np.ndarray = np.add.reduce(rows * rows, axis=1)
    return total


def never(num_envs: int) -> np.ndarray:
    """The termination of tasks that have none."""
    return np.zeros(num_envs, dtype=bool)
