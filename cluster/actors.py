"""The parts as Ray actors: thin wrappers that add waiting, deadlines and nothing else."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import GetTimeoutError

from algorithms import progress
from cluster.graph import RunSpec, make_evaluator, make_shard, make_worker
from cluster.remote import DIED, REFUSED
from cluster.replay_client import RUN_COMPLETE, STOPPED, Lost, ReplayClient
from cluster.saving import Outcome
from cluster.usage import Meter, Usage, usage
from replay import snapshot
from replay.messages import Ack, Block, Chunk, RowTotals, Wait
from replay.shard import Served
from rollout_workers.env_ids import take_code

if TYPE_CHECKING:
    import numpy as np

    from algorithms.weights import Weights
    from replay.messages import EpisodeBlock
    from rollout_workers.evaluator import Evaluation

TURN = "turn"  # a shard's reason for having no block: another learner has had fewer of it
HELD = "held"  # a shard's reason for having no block: the driver holds the run
LAST_CHUNK_S = 0.5  # for the chunk in hand of a worker that is to be killed
HOLD_S = 1.0  # how long a shard keeps a call that must wait before it answers "wait"


# Of a part that the driver replaces. On a node that is short of memory Ray kills those first that it may restart, the newest first: with
# this, workers and the evaluator before the store and the shards, which are older, and learners last.
EXPENDABLE = {"max_restarts": -1}


def refuse_restart() -> None:
    """Raises in a process that Ray began in place of one that died: of such a part the driver makes another."""
    if ray.get_runtime_context().was_current_actor_reconstructed:
        raise RuntimeError(f"{REFUSED}; the logs of its node say why")


def here() -> str:
    """The node of this process, by its id."""
    return str(ray.get_runtime_context().get_node_id())


class ShardActor:
    """One replay shard. Calls that the limiter holds back wait here for at most HOLD_S, then the caller asks again.

    Of the appends that wait, a sample wakes one, and each that finds room the next: with a thousand workers a sample that woke them
    all would leave no time for anything else.

    Args:
        quota_rows: rows of the run that belong to this shard; None: its limiter knows how many episodes do.
    """

    def __init__(self, spec: RunSpec, index: int, quota_rows: int | None) -> None:
        self.started = time.time()
        self.quota_rows = math.inf if quota_rows is None else quota_rows
        self.directory = spec.shard_dir(index)
        self.shard = make_shard(spec, index)
        self.found = snapshot.load(self.shard, self.directory)
        lock = asyncio.Lock()
        # Calls that wait, for room or for rows.
        self.calls = {"append": asyncio.Condition(lock), "sample": asyncio.Condition(lock)}
        # Blocks by rank, of the learners of one generation.
        self.drawn, self.generation = [0] * spec.config.learner.learners, -1
        self.policy_s = spec.config.ray.call_timeout_s
        self.stage = self.shard.limiter.stage
        self.sealed = False
        self.inside = dict.fromkeys(self.calls, 0)  # how many wait

    async def restored(self) -> tuple[str, ...]:
        """What was wrong with snapshots that were skipped when this process started."""
        return tuple(self.found.warnings) if self.found else ()

    async def append(self, chunk: Chunk) -> Ack:
        """Stores a chunk, waiting for room; "rejected" with reason run_complete once the run has its rows, stopped once sealed."""
        deadline, held = time.monotonic() + HOLD_S, False
        known = self.shard.writers.status
        async with self.calls["append"]:
            while True:
                refusal = STOPPED if self.sealed else RUN_COMPLETE if self._full() else ""
                # a chunk that is stored and comes again is no loss: its first answer did not arrive
                if refusal and known(chunk.worker, chunk.incarnation, chunk.sequence) != "duplicate":
                    generation, version = self.shard.newest
                    return Ack(status="rejected", generation=generation, version=version, reason=refusal)
                ack = self.shard.append(chunk)
                if ack.status != "wait" or not await self._wait("append", deadline):
                    break
                held = True
            if self._full():
                self._wake_all()
            elif ack.status != "wait":
                self.calls["sample"].notify_all()
                self.calls["append"].notify()
            return dataclasses.replace(ack, held=held)

    async def sample(
        self, updates: int, batch: int, generation: int, version: int, hold_s: float, rank: int = 0
    ) -> Block | EpisodeBlock | Wait:
        """U batches of B items, waiting ``hold_s`` for the limiter to allow them; ``generation, version``: newest published policy.

        All ranks make an update or none does, so each has as many blocks of this shard as any other, but for one that is ahead by a
        block until they have theirs, too: at the end of the run none is left over.
        """
        deadline = time.monotonic() + hold_s
        async with self.calls["sample"]:
            if generation != self.generation:  # learners are restarted all together
                self.drawn, self.generation = [0] * len(self.drawn), generation
            while True:
                if self.drawn[rank] > min(self.drawn):
                    over = self.shard.limiter.ended and not self.shard.limiter.can_sample(updates * batch)
                    answer: Block | EpisodeBlock | Wait = Wait(reason="exhausted" if over else TURN, retry_after_s=0.0)
                else:
                    answer = self.shard.sample(updates, batch, (generation, version))
                if (
                    not isinstance(answer, Wait)
                    or answer.reason == "exhausted"
                    or not await self._wait("sample", deadline)
                ):
                    break
            if not isinstance(answer, Wait):
                self.drawn[rank] += 1
                if self.shard.limiter.stage > self.stage:
                    self.shard.await_policy(self.policy_s)  # that has learned from this block
                self.stage = self.shard.limiter.stage
                self.calls["sample"].notify_all()
                self.calls["append"].notify()
            elif self.shard.limiter.held and answer.reason != "exhausted":
                answer = dataclasses.replace(answer, reason=HELD)
            return answer

    async def write_back(self, slots: np.ndarray, writes: np.ndarray, values: np.ndarray) -> None:
        """Leaves what the learner inferred beside the episodes of a batch that are still held."""
        self.shard.write_back(slots, writes, values)

    async def observe_version(self, generation: int, version: int) -> None:
        """Takes note of a policy that was just published: a stage may wait for it."""
        async with self.calls["append"]:
            self.shard.observe_version(generation, version)
            self.calls["append"].notify()

    def _full(self) -> bool:
        return self.shard.limiter.gathered or self.shard.store.inserted >= self.quota_rows

    def _wake_all(self) -> None:
        for condition in self.calls.values():
            condition.notify_all()

    async def _wait(self, call: str, deadline: float) -> bool:
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        self.inside[call] += 1
        try:
            await asyncio.wait_for(self.calls[call].wait(), left)
        except TimeoutError:
            self.calls[call].notify()  # it may have been woken in the same moment
            return False
        finally:
            self.inside[call] -= 1
        return True

    async def hold_at(self, rows: int) -> None:
        """Takes no more rows once ``rows`` have been stored, until called with a higher number."""
        async with self.calls["append"]:
            self.shard.limiter.ceiling = rows
            self._wake_all()

    async def counts(self) -> tuple[int, int]:
        """Items sampled and inserted, by this shard's own count."""
        return int(self.shard.limiter.sampled), int(self.shard.limiter.inserted)

    async def align(self, rows: int) -> None:
        """Corrects the count of items sampled by ``rows``."""
        async with self.calls["append"]:
            self.shard.align(rows)
            self._wake_all()

    async def seal(self) -> None:
        """Takes no more rows: counters and snapshots from now on agree."""
        async with self.calls["append"]:
            self.sealed = True
            self._wake_all()

    async def close(self) -> None:
        """No more rows are coming: the samples that are left may be drawn, then sample says "exhausted"."""
        async with self.calls["append"]:
            self.shard.close()
            self._wake_all()

    async def stats(self) -> dict[str, Any]:
        """The shard's counters, whether it has its part of the run, what workers piggybacked since the last call, which calls wait,
        when this process started, on which node, what it takes, and from what: rows of a snapshot and warnings of newer ones, or None."""
        stats, now = self.shard.stats(), time.monotonic()
        silent_s = {worker: now - seen for worker, seen in stats.last_seen_s.items()}
        workers, full = self.shard.drain_stats(), self._full()
        restored = None if self.found is None else (self.found.inserted, self.found.warnings)
        began = {
            "started": self.started,
            "restored": restored,
            "node": here(),
            "usage": usage(),
            "waiting": self.inside,
        }
        return {"stats": stats, "full": full, "workers": workers, "silent_s": silent_s, **began}

    async def save(self) -> Outcome:
        """Writes a snapshot, whatever the disk takes beside the other calls."""
        info = await snapshot.save_beside(self.shard, self.directory)
        return Outcome(seconds=info.seconds, bytes=info.bytes)


