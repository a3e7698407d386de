"""One shard of the replay service: takes chunks from workers, hands blocks of batches to learners.

Letters: D row width, U updates of a block, B batch.

What it shares with shards of whole episodes is in base_shard.py: how chunks are answered, counters, state.

With the transitions of a dataset beside its table (offline_rows.py) every batch is a mixture of both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from replay.admission import Fault, fault_of
from replay.base_shard import BaseShard
from replay.chunk import Block, Chunk, Wait
from replay.config import DataConfig, ReplayConfig
from replay.episode_sampling import offline_share
from replay.episodes import Episode, complete_episodes
from replay.limiter import Limiter
from replay.n_step import gather_n_step
from replay.offline_rows import VERSION, OfflineRows
from replay.rows import RowLayout
from replay.table import Table


class ReplayShard(BaseShard):
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

    table: Table
    limiter: Limiter
    items, held_back = "rows", "samples_ahead"

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
        super().__init__(
            layout,
            config,
            Table(layout, capacity),
            limiter,
            shard=shard,
            shards=shards,
            seed=seed,
            batch_size=batch_size,
            clock=clock,
        )
        self.gamma = gamma
        self.data, self.offline = data or DataConfig(), offline
        self._ranges, self._range_B = (0, 0), np.empty(0)  # what draws are scaled by, for (batch, size)
        self._share = 0  # dataset rows of each batch of the last draw

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
        size = self._admitted(updates, batch, newest)
        if isinstance(size, Wait):
            return size
        slot_UB = self._draw(updates, size)
        self.limiter.sample(updates * size)
        share = self._share
        online_UB = slot_UB[:, share:]
        self._last_versions = self.table.version.take(online_UB)
        return Block(
            rows_UBD=self._gather(slot_UB),
            slot_UB=slot_UB,
            generation_UB=_beside(0, share, self.table.generation(online_UB)),
            version_UB=_beside(VERSION, share, self._last_versions),
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

    def state(self) -> dict[str, Any]:
        """Everything but the columns that the next samples and answers depend on; JSON-able. Of a dataset's rows a digest: they are
        read again."""
        return super().state() | ({} if self.offline is None else {"offline": self.offline.state()})

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes what ``state`` gave; ``replay.snapshot`` loads the columns that belong to it. DatasetError when the dataset's rows
        are others now."""
        if self.offline is not None and "offline" in state:
            self.offline.check_state(state["offline"])
        self.table.load_state(state["table"])
        super().load_state(state)

    def _fault(self, chunk: Chunk) -> Fault | None:
        return fault_of(chunk, self.layout, self.table.capacity)

    def _store(self, chunk: Chunk) -> None:
        self.table.append(chunk)
        self.limiter.insert(len(chunk.rows_ND))

    def _held(self) -> dict[str, Any]:
        table, offline = self.table, self.offline
        rows, nbytes, episodes = (0, 0, 0) if offline is None else (len(offline), offline.nbytes, offline.episodes)
        return {
            "size": table.size + rows,
            "capacity": table.capacity + rows,
            "bytes": table.nbytes + nbytes,
            "sampled_rows": self.limiter.sampled,
            "offline_episodes": episodes,
        }

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


def _beside(value: int, share: int, online_UB: np.ndarray) -> np.ndarray:
    """``online_UB`` with ``share`` columns of ``value`` before it."""
    return np.pad(online_UB, ((0, 0), (share, 0)), constant_values=value) if share else online_UB
