"""Whether an environment keeps the contract of a run: tried in short before every run, and at length by `drawbridge check-env`.

Letters: E environments (one, or two of a vector entry point), O observation dim.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
import traceback
from collections.abc import Callable
from time import monotonic, perf_counter
from typing import Any

import gymnasium as gym
import numpy as np

from rollout_workers.env import (
    BatchEnv,
    EnvError,
    StepResult,
    close_or_warn,
    flatten_observation,
    raised_error,
    to_float32,
    without_exit,
)
from rollout_workers.env_ids import find_env
from rollout_workers.envs import EnvSpec, env_spec, make_batch_env, make_env

SEED = 7
SAY_S = 5.0  # of one call, after which whoever waits is told
END_STEPS, END_S = 50, 1.0  # in which a run that starts looks for the end of an episode; then it is ended by a reset
REPEATED_STEPS = 20  # that are made twice from one seed
CUT_STEPS = 1_000  # of an episode of a continuing task
MEASURED_S = 30.0  # after which no further episode is begun
_LIMIT = " (as a float32, which ends at 3.4e38)"


@dataclasses.dataclass(kw_only=True)
class EnvReport:
    """What whole episodes with random actions showed."""

    spec: EnvSpec
    asked: int  # episodes
    returns: list[float] = dataclasses.field(default_factory=list)  # undiscounted
    lengths: list[int] = dataclasses.field(default_factory=list)  # env steps
    terminated: int = 0  # episodes
    truncated: int = 0
    beyond: int = 0  # episodes that went on past the time limit
    step_s: float = 0.0  # time in steps
    repeats: str = ""  # what differed when one seed was used twice; "" if nothing did
    one_start: bool = False  # all seeds began at one observation
    outside: int = 0  # observations outside of their box
    nonfinite: int = 0  # steps with a NaN or an infinity
    rewarded: bool = False  # whether any reward was not 0


class _Clock:
    """Which call of the environment is under way, and when the one before it returned."""

    def __init__(self) -> None:
        self.name = "__init__"
        self.beat()

    def beat(self) -> None:
        self.at = monotonic()

    def make(self, *arguments: Any) -> BatchEnv:
        """As ``make_batch_env``, with each call noted here."""
        self.name = "__init__"
        env: Any = _Noted(make_batch_env(*arguments), self)
        self.beat()
        return env


class _Noted:
    def __init__(self, env: BatchEnv, clock: _Clock) -> None:
        self._env, self._clock = env, clock

    def __getattr__(self, name: str) -> Any:
        if name in ("reset", "step", "close"):
            self._clock.name = name
        return getattr(self._env, name)


def try_env(env_id: str, fast: bool, deadline_s: float) -> None:
    """The contract of a run in short: a reset, two steps, the end of an episode or a second reset, and one step past it.

    Args:
        fast: whether the batched path is taken where there is one.
        deadline_s: for each reset and step; an environment that hangs is left to its own thread.

    Raises:
        EnvError: it raised, hung, or returned what cannot be stored.
    """
    _watched(env_id, lambda clock: _contract(env_id, fast, clock), deadline_s, "or raise worker.step_timeout_s")


def check_env(
    env_id: str, episodes: int, deadline_s: float = 60.0, say: Callable[[str], None] = lambda text: None
) -> EnvReport:
    """``try_env``, then whole episodes with random actions, for at most half a minute; what they showed.

    Args:
        say: called once with what is waited for, when a call takes longer than SAY_S.

    Raises:
        EnvError: as ``try_env``, in any of them.
    """
    report = EnvReport(spec=env_spec(env_id), asked=episodes)

    def work(clock: _Clock) -> None:
        _contract(env_id, True, clock)
        env = clock.make(env_id, 1, 0)
        try:
            _repeat(env, report, clock)
            _run(env, report, clock)
        finally:
            env.close()

    _watched(env_id, work, deadline_s, "a run gives worker.step_timeout_s, 60 s by default", say)
    return report


def _watched(
    env_id: str,
    work: Callable[[_Clock], None],
    deadline_s: float,
    setting: str,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Runs ``work`` in a thread of its own; EnvError for whatever it raises and for a call that takes too long.

    Args:
        setting: ends the sentence about such a call, with what gives it longer.
    """
    raised: list[BaseException] = []
    clock = _Clock()

    def guarded() -> None:
        try:
            work(clock)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=guarded, name="env-check", daemon=True)
    thread.start()
    said = False
    while thread.is_alive():
        until = clock.at + (deadline_s if said else min(SAY_S, deadline_s))
        thread.join(max(0.01, until - monotonic()))
        silent_s = monotonic() - clock.at
        if thread.is_alive() and not said and SAY_S <= silent_s < deadline_s:
            said = True
            say(f"waiting for {clock.name}() of {env_id}, at most {deadline_s:g} s")
        if thread.is_alive() and silent_s >= deadline_s:
            raise EnvError(
                f"{clock.name}() of {env_id} did not return within {deadline_s:g} s and is in {_place(thread)}: every worker would be "
                f"taken for a hung one; see what it waits for; {setting}"
            )
    if raised and isinstance(raised[0], Exception) and not isinstance(raised[0], EnvError):
        raise raised_error(env_id, raised[0]) from raised[0]
    if raised:
        raise raised[0]


def _place(thread: threading.Thread) -> str:
    """The innermost calls that a thread is in, the last one last."""
    frame = sys._current_frames().get(thread.ident or 0)
    calls = traceback.extract_stack(frame)[-3:] if frame is not None else []
    return ", ".join(f"{call.name} ({os.path.basename(call.filename)}:{call.lineno})" for call in calls)


