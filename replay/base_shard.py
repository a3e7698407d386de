"""What the two kinds of shards have in common: how chunks are answered, what is counted, what a snapshot says of it.

A plain class that does not know where it runs; not thread-safe: one call at a time, as an actor's calls are. It never
blocks: what may not go on now is answered with a wait, and the caller comes back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from replay.base_limiter import BaseLimiter
from replay.chunk import Ack, Chunk, Status, Wait
from replay.config import ReplayConfig
from replay.counters import Blocked, ShardStats, Tally
from replay.episode_table import EpisodeTable
from replay.rows import RowLayout
from replay.table import Table
from replay.writers import WRITERS, Writers

INSERT_RETRY_S = 0.02  # an append that must wait comes again after this
SAMPLE_RETRY_S = 0.005
WARM_UP_RETRY_S = 0.05
REPORTS = 4_096  # worker reports held for ``drain_stats``


class WorkerReport(NamedTuple):
    """What a worker said about itself with one stored chunk."""

    worker: int
    incarnation: int
    stats: dict[str, float]


class BaseShard(ABC):
    """One of ``shards`` equal parts of what a run learns from. Each kind adds ``sample`` and ``write_back``.

    Args:
        layout: of the chunks' rows.
        config: totals over all shards.
        table, limiter: owned by this shard from here on.
        shard, shards: which part, of how many.
        seed: of the run; the shard's own stream is derived from it and ``shard``.
        batch_size: items of one batch where ``sample`` is not told another number.
        clock: seconds, monotonic.
    """

    table: Table | EpisodeTable
    limiter: BaseLimiter
    items: str  # what is drawn, in words
    held_back: str  # why there is no sample after the warm-up, as ``Wait`` says it

    def __init__(
        self,
        layout: RowLayout,
        config: ReplayConfig,
        table: Table | EpisodeTable,
        limiter: BaseLimiter,
        *,
        shard: int,
        shards: int,
        seed: int,
        batch_size: int,
        clock: Callable[[], float],
    ) -> None:
        self.layout, self.config, self.table, self.limiter = layout, config, table, limiter
        self.shard, self.shards, self.batch_size = shard, shards, batch_size
        self.rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, shard])))
        self.writers = Writers()
        self.tally = Tally()
        self.newest = (0, 0)  # (epoch, version) of the newest policy heard of
        self._clock = clock
        self._insert_blocked, self._sample_blocked = Blocked(), Blocked()
        self._last_seen: OrderedDict[int, float] = OrderedDict()
        self._reports: deque[WorkerReport] = deque(maxlen=REPORTS)
        self._reports_dropped = 0
        self._last_versions = np.empty(0, np.int64)  # of what workers gathered, in the last block; of any shape

    def hear(self, epoch: int, version: int) -> None:
        """Takes note of a policy; acks carry the newest one heard of."""
        self.newest = max(self.newest, (epoch, version))

    def append(self, chunk: Chunk) -> Ack:
        """Takes a chunk's rows, once: repeats are recognised, malformed ones rejected whole and counted.

        The order of the answers: rejected if it is malformed, duplicate if it was stored before, rejected as closed when the
        run takes no more rows, wait if the limiter holds inserts back, else ok.
        """
        fault = self._fault(chunk)
        if fault is not None:
            return self._reject(chunk, *fault)
        now, rows = self._clock(), len(chunk.rows_ND)
        self._see(chunk.worker, now)
        status = self.writers.status(chunk.worker, chunk.incarnation, chunk.sequence)
        if status == "duplicate":
            self.tally.repeat(rows)
            return self._ack("duplicate")
        if status == "stale":
            return self._reject(
                chunk, "stale", f"sequence {chunk.sequence} is {self.writers.window} or more below the newest"
            )
        if self.limiter.ended:
            return self._reject(chunk, "closed", "the run takes no more rows")
        if not self._may_store(rows, now):
            self._insert_blocked.refuse(now)
            return self._ack("wait", retry_after_s=INSERT_RETRY_S)
        if self._insert_blocked.waiting:
            self._insert_blocked.allow(now)
        self.hear(chunk.epoch, chunk.version)
        self._store(chunk)
        self.writers.store(chunk.worker, chunk.incarnation, chunk.sequence, rows, chunk.totals)
        self.tally.store(rows, self.newest[1] - chunk.version if chunk.epoch == self.newest[0] else None)
        self._reports_dropped += len(self._reports) == REPORTS
        self._reports.append(WorkerReport(chunk.worker, chunk.incarnation, dict(chunk.stats)))
        return self._ack("ok")

    def align(self, rows: int) -> None:
        """Adds ``rows`` to the count of items sampled here: fewer, when a lost learner had drawn some that are owed again; more,
        when this shard was loaded from before it handed them out. See ``limiter.dealt``."""
        self.limiter.align(self.limiter.sampled + rows)

    def close(self) -> None:
        """No more rows are coming: samples use up what the limiter still allows, then are told ``exhausted``."""
        self.limiter.close()

    def drain_stats(self) -> list[WorkerReport]:
        """The workers' reports since the last call, oldest first; of more than REPORTS the oldest are dropped and counted."""
        reports = list(self._reports)
        self._reports.clear()
        return reports

    def stats(self) -> ShardStats:
        """The shard's counters now; rows of a dataset are held, so in size, capacity, fill and bytes, and were never received."""
        now, tally, held = self._clock(), self.tally, self._held()
        return ShardStats(
            shard=self.shard,
            fill=held["size"] / held["capacity"] if held["capacity"] else 0.0,
            received_rows=tally.received,
            stored_rows=self.table.inserted,
            duplicate_rows=tally.duplicate,
            rejected_rows=dict(tally.rejected_rows),
            rejected_chunks=dict(tally.rejected_chunks),
            credit_rows=self.limiter.credit,
            insert_blocked_s=self._insert_blocked.until(now),
            sample_blocked_s=self._sample_blocked.until(now),
            epoch=self.newest[0],
            version=self.newest[1],
            age_rows=tally.age_rows.copy(),
            age_p50=tally.age_quantile(0.5),
            age_p95=tally.age_quantile(0.95),
            sampled_age_mean=self.newest[1] - float(self._last_versions.mean()) if self._last_versions.size else 0.0,
            writers=len(self.writers),
            written=self.writers.written(),
            last_seen_s=dict(self._last_seen),
            stats_dropped=self._reports_dropped,
            **held,
        )

    def state(self) -> dict[str, Any]:
        """Everything but arrays that the next samples and answers depend on; JSON-able."""
        return {
            "table": self.table.state(),
            "limiter": self.limiter.state(),
            "writers": self.writers.state(),
            "tally": self.tally.state(),
            "rng": self.rng.bit_generator.state,
            "newest": list(self.newest),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes what ``state`` gave, but for the table."""
        self.limiter.load_state(state["limiter"])
        self.writers.load_state(state["writers"])
        self.tally.load_state(state["tally"])
        self.rng.bit_generator.state = state["rng"]
        self.newest = (int(state["newest"][0]), int(state["newest"][1]))

    @abstractmethod
    def _fault(self, chunk: Chunk) -> tuple[str, str] | None:
        """Why this chunk can never be stored: a name to count it under, and what was seen and expected."""

    @abstractmethod
    def _store(self, chunk: Chunk) -> None:
        """Puts a sound, new chunk into the table and tells the limiter."""

    @abstractmethod
    def _held(self) -> dict[str, Any]:
        """The fields of ShardStats that the table knows: size, capacity, bytes, sampled_rows, those of episodes."""

    def _may_store(self, rows: int, now: float) -> bool:
        return self.limiter.can_insert(rows)

    def _admitted(self, updates: int, batch: int | None, newest: tuple[int, int] | None) -> int | Wait:
        """How every ``sample`` begins: items of each of its ``updates`` batches, which count as let through; or why there are
        none now. Arguments are those of ``sample``.

        Raises:
            ValueError: less than one update or item.
        """
        if newest is not None:
            self.hear(*newest)
        batch = self.batch_size if batch is None else batch
        if updates < 1 or batch < 1:
            raise ValueError(f"sample got {updates} updates of {batch} {self.items}; expected at least 1 of each")
        if self.limiter.can_sample(updates * batch):
            if self._sample_blocked.waiting:
                self._sample_blocked.allow(self._clock())
            return batch
        if self.limiter.ended:
            return Wait(reason="exhausted", retry_after_s=0.0)
        self._sample_blocked.refuse(self._clock())
        if self.limiter.inserted < self.limiter.min_size:
            return Wait(reason="min_size", retry_after_s=WARM_UP_RETRY_S)
        return Wait(reason=self.held_back, retry_after_s=SAMPLE_RETRY_S)

    def _reject(self, chunk: Chunk, reason: str, message: str) -> Ack:
        shape: tuple[int, ...] = getattr(chunk.rows_ND, "shape", ())
        self.tally.reject(reason, shape[0] if len(shape) == 2 else 0)
        return self._ack("rejected", reason=f"{reason}: {message}")

    def _ack(self, status: Status, *, retry_after_s: float = 0.0, reason: str = "") -> Ack:
        epoch, version = self.newest
        return Ack(status=status, epoch=epoch, version=version, retry_after_s=retry_after_s, reason=reason)

    def _see(self, worker: int, now: float) -> None:
        self._last_seen[worker] = now
        self._last_seen.move_to_end(worker)
        if len(self._last_seen) > WRITERS:
            self._last_seen.popitem(last=False)
