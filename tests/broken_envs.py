"""Environments that go wrong in one way each, under ids such as ``broken_envs:Raises-v0``."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box

HEALTHY_STEPS = 96  # of each environment before it goes wrong
HANG_S = 600.0  # longer than any test waits


class Walk(gym.Env):
    """A point on a line that is moved by the action and rewarded for being near 0."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float64)
    action_space = Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self) -> None:
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-1, 1, 2)
        return self.place.copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        self.place += [0.1 * float(action[0]), 0.0]
        if self.steps > HEALTHY_STEPS:
            self.go_wrong()
        return self.place.copy(), -abs(float(self.place[0])), False, False, {}

    def go_wrong(self) -> None:
        """What is wrong with this one."""


class Barren(Walk):
    """Rewards nothing."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        obs, _, *ends = super().step(action)
        return obs, 0.0, *ends


class Raises(Walk):
    def go_wrong(self) -> None:
        raise RuntimeError("the simulator lost its licence")


class OneRaises(Walk):
    """Raises in one process alone: the first that removes the file that FAULT_SWITCH names."""

    def go_wrong(self) -> None:
        try:
            os.unlink(os.environ["FAULT_SWITCH"])
        except FileNotFoundError:
            return
        raise RuntimeError("the simulator lost its licence")


class Exits(Walk):
    def go_wrong(self) -> None:
        sys.exit(0)


class Hangs(Walk):
    """Makes the file that FAULT_SWITCH names, if any, once it hangs."""

    def go_wrong(self) -> None:
        if path := os.environ.get("FAULT_SWITCH"):
            open(path, "w").close()
        threading.Event().wait(HANG_S)


class HangsForGood(Hangs):
    """Takes no exception for an answer, as native code does."""

    def go_wrong(self) -> None:
        while True:
            with contextlib.suppress(BaseException):
                super().go_wrong()


class HangsInEvaluations(Walk):
    """Of which the first episode has the seed evaluation.seed."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        if seed == 10_000:
            threading.Event().wait(HANG_S)
        return super().reset(seed=seed)


class SometimesNaN(Walk):
    """Every 40th step gives an observation that is not a number."""

    def go_wrong(self) -> None:
        if self.steps % 40 == 0:
            self.place[:] = np.nan


class Dies(Walk):
    """Takes its process along without a word, as a crash in a simulator's native code does."""

    def go_wrong(self) -> None:
        os._exit(9)


class Unbounded(Walk):
    action_space = Box(-np.inf, np.inf, (1,), np.float32)


class Explodes(Walk):
    """Observations that are finite, and so large that a gradient is not."""

    def go_wrong(self) -> None:
        self.place[:] = 1e17


class Slow(Walk):
    """Every step takes 50 ms."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        threading.Event().wait(0.05)
        return super().step(action)


class Rests(Walk):
    """A step takes as long as the file is there that FAULT_SWITCH names."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        while os.path.exists(os.environ.get("FAULT_SWITCH", "")):
            threading.Event().wait(0.1)
        return super().step(action)


class SlowStart(Walk):
    """Is not built while the file that FAULT_SWITCH names is there."""

    def __init__(self) -> None:
        super().__init__()
        while os.path.exists(os.environ.get("FAULT_SWITCH", "")):
            threading.Event().wait(0.1)


class OneStartsNever(Walk):
    """Is never built in one process: the first that removes the file that FAULT_SWITCH names."""

    def __init__(self) -> None:
        super().__init__()
        try:
            os.unlink(os.environ.get("FAULT_SWITCH", ""))
        except FileNotFoundError:
            return
        threading.Event().wait(HANG_S)


class NaNInEveryEpisode(Walk):
    """The seventh step of every episode gives an observation that is not a number."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.in_episode = 0
        return super().reset(seed=seed)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        obs, *rest = super().step(action)
        self.in_episode += 1
        return (obs * np.nan if self.in_episode == 7 else obs, *rest)


class ChangesDirectory(Walk):
    """Makes a folder in the current directory and goes there."""

    def __init__(self) -> None:
        super().__init__()
        os.makedirs("elsewhere", exist_ok=True)
        os.chdir("elsewhere")


class WillNotStart(Walk):
    def __init__(self) -> None:
        raise OSError("no display")


KINDS = (
    Walk,
    Barren,
    Raises,
    OneRaises,
    Exits,
    Hangs,
    HangsForGood,
    HangsInEvaluations,
    SometimesNaN,
    Dies,
    Unbounded,
    Explodes,
    Slow,
    Rests,
    SlowStart,
    OneStartsNever,
    NaNInEveryEpisode,
    ChangesDirectory,
    WillNotStart,
)
for kind in KINDS:
    gym.register(f"{kind.__name__}-v0", kind, max_episode_steps=50)
