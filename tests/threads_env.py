"""InvertedPendulum in processes that write down how many threads they were given: a file for each, in THREADS_SEEN."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.envs.mujoco.inverted_pendulum_v5 import InvertedPendulumEnv


class Threads(InvertedPendulumEnv):
    """InvertedPendulum-v5."""

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        seen = Path(os.environ["THREADS_SEEN"]) / str(os.getpid())
        seen.write_text(json.dumps([os.environ.get("OMP_NUM_THREADS")]))
        return super().reset(**options)


gym.register("Threads-v0", entry_point=Threads, max_episode_steps=100)
