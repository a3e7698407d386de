"""One shard of whole episodes: takes chunks from workers, reads its part of a dataset, hands blocks of trajectories to learners.

Letters: N rows of a chunk or a batch, F = O + A + 1 row width, U updates of a block, B batch, K episodes written back, P floats of a
posterior.

Face and answers are those of ``replay.shard.ReplayShard``, and so is the rest: a plain class, not thread-safe, that never blocks.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import numpy as np

from replay.admission import fault_of
from replay.chunk import Ack, Chunk, Wait
from replay.config import DataConfig, ReplayConfig
from replay.counters import Blocked, ShardStats, Tally
from replay.episode_assembly import Assembly, Whole
from replay.episode_sampling import draw, draw_weights, offline_share, pack
from replay.episode_stream import EpisodeStream, Source
from replay.episode_table import (
    FIRST_SLOTS,
    OFFLINE,
    ONLINE,
    ROWS_AN_EPISODE,
    SLOT_BYTES,
    EpisodeMark,
    EpisodeTable,
)
from replay.rows import RowLayout
from replay.shard import INSERT_RETRY_S, REPORTS, SAMPLE_RETRY_S, WARM_UP_RETRY_S, WorkerReport
from replay.stages import StagedLimiter
from replay.trajectories import EpisodeBlock, Trajectories
from replay.writers import WINDOW, WRITERS, Writers

MODE_LENGTH = 16  # characters of a stamp's mode


class EpisodeShard:
    """One of ``shards`` equal parts of the episodes of a run.

    Args:
        layout: of the chunks' rows.
        config: totals over all shards; this one holds capacity_rows // shards online rows.
        data: how dataset and online episodes are drawn; offline_capacity_rows is a total too.
        shard, shards: which part, of how many.
        seed: of the run; the shard's own stream is derived from it and ``shard``.
        batch_size: episodes of one batch where ``sample`` is not told another number.
        limiter: holds gathering and learning in turn; owned by this shard from here on.
        posterior_floats: P >= 0, of what learners write back about an episode.
        offline: gives THIS shard's episodes of the dataset (i, i + S, ... for shard i of S) anew at each call, in the same
            order; None: there is no dataset. Read here, and read on while sampling when not all of it fits.
        clock: seconds, monotonic.

    Raises:
        ValueError: a shard index outside 0..shards-1, no room for a row, or nothing to draw before the first stage.
    """

    def __init__(
        self,
        layout: RowLayout,
        config: ReplayConfig,
        data: DataConfig,
        *,
        shard: int,
        shards: int,
        seed: int,
        batch_size: int,
        limiter: StagedLimiter,
        posterior_floats: int,
        offline: Source | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        online_rows = config.capacity_rows // max(shards, 1) if limiter.stages else 0
        if not 0 <= shard < shards or (limiter.stages and not online_rows):
            raise ValueError(
                f"shard {shard} of {shards} would hold {online_rows} online rows; expected a shard index below their number and room "
                "for an episode: nothing could be gathered; raise replay.capacity_rows or lower replay.shards"
            )
        if offline is None and limiter.items_before:
            raise ValueError(
                f"shard {shard} has no dataset and {limiter.items_before} episodes to draw before the first online one; expected a "
                "dataset, or no updates before the first stage: it would wait for ever; set dataset, or steps to the updates of "
                "the stages alone"
            )
        self.layout, self.config, self.data, self.limiter = layout, config, data, limiter
        self.shard, self.shards, self.batch_size = shard, shards, batch_size
        self.table = EpisodeTable(
            layout,
            offline_rows=data.offline_capacity_rows // shards if offline is not None else 0,
            online_rows=online_rows,
            posterior_floats=posterior_floats,
        )
        self.assembly = Assembly(self.table.width, online_rows)
        self.stream = None if offline is None else EpisodeStream(self.table, offline)
        self.rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, shard])))
        self.writers = Writers()
        self.tally = Tally()
        self.newest = (0, 0)  # (epoch, version) of the newest policy heard of
        self._untaught = (-1, -1), 0.0  # a policy that is too old for the open stage, and until when that matters
        self._clock = clock
        self._insert_blocked, self._sample_blocked = Blocked(), Blocked()
        self._last_seen: OrderedDict[int, float] = OrderedDict()
        self._reports: deque[WorkerReport] = deque(maxlen=REPORTS)
        self._reports_dropped = 0
        self._sampled_rows = 0
        self._last_version_K = np.empty(0, np.int64)
        self._pools: tuple[tuple[int, int], list[tuple[int, np.ndarray, np.ndarray]]] = ((-1, 0), [])

    def hear(self, epoch: int, version: int) -> None:
        """Takes note of a policy; acks carry the newest one heard of."""
        self.newest = max(self.newest, (epoch, version))

    def await_policy(self, limit_s: float) -> None:
        """Takes no rows until a policy is heard of that is newer than the newest now, or for ``limit_s``.

        For who runs a shard beside its learner: what the last block of a stage teaches comes after the stage is over here.
        """
        self._untaught = self.newest, self._clock() + limit_s

    def append(self, chunk: Chunk) -> Ack:
        """Takes a chunk's rows, once, and stores the episodes that are whole with them.

        The order of the answers is that of ReplayShard: rejected if it is malformed, duplicate, rejected as closed when the
        run takes no more rows, wait while the stage is learned from, else ok. A chunk is taken whole although more episodes
        end in it than the stage asks for.
        """
        fault = fault_of(chunk, self.layout, max(self.table.capacity, 1)) or _stamp_fault(chunk)
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
        if self.limiter.closed or self.limiter.gathered:
            return self._reject(chunk, "closed", "the run takes no more rows")
        if not self.limiter.can_insert(rows) or self._waits_for_policy(now):
            self._insert_blocked.refuse(now)
            return self._ack("wait", retry_after_s=INSERT_RETRY_S)
        if self._insert_blocked.waiting:
            self._insert_blocked.allow(now)
        self._store(chunk)
        return self._ack("ok")

    def sample(
        self, updates: int, batch: int | None = None, newest: tuple[int, int] | None = None
    ) -> EpisodeBlock | Wait:
        """``updates`` batches of ``batch`` whole episodes, drawn with replacement; or why there are none yet.

        Of each batch the first round(offline_fraction B) come from the dataset, the others from the online episodes; all from
        one side while the other has none; from both as one pool when the fraction is -1. Within a side they are drawn as
        ``data.sampling`` says. The arrays are fresh: the receiver owns them. While a stage is gathered the reason to wait is
        "min_size", as in a warm-up: it says nothing against the workers.

        Args:
            updates: U >= 1.
            batch: B >= 1; the shard's batch_size if None.
            newest: (epoch, version) of the policy the learner published last.
        """
        if newest is not None:
            self.hear(*newest)
        batch = self.batch_size if batch is None else batch
        if updates < 1 or batch < 1:
            raise ValueError(f"sample got {updates} updates of {batch} episodes; expected at least 1 of each")
        if not self.limiter.can_sample(updates * batch):
            return self._hold_back()
        if self._sample_blocked.waiting:
            self._sample_blocked.allow(self._clock())
        if self.stream is not None:
            self.stream.refresh(updates * self.data.refresh_episodes)
        slot_UB = self._draw(updates, batch)
        self.limiter.sample(updates * batch)
        table = self.table
        version_UB = table.version[slot_UB]
        self._last_version_K = version_UB[version_UB >= 0]
        self._sampled_rows += int(table.length[slot_UB].sum())
        return EpisodeBlock(
            batches=tuple(self._gather(slot_B) for slot_B in slot_UB),
            slot_UB=slot_UB,
            generation_UB=table.generation[slot_UB],
            version_UB=version_UB,
            shard=self.shard,
            inserted=table.inserted,
            size=table.episodes,
            returns=table.returns(self.data.target_quantile, self.limiter.stage),
        )

    def write_back(self, slots: np.ndarray, generations: np.ndarray, values: np.ndarray) -> int:
        """Leaves P floats beside each episode that is still the one that was sampled; returns how many were.

        Args:
            slots, generations: (K,) int64, from a block of this shard.
            values: (K, P) float32, finite.

        Raises:
            ValueError: shapes that do not agree, a slot outside the table, a value that is not finite.
        """
        slots, generations, values = np.asarray(slots), np.asarray(generations), np.asarray(values, np.float32)
        made, floats = len(self.table.origin), self.table.posterior_floats
        same = slots.ndim == 1 and slots.shape == generations.shape and values.shape == (*slots.shape, floats)
        if not same or (slots.size and (slots.min() < 0 or slots.max() >= made)) or not np.isfinite(values).all():
            raise ValueError(
                f"write_back got shapes {slots.shape}, {generations.shape}, {values.shape}; expected (K,), (K,), (K, {floats}), slots "
                f"below {made} and finite values: nothing was written; send what came with a block of shard {self.shard}"
            )
        return self.table.write_back(slots, generations, values)

    def align(self, rows: int) -> None:
        """Adds ``rows`` to the count of episodes drawn here, as ReplayShard.align does. See ``limiter.dealt``."""
        self.limiter.align(self.limiter.sampled + rows)

    def close(self) -> None:
        """No more rows are coming: samples use up what complete stages allow, then are told ``exhausted``."""
        self.limiter.close()

    def drain_stats(self) -> list[WorkerReport]:
        """The workers' reports since the last call, oldest first; of more than REPORTS the oldest are dropped and counted."""
        reports = list(self._reports)
        self._reports.clear()
        return reports

    def stats(self) -> ShardStats:
        """The shard's counters now; rows as in ReplayShard, with rows of a dataset in size, capacity, fill and bytes."""
        now, table, tally = self._clock(), self.table, self.tally
        capacity = table.offline.capacity + table.online.capacity
        return ShardStats(
            shard=self.shard,
            size=table.size,
            capacity=capacity,
            fill=table.size / capacity if capacity else 0.0,
            bytes=table.nbytes,
            received_rows=tally.received,
            stored_rows=table.inserted,
            duplicate_rows=tally.duplicate,
            rejected_rows=dict(tally.rejected_rows),
            rejected_chunks=dict(tally.rejected_chunks),
            sampled_rows=self._sampled_rows,
            credit_rows=self.limiter.credit,
            insert_blocked_s=self._insert_blocked.until(now),
            sample_blocked_s=self._sample_blocked.until(now),
            epoch=self.newest[0],
            version=self.newest[1],
            age_rows=tally.age_rows.copy(),
            age_p50=tally.age_quantile(0.5),
            age_p95=tally.age_quantile(0.95),
            sampled_age_mean=self.newest[1] - float(self._last_version_K.mean()) if self._last_version_K.size else 0.0,
            writers=len(self.writers),
            last_seen_s=dict(self._last_seen),
            stats_dropped=self._reports_dropped,
            episodes=table.episodes,
            offline_episodes=len(table.offline.order),
            stored_episodes=table.online.stored_episodes,
            episode_rows=table.online.stored_rows,
            open_rows=self.assembly.rows,
            open_episodes=self.assembly.episodes,
            lost_rows=dict(self.assembly.dropped),
            sampled_episodes=self.limiter.sampled,
            stage=self.limiter.stage,
        )

    def state(self) -> dict[str, Any]:
        """Everything but arrays that the next samples and answers depend on; JSON-able."""
        return {
            "table": self.table.state(),
            "assembly": self.assembly.state(),
            "stream": None if self.stream is None else self.stream.state(),
            "limiter": self.limiter.state(),
            "writers": self.writers.state(),
            "tally": self.tally.state(),
            "rng": self.rng.bit_generator.state,
            "newest": list(self.newest),
            "sampled_rows": self._sampled_rows,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes what ``state`` gave but for the parts that have arrays; ``replay.episode_snapshot`` loads those."""
        self.limiter.load_state(state["limiter"])
        self.writers.load_state(state["writers"])
        self.tally.load_state(state["tally"])
        self.rng.bit_generator.state = state["rng"]
        self.newest = (int(state["newest"][0]), int(state["newest"][1]))
        self._sampled_rows = int(state["sampled_rows"])

    def _waits_for_policy(self, now: float) -> bool:
        too_old, until = self._untaught
        return self.newest <= too_old and now < until

    def _store(self, chunk: Chunk) -> None:
        self.hear(chunk.epoch, chunk.version)
        rows, stage = len(chunk.rows_ND), self.limiter.stage
        whole = self.assembly.add(chunk)
        for episode in whole:
            self.table.put(ONLINE, episode.rows_TF, _mark(episode, stage))
        self.table.inserted += rows
        self.writers.store(chunk.worker, chunk.incarnation, chunk.sequence)
        self.limiter.insert(rows, len(whole))
        self.tally.store(rows, self.newest[1] - chunk.version if chunk.epoch == self.newest[0] else None)
        self._reports_dropped += len(self._reports) == REPORTS
        self._reports.append(WorkerReport(chunk.worker, chunk.incarnation, dict(chunk.stats)))

    def _draw(self, updates: int, batch: int) -> np.ndarray:
        """Slots (U, B) int64."""
        key = self.table.changes, batch
        if self._pools[0] != key:
            self._pools = key, self._make_pools(batch)
        slots, uniform_UB, first = [], self.rng.random((updates, batch)), 0
        for count, slot_M, cumulative_M in self._pools[1]:
            slots.append(slot_M[draw(uniform_UB[:, first : first + count], cumulative_M)])
            first += count
        return np.concatenate(slots, axis=1)

    def _make_pools(self, batch: int) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """What a batch is drawn from: (how many episodes of it, slots (M,), running sum of their weights (M,))."""
        table, data = self.table, self.data
        offline_M, online_M = table.held(OFFLINE), table.held(ONLINE)
        share = offline_share(data.offline_fraction, batch, len(offline_M), len(online_M))
        sides = [(share, offline_M), (batch - share, online_M)] if share is not None else []
        pools = []
        for count, slot_M in sides or [(batch, np.concatenate([offline_M, online_M]))]:
            if count:
                lengths, returns = table.length[slot_M], table.ret[slot_M]
                weight_M = draw_weights(data.sampling, lengths, returns, data.return_temperature)
                pools.append((count, slot_M, np.cumsum(weight_M)))
        return pools

    def _gather(self, slot_B: np.ndarray) -> Trajectories:
        table = self.table
        rows_NF, offset = pack(table.rows, table.start[slot_B], table.length[slot_B])
        return Trajectories(
            rows_NF=rows_NF,
            offset=offset,
            return_B=table.ret[slot_B].astype(np.float32),
            posterior_BP=table.posterior[slot_B],
            visits_B=table.visits[slot_B],
        )

    def _hold_back(self) -> Wait:
        if self.limiter.exhausted:
            return Wait(reason="exhausted", retry_after_s=0.0)
        self._sample_blocked.refuse(self._clock())
        first = self.limiter.inserted < self.limiter.min_size
        return Wait(reason="min_size", retry_after_s=WARM_UP_RETRY_S if first else SAMPLE_RETRY_S)

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


def bytes_needed(layout: RowLayout, config: ReplayConfig, data: DataConfig, posterior_floats: int) -> int:
    """Upper bound in bytes over all shards of a run with dataset and stages: rows, columns, open episodes, what is kept of
    episodes that streamed out, a snapshot in progress. Without the interpreters, and without blocks and chunks on the way."""
    row = 4 * (layout.obs_dim + layout.action_dim + 1)
    rings = data.offline_capacity_rows // config.shards, config.capacity_rows // config.shards
    slot = SLOT_BYTES + 4 * posterior_floats
    slots = 2 * sum(max(FIRST_SLOTS, rows // ROWS_AN_EPISODE) for rows in rings) + FIRST_SLOTS
    remembered = WRITERS * (WINDOW // 8 + 640)
    return config.shards * (row * (2 * rings[0] + 4 * rings[1]) + 2 * slots * slot + remembered)


def _stamp_fault(chunk: Chunk) -> tuple[str, str] | None:
    """What is wrong with a chunk's stamps. One of an episode that does not begin in the chunk is passed over."""
    for stamp in chunk.stamps:
        numbers = stamp[2:]
        if (
            len(stamp) != 5
            or not isinstance(stamp[0], Integral)
            or not (isinstance(stamp[1], str) and len(stamp[1]) <= MODE_LENGTH)
            or not all(isinstance(number, Real) for number in numbers)
        ):
            return (
                "stamp",
                f"a stamp is {stamp}; expected an int, a mode of at most {MODE_LENGTH} characters and three floats",
            )
    return None


def _mark(whole: Whole, stage: int) -> EpisodeMark:
    reward_T = whole.rows_TF[:, -1]
    stamp = () if whole.stamp is None else whole.stamp[1:]
    names = ("mode", "target", "predicted", "variance")
    return EpisodeMark(
        episode=whole.episode,
        ret=float(reward_T.sum(dtype=np.float64)),
        flag=whole.flag,
        version=whole.version,
        stage=stage,
        **dict(zip(names, stamp)),  # type: ignore[arg-type]
    )
