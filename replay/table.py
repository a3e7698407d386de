"""The columns of one shard: a ring of preallocated rows, newest over oldest.

Letters: C rows of capacity, N rows of a chunk, D row width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from replay.chunk import Chunk
from replay.manifest import Entry
from replay.rows import RowLayout

SEGMENT_BYTES = 4 << 20  # about what a snapshot writes at once
WAITING = 65_536  # row ends remembered while their neighbour in time has not arrived
META_BYTES = (
    8 + 8 + 8 + 4 + 4 + 4 + 1
)  # episode, link, version, epoch, step, priority, flag: bytes a row beside its floats


class Keeper(Protocol):
    """Somebody who must read segments before they change: a snapshot in progress."""

    def keep(self, segments: np.ndarray) -> None: ...


class Saved(NamedTuple):
    """The snapshot against which ``Table.dirty`` is counted."""

    directory: Path
    entries: dict[int, Entry]  # by segment
    numbers: tuple[int, ...]  # of the snapshots there that are this table's own, oldest first


class Table:
    """Rows and what is known of each, by slot. Slot ``inserted % capacity`` is written next.

    A slot's generation is how often it has been written; in a ring that follows from ``inserted`` alone and is not
    stored.

    Attributes:
        rows: (C, D) float32, packed.
        episode: (C,) int64. step: (C,) int32, index in the episode. flag: (C,) uint8, how the episode ended there, or
        0. version, epoch: (C,) int64, int32, of the policy that acted.
        link: (C,) int64, slot of the episode's next row, -1 while that has not arrived. It may be out of date when
        rows of
            an episode arrived in reverse order: ``successor`` checks.
        priority: (C,) float32, 0 when written. The hook by which a learner leaves something beside a row.
    """

    columns = ("rows", "episode", "step", "flag", "version", "epoch", "link", "priority")

    def __init__(self, layout: RowLayout, capacity: int) -> None:
        self.layout = layout
        self.capacity = capacity
        self.inserted = 0
        self.rows = np.zeros((capacity, layout.width), np.float32)
        self.episode = np.full(capacity, -1, np.int64)
        self.step = np.zeros(capacity, np.int32)
        self.flag = np.zeros(capacity, np.uint8)
        self.version = np.zeros(capacity, np.int64)
        self.epoch = np.zeros(capacity, np.int32)
        self.link = np.full(capacity, -1, np.int64)
        self.priority = np.zeros(capacity, np.float32)
        self.segment_slots = segment_slots(layout, capacity)
        self.dirty = np.zeros(-(-capacity // self.segment_slots), bool)  # changed since the last snapshot
        self.keeper: Keeper | None = None
        self.saved: Saved | None = None
        self._tails: dict[tuple[int, int], int] = {}  # (episode, step awaited) -> slot of the row before it
        self._heads: dict[
            tuple[int, int], int
        ] = {}  # (episode, step) of a row whose predecessor is awaited -> its slot

    @property
    def size(self) -> int:
        """Rows held."""
        return min(self.inserted, self.capacity)

    @property
    def nbytes(self) -> int:
        """Bytes of all columns, filled or not."""
        return sum(int(getattr(self, name).nbytes) for name in self.columns)

    def generation(self, slots: np.ndarray) -> np.ndarray:
        """How often each of ``slots`` has been written; int64."""
        laps, cursor = divmod(self.inserted, self.capacity)
        return (slots < cursor) + laps

    def append(self, chunk: Chunk) -> None:
        """Copies the rows of a sound chunk of at most ``capacity`` rows over the oldest ones."""
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
            (self.epoch, chunk.epoch),
            (self.priority, 0),
        )
        for column, value in scalars:
            column[first : first + room] = value
            column[: n - room] = value
        self.inserted += n
        bounds = np.flatnonzero(np.concatenate(([True], ~same, [True])))
        for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist()):
            self._join(int(slot_N[start]), int(slot_N[stop - 1]))

    def successor(self, slots: np.ndarray) -> np.ndarray:
        """Slot of the episode's next row for each of ``slots``; -1 at an end, or where it is not held. int64."""
        after = self.link[slots]
        follows = (self.episode[after] == self.episode[slots]) & (self.step[after] == self.step[slots] + 1)
        return np.where((after >= 0) & (self.flag[slots] == 0) & follows, after, -1)

    def write_back(self, slots: np.ndarray, generations: np.ndarray, values: np.ndarray) -> int:
        """Sets ``priority`` where a slot still holds the row of that generation; returns at how many of them."""
        current = (self.generation(slots) == generations) & (generations > 0)
        self._touch(slots[current])
        self.priority[slots[current]] = values[current]
        return int(current.sum())

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
            self.keeper.keep(segments)
        self.dirty[segments] = True

    def segment(self, index: int) -> dict[str, np.ndarray]:
        """Views of segment ``index`` by column: the unit of snapshots."""
        start = index * self.segment_slots
        return {name: getattr(self, name)[start : start + self.segment_slots] for name in self.columns}

    def segments_in_use(self) -> int:
        """How many segments, from 0, hold rows."""
        return -(-self.size // self.segment_slots)

    def state(self) -> dict[str, Any]:
        """What is not in the columns; JSON-able."""
        return {
            "inserted": self.inserted,
            "tails": [[*key, slot] for key, slot in self._tails.items()],
            "heads": [[*key, slot] for key, slot in self._heads.items()],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes what ``state`` gave; the columns are loaded through ``segment``."""
        self.inserted = int(state["inserted"])
        self._tails = {(e, s): slot for e, s, slot in state["tails"]}
        self._heads = {(e, s): slot for e, s, slot in state["heads"]}


def segment_slots(layout: RowLayout, capacity: int) -> int:
    """Slots of a segment: about SEGMENT_BYTES of them, at least 256, at most all."""
    return min(capacity, max(256, SEGMENT_BYTES // (4 * layout.width + META_BYTES)))


def _remember(waiting: dict[tuple[int, int], int], key: tuple[int, int], slot: int) -> None:
    waiting[key] = slot
    if len(waiting) > WAITING:
        del waiting[next(iter(waiting))]
