"""A shard's whole episodes: what workers gather, assembled and kept, and the shard's part of a dataset.

Letters: N rows of a batch, F = O + A + 1 row width, U updates of a block, B batch, K episodes written back, M episodes to choose
from, R rows of the arena, T steps of an episode, P floats of a posterior.

Lengths as weights are LPT's (arXiv 2402.04647 [LPT]): every step of the data is then seen equally often. Weights by return and the
share of offline episodes are ours [C].
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from replay.admission import Fault, metadata_fault
from replay.arena import OFFLINE, ONLINE, Arena, EpisodeRecord
from replay.config import DataConfig, ReplayConfig
from replay.dataset_stream import EpisodeStream, Source
from replay.episode_assembly import Assembly, Complete
from replay.limiter import AnyLimiter
from replay.messages import TERMINATED, TRUNCATED, Chunk, EpisodeBlock
from replay.schema import RowLayout, Trajectories
from replay.store import SEGMENT_BYTES, Arrays, Recorded, Store, offline_share
from replay.stored_episode import StoredEpisode

_TABLE, _PARTIAL, _LEFT, _ROWS = "table.", "open_rows", "left_behind", "rows"  # arrays of a snapshot


class EpisodeStore(Store):
    """Episodes of one shard. Rows of an episode that is not complete are kept apart and not drawn.

    Args:
        layout: of the chunks' rows.
        config: totals over all shards; this store holds capacity_rows // shards online rows.
        data: how dataset and online episodes are drawn; offline_capacity_rows is a total too.
        gathers: whether workers gather episodes; otherwise there is no room for online rows.
        posterior_floats: P >= 0, of what learners write back about an episode.
        offline: gives THIS shard's episodes of the dataset (i, i + S, ... for shard i of S) anew at each call, in the same
            order; None: there is no dataset. Read here, and read on while drawing when not all of it fits.
    """

    items, rate_limited = "episodes", "min_size"  # a stage is gathered: as in a warm-up, nothing against the workers
    formats = ("episodes-1",)

    def __init__(
        self,
        layout: RowLayout,
        config: ReplayConfig,
        data: DataConfig,
        *,
        gathers: bool = True,
        posterior_floats: int,
        offline: Source | None = None,
    ) -> None:
        online_rows = config.capacity_rows // config.shards if gathers else 0
        offline_rows = data.offline_capacity_rows // config.shards if offline is not None else 0
        super().__init__(layout, config, online_rows, 0)
        self.data = data
        self.arena = Arena(
            layout, offline_rows=offline_rows, online_rows=online_rows, posterior_floats=posterior_floats
        )
        self.assembly = Assembly(self.arena.width, online_rows)
        self.stream = None if offline is None else EpisodeStream(self.arena, offline)
        self._pools: tuple[tuple[int, int], list[tuple[int, np.ndarray, np.ndarray]]] = ((-1, 0), [])

    @property
    def nbytes(self) -> int:
        return self.arena.nbytes

    def check(self, limiter: AnyLimiter, batch_size: int) -> None:
        if not (limiter.ended or self.capacity):
            raise ValueError(
                "a shard would hold 0 online rows; expected room for an episode: nothing could be gathered; raise "
                "replay.capacity_rows or lower replay.shards"
            )
        if self.stream is None and limiter.items_before:
            raise ValueError(
                f"a shard has no dataset and {limiter.items_before} episodes to draw before the first online one; expected a "
                "dataset, or no updates before the first stage: it would wait for ever; set dataset, or steps to the updates of "
                "the stages alone"
            )

    def fault(self, chunk: Chunk) -> Fault | None:
        return metadata_fault(chunk)

    def append(self, chunk: Chunk, stage: int) -> int:
        """Stores the episodes that are complete with this chunk, although they may be more than the stage asks for."""
        complete = self.assembly.add(chunk)
        for episode in complete:
            self.arena.put(ONLINE, episode.rows_TF, _record(episode, stage))
        self.inserted += len(chunk.rows_ND)
        return len(complete)

    def draw(self, rng: np.random.Generator, updates: int, batch: int, pretraining: bool) -> np.ndarray:
        """Slots (U, B) int64.

        Of each batch the first round(offline_fraction B) come from the dataset, the others from the online episodes; all from
        one side while the other has none; from both as one pool when the fraction is -1. Within a side they are drawn as
        ``data.sampling`` says. More of a dataset that does not fit is read first.
        """
        if self.stream is not None:
            self.stream.refresh(updates * self.data.refresh_episodes)
        key = self.arena.changes, batch
        if self._pools[0] != key:
            self._pools = key, self._make_pools(batch)
        slots, uniform_UB, first = [], rng.random((updates, batch)), 0
        for count, slot_M, cumulative_M in self._pools[1]:
            slots.append(slot_M[draw(uniform_UB[:, first : first + count], cumulative_M)])
            first += count
        return np.concatenate(slots, axis=1)

    def gather(self, slot_UB: np.ndarray, shard: int, stage: int) -> EpisodeBlock:
        return EpisodeBlock(
            batches=tuple(self._batch(slot_B) for slot_B in slot_UB),
            slot_UB=slot_UB,
            writes_UB=self.arena.writes[slot_UB],
            version_UB=self.arena.version[slot_UB],
            shard=shard,
            inserted=self.inserted,
            returns=self.arena.returns(self.data.target_quantile, stage),
        )

    def write_back(self, slots: np.ndarray, writes: np.ndarray, values: np.ndarray) -> int:
        """Keeps P floats with each episode that is still the one that was drawn; returns how many were.

        Args:
            slots, generations: (K,) int64, from a block of this shard.
            values: (K, P) float32, finite.

        Raises:
            ValueError: shapes that do not agree, a slot outside the arena, a value that is not finite.
        """
        slots, writes, values = np.asarray(slots), np.asarray(writes), np.asarray(values, np.float32)
        made, floats = len(self.arena.origin), self.arena.posterior_floats
        same = slots.ndim == 1 and slots.shape == writes.shape and values.shape == (*slots.shape, floats)
        if not same or (slots.size and (slots.min() < 0 or slots.max() >= made)) or not np.isfinite(values).all():
            raise ValueError(
                f"write_back got shapes {slots.shape}, {writes.shape}, {values.shape}; expected (K,), (K,), (K, {floats}), slots "
                f"below {made} and finite values: nothing was written; send what came with a block of this shard"
            )
        return self.arena.write_back(slots, writes, values)

    def stats(self) -> dict[str, Any]:
        arena = self.arena
        return {
            "size": arena.size,
            "capacity": arena.offline.capacity + arena.online.capacity,
            "episodes": arena.episodes,
            "offline_episodes": len(arena.offline.order),
            "stored_episodes": arena.online.stored_episodes,
            "episode_rows": arena.online.stored_rows,
            "open_rows": self.assembly.rows,
            "lost_rows": dict(self.assembly.dropped),
        }

    @property
    def online_rows(self) -> int:
        return self.arena.online.rows + self.assembly.rows

    def recorded(self) -> Iterator[Recorded]:
        for stored, slot in enumerate(self.arena.online.order):
            age = int(self.arena.stage[slot]), int(self.arena.version[slot]), stored
            yield Recorded(age, int(self.arena.length[slot]), functools.partial(self._read, slot))

    def identity(self) -> dict[str, Any]:
        return {
            "layout": dataclasses.asdict(self.layout),
            "offline_capacity": self.arena.offline.capacity,
            "online_capacity": self.arena.online.capacity,
            "posterior_floats": self.arena.posterior_floats,
        }

    def segments(self) -> dict[int, Arrays | None]:
        """Copies of all: the columns and partial episodes, then the online ring's rows. Episodes are few megabytes, and older
        snapshots then share no file with this one. Rows of a dataset are read again, by index."""
        arena, ring = self.arena, self.arena.online
        first = {_TABLE + name: array for name, array in arena.arrays().items()}
        first[_PARTIAL] = self.assembly.partial_rows()
        first[_LEFT] = np.zeros((0, 0), np.float32) if self.stream is None else self.stream.left_behind()
        used = ring.base + max((int(arena.start[s] + arena.length[s]) - ring.base for s in ring.order), default=0)
        step = max(1, SEGMENT_BYTES // (4 * arena.width))
        stops = [(start, min(start + step, used)) for start in range(ring.base, used, step)]
        return dict(enumerate([first, *({_ROWS: arena.rows[start:stop].copy()} for start, stop in stops)]))

    def segment(self, index: int) -> Arrays:
        raise NotImplementedError("segments() gives copies of all segments")

    def state(self) -> dict[str, Any]:
        return {
            "table": {"inserted": self.inserted} | self.arena.state(),
            "assembly": self.assembly.state(),
            "stream": None if self.stream is None else self.stream.state(),
        }

    def load(self, state: dict[str, Any], segments: Iterable[Arrays]) -> None:
        first, *others = segments
        arena, start = self.arena, self.arena.online.base
        if _TABLE + "generation" in first:  # what earlier versions called it
            first = first | {_TABLE + "writes": first[_TABLE + "generation"]}
        arena.load_arrays({name: first[_TABLE + name] for name in arena.columns})
        arena.load_state(state["table"])
        self.inserted = int(state["table"]["inserted"])
        self.assembly.load_state(state["assembly"], first[_PARTIAL])
        if self.stream is not None:
            self.stream.load_state(state["stream"], first[_LEFT])
        for part in others:
            arena.rows[start : start + len(part[_ROWS])] = part[_ROWS]
            start += len(part[_ROWS])

    def _make_pools(self, batch: int) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """What a batch is drawn from: (how many episodes of it, slots (M,), running sum of their weights (M,))."""
        arena, data = self.arena, self.data
        offline_M, online_M = arena.held(OFFLINE), arena.held(ONLINE)
        share = offline_share(data.offline_fraction, batch, len(offline_M), len(online_M))
        sides = [(share, offline_M), (batch - share, online_M)] if share is not None else []
        pools = []
        for count, slot_M in sides or [(batch, np.concatenate([offline_M, online_M]))]:
            if count:
                lengths, returns = arena.length[slot_M], arena.ret[slot_M]
                weight_M = draw_weights(data.sampling, lengths, returns, data.return_temperature)
                pools.append((count, slot_M, np.cumsum(weight_M)))
        return pools

    def _batch(self, slot_B: np.ndarray) -> Trajectories:
        arena = self.arena
        rows_NF, offset = pack(arena.rows, arena.start[slot_B], arena.length[slot_B])
        return Trajectories(
            rows_NF=rows_NF,
            offset=offset,
            return_B=arena.ret[slot_B].astype(np.float32),
            posterior_BP=arena.posterior[slot_B],
            visits_B=arena.visits[slot_B],
        )

    def _read(self, slot: int, index: int) -> StoredEpisode:
        """An episode as a dataset has it. No observation after the last action is kept: the last step's own is given once more."""
        arena, dim = self.arena, self.layout.obs_dim
        first, flag = int(arena.start[slot]), int(arena.flag[slot])
        rows_TF = arena.rows[first : first + int(arena.length[slot])]
        return StoredEpisode(
            index=index,
            obs_TO=rows_TF[:, :dim].copy(),
            action_TA=rows_TF[:, dim:-1].copy(),
            reward_T=rows_TF[:, -1].astype(np.float64),
            terminated=bool(flag & TERMINATED),
            truncated=bool(flag & TRUNCATED),
            next_obs_O=rows_TF[-1, :dim].copy(),
        )


