"""Environments that break the contract of a run are refused before its directory is made; odd but usable ones are not; check-env."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from linear_policy import LinearPolicy
from tiny_runs import train_words

from cluster.cli import main
from rollout_workers import env_check, evaluator
from rollout_workers.env import EnvError
from rollout_workers.env_check import try_env


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


class HangsLater(Good):
    """Its second step."""

    steps = 0

    def step(self, action: Any) -> Any:
        self.steps += 1
        if self.steps == 2:
            threading.Event().wait(600)
        return super().step(action)


class BreaksAfterTheEnd(Good):
    """Its second reset returns nothing."""

    resets = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.resets += 1
        return super().reset(seed=seed) if self.resets == 1 else None


class LastStepWithoutReward(Good):
    steps = 0

    def step(self, action: Any) -> Any:
        self.steps += 1
        obs, reward, *rest = super().step(action)
        return obs, [] if self.steps == 20 else reward, *rest


class StartsAtNaN(Good):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.array([0, np.nan], np.float32), {}


class EndsAsText(Good):
    def step(self, action: Any) -> Any:
        obs, reward, _, *rest = super().step(action)
        return obs, reward, "no", *rest


class EndsAsNone(Good):
    def step(self, action: Any) -> Any:
        obs, reward, terminated, _, info = super().step(action)
        return obs, reward, terminated, None, info


class RewardOfOneElement(Good):
    def step(self, action: Any) -> Any:
        obs, reward, *rest = super().step(action)
        return obs, np.array([reward]), *rest


class BeyondFloat32(Good):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return super().reset(seed=seed)[0] + np.array([0, 1e200]), {}


class RewardBeyondFloat32(Good):
    def step(self, action: Any) -> Any:
        obs, _, *rest = super().step(action)
        return obs, -1e200, *rest


class HandlesSignals(Good):
    def __init__(self) -> None:
        signal.signal(signal.SIGUSR2, signal.getsignal(signal.SIGUSR2))


class AsksForALoop(Good):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        asyncio.get_event_loop()
        return super().reset(seed=seed)


class FloatsInBytes(Good):
    observation_space = Box(0, 255, (2,), np.uint8)


class WantsOptionsOrNone(Good):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        assert options is None or "mass" in options
        return super().reset(seed=seed)


class EndsAsNumpy(Good):
    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, np.array([terminated]), np.bool_(truncated), info


class DemandsItsDtype(Good):
    action_space = Box(-2, 1, (1, 2), np.float64)

    def step(self, action: Any) -> Any:
        assert action.dtype == np.float64 and action in self.action_space
        return super().step(action[0])


class Continuing(Good):
    """Has no end."""


class EndsItself(Good):
    """Without a time limit."""

    def step(self, action: Any) -> Any:
        obs, reward, _, *rest = super().step(action)
        return obs, reward, True, *rest


class EachInstanceAnotherTask(Good):
    made = 0

    def __init__(self) -> None:
        EachInstanceAnotherTask.made += 1
        self.stiffness = EachInstanceAnotherTask.made

    def step(self, action: Any) -> Any:
        return np.full(2, self.stiffness, np.float32), 1.0, False, False, {}


class NeverTheSame(Good):
    observation_space = Box(-0.5, 0.5, (2,), np.float32)
    made = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        NeverTheSame.made += 1
        return np.full(2, NeverTheSame.made, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(2, np.float32), 0.0, False, False, {}


class ComplexObservations(Good):
    def step(self, action: Any) -> Any:
        obs, *rest = super().step(action)
        return obs * 1j, *rest


class ComplexReward(Good):
    def step(self, action: Any) -> Any:
        obs, _, *rest = super().step(action)
        return obs, np.complex64(1), *rest


REFUSED = {
    ComplexObservations: "returned ndarray as an observation (complex numbers, expected real ones",
    ComplexReward: "of type complex64, expected one real number",
    ColumnOfObservations: "returned an observation of shape (2, 1), expected (2,)",
    OneObservationMore: "returned an observation of shape (3,), expected (2,)",
    OldStep: "raised ValueError in reset or step (not enough values to unpack",
    OldReset: "raised TypeError in reset or step (OldReset.reset() got an unexpected keyword argument 'seed')",
    ResetWithoutOptions: "got an unexpected keyword argument 'options'",
    ObservationAlone: "expected (2,)",
    NoReward: "returned a reward in one of its first steps that is no finite number",
    BreaksAfterTheEnd: "raised TypeError in reset or step (cannot unpack non-iterable NoneType",
    LastStepWithoutReward: "returned the reward '[]' of type list, expected one real number",
    StartsAtNaN: "returned an observation from reset whose number 1 is nan",
    BeyondFloat32: "from reset whose number 1 is inf (as a float32, which ends at 3.4e38), expected finite numbers",
    RewardBeyondFloat32: "that is no finite number (as a float32, which ends at 3.4e38)",
    HandlesSignals: "environments are made and stepped in other threads than the main one too",
    AsksForALoop: "and make an event loop with asyncio.new_event_loop()",
    EndsAsText: "returned terminated='no' of type str, expected True or False",
    EndsAsNone: "returned truncated='None' of type NoneType, expected True or False",
    Exits: "called sys.exit(0) in step (test_env_trial.py, line",
}
TAKEN = (
    Good,
    RewardOfOneElement,
    FloatsInBytes,
    WantsOptionsOrNone,
    EndsAsNumpy,
    DemandsItsDtype,
    Continuing,
    EndsItself,
    EachInstanceAnotherTask,
    NeverTheSame,
)
for kind in (*REFUSED, *TAKEN, Hangs, HangsLater):
    gym.register(
        f"trial/{kind.__name__}-v0",
        entry_point=kind,
        max_episode_steps=None if kind in (Continuing, EndsItself) else 20,
    )


class NoLimit(SyncVectorEnv):
    """Ignores the time limit that it is passed."""

    def __init__(self, num_envs: int, **_: Any) -> None:
        super().__init__([Good] * num_envs, autoreset_mode=AutoresetMode.DISABLED)


gym.register("trial/NoLimit-v0", Good, vector_entry_point=NoLimit, max_episode_steps=8)
gym.register("trial/VectorAlone-v0", vector_entry_point=lambda **_: None)


@pytest.mark.parametrize("kind", REFUSED)
def test_an_environment_that_no_worker_can_step_is_refused_before_anything_is_written(
    kind: type[Good], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"trial/{kind.__name__}-v0"
    assert main(train_words(tmp_path / "run", name, "--backend", "inline", "--steps", "100")) == 2
    result = capsys.readouterr().err
    assert (
        name in result and REFUSED[kind] in result and "nothing was started" in result and "Traceback" not in result
    ), result
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("kind", "call"), [(Hangs, "reset"), (HangsLater, "step")])
def test_an_environment_that_hangs_is_refused_at_the_deadline_with_the_call(kind: type[Good], call: str) -> None:
    name = f"trial/{kind.__name__}-v0"
    with pytest.raises(
        EnvError, match=rf"^{call}\(\) of {name} did not return within 0.2 s and is in .*wait \(thr"
    ) as hung:
        try_env(name, True, 0.2)
    assert str(hung.value).endswith("see what it waits for; or raise worker.step_timeout_s")


def test_check_env_says_which_call_it_waits_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(env_check, "SAY_S", 0.2)
    monkeypatch.setattr(env_check.check_env, "__defaults__", (1.0, env_check.check_env.__defaults__[-1]))  # type: ignore[index]
    code, result = checked(capsys, "trial/HangsLater-v0")
    assert code == 2 and result.startswith("waiting for step() of trial/HangsLater-v0, at most 1 s\n"), result
    assert "step() of trial/HangsLater-v0 did not return within 1 s" in result and "--set" not in result, result


@pytest.mark.parametrize("kind", TAKEN)
def test_an_odd_environment_that_can_be_stepped_is_taken(kind: type[Good]) -> None:
    try_env(f"trial/{kind.__name__}-v0", True, 60.0)


def test_an_environment_of_the_batched_path_is_taken() -> None:
    try_env("HalfCheetah-v5", True, 60.0)


def checked(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Exit code and output of `drawbridge check-env`."""
    code = main(["check-env", *words])
    out, err = capsys.readouterr()
    return code, out + err


