"""One shard of what a run learns from: takes chunks from workers, answers learners with blocks, counts what became of every row.

A plain class that does not know where it runs; not thread-safe: one call at a time, as an actor's calls are. It never blocks: what
may not go on now is answered with a wait, and the caller comes back. What its items are, only its store knows (``replay.store``).

Letters: U updates of a block, B batch.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from replay.admission import WRITERS, Writers, Written, fault_of
from replay.limiter import AnyLimiter
from replay.messages import Ack, Block, Chunk, EpisodeBlock, Status, Wait
from replay.store import Store

INSERT_RETRY_S = 0.02  # an append that must wait comes again after this
SAMPLE_RETRY_S = 0.005
WARM_UP_RETRY_S = 0.05
REPORTS = 4_096  # worker reports held for ``drain_stats``
AGE_BINS = 65  # ages 0 .. 63 versions; the last bin: 64 and more, or acted under an earlier learner


class WorkerReport(NamedTuple):
    """What a worker said about itself with one stored chunk."""

    worker: int
    incarnation: int
    stats: dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardStats:
    """A shard at one moment. Rows over its life, which a loaded snapshot continues.

    received_rows = stored_rows + duplicate_rows + the sum of rejected_rows, always. Chunks answered with a wait are not in it:
    they come again.
    """

    shard: int
    size: int  # rows held, those of a dataset too
    capacity: int  # rows
    received_rows: int
    stored_rows: int
    duplicate_rows: int
    rejected_rows: dict[str, int]  # by reason
    rejected_chunks: dict[str, int]  # by reason; a chunk with no countable rows counts here alone
    insert_blocked_s: float  # time during which an append had been answered with a wait and none had been taken since
    sample_blocked_s: float  # the same for samples
    age_rows: np.ndarray  # (AGE_BINS,) int64: rows by policy age at insert, in versions behind the newest observed
    last_seen_s: dict[int, float]  # worker -> monotonic clock of the shard when a chunk of it last came
    written: tuple[Written, ...]  # rows of each remembered incarnation
    served: dict[str, float]  # of this process, see Served: append and sample
    stage: int  # newest online stage whose gathering has begun
    offline_episodes: int  # of a dataset
    episodes: int = 0  # held, of a store of whole episodes; this and all below
    stored_episodes: int = 0  # online, over its life
    episode_rows: int = 0  # stored_rows = episode_rows (in stored_episodes) + open_rows + the sum of lost_rows, always
    open_rows: int = 0  # of partial episodes
    lost_rows: dict[str, int] = dataclasses.field(default_factory=dict)  # by reason, see episode_assembly


class Blocked:
    """Time one side spent between a refusal and the next time it was let through."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since: float | None = None

    def refuse(self, now: float) -> None:
        self._since = now if self._since is None else self._since

    def allow(self, now: float) -> None:
        self.seconds, self._since = self.until(now), None

    def until(self, now: float) -> float:
        return self.seconds + (0.0 if self._since is None else now - self._since)


class Served:
    """Calls of each kind that moved data: how many, the time that they took where they were served, and the bytes moved."""

    def __init__(self, *hops: str) -> None:
        self.totals = {f"{hop}_{what}": 0.0 for hop in hops for what in ("calls", "s", "bytes")}

    def add(self, hop: str, began: float, size: int) -> None:
        """Counts a call that began at ``began`` (time.perf_counter) and ends now."""
        self.totals[f"{hop}_calls"] += 1
        self.totals[f"{hop}_s"] += time.perf_counter() - began
        self.totals[f"{hop}_bytes"] += size


