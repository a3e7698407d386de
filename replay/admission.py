"""What enters storage: sound chunks, each once.

A chunk that fails here is rejected as a whole: nothing of it is stored. ``Writers`` remembers which chunks of which writers a shard
has stored, so that delivery at least once becomes storage exactly once. A writer is one incarnation of one worker; it counts its
chunks from 0. Chunks may arrive twice, late and out of order, and a shard may see only some of them (workers deal chunks to several
shards), so holes are normal.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Literal, NamedTuple

import numpy as np

from replay.messages import CUT, TERMINATED, TRUNCATED, Chunk, RowTotals
from replay.schema import RowLayout

Reason = Literal[
    "identity", "shape", "dtype", "too_large", "nonfinite", "action", "discount", "flag", "step", "stale", "closed",
    "metadata",
]  # fmt: skip
ACTION_SLACK = 1e-6  # a float32 tanh may round to just above 1
MODE_LENGTH = 16  # characters of a plan's mode
WINDOW = 1_024  # sequences below the highest stored one that are distinguished
WRITERS = 4_096  # incarnations remembered; the one unheard for longest is forgotten first


class Fault(NamedTuple):
    """Why a chunk can never be stored: a name to count it under, and what was seen and expected."""

    reason: Reason
    message: str


def fault_of(chunk: Chunk, layout: RowLayout, capacity: int) -> Fault | None:
    """The first thing wrong with ``chunk`` for a shard of ``capacity`` rows of ``layout``, or None if it is sound."""
    return _array_fault(chunk, layout, capacity) or _value_fault(chunk, layout) or _order_fault(chunk)


def _array_fault(chunk: Chunk, layout: RowLayout, capacity: int) -> Fault | None:
    counts = (chunk.worker, chunk.incarnation, chunk.sequence, chunk.generation, chunk.version)
    if (
        not all(isinstance(c, int) and 0 <= c < 2**31 for c in counts)
        or chunk.worker >= 2**15
        or chunk.incarnation >= 2**16
    ):
        return Fault(
            "identity", f"worker, incarnation, sequence, generation, version are {counts}; expected counts from 0"
        )
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


def metadata_fault(chunk: Chunk) -> Fault | None:
    """What is wrong with a chunk's episode metadata, or None. That of an episode which does not begin in the chunk is ignored."""
    for one in chunk.metadata:
        if (
            len(one) != 5
            or not isinstance(one[0], Integral)
            or not (isinstance(one[1], str) and len(one[1]) <= MODE_LENGTH)
            or not all(isinstance(number, Real) for number in one[2:])
        ):
            return Fault(
                "metadata",
                f"metadata of an episode is {one}; expected an int, a mode of at most {MODE_LENGTH} characters and three floats",
            )
    return None


class Written(NamedTuple):
    """What a shard holds of one writer, and the newest totals that the writer sent."""

    worker: int
    incarnation: int
    rows: int  # stored over the shard's life, which a loaded snapshot continues
    totals: RowTotals  # zeros until a chunk arrives in this process


class _Entry(NamedTuple):
    highest: int = -1
    bits: int = 0
    rows: int = 0
    totals: RowTotals = RowTotals()


_NEW = _Entry()


class Writers:
    """For each of the ``limit`` most recent writers: the highest sequence stored, and a bit for each of the ``window``
    below.

    A sequence further than ``window`` below the highest is ``stale``: whether it was stored is no longer known, so it
    must not be. A worker waits for the answer to a chunk after at most ``max_unacked`` more, so that does not happen
    to one that keeps its own rule. What is not promised: a chunk of a writer that was forgotten (``limit`` other
    incarnations have written since) counts as new.
    """

    def __init__(self, *, window: int = WINDOW, limit: int = WRITERS) -> None:
        self.window = window
        self.limit = limit
        self._stored: OrderedDict[tuple[int, int], _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._stored)

    def status(self, worker: int, incarnation: int, sequence: int) -> Literal["new", "duplicate", "stale"]:
        """Whether this chunk may be stored."""
        entry = self._stored.get((worker, incarnation), _NEW)
        if sequence > entry.highest:
            return "new"
        below = entry.highest - sequence
        if below >= self.window:
            return "stale"
        return "duplicate" if entry.bits >> below & 1 else "new"

    def store(
        self, worker: int, incarnation: int, sequence: int, rows: int = 0, totals: RowTotals = _NEW.totals
    ) -> None:
        """Records that this chunk, which was ``new``, is stored: ``rows`` rows, and the totals that it carried."""
        highest, bits, stored, known = self._stored.pop((worker, incarnation), _NEW)
        if sequence > highest:
            jump = min(sequence - highest, self.window)
            bits = (bits << jump | 1) & ((1 << self.window) - 1)
            highest = sequence
        else:
            bits |= 1 << (highest - sequence)
        newest = totals if totals.recorded >= known.recorded else known
        self._stored[worker, incarnation] = _Entry(highest, bits, stored + rows, newest)
        if len(self._stored) > self.limit:
            self._stored.popitem(last=False)

    def written(self) -> tuple[Written, ...]:
        """Every writer that is remembered."""
        return tuple(Written(w, i, entry.rows, entry.totals) for (w, i), entry in self._stored.items())

    def state(self) -> list[list[int | str]]:
        """The table as [worker, incarnation, highest, bits in hexadecimal, rows], the newest last; JSON-able."""
        return [[w, i, e.highest, f"{e.bits:x}", e.rows] for (w, i), e in self._stored.items()]

    def load_state(self, state: Iterable[Iterable[int | str]]) -> None:
        """Takes what ``state`` gave. Snapshots of earlier versions have no rows: 0."""
        self._stored = OrderedDict(
            ((int(w), int(i)), _Entry(int(high), int(str(bits), 16), int(rows[0]) if rows else 0))
            for w, i, high, bits, *rows in state
        )