def test_check_env_says_what_an_environment_is_like(capsys: pytest.CaptureFixture[str]) -> None:
    code, result = checked(capsys, "trial/Good-v0", "--episodes", "3", "--env-kwargs", '{"max_episode_steps": 5}')
    assert code == 0 and "can be trained on" in result, result
    for part in ("2 numbers", "1 number in [-1, 1]", "3 with random actions: 5 steps", "0 terminated, 3 truncated; time limit 5 steps",
                 "seeds        repeat", "every seed starts at the same observation", "steps/s, one environment"):  # fmt: skip
        assert part in result, result
    assert "note" not in result, result


def test_check_env_says_what_is_odd_about_an_environment(capsys: pytest.CaptureFixture[str]) -> None:
    code, result = checked(capsys, "trial/NeverTheSame-v0", "--episodes", "2")
    assert code == 0 and "with one seed and the same actions, the first observation differed" in result, result
    assert "every reward was 0" in result and "outside" not in result, (
        result
    )  # the first observations alone are outside
    code, result = checked(capsys, "trial/EachInstanceAnotherTask-v0", "--episodes", "2")
    assert code == 0 and "the observation of step 1 differed, in another instance" in result, result
    code, result = checked(capsys, "trial/EndsItself-v0", "--episodes", "2")
    assert code == 0 and "2 terminated, 0 truncated; no time limit\n" in result, result
    code, result = checked(capsys, "trial/Continuing-v0", "--episodes", "1")
    assert code == 0 and "no time limit: a continuing task" in result and "1,000 steps, returns" in result, result


