"""Which chunks of which writers a shard has stored: at-least-once delivery becomes exactly-once storage.

A writer is one incarnation of one worker; it counts its chunks from 0. Chunks may arrive twice, late and out of order,
and a shard may see only some of them (workers deal chunks to several shards), so holes are normal.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Literal

WINDOW = 1_024  # sequences below the highest stored one that are told apart
WRITERS = 4_096  # incarnations remembered; the one unheard for longest is forgotten first


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
        self._stored: OrderedDict[tuple[int, int], tuple[int, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._stored)

    def status(self, worker: int, incarnation: int, sequence: int) -> Literal["new", "duplicate", "stale"]:
        """Whether this chunk may be stored."""
        highest, bits = self._stored.get((worker, incarnation), (-1, 0))
        if sequence > highest:
            return "new"
        below = highest - sequence
        if below >= self.window:
            return "stale"
        return "duplicate" if bits >> below & 1 else "new"

    def store(self, worker: int, incarnation: int, sequence: int) -> None:
        """Remembers that this chunk, which was ``new``, is stored."""
        highest, bits = self._stored.pop((worker, incarnation), (-1, 0))
        if sequence > highest:
            jump = min(sequence - highest, self.window)
            bits = (bits << jump | 1) & ((1 << self.window) - 1)
            highest = sequence
        else:
            bits |= 1 << (highest - sequence)
        self._stored[worker, incarnation] = (highest, bits)
        if len(self._stored) > self.limit:
            self._stored.popitem(last=False)

    def state(self) -> list[list[int | str]]:
        """The table as [worker, incarnation, highest, bits in hexadecimal], heard last last; JSON-able."""
        return [[w, i, highest, f"{bits:x}"] for (w, i), (highest, bits) in self._stored.items()]

    def load_state(self, state: Iterable[Iterable[int | str]]) -> None:
        """Takes what ``state`` gave."""
        self._stored = OrderedDict(((int(w), int(i)), (int(high), int(str(bits), 16))) for w, i, high, bits in state)
