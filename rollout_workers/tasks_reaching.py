"""Reacher and Pusher, v5: an arm brings its tip, or an object, to a goal.

Letters: E environments, S gathered columns, G goal dim, O observation dim, A action dim.
"""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np

from rollout_workers.tasks import Outcome, Start, Task, never, square_sum


class Reacher(Task):
    """reward = -|tip - target| - |action|^2."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self._tip, self._target = (self.model.body(name).id for name in ("fingertip", "target"))

    def derived(self, data: mujoco.MjData) -> list[np.ndarray]:
        return [data.xpos[self._tip], data.xpos[self._target]]

    def start(self, rng: np.random.Generator) -> Start:
        qpos = rng.uniform(-0.1, 0.1, self.init_qpos.size) + self.init_qpos
        goal = rng.uniform(-0.2, 0.2, 2)
        while np.linalg.norm(goal) >= 0.2:
            goal = rng.uniform(-0.2, 0.2, 2)
        qpos[-2:] = goal
        qvel = self.init_qvel + rng.uniform(-0.005, 0.005, self.init_qvel.size)
        qvel[-2:] = 0.0
        return Start(qpos, qvel)

    def observe(self, now_ES: np.ndarray, goal_EG: np.ndarray) -> np.ndarray:
        angles, gap = now_ES[:, :2], now_ES[:, 8:10] - now_ES[:, 11:13]
        return np.concatenate([np.cos(angles), np.sin(angles), now_ES[:, 2:6], gap], axis=1)

    def judge(self, before_ES: np.ndarray, now_ES: np.ndarray, goal_EG: np.ndarray, action_EA: np.ndarray) -> Outcome:
        distance_E = np.sqrt(square_sum(now_ES[:, 8:11] - now_ES[:, 11:14]))
        return Outcome(-distance_E - square_sum(action_EA), never(len(now_ES)))


class Pusher(Task):
    """reward = -|object - goal| - 0.1 |action|^2 - 0.5 |object - tip|."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self._bodies = [self.model.body(name).id for name in ("tips_arm", "object", "goal")]

    def derived(self, data: mujoco.MjData) -> list[np.ndarray]:
        return [data.xpos[body] for body in self._bodies]

    def start(self, rng: np.random.Generator) -> Start:
        cylinder = self._cylinder(rng)
        while np.linalg.norm(cylinder) <= 0.17:
            cylinder = self._cylinder(rng)
        qpos = self.init_qpos.copy()
        qpos[-4:] = [*cylinder, 0.0, 0.0]
        qvel = self.init_qvel + rng.uniform(-0.005, 0.005, self.init_qvel.size)
        qvel[-4:] = 0.0
        return Start(qpos, qvel)

    def observe(self, now_ES: np.ndarray, goal_EG: np.ndarray) -> np.ndarray:
        nq = self.init_qpos.size
        return np.concatenate([now_ES[:, :7], now_ES[:, nq : nq + 7], now_ES[:, -9:]], axis=1)

    def judge(self, before_ES: np.ndarray, now_ES: np.ndarray, goal_EG: np.ndarray, action_EA: np.ndarray) -> Outcome:
        tip, thing, goal = now_ES[:, -9:-6], now_ES[:, -6:-3], now_ES[:, -3:]
        near_E, distance_E = np.sqrt(square_sum(thing - tip)), np.sqrt(square_sum(thing - goal))
        return Outcome(-distance_E - 0.1 * square_sum(action_EA) - 0.5 * near_E, never(len(now_ES)))

    @staticmethod
    def _cylinder(rng: np.random.Generator) -> np.ndarray:
        return np.array([rng.uniform(-0.3, 0.0), rng.uniform(-0.2, 0.2)])
