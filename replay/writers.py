"""Which chunks of which writers a shard has stored: at-least-once delivery becomes exactly-once storage.

A writer is one incarnation of one worker; it counts its chunks from 0. Chunks may arrive twice, late and out of order,
and a shard may see only some of them (workers deal chunks to several shards), so holes are normal.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Literal, NamedTuple

from replay.chunk import RowTotals

WINDOW = 1_024  # sequences below the highest stored one that are told apart
WRITERS = 4_096  # incarnations remembered; the one unheard for longest is forgotten first


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
    """For each of the ``limit`` writers heard last: the highest sequence stored, and a bit for each of the ``window``
    below.

    A sequence further than ``window`` below the highest is ``stale``: whether it was stored is no longer known, so it
    must not be. A worker waits for the answer to a chunk after at most ``max_unacked`` more, so that does not happen
    to one that keeps its own rule. What is not promised: a chunk of a writer that was forgotten (``limit`` other
    incarnations have been heard since) counts as new.
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
