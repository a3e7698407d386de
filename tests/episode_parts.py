"""Made-up episodes, a shard of them, and slow twins of what the shard does fast."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from shard_chunks import LAYOUT

from replay.config import DataConfig, ReplayConfig
from replay.episode_store import EpisodeStore
from replay.limiter import StagedLimiter
from replay.messages import EpisodeBlock
from replay.schema import Trajectories
from replay.shard import Shard
from replay.stored_episode import StoredEpisode

P = 3  # floats of a posterior
WIDTH = LAYOUT.obs_dim + LAYOUT.action_dim + 1


def stored(index: int, length: int) -> StoredEpisode:
    """An episode of a dataset: obs is (-1 - index, step, 0), rewards tell index and step."""
    step_T = np.arange(length)
    obs_TO = np.stack([np.full(length, -1 - index), step_T, np.zeros(length)], axis=1).astype(np.float32)
    action_TA = np.stack([np.sin(step_T + index), np.cos(step_T)], axis=1).astype(np.float32)
    return StoredEpisode(index, obs_TO, action_TA, np.cos(index * 3.0 + step_T), True, False, obs_TO[-1] + 1)


def source(lengths: list[int]) -> Callable[[], Iterator[StoredEpisode]]:
    return lambda: (stored(index, length) for index, length in enumerate(lengths))


def make_shard(*, offline: list[int] | None = None, online_rows: int = 200, offline_rows: int = 10_000, batch: int = 4,
               shard: int = 0, shards: int = 1, seed: int = 0, before: int = 0, stages: int = 1_000_000, episodes: int = 1,
               items: int = 10**9, floats: int = P, **data: Any) -> Shard:  # fmt: skip
    """A shard that, unless told otherwise, gathers and samples freely once it has an episode."""
    limiter = StagedLimiter(
        items_before=before, stages=stages, episodes_per_stage=episodes, items_per_stage=items
    )  # fmt: skip
    config = ReplayConfig(capacity_rows=online_rows * shards, shards=shards)
    settings = DataConfig(offline_capacity_rows=offline_rows * shards, **data)
    store = EpisodeStore(LAYOUT, config, settings, gathers=stages > 0, posterior_floats=floats,
                         offline=None if offline is None else source(offline))  # fmt: skip
    return Shard(store, limiter, shard=shard, seed=seed, batch_size=batch)


class FreeLimiter(StagedLimiter):
    """Holds nobody back."""

    def __init__(self) -> None:
        super().__init__(items_before=1, stages=1, episodes_per_stage=10**9)

    def can_insert(self, n: int = 1) -> bool:
        return True

    def can_sample(self, n: int = 1) -> bool:
        return True


def free_shard(**options: Any) -> Shard:
    shard = make_shard(**options)
    shard.limiter = FreeLimiter()
    return shard


def episodes_of(batch: Trajectories) -> list[np.ndarray]:
    """The rows of each episode of a batch, by slicing."""
    return [batch.rows_NF[start:stop] for start, stop in zip(batch.offset[:-1], batch.offset[1:])]


def keys_of(block: EpisodeBlock) -> list[list[tuple[int, int]]]:
    """(worker, counter) of every episode drawn, (-1, index) for one of a dataset, by what its rows say."""
    return [[key_of(rows) for rows in episodes_of(batch)] for batch in block.batches]


def key_of(rows_TF: np.ndarray) -> tuple[int, int]:
    first, worker = int(rows_TF[0, 0]), int(rows_TF[0, 2])
    return (-1, -1 - first) if first < 0 else (worker, first)


@dataclasses.dataclass
class Kept:
    """An episode of a ListRing."""

    key: tuple[int, int]
    start: int
    rows: np.ndarray
    put: int  # how many were put before it
    posterior: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(P, np.float32))
    visits: int = 0


class ListRing:
    """A ring of episodes as a list, oldest first: the obviously right twin of arena.Ring."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.head, self.puts = capacity, 0, 0
        self.kept: list[Kept] = []

    def put(self, key: tuple[int, int], rows: np.ndarray) -> list[Kept]:
        """Stores an episode; those that had to go."""
        if self.head + len(rows) > self.capacity:  # the rest of this lap stays empty
            blocked = set(range(self.head, self.capacity)) | set(range(len(rows)))
            self.head = 0
        else:
            blocked = set(range(self.head, self.head + len(rows)))
        gone = [each for each in self.kept if blocked & set(range(each.start, each.start + len(each.rows)))]
        self.kept = [each for each in self.kept if not any(each is other for other in gone)]
        self.kept.append(Kept(key, self.head, rows, self.puts))
        self.head += len(rows)
        self.puts += 1
        return gone

    def find(self, key: tuple[int, int]) -> Kept | None:
        return next((each for each in self.kept if each.key == key), None)
