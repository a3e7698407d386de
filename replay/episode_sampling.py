"""Drawing whole episodes and packing them one after the other.

Letters: M episodes to choose from, B drawn, U batches, N their steps together, F row width, R rows of the arena.

Lengths as weights are LPT's (arXiv 2402.04647 [LPT]): every step of the data is then seen equally often. Weights by return and the
share of offline episodes are ours [C].
"""

from __future__ import annotations

import numpy as np


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


def offline_share(fraction: float, batch: int, offline: int, online: int) -> int | None:
    """How many of ``batch`` episodes come from a dataset when so many are held; None: both are one pool.

    round(fraction batch), but all from one side where the other holds nothing; a negative fraction makes one pool of both, so
    that each side's share follows from its weights.
    """
    if not offline:
        return 0
    if not online:
        return batch
    return None if fraction < 0 else round(fraction * batch)


def pack(rows_RF: np.ndarray, start_B: np.ndarray, length_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Extents of the arena, one after the other: rows (N, F), fresh, and offsets (B + 1,) int64. One gather, no loop."""
    offset = np.zeros(len(length_B) + 1, np.int64)
    np.cumsum(length_B, out=offset[1:])
    row_N = np.repeat(start_B - offset[:-1], length_B)
    row_N += np.arange(offset[-1])
    return rows_RF.take(row_N, axis=0), offset
