"""One shard of the replay service: takes chunks from workers, hands blocks of batches to learners.

Letters: N rows of a chunk, D row width, U updates of a block, B batch.

A plain class that does not know where it runs; not thread-safe: one call at a time, as an actor's calls are. It never
blocks: what may not go on now is answered with a wait, and the caller comes back.

With the transitions of a dataset beside its table (offline_rows.py) every batch is a mixture of both.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from replay.admission import fault_of
from replay.chunk import Ack, Block, Chunk, Wait
from replay.config import DataConfig, ReplayConfig
from replay.counters import Blocked, ShardStats, Tally
from replay.episode_sampling import offline_share
from replay.episodes import Episode, complete_episodes
from replay.limiter import Limiter
from replay.n_step import gather_n_step
from replay.offline_rows import VERSION, OfflineRows
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


class ReplayShard:
    """One of ``shards`` equal parts of the table that ``config`` describes.

    Args:
        layout: of the packed rows.
        config: totals over all shards; this one holds capacity_rows // shards rows.
        shard, shards: which part, of how many.
        seed: of the run; the shard's own stream is derived from it and ``shard``.
        batch_size: rows of one batch where ``sample`` is not told another number.
        limiter: holds the replay ratio; owned by this shard from here on.
        gamma: discount factor of the n-step returns, used only if config.n_step > 1.
        data: how the two are mixed, if there is a dataset.
        offline: this shard's part of the dataset; None: there is none.
        clock: seconds, monotonic.

    Raises:
        ValueError: a shard index outside 0..shards-1, a capacity below one batch or min_size, or a limiter that lets samples begin
            before the first insert although there is no dataset.
    """

    def __init__(
        self,
        layout: RowLayout,
        config: ReplayConfig,
        *,
        shard: int,
        shards: int,
        seed: int,
        batch_size: int,
        limiter: Limiter,
        gamma: float = 0.99,
        data: DataConfig | None = None,
        offline: OfflineRows | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        capacity = config.capacity_rows // max(shards, 1)
        if not 0 <= shard < shards or capacity < max(batch_size, limiter.min_size):
            raise ValueError(
                f"shard {shard} of {shards} would hold {capacity} rows, with a batch of {batch_size} and "
                f"{limiter.min_size} rows "
                "before the first sample; expected a shard index below their number and room for both: it could "
                "never be "
                "sampled; raise replay.capacity_rows or lower replay.shards"
            )
        if limiter.pretrain and offline is None:
            raise ValueError(
                f"shard {shard} has no dataset and a limiter with {limiter.pretrain} rows to sample before the first insert, expected "
                "0: they would be drawn from nothing; set data.pretrain_updates to 0, or give a dataset"
            )
        self.layout, self.config, self.limiter, self.gamma = layout, config, limiter, gamma
        self.data, self.offline = data or DataConfig(), offline
        self.shard, self.shards, self.batch_size = shard, shards, batch_size
        self.table = Table(layout, capacity)
        self.rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, shard])))
        self.writers = Writers()
        self.tally = Tally()
        self.newest = (0, 0)  # (epoch, version) of the newest policy heard of
        self._clock = clock
        self._insert_blocked, self._sample_blocked = Blocked(), Blocked()
        self._last_seen: OrderedDict[int, float] = OrderedDict()
        self._reports: deque[WorkerReport] = deque(maxlen=REPORTS)
        self._reports_dropped = 0
        self._last_version_UB = np.empty((0, 0), np.int64)
        self._ranges, self._range_B = (0, 0), np.empty(0)  # what draws are scaled by, for (batch, size)
        self._share = 0  # dataset rows of each batch of the last draw

    def hear(self, epoch: int, version: int) -> None:
        """Takes note of a policy; acks carry the newest one heard of."""
        self.newest = max(self.newest, (epoch, version))

    def append(self, chunk: Chunk) -> Ack:
        """Copies a chunk's rows in, once: repeats are recognised, malformed ones rejected whole and counted.

        The order of the answers: rejected if it is malformed, duplicate if it was stored before, wait if the limiter
        holds inserts back, else ok.
        """
        fault = fault_of(chunk, self.layout, self.table.capacity)
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
        if self.limiter.closed:
            return self._reject(chunk, "closed", "the run takes no more rows")
        if not self.limiter.can_insert(rows):
            self._insert_blocked.refuse(now)
            return self._ack("wait", retry_after_s=INSERT_RETRY_S)
        if self._insert_blocked.waiting:
            self._insert_blocked.allow(now)
        self._store(chunk)
        return self._ack("ok")

    def sample(self, updates: int, batch: int | None = None, newest: tuple[int, int] | None = None) -> Block | Wait:
        """``updates`` batches of ``batch`` rows, drawn with replacement; or why there are none yet, and when to ask
        again.

        Of each batch the last round(recent_fraction B) rows are uniform over the newest recent_rows / shards rows
        held, the others uniform over all. With a dataset this is said of the B - K last rows of a batch; the first
        K = round(offline_fraction B) are uniform over the dataset's, with negative slots. While the limiter has rows to
        sample before the first insert, all are. The arrays are fresh: the receiver owns them.

        Args:
            updates: U >= 1.
            batch: B >= 1; the shard's batch_size if None.
            newest: (epoch, version) of the policy the learner published last.
        """
        if newest is not None:
            self.hear(*newest)
        batch = self.batch_size if batch is None else batch
        if updates < 1 or batch < 1:
            raise ValueError(f"sample got {updates} updates of {batch} rows; expected at least 1 of each")
        if not self.limiter.can_sample(updates * batch):
            return self._hold_back()
        if self._sample_blocked.waiting:
            self._sample_blocked.allow(self._clock())
        slot_UB = self._draw(updates, batch)
        self.limiter.sample(updates * batch)
        share = self._share
        online_UB = slot_UB[:, share:]
        self._last_version_UB = self.table.version.take(online_UB)
        return Block(
            rows_UBD=self._gather(slot_UB),
            slot_UB=slot_UB,
            generation_UB=_beside(0, share, self.table.generation(online_UB)),
            version_UB=_beside(VERSION, share, self._last_version_UB),
            shard=self.shard,
            inserted=self.table.inserted,
            size=self.table.size,
        )

    def write_back(self, slots: np.ndarray, generations: np.ndarray, values: np.ndarray) -> int:
        """Leaves a float32 beside each row that is still the one that was sampled; returns how many were.

        The hook for priorities, and for what a learner infers about a row. Rows overwritten since are skipped, and so are those
        of a dataset, which have negative slots and nothing beside them.

        Args:
            slots, generations: int64, of one shape, from a block of this shard.
            values: float32, of that shape, finite.

        Raises:
            ValueError: shapes that differ, a slot outside table and dataset, a value that is not finite.
        """
        slots, generations, values = np.asarray(slots), np.asarray(generations), np.asarray(values, np.float32)
        same = slots.shape == generations.shape == values.shape
        least = 0 if self.offline is None else -len(self.offline)
        if (
            not same
            or (slots.size and (slots.min() < least or slots.max() >= self.table.capacity))
            or not np.isfinite(values).all()
        ):
            raise ValueError(
                f"write_back got shapes {slots.shape}, {generations.shape}, {values.shape}; expected one shape, "
                f"slots from {least} and below "
                f"{self.table.capacity} and finite values: nothing was written; send what came with a block of "
                f"shard {self.shard}"
            )
        online = slots >= 0
        return self.table.write_back(slots[online], generations[online], values[online])

    def episodes(self) -> Iterator[Episode]:
        """Every episode of which this shard holds all rows. Do not append while iterating."""
        return complete_episodes(self.table)

    def align(self, rows: int) -> None:
        """Adds ``rows`` to the count of rows sampled here: fewer, when a lost learner had drawn some that are owed again; more,
        when this shard was loaded from before it handed them out. See ``limiter.dealt``."""
        self.limiter.align(self.limiter.sampled + rows)

    def close(self) -> None:
        """No more rows are coming: samples use up their budget, then are told ``exhausted``."""
        self.limiter.close()

    def drain_stats(self) -> list[WorkerReport]:
        """The workers' reports since the last call, oldest first; of more than REPORTS the oldest are dropped and counted."""
        reports = list(self._reports)
        self._reports.clear()
        return reports

    def stats(self) -> ShardStats:
        """The shard's counters now. Rows of a dataset are in size, capacity, fill, bytes and offline_episodes alone."""
        now, table, tally, offline = self._clock(), self.table, self.tally, self.offline
        held, held_bytes = (0, 0) if offline is None else (len(offline), offline.nbytes)
        return ShardStats(
            shard=self.shard,
            size=table.size + held,
            capacity=table.capacity + held,
            fill=(table.size + held) / (table.capacity + held),
            bytes=table.nbytes + held_bytes,
            received_rows=tally.received,
            stored_rows=table.inserted,
            duplicate_rows=tally.duplicate,
            rejected_rows=dict(tally.rejected_rows),
            rejected_chunks=dict(tally.rejected_chunks),
            sampled_rows=self.limiter.sampled,
            credit_rows=self.limiter.credit,
            insert_blocked_s=self._insert_blocked.until(now),
            sample_blocked_s=self._sample_blocked.until(now),
            epoch=self.newest[0],
            version=self.newest[1],
            age_rows=tally.age_rows.copy(),
            age_p50=tally.age_quantile(0.5),
            age_p95=tally.age_quantile(0.95),
            sampled_age_mean=self.newest[1] - float(self._last_version_UB.mean())
            if self._last_version_UB.size
            else 0.0,
            writers=len(self.writers),
            last_seen_s=dict(self._last_seen),
            stats_dropped=self._reports_dropped,
            offline_episodes=0 if offline is None else offline.episodes,
        )

    def state(self) -> dict[str, Any]:
        """Everything but the columns that the next samples and answers depend on; JSON-able. Of a dataset's rows a digest: they are
        read again."""
        return {
            "table": self.table.state(),
            "limiter": self.limiter.state(),
            "writers": self.writers.state(),
            "tally": self.tally.state(),
            "rng": self.rng.bit_generator.state,
            "newest": list(self.newest),
            **({} if self.offline is None else {"offline": self.offline.state()}),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes what ``state`` gave; ``replay.snapshot`` loads the columns that belong to it. DatasetError when the dataset's rows
        are others now."""
        if self.offline is not None and "offline" in state:
            self.offline.check_state(state["offline"])
        self.table.load_state(state["table"])
        self.limiter.load_state(state["limiter"])
        self.writers.load_state(state["writers"])
        self.tally.load_state(state["tally"])
        self.rng.bit_generator.state = state["rng"]
        self.newest = (int(state["newest"][0]), int(state["newest"][1]))

    def _store(self, chunk: Chunk) -> None:
        self.hear(chunk.epoch, chunk.version)
        self.table.append(chunk)
        self.writers.store(chunk.worker, chunk.incarnation, chunk.sequence)
        self.limiter.insert(len(chunk.rows_ND))
        age = self.newest[1] - chunk.version if chunk.epoch == self.newest[0] else None
        self.tally.store(len(chunk.rows_ND), age)
        self._reports_dropped += len(self._reports) == REPORTS
        self._reports.append(WorkerReport(chunk.worker, chunk.incarnation, dict(chunk.stats)))

    def _draw(self, updates: int, batch: int) -> np.ndarray:
        """Slots (U, B) int64: the dataset's first. One uniform of 53 bits for each, scaled: cheaper than two calls for bounded
        integers."""
        uniform_UB = self.rng.random((updates, batch))
        self._share = self._offline_share(batch)
        if self.offline is None or not self._share:
            return self._draw_online(uniform_UB)
        offline_UK = self.offline.draw(uniform_UB[:, : self._share])
        if self._share == batch:
            return offline_UK
        return np.concatenate([offline_UK, self._draw_online(uniform_UB[:, self._share :])], axis=1)

    def _offline_share(self, batch: int) -> int:
        """K: how many rows of a batch are the dataset's."""
        if self.offline is None:
            return 0
        held, online = len(self.offline), 0 if self.limiter.pretraining else self.table.size
        share = offline_share(self.data.offline_fraction, batch, held, online)
        return round(batch * held / (held + online)) if share is None else share

    def _draw_online(self, uniform_UB: np.ndarray) -> np.ndarray:
        """Slots of the table, (U, B) int64."""
        batch, capacity, size = uniform_UB.shape[1], self.table.capacity, self.table.size
        if self._ranges != (batch, size):
            self._recent = round(self.config.recent_fraction * batch)
            self._window = min(max(self.config.recent_rows // self.shards, 1), size)
            self._range_B = np.full(batch, float(size))
            self._range_B[batch - self._recent :] = self._window
            self._ranges = (batch, size)
        slot_UB = (uniform_UB * self._range_B).astype(np.int64)
        oldest_recent = self.table.inserted % capacity - self._window
        if self._recent:
            slot_UB[:, batch - self._recent :] += oldest_recent
            if oldest_recent < 0:
                slot_UB[slot_UB < 0] += capacity
        return slot_UB

    def _gather(self, slot_UB: np.ndarray) -> np.ndarray:
        """Rows (U, B, D) of the slots that ``_draw`` gave."""
        share = self._share
        if self.offline is None or not share:
            return self._gather_online(slot_UB)
        rows_UBD = np.empty((*slot_UB.shape, self.layout.width), np.float32)
        rows_UBD[:, :share] = self.offline.take(slot_UB[:, :share])
        rows_UBD[:, share:] = self._gather_online(slot_UB[:, share:])
        return rows_UBD

    def _gather_online(self, slot_UB: np.ndarray) -> np.ndarray:
        if self.config.n_step == 1:
            return self.table.rows.take(slot_UB, axis=0)
        row_MD = gather_n_step(self.table, slot_UB.ravel(), n=self.config.n_step, gamma=self.gamma)
        return row_MD.reshape(*slot_UB.shape, -1)

    def _hold_back(self) -> Wait:
        if self.limiter.closed:
            return Wait(reason="exhausted", retry_after_s=0.0)
        self._sample_blocked.refuse(self._clock())
        if self.limiter.inserted < self.limiter.min_size:
            return Wait(reason="min_size", retry_after_s=WARM_UP_RETRY_S)
        return Wait(reason="samples_ahead", retry_after_s=SAMPLE_RETRY_S)

    def _reject(self, chunk: Chunk, reason: str, message: str) -> Ack:
        shape: tuple[int, ...] = getattr(chunk.rows_ND, "shape", ())
        self.tally.reject(reason, shape[0] if len(shape) == 2 else 0)
        return self._ack("rejected", reason=f"{reason}: {message}")

    def _ack(self, status: Any, *, retry_after_s: float = 0.0, reason: str = "") -> Ack:
        epoch, version = self.newest
        return Ack(status=status, epoch=epoch, version=version, retry_after_s=retry_after_s, reason=reason)

    def _see(self, worker: int, now: float) -> None:
        self._last_seen[worker] = now
        self._last_seen.move_to_end(worker)
        if len(self._last_seen) > WRITERS:
            self._last_seen.popitem(last=False)


def _beside(value: int, share: int, online_UB: np.ndarray) -> np.ndarray:
    """``online_UB`` with ``share`` columns of ``value`` before it."""
    return np.pad(online_UB, ((0, 0), (share, 0)), constant_values=value) if share else online_UB
