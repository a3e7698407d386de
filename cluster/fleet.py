"""The graph on Ray: every part an actor, watched and restarted within budgets.

Who restarts whom: Ray itself restarts shards (their constructor loads the newest snapshot) and the store; this class
restarts workers (a new incarnation each time) and learners (all ranks together, from the newest checkpoint, in a new epoch).
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from algorithms.weights import Weights
from cluster.actors import EvaluatorActor, ShardActor, StoreActor, WorkerActor
from cluster.connection import connect, disconnect
from cluster.errors import RunError, UsageError
from cluster.graph import EPOCHS_A_START, INCARNATIONS_A_START, Plan, random_steps_left
from cluster.learner_actor import LearnerActor
from cluster.tally import Tally
from replay.limiter import dealt
from rollout_workers.evaluator import Evaluation

STATS_S = 1.0
EVALUATIONS = 4  # that may wait for the evaluator; beyond, the oldest is given up and counted
MOST_WORKERS = 4_096
SAME_FAILURE = 3  # failures of one part without progress between them that end the run


@dataclasses.dataclass
class Member:
    """One rollout worker slot."""

    actor: Any
    run: Any  # reference of its run() call
    incarnation: int
    up: Any  # reference that is there once the actor's process has built its environments
    asked: float  # when it was asked for, monotonic clock
    began: float = 0.0  # when it was seen to be up; 0: it waits for a place on the cluster
    late: bool = False  # that it waits for long has been told
    failures: int = 0  # since it last brought rows
    first_failure: str = ""
    rows: float = 0.0
    finished: bool = False


class RayFleet:
    """All parts as Ray actors. See ``session.Fleet`` for the face that it shares with InlineFleet."""

    def __init__(self, plan: Plan, tally: Tally, event: Callable[[str], None]) -> None:
        self.plan, self.tally, self.event = plan, tally, event
        self.config = plan.config
        self.timeout_s = self.config.ray.call_timeout_s
        self.done = False
        self._own_cluster = False
        self._members: dict[int, Member] = {}
        self._incarnations: dict[int, int] = {}
        self._learners: list[Any] = []
        self._learner_runs: list[Any] = []
        self._learner_starts = 0
        self._learner_failures: list[str] = []
        self._learner_progress = -1
        self._astray = False  # the shards' counts of samples are to be aligned with the learners'
        self._closing = False
        self._finished_learning = False
        self._next_stats = self._next_save = 0.0
        self._saves: list[Any] = []
        self._hold: int | None = None  # rows of one shard at which the driver holds the run
        self._shard_started: dict[int, float] = {}
        self._shard_seen: dict[int, float] = {}
        self._queue: deque[tuple[Any, int]] = deque()
        self._evaluation: Any = None
        self._evaluation_due = 0.0
        self._evaluator_failures = 0
        self._evaluations: list[Evaluation] = []

    # --- starting -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Joins or starts the cluster, starts every actor, begins to learn and to roll out."""
        config = self.config
        cpus = (
            config.worker.cpus * (config.worker.workers + 1)
            + config.learner.cpus * config.learner.learners
            + config.ray.shard_cpus * config.replay.shards
        )
        self._own_cluster = connect(_address(config), cpus=cpus, object_store_bytes=config.ray.object_store_bytes)
        quota = math.ceil(config.steps / config.replay.shards)
        shard_options = {"num_cpus": config.ray.shard_cpus, "max_restarts": config.ray.shard_restart_budget}
        self._shards = [
            _actor(ShardActor, **shard_options).remote(self.plan, index, quota) for index in range(config.replay.shards)
        ]
        self._store = _actor(StoreActor, num_cpus=0, max_restarts=-1).remote()
        self._start_evaluator()
        self._await([shard.stats.remote() for shard in self._shards], "replay shards to start")
        for index, shard in enumerate(self._shards):
            for warning in self._await(shard.restored.remote(), f"shard {index}'s snapshot"):
                self.event(f"shard {index}: snapshot passed over: {warning}")
        self._start_learners()
        self._take_stats()
        self.tally.settle_restart()
        for index in range(config.worker.workers):
            self._start_worker(index)
        self._next_save = time.monotonic() + config.replay.snapshot_s

    def _start_worker(self, index: int, failures: int = 0, first_failure: str = "") -> None:
        config = self.config
        count = self._incarnations[index] = self._incarnations.get(index, -1) + 1
        incarnation = self.plan.start * INCARNATIONS_A_START + count
        cpus = 0.0 if self._own_cluster else config.worker.cpus  # nobody else to share with: scaling has no bound there
        actor = _actor(WorkerActor, num_cpus=cpus, max_concurrency=2).remote(
            self.plan, index, incarnation, self._shards, self._store, random_steps_left(config, self.tally.env_steps)
        )
        self._members[index] = Member(
            actor=actor,
            run=actor.run.remote(),
            incarnation=incarnation,
            up=actor.__ray_ready__.remote(),
            asked=time.monotonic(),
            failures=failures,
            first_failure=first_failure,
        )
        self.tally.workers_started += count == 0
        self.tally.workers = sum(not member.finished for member in self._members.values())

    def _start_learners(self) -> None:
        """All ranks, from the newest checkpoint; tells the shards how many updates the learners really hold."""
        config = self.config.learner
        self._learner_starts += 1
        epoch = self.plan.start * EPOCHS_A_START + self._learner_starts - 1
        options = {"num_cpus": config.cpus, "num_gpus": config.gpus, "max_concurrency": 4}
        self._learners = [
            _actor(LearnerActor, **options).remote(self.plan, rank, epoch, self._shards, self._store)
            for rank in range(config.learners)
        ]
        meeting = self._await(self._learners[0].meeting.remote(), "the first learner to start")
        begun = self._await([learner.begin.remote(meeting) for learner in self._learners], "learners to start")
        for warning in begun[0].warnings:
            self.event(f"checkpoint passed over: {warning}")
        self.tally.begin_learning(begun[0].updates, begun[0].epoch, begun[0].version)
        self._astray = True
        self._align()
        self._learner_runs = [learner.run.remote() for learner in self._learners]

    def _align(self) -> None:
        """Tells the shards what the learners really had from them, after one of either was restarted: the replay ratio counts
        rows that are held and updates that were kept. A part that is dead now is asked again at the next look."""
        try:
            fetched = ray.get([learner.fetched_rows.remote() for learner in self._learners], timeout=self.timeout_s)
            counts = ray.get([shard.counts.remote() for shard in self._shards], timeout=self.timeout_s)
        except (RayActorError, GetTimeoutError):
            return
        for shard, rows in zip(self._shards, dealt(sum(fetched), *zip(*counts))):
            shard.align.remote(rows)
        self._astray = False

    def _start_evaluator(self) -> None:
        self._evaluator = _actor(EvaluatorActor, num_cpus=0).remote(self.plan)

    # --- going on -------------------------------------------------------------------------------------------------

    def advance(self, seconds: float, env_steps: int = 0) -> None:
        """Waits for about ``seconds``, or less when something happens; then looks after every part.

        Actors do not stop at ``env_steps``: an evaluation is of the policy that is newest when it is heard of.
        """
        waiting = [member.run for member in self._members.values() if not member.finished]
        waiting += [*self._learner_runs, *([self._evaluation] if self._evaluation is not None else [])]
        if waiting:
            ready, _ = ray.wait(waiting, num_returns=1, timeout=seconds)
        else:
            ready = []
            time.sleep(min(seconds, 0.05))
        for ref in ready:
            self._look_at(ref)
        now = time.monotonic()
        if now >= self._next_stats or self._hold is not None:
            self._next_stats = now + STATS_S
            self._take_stats()
            self._watch_workers()
            self._close_when_full()
        if now >= self._next_save:
            self._next_save = now + self.config.replay.snapshot_s
            self._begin_save()
        self._check_saves()
        self._next_evaluation()
        self.done = self._finished_learning

    def _look_at(self, ref: Any) -> None:
        for index, member in self._members.items():
            if member.run == ref:
                self._worker_returned(index, member)
                return
        if ref in self._learner_runs:
            self._learner_returned(ref)
        elif ref == self._evaluation:
            self._evaluation_returned()

    def _worker_returned(self, index: int, member: Member) -> None:
        try:
            ray.get(member.run, timeout=self.timeout_s)
        except (RayTaskError, RayActorError) as error:
            self._replace_worker(index, member, _cause(error))
        else:
            member.finished = True
            self.tally.workers = sum(not other.finished for other in self._members.values())

    def _replace_worker(self, index: int, member: Member, why: str) -> None:
        """A new incarnation in the slot, or the end of the run when the budget is spent or nothing comes of it."""
        budget = self.config.worker.restart_budget
        member.first_failure = member.first_failure or why
        failures = member.failures + 1
        ray.kill(member.actor, no_restart=True)
        if failures >= SAME_FAILURE:
            raise RunError(
                f"rollout worker {index} failed {failures} times without bringing rows in between, so the run halts; it can be "
                f"resumed. The first failure:\n{member.first_failure}"
            )
        if self.tally.workers_restarted >= budget:
            raise RunError(
                f"rollout workers were restarted {budget} times (worker.restart_budget) and worker {index} failed again, so the run "
                f"halts; it can be resumed. The first failure of this worker:\n{member.first_failure}"
            )
        self.tally.workers_restarted += 1
        self.event(f"worker {index} restarted: {why.strip().splitlines()[-1]}")
        self._start_worker(index, failures, member.first_failure)

    def _learner_returned(self, ref: Any) -> None:
        try:
            ray.get(ref, timeout=self.timeout_s)
        except (RayTaskError, RayActorError) as error:
            self._replace_learners(_cause(error))
        else:
            self._learner_runs.remove(ref)
            self._finished_learning = not self._learner_runs

    def _replace_learners(self, why: str) -> None:
        budget = self.config.learner.restart_budget
        if self.tally.updates > self._learner_progress:
            self._learner_failures.clear()
        self._learner_progress = self.tally.updates
        self._learner_failures.append(why)
        for learner in self._learners:
            ray.kill(learner, no_restart=True)
        self._learner_runs = []
        if len(self._learner_failures) >= SAME_FAILURE or self._learner_starts > budget or "Halt" in why:
            raise RunError(
                f"the learner failed and is not restarted (starts: {self._learner_starts}, learner.restart_budget {budget}), so the run "
                f"halts; it can be resumed. The first failure:\n{self._learner_failures[0]}"
            )
        self.event(f"learner restarted from the newest checkpoint: {why.strip().splitlines()[-1]}")
        self._start_learners()

    def _take_stats(self) -> None:
        """Counters of shards and learners. A part that does not answer now is asked again; a dead one is found by its run."""
        refs = {index: shard.stats.remote() for index, shard in enumerate(self._shards)}
        for index, ref in refs.items():
            try:
                told = ray.get(ref, timeout=self.timeout_s)
            except RayActorError as error:
                self._shard_silent(index, error)
                continue
            except GetTimeoutError:
                raise RunError(
                    f"replay shard {index} did not answer within {self.timeout_s:.0f} s; the run halts and can be resumed"
                ) from None
            self._shard_told(index, told)
        for learner in self._learners[:1]:
            try:
                for report in ray.get(learner.reports.remote(), timeout=self.timeout_s):
                    self.tally.add_learner(report)
            except (RayActorError, GetTimeoutError):
                pass  # its run() reference tells of it
        if self._astray:
            self._align()

    def _shard_silent(self, index: int, error: RayActorError) -> None:
        """A shard that Ray is restarting is given its time; one that it gave up ends the run."""
        since = self._shard_seen.setdefault(-index - 1, time.monotonic())
        if time.monotonic() - since > self.timeout_s:
            raise RunError(
                f"replay shard {index} is gone for {self.timeout_s:.0f} s (ray.shard_restart_budget "
                f"{self.config.ray.shard_restart_budget}); the run halts and can be resumed from its snapshot.\n{_cause(error)}"
            )

    def _shard_told(self, index: int, told: dict[str, Any]) -> None:
        self._shard_seen.pop(-index - 1, None)
        if self._shard_started.setdefault(index, told["started"]) != told["started"]:
            self._shard_started[index] = told["started"]
            self.event(f"replay shard {index} was restarted by Ray, from its newest snapshot")
            self._astray = True
            if self._hold is not None:
                self._shards[index].hold_at.remote(self._hold)
        for report in told["workers"]:
            member = self._members.get(report.worker)
            if member is not None and report.incarnation == member.incarnation:
                member.rows += report.stats.get("recorded_rows", 0)
                member.failures, member.first_failure = 0, ""
        for worker, seconds in told["silent_s"].items():
            self._shard_seen[worker] = max(self._shard_seen.get(worker, 0.0), time.monotonic() - seconds)
        self.tally.add_shard(told["stats"], told["workers"])

    def _watch_workers(self) -> None:
        """Replaces workers that were silent for too long: an environment whose step hangs."""
        limit = self.config.worker.step_timeout_s
        now = time.monotonic()
        for index, member in list(self._members.items()):
            if member.finished or not self._is_up(index, member):
                continue
            grace = self.config.ray.start_timeout_s if not member.rows else 0.0
            heard = max(member.began + grace, self._shard_seen.get(index, 0.0))
            if now - heard > limit:
                self._replace_worker(
                    index,
                    member,
                    f"worker {index} of {self.config.env} was silent for {now - heard:.0f} s (worker.step_timeout_s {limit:g}): its step hangs",
                )

    def _is_up(self, index: int, member: Member) -> bool:
        """Whether a worker has its place on the cluster. One that waits is told of, not replaced; if all wait, the run halts."""
        if not member.began and ray.wait([member.up], timeout=0)[0]:
            member.began = time.monotonic()
        waited, limit = time.monotonic() - member.asked, self.config.ray.start_timeout_s
        if member.began or waited < limit:
            return bool(member.began)
        if not any(other.began for other in self._members.values()):
            raise RunError(_no_place(limit, "a rollout worker to start"))
        if not member.late:
            member.late = True
            self.event(f"worker {index} is still to come: {_no_place(limit, 'it to start')}")
        return False

    def _close_when_full(self) -> None:
        """Once every worker has returned because the shards have their rows, learners may use up what is left."""
        if not self._closing and self._members and all(member.finished for member in self._members.values()):
            self._closing = True
        if self._closing:
            for shard in self._shards:
                shard.close.remote()

    # --- saving, scaling, evaluating ------------------------------------------------------------------------------

    def _begin_save(self) -> None:
        if not self._saves:
            self._saves = [shard.save.remote() for shard in self._shards]

    def _check_saves(self) -> list[str]:
        """Looks at the snapshots that are being written; returns what went wrong with those that have ended."""
        problems = []
        ready, self._saves = ray.wait(self._saves, num_returns=len(self._saves), timeout=0) if self._saves else ([], [])
        for ref in ready:
            try:
                ray.get(ref)
            except (RayTaskError, RayActorError) as error:
                problems.append(f"a snapshot failed, the older one stays: {_cause(error).strip().splitlines()[-1]}")
        for problem in problems:
            self.event(problem)
        return problems

    def save(self) -> list[str]:
        """Snapshots of every shard and a checkpoint of the learner, as they are now; returns what could not be written."""
        self._end_saves()
        self._begin_save()
        problems = self._end_saves()
        self._next_save = time.monotonic() + self.config.replay.snapshot_s
        try:
            ray.get(self._learners[0].save.remote(), timeout=self.timeout_s)
        except (RayTaskError, RayActorError, GetTimeoutError) as error:
            problems.append(f"no checkpoint, the older one stays: {_cause(error).strip().splitlines()[-1]}")
            self.event(problems[-1])
        return problems

    def _end_saves(self) -> list[str]:
        """Waits for the snapshots that are being written; returns what went wrong."""
        problems, deadline = [], time.monotonic() + self.timeout_s
        while self._saves and time.monotonic() < deadline:
            ray.wait(self._saves, num_returns=len(self._saves), timeout=0.5)
            problems += self._check_saves()
        if self._saves:
            problems.append(
                f"{len(self._saves)} snapshots were not written within {self.timeout_s:.0f} s; the older ones stay"
            )
        return problems

    def hold_at(self, env_steps: int) -> None:
        """Stores no rows beyond ``env_steps`` until called with a higher number: workers wait, the learner catches up."""
        self._hold = math.ceil(env_steps / len(self._shards))
        self._await([shard.hold_at.remote(self._hold) for shard in self._shards], "replay shards to take a new bound")

    def scale(self, workers: int) -> str:
        """Starts or ends rollout workers while the others go on."""
        least = self.config.replay.shards
        if not least <= workers <= MOST_WORKERS:
            raise UsageError(
                f"cannot scale to {workers} workers, expected {least} (one for each replay shard) to {MOST_WORKERS}; nothing was changed"
            )
        if self._closing:
            raise UsageError("the run has all its env steps; nothing was changed")
        active = sorted(index for index, member in self._members.items() if not member.finished)
        for index in active[workers:]:
            self._retire(index)
        free = (index for index in range(MOST_WORKERS) if index not in active)
        for _ in range(workers - len(active)):
            index = next(free)
            self._members.pop(index, None)
            self._start_worker(index)
        self.tally.workers = sum(not member.finished for member in self._members.values())
        return f"rollout workers: {len(active)} -> {workers}"

    def _retire(self, index: int) -> None:
        member = self._members.pop(index)
        try:
            if not ray.wait([member.up], timeout=0)[0]:  # it would not hear of it before it has a place
                return
            ray.get(member.actor.stop.remote(), timeout=self.timeout_s)
            ray.get(member.run, timeout=self.timeout_s)
        except (RayTaskError, RayActorError, GetTimeoutError) as error:
            self.event(f"worker {index} did not end in order: {_cause(error).strip().splitlines()[-1]}")
        finally:
            ray.kill(member.actor, no_restart=True)

    def weights(self) -> Weights | None:
        refs = ray.get(self._store.fetch.remote(), timeout=self.timeout_s)
        return ray.get(refs[0], timeout=self.timeout_s) if refs else None

    def request_evaluation(self, episodes: int) -> None:
        """Queues an evaluation of the newest policy; training does not wait for it."""
        refs = ray.get(self._store.fetch.remote(), timeout=self.timeout_s)
        if not refs:
            return
        if len(self._queue) == EVALUATIONS:
            self._queue.popleft()
            self.event("an evaluation was given up: the evaluator is slower than evaluation.every_steps asks")
        self._queue.append((refs[0], episodes))
        self._next_evaluation()

    def _next_evaluation(self) -> None:
        now = time.monotonic()
        if self._evaluation is not None and now > self._evaluation_due:
            self.event(f"an evaluation took longer than {self.config.evaluation.timeout_s:.0f} s and was given up")
            self._restart_evaluator()
        if self._evaluation is None and self._queue:
            weights, episodes = self._queue.popleft()
            self._evaluation = self._evaluator.evaluate.remote(weights, episodes)
            self._evaluation_due = now + self.config.evaluation.timeout_s + self.config.ray.start_timeout_s

    def _evaluation_returned(self) -> None:
        try:
            self._evaluations.append(ray.get(self._evaluation, timeout=self.timeout_s))
            self._evaluation = None
        except (RayTaskError, RayActorError) as error:
            self._evaluator_failures += 1
            if self._evaluator_failures >= SAME_FAILURE:
                raise RunError(
                    f"the evaluator failed {self._evaluator_failures} times, so the run halts:\n{_cause(error)}"
                ) from None
            self.event(f"an evaluation failed: {_cause(error).strip().splitlines()[-1]}")
            self._restart_evaluator()

    def _restart_evaluator(self) -> None:
        ray.kill(self._evaluator, no_restart=True)
        self._evaluation = None
        self._start_evaluator()

    def take_evaluations(self) -> list[Evaluation]:
        taken, self._evaluations = self._evaluations, []
        return taken

    # --- ending ---------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Lets workers and learners end in order, then evaluations that are on their way."""
        for index in [index for index, member in self._members.items() if not member.finished]:
            self._members[index].actor.stop.remote()
        for learner in self._learners:
            learner.stop.remote()
        deadline = time.monotonic() + self.timeout_s
        while self._learner_runs and time.monotonic() < deadline:
            self.advance(0.25)
        while (self._queue or self._evaluation is not None) and time.monotonic() < self._evaluation_due + 1:
            self.advance(0.25)
        self._take_stats()

    def close(self) -> None:
        """Ends every actor of this run; the cluster too, if the run started it."""
        if not ray.is_initialized():
            return
        actors = [member.actor for member in self._members.values()] + self._learners
        actors += [
            *getattr(self, "_shards", []),
            *filter(None, [getattr(self, "_store", None), getattr(self, "_evaluator", None)]),
        ]
        for actor in actors:
            ray.kill(actor, no_restart=True)
        disconnect(self._own_cluster)

    def _await(self, refs: Any, what: str) -> Any:
        limit = self.config.ray.start_timeout_s
        try:
            return ray.get(refs, timeout=limit)
        except GetTimeoutError:
            raise RunError(_no_place(limit, what)) from None
        except (RayTaskError, RayActorError) as error:
            raise RunError(f"failed while waiting for {what}:\n{_cause(error)}") from None


def _actor(kind: Any, **options: Any) -> Any:
    """A Ray actor class. Scheduled outside any placement group: inside a Tune trial's it would never start."""
    return ray.remote(kind).options(scheduling_strategy="DEFAULT", **options)


def _no_place(limit_s: float, what: str) -> str:
    return (
        f"waited {limit_s:.0f} s for {what}, in vain; the cluster has {ray.available_resources()} free of "
        f"{ray.cluster_resources()}; give it more CPUs, ask for fewer (worker.cpus, learner.cpus), or raise ray.start_timeout_s"
    )


def _address(config: Any) -> str | None:
    return config.ray.address or None


def _cause(error: BaseException) -> str:
    """The traceback of what really failed, root cause last: the text of a RayTaskError is the remote one."""
    return str(error).strip() or type(error).__name__
