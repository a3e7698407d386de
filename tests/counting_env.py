"""An environment that writes down each of its steps: ``counting_env:Counting-v0``. Its files outlive SIGKILL."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from broken_envs import Walk

FOLDER = "COUNTED_STEPS"  # environment variable: where the files are


class Counting(Walk):
    """Appends one byte for each step that was made; a file ``raise`` makes one of them raise, and goes."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(os.environ[FOLDER])
        name = f"{os.getpid()}-{id(self)}.steps"
        self.file = os.open(self.folder / name, os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        result = super().step(action)
        os.write(self.file, b".")
        return result

    def go_wrong(self) -> None:
        if self.steps % 4 == 3 and (self.folder / "raise").exists():  # two steps into a chunk of four
            (self.folder / "raise").unlink(missing_ok=True)
            raise RuntimeError("asked to raise")


def counted(folder: Path, *drivers: int) -> int:
    """Steps that the environments of all processes ever made, but for those that the processes ``drivers`` tried them with."""
    files = folder.glob("*.steps")
    return sum(path.stat().st_size for path in files if int(path.name.split("-")[0]) not in drivers)


gym.register("Counting-v0", Counting, max_episode_steps=50)
