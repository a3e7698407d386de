"""The learners of a run on Ray: all ranks start together, and are replaced together from the newest checkpoint.

    phase       waits for                                deadline
    down        the cause to be known, and the back-off  ray.start_timeout_s
    meeting     a place on the cluster for every rank    ray.start_timeout_s
    beginning   every rank to have met the others and    ray.start_timeout_s + ray.call_timeout_s
                loaded the checkpoint
    running     an answer of every rank                  ray.call_timeout_s
                the end of the block in hand             ray.start_timeout_s + ray.call_timeout_s

Whatever misses its deadline, or dies by itself, costs one restart of the budget. Nothing here blocks for longer than a second but
``begin``, which is called once, before the run goes on.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayTaskError

from cluster.errors import SAME_FAILURE, RunError
from cluster.graph import GENERATIONS_A_START, RunSpec
from cluster.learner_actor import LearnerActor, News, StartInfo
from cluster.metrics.aggregator import MetricsAggregator
from cluster.metrics.catalogue import RestartReason
from cluster.nodes import Failure, Nodes
from cluster.placement import Reservation
from cluster.remote import DIED, Budget, Pulse, cause, ended, make_actor, no_place, root
from cluster.saving import Outcome

SLICE_S = 0.25
BLAME_S = 1.0  # until the failures of the other ranks are known, to tell the cause from what followed of it
Blame = tuple[str, RestartReason, int]  # why learners failed, for the counters too, and the rank that failed first


class LearnerGroup:
    """L learner actors that share one update.

    ``astray`` is True from each start on, until the shards know which of their rows these learners really used.
    """

    def __init__(
        self,
        spec: RunSpec,
        aggregator: MetricsAggregator,
        event: Callable[[str], None],
        nodes: Nodes,
        reservation: Reservation,
        shards: list[Any],
        store: Any,
    ) -> None:
        self.spec, self.aggregator, self.event, self.config = spec, aggregator, event, spec.config
        self.actors: list[Any] = []
        self.runs: list[Any] = []  # references that are ready when a learner has returned or failed
        self.pulses: list[Pulse] = []  # of the learners that run
        self.astray = False
        self._nodes, self._reservation, self._shards, self._store = nodes, reservation, shards, store
        self._places: list[str] = []  # the ranks' nodes, once they are known
        self._budget = Budget(self.config.learner.restart_budget)
        self._down: Failure | None = None
        self._phase = "none"
        self._starting: list[Any] = []  # references of the phase that a start is in
        self._due = 0.0  # when that phase must be over
        self._failing: list[Any] = []  # references of ranks of which one has failed
        self._blame_by = 0.0  # when it is decided why
        self._starts = 0
        self._stopping = False
        self._rollbacks = 0  # of the learners that run now, as reported
        self._failures: list[str] = []  # since the last progress
        self._progress = -1

    @property
    def finished(self) -> bool:
        """Whether every learner has made the updates that belong to the run."""
        return self._phase == "running" and not self.runs

    @property
    def generation(self) -> int:
        """Of the learners that were started last."""
        return self.spec.start * GENERATIONS_A_START + self._starts - 1

    @property
    def silent_s(self) -> float:
        """For how long a learner has not answered; without an end while they are being restarted."""
        if self._phase != "running":
            return math.inf
        return max((pulse.silent_s for pulse in self.pulses), default=0.0)

    def begin(self, check: Callable[[], None]) -> None:
        """The first start: waits for all ranks; RunError says what failed, or what ``check`` found meanwhile."""
        self._start()
        while self._phase != "ready":
            check()
            ray.wait(self._starting, timeout=SLICE_S)
            if failed := self._go_on():
                raise RunError(f"failed while waiting for learners to start:\n{failed[0]}")
        self.event(f"{len(self.actors)} of {len(self.actors)} learners up")

    def go_on(self) -> bool:
        """Takes a failure, or a restart that is under way, a step further; True once the learners are ready to ``run``."""
        self.aggregator.budget_left["learner"] = self._budget.left
        self.aggregator.part_nodes["learner"] = {self._nodes.address(place) for place in self._places}
        if self._phase == "failing" and not self._stopping and (failed := self._blame(self._failing)):
            self._replace(*failed)
        if self._phase == "down" and not self._stopping:
            self._restart()
        if self._phase in ("meeting", "beginning") and not self._stopping and (failed := self._go_on()):
            self._replace(*failed)
        return self._phase == "ready"

    def run(self) -> None:
        """Lets the learners begin to learn."""
        self._phase = "running"
        self.runs = [actor.run.remote() for actor in self.actors]
        self.pulses = [Pulse(actor.news.remote) for actor in self.actors]

    def look_at(self, ref: Any) -> None:
        """Takes a reference of ``runs`` that is ready: a learner has returned, or all are replaced."""
        try:
            ray.get(ref)
        except (RayTaskError, *DIED) as error:
            if not self._stopping:
                self._phase, self._failing, self.runs = "failing", self.runs, []
                self._blame_by = time.monotonic() + BLAME_S
                self.go_on()
                return
            self.event(f"a learner did not end in order, its newest checkpoint stays: {root(error)}")
        self.runs.remove(ref)

    def watch(self) -> None:
        """Takes what the learners answered since the last call, and replaces them when one of them hangs."""
        hung: Blame | None = None
        for rank, pulse in enumerate(self.pulses):
            try:
                news = pulse.answer()
            except DIED:
                continue  # its run() tells
            if news is not None:
                self.aggregator.add_usage("learner", rank, news.usage)
            if news is not None and rank == 0:
                self._take(news)
            if not hung and (why := self._hangs(rank, news)):
                hung = why, "hung", rank
        if hung and self.runs:
            self._replace(*hung)

    def on(self, node: str) -> list[str]:
        """Those on a node, for people."""
        return [f"learner {rank}" for rank, place in enumerate(self._places) if place == node]

    def report(self, limit_s: float) -> None:
        """Takes the last counters of the first learner, if it answers within ``limit_s``."""
        for actor in self.actors[:1]:
            with contextlib.suppress(*DIED, RayTaskError, GetTimeoutError):
                self._take(ray.get(actor.news.remote(), timeout=limit_s))

    def save(self, limit_s: float) -> Outcome:
        """Writes a checkpoint now, if that is possible within ``limit_s``."""
        if self._phase == "none":
            return Outcome(problem="the learner had not started")
        if self._phase != "running":
            return Outcome(problem="the learners were being restarted")
        try:
            outcome: Outcome = ray.get(self.actors[0].save.remote(), timeout=limit_s)
        except GetTimeoutError:
            return Outcome(problem=f"not written within {limit_s:.0f} s")
        except (RayTaskError, *DIED) as error:
            return Outcome(problem=root(error))
        return outcome

    def publish_again(self) -> None:
        """Gives the store the newest policy once more: it was restarted, empty. Does not wait."""
        for actor in self.actors[:1]:
            actor.publish_again.remote()

    def stop(self) -> None:
        """Lets every learner return after the block in hand; does not wait, and replaces none from now on."""
        self._stopping = True
        for actor in self.actors:
            actor.stop.remote()

    def _start(self) -> None:
        """All ranks, from the newest checkpoint, in a generation above all before."""
        config = self.config.learner
        self._starts += 1
        if self._starts > GENERATIONS_A_START:
            raise RunError(
                f"the learners were started {self._starts:,} times, expected fewer in one start of a run: no generation is left, so the run "
                "halts; it can be resumed"
            )
        self._rollbacks, self._places = 0, []
        options = {"num_cpus": config.cpus, "num_gpus": config.gpus, "max_concurrency": 4}
        self.actors = [
            make_actor(LearnerActor, scheduling_strategy=self._reservation.place("learner", rank), **options).remote(
                self.spec, rank, self.generation, self._shards, self._store
            )
            for rank in range(config.learners)
        ]
        self.runs, self.pulses = [], []
        self._enter("meeting", [actor.meeting.remote() for actor in self.actors], self.config.ray.start_timeout_s)

    def _enter(self, phase: str, refs: list[Any], limit_s: float) -> None:
        self._phase, self._starting, self._due, self._blame_by = phase, refs, time.monotonic() + limit_s, 0.0

    def _go_on(self) -> Blame | None:
        """Looks at the start under way; returns why it failed, None while it has not."""
        ready, waiting = ray.wait(self._starting, num_returns=len(self._starting), timeout=0)
        try:
            ray.get(ready)
        except (RayTaskError, *DIED):
            self._blame_by = self._blame_by or time.monotonic() + BLAME_S
            return self._blame(self._starting)
        limits = self.config.ray
        if waiting and time.monotonic() > self._due:
            if self._phase == "meeting":
                return no_place(limits.start_timeout_s, "every learner to start"), "no_place", 0
            why = (
                f"{len(waiting)} of {len(self.actors)} learners did not load their checkpoint within "
                f"{limits.start_timeout_s + limits.call_timeout_s:.0f} s (ray.start_timeout_s + ray.call_timeout_s): they hang"
            )
            return why, "hung", self._starting.index(waiting[0])
        if waiting:
            return None
        answers = ray.get(self._starting)
        if self._phase == "meeting":
            (meeting, _), self._places = answers[0], [place for _, place in answers]
            refs = [actor.begin.remote(meeting) for actor in self.actors]
            self._enter("beginning", refs, limits.start_timeout_s + limits.call_timeout_s)
        else:
            self._take_start_info(answers[0])
        return None

    def _take_start_info(self, start_info: StartInfo) -> None:
        self._enter("ready", [], 0.0)
        for warning in start_info.warnings:
            self.event(f"checkpoint skipped: {warning}")
        self.aggregator.observe_learner(start_info.updates, start_info.generation, start_info.version)
        self.astray = True

    def _take(self, news: News) -> None:
        """Brings the first learner's reports to the metrics and its troubles to the user."""
        for report in news.reports:
            self.aggregator.add_learner(report)
            if report.rollbacks > self._rollbacks:
                self.event(
                    f"the learner rolled back to a checkpoint at update {report.updates:,}: updates were not finite"
                )
            self._rollbacks = report.rollbacks
        self.aggregator.observe_learner(news.updates, self.generation, news.version)
        self.aggregator.ready_blocks = news.ready_blocks
        for trouble in news.troubles:
            self.event(trouble)

    def _hangs(self, rank: int, news: News | None) -> str:
        """That a learner hangs, and how that was noticed; empty when it does not."""
        limits = self.config.ray
        if (silent_s := self.pulses[rank].silent_s) > limits.call_timeout_s:
            return f"learner {rank} hangs: it did not answer for {silent_s:.0f} s (ray.call_timeout_s {limits.call_timeout_s:g})"
        limit_s = limits.start_timeout_s + limits.call_timeout_s
        if news is not None and news.busy_s > limit_s:
            return (
                f"learner {rank} hangs: it has been busy with one block or one checkpoint for {news.busy_s:.0f} s "
                f"(ray.start_timeout_s + ray.call_timeout_s: {limit_s:g})"
            )
        return ""

    def _blame(self, refs: list[Any]) -> Blame | None:
        """Why learners failed, of ``refs`` at least one: a process that died or raised by itself, or hangs, before the others, whose
        reductions failed because of it. None until all have failed or BLAME_S are over."""
        ready, others = ray.wait(refs, num_returns=len(refs), timeout=0)
        if others and time.monotonic() < self._blame_by:
            return None
        self._blame_by = 0.0
        found: list[tuple[int, str, RestartReason, int]] = []
        for ref in ready:
            rank = refs.index(ref)
            try:
                ray.get(ref)
            except DIED as error:
                found.append((0, f"{ended(error)} (learner {rank})", "died", rank))
            except RayTaskError as error:
                found.append((3 if "CollectiveError" in cause(error) else 1, cause(error), "raised", rank))
        limit_s = self.config.ray.call_timeout_s
        for rank, pulse in enumerate(self.pulses):
            if pulse.silent_s > limit_s / 2:
                found.append((2, f"learner {rank} hangs: it did not answer for {pulse.silent_s:.0f} s", "hung", rank))
        return min(found)[1:]

    def _replace(self, why: str, reason: RestartReason, rank: int) -> None:
        """Kills all ranks, because ``rank`` failed; ``go_on`` starts them again."""
        for actor in self.actors:
            ray.kill(actor, no_restart=True)
        self.runs, self.pulses = [], []
        if self._stopping:
            self._phase = "running"
            self.event(f"the learners did not end in order, the newest checkpoint stays: {root(why)}")
            return
        if self._phase == "beginning" and "cluster.errors.RunError" in why:  # another try would find the same
            raise RunError(why)
        node = self._places[rank] if self._places else ""
        self._phase = "down"
        self._down = Failure(why=why, reason=reason, nodes=frozenset(self._places), node=node)
        self._restart()

    def _restart(self) -> None:
        """Starts all ranks again when it is time, or ends the run when the budget is spent or nothing comes of it. What was lost with a
        node costs nothing."""
        down, budget = self._down, self._budget
        if down is None or not (verdict := self._nodes.verdict(down, self.config.ray.start_timeout_s)):
            return
        if verdict == "lost":
            self.aggregator.count_restart("learner", "node_lost", self._nodes.address(self._nodes.lost(down)))
            self._start()
            return
        failures = [] if self.aggregator.updates > self._progress else self._failures
        hopeless = len(failures) + 1 >= SAME_FAILURE or "learners.guard.Halt" in down.why
        if budget.left and not hopeless and time.monotonic() < down.at + budget.delay_s():
            return
        self._progress, self._failures = self.aggregator.updates, [*failures, down.why]
        if hopeless or not budget.spend():
            raise RunError(
                f"the learner failed and is not restarted (starts: {self._starts}, learner.restart_budget {budget.an_hour} an hour), so the "
                f"run halts; it can be resumed. The first failure:\n{self._failures[0]}"
            )
        self.aggregator.count_restart("learner", down.reason, self._nodes.address(down.node))
        where = f" (was on {self._nodes.name(down.node)})" if down.node else ""
        self.event(f"learner restarted from the newest checkpoint{where}: {root(down.why)}")
        self._start()
