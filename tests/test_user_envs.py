"""Environments as users write them: odd infos, rewards, observations and bounds, actions changed in place, close() that raises."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec as Registration
from gymnasium.spaces import Box, Dict
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from tiny_runs import lines, read, train_inline

from replay.stored_episode import DatasetError, EpisodeLayout
from rollout_workers.env import ActionBox, EnvError
from rollout_workers.env_check import try_env
from rollout_workers.envs import env_spec, make_batch_env
from rollout_workers.gym_vector import VectorBatchEnv

ENV_ID = "drawbridge-test/User-v0"
F = np.float32


class User(gym.Env):
    """Observes (steps, steps), pays 1, ends after 5 steps; subclasses say what is odd about them."""

    observation_space: gym.Space = Box(-100, 100, (2,), F)
    action_space = Box(-1, 1, (1,), F)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self.seen(), {}

    def step(self, action: np.ndarray) -> Any:
        self.steps += 1
        return self.seen(), self.reward(), False, self.steps >= 5, self.info()

    def seen(self) -> Any:
        return np.full(2, self.steps, F)

    def reward(self) -> Any:
        return 1.0

    def info(self) -> dict[str, Any]:
        return {}


@pytest.fixture(autouse=True)
def registered() -> Any:
    yield
    gym.registry.pop(ENV_ID, None)


def register(env: type[gym.Env], **about: Any) -> str:
    gym.registry[ENV_ID] = Registration(ENV_ID, entry_point=env, **about)
    return ENV_ID


def zeros(num_envs: int) -> np.ndarray:
    return np.zeros((num_envs, 1), F)


class Odd(User):
    """Its infos differ in type and shape from step to step and from environment to environment."""

    made = 0

    def __init__(self) -> None:
        self.number = Odd.made % 3
        Odd.made += 1

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return super().reset(seed=seed)[0], self.info()

    def info(self) -> dict[str, Any]:
        odd: list[Any] = [0.5, {"deep": 1}, None, np.zeros(1 + self.number), 10**400, "text", [1, [2]]]
        return {"odd": odd[(self.number + self.steps) % len(odd)], "unstable": True}


def batch_of(kind: Any, mode: AutoresetMode) -> VectorBatchEnv:
    return VectorBatchEnv(kind([Odd] * 3, autoreset_mode=mode), env_id=ENV_ID)


KINDS = [(SyncVectorEnv, mode) for mode in AutoresetMode] + [(AsyncVectorEnv, AutoresetMode.SAME_STEP)]


@pytest.mark.parametrize(("kind", "mode"), [(None, None), *KINDS])
def test_infos_that_nobody_reads_are_neither_merged_nor_understood(kind: Any, mode: Any) -> None:
    env = make_batch_env(register(Odd), 3, seed=1) if kind is None else batch_of(kind, mode)
    try:
        obs_EO = env.reset()
        for _ in range(12):
            result = env.step(zeros(3))
            np.testing.assert_array_equal(result.next_obs_EO[result.valid_E], obs_EO[result.valid_E] + 1)
            obs_EO = result.obs_EO
    finally:
        env.close()


@pytest.mark.parametrize("value", [True, False, 0, 0.3, "no", np.zeros(3)], ids=repr)
def test_an_info_called_unstable_means_nothing(value: Any) -> None:
    class Unstable(User):
        def info(self) -> dict[str, Any]:
            return {"unstable": value}

    env = make_batch_env(register(Unstable), 2, seed=1)
    env.reset()
    assert env.step(zeros(2)).next_obs_EO.tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize(
    "reward", [0.5, F(0.5), np.array(0.5), np.array([0.5]), np.array([[0.5]]), [0.5], np.array(0.5, object)], ids=repr
)
def test_a_reward_of_one_element_is_that_number(reward: Any) -> None:
    class Paid(User):
        def reward(self) -> Any:
            return reward

    env = make_batch_env(register(Paid), 2, seed=1)
    env.reset()
    assert env.step(zeros(2)).reward_E.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("reward", [np.array([0.5, 0.5]), 1 + 1j, [], 10**400], ids=lambda value: repr(value)[:20])
def test_a_reward_that_is_no_number_is_refused_by_name(reward: Any) -> None:
    class Paid(User):
        def reward(self) -> Any:
            return reward

    env = make_batch_env(register(Paid), 2, seed=1)
    env.reset()
    with pytest.raises(EnvError, match=r"returned the reward .* expected one real number"):
        env.step(zeros(2))


class Several(SyncVectorEnv):
    """Users as one vector, which gives what ``change`` makes of it."""

    change: Callable[..., tuple[Any, ...]]

    def __init__(self, num_envs: int, max_episode_steps: int | None = None) -> None:
        super().__init__([User] * num_envs, autoreset_mode=AutoresetMode.DISABLED)

    def step(self, actions: Any) -> Any:
        obs, reward, *ends, _ = super().step(actions)
        return *Several.change(obs, reward, *ends), {}


@pytest.mark.parametrize(
    "change",
    [
        lambda obs, reward, *ends: (obs, reward[:, None], *ends),
        lambda obs, reward, *ends: (obs, reward, *(end[:, None] for end in ends)),
        lambda obs, reward, *ends: (obs, reward, *(end.astype(int) for end in ends)),
        lambda *values: tuple(value.tolist() for value in values),
    ],
    ids=["reward (E, 1)", "ends (E, 1)", "ends of 0 and 1", "lists"],
)
def test_a_vector_environment_may_give_one_number_for_each_in_any_form(change: Any) -> None:
    Several.change = change
    env = make_batch_env(register(User, vector_entry_point=Several), 3, seed=1)
    env.reset()
    for step in range(1, 7):
        result = env.step(zeros(3))
        assert result.next_obs_EO.tolist() == [[(step - 1) % 5 + 1] * 2] * 3 and result.reward_E.tolist() == [1.0] * 3
        assert result.truncated_E.tolist() == [step == 5] * 3 and not result.terminated_E.any()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda obs, reward, *ends: (obs, reward[:1], *ends),
            r"returned reward=.*of shape \(1,\), expected one number for",
        ),
        (lambda obs, reward, *ends: (obs, [None, "x"], *ends), "returned reward=.* expected one number for each of 2"),
        (
            lambda obs, reward, *ends: (obs, reward, ["no"] * len(reward), ends[1]),
            "returned terminated=.*expected one num",
        ),
        (lambda obs, reward, *ends: (obs, reward, ends[0], ends[1] + 7), "returned truncated=.*expected True or False"),
        (
            lambda obs, reward, *ends: (obs[:, :1], reward, *ends),
            "observations of 2 numbers for 2 .* expected 2 for each",
        ),
    ],
    ids=["one reward", "no reward", "text", "seven", "narrow"],
)
def test_a_vector_environment_that_gives_something_else_is_refused_by_name_before_a_run(
    change: Any, expected: str
) -> None:
    Several.change = change
    with pytest.raises(EnvError, match=expected):
        try_env(register(User, vector_entry_point=Several), True, 60.0)


def test_every_reset_gets_what_the_first_got() -> None:
    given = []

    class Asked(User):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            given.append(options)
            return super().reset(seed=seed)

    env = make_batch_env(register(Asked), 2, seed=1)
    env.reset()
    for _ in range(5):
        env.step(zeros(2))
    env.force_reset([0])
    assert given == [None] * 5


@pytest.mark.parametrize(
    ("space", "seen", "expected"),
    [
        (Box(-9, 9, (2,), F), np.zeros((2, 1), F), r"shape \(2, 1\), expected \(2,\)"),
        (Box(-9, 9, (2,), F), None, r"shape \(\), expected \(2,\)"),
        (Dict(a=Box(-9, 9, (1,), F), b=Box(-9, 9, (1,), F)), {"a": np.zeros(1, F)}, r"expected the keys \['a', 'b'\]"),
        (Dict(a=Box(-9, 9, (1,), F)), {"a": np.zeros(3, F)}, r"\['a'\] returned an observation of shape \(3,\)"),
    ],
    ids=["column", "None", "missing key", "part"],
)
def test_an_observation_that_does_not_fit_its_space_is_refused_by_name(space: Any, seen: Any, expected: str) -> None:
    class Misshapen(User):
        observation_space = space

        def seen(self) -> Any:
            return seen

    with pytest.raises(EnvError, match=expected):
        make_batch_env(register(Misshapen), 2, seed=1).reset()


@pytest.mark.parametrize(("dtype", "seen"), [(np.uint8, 1.5), (np.int64, 1.5), (np.float16, 3000.375)])
def test_an_observation_is_stored_as_the_environment_gave_it_whatever_its_space_says(dtype: Any, seen: float) -> None:
    class Declared(User):
        observation_space = Box(0, 200, (2,), dtype)

        def seen(self) -> Any:
            return np.full(2, seen)

    assert make_batch_env(register(Declared), 1, seed=1).reset().tolist() == [[seen, seen]]


def test_an_observation_of_no_numbers_is_refused() -> None:
    class Blind(User):
        observation_space = Box(0, 1, (0,), F)

    with pytest.raises(EnvError, match="an observation of no numbers"):
        env_spec(register(Blind))


@pytest.mark.parametrize("bound", [np.inf, float(np.finfo(F).max), 1e38, 1e10])
def test_a_box_as_large_as_its_type_is_unbounded(bound: float) -> None:
    space = Box(-bound, bound, (1,), F)
    with pytest.raises(EnvError, match="unbounded action box"):
        ActionBox(space, "huge")
    with pytest.raises(DatasetError, match="unbounded"):
        EpisodeLayout(Box(-1, 1, (1,), F), space, "huge")
    assert ActionBox(Box(-1e9, 1e9, (1,), F), "large").rescale(F([[1]])).tolist() == [[1e9]]


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.7), (-0.4, 0.3), (5.0, 5.0), (-np.pi / 4, np.pi)])
def test_the_ends_of_the_unit_box_are_the_ends_of_the_action_box(low: float, high: float) -> None:
    space = Box(low, high, (1,), F)
    assert ActionBox(space, "box").rescale(F([[-1], [1], [-7], [7]])).ravel().tolist() == [
        *space.low, *space.high, *space.low, *space.high
    ]  # fmt: skip


class InPlace(User):
    """Clips its action in place; observes the sum of what was left."""

    def step(self, action: np.ndarray) -> Any:
        action *= 0.5
        np.clip(action, -0.2, 0.2, out=action)
        self.total += float(action[0])
        return super().step(action)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.total = 0.0
        super().reset(seed=seed)
        self.total = float(self.np_random.normal())
        return self.seen(), {}

    def seen(self) -> Any:
        return np.array([self.total, self.steps], F)


def test_an_environment_that_changes_its_action_in_place_changes_neither_the_row_nor_the_replayed_state() -> None:
    env = make_batch_env(register(InPlace), 2, seed=1)
    env.reset()
    actions = np.random.default_rng(0).uniform(-1, 1, (4, 2, 1)).astype(F)
    kept = actions.copy()
    for action in actions[:2]:
        env.step(action)
    state = env.state()
    there = make_batch_env(ENV_ID, 2, seed=9)
    for _ in range(2):  # the log that was replayed can be replayed again
        there.reset()
        there.load_state(state)
        state = there.state()
    for action in actions[2:]:
        np.testing.assert_array_equal(env.step(action).next_obs_EO, there.step(action).next_obs_EO)
    np.testing.assert_array_equal(actions, kept)


class Exits(User):
    """Calls sys.exit where it is told to."""

    at, code = "", 0

    def __init__(self) -> None:
        self.resets = 0
        self.leave("__init__")

    def leave(self, where: str) -> None:
        if where == Exits.at:
            sys.exit(Exits.code)

    @property  # type: ignore[override]
    def action_space(self) -> Box:
        self.leave("action_space")
        return User.action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.resets += 1
        self.leave(f"reset {self.resets}")
        return super().reset(seed=seed)

    def step(self, action: np.ndarray) -> Any:
        self.leave("step")
        return super().step(action)

    def close(self) -> None:
        self.leave("close")


class ExitsAsVector(SyncVectorEnv):
    def __init__(self, num_envs: int) -> None:
        super().__init__([Exits] * num_envs, autoreset_mode=AutoresetMode.DISABLED)


@pytest.mark.parametrize("vector", [False, True], ids=["alone", "as a vector"])
@pytest.mark.parametrize("code", [0, 3])
@pytest.mark.parametrize("at", ["__init__", "action_space", "reset 1", "step", "reset 2"])
def test_an_environment_that_exits_has_failed_whatever_its_code(at: str, code: int, vector: bool) -> None:
    Exits.at, Exits.code = at, code
    env_id = register(Exits, vector_entry_point=ExitsAsVector) if vector else register(Exits)
    with pytest.raises(
        EnvError, match=rf"called sys.exit\({code}\) in leave \(test_user_envs.py, line \d+\), expected"
    ):
        env = make_batch_env(env_id, 2, seed=1)
        env.reset()
        for _ in range(6):
            env.step(zeros(2))


def test_an_environment_that_exits_while_it_is_looked_at_or_brought_back_has_failed() -> None:
    Exits.at, Exits.code = "action_space", 0
    with pytest.raises(EnvError, match=r"called sys.exit\(0\)"):
        env_spec(register(Exits))
    Exits.at = ""
    env = make_batch_env(ENV_ID, 1, seed=1)
    env.reset()
    env.step(zeros(1))
    state = env.state()
    Exits.at = "step"
    env.load_state(state)
    assert "SystemExit" in env.not_replayed[0]
    Exits.at = "close"
    with pytest.warns(RuntimeWarning, match=r"close\(\) raised SystemExit"):
        env.close()


class Unclosable(User):
    made = 0
    raising: range = range(0)
    closed: list[int] = []  # noqa: RUF012

    def __init__(self) -> None:
        self.number = Unclosable.made
        Unclosable.made += 1

    def close(self) -> None:
        Unclosable.closed.append(self.number)
        if self.number in Unclosable.raising:
            raise AttributeError("no http_server")


@pytest.mark.parametrize("raising", [range(0, 1), range(1, 3), range(3, 99)], ids=["check", "workers", "evaluation"])
def test_a_close_that_raises_is_a_warning_and_the_run_is_complete(tmp_path: Path, raising: range) -> None:
    Unclosable.made, Unclosable.raising, Unclosable.closed = 0, raising, []
    flags = ("--workers", "1", "--envs-per-worker", "2")
    with pytest.warns(RuntimeWarning, match=r"close\(\) raised AttributeError: no http_server"):
        assert train_inline(tmp_path / "run", register(Unclosable), 96, *flags) == 0
    assert Unclosable.closed and sorted(Unclosable.closed) == list(range(Unclosable.made))  # one raises, all are closed
    assert read(tmp_path / "run" / "summary.json")["exit"] == "completed"
    assert not (tmp_path / "run" / "failure.json").exists()
    assert lines(tmp_path / "run" / "evaluations.jsonl")
