"""Environments that no worker could reset and step are refused before a run's directory is made; odd but usable ones are not."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box
from tiny_runs import train_words

from cluster.cli import main
from rollout_workers.env import EnvError
from rollout_workers.envs import try_env


class Good(gym.Env[Any, Any]):
    observation_space: Any = Box(-100, 100, (2,), np.float32)
    action_space: Any = Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.ones(2, np.float32), -float(action[0] ** 2), False, False, {}


class ColumnOfObservations(Good):
    def step(self, action: Any) -> Any:
        obs, *rest = super().step(action)
        return obs[:, None], *rest


class OneObservationMore(Good):
    def reset(self, **options: Any) -> Any:
        return np.zeros(3, np.float32), {}


class OldStep(Good):
    def step(self, action: Any) -> Any:
        obs, reward, terminated, _, info = super().step(action)
        return obs, reward, terminated, info


class OldReset(Good):
    def reset(self) -> Any:  # type: ignore[override]
        return np.zeros(2, np.float32), {}


class ResetWithoutOptions(Good):
    def reset(self, seed: int | None = None) -> Any:  # type: ignore[override]
        return np.zeros(2, np.float32), {}


class ObservationAlone(Good):
    def reset(self, **options: Any) -> Any:
        return np.zeros(2, np.float32)


class NoReward(Good):
    def step(self, action: Any) -> Any:
        obs, _, *rest = super().step(action)
        return obs, None, *rest


class Exits(Good):
    def step(self, action: Any) -> Any:
        sys.exit(0)


class Hangs(Good):
    def reset(self, **options: Any) -> Any:
        threading.Event().wait(600)


class RewardOfOneElement(Good):
    def step(self, action: Any) -> Any:
        obs, reward, *rest = super().step(action)
        return obs, np.array([reward]), *rest


class FloatsInBytes(Good):
    observation_space = Box(0, 255, (2,), np.uint8)


class WantsOptionsOrNone(Good):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        assert options is None or "mass" in options
        return super().reset(seed=seed)


REFUSED = {
    ColumnOfObservations: "returned an observation of shape (2, 1), expected (2,)",
    OneObservationMore: "returned an observation of shape (3,), expected (2,)",
    OldStep: "raised ValueError in its first reset or step (not enough values to unpack",
    OldReset: "raised TypeError in its first reset or step (OldReset.reset() got an unexpected keyword argument 'seed')",
    ResetWithoutOptions: "got an unexpected keyword argument 'options'",
    ObservationAlone: "expected (2,)",
    NoReward: "returned a reward in its first step that is no finite number",
    Exits: "called sys.exit(0) in step (test_env_trial.py, line",
}
for kind in (*REFUSED, Good, Hangs, RewardOfOneElement, FloatsInBytes, WantsOptionsOrNone):
    gym.register(f"trial/{kind.__name__}-v0", entry_point=kind, max_episode_steps=20)


@pytest.mark.parametrize("kind", REFUSED)
def test_an_environment_that_no_worker_can_step_is_refused_before_anything_is_written(
    kind: type[Good], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"trial/{kind.__name__}-v0"
    assert main(train_words(tmp_path / "run", name, "--backend", "inline", "--steps", "100")) == 2
    told = capsys.readouterr().err
    assert name in told and REFUSED[kind] in told and "nothing was started" in told and "Traceback" not in told, told
    assert not (tmp_path / "run").exists()


def test_an_environment_that_hangs_at_once_is_refused_at_the_deadline() -> None:
    with pytest.raises(EnvError, match=r"did not finish one reset and one step within worker.step_timeout_s 0.2 s"):
        try_env("trial/Hangs-v0", True, 0.2)


@pytest.mark.parametrize("kind", [Good, RewardOfOneElement, FloatsInBytes, WantsOptionsOrNone])
def test_an_odd_environment_that_can_be_stepped_is_taken(kind: type[Good]) -> None:
    try_env(f"trial/{kind.__name__}-v0", True, 60.0)
    try_env("HalfCheetah-v5", True, 60.0)
