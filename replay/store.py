"""The contract of a store: where one shard keeps what it takes, and what its batches are drawn from.

``replay.transition_store`` keeps single transitions, ``replay.episode_store`` whole episodes. A shard (``replay.shard``) owns one
and knows nothing else about its items; a snapshot (``replay.snapshot``) writes the segments that it gives.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from replay.admission import Fault
from replay.config import ReplayConfig
from replay.limiter import AnyLimiter
from replay.manifest import Entry
from replay.messages import Block, Chunk, EpisodeBlock
from replay.schema import RowLayout
from replay.stored_episode import StoredEpisode

SEGMENT_BYTES = 4 << 20  # about what a snapshot writes at once
Arrays = dict[str, np.ndarray]


class Recorded(NamedTuple):
    """An episode held that the environment ended."""

    age: tuple[int, int, int]  # of the policy at its first step, then when it was stored
    rows: int
    read: Callable[[int], StoredEpisode]  # with this index


class Saved(NamedTuple):
    """A store's last snapshot."""

    directory: Path
    entries: dict[int, Entry]  # by segment
    numbers: tuple[int, ...]  # of the snapshots there that are this store's own, oldest first


class Store(ABC):
    """One shard's experience. Not thread-safe.

    Attributes:
        inserted: online rows accepted over its life.
        capacity: online rows that it can hold; a chunk has no more.
        dirty: (segments,) bool, changed since the last snapshot.
        keeper: called with segments before they change: a snapshot in progress copies those that it has not written.
        saved: the last snapshot, whose files the next one names where nothing changed.
    """

    items: ClassVar[str]  # what is drawn, in words
    rate_limited: ClassVar[str]  # reason of ``Wait`` after the warm-up
    formats: ClassVar[tuple[int | str, ...]]  # of snapshots that are read; the last one is written

    def __init__(self, layout: RowLayout, config: ReplayConfig, capacity: int, segments: int) -> None:
        self.layout, self.config, self.capacity, self.inserted = layout, config, capacity, 0
        self.dirty = np.zeros(segments, bool)
        self.keeper: Callable[[np.ndarray], None] | None = None
        self.saved: Saved | None = None

    @abstractmethod
    def check(self, limiter: AnyLimiter, batch_size: int) -> None:
        """ValueError if a shard with this limiter could never work."""

    @abstractmethod
    def fault(self, chunk: Chunk) -> Fault | None:
        """Why this chunk can never be stored here; None if it can."""

    @abstractmethod
    def append(self, chunk: Chunk, stage: int) -> int:
        """Takes a sound chunk that is not a repeat, in this stage; the number of episodes that it completed, where they count."""

    @abstractmethod
    def draw(self, rng: np.random.Generator, updates: int, batch: int, pretraining: bool) -> np.ndarray:
        """Slots (U, B) int64, drawn with replacement.

        Args:
            pretraining: from a dataset alone, because nothing may be inserted yet.
        """

    @abstractmethod
    def gather(self, slot_UB: np.ndarray, shard: int, stage: int) -> Block | EpisodeBlock:
        """What ``draw`` chose, in fresh arrays, as shard ``shard`` hands it out in this stage."""

    def write_back(self, slots: np.ndarray, writes: np.ndarray, values: np.ndarray) -> int:
        """Keeps values with the items that are still held; returns how many were. A store that keeps none returns 0."""
        return 0

    @abstractmethod
    def stats(self) -> dict[str, Any]:
        """The fields of ``ShardStats`` that only the store knows."""

    @property
    @abstractmethod
    def online_rows(self) -> int:
        """Rows held that workers gathered, those of episodes that are not whole too."""

    @abstractmethod
    def recorded(self) -> Iterator[Recorded]:
        """The online episodes held from their first step to the last. The store must not change in between."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What a snapshot must have in common with this store; JSON-able."""

    @abstractmethod
    def segments(self) -> dict[int, Arrays | None]:
        """The segments 0, 1, ... of a snapshot that begins now: copies, or None where ``segment`` gives them until they change."""

    def next_changed(self, segments: int) -> Iterable[int]:
        """The indices below ``segments`` in the order in which they will change, as far as that is known."""
        return range(segments)

    @abstractmethod
    def segment(self, index: int) -> Arrays:
        """Views of one segment, by name."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Everything but arrays that the next draws depend on; JSON-able."""

    @abstractmethod
    def load(self, state: dict[str, Any], segments: Iterable[Arrays]) -> None:
        """Takes what ``state`` and ``segments`` gave.

        Raises:
            DatasetError: the dataset is not the one that it was.
        """

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of all arrays, filled or not, those of a dataset too."""


def offline_share(fraction: float, batch: int, offline: int, online: int) -> int | None:
    """How many of ``batch`` items come from a dataset when so many are held; None: both are one pool.

    round(fraction batch), but all from one side where the other holds nothing; a negative fraction makes one pool of both, so
    that each side's share follows from its weights.
    """
    if not offline:
        return 0
    if not online:
        return batch
    return None if fraction < 0 else round(fraction * batch)
