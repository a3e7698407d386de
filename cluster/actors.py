"""The parts as Ray actors: thin wrappers that add waiting, deadlines and nothing else."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from cluster.errors import RunError
from cluster.graph import Plan, make_evaluator, make_shard, make_worker, set_threads
from replay import snapshot
from replay.chunk import Ack, Block, Chunk, Wait

if TYPE_CHECKING:
    from algorithms.weights import Weights
    from rollout_workers.evaluator import Evaluation

RUN_COMPLETE = "run_complete"  # a shard's reason for taking no more rows
HELD = "held"  # a shard's reason for having no block: the driver holds the run
HOLD_S = 1.0  # how long a shard keeps a call that must wait before it answers "wait"


class ShardActor:
    """One replay shard. Calls that the limiter holds back wait here for at most HOLD_S, then the caller asks again."""

    def __init__(self, plan: Plan, index: int, quota_rows: int) -> None:
        self.started = time.time()
        self.quota_rows = quota_rows
        self.directory = plan.shard_dir(index)
        self.batch_size = plan.config.learner.batch_size
        self.shard = make_shard(plan, index)
        self.found = snapshot.load(self.shard, self.directory)
        self.changed = asyncio.Condition()

    async def restored(self) -> tuple[str, ...]:
        """What was wrong with snapshots that were passed over when this process started."""
        return tuple(self.found.warnings) if self.found else ()

    async def append(self, chunk: Chunk) -> Ack:
        """Stores a chunk, waiting for room; "rejected" with reason run_complete once the run has its rows."""
        deadline = time.monotonic() + HOLD_S
        async with self.changed:
            while True:
                if self.shard.table.inserted >= self.quota_rows:
                    epoch, version = self.shard.newest
                    return Ack(status="rejected", epoch=epoch, version=version, reason=RUN_COMPLETE)
                ack = self.shard.append(chunk)
                if ack.status != "wait" or not await self._wait(deadline):
                    break
            if ack.status == "ok":
                self.changed.notify_all()
            return ack

    async def sample(self, updates: int, batch: int, epoch: int, version: int, hold_s: float) -> Block | Wait:
        """U batches of B rows, waiting ``hold_s`` for the limiter to allow them; ``epoch, version``: newest published policy."""
        deadline = time.monotonic() + hold_s
        async with self.changed:
            while True:
                answer = self.shard.sample(updates, batch, (epoch, version))
                if isinstance(answer, Block) or answer.reason == "exhausted" or not await self._wait(deadline):
                    break
            if isinstance(answer, Block):
                self.changed.notify_all()
            elif self.shard.limiter.held and answer.reason != "exhausted":
                answer = dataclasses.replace(answer, reason=HELD)
            return answer

    async def _wait(self, deadline: float) -> bool:
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        try:
            await asyncio.wait_for(self.changed.wait(), left)
        except TimeoutError:
            return False
        return True

    async def hold_at(self, rows: int) -> None:
        """Takes no more rows once ``rows`` have been stored, until called with a higher number."""
        async with self.changed:
            self.shard.limiter.ceiling = rows
            self.changed.notify_all()

    async def align(self, updates: int) -> None:
        """Tells the limiter how many updates the learner really holds: what a lost learner had sampled is owed again."""
        async with self.changed:
            self.shard.align(updates * self.batch_size)
            self.changed.notify_all()

    async def close(self) -> None:
        """No more rows are coming: the samples that are left may be drawn, then sample says "exhausted"."""
        async with self.changed:
            self.shard.close()
            self.changed.notify_all()

    async def stats(self) -> dict[str, Any]:
        """The shard's counters, what workers piggybacked since the last call, and when this process started."""
        stats, now = self.shard.stats(), time.monotonic()
        silent_s = {worker: now - seen for worker, seen in stats.last_seen_s.items()}
        return {"stats": stats, "workers": self.shard.drain_stats(), "started": self.started, "silent_s": silent_s}

    async def save(self) -> None:
        """Writes a snapshot, a segment at a time between the other calls."""
        saving = snapshot.Saving(self.shard, self.directory)
        while saving.step() is None:
            await asyncio.sleep(0)


