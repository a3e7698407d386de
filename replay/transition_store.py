"""A shard's transitions: a ring of preallocated rows, newest over oldest, and the rows of a dataset that every batch mixes in.

Letters: C rows of capacity, N rows of a chunk, D row width, U updates of a block, B batch, K dataset rows of a batch, T steps of an
episode, M slots.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from replay.admission import Fault
from replay.config import DataConfig, ReplayConfig
from replay.dataset_stream import VERSION, OfflineRows
from replay.limiter import AnyLimiter
from replay.messages import TERMINATED, TRUNCATED, Block, Chunk
from replay.schema import RowLayout
from replay.store import SEGMENT_BYTES, Arrays, Recorded, Store, offline_share
from replay.stored_episode import StoredEpisode

WAITING = 65_536  # row ends remembered while their neighbour in time has not arrived
META_BYTES = 8 + 8 + 8 + 4 + 4 + 1  # episode, link, version, generation, step, flag: bytes a row beside its floats
_SEGMENT_META_BYTES = META_BYTES + 4  # rows of format 1 had a priority; segments keep the size that they had then


class Episode(NamedTuple):
    """One episode from its first row to its flagged last one."""

    episode: int
    rows_TD: np.ndarray  # float32, a copy, in step order
    flag: int  # how it ended: TERMINATED | TRUNCATED | CUT
    version_T: np.ndarray  # int64, of the policy that acted at each step
    slot_T: np.ndarray  # int64
    writes_T: np.ndarray  # int64


class TransitionStore(Store):
    """Rows and what is known of each, by slot. Slot ``inserted % capacity`` is written next.

    A slot's generation is how often it has been written; in a ring that follows from ``inserted`` alone and is not stored. Slots of
    a dataset's rows are negative (``replay.dataset_stream``).

    Args:
        layout: of the packed rows.
        config: totals over all shards; this store holds C = capacity_rows // shards online rows.
        gamma: discount factor of the n-step returns, used only if config.n_step > 1.
        data: how dataset and online rows are mixed, if there is a dataset.
        offline: this shard's part of the dataset; None: there is none.

    Attributes:
        rows: (C, D) float32, packed.
        episode: (C,) int64. step: (C,) int32, index in the episode. flag: (C,) uint8, how the episode ended there, or
        0. version, generation: (C,) int64, int32, of the policy that acted.
        link: (C,) int64, slot of the episode's next row, -1 while that has not arrived. It may be out of date when
            rows of an episode arrived in reverse order: ``successor`` checks.
    """

    items, rate_limited, formats = "rows", "samples_ahead", (1, 2)
    columns = ("rows", "episode", "step", "flag", "version", "generation", "link")

    def __init__(
        self,
        layout: RowLayout,
        config: ReplayConfig,
        *,
        gamma: float = 0.99,
        data: DataConfig | None = None,
        offline: OfflineRows | None = None,
    ) -> None:
        capacity = config.capacity_rows // config.shards
        self.segment_slots = segment_slots(layout, capacity)
        super().__init__(layout, config, capacity, -(-capacity // self.segment_slots))
        self.gamma, self.data, self.offline = gamma, data or DataConfig(), offline
        self.rows = np.zeros((capacity, layout.width), np.float32)
        self.episode = np.full(capacity, -1, np.int64)
        self.step = np.zeros(capacity, np.int32)
        self.flag = np.zeros(capacity, np.uint8)
        self.version = np.zeros(capacity, np.int64)
        self.generation = np.zeros(capacity, np.int32)
        self.link = np.full(capacity, -1, np.int64)
        self._tails: dict[tuple[int, int], int] = {}  # (episode, step awaited) -> slot of the row before it
        self._heads: dict[tuple[int, int], int] = {}  # (episode, step) whose predecessor is awaited -> its slot
        self._ranges, self._range_B = (0, 0), np.empty(0)  # what draws are scaled by, for (batch, size)

    @property
    def size(self) -> int:
        """Online rows held."""
        return min(self.inserted, self.capacity)

    @property
    def nbytes(self) -> int:
        """Bytes of all columns, filled or not, and of the dataset's rows."""
        offline = 0 if self.offline is None else self.offline.nbytes
        return offline + sum(int(getattr(self, name).nbytes) for name in self.columns)

    def check(self, limiter: AnyLimiter, batch_size: int) -> None:
        if self.capacity < max(batch_size, limiter.min_size):
            raise ValueError(
                f"a shard would hold {self.capacity} rows, with a batch of {batch_size} and {limiter.min_size} rows before the first "
                "sample; expected room for both: it could never be sampled; raise replay.capacity_rows or lower replay.shards"
            )
        if limiter.items_before and self.offline is None:
            raise ValueError(
                f"a shard has no dataset and a limiter with {limiter.items_before} rows to sample before the first insert, expected "
                "0: they would be drawn from nothing; set data.pretrain_updates to 0, or give a dataset"
            )

    def fault(self, chunk: Chunk) -> Fault | None:
        return None

    def writes(self, slots: np.ndarray) -> np.ndarray:
        """How often each of ``slots`` has been written; int64."""
        laps, cursor = divmod(self.inserted, self.capacity)
        return (slots < cursor) + laps

    def append(self, chunk: Chunk, stage: int = 0) -> int:
        """Copies the rows of a sound chunk of at most C rows over the oldest ones."""
        n = len(chunk.rows_ND)
        slot_N = np.arange(self.inserted, self.inserted + n) % self.capacity
        self._touch(slot_N)
        same = chunk.episode_N[1:] == chunk.episode_N[:-1]
        link_N = np.full(n, -1, np.int64)
        link_N[:-1][same] = slot_N[1:][same]
        first, room = int(slot_N[0]), min(n, self.capacity - int(slot_N[0]))
        columns: tuple[np.ndarray, ...] = (self.rows, self.episode, self.step, self.flag, self.link)
        arrays = (chunk.rows_ND, chunk.episode_N, chunk.step_N, chunk.flag_N, link_N)
        for column, array in zip(columns, arrays):
            column[first : first + room] = array[:room]
            column[: n - room] = array[room:]
        scalars: tuple[tuple[np.ndarray, int], ...] = (
            (self.version, chunk.version),
            (self.generation, chunk.generation),
        )
        for column, value in scalars:
            column[first : first + room] = value
            column[: n - room] = value
        self.inserted += n
        bounds = np.flatnonzero(np.concatenate(([True], ~same, [True])))
        for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist()):
            self._join(int(slot_N[start]), int(slot_N[stop - 1]))
        return 0

    def successor(self, slots: np.ndarray) -> np.ndarray:
        """Slot of the episode's next row for each of ``slots``; -1 at an end, or where it is not held. int64."""
        after = self.link[slots]
        follows = (self.episode[after] == self.episode[slots]) & (self.step[after] == self.step[slots] + 1)
        return np.where((after >= 0) & (self.flag[slots] == 0) & follows, after, -1)

    def draw(self, rng: np.random.Generator, updates: int, batch: int, pretraining: bool) -> np.ndarray:
        """Slots (U, B) int64: the dataset's first.

        The last round(recent_fraction B) rows of a batch are uniform over the newest recent_rows / shards rows held, the others
        uniform over all. With a dataset this holds for the last B - K rows; the first K = round(offline_fraction B) are uniform
        over the dataset's. While pretraining all are. One uniform of 53 bits for each, scaled: cheaper than two calls for bounded
        integers.
        """
        uniform_UB = rng.random((updates, batch))
        share = self._offline_share(batch, pretraining)
        if self.offline is None or not share:
            return self._draw_online(uniform_UB)
        offline_UK = self.offline.draw(uniform_UB[:, :share])
        if share == batch:
            return offline_UK
        return np.concatenate([offline_UK, self._draw_online(uniform_UB[:, share:])], axis=1)

    def gather(self, slot_UB: np.ndarray, shard: int, stage: int) -> Block:
        share = 0 if self.offline is None else int(np.count_nonzero(slot_UB[0] < 0))
        online_UB = slot_UB[:, share:]
        rows_UBD = self._rows(online_UB)
        if self.offline is not None and share:
            rows_UBD = np.concatenate([self.offline.take(slot_UB[:, :share]), rows_UBD], axis=1)
        return Block(
            rows_UBD=rows_UBD,
            slot_UB=slot_UB,
            writes_UB=_beside(0, share, self.writes(online_UB)),
            version_UB=_beside(VERSION, share, self.version.take(online_UB)),
            shard=shard,
            inserted=self.inserted,
            size=self.size,
        )

    def stats(self) -> dict[str, Any]:
        rows, episodes = (0, 0) if self.offline is None else (len(self.offline), self.offline.episodes)
        return {"size": self.size + rows, "capacity": self.capacity + rows, "offline_episodes": episodes}

    def episodes(self) -> Iterator[Episode]:
        """Every episode of which all rows are held, by episode id. Do not append while iterating."""
        slot_N = np.lexsort((self.step[: self.size], self.episode[: self.size]))
        bounds = np.flatnonzero(np.diff(self.episode[slot_N], prepend=-1, append=-1))
        for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist()):
            slot_T = slot_N[start:stop]
            flag = int(self.flag[slot_T[-1]])
            if flag == 0 or (self.step[slot_T] != np.arange(len(slot_T))).any():
                continue
            yield Episode(
                episode=int(self.episode[slot_T[0]]),
                rows_TD=self.rows[slot_T],
                flag=flag,
                version_T=self.version[slot_T],
                slot_T=slot_T,
                writes_T=self.writes(slot_T),
            )

    @property
    def online_rows(self) -> int:
        return self.size

    def recorded(self) -> Iterator[Recorded]:
        for episode in self.episodes():
            if episode.flag & (TERMINATED | TRUNCATED):  # a worker's end cuts others short
                first = int(episode.slot_T[0])
                stored = (int(episode.writes_T[0]) - 1) * self.capacity + first
                age = int(self.generation[first]), int(episode.version_T[0]), stored
                yield Recorded(age, len(episode.slot_T), functools.partial(self._read, episode.slot_T))

    def identity(self) -> dict[str, Any]:
        return {
            "layout": dataclasses.asdict(self.layout),
            "capacity": self.capacity,
            "segment_slots": self.segment_slots,
        }

    def segments(self) -> dict[int, Arrays | None]:
        return dict.fromkeys(range(-(-self.size // self.segment_slots)))

    def next_changed(self, segments: int) -> Iterable[int]:
        first = self.inserted % self.capacity // self.segment_slots
        return ((first + i) % segments for i in range(segments))

    def segment(self, index: int) -> Arrays:
        start = index * self.segment_slots
        return {name: getattr(self, name)[start : start + self.segment_slots] for name in self.columns}

    def state(self) -> dict[str, Any]:
        """What is not in the columns; JSON-able. Of a dataset's rows a digest: they are read again."""
        table = {
            "inserted": self.inserted,
            "tails": [[*key, slot] for key, slot in self._tails.items()],
            "heads": [[*key, slot] for key, slot in self._heads.items()],
        }
        return {"table": table} | ({} if self.offline is None else {"offline": self.offline.state()})

    def load(self, state: dict[str, Any], segments: Iterable[Arrays]) -> None:
        if self.offline is not None and "offline" in state:
            self.offline.check_state(state["offline"])
        for index, arrays in enumerate(segments):
            if "epoch" in arrays:  # what earlier versions called it
                arrays = arrays | {"generation": arrays["epoch"]}
            for name, column in self.segment(index).items():
                column[:] = arrays[name]
        table = state["table"]
        self.inserted = int(table["inserted"])
        self._tails = {(e, s): slot for e, s, slot in table["tails"]}
        self._heads = {(e, s): slot for e, s, slot in table["heads"]}

    def _offline_share(self, batch: int, pretraining: bool) -> int:
        """K: how many rows of a batch are the dataset's."""
        if self.offline is None:
            return 0
        held, online = len(self.offline), 0 if pretraining else self.size
        share = offline_share(self.data.offline_fraction, batch, held, online)
        return round(batch * held / (held + online)) if share is None else share

    def _draw_online(self, uniform_UB: np.ndarray) -> np.ndarray:
        """Slots of online rows, (U, B) int64."""
        batch, capacity, size = uniform_UB.shape[1], self.capacity, self.size
        if self._ranges != (batch, size):
            self._recent = round(self.config.recent_fraction * batch)
            self._window = min(max(self.config.recent_rows // self.config.shards, 1), size)
            self._range_B = np.full(batch, float(size))
            self._range_B[batch - self._recent :] = self._window
            self._ranges = (batch, size)
        slot_UB = (uniform_UB * self._range_B).astype(np.int64)
        oldest_recent = self.inserted % capacity - self._window
        if self._recent:
            slot_UB[:, batch - self._recent :] += oldest_recent
            if oldest_recent < 0:
                slot_UB[slot_UB < 0] += capacity
        return slot_UB

    def _rows(self, slot_UB: np.ndarray) -> np.ndarray:
        """Rows (U, B, D) of online slots, of up to n steps each."""
        if self.config.n_step == 1:
            return self.rows.take(slot_UB, axis=0)
        row_MD = gather_n_step(self, slot_UB.ravel(), n=self.config.n_step, gamma=self.gamma)
        return row_MD.reshape(*slot_UB.shape, -1)

    def _read(self, slot_T: np.ndarray, index: int) -> StoredEpisode:
        columns, flag = self.layout.views(self.rows[slot_T]), int(self.flag[slot_T[-1]])
        return StoredEpisode(
            index=index,
            obs_TO=columns.obs.copy(),
            action_TA=columns.action.copy(),
            reward_T=columns.reward.astype(np.float64),
            terminated=bool(flag & TERMINATED),
            truncated=bool(flag & TRUNCATED),
            next_obs_O=columns.next_obs[-1].copy(),
        )

    def _join(self, first: int, last: int) -> None:
        """Links a run of one episode, stored in slots first..last, to its neighbours in time."""
        episode, step, end = int(self.episode[first]), int(self.step[first]), int(self.step[last]) + 1
        if step > 0:
            before = self._tails.pop((episode, step), -1)
            if before >= 0 and self._holds(before, episode, step - 1):
                self._touch(np.array([before]))
                self.link[before] = first
            elif before < 0:
                _remember(self._heads, (episode, step), first)
        if self.flag[last] == 0:
            after = self._heads.pop((episode, end), -1)
            if after >= 0 and self._holds(after, episode, end):
                self.link[last] = after
            elif after < 0:
                _remember(self._tails, (episode, end), last)

    def _holds(self, slot: int, episode: int, step: int) -> bool:
        return bool(self.episode[slot] == episode and self.step[slot] == step)

    def _touch(self, slots: np.ndarray) -> None:
        segments = np.unique(slots // self.segment_slots)
        if self.keeper is not None:
            self.keeper(segments)
        self.dirty[segments] = True


def segment_slots(layout: RowLayout, capacity: int) -> int:
    """Slots of a segment: about SEGMENT_BYTES of them, at least 256, at most all."""
    return min(capacity, max(256, SEGMENT_BYTES // (4 * layout.width + _SEGMENT_META_BYTES)))


def gather_n_step(store: TransitionStore, slot_M: np.ndarray, *, n: int, gamma: float) -> np.ndarray:
    """Packed rows (M, D) float32 of up to ``n`` steps from each of ``slot_M`` (M,) int64 on, found by each episode's links.

        r^(m) = sum_{k<m} gamma^k r_{t+k},   discount^(m) = gamma^(m-1) (1 - terminated_{t+m-1}),   next_obs^(m) = next_obs_{t+m-1}

    so that r^(m) + gamma discount^(m) V(next_obs^(m)) is the m-step target: the learner multiplies by gamma as for one step. m is n,
    or less where the episode ends or its next row is not held. A truncated end bootstraps from its true last observation; a
    terminated one does not.
    """
    o, a = store.layout.obs_dim, store.layout.action_dim
    reward, discount, next_obs = o + a, o + a + 1, slice(o + a + 2, None)
    row_MD = np.take(store.rows, slot_M, axis=0)
    return_M = row_MD[:, reward].astype(np.float64)
    last_M = slot_M.copy()
    scale_M = np.ones(len(slot_M))
    walking = np.arange(len(slot_M))
    for k in range(1, n):
        after = store.successor(last_M[walking])
        walking, after = walking[after >= 0], after[after >= 0]
        if walking.size == 0:
            break
        return_M[walking] += gamma**k * store.rows[after, reward]
        scale_M[walking] = gamma**k
        last_M[walking] = after
    row_MD[:, reward] = return_M
    row_MD[:, discount] = scale_M * store.rows[last_M, discount]
    row_MD[:, next_obs] = store.rows[last_M, next_obs]
    return row_MD


def _beside(value: int, share: int, online_UB: np.ndarray) -> np.ndarray:
    """``online_UB`` with ``share`` columns of ``value`` before it."""
    return np.pad(online_UB, ((0, 0), (share, 0)), constant_values=value) if share else online_UB


def _remember(waiting: dict[tuple[int, int], int], key: tuple[int, int], slot: int) -> None:
    waiting[key] = slot
    if len(waiting) > WAITING:
        del waiting[next(iter(waiting))]
