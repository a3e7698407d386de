"""Environments that write down each of their steps: ``counting_env:Counting-v0`` and CountingPendulum-v0. Their files outlive SIGKILL."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from broken_envs import Walk
from gymnasium.envs.classic_control import PendulumEnv

FOLDER = "COUNTED_STEPS"  # environment variable: where the files are
EPISODE = 50  # steps
REST_S = 0.002  # after each step: a run that only waits to be killed leaves the cores to others


class Counting(Walk):
    """Appends one byte for each step that was made.

    A file ``raise`` makes one of them raise, ``nan`` give NaN, ``explode`` give a last observation of an episode that is finite and too
    large for any network, and ``leak`` makes that process take 64 MiB more with each step; the file goes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder, self.held = Path(os.environ[FOLDER]), list[np.ndarray]()
        self.evaluates, self.file = evaluates(), file_of(self)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.begun = self.steps
        return super().reset(seed=seed, options=options)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        result = super().step(action)
        os.write(self.file, b".")
        time.sleep(REST_S)
        if self.held or self._asked("leak"):
            self.held.append(np.ones(2**23))
        if self._asked("nan"):
            return np.full(2, np.nan), *result[1:]
        if self.steps == self.begun + EPISODE and self._asked("explode"):  # no policy acts on it
            return np.full(2, 1e38), *result[1:]
        return result

    def go_wrong(self) -> None:
        if self.steps % 4 == 3 and self._asked("raise"):  # two steps into a chunk of four
            raise RuntimeError("asked to raise")

    def _asked(self, fault: str) -> bool:
        """Whether a file of that name is there, for the first of all workers that looks."""
        if self.evaluates:
            return False
        try:
            (self.folder / fault).unlink()
        except FileNotFoundError:
            return False
        return True


class CountingPendulum(PendulumEnv):
    """Pendulum-v1 that appends one byte for each step that was made."""

    def __init__(self) -> None:
        super().__init__()
        self.file = file_of(self)

    def step(self, action: np.ndarray) -> Any:
        result = super().step(action)
        os.write(self.file, b".")
        return result


def evaluates() -> bool:
    """Whether this process evaluates: Ray's title of it says so."""
    return b"::EvaluatorActor" in Path("/proc/self/cmdline").read_bytes()


def file_of(env: Any) -> int:
    """The file of an environment, open for appending."""
    name = f"{os.getpid()}-{id(env)}.{'evaluated' if evaluates() else 'steps'}"
    return os.open(Path(os.environ[FOLDER]) / name, os.O_CREAT | os.O_APPEND | os.O_WRONLY)


def counted(folder: Path, *drivers: int) -> int:
    """Steps that the environments of all workers ever made: not those that the processes ``drivers`` tried them with."""
    files = folder.glob("*.steps")
    return sum(path.stat().st_size for path in files if int(path.name.split("-")[0]) not in drivers)


gym.register("Counting-v0", Counting, max_episode_steps=EPISODE)
gym.register("CountingPendulum-v0", CountingPendulum, max_episode_steps=200)