def test_a_number_beyond_float32_is_no_warning_of_numpys() -> None:
    for kind in (BeyondFloat32, RewardBeyondFloat32):
        with warnings.catch_warnings(), pytest.raises(EnvError, match=r"ends at 3\.4e38"):
            warnings.simplefilter("error")
            try_env(f"trial/{kind.__name__}-v0", True, 60.0)


def test_a_time_limit_that_is_not_kept_is_said_and_ends_every_evaluation(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, result = checked(capsys, "trial/NoLimit-v0", "--episodes", "3")
    assert code == 0 and "0 terminated, 0 truncated; time limit 8 steps, which is not kept" in result, result
    assert "3 of 3 episodes went on past the time limit, and so will those of a run" in result, result
    monkeypatch.setattr(evaluator, "UNLIMITED_STEPS", 30)
    policy = LinearPolicy(2, 1)
    found = evaluator.Evaluator("trial/NoLimit-v0", policy).evaluate(policy.weights(0), 2)
    assert found.lengths == [30, 30] and "2 of 2 episodes were cut after 30 steps" in found.note
    found = evaluator.Evaluator("trial/Good-v0", policy).evaluate(policy.weights(0), 2)
    assert found.lengths == [20, 20] and not found.note
    monkeypatch.setattr(evaluator, "UNLIMITED_STEPS", 10)  # a longer limit that is kept is no reason to cut
    found = evaluator.Evaluator("trial/Good-v0", policy).evaluate(policy.weights(0), 2)
    assert found.lengths == [20, 20] and not found.note


def test_check_env_refuses_what_a_run_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    code, result = checked(capsys, "trial/EndsAsText-v0")
    assert code == 2 and REFUSED[EndsAsText] in result and "Traceback" not in result, result
    code, result = checked(capsys, "trial/VectorAlone-v0")
    assert code == 2 and "a vector entry point alone, expected an entry_point too" in result, result