def _record(complete: Complete, stage: int) -> EpisodeRecord:
    reward_T = complete.rows_TF[:, -1]
    given: dict[str, Any] = {} if complete.metadata is None else complete.metadata._asdict()
    return EpisodeRecord(
        ret=float(reward_T.sum(dtype=np.float64)),
        flag=complete.flag,
        version=complete.version,
        stage=stage,
        **(given | {"episode": complete.episode}),
    )


def draw_weights(sampling: str, length_M: np.ndarray, return_M: np.ndarray, temperature: float) -> np.ndarray:
    """How often each episode is drawn, up to a factor; float64 (M,), positive.

    length:  T                        each step of the data is seen equally often
    uniform: 1
    return:  T exp(z / temperature)   z: its return, standardised over the M; 0 where all are equal

    Exponents are cut at -50 below the largest, so that every episode can be drawn.
    """
    if sampling == "uniform":
        return np.ones(len(length_M))
    weight_M = length_M.astype(np.float64)
    if sampling == "length":
        return weight_M
    if sampling == "return":
        spread = return_M.std()
        z_M = (return_M - return_M.mean()) / spread if spread > 0 else np.zeros(len(return_M))
        exponent_M = z_M / temperature
        return weight_M * np.exp(np.maximum(exponent_M - exponent_M.max(initial=-np.inf), -50.0))
    raise ValueError(
        f"sampling is {sampling!r}, expected length, uniform or return: no episode can be drawn; set data.sampling"
    )


def draw(uniform: np.ndarray, cumulative_M: np.ndarray) -> np.ndarray:
    """Indices below M, one for each of ``uniform`` (any shape, in [0, 1)); int64. ``cumulative_M``: running sum of weights."""
    index = np.searchsorted(cumulative_M, uniform * cumulative_M[-1], side="right")
    return np.minimum(index, len(cumulative_M) - 1)


def pack(rows_RF: np.ndarray, start_B: np.ndarray, length_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Extents of the arena, one after the other: rows (N, F), fresh, and offsets (B + 1,) int64. One gather, no loop."""
    offset = np.zeros(len(length_B) + 1, np.int64)
    np.cumsum(length_B, out=offset[1:])
    row_N = np.repeat(start_B - offset[:-1], length_B)
    row_N += np.arange(offset[-1])
    return rows_RF.take(row_N, axis=0), offset
