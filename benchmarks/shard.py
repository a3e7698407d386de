"""Sampling and appending of one shard against a bare np.take, and through a real Ray actor.

    python benchmarks/shard.py            one process: ratio to np.take, rows appended a second
    python benchmarks/shard.py --ray      a shard in a Ray actor serving blocks to one reader

CPU seconds of this process (wall seconds with --ray), medians over repeats. Set OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from cluster.connection import connect, disconnect
from replay.config import ReplayConfig
from replay.limiter import Limiter
from replay.messages import Block, Chunk
from replay.schema import RowLayout
from replay.shard import Shard
from replay.transition_store import TransitionStore

HALF_CHEETAH = RowLayout(obs_dim=17, action_dim=6)
CHUNK_ENVS, CHUNK_STEPS, BATCH = 16, 32, 256


def new_shard(capacity: int, n_step: int = 1) -> Shard:
    """A shard whose limiter never holds anybody back."""
    config = ReplayConfig(capacity_rows=capacity, n_step=n_step)
    limiter = Limiter(BATCH, 1.0, 1e18)
    return Shard(TransitionStore(HALF_CHEETAH, config), limiter, shard=0, seed=0, batch_size=BATCH)


def chunks(count: int, first: int = 0) -> list[Chunk]:
    """``count`` chunks of 512 rows of 16 environments, in the order in which one worker sends them."""
    rng = np.random.default_rng(first)
    rows_ND = rng.uniform(-1, 1, (CHUNK_ENVS * CHUNK_STEPS, HALF_CHEETAH.width)).astype(np.float32)
    HALF_CHEETAH.views(rows_ND).discount[:] = 1
    env_N = np.repeat(np.arange(CHUNK_ENVS, dtype=np.int64), CHUNK_STEPS)
    step_N = np.tile(np.arange(CHUNK_STEPS, dtype=np.int32), CHUNK_ENVS)
    flag_N = np.zeros(len(rows_ND), np.uint8)
    return [
        Chunk(
            worker=0,
            incarnation=0,
            sequence=i,
            generation=0,
            version=i // 10,
            rows_ND=rows_ND,
            episode_N=env_N,
            step_N=step_N + np.int32(i * CHUNK_STEPS),
            flag_N=flag_N,
            stats={},
        )
        for i in range(first, first + count)
    ]


def cpu_us(work: Callable[[], object], calls: int, repeats: int = 9) -> float:
    """Median CPU time of one call, in microseconds."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        for _ in range(calls):
            work()
        times.append((time.process_time() - start) / calls * 1e6)
    return statistics.median(times)


def fill(shard: Shard) -> None:
    for chunk in chunks(-(-shard.store.capacity // (CHUNK_ENVS * CHUNK_STEPS))):
        answer = shard.append(chunk)
        assert answer.status == "ok", answer


def take(rows: np.ndarray, count: int) -> Callable[[], object]:
    """A bare gather into a given array, with fresh indices each time, drawn beforehand."""
    rng = np.random.default_rng(1)
    indices = iter([rng.integers(0, len(rows), count) for _ in range(max(40_000 // (count // BATCH), 1))])
    out = np.empty((count, rows.shape[1]), rows.dtype)
    return lambda: np.take(rows, next(indices), axis=0, out=out, mode="clip")


def one_process(capacity: int) -> None:
    shard = new_shard(capacity)
    start = time.process_time()
    fill(shard)
    fresh = shard.store.inserted / (time.process_time() - start)
    more = iter(chunks(9 * 200, shard.store.inserted // (CHUNK_ENVS * CHUNK_STEPS)))
    append_us = cpu_us(lambda: shard.append(next(more)), 200)
    print(
        f"append 512 rows: {append_us:.0f} us, {512 / append_us * 1e6:,.0f} rows/s ({fresh:,.0f} while memory is new)"
    )
    for updates in (1, 32):
        calls = 3_000 // updates
        store: Any = shard.store
        bare = cpu_us(take(store.rows, updates * BATCH), calls)
        served = cpu_us(lambda u=updates: shard.sample(u, BATCH), calls)
        print(
            f"sample {updates:2d} x {BATCH}: {served / updates:.1f} us a batch, np.take {bare / updates:.1f} us, "
            f"ratio {served / bare:.2f}, {BATCH * updates / served * 1e6:,.0f} rows/s"
        )
    several = new_shard(100_000, n_step=5)
    fill(several)
    print(f"sample 16 x {BATCH}, n_step 5: {cpu_us(lambda: several.sample(16, BATCH), 50) / 16:.1f} us a batch")


def through_ray(capacity: int, seconds: float) -> None:
    import ray

    class Server:
        """The shard as an actor."""

        def __init__(self) -> None:
            self.shard = new_shard(capacity)
            fill(self.shard)

        def sample(self, updates: int) -> object:
            return self.shard.sample(updates, BATCH)

    own = connect(None, cpus=1, object_store_bytes=2 << 30)
    try:
        actor: Any = ray.remote(num_cpus=1)(Server).remote()
        for updates in (8, 16, 32):
            ray.get(actor.sample.remote(updates), timeout=120)
            waiting = [actor.sample.remote(updates) for _ in range(2)]
            rows, start = 0, time.perf_counter()
            while time.perf_counter() - start < seconds:
                block = ray.get(waiting.pop(0), timeout=60)
                waiting.append(actor.sample.remote(updates))
                assert isinstance(block, Block)
                rows += block.slot_UB.size
            print(
                f"through Ray, {updates} x {BATCH} a block: {rows / (time.perf_counter() - start):,.0f} rows/s (wall)"
            )
    finally:
        disconnect(own)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ray", action="store_true", help="through a real Ray actor")
    parser.add_argument("--capacity", type=int, default=1_000_000, help="rows of the shard (default 1,000,000)")
    parser.add_argument("--seconds", type=float, default=5.0, help="wall seconds a figure with --ray (default 5)")
    args = parser.parse_args()
    if args.ray:
        through_ray(args.capacity, args.seconds)
    else:
        one_process(args.capacity)


if __name__ == "__main__":
    main()
