"""InvertedPendulum and InvertedDoublePendulum, v5: a cart holds up one or two poles.

Letters: E environments, S gathered columns, G goal dim, O observation dim, A action dim.
"""

from __future__ import annotations

import mujoco
import numpy as np

from rollout_workers.tasks import Outcome, Start, Task


class InvertedPendulum(Task):
    """reward = 1 while the pole stands within 0.2 rad."""

    def start(self, rng: np.random.Generator) -> Start:
        qpos = self.init_qpos + rng.uniform(-0.01, 0.01, self.init_qpos.size)
        return Start(qpos, self.init_qvel + rng.uniform(-0.01, 0.01, self.init_qvel.size))

    def observe(self, now_ES: np.ndarray, goal_EG: np.ndarray) -> np.ndarray:
        return now_ES.copy()

    def judge(self, before_ES: np.ndarray, now_ES: np.ndarray, goal_EG: np.ndarray, action_EA: np.ndarray) -> Outcome:
        standing_E = np.isfinite(now_ES).all(axis=1) & (np.abs(now_ES[:, 1]) <= 0.2)
        return Outcome(standing_E.astype(np.float64), ~standing_E)


class InvertedDoublePendulum(Task):
    """reward = 10 while standing - 0.01 x^2 - (y - 2)^2 - 1e-3 v1^2 - 5e-3 v2^2, with (x, y) the tip's position."""

    def derived(self, data: mujoco.MjData) -> list[np.ndarray]:
        return [data.qfrc_constraint[:1], data.site_xpos[0, ::2]]

    def start(self, rng: np.random.Generator) -> Start:
        qpos = self.init_qpos + rng.uniform(-0.1, 0.1, self.init_qpos.size)
        return Start(qpos, self.init_qvel + 0.1 * rng.standard_normal(self.init_qvel.size))

    def observe(self, now_ES: np.ndarray, goal_EG: np.ndarray) -> np.ndarray:
        angles = now_ES[:, 1:3]
        clipped = np.clip(now_ES[:, 3:7], -10.0, 10.0)
        return np.concatenate([now_ES[:, :1], np.sin(angles), np.cos(angles), clipped], axis=1)

    def judge(self, before_ES: np.ndarray, now_ES: np.ndarray, goal_EG: np.ndarray, action_EA: np.ndarray) -> Outcome:
        v1_E, v2_E, x_E, y_E = now_ES[:, 4], now_ES[:, 5], now_ES[:, 7], now_ES[:, 8]
        fallen_E = y_E <= 1.0
        penalty_E = 0.01 * x_E**2 + (y_E - 2.0) ** 2 + 1e-3 * v1_E**2 + 5e-3 * v2_E**2
        return Outcome(np.where(fallen_E, 0.0, 10.0) - penalty_E, fallen_E)