class RowCounts:
    """Rows by what became of them, and how old their policies were."""

    def __init__(self) -> None:
        self.received = 0
        self.duplicate = 0
        self.rejected_rows: Counter[str] = Counter()
        self.rejected_chunks: Counter[str] = Counter()
        self.age_rows = np.zeros(AGE_BINS, np.int64)

    def reject(self, reason: str, rows: int) -> None:
        self.received += rows
        self.rejected_rows[reason] += rows
        self.rejected_chunks[reason] += 1

    def repeat(self, rows: int) -> None:
        self.received += rows
        self.duplicate += rows

    def store(self, rows: int, age: int | None) -> None:
        """Counts rows whose policy was ``age`` versions behind; None if it was of an earlier learner."""
        self.received += rows
        self.age_rows[AGE_BINS - 1 if age is None else min(age, AGE_BINS - 1)] += rows

    def state(self) -> dict[str, Any]:
        return {
            "received": self.received,
            "duplicate": self.duplicate,
            "rejected_rows": dict(self.rejected_rows),
            "rejected_chunks": dict(self.rejected_chunks),
            "age_rows": self.age_rows.tolist(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.received = int(state["received"])
        self.duplicate = int(state["duplicate"])
        self.rejected_rows = Counter(state["rejected_rows"])
        self.rejected_chunks = Counter(state["rejected_chunks"])
        self.age_rows = np.array(state["age_rows"], np.int64)


class Shard:
    """One of ``store.config.shards`` equal parts of what a run learns from.

    Args:
        store, limiter: owned by this shard from here on.
        shard: which part.
        seed: of the run; the shard's own stream is derived from it and ``shard``.
        batch_size: items of one batch where ``sample`` gets no other number.
        clock: seconds, monotonic.

    Raises:
        ValueError: a shard index beyond their number, or a store that could never work with this limiter.
    """

    def __init__(
        self,
        store: Store,
        limiter: AnyLimiter,
        *,
        shard: int,
        seed: int,
        batch_size: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 0 <= shard < store.config.shards:
            raise ValueError(
                f"shard {shard} of {store.config.shards}; expected a shard index below their number: it would take another's "
                "workers and files; raise replay.shards"
            )
        store.check(limiter, batch_size)
        self.store, self.limiter, self.shard, self.batch_size = store, limiter, shard, batch_size
        self.rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, shard])))
        self.writers = Writers()
        self.counts = RowCounts()
        self.newest = (0, 0)  # (generation, version) of the newest policy observed
        self._clock = clock
        self._insert_blocked, self._sample_blocked = Blocked(), Blocked()
        self.served = Served("append", "sample")
        self._outdated = (-1, -1), 0.0  # a policy that is too old for the open stage, and until when that matters
        self._last_seen: OrderedDict[int, float] = OrderedDict()
        self._reports: deque[WorkerReport] = deque(maxlen=REPORTS)

    def observe_version(self, generation: int, version: int) -> None:
        """Takes note of a policy; acks carry the newest one observed."""
        self.newest = max(self.newest, (generation, version))

    def await_policy(self, limit_s: float) -> None:
        """Takes no rows until a policy newer than the newest now is observed, or for ``limit_s``.

        For a shard that runs alongside its learner: what the last block of a stage teaches comes after the stage is over here.
        """
        self._outdated = self.newest, self._clock() + limit_s

    def append(self, chunk: Chunk) -> Ack:
        """Takes a chunk's rows, once: repeats are recognised, malformed ones rejected as a whole and counted.

        The order of the answers: rejected if it is malformed, duplicate if it was stored before, rejected as closed when the
        run takes no more rows, wait if the limiter allows no insert, else ok.
        """
        began = time.perf_counter()
        fault = fault_of(chunk, self.store.layout, max(self.store.capacity, 1)) or self.store.fault(chunk)
        if fault is not None:
            return self._reject(chunk, *fault)
        now, rows = self._clock(), len(chunk.rows_ND)
        self._see(chunk.worker, now)
        status = self.writers.status(chunk.worker, chunk.incarnation, chunk.sequence)
        if status == "duplicate":
            self.counts.repeat(rows)
            return self._ack("duplicate")
        if status == "stale":
            return self._reject(
                chunk, "stale", f"sequence {chunk.sequence} is {self.writers.window} or more below the newest"
            )
        if self.limiter.ended:
            return self._reject(chunk, "closed", "the run takes no more rows")
        outdated, until = self._outdated
        if not self.limiter.can_insert(rows) or (self.newest <= outdated and now < until):
            self._insert_blocked.refuse(now)
            return self._ack("wait", retry_after_s=INSERT_RETRY_S)
        self._insert_blocked.allow(now)
        self.observe_version(chunk.generation, chunk.version)
        self.limiter.insert(rows, self.store.append(chunk, self.limiter.stage))
        self.writers.store(chunk.worker, chunk.incarnation, chunk.sequence, rows, chunk.totals)
        self.counts.store(rows, self.newest[1] - chunk.version if chunk.generation == self.newest[0] else None)
        self._reports.append(WorkerReport(chunk.worker, chunk.incarnation, dict(chunk.stats)))
        self.served.add("append", began, chunk.rows_ND.nbytes)
        return self._ack("ok")

    def sample(
        self, updates: int, batch: int | None = None, newest: tuple[int, int] | None = None
    ) -> Block | EpisodeBlock | Wait:
        """``updates`` batches of ``batch`` items, drawn with replacement; or why there are none yet, and when to ask again.

        The arrays are fresh: the receiver owns them.

        Args:
            updates: U >= 1.
            batch: B >= 1; the shard's batch_size if None.
            newest: (generation, version) of the policy the learner published last.

        Raises:
            ValueError: less than one update or item.
        """
        if newest is not None:
            self.observe_version(*newest)
        batch = self.batch_size if batch is None else batch
        if updates < 1 or batch < 1:
            raise ValueError(f"sample got {updates} updates of {batch} {self.store.items}; expected at least 1 of each")
        if not self.limiter.can_sample(updates * batch):
            return self._no_sample()
        began = time.perf_counter()
        self._sample_blocked.allow(self._clock())
        slot_UB = self.store.draw(self.rng, updates, batch, self.limiter.pretraining)
        block = self.store.gather(slot_UB, self.shard, self.limiter.stage)
        self.limiter.sample(updates * batch)  # may open the next stage, of which nothing is gathered yet
        self.served.add("sample", began, block.nbytes)
        return block

    def write_back(self, slots: np.ndarray, writes: np.ndarray, values: np.ndarray) -> int:
        """Keeps values with items of a block that are still held; returns how many were. See ``Store.write_back``."""
        return self.store.write_back(slots, writes, values)

    def align(self, items: int) -> None:
        """Adds ``items`` to the count of items sampled here: fewer, when a lost learner had drawn some that are owed again; more,
        when this shard was loaded from before it handed them out. See ``limiter.apportioned``."""
        self.limiter.sampled += items

    def close(self) -> None:
        """No more rows are coming: samples use up what the limiter still allows, then are answered ``exhausted``."""
        self.limiter.close()

    def drain_stats(self) -> list[WorkerReport]:
        """The workers' reports since the last call, oldest first; of more than REPORTS the oldest are overwritten."""
        reports = list(self._reports)
        self._reports.clear()
        return reports

    def stats(self) -> ShardStats:
        """The shard's counters now; rows of a dataset are held, so in size and capacity, and were never received."""
        now, counts = self._clock(), self.counts
        return ShardStats(
            shard=self.shard,
            received_rows=counts.received,
            stored_rows=self.store.inserted,
            duplicate_rows=counts.duplicate,
            rejected_rows=dict(counts.rejected_rows),
            rejected_chunks=dict(counts.rejected_chunks),
            insert_blocked_s=self._insert_blocked.until(now),
            sample_blocked_s=self._sample_blocked.until(now),
            age_rows=counts.age_rows.copy(),
            written=self.writers.written(),
            last_seen_s=dict(self._last_seen),
            served=dict(self.served.totals),
            stage=self.limiter.stage,
            **self.store.stats(),
        )

    def state(self) -> dict[str, Any]:
        """Everything but arrays that the next samples and answers depend on; JSON-able."""
        return self.store.state() | {
            "limiter": self.limiter.state(),
            "writers": self.writers.state(),
            "counts": self.counts.state(),
            "rng": self.rng.bit_generator.state,
            "newest": list(self.newest),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes what ``state`` gave, but for the store's part."""
        self.limiter.load_state(state["limiter"])
        self.writers.load_state(state["writers"])
        self.counts.load_state(state["counts"] if "counts" in state else state["tally"])  # the older name
        self.rng.bit_generator.state = state["rng"]
        self.newest = (int(state["newest"][0]), int(state["newest"][1]))

    def _no_sample(self) -> Wait:
        if self.limiter.ended:
            return Wait(reason="exhausted", retry_after_s=0.0)
        self._sample_blocked.refuse(self._clock())
        if self.limiter.inserted < self.limiter.min_size:
            return Wait(reason="min_size", retry_after_s=WARM_UP_RETRY_S)
        return Wait(reason=self.store.rate_limited, retry_after_s=SAMPLE_RETRY_S)

    def _reject(self, chunk: Chunk, reason: str, message: str) -> Ack:
        shape: tuple[int, ...] = getattr(chunk.rows_ND, "shape", ())
        self.counts.reject(reason, shape[0] if len(shape) == 2 else 0)
        return self._ack("rejected", reason=f"{reason}: {message}")

    def _ack(self, status: Status, *, retry_after_s: float = 0.0, reason: str = "") -> Ack:
        generation, version = self.newest
        return Ack(status=status, generation=generation, version=version, retry_after_s=retry_after_s, reason=reason)

    def _see(self, worker: int, now: float) -> None:
        self._last_seen[worker] = now
        self._last_seen.move_to_end(worker)
        if len(self._last_seen) > WRITERS:
            self._last_seen.popitem(last=False)
