"""One run from start to end: the loop that the command line and the RLlib face share.

A fleet does the work (``inline.InlineFleet`` or ``fleet.RayFleet``); the session asks it to advance, writes down what it
reports, evaluates when it is time, saves, and answers other commands. Nothing that cannot be reported ends a run (reports.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol

from algorithms.weights import Weights
from cluster.answers import Answers
from cluster.bounded import Look, in_thread
from cluster.data_kind import kind_of
from cluster.dataset_identity import IDENTITY_FILE, keep_identity
from cluster.dataset_task import score_of
from cluster.errors import Interrupted
from cluster.graph import RunSpec
from cluster.loop_watch import LoopWatch
from cluster.metrics.aggregator import MetricsAggregator
from cluster.metrics.alarms import alarm_keys, alarms
from cluster.own_code import cut_start_words
from cluster.reports import END_S, WAIT_S, Reports, free_bytes
from cluster.run_dir import RunDirectory
from cluster.saving import Saved, SaveWatch
from cluster.usage import memory_bytes
from rollout_workers.evaluator import Evaluation

GRACE_S = 18.0  # for a run that is asked to end: schedulers kill after 25 to 30 s, and closing takes some of them
EARLY = (8, 4, 2)  # parts of evaluation.every_steps at which a new run is evaluated too, besides its start
SLICE_S = 0.25  # how long one advance takes, and how late a signal or a request may be noticed


class Fleet(Protocol):
    """Who runs the parts of a run."""

    done: bool  # the run has its env steps and the learner the updates that belong to them
    watch: SaveWatch  # what became of its saves
    meanwhile: Callable[[], None]  # called again and again while an evaluation is waited for

    def start(self) -> None:
        """Starts the parts, from the newest checkpoint and snapshots where there are any."""

    def advance(self, seconds: float, until: int) -> None:
        """Works, or lets the parts work, for about ``seconds``; keeps the metrics up to date.

        A fleet that works in a fixed order stops at ``until`` (in the run's unit), so that what is due there does not depend on
        the clock.
        """

    def weights(self) -> Weights | None:
        """The newest policy; None before the first."""

    def request_evaluation(self, episodes: int) -> None:
        """Evaluates the newest policy, now or beside the training."""

    def take_evaluations(self) -> list[Evaluation]:
        """Evaluations finished since the last call."""

    def scale(self, workers: int) -> str:
        """Makes the number of rollout workers ``workers``; says what was done."""

    def workers_in_words(self) -> str:
        """How many rollout workers run and what the others wait for: "8 run, 12 wait for CPUs"."""

    def hold_at(self, env_steps: int) -> None:
        """Lets the run make ``env_steps`` (and the rest of the chunk that reaches them) and hold there."""

    def save(self) -> Saved:
        """Writes snapshots and checkpoint now; what is on disk then."""

    def finish(self, limit_s: float | None = None) -> Saved:
        """Ends workers and learners in order and saves everything, within about ``limit_s``; what is on disk then."""

    def await_evaluations(self) -> None:
        """Waits for evaluations still on their way."""

    def close(self) -> None:
        """Frees everything, also after a failure."""


class Session:
    """A run in a directory that this process holds.

    Args:
        run: the run's directory, locked by this process.
        spec: its configuration, and what its parts are built from.
        outputs: called with every metrics line.
        event: called with every line worth a person's attention.
        states: called with every state of the run: starting, running, finishing, ended, failed.
        facts: what live.json says beside the metrics.
        at_once: gives the block in which a signal raises Interrupted, while the parts start and while the final evaluation runs.
        held: gives the block in such a block in which it does not.
    """

    def __init__(
        self,
        run: RunDirectory,
        spec: RunSpec,
        *,
        outputs: Callable[[dict[str, Any]], None] = lambda line: None,
        event: Callable[[str], None] = lambda text: None,
        states: Callable[[str], None] = lambda state: None,
        facts: dict[str, Any] | None = None,
        at_once: Callable[[str], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,  # type: ignore[assignment]
        held: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self.run, self.spec, self.config = run, spec, spec.config
        self.outputs, self.event, self.states, self.facts = outputs, event, states, facts or {}
        self._at_once, self._held = at_once, held
        replay = self.config.replay
        before = run.live()
        self.aggregator = MetricsAggregator(
            min_size_rows=replay.min_size_rows,
            replay_ratio=replay.replay_ratio,
            tolerance_rows=replay.shards * getattr(kind_of(self.config).make_limiter(self.config), "tolerance", 0.0),
            before_s=float(before.get("time_s", 0.0)),
            unit=self.config.unit,
            pretrain_updates=kind_of(self.config).pretrain_updates(self.config),
        )
        for part, settings in (("worker", self.config.worker), ("learner", self.config.learner)):
            self.aggregator.budget_left[part] = settings.restart_budget
        self.aggregator.budget_left["shard"] = self.config.ray.shard_restart_budget
        if before:
            self.aggregator.resume_from(before)
        self.reports = Reports(run, self.aggregator.failed, event)
        self._free = Look(lambda: free_bytes(run))
        self.fleet: Fleet = _make_fleet(spec, self.aggregator, self._said)
        self.fleet.meanwhile = self._tell_in_time
        self._watch = LoopWatch(run.dumps / "driver.stacks", event)
        self.evaluations: list[Evaluation] = []
        self._next_line = self._next_save = 0.0
        self._next_evaluation = 0
        self._evaluated_updates = -1  # of the newest policy when it was evaluated last
        self._hold = sys.maxsize  # env steps at which ``advance_to`` left the run
        self._state = self._starting = ""  # what it is; of one that is starting, what its fleet said last
        self._await = ""  # what the end of the run waits for
        self._alarms: set[str] = set()  # those that sounded with the last record
        self._answers = Answers(run, self.fleet, self.aggregator, self.reports, event, self._tell)
        self.saved: Saved | None = None  # what ``finish`` left on disk
        self._summary: dict[str, Any] = {}  # what it wrote

    def __enter__(self) -> Session:
        before = self.aggregator.env_steps_before, self.aggregator.updates
        try:
            self._enter("starting")
            self._write_live(self.run.live())
            if self.config.dataset:
                self.reports.write(IDENTITY_FILE, lambda: keep_identity(self.spec.dataset, self.run.path), again=True)
            with self._at_once(cut_start_words(self.run.path, self.config, learned=any(before))):
                self.fleet.start()
        except BaseException as error:
            self._give_up(error)
            raise
        self._say_what_is_lost(*before)
        self._next_evaluation = self._evaluation_after(self.aggregator.progress or -1)
        self._next_save = time.monotonic() + self.config.learner.checkpoint_s
        self._enter("running")
        self._tell()
        if self.config.backend == "ray":  # inline a turn takes whatever its environments and evaluations take
            self._watch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watch.stop()
        if error is not None:
            self._give_up(error)
        else:
            self.fleet.close()

    @property
    def asked_to_stop(self) -> bool:
        """Whether another command asked for the end of the run: the caller ends it."""
        return self._answers.asked_to_stop

    @property
    def over(self) -> bool:
        """Whether it is written down how the run ended."""
        return self._state in ("ended", "interrupted", "failed")

    @property
    def env_steps(self) -> int:
        return self.aggregator.env_steps

    def advance(self) -> bool:
        """One slice of the run; False once it has all its env steps and updates."""
        with self._watch:
            return self._advance()

    def _advance(self) -> bool:
        self.fleet.advance(SLICE_S, min(self._next_evaluation, self._hold))
        self._evaluate()
        self.answer()
        now = time.monotonic()
        if now >= self._next_save and self.config.backend == "inline":
            self.fleet.save()
            self._next_save = now + self.config.learner.checkpoint_s
        self._tell_in_time()
        self.fleet.watch.check()
        return not self.fleet.done

    def advance_to(self, env_steps: int) -> bool:
        """Goes on until the run has made ``env_steps`` and holds it there, or was asked to stop; False once it has all its own."""
        self._hold = env_steps
        self.fleet.hold_at(env_steps)
        going = True
        while going and self.env_steps < env_steps and not self.asked_to_stop:
            going = self.advance()
        self._tell()
        return going

    def finish(self, outcome: str = "completed") -> dict[str, Any]:
        """Ends the run in order: rows on the way, snapshots, checkpoint, last evaluation, summary.json; returns the summary.

        What could not be saved is in ``saved`` and in the summary; a run that completed is then ``unsaved`` and can be resumed.
        """
        self._answers.settle(now=True)
        self._enter("finishing")
        self._tell()
        self.saved = saved = self.fleet.finish(None if outcome == "completed" else GRACE_S)
        for problem in saved.problems:
            self.event(f"not saved: {problem}")
        if outcome == "completed":  # otherwise somebody waits for the process to end
            try:
                with self._at_once("during the final evaluation"):
                    self._await = f"waits for the last evaluation, at most {self.config.evaluation.timeout_s:g} s (evaluation.timeout_s)"
                    self._tell_in_time(now=True)
                    self.fleet.request_evaluation(self.config.evaluation.final_episodes)
                    self.fleet.await_evaluations()
            except Interrupted:
                outcome = "interrupted"
            self._await = ""
        self._collect()
        line = self._line()
        self._summary = {
            "algorithm": self.config.algorithm,
            "env": self.config.env,
            "seed": self.config.seed,
            "backend": self.config.backend,
            "preset": self.config.preset,
            "exit": "unsaved" if outcome == "completed" and saved.problems else outcome,
            "saved": saved.as_json(),
            **self.aggregator.summary(),
            "asked_episodes": self.config.online.stages * self.config.online.episodes_per_stage,
            "alarms": list(alarms(line, self.config.planned_updates).values()),
        }
        self._write_summary()
        self._enter("ended")
        self._tell(line)
        self.reports.flush()
        return self._summary

    def fail(self, error: BaseException) -> None:
        """Writes failure.json, or into the summary of a run that was asked to end: why; then its last line, unless it was starting: the
        metrics know less then."""
        starting, before, asked = self._state in ("", "starting"), self._state, isinstance(error, KeyboardInterrupt)
        self._state = "interrupted" if asked else "failed"
        if before != "ended":  # else it was stopped, in order
            self.states("ended" if self._state == "interrupted" else "failed")
        line = self.run.live() if starting else self._line()
        words = str(error) or type(error).__name__
        if self._summary and asked:
            self._summary["why"] = words
        if not (self._summary and asked and self._write_summary()):
            trace = "" if asked else "".join(traceback.format_exception(error))
            try:
                in_thread(lambda: self.run.write_failure(words, trace)).result(END_S)
            except OSError as problem:
                self.event(f"failure.json could not be written ({str(problem) or 'no answer'}); it would say: {error}")
        self._write_live(line)
        if not starting:
            self.reports.line("metrics.jsonl", line)
        self.reports.flush()

    def _write_summary(self) -> bool:
        return self.reports.write("summary.json", lambda: self.run.write_summary(self._summary))

    def _enter(self, state: str) -> None:
        self._state = state
        self.states(state)

    def _give_up(self, error: BaseException) -> None:
        """Writes down what ended the run and frees everything; nothing here may hide ``error`` or keep actors alive."""
        try:
            self.fail(error)
        except Exception as problem:
            self.event(f"the end of the run could not be written down: {problem}")
        finally:
            self.fleet.close()

    def _say_what_is_lost(self, env_steps: int, updates: int) -> None:
        """Of a run that goes on: how far back it begins."""
        rows, made = max(0, env_steps - self.aggregator.env_steps), max(0, updates - self.aggregator.updates)
        if rows or made:
            self.event(
                f"the run resumes at {self.aggregator.env_steps:,} env steps and {self.aggregator.updates:,} updates, the newest "
                f"saved state: {rows:,} later rows are lost and counted as dropped, {made:,} updates are made again"
            )

    def _evaluate(self) -> None:
        if self._next_evaluation <= self.aggregator.progress < self.config.steps:
            early = self._next_evaluation < self.config.evaluation.every_steps
            if not early or self.aggregator.updates > self._evaluated_updates:  # else the policy is what it was
                self._evaluated_updates = self.aggregator.updates
                with contextlib.suppress(Interrupted), self._at_once("during an evaluation"):
                    self.fleet.request_evaluation(self.config.evaluation.episodes)
            self._next_evaluation = self._evaluation_after(self.aggregator.progress)
        self._collect()

    def _evaluation_after(self, progress: int) -> int:
        """When the run is evaluated next, beyond its last step if never; a new run at its start, and then more and more seldom."""
        every = self.config.evaluation.every_steps
        if not every:
            return self.config.steps + 1
        early = (0, *(every // part for part in EARLY))
        return next((at for at in early if at > progress), (progress // every + 1) * every)

    def _collect(self) -> None:
        for evaluation in self.fleet.take_evaluations():
            self.evaluations.append(evaluation)
            record = {**dataclasses.asdict(evaluation), "time_s": round(self.aggregator.time_s, 3)}
            record |= score_of(self.spec.dataset, evaluation.returns)
            self.reports.line("evaluations.jsonl", record)
            self.aggregator.add_evaluation(record)
            for error in evaluation.errors:
                self.event(f"evaluation: {error}")
            if evaluation.note and not any(earlier.note for earlier in self.evaluations[:-1]):
                self.event(f"evaluation: {evaluation.note}")

    def answer(self) -> None:
        """Takes what another command asks; ``advance`` does so too."""
        self.reports.retry()
        self._answers.take()

    def _tell_in_time(self, now: bool = False) -> None:
        """A record, when one is due, or ``now``."""
        if (at := time.monotonic()) >= self._next_line or now:
            with self._held():
                self.aggregator.disk_free_bytes = self._free.result(WAIT_S)
                self._tell()
            self._next_line = at + self.config.metrics.line_s

    def _line(self) -> dict[str, Any]:
        """A metrics record of the time since the one before it."""
        line = self.aggregator.line()
        return line | alarm_keys(line, self.config.planned_updates)

    def _tell(self, line: dict[str, Any] | None = None) -> None:
        """Gives a metrics record, a new one unless it is given, to all who take it."""
        if line is None:
            self.aggregator.memory_bytes = memory_bytes()
            line = self._line()
        self._sound(alarms(line, self.config.planned_updates))
        self.reports.line("metrics.jsonl", line)
        self._write_live(line)
        self.outputs(line)

    def _sound(self, found: dict[str, str]) -> None:
        """Says each alarm when it begins, not again while it goes on."""
        before, self._alarms = self._alarms, set(found)
        for name, words in found.items():
            if name not in before:
                self.event(words)

    def _write_live(self, line: dict[str, Any]) -> None:
        state, workers = self._state, self.fleet.workers_in_words() if self._state == "running" else ""
        facts = {**self.facts, "workers_in_words": workers, "phase": self.phase(line)}
        self.reports.write("live.json", lambda: self.run.write_live({**line, **facts}, state))

    def phase(self, line: dict[str, Any]) -> str:
        """What a run that starts, ends, or is in stages is at, the last by its metrics record; else ""."""
        if self._state in ("starting", "finishing"):
            return self._starting if self._state == "starting" else self._await
        return kind_of(self.config).phase(self.config, line) if self._state == "running" else ""

    def _said(self, text: str) -> None:
        """An event of the fleet: while that starts, `status` says it too."""
        self.event(text)
        if self._state == "starting":
            self._starting = text
            self._write_live(self.run.live())


def _make_fleet(spec: RunSpec, aggregator: MetricsAggregator, event: Callable[[str], None]) -> Fleet:
    if spec.config.backend == "inline":
        from cluster.inline import InlineFleet

        return InlineFleet(spec, aggregator, event)
    from cluster.fleet import RayFleet

    return RayFleet(spec, aggregator, event)
