"""The rollout workers of a run on Ray: started, watched, replaced within a budget, scaled."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from cluster.actors import EXPENDABLE, WorkerActor
from cluster.bounded import Look
from cluster.checks import uneven_shards
from cluster.errors import SAME_FAILURE, RunError, UsageError
from cluster.graph import INCARNATIONS_A_START, RunSpec, random_steps_left
from cluster.leaving import Leaving
from cluster.metrics.aggregator import MetricsAggregator
from cluster.metrics.catalogue import RestartReason
from cluster.nodes import Failure, Nodes
from cluster.remote import DIED, Budget, cause, ended, make_actor, no_place, root, without_a_word
from cluster.replay_client import STOPPED
from cluster.setting_text import parse_labels

MOST_WORKERS = 4_096
SLICE_S = 0.1  # for workers that ended at once, in one turn of the driver
WORDS_S = 0.1  # for the head to say what is free
ANSWER_S = 10.0  # for a worker to say whether it still gets on, and no longer than a step may take
ASK_S = ANSWER_S + 1.0  # by which it is asked before its time is over: looks are a second apart
WORKER_LOST = "worker_lost"  # why rows are dropped that a failed worker had not brought in


@dataclasses.dataclass
class Member:
    """One rollout worker slot."""

    actor: Any
    run: Any  # reference of its run() call
    incarnation: int
    up: Any  # reference of its node, there once the actor's process has built its environments
    asked: float  # when it was asked for, monotonic clock
    began: float = 0.0  # when it was seen to be up; 0: it waits for a place on the cluster
    node: str = ""  # where it is, from then on
    down: Failure | None = None  # it has ended and is not replaced yet
    late: bool = False  # a long wait has been reported
    failures: int = 0  # since it last brought rows
    first_failure: str = ""
    rows: float = 0.0
    rss_bytes: float = 0.0  # that its process took when it last said so
    finished: bool = False
    asked_idle: Any = None  # reference of its answer for how long it has made no step
    asked_at: float = 0.0
    got_on: float = 0.0  # when it last made a step, by that answer, monotonic clock


class WorkerGroup:
    """Rollout workers by their index; worker i writes to shard i modulo their number.

    A worker is watched, and replaced when it fails, for as long as its shard takes rows.

    Args:
        shards, store: actors that the workers talk to.
        cpus: what one worker reserves.
    """

    def __init__(
        self,
        spec: RunSpec,
        aggregator: MetricsAggregator,
        event: Callable[[str], None],
        nodes: Nodes,
        shards: list[Any],
        store: Any,
        cpus: float,
    ) -> None:
        self.spec, self.aggregator, self.event, self.config = spec, aggregator, event, spec.config
        self._nodes, self._shards, self._store = nodes, shards, store
        labels = parse_labels(self.config.ray.worker_labels)
        self._options: dict[str, Any] = EXPENDABLE | {"num_cpus": cpus, "max_concurrency": 2}
        self._options |= {"label_selector": labels} if labels else {}
        self._cpus = cpus
        self._members: dict[int, Member] = {}
        self._leaving = Leaving(aggregator, event)
        self._incarnations: dict[int, int] = {}
        self._last_report: dict[int, float] = {}  # when a shard last had a chunk of a worker, monotonic clock
        self._full: set[int] = set()  # shards that take no more rows
        self._silent: set[int] = set()  # shards of whose workers nothing is known now
        self._budget = Budget(self.config.worker.restart_budget)
        self._resources = Look(lambda: float(ray.available_resources().get("CPU", 0.0)))
        self._free_cpus: float | None = None  # when the head last said so
        self._count()

    @property
    def actors(self) -> list[Any]:
        return [member.actor for member in self._members.values()] + self._leaving.actors

    @property
    def runs(self) -> list[Any]:
        """References that are ready when a worker has returned or failed."""
        return [member.run for member in self._members.values() if not member.finished and member.down is None]

    @property
    def finished(self) -> bool:
        """Whether every worker has returned, or is not needed any more, because its shard has the rows of the run."""
        return bool(self._members) and not any(
            self._is_needed(index) for index, member in self._members.items() if not member.finished
        )

    def begin(self, workers: int) -> None:
        """Starts the first workers of a run."""
        for index in range(workers):
            self._start(index)
        self._count()

    def _start(self, index: int, failures: int = 0, first_failure: str = "") -> None:
        """A worker in slot ``index``: a new incarnation each time."""
        count = self._incarnations[index] = self._incarnations.get(index, -1) + 1
        if count == INCARNATIONS_A_START:  # the next start of the run has the ones above
            raise RunError(
                f"rollout worker {index} was started {count} times, expected fewer in one start of a run: no number is left by which its "
                "rows could be told apart, so the run halts; it can be resumed"
            )
        incarnation = self.spec.start * INCARNATIONS_A_START + count
        actor = make_actor(WorkerActor, **self._options).remote(
            self.spec,
            index,
            incarnation,
            random_steps_left(self.config, self.aggregator.env_steps),
        )
        self._members[index] = Member(
            actor=actor,
            run=actor.run.remote(self._shards[index % len(self._shards)], self._store),
            incarnation=incarnation,
            up=actor.place.remote(),
            asked=time.monotonic(),
            failures=failures,
            first_failure=first_failure,
        )
        self.aggregator.workers_started += count == 0

    def look_at(self, refs: list[Any]) -> None:
        """Takes references of ``runs`` that are ready: those workers have their rows, or failed and are replaced, all together.

        What takes longer than SLICE_S is left to the next call: the rest is ready then, too.
        """
        by, failed = time.monotonic() + SLICE_S, dict[int, Failure]()
        slots = {member.run: index for index, member in self._members.items()}
        for ref in refs:
            if (index := slots.get(ref)) is None:  # it was retired meanwhile
                continue
            member = self._members[index]
            try:
                totals = ray.get(ref)
            except (RayTaskError, *DIED) as error:
                raised = isinstance(error, RayTaskError)
                why = cause(error) if raised else _died(member, error)
                failed[index] = _failure(member, why, "raised" if raised else "died")
            else:
                member.finished = True
                self.aggregator.end_writer(index, member.incarnation, totals, STOPPED)
            if time.monotonic() > by:
                break
        if failed:
            self._fail(failed)  # counts, too
        else:
            self._count()

    def observe_reports(self, reports: list[Any], silent_s: dict[int, float]) -> None:
        """Takes what a shard tells of its writers: their reports, and for how long each has been silent."""
        for report in reports:
            member = self._members.get(report.worker)
            if member is not None and report.incarnation == member.incarnation:
                member.rows += report.stats.get("recorded_rows", 0)
                member.rss_bytes = report.stats.get("rss_bytes", member.rss_bytes)
                member.failures, member.first_failure = 0, ""
        for worker, seconds in silent_s.items():
            self._last_report[worker] = max(self._last_report.get(worker, 0.0), time.monotonic() - seconds)

    def excuse(self, shard: int | None = None) -> None:
        """The workers of ``shard`` (None: all) waited for a part that did not answer: their silence so far is not their fault."""
        for index in self._members:
            if shard is None or index % len(self._shards) == shard:
                self._last_report[index] = time.monotonic()

    def note(self, full: set[int], silent: set[int]) -> None:
        """Takes which shards have their rows, so that their workers are not needed any more, and which do not answer now."""
        self._full, self._silent = set(full), set(silent)

    def on(self, node: str) -> list[str]:
        """Those on a node, for people."""
        return [f"worker {index}" for index, member in sorted(self._members.items()) if member.node == node]

    def go_on(self) -> None:
        """Replaces workers that have ended, when it is time for it; for SLICE_S, then the others wait for the next call."""
        self._leaving.go_on()
        leaving = {id(member) for member in self._leaving.members}
        down = [
            (index, member, member.down)
            for index, member in self._members.items()
            if member.down and not member.finished and id(member) not in leaving
        ]
        by = time.monotonic() + SLICE_S
        for index, member, failure in down:
            self._replace(index, member, failure)
            if time.monotonic() > by:
                break
        if down:  # once, however many: counting looks at every worker
            self._count()

    def watch(self) -> None:
        """Replaces workers that hang: their shard got nothing from them for too long, and they made no step meanwhile, or do not answer."""
        self._count()
        limit, hung = self.config.worker.step_timeout_s, dict[int, Failure]()
        now = time.monotonic()
        for index, member in list(self._members.items()):
            if member.finished or member.down or not self._is_needed(index) or not self._is_up(index, member):
                continue
            if index % len(self._shards) in self._silent:
                continue
            grace = self.config.ray.start_timeout_s if not member.rows else 0.0
            silent = now - max(member.began + grace, self._last_report.get(index, 0.0), member.got_on)
            if silent <= limit - ASK_S:
                member.asked_idle = None  # an answer that comes now is of another silence
            elif seen := self._seen_to_hang(member, silent, limit):
                why = f"worker {index} of {self.config.env} {seen} (worker.step_timeout_s {limit:g})"
                hung[index] = _failure(member, why, "hung")
        if hung:
            self._fail(hung)

    def _seen_to_hang(self, member: Member, silent_s: float, limit_s: float) -> str:
        """What says that a worker hangs of which nothing has been heard for ``silent_s``; "" while it makes steps or plans, or may yet say
        that it does: it is asked every time, and may take ANSWER_S, or ``limit_s`` if that is less."""
        unknown = f"made no step that is known for {silent_s:.0f} s"
        if member.asked_idle is None:
            member.asked_idle, member.asked_at = member.actor.idle_s.remote(), time.monotonic()
        if not ray.wait([member.asked_idle], timeout=0)[0]:
            late_s = time.monotonic() - member.asked_at
            hangs = silent_s > limit_s and late_s >= min(ANSWER_S, limit_s)
            return f"{unknown} and has not answered for {late_s:.0f} s" if hangs else ""
        answer, member.asked_idle = member.asked_idle, None
        try:
            idle_s: float = ray.get(answer)
        except RayError as error:
            return f"{unknown} and cannot be asked: {root(error)}" if silent_s > limit_s else ""
        member.got_on = member.asked_at - idle_s
        if min(idle_s, silent_s) > limit_s:  # else it may have waited for another part
            return f"says that it has made no step for {idle_s:.0f} s"
        member.asked_idle, member.asked_at = member.actor.idle_s.remote(), time.monotonic()
        return ""

    def scale(self, workers: int) -> str:
        """Starts or ends workers while the others go on; says what was done. Those that go have RETIRE_S, and are not waited for."""
        least = self.config.replay.shards
        if not least <= workers <= MOST_WORKERS:
            raise UsageError(
                f"cannot scale to {workers} workers, expected {least} (one for each replay shard) to {MOST_WORKERS}; nothing was changed"
            )
        active = sorted(index for index, member in self._members.items() if not member.finished)
        retired = {index: self._members.pop(index) for index in active[workers:]}
        self._retire(retired)
        free = (index for index in range(MOST_WORKERS) if index not in active)
        for _ in range(workers - len(active)):
            self._start(next(free))
        self._count()
        if uneven := uneven_shards(workers, least):
            self.event(uneven)
        return f"rollout workers: {len(active)} -> {workers}"

    def in_words(self) -> str:
        """How many workers run and what the others wait for: "8 run, 12 wait for CPUs"."""
        self._count()
        running, pending = self.aggregator.workers, self.aggregator.workers_pending
        if not pending:
            return f"{running} run"
        with contextlib.suppress(RayError):
            seen = self._resources.result(WORDS_S)
            self._free_cpus = self._free_cpus if seen is None else seen
        if self._free_cpus is not None and self._free_cpus < self._cpus:
            return f"{running} run, {pending} wait for CPUs"
        return f"{running} run, {pending} start"

    def settle(self) -> None:
        """Ends every worker in order, and waits until all are gone."""
        self._retire({index: member for index, member in self._members.items() if not member.finished})
        self._leaving.settle()
        self._count()

    def _fail(self, failed: dict[int, Failure]) -> None:
        """Takes note of workers that have ended or hang, and ends them; ``go_on`` replaces them."""
        members = {index: self._members[index] for index in failed}
        alive = {index: member for index, member in members.items() if failed[index].reason != "died"}
        self._end(members, WORKER_LOST, ask=alive)
        for index, member in members.items():
            member.down = failed[index]
            member.first_failure = member.first_failure or failed[index].why
        self.go_on()

    def _replace(self, index: int, member: Member, down: Failure) -> None:
        """A new incarnation in the slot when it is time, counted by reason; the end of the run when the budget is spent or nothing
        comes of it. A worker that was lost with its node costs nothing."""
        if not self._is_needed(index):
            member.finished = True
            self.event(f"worker {index} failed and is not replaced, as its shard has all its rows: {root(down.why)}")
            return
        verdict = self._nodes.verdict(down, self.config.ray.start_timeout_s)
        if not verdict:
            return
        by_itself = verdict != "lost"
        failures = member.failures + by_itself
        if by_itself:
            if failures >= SAME_FAILURE:
                raise RunError(
                    f"rollout worker {index} failed {failures} times without bringing rows in between, so the run halts; it can be "
                    f"resumed. The first failure:\n{member.first_failure}"
                )
            if self._budget.left and time.monotonic() < down.at + self._budget.delay_s(index):
                return
            if not self._budget.spend(index):
                raise RunError(
                    f"rollout workers were restarted {self._budget.an_hour} times (worker.restart_budget) within an hour and worker {index} "
                    f"failed again, so the run halts; it can be resumed. The first failure of this worker:\n{member.first_failure}"
                )
            where = f" (was on {self._nodes.name(member.node)})" if member.node else ""
            self.event(f"worker {index} restarted{where}: {root(down.why)}")
        reason = down.reason if by_itself else "node_lost"
        self.aggregator.count_restart("worker", reason, self._nodes.address(member.node))
        self._start(index, failures, member.first_failure)

    def _is_needed(self, index: int) -> bool:
        """Whether a worker's shard still takes rows."""
        return index % len(self._shards) not in self._full

    def _is_up(self, index: int, member: Member) -> bool:
        """Whether a worker has its place on the cluster. One that waits is reported, not replaced; if all wait, the run halts."""
        waited, limit = time.monotonic() - member.asked, self.config.ray.start_timeout_s
        if member.began or waited < limit:
            return bool(member.began)
        if not any(other.began for other in self._members.values()):
            raise RunError(no_place(limit, "a rollout worker to start"))
        if not member.late:
            member.late = True
            self.event(f"worker {index} is still to come: {no_place(limit, 'it to start')}")
        return False

    def _retire(self, members: dict[int, Member]) -> None:
        """Asks workers to end in order."""
        for member in members.values():
            member.finished = True
        self._leaving.retire({index: member for index, member in members.items() if member.down is None})

    def _end(self, members: dict[int, Member], reason: str, ask: dict[int, Member]) -> None:
        self._leaving.end(members, reason, ask)

    def _count(self) -> None:
        """Sees which workers are up by now, and counts them by state."""
        living = {index: member for index, member in self._members.items() if not member.finished}
        starting = {member.up: member for member in living.values() if not member.began and member.down is None}
        for ref in ray.wait(list(starting), num_returns=len(starting), timeout=0)[0] if starting else ():
            starting[ref].began = time.monotonic()
            with contextlib.suppress(RayError):  # its run() tells
                starting[ref].node = ray.get(ref)
        self.aggregator.worker_nodes = {
            index: self._nodes.address(member.node)
            for index, member in living.items()
            if member.node and member.down is None
        }
        needed = [member for index, member in living.items() if self._is_needed(index)]
        self.aggregator.workers = sum(member.began > 0 and member.down is None for member in living.values())
        self.aggregator.workers_wanted = len(needed)
        self.aggregator.workers_pending = sum(not member.began or member.down is not None for member in needed)
        self.aggregator.budget_left["worker"] = self._budget.left


def _failure(member: Member, why: str, reason: RestartReason) -> Failure:
    return Failure(why=why, reason=reason, nodes=frozenset((member.node,)))


def _died(member: Member, error: Exception) -> str:
    """Why a worker's process is gone, as far as anybody knows, and what memory it took."""
    took = f"; it took {member.rss_bytes / 2**20:,.0f} MiB when it last said so" if member.rss_bytes else ""
    return ended(error) + took * without_a_word(error)
