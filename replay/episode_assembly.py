"""Partial episodes: rows come chunk by chunk, an episode is complete when its flag has come and nothing is missing.

Letters: F row width of what is kept, T steps of an episode.

Chunks of a writer may come late and in another order, so an episode may have a hole for a while. What can never become complete
is dropped with all its rows, and counted by reason:

    cut           the worker refused a row and ended the episode there (CUT)
    start_lost    its first rows did not come within LATE chunks of its writer: an earlier chunk was lost or rejected
    gap           the same of rows in its middle
    end_lost      nothing of it came with the last LATE chunks of its writer, which lost it or began its plans anew
    replaced      its worker began anew, with a higher incarnation
    too_long      it has more rows than the ring
    crowded       the partial episodes together have more rows than the ring; the longest goes
    inconsistent  it has a step twice, or rows after its end

rows received = rows in complete episodes + in partial episodes + dropped, always.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from replay.messages import CUT, Chunk
from replay.schema import EpisodeMetadata

LOST_REASONS = ("cut", "start_lost", "gap", "end_lost", "replaced", "too_long", "crowded", "inconsistent")
LATE = 64  # chunks of one writer by which another may come late; a replay client waits for an answer after far fewer
Writer = tuple[int, int]  # worker, incarnation


class Complete(NamedTuple):
    """An episode from its first row to its flagged last one."""

    episode: int
    rows_TF: np.ndarray  # float32
    flag: int
    version: int  # of the policy that made its first row
    metadata: EpisodeMetadata | None


@dataclasses.dataclass
class _Partial:
    touched: int  # newest sequence that brought rows
    hole: int | None = None  # sequence since which rows are missing
    pieces: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)  # by first step
    rows: int = 0
    end: int = 0  # one above the highest step seen
    flag: int = 0
    last: int = 0  # one above the flagged step
    version: int = -1
    metadata: EpisodeMetadata | None = None
    lost: str = ""  # why its rows are dropped, those that still come too

    def fault(self) -> str:
        """Why this episode can never be complete, as far as its own rows tell."""
        if self.flag & CUT:
            return "cut"
        ordered = sorted((first, first + len(rows)) for first, rows in self.pieces.items())
        overlap = any(end > first for (_, end), (first, _) in pairwise(ordered))
        return "inconsistent" if overlap or self.end > self.last > 0 else ""


class Assembly:
    """Partial episodes of one shard.

    Args:
        width: F, the columns of a packed row that are kept, from the first.
        capacity: rows kept at most, of one episode and of all together.
    """

    def __init__(self, width: int, capacity: int) -> None:
        self.width, self.capacity = width, capacity
        self.rows = 0  # of partial episodes
        self.dropped: Counter[str] = Counter()  # rows by reason
        self._highest: dict[Writer, int] = {}  # sequence, of the writers with partial episodes
        self._partial: dict[Writer, dict[int, _Partial]] = {}
        self._incarnation: dict[int, int] = {}  # newest of each worker

    @property
    def episodes(self) -> int:
        """Partial episodes that may still become complete."""
        return sum(not each.lost for partial in self._partial.values() for each in partial.values())

    def add(self, chunk: Chunk) -> list[Complete]:
        """Takes the rows of a sound chunk that is not a repeat; the episodes that are complete with it, in its order."""
        writer = chunk.worker, chunk.incarnation
        newest = self._incarnation.get(chunk.worker, -1)
        if chunk.incarnation > newest >= 0:
            self._give_up(chunk.worker, newest)
        self._incarnation[chunk.worker] = max(newest, chunk.incarnation)
        self._highest[writer] = max(self._highest.get(writer, -1), chunk.sequence)
        metadata = {int(id_): EpisodeMetadata(int(id_), mode, *map(float, rest)) for id_, mode, *rest in chunk.metadata}
        change_N = np.flatnonzero(chunk.episode_N[1:] != chunk.episode_N[:-1]) + 1
        bounds = [0, *change_N.tolist(), len(chunk.episode_N)]
        done = [self._take(chunk, writer, start, stop, metadata) for start, stop in pairwise(bounds)]
        self._prune(writer)
        if chunk.incarnation < newest:
            self._give_up(*writer)
        self._thin_out()
        return [complete for complete in done if complete is not None]

    def state(self) -> dict[str, Any]:
        """Everything but the rows; JSON-able."""
        return {
            "dropped": dict(self.dropped),
            "incarnation": list(self._incarnation.items()),
            "writers": [
                [*writer, self._highest[writer], [[episode, *_record(each)] for episode, each in partial.items()]]
                for writer, partial in self._partial.items()
            ],
        }

    def partial_rows(self) -> np.ndarray:
        """(rows, F) float32: all rows of partial episodes, in the order of ``state``."""
        pieces = [
            rows for partial in self._partial.values() for each in partial.values() for rows in each.pieces.values()
        ]
        return np.concatenate([np.zeros((0, self.width), np.float32), *pieces])

    def load_state(self, state: dict[str, Any], rows_NF: np.ndarray) -> None:
        """Takes what ``state`` and ``partial_rows`` gave."""
        self.dropped = Counter(state["dropped"])
        self._incarnation = {int(worker): int(incarnation) for worker, incarnation in state["incarnation"]}
        self._highest, self._partial, self.rows = {}, {}, 0
        for worker, incarnation, highest, records in state["writers"]:
            self._highest[worker, incarnation] = highest
            partial = self._partial[worker, incarnation] = {}
            for episode, *record in records:
                partial[episode] = each = _restore(record, rows_NF[self.rows :])
                self.rows += each.rows

    def _take(
        self, chunk: Chunk, writer: Writer, start: int, stop: int, metadata: dict[int, EpisodeMetadata]
    ) -> Complete | None:
        """Adds the run of rows start..stop of one episode; the episode, if it is complete now."""
        episode, first = int(chunk.episode_N[start]), int(chunk.step_N[start])
        partial = self._partial.setdefault(writer, {})
        each = partial.setdefault(episode, _Partial(touched=chunk.sequence))
        each.touched = max(each.touched, chunk.sequence)
        if each.lost:
            self.dropped[each.lost] += stop - start
            return None
        each.rows += stop - start
        self.rows += stop - start
        twice = first in each.pieces
        if not twice:
            each.pieces[first] = chunk.rows_ND[start:stop, : self.width].copy()
        each.end = max(each.end, first + stop - start)
        if chunk.flag_N[stop - 1]:
            each.flag, each.last = int(chunk.flag_N[stop - 1]), first + stop - start
        if first == 0:
            each.version, each.metadata = chunk.version, metadata.get(episode)
        if each.rows > self.capacity:
            self._lose(each, "too_long")
        elif twice or (each.flag & CUT) or each.rows > each.end:
            self._lose(each, each.fault() or "inconsistent")
        elif each.rows < each.end:
            each.hole = self._highest[writer] if each.hole is None else each.hole
        elif each.flag:
            return self._finish(partial, episode)
        else:
            each.hole = None
        return None

    def _finish(self, partial: dict[int, _Partial], episode: int) -> Complete | None:
        each = partial[episode]
        if fault := each.fault():
            self._lose(each, fault)
            return None
        del partial[episode]
        self.rows -= each.rows
        rows_TF = np.concatenate([each.pieces[first] for first in sorted(each.pieces)])
        return Complete(episode, rows_TF, each.flag, each.version, each.metadata)

    def _lose(self, each: _Partial, reason: str) -> None:
        """Drops an episode's rows. It is remembered for LATE chunks, so that what still comes of it is dropped at once."""
        self.dropped[reason] += each.rows
        self.rows -= each.rows
        each.pieces.clear()
        each.rows, each.lost = 0, reason

    def _prune(self, writer: Writer) -> None:
        """Drops the writer's episodes that have waited too long."""
        before, partial = self._highest[writer] - LATE, self._partial[writer]
        for episode, each in list(partial.items()):
            if each.lost:
                if each.touched <= before:
                    del partial[episode]
            elif each.hole is not None and each.hole <= before:
                self._lose(each, "gap" if 0 in each.pieces else "start_lost")
            elif each.touched <= before:
                self._lose(each, "end_lost")

    def _give_up(self, worker: int, incarnation: int) -> None:
        """Drops the partial episodes of a writer that was replaced."""
        self._highest.pop((worker, incarnation), None)
        for each in self._partial.pop((worker, incarnation), {}).values():
            self._lose(each, each.lost or "replaced")

    def _thin_out(self) -> None:
        while self.rows > self.capacity:
            self._lose(
                max((e for partial in self._partial.values() for e in partial.values()), key=lambda e: e.rows),
                "crowded",
            )


def _record(each: _Partial) -> list[Any]:
    """A partial episode without its rows, as a JSON list."""
    pieces = [[first, len(rows)] for first, rows in each.pieces.items()]
    metadata = None if each.metadata is None else list(each.metadata)
    return [each.touched, each.hole, each.end, each.flag, each.last, each.version, metadata, each.lost, pieces]


def _restore(record: list[Any], rows_NF: np.ndarray) -> _Partial:
    """What ``_record`` was made of; its rows are the first of ``rows_NF``."""
    touched, hole, end, flag, last, version, metadata, lost, pieces = record
    each = _Partial(touched=touched, hole=hole, end=end, flag=flag, last=last, version=version, lost=lost)
    each.metadata = None if metadata is None else EpisodeMetadata(*metadata)
    for first, length in pieces:
        each.pieces[first] = rows_NF[each.rows : each.rows + length].copy()
        each.rows += length
    return each
