"""The calls that an inline run makes into its environments, watched by a thread: in one process nothing else can end one that hangs.

A call that takes half of its time, or LIMIT_S, is said on the terminal. At its deadline it is ended by an exception in the main
thread. A call that this does not end, because it is in native code or swallows the exception, ends the process RETURN_S later.
After a signal or a `stop` a call has ASKED_S more. Native code that keeps Python's global lock cannot be watched.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from cluster.bounded import Look
from cluster.errors import Interrupted, RunError
from cluster.graph import RunSpec
from cluster.loop_watch import LIMIT_S, where, write_stacks
from cluster.own_code import resume_words
from cluster.run_dir import RunDirectory
from cluster.saving import on_disk_words
from cluster.signals import NOT_SAVED, STOP, Signals
from rollout_workers.env import BatchEnv
from rollout_workers.evaluator import EvaluationTimeout

LOOK_S = 0.25
MOST_S = 4 * LOOK_S  # that one look counts for: a process that was stopped and goes on must not find its time over
ASKED_S = 15.0  # for a call to return once the run is to end; schedulers kill after 25 to 30 s
RETURN_S = 3.0  # for the exception to end a call
STOP_S = 1.0  # of a call, after which this looks for a `stop`, as the session cannot

T = TypeVar("T")


class Abandoned(BaseException):
    """Ends a call of an environment, for the reason in ``error``. No Exception, which an environment may take for its own."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One call that is under way."""

    name: str
    limit_s: float
    setting: str  # that the limit is of
    evaluation: bool


@dataclasses.dataclass(frozen=True)
class _Ends:
    """How whoever drives the run can end a call."""

    run: RunDirectory
    signals: Signals
    progress: Callable[[], str]
    give_up: Callable[[BaseException], None]
    stop: Look[Any]


