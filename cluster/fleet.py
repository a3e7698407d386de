"""The graph on Ray: every part an actor, watched and restarted within budgets.

Who restarts whom: Ray itself restarts shards (``shard_group.ShardGroup``) and the store; ``worker_group.WorkerGroup``
replaces workers (a new incarnation each time), ``learner_group.LearnerGroup`` learners (all ranks together, from the newest
checkpoint, in a new generation), ``evaluations.Evaluations`` the evaluator.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayTaskError

from algorithms.weights import Weights
from cluster.checks import memory_problems
from cluster.connection import cluster_address, connect, disconnect
from cluster.data_kind import kind_of
from cluster.doctor import check_cluster
from cluster.errors import HeadGone, RunError, UsageError
from cluster.evaluations import Evaluations
from cluster.graph import RunSpec
from cluster.head_watch import HeadWatch
from cluster.learner_group import LearnerGroup
from cluster.metrics.aggregator import MetricsAggregator
from cluster.nodes import Nodes
from cluster.own_code import resume_words
from cluster.placement import Reservation
from cluster.remote import ANSWER_WAIT_S, DIED, PAUSE_S, ask_all, root
from cluster.saving import Saved, SaveWatch, look_at_disk
from cluster.shard_group import ShardGroup
from cluster.store_watch import StoreWatch
from cluster.worker_group import WorkerGroup
from replay.limiter import apportioned
from rollout_workers.evaluator import Evaluation

STATS_S = 1.0
HALT_S = 15.0  # for a run that ends with an error to save what it has
SEAL_S = 2.0  # for shards to answer at the end of a run
LEAST_S = 1.0  # for a step of the end, however late it is


class RayFleet:
    """All parts as Ray actors. See ``session.Fleet`` for the face that it shares with InlineFleet."""

    def __init__(self, spec: RunSpec, aggregator: MetricsAggregator, event: Callable[[str], None]) -> None:
        self.spec, self.aggregator, self.event, self.config = spec, aggregator, event, spec.config
        self.timeout_s = self.config.ray.call_timeout_s
        self.done = self._closing = self._own_cluster = False
        self.watch = SaveWatch(spec, aggregator, event)
        self.meanwhile: Callable[[], None] = lambda: None
        self._actors: list[Callable[[], list[Any]]] = []  # of the parts that were started
        self._reservation: Reservation | None = None
        self._next_stats = self._next_save = 0.0
        self._counts: tuple[list[Any], list[Any]] | None = None  # answers to come: what learners had, what shards gave
        self._outcomes: tuple[Any, Any] | None = None  # the learner asked for its checkpoints, and its answer to come

    def start(self) -> None:
        """Joins or starts the cluster, starts every actor, begins to learn and to roll out."""
        config, replay = self.config, self.config.replay
        cpus = (
            config.worker.cpus * (kind_of(config).workers(config) + 1)
            + config.learner.cpus * config.learner.learners
            + config.ray.shard_cpus * replay.shards
        )
        address = cluster_address(config.ray.address)
        self.event(f"joining Ray at {address}" if address else "starting Ray")
        self._own_cluster = connect(
            config.ray.address or None,
            cpus=cpus,
            object_store_bytes=config.ray.object_store_bytes,
            start_timeout_s=config.ray.start_timeout_s,
            event=self.event,
        )
        check_cluster(self.spec.run_dir, self.event)
        self._head = HeadWatch(self._own_cluster, resume_words(self.spec.run_dir, config))
        self._nodes = Nodes()
        self._reservation = Reservation(self.spec, self._own_cluster)
        self._reservation.wait(config.ray.start_timeout_s, self._head.check)
        common, quota = (self.spec, self.aggregator, self.event, self._nodes), kind_of(config).row_quota(config)
        self._shards = ShardGroup(*common, self._reservation, quota)
        place = self._reservation.place("learner", 0)  # so a cut that spares the learner does not take the weights away
        self._store = StoreWatch(*common[1:], config.ray, place)
        self._actors.append(lambda: [*self._shards.actors, self._store.actor])
        self._evaluations = Evaluations(*common)
        self._actors.append(lambda: self._evaluations.actors)
        self._shards.wait(self._head.check)
        actors = self._shards.actors, self._store.actor
        self._learners = LearnerGroup(*common, self._reservation, *actors)
        self._actors.append(lambda: self._learners.actors)
        worker_cpus = 0.0 if self._own_cluster else config.worker.cpus  # nobody else there: scaling has no bound
        self._worker_group = WorkerGroup(*common, *actors, worker_cpus)
        self._actors.append(lambda: self._worker_group.actors)
        self._learners.begin(self._head.check)
        self._align()
        self._learners.run()
        self._take_stats(self.timeout_s)
        if self._shards.reported < replay.shards:
            raise RunError(
                f"of {replay.shards} replay shards {self._shards.reported} reported their counters within {self.timeout_s:.0f} s "
                "(ray.call_timeout_s), expected all of them: the run halts before its first step and can be resumed; look at the "
                "shards' logs, or raise ray.call_timeout_s"
            )
        self.aggregator.settle_restart()
        self._worker_group.begin(kind_of(config).workers(config))
        self._next_save = time.monotonic() + replay.snapshot_s

    def advance(self, seconds: float, until: int = 0) -> None:
        """Waits for about ``seconds``, or less when something happens; then looks after every part. A run that halts is saved first.

        Actors do not stop at ``until``: an evaluation is of the policy that is newest when the driver notices that it is due.
        """
        try:
            self._advance(seconds)
        except HeadGone:
            raise
        except RunError:
            self._save_before_the_halt()
            raise

    def _advance(self, seconds: float) -> None:
        waiting = [*self._worker_group.runs, *self._learners.runs, *self._evaluations.runs]
        if not waiting:
            time.sleep(min(seconds, 0.05))
        elif ray.wait(waiting, num_returns=1, timeout=seconds)[0]:  # many may end at once
            self._look_at(ray.wait(waiting, num_returns=len(waiting), timeout=0)[0])
        self._head.check()
        now = time.monotonic()
        self._say_lost_nodes()
        if now >= self._next_stats or self._shards.holding:
            self._next_stats = now + STATS_S
            self._take_stats()
            self._shards.watch()
            self._store.watch()
            self._worker_group.watch()
            self._close_when_full()
        self._worker_group.go_on()
        if self._learners.go_on():
            self._counts = None  # whatever was asked, others were asked
            self._align()
            self._learners.run()
        if now >= self._next_save:
            self._next_save = now + self.config.replay.snapshot_s
            self._shards.begin_save()
        self._shards.check_saves(self.watch)
        self._check_checkpoints()
        self._evaluations.go_on()
        self.done = self._learners.finished

    def weights(self) -> Weights | None:
        refs = ray.get(self._store.actor.fetch.remote(), timeout=self.timeout_s)
        return ray.get(refs[0], timeout=self.timeout_s) if refs else None

    def request_evaluation(self, episodes: int) -> None:
        """Queues an evaluation of the newest policy; training does not wait for it."""
        self._evaluations.request(self._store.actor.fetch.remote(), episodes)

    def take_evaluations(self) -> list[Evaluation]:
        return self._evaluations.take()

    def scale(self, workers: int) -> str:
        """Starts or ends rollout workers while the others go on."""
        if self._closing:
            raise UsageError("the run has all its env steps; nothing was changed")
        worker = dataclasses.replace(self.config.worker, workers=workers)
        spec = dataclasses.replace(self.spec, config=dataclasses.replace(self.config, worker=worker))
        if self._own_cluster and (problems := memory_problems(spec)):
            raise UsageError(
                f"cannot scale to {workers} workers: {problems[0].split('; ')[0]}; nothing was changed; ask for fewer"
            )
        return self._worker_group.scale(workers)

    def workers_in_words(self) -> str:
        return self._worker_group.in_words()

    def hold_at(self, env_steps: int) -> None:
        """Stores no rows beyond ``env_steps`` until called with a higher number: workers wait, the learner catches up."""
        self._shards.hold_at(math.ceil(env_steps / len(self._shards.actors)))

    def save(self, limit_s: float | None = None) -> Saved:
        """Snapshots of every shard, then a checkpoint of the learner, as they are now."""
        deadline = time.monotonic() + (2 * self.timeout_s if limit_s is None else limit_s)
        self._shards.end_saves(self.watch, deadline)  # of those that are of an earlier moment
        late = dict.fromkeys(self._shards.saving, "the one before it was not written in time")
        self._shards.begin_save()
        snapshots = self._shards.end_saves(self.watch, min(deadline, time.monotonic() + self.timeout_s)) | late
        self._next_save = time.monotonic() + self.config.replay.snapshot_s
        checkpoint = self._learners.save(max(LEAST_S, min(self.timeout_s, deadline - time.monotonic())))
        self.watch.checkpoint(checkpoint)
        return look_at_disk(self.spec, checkpoint.problem, snapshots)

    def finish(self, limit_s: float | None = None) -> Saved:
        """Ends the run in order: workers bring in what is on the way, shards take no more, learners end, everything is saved."""
        deadline = time.monotonic() + (4 * self.timeout_s if limit_s is None else limit_s)
        self._worker_group.settle()
        self._shards.seal(SEAL_S)
        self._learners.stop()
        learners_s = max(LEAST_S, min(self.timeout_s, (deadline - time.monotonic()) / 3))
        by = time.monotonic() + learners_s
        while self._learners.runs and time.monotonic() < by:
            ready, _ = ray.wait(self._learners.runs, num_returns=1, timeout=min(0.25, by - time.monotonic()))
            for ref in ready:
                self._learners.look_at(ref)
        saved = self.save(max(LEAST_S, deadline - time.monotonic()))
        asked_at = time.monotonic()
        for index, report in self._shards.last_reports(SEAL_S).items():
            self._observe_shard(index, report, asked_at)
        self._learners.report(SEAL_S)
        return saved

    def await_evaluations(self) -> None:
        """Waits for the evaluations that are on their way, each within its time."""
        while self._evaluations.pending:
            self.advance(0.25)
            self.meanwhile()

    def close(self) -> None:
        """Ends every actor of this run; the cluster too, if the run started it."""
        for actors in self._actors if ray.is_initialized() else ():
            for actor in actors():
                with contextlib.suppress(Exception):  # what is dead already must not keep the others alive
                    ray.kill(actor, no_restart=True)
        if self._reservation is not None and not self._own_cluster:
            self._reservation.release()
        disconnect(self._own_cluster)

    def _look_at(self, refs: list[Any]) -> None:
        others = {*self._learners.runs, *self._evaluations.runs}
        workers = [ref for ref in refs if ref not in others]
        for part in (self._learners, self._evaluations):
            for ref in refs:
                if ref in part.runs:
                    part.look_at(ref)
        if workers:
            self._take_stats()  # whether their shards are full now decides what their failure means
            self._worker_group.look_at(workers)

    def _align(self) -> None:
        """Tells the shards what the learners really had from them, after one of either was restarted: the replay ratio counts
        rows that are held and updates that were kept. Answers that are late are taken at the next look; a part that is dead is asked again."""
        learners, shards = self._learners.actors, self._shards.actors
        if self._counts is None:
            self._counts = [each.fetched_rows.remote() for each in learners], [each.counts.remote() for each in shards]
        refs = [*self._counts[0], *self._counts[1]]
        if len(ray.wait(refs, num_returns=len(refs), timeout=ANSWER_WAIT_S)[0]) < len(refs):
            return
        asked, self._counts = self._counts, None
        try:
            fetched, counts = (ray.get(answers) for answers in asked)
        except DIED:
            return
        for shard, rows in zip(shards, apportioned(sum(fetched), *zip(*counts))):
            shard.align.remote(rows)
        self._learners.astray = False

    def _take_stats(self, seconds: float = ANSWER_WAIT_S) -> None:
        """Takes the counters of shards and learners, in at most ``seconds``.

        Learners are asked last: what they have made then is no less than what the shards had given them, but for the blocks on
        their way. The answer of a part that is later is taken by a later call. A part that is silent for ray.call_timeout_s hangs: it is
        killed and restarted.
        """
        by = time.monotonic() + seconds
        ask_all([*self._shards.pulses, self._store.pulse], seconds)
        shards = range(len(self._shards.actors))
        silent = {index for index in shards if not self._take_shard_answer(index)}
        if not self._check_store():
            silent.update(shards)  # workers that fetch newer weights wait for it
        self._worker_group.note(self._shards.full, silent)
        if self._learners.silent_s > PAUSE_S:
            self._worker_group.excuse()  # workers without weights wait for them
        ask_all(self._learners.pulses, max(0.0, by - time.monotonic()))
        self._learners.watch()
        if self._learners.astray and self._learners.runs and not self._shards.any_lost:
            self._align()

    def _take_shard_answer(self, index: int) -> bool:
        """Takes a shard's counters and returns whether it answered. Its workers are not blamed for the time in which it did not."""
        report, late = self._shards.take(index)
        if report is None:
            return False
        self._observe_shard(index, report, self._shards.pulses[index].asked_at)
        if late:
            self._worker_group.excuse(index)
        return True

    def _observe_shard(self, index: int, report: dict[str, Any], asked_at: float) -> None:
        if self._shards.observe(index, report):
            self._learners.astray, self._counts = True, None
        self._worker_group.observe_reports(report["workers"], report["silent_s"])
        self.aggregator.add_shard(report["stats"], report["workers"], asked_at)
        self.aggregator.add_usage("shard", index, report["usage"])
        self.aggregator.add_waiting(index, report["waiting"])

    def _save_before_the_halt(self) -> None:
        """Ends and saves what still answers. Nothing that goes wrong here may hide why the run halts."""
        try:
            self.event(f"the run halts; {self.finish(HALT_S).words()}")
        except Exception as error:
            self.event(f"the run halts, and what it had since its last save is lost: {root(error)}")

    def _say_lost_nodes(self) -> None:
        """The end of a node is one event, with all parts of the run that were there; they are restarted without one of their own."""
        for node in self._nodes.look():
            parts = [*self._learners.on(node), *self._shards.on(node), *self._worker_group.on(node)]
            parts += ["the store of weights"] if self._store.on(node) else []
            parts += ["the evaluator"] if self._evaluations.on(node) else []
            if parts:
                self.event(
                    f"node {self._nodes.name(node)} is lost ({self._nodes.why_lost(node)}), and with it {', '.join(parts)}: restarted on "
                    "other nodes, which costs no budget"
                )

    def _check_store(self) -> bool:
        """Returns whether the store answered. One that was restarted is empty: the learner publishes its newest policy again."""
        if not self._store.answered():
            return False
        if self._store.restarted:
            self.event("the store of weights was restarted by Ray; it is given the newest policy again")
            self._learners.publish_again()
        if self._store.restarted or self._store.late:
            self._worker_group.excuse()
        return True

    def _close_when_full(self) -> None:
        """Once the shards have their rows, learners may use up what is left. (A worker may still wait for its place.)"""
        self._closing = (
            self._closing or self._worker_group.finished or len(self._shards.full) == len(self._shards.actors)
        )
        if self._closing:
            self._shards.close()

    def _check_checkpoints(self) -> None:
        """What became of the checkpoints that the first learner wrote by itself. Never waits: a dead one's are not known."""
        if self._outcomes is None and self._learners.actors:
            actor = self._learners.actors[0]
            self._outcomes = actor, actor.save_outcomes.remote()
        if self._outcomes is None or not ray.wait([self._outcomes[1]], timeout=0)[0]:
            return
        (_, ref), self._outcomes = self._outcomes, None
        with contextlib.suppress(*DIED, RayTaskError):
            for outcome in ray.get(ref):
                self.watch.checkpoint(outcome)
