"""Chunks of made-up experience for tests of the replay service: every row tells whose it is."""

from __future__ import annotations

import numpy as np

from replay.config import ReplayConfig
from replay.limiter import Limiter
from replay.messages import TERMINATED, Chunk
from replay.schema import RowLayout
from replay.shard import Shard
from replay.transition_store import TransitionStore

LAYOUT = RowLayout(obs_dim=3, action_dim=2)


def make_shard(capacity: int = 64, *, min_size: int = 1, ratio: float = 1.0, tolerance: float = 1e12, seed: int = 0,
               batch_size: int = 1, gamma: float = 0.9, **options: float) -> Shard:  # fmt: skip
    config = ReplayConfig(capacity_rows=capacity, **options)  # type: ignore[arg-type]
    store = TransitionStore(LAYOUT, config, gamma=gamma)
    return Shard(store, Limiter(min_size, ratio, tolerance), shard=0, seed=seed, batch_size=batch_size)


def make_chunk(runs: list[tuple[int, int, int, int]], *, worker: int = 0, incarnation: int = 0, sequence: int = 0,
               generation: int = 0, version: int = 0) -> Chunk:  # fmt: skip
    """A chunk of ``runs`` (episode counter, first step, length, flag of the last row).

    obs of a row is (episode counter, step, worker), next_obs the same with step + 1, reward a hash of both.
    """
    counter_N = np.concatenate([np.full(n, e, np.int64) for e, _, n, _ in runs])
    step_N = np.concatenate([np.arange(s, s + n, dtype=np.int32) for _, s, n, _ in runs])
    flag_N = np.concatenate([np.eye(1, n, n - 1, dtype=np.uint8)[0] * np.uint8(f) for _, _, n, f in runs])
    rows_ND = np.zeros((len(step_N), LAYOUT.width), np.float32)
    columns = LAYOUT.views(rows_ND)
    columns.obs[:] = np.stack([counter_N, step_N, np.full_like(step_N, worker)], axis=1)
    columns.action[:] = np.sin(np.stack([counter_N, step_N], axis=1))
    columns.reward[:] = reward_of(counter_N, step_N)
    columns.discount[:] = flag_N & TERMINATED == 0
    columns.next_obs[:] = columns.obs + np.array([0, 1, 0])
    return Chunk(
        worker=worker,
        incarnation=incarnation,
        sequence=sequence,
        generation=generation,
        version=version,
        rows_ND=rows_ND,
        episode_N=counter_N | worker << 48 | incarnation << 32,
        step_N=step_N,
        flag_N=flag_N,
        stats={"steps": float(len(step_N))},
    )


def reward_of(counter: np.ndarray | int, step: np.ndarray | int) -> np.ndarray:
    return np.cos(np.asarray(counter) * 7.0 + np.asarray(step)).astype(np.float32)


def held(shard: Shard) -> np.ndarray:
    """Rows held, oldest first."""
    slots = np.arange(shard.store.inserted - shard.store.size, shard.store.inserted) % shard.store.capacity
    return shard.store.rows[slots]
