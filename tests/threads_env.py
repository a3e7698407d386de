"""InvertedPendulum in processes that write down how many threads they were given: a file for each, in THREADS_SEEN."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.envs.mujoco.inverted_pendulum_v5 import InvertedPendulumEnv

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


class Threads(InvertedPendulumEnv):
    """InvertedPendulum-v5."""

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        seen = Path(os.environ["THREADS_SEEN"]) / str(os.getpid())
        seen.write_text(json.dumps({name: os.environ.get(name) for name in VARIABLES}))
        return super().reset(**options)


gym.register("Threads-v0", entry_point=Threads, max_episode_steps=100)