class StoreActor:
    """Holds the newest weights: one object a version, owned here, so that it outlives the learner that made it."""

    def __init__(self) -> None:
        self.order = (-1, -1)
        self.newest: list[ray.ObjectRef[Weights]] = []

    def publish(self, weights: Weights) -> None:
        """Takes newer weights; older ones (a late message) are ignored."""
        if weights.order > self.order:
            self.order = weights.order
            self.newest = [ray.put(weights)]

    def fetch(self) -> list[ray.ObjectRef[Weights]]:
        """A list with the newest weights' reference, empty before the first publication."""
        return self.newest


class WorkerActor:
    """One rollout worker: collects chunks and keeps at most ``max_unacked`` of them on the way.

    All of a worker's chunks go to one shard, so that a shard holds whole episodes.
    """

    def __init__(
        self, plan: Plan, index: int, incarnation: int, shards: list[Any], store: Any, random_steps: int
    ) -> None:
        config = plan.config
        set_threads(config)
        self.worker = make_worker(plan, index, incarnation, random_steps)
        self.shard, self.store = shards[index % len(shards)], store
        self.limit = config.worker.max_unacked
        self.timeout_s = config.ray.call_timeout_s
        self.stopping = False
        self.lost_since = 0.0  # when the shard last stopped answering

    def run(self) -> str:
        """Collects until told to stop or the shard has its rows; returns which of the two it was."""
        pending: deque[tuple[Chunk, Any]] = deque()
        self._load((0, 0))
        complete = False
        while not self.stopping and not complete:
            self._require_weights()
            chunk = self.worker.collect()
            pending.append((chunk, self.shard.append.remote(chunk)))
            while len(pending) >= self.limit and not complete:
                complete = self._settle(*pending.popleft())
        while pending:
            self._settle(*pending.popleft())
        return "complete" if complete else "stopped"

    def stop(self) -> None:
        """Lets ``run`` return after the chunk in hand."""
        self.stopping = True

    def _settle(self, chunk: Chunk, ref: Any) -> bool:
        """Waits for the shard's answer to a chunk; sends it again, under the same sequence, until it is stored or refused.

        Returns whether the shard has all the rows it wants.
        """
        started = time.perf_counter()
        ack = self._answer(ref)
        while ack.status == "wait" and not self.stopping:
            ack = self._answer(self.shard.append.remote(chunk))
        self.worker.note_wait(time.perf_counter() - started)
        if ack.status == "rejected" and ack.reason != RUN_COMPLETE:
            self.worker.note_rejected(len(chunk.rows_ND), ack.reason.split(":")[0])
        self._load((ack.epoch, ack.version))
        return ack.reason == RUN_COMPLETE

    def _require_weights(self) -> None:
        """Waits until there is a policy, when the next chunk needs one: a resumed run's learner may still be loading."""
        deadline = time.monotonic() + self.timeout_s
        while self.worker.needs_weights and not self.stopping:
            self._load((0, 0))
            if not self.worker.needs_weights:
                break
            if time.monotonic() > deadline:
                raise RunError(
                    f"the store had no weights for {self.timeout_s:.0f} s, expected the learner's first publication: this worker cannot "
                    "act and ends; look at what the learner says"
                )
            time.sleep(0.1)

    def _answer(self, ref: Any) -> Ack:
        """The shard's answer; a shard that Ray is restarting, or that is silent, counts as "wait" until the deadline."""
        try:
            ack: Ack = ray.get(ref, timeout=self.timeout_s)
        except (RayActorError, GetTimeoutError):
            self.lost_since = self.lost_since or time.monotonic()
            if time.monotonic() - self.lost_since > self.timeout_s:
                raise
            time.sleep(0.2)
            return Ack(status="wait", epoch=0, version=0)
        self.lost_since = 0.0
        return ack

    def _load(self, order: tuple[int, int]) -> None:
        """Fetches the newest weights if ``order`` is newer than what the worker acts with."""
        if order <= self.worker.policy_order:
            return
        refs = ray.get(self.store.fetch.remote(), timeout=self.timeout_s)
        if refs:
            self.worker.load_weights(ray.get(refs[0], timeout=self.timeout_s))


class EvaluatorActor:
    """Runs deterministic episodes with given weights, beside the training."""

    def __init__(self, plan: Plan) -> None:
        set_threads(plan.config)
        self.evaluator = make_evaluator(plan)

    def evaluate(self, weights: Weights, episodes: int) -> Evaluation:
        return self.evaluator.evaluate(weights, episodes=episodes)
