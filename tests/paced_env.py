"""InvertedPendulum at the pace of a robot: ``paced_env:Paced-v0``. A run that only waits to be killed leaves the cores to others."""

from __future__ import annotations

import time
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.mujoco.inverted_pendulum_v5 import InvertedPendulumEnv

STEP_S = 0.004


class Paced(InvertedPendulumEnv):
    """InvertedPendulum-v5, with a rest after each step."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.float64, bool, bool, dict[str, Any]]:
        time.sleep(STEP_S)
        return super().step(action)


gym.register("Paced-v0", entry_point=Paced, max_episode_steps=1_000)
