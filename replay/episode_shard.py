"""One shard of whole episodes: takes chunks from workers, reads its part of a dataset, hands blocks of trajectories to learners.

Letters: N rows of a batch, F = O + A + 1 row width, U updates of a block, B batch, K episodes written back, P floats of a
posterior.

What it shares with shards of single transitions is in base_shard.py: how chunks are answered, counters, state.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import numpy as np

from replay.admission import fault_of
from replay.base_shard import BaseShard
from replay.chunk import Chunk, Wait
from replay.config import DataConfig, ReplayConfig
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
from replay.stages import StagedLimiter
from replay.trajectories import EpisodeBlock, Trajectories
from replay.writers import WINDOW, WRITERS

MODE_LENGTH = 16  # characters of a stamp's mode


class EpisodeShard(BaseShard):
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

    table: EpisodeTable
    limiter: StagedLimiter
    items, held_back = "episodes", "min_size"  # a stage is gathered: as in a warm-up, nothing against the workers

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
        table = EpisodeTable(
            layout,
            offline_rows=data.offline_capacity_rows // shards if offline is not None else 0,
            online_rows=online_rows,
            posterior_floats=posterior_floats,
        )
        super().__init__(
            layout,
            config,
            table,
            limiter,
            shard=shard,
            shards=shards,
            seed=seed,
            batch_size=batch_size,
            clock=clock,
        )
        self.data = data
        self.assembly = Assembly(table.width, online_rows)
        self.stream = None if offline is None else EpisodeStream(table, offline)
        self._untaught = (-1, -1), 0.0  # a policy that is too old for the open stage, and until when that matters
        self._sampled_rows = 0
        self._pools: tuple[tuple[int, int], list[tuple[int, np.ndarray, np.ndarray]]] = ((-1, 0), [])

    def await_policy(self, limit_s: float) -> None:
        """Takes no rows until a policy is heard of that is newer than the newest now, or for ``limit_s``.

        For who runs a shard beside its learner: what the last block of a stage teaches comes after the stage is over here.
        """
        self._untaught = self.newest, self._clock() + limit_s

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
        size = self._admitted(updates, batch, newest)
        if isinstance(size, Wait):
            return size
        if self.stream is not None:
            self.stream.refresh(updates * self.data.refresh_episodes)
        slot_UB = self._draw(updates, size)
        self.limiter.sample(updates * size)
        table = self.table
        version_UB = table.version[slot_UB]
        self._last_versions = version_UB[version_UB >= 0]
        self._sampled_rows += int(table.length[slot_UB].sum())
        return EpisodeBlock(
            batches=tuple(self._gather(slot_B) for slot_B in slot_UB),
            slot_UB=slot_UB,
            generation_UB=table.generation[slot_UB],
            version_UB=version_UB,
            shard=self.shard,
            inserted=table.inserted,
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

    def state(self) -> dict[str, Any]:
        """Everything but arrays that the next samples and answers depend on; JSON-able."""
        return super().state() | {
            "assembly": self.assembly.state(),
            "stream": None if self.stream is None else self.stream.state(),
            "sampled_rows": self._sampled_rows,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes what ``state`` gave but for the parts that have arrays; ``replay.episode_snapshot`` loads those."""
        super().load_state(state)
        self._sampled_rows = int(state["sampled_rows"])

    def _fault(self, chunk: Chunk) -> tuple[str, str] | None:
        return fault_of(chunk, self.layout, max(self.table.capacity, 1)) or _stamp_fault(chunk)

    def _may_store(self, rows: int, now: float) -> bool:
        too_old, until = self._untaught
        return self.limiter.can_insert(rows) and not (self.newest <= too_old and now < until)

    def _store(self, chunk: Chunk) -> None:
        """Stores the episodes that are whole with this chunk, although they may be more than the stage asks for."""
        rows, stage = len(chunk.rows_ND), self.limiter.stage
        whole = self.assembly.add(chunk)
        for episode in whole:
            self.table.put(ONLINE, episode.rows_TF, _mark(episode, stage))
        self.table.inserted += rows
        self.limiter.insert(rows, len(whole))

    def _held(self) -> dict[str, Any]:
        table = self.table
        return {
            "size": table.size,
            "capacity": table.offline.capacity + table.online.capacity,
            "bytes": table.nbytes,
            "sampled_rows": self._sampled_rows,
            "episodes": table.episodes,
            "offline_episodes": len(table.offline.order),
            "stored_episodes": table.online.stored_episodes,
            "episode_rows": table.online.stored_rows,
            "open_rows": self.assembly.rows,
            "open_episodes": self.assembly.episodes,
            "lost_rows": dict(self.assembly.dropped),
            "sampled_episodes": self.limiter.sampled,
            "stage": self.limiter.stage,
        }

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