def _contract(env_id: str, fast: bool, clock: _Clock) -> None:
    num_envs = 1 if find_env(env_id).vector_entry_point is None else 2  # what is right for one may be wrong for more
    env = clock.make(env_id, num_envs, 0, fast)
    try:
        _check_observation(env_id, env, env.reset([SEED + i for i in range(num_envs)]), "reset")
        clock.beat()
        ended = False
        actions = [np.zeros((num_envs, env.action_dim), np.float32), *_actions(env, 1, SEED)]
        for action_EA in actions:
            result = env.step(action_EA)
            clock.beat()
            _check_step(env_id, env, result)
            ended = ended or _ended(result)
        began = monotonic()
        for action_EA in _actions(env, END_STEPS, SEED):
            if ended or monotonic() - began > END_S:
                break
            ended = _ended(env.step(action_EA))
            clock.beat()
        if not ended:
            env.reset([SEED + 1 + i for i in range(num_envs)])  # with the end of the running episode
            clock.beat()
        _check_step(env_id, env, env.step(actions[0]))
    finally:
        env.close()


def _check_observation(env_id: str, env: BatchEnv, obs_EO: np.ndarray, method: str) -> None:
    bad = np.argwhere(~np.isfinite(obs_EO))
    if len(bad):
        e, at = bad[0]
        raise EnvError(
            f"{env_id} returned an observation from {method} whose number {at} is {obs_EO[e, at]}{_LIMIT}, expected finite numbers: no "
            "row of it could be stored; see what the environment computes there"
        )


def _check_step(env_id: str, env: BatchEnv, result: StepResult) -> None:
    _check_observation(env_id, env, result.next_obs_EO, "step")
    if not np.isfinite(to_float32(result.reward_E)).all():
        raise EnvError(
            f"{env_id} returned a reward in one of its first steps that is no finite number{_LIMIT} (None counts as none), expected "
            "one: no row of it could be stored; return a float from step()"
        )


def _ended(result: StepResult) -> bool:
    return bool((result.terminated_E | result.truncated_E).any())


def _actions(env: BatchEnv, count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, env.num_envs, env.action_dim)).astype(np.float32)


def _repeat(env: BatchEnv, report: EnvReport, clock: _Clock) -> None:
    """Whether one seed and the same actions give the same episode, in another instance; whether seeds differ at all."""
    first = _seen(env, clock)
    another = clock.make(report.spec.env_id, 1, 0)
    try:
        second = _seen(another, clock)
    finally:
        another.close()
    differ = [name for (name, a), (_, b) in zip(first, second) if not np.array_equal(a, b, equal_nan=True)]
    report.repeats = differ[0] if differ else "" if len(first) == len(second) else "length of the episode"
    report.one_start = all(np.array_equal(env.reset([SEED + i]), first[0][1]) for i in range(1, 4))
    clock.beat()


def _seen(env: BatchEnv, clock: _Clock) -> list[tuple[str, Any]]:
    """What the first steps of an episode give, by name."""
    seen: list[tuple[str, Any]] = [("first observation", env.reset([SEED]).copy())]
    clock.beat()
    for step, action_EA in enumerate(_actions(env, REPEATED_STEPS, SEED), 1):
        result = env.step(action_EA)
        clock.beat()
        seen += [
            (f"observation of step {step}", result.next_obs_EO.copy()),
            (f"reward of step {step}", result.reward_E.copy()),
        ]
        if _ended(result):
            break
    return seen


def _run(env: BatchEnv, report: EnvReport, clock: _Clock) -> None:
    low_O, high_O = _bounds(report.spec.env_id)
    limit, began = report.spec.max_episode_steps or CUT_STEPS, monotonic()
    rng = np.random.default_rng(SEED)
    for episode in range(report.asked):
        if episode and monotonic() - began > MEASURED_S:
            break
        env.reset([SEED + episode])
        clock.beat()
        total, steps = 0.0, 0
        while steps < limit:
            action_EA = rng.uniform(-1, 1, (1, env.action_dim)).astype(np.float32)
            started = perf_counter()
            result = env.step(action_EA)
            report.step_s += perf_counter() - started
            clock.beat()
            obs_O, reward, steps = result.next_obs_EO[0], float(result.reward_E[0]), steps + 1
            finite = bool(np.isfinite(obs_O).all() and np.isfinite(to_float32(reward)))
            report.nonfinite += not finite
            report.outside += finite and bool((obs_O < low_O).any() or (obs_O > high_O).any())
            report.rewarded |= reward != 0
            total += reward
            if _ended(result):
                report.terminated += bool(result.terminated_E[0])
                report.truncated += not result.terminated_E[0]
                break
            if monotonic() - began > 2 * MEASURED_S:
                break
        else:
            report.beyond += report.spec.max_episode_steps is not None
        report.returns.append(total)
        report.lengths.append(steps)


def _bounds(env_id: str) -> tuple[np.ndarray, np.ndarray]:
    """The observation box, flat."""
    env = make_env(env_id)
    try:
        with without_exit(env_id):
            space = env.observation_space
        return flatten_observation(_ends(space, "low")), flatten_observation(_ends(space, "high"))
    finally:
        close_or_warn(env, env_id)


def _ends(space: gym.Space, end: str) -> Any:
    if isinstance(space, gym.spaces.Dict):
        return {key: _ends(space[key], end) for key in space}
    return getattr(space, end)