class StoreActor:
    """Holds the newest weights: one object a version, owned here, so that it outlives the learner that made it."""

    def __init__(self) -> None:
        self.process_began, self.served = time.time(), Served("publish")
        self.order = (-1, -1)
        self.newest: list[ray.ObjectRef[Weights]] = []

    def publish(self, weights: Weights) -> None:
        """Takes newer weights; older ones (a late message) are ignored."""
        if weights.order > self.order:
            began = time.perf_counter()
            self.order = weights.order
            self.newest = [ray.put(weights)]
            self.served.add("publish", began, weights.flat.nbytes)

    def started(self) -> tuple[float, str, Usage, dict[str, float]]:
        """When this process started (another one is empty until the next publication), on which node, what it takes, and what it
        served."""
        return self.process_began, here(), usage(), self.served.totals

    def fetch(self) -> list[ray.ObjectRef[Weights]]:
        """A list with the newest weights' reference, empty before the first publication."""
        return self.newest


class WorkerActor:
    """One rollout worker and the replay client that brings its chunks to its shard.

    ``run`` is told of the actors that it talks to: Ray warns of an expendable actor that is made with handles of others.
    """

    shard: Any  # all of a worker's chunks go to one, so that a shard holds whole episodes
    store: Any

    def __init__(self, spec: RunSpec, index: int, incarnation: int, random_steps: int) -> None:
        refuse_restart()
        config = spec.config
        take_code(spec.own_code, config.env)
        self.timeout_s, self.meter = config.ray.call_timeout_s, Meter()
        self.fetched = Served("fetch")  # since the last chunk
        self.client = ReplayClient(
            make_worker(spec, index, incarnation, random_steps),
            send=self._send,
            answer=_answer,
            fetch=self._fetch,
            max_unacked=config.worker.max_unacked,
            timeout_s=self.timeout_s,
            patience_s=2 * self.timeout_s + config.ray.start_timeout_s,
        )

    def run(self, shard: Any, store: Any) -> RowTotals:
        """Collects until ``stop`` is called or ``shard`` has its rows; returns this worker's final row counts."""
        self.shard, self.store = shard, store
        self.client.run()
        return self.client.worker.totals()

    def place(self) -> str:
        """On which node this is; there is an answer once the environments are built."""
        return here()

    def last_words(self) -> RowTotals:
        """Row counts before this process is killed, also while ``run`` hangs or after it failed: no further chunk is begun."""
        return self.client.last_words(LAST_CHUNK_S)

    def idle_s(self) -> float:
        """Seconds since an environment made a step, or the search for a plan did, also while ``run`` hangs."""
        return progress.idle_s()

    def stop(self) -> None:
        """Lets ``run`` return once its chunks are settled."""
        self.client.stop()

    def _send(self, chunk: Chunk) -> Any:
        if (seen := self.meter.read()) is not None:
            chunk.stats.update(seen.stats() | self.fetched.totals)
            self.fetched = Served("fetch")
        return self.shard.append.remote(chunk)

    def _fetch(self) -> Weights | None:
        began = time.perf_counter()
        refs = _answer(self.store.fetch.remote(), self.timeout_s)
        if not refs:
            return None
        weights: Weights = _answer(refs[0], self.timeout_s)
        self.fetched.add("fetch", began, weights.flat.nbytes)
        return weights


def _answer(ref: Any, timeout_s: float) -> Any:
    """What a call gave; Lost when its actor is dead or being restarted, or did not answer in time."""
    try:
        return ray.get(ref, timeout=timeout_s)
    except (*DIED, GetTimeoutError) as error:
        raise Lost(str(error)) from error


class EvaluatorActor:
    """Runs deterministic episodes with given weights, beside the training."""

    def __init__(self, spec: RunSpec) -> None:
        refuse_restart()
        take_code(spec.own_code, spec.config.env)
        self.evaluator = make_evaluator(spec)

    def place(self) -> str:
        """On which node this is."""
        return here()

    def evaluate(self, weights: Weights, episodes: int) -> tuple[Evaluation, Usage]:
        """What came of it, and what this process takes."""
        return self.evaluator.evaluate(weights, episodes=episodes), usage()