class EnvWatch:
    """Watches one call at a time, all of one thread.

    Args:
        event: called with what a person should know, from the watching thread.
    """

    def __init__(self, spec: RunSpec, event: Callable[[str], None]) -> None:
        self.spec, self.event = spec, event
        self.path: Path = spec.run_dir / "dumps" / "driver.stacks"
        self._thread = threading.get_ident()  # that makes the calls
        self._call: Call | None = None
        self._ends: _Ends | None = None
        self._over = threading.Event()
        self._phase = spec.config.ray.start_timeout_s, "ray.start_timeout_s"
        self._evaluating = False

    def attach(
        self, run: RunDirectory, signals: Signals, progress: Callable[[], str], give_up: Callable[[BaseException], None]
    ) -> None:
        """Lets the watch end calls, and see signals and a `stop` meanwhile; without this it only speaks.

        Args:
            progress: how far the run is, in words.
            give_up: ends the process, from the watching thread.
        """
        look = Look(lambda: run.requests.take("stop"))
        self._ends = _Ends(run=run, signals=signals, progress=progress, give_up=give_up, stop=look)

    def start(self) -> None:
        self._thread = threading.get_ident()
        threading.Thread(target=self._watch, name="environment watch", daemon=True).start()

    def started(self) -> None:
        """From now on a call has as long as a step may take."""
        self._phase = self.spec.config.worker.step_timeout_s, "worker.step_timeout_s"

    def stop(self) -> None:
        self._over.set()

    @contextlib.contextmanager
    def evaluation(self) -> Any:
        """A block whose calls are an evaluation's: none may take longer than the whole of it."""
        before, self._phase = self._phase, (self.spec.config.evaluation.timeout_s, "evaluation.timeout_s")
        self._evaluating = True
        try:
            yield
        finally:
            self._phase, self._evaluating = before, False

    def make(self, make_env: Callable[[str, int, int, bool], BatchEnv]) -> Callable[[str, int, int, bool], BatchEnv]:
        """``make_env``, watched, as are the calls of the environments that it makes."""

        def watched(env_id: str, num_envs: int, seed: int, fast: bool) -> BatchEnv:
            try:
                env = self.during("__init__", lambda: make_env(env_id, num_envs, seed, fast))
            except Abandoned as abandoned:
                raise abandoned.error from None
            return WatchedEnv(env, self)

        return watched

    def during(self, name: str, act: Callable[[], T], limited: bool = True) -> T:
        """What ``act`` returns, which is a call of the environment's method ``name``."""
        limit_s, setting = self._phase
        self._call = Call(name, limit_s if limited else math.inf, setting, self._evaluating)
        try:
            return act()
        finally:
            self._call = None

    def _watch(self) -> None:
        seen, took, asked, said, left = None, 0.0, 0.0, False, False
        at = time.monotonic()
        while not self._over.wait(LOOK_S):
            now = time.monotonic()
            passed, at = min(now - at, MOST_S), now
            call = self._call
            if call is not seen:
                if said and seen is not None:
                    self.event(f"{self._words(seen)} has returned, after {took:.0f} s")
                seen, took, said, left = call, 0.0, False, False
            took += passed
            asked = asked + passed if self._is_asked(call is not None and took > STOP_S) else 0.0
            if call is None or left:
                continue
            if not said and took > min(LIMIT_S, call.limit_s / 2):
                said = True
                self._say(call, took)
            if took > call.limit_s or asked > ASKED_S:
                left = True
                self._end(call, took, took <= call.limit_s)

    def _is_asked(self, is_long: bool) -> bool:
        """Whether a signal or a `stop` asks the run to end."""
        ends = self._ends
        if ends is None:
            return False
        if ends.signals.noticed() is None and is_long:
            with contextlib.suppress(RunError):  # a damaged request, which was moved aside
                request = ends.stop.result(LOOK_S)
                if request is not None and request.number == os.getpid():
                    ends.signals.send(STOP)
        return ends.signals.noticed() is not None

    def _say(self, call: Call, took: float) -> None:
        place = where(self._thread)
        limit = f"; after {call.limit_s:g} s ({call.setting}) it is given up" if call.limit_s < math.inf else ""
        self.event(
            f"WARNING: {self._words(call)} has not returned for {took:.0f} s: the run stands still, for an inline run is one process; "
            f"it is in {place}; {write_stacks(self.path, f'{self._words(call)} does not return')}{limit}"
        )

    def _end(self, call: Call, took: float, asked: bool) -> None:
        """Ends ``call``, or else the process."""
        ends = self._ends
        if ends is None:
            self.event(f"{self._hung(call, took)}; nothing here can end it: end the process")
            return
        again = f"go on with `{resume_words(self.spec.run_dir, self.spec.config)}`"
        final: BaseException
        error: BaseException
        if asked:
            final = error = ends.signals.interrupted(
                f"at {ends.progress()}; {self._words(call)} has not returned for {took:.0f} s, {NOT_SAVED}; "
                f"{on_disk_words(self.spec)}; {again}"
            )
        else:
            final = error = RunError(
                f"{self._hung(call, took)}: an inline run is one process, which cannot go on without it, so the run ends at "
                f"{ends.progress()}; {on_disk_words(self.spec)}; see what the environment waits for, or raise {call.setting}; then {again}"
            )
            if call.evaluation:
                error = EvaluationTimeout(f"{self._hung(call, took)}; it is abandoned and has no result")

        def abandon() -> None:
            if self._call is call:  # else it has returned meanwhile
                raise Abandoned(error)

        if ends.signals.interrupt(abandon):
            until = time.monotonic() + RETURN_S
            while time.monotonic() < until:
                if self._call is not call or self._over.wait(LOOK_S / 5):
                    return
        ends.give_up(final)

    def _words(self, call: Call) -> str:
        return f"{call.name}() of {self.spec.config.env}{' in an evaluation' if call.evaluation else ''}"

    def _hung(self, call: Call, took: float) -> str:
        return (
            f"{self._words(call)} has not returned for {took:.0f} s, expected within {call.limit_s:g} s ({call.setting}), and is in "
            f"{where(self._thread)}"
        )


class WatchedEnv:
    """A BatchEnv whose calls are watched."""

    def __init__(self, env: BatchEnv, watch: EnvWatch) -> None:
        self._env, self._watch = env, watch
        self._given_up = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def reset(self, seeds: list[int] | None = None) -> Any:
        return self._call("reset", lambda: self._env.reset(seeds))

    def step(self, actions_EA: Any) -> Any:
        return self._call("step", lambda: self._env.step(actions_EA))

    def force_reset(self, env_indices: list[int]) -> Any:
        return self._call("reset", lambda: self._env.force_reset(env_indices))

    def load_state(self, state: Any) -> Any:
        """Replays running episodes, which may take long: without a deadline of its own."""
        return self._call("step", lambda: self._env.load_state(state), limited=False)

    def close(self) -> None:
        """One that hangs is reported and left; after a call that was given up nothing is called any more."""
        if self._given_up:
            return
        try:
            self._call("close", self._env.close)
        except (RunError, EvaluationTimeout, Interrupted) as error:
            if not self._given_up:
                raise
            self._watch.event(f"WARNING: the environments were not closed: {error}")

    def _call(self, name: str, act: Callable[[], T], limited: bool = True) -> T:
        try:
            return self._watch.during(name, act, limited)
        except Abandoned as abandoned:
            self._given_up = True
            raise abandoned.error from None
