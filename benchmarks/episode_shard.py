"""Sampling and storing whole episodes: the packed gather against a loop over rows, a shard's blocks, chunks in, a snapshot.

    python benchmarks/episode_shard.py

CPU seconds of this process, medians over repeats. Set OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


import numpy as np

from replay import snapshot
from replay.config import DataConfig, ReplayConfig
from replay.episode_store import EpisodeStore, pack
from replay.limiter import StagedLimiter
from replay.messages import TRUNCATED, Chunk
from replay.schema import RowLayout
from replay.shard import Shard
from replay.stored_episode import StoredEpisode

MAZE = RowLayout(obs_dim=4, action_dim=2)
EPISODES, STEPS, BATCH, UPDATES, POSTERIOR = 1_000, 300, 64, 10, 256
ENVS, CHUNK_STEPS = 16, 25


def dataset() -> Iterator[StoredEpisode]:
    """As many episodes as UMaze data has, in memory: what a disk takes is not measured here."""
    rng = np.random.default_rng(0)
    obs_TO, action_TA = rng.random((STEPS, 4), np.float32), rng.random((STEPS, 2), np.float32)
    for index in range(EPISODES):
        yield StoredEpisode(index, obs_TO, action_TA, np.full(STEPS, 0.001 * index), False, True, obs_TO[-1])


def new_shard(data: DataConfig, before: int = 10**12) -> Shard:
    limiter = StagedLimiter(items_before=before, stages=1, episodes_per_stage=10**9)
    config = ReplayConfig(capacity_rows=300_000)
    store = EpisodeStore(MAZE, config, data, posterior_floats=POSTERIOR, offline=dataset)
    return Shard(store, limiter, shard=0, seed=0, batch_size=BATCH)


def chunks(count: int) -> Iterator[Chunk]:
    """Chunks of 16 environments whose episodes of 300 steps end together, as one worker sends them."""
    rng = np.random.default_rng(1)
    rows_ND = rng.uniform(-1, 1, (ENVS * CHUNK_STEPS, MAZE.width)).astype(np.float32)
    MAZE.views(rows_ND).discount[:] = 1
    env_N = np.repeat(np.arange(ENVS, dtype=np.int64), CHUNK_STEPS)
    for n in range(count):
        lap, first = divmod(n * CHUNK_STEPS, STEPS)
        step_N = np.tile(np.arange(first, first + CHUNK_STEPS, dtype=np.int32), ENVS)
        flag_N = np.where(step_N == STEPS - 1, np.uint8(TRUNCATED), np.uint8(0))
        yield Chunk(worker=0, incarnation=0, sequence=n, generation=0, version=n // 10, rows_ND=rows_ND,
                    episode_N=env_N + lap * ENVS, step_N=step_N, flag_N=flag_N, stats={})  # fmt: skip


def cpu_us(work: Callable[[], object], calls: int, repeats: int = 9) -> float:
    """Median CPU time of one call, in microseconds."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        for _ in range(calls):
            work()
        times.append((time.process_time() - start) / calls * 1e6)
    return statistics.median(times)


def loop_over_rows(rows_RF: np.ndarray, start_B: np.ndarray, length_B: np.ndarray) -> np.ndarray:
    return np.stack([rows_RF[start + t] for start, length in zip(start_B, length_B) for t in range(length)])


def loop_over_episodes(rows_RF: np.ndarray, start_B: np.ndarray, length_B: np.ndarray) -> np.ndarray:
    return np.concatenate([rows_RF[start : start + n] for start, n in zip(start_B.tolist(), length_B.tolist())])


def gathers() -> None:
    """One batch packed three ways, long and short episodes."""
    rng = np.random.default_rng(2)
    rows_RF = rng.random((EPISODES * STEPS, 7), np.float32)
    for steps in (STEPS, 20):
        start_B = rng.integers(0, len(rows_RF) - steps, BATCH)
        length_B = rng.integers(steps // 2, steps + 1, BATCH)
        fast = cpu_us(lambda: pack(rows_RF, start_B, length_B), 50)  # noqa: B023
        naive = cpu_us(lambda: loop_over_rows(rows_RF, start_B, length_B), 1, 5)  # noqa: B023
        slices = cpu_us(lambda: loop_over_episodes(rows_RF, start_B, length_B), 50)  # noqa: B023
        print(f"gather {BATCH} episodes of <= {steps:3} steps: {fast:7.1f} us   loop over rows {naive:9.1f} us "
              f"({naive / fast:.0f} x)   loop over episodes {slices:7.1f} us")  # fmt: skip


def main() -> None:
    gathers()
    for sampling in ("length", "return"):
        shard = new_shard(DataConfig(sampling=sampling))
        block_us = cpu_us(lambda: shard.sample(UPDATES, BATCH), 10)  # noqa: B023
        print(
            f"sample {UPDATES} x {BATCH} of {EPISODES} x {STEPS} steps, {sampling}: {block_us / UPDATES:.1f} us an update"
        )
    streamed = new_shard(DataConfig(offline_capacity_rows=EPISODES * STEPS // 2))
    block_us = cpu_us(lambda: streamed.sample(UPDATES, BATCH), 5)
    print(
        f"the same with half of it in memory, 8 episodes streamed in an update: {block_us / UPDATES:.1f} us an update"
    )
    slot_UB = shard.sample(1, BATCH).slot_UB  # type: ignore[union-attr]
    values = np.zeros((BATCH, POSTERIOR), np.float32)
    store: Any = shard.store
    writes = store.arena.writes[slot_UB[0]]
    print(
        f"write back {BATCH} x {POSTERIOR} floats: {cpu_us(lambda: shard.write_back(slot_UB[0], writes, values), 50):.1f} us"
    )
    gathering = new_shard(DataConfig(), before=1)
    gathering.sample(1, BATCH)
    feed = chunks(600)
    chunk_us = cpu_us(lambda: gathering.append(next(feed)), 60)
    store = gathering.store
    stored = store.arena.online.stored_episodes
    print(
        f"append {ENVS} x {CHUNK_STEPS} rows: {chunk_us:.1f} us, {ENVS * CHUNK_STEPS / chunk_us:.2f} M rows/s ({stored} stored)"
    )
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        info = snapshot.save(gathering, folder)
        print(
            f"snapshot of {store.arena.size} rows: {info.bytes_written / 1e6:.1f} MB, {time.perf_counter() - began:.3f} s wall"
        )


if __name__ == "__main__":
    main()
