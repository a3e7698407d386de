"""What a chunk must be to enter storage. Whatever fails here is rejected whole: nothing of it is stored."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from replay.chunk import CUT, TERMINATED, TRUNCATED, Chunk
from replay.rows import RowLayout

Reason = Literal[
    "identity", "shape", "dtype", "too_large", "nonfinite", "action", "discount", "flag", "step", "stale", "closed"
]
ACTION_SLACK = 1e-6  # a float32 tanh may round to just above 1


class Fault(NamedTuple):
    """Why a chunk can never be stored: a name to count it under, and what was seen and expected."""

    reason: Reason
    message: str


def fault_of(chunk: Chunk, layout: RowLayout, capacity: int) -> Fault | None:
    """The first thing wrong with ``chunk`` for a shard of ``capacity`` rows of ``layout``, or None if it is sound."""
    return _array_fault(chunk, layout, capacity) or _value_fault(chunk, layout) or _order_fault(chunk)


def _array_fault(chunk: Chunk, layout: RowLayout, capacity: int) -> Fault | None:
    counts = (chunk.worker, chunk.incarnation, chunk.sequence, chunk.epoch, chunk.version)
    if (
        not all(isinstance(c, int) and 0 <= c < 2**31 for c in counts)
        or chunk.worker >= 2**15
        or chunk.incarnation >= 2**16
    ):
        return Fault("identity", f"worker, incarnation, sequence, epoch, version are {counts}; expected counts from 0")
    arrays = (chunk.rows_ND, chunk.episode_N, chunk.step_N, chunk.flag_N)
    for array, name, dtype in zip(arrays, ("rows", "episode", "step", "flag"), ("float32", "int64", "int32", "uint8")):
        if not isinstance(array, np.ndarray) or array.dtype != np.dtype(dtype):
            return Fault(
                "dtype", f"{name} is {getattr(array, 'dtype', type(array).__name__)}; expected an array of {dtype}"
            )
    n = len(chunk.rows_ND) if chunk.rows_ND.ndim == 2 else 0
    expected = ((n, layout.width), (n,), (n,), (n,))
    shapes = tuple(array.shape for array in arrays)
    if n == 0 or shapes != expected:
        return Fault(
            "shape",
            f"rows, episode, step, flag have shapes {shapes}; expected (N, {layout.width}) and three (N,), N > 0",
        )
    if n > capacity:
        return Fault("too_large", f"{n} rows; this shard holds {capacity}")
    return None


def _value_fault(chunk: Chunk, layout: RowLayout) -> Fault | None:
    if not np.isfinite(chunk.rows_ND).all():
        row, column = np.argwhere(~np.isfinite(chunk.rows_ND))[0]
        return Fault(
            "nonfinite", f"row {row} holds {chunk.rows_ND[row, column]} in column {column}; expected finite numbers"
        )
    columns = layout.views(chunk.rows_ND)
    largest = np.abs(columns.action).max(initial=0.0)
    if largest > 1 + ACTION_SLACK:
        return Fault(
            "action", f"an action of size {largest}; expected [-1, 1], before the rescale to the environment's box"
        )
    if not ((columns.discount == 0) | (columns.discount == 1)).all():
        return Fault("discount", "a discount that is neither 0 nor 1; expected 1 - terminated")
    if (chunk.flag_N > (TERMINATED | TRUNCATED | CUT)).any():
        return Fault("flag", f"a flag of {chunk.flag_N.max()}; expected bits of terminated 1, truncated 2, cut 4")
    if ((chunk.flag_N & TERMINATED != 0) != (columns.discount == 0)).any():
        return Fault(
            "flag", "a terminated row with discount 1 or another row with discount 0; expected discount 1 - terminated"
        )
    return None


def _order_fault(chunk: Chunk) -> Fault | None:
    writer = chunk.worker << 16 | chunk.incarnation
    if (chunk.episode_N >> 32 != writer).any():
        return Fault(
            "identity",
            f"an episode of another writer; expected worker << 48 | incarnation << 32 | counter of {writer:#x}",
        )
    if chunk.step_N.min() < 0:
        return Fault("step", "a negative step; steps of an episode count from 0")
    same = chunk.episode_N[1:] == chunk.episode_N[:-1]
    if (chunk.flag_N[:-1][same] != 0).any():
        return Fault("step", "rows of an episode after its end; expected a new episode id after a flag")
    if (np.diff(chunk.step_N)[same] != 1).any():
        return Fault("step", "steps of an episode that do not follow one another; expected each one more than the last")
    runs = chunk.episode_N[np.flatnonzero(np.concatenate(([True], ~same)))]
    if len(np.unique(runs)) != len(runs):
        return Fault("step", "an episode in two pieces; expected the rows of an episode side by side")
    return None
