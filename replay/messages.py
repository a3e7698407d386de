"""What moves between workers, shards and learners.

Letters: N rows of a chunk, D row width (see schema.py), U updates of a block, B batch.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import numpy as np

from replay.schema import EpisodeMetadata, ReturnSummary, Trajectories

TERMINATED, TRUNCATED, CUT = 1, 2, 4  # bits of ``flag_N``; any of them ends the episode at that row


class RowTotals(NamedTuple):
    """What one worker incarnation knows of its rows since it began. Cumulative: newer totals replace older ones.

    Every recorded row is acknowledged, dropped, or still in flight.
    """

    recorded: int = 0  # env steps made
    acknowledged: int = 0  # rows that a shard confirmed as stored
    dropped: tuple[tuple[str, int], ...] = ()  # (reason, rows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chunk:
    """One worker's consecutive environment steps, sent as one message.

    Rows are ordered environment by environment, each environment's steps in time order, so a run of rows
    of one episode is contiguous. ``sequence`` counts a worker incarnation's chunks from 0; (worker,
    incarnation, sequence) is what a shard deduplicates on.
    """

    worker: int
    incarnation: int
    sequence: int
    generation: int  # of the policy that acted: grows by one whenever a learner is restarted
    version: int  # of the policy that acted: grows by one with each published set of weights
    rows_ND: np.ndarray  # float32, packed rows
    episode_N: np.ndarray  # int64, unique over the run: worker << 48 | incarnation << 32 | counter
    step_N: np.ndarray  # int32, index of the row in its episode, from 0
    flag_N: np.ndarray  # uint8, TERMINATED | TRUNCATED | CUT, 0 inside an episode
    stats: dict[str, float]  # counters and timings of the worker since its last chunk
    totals: RowTotals = RowTotals()  # of the worker, this chunk's rows included
    metadata: tuple[EpisodeMetadata, ...] = ()  # of the episodes that begin in this chunk, where the policy plans


Status = Literal["ok", "wait", "duplicate", "rejected"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ack:
    """A shard's answer to an append.

    ok: the rows are stored. wait: nothing was stored, send the same chunk again after ``retry_after_s``.
    duplicate: these rows were stored before. rejected: the rows can never be stored, ``reason`` says why;
    the sender drops them and counts them.
    """

    status: Status
    generation: int  # newest policy that the shard has observed
    version: int
    retry_after_s: float = 0.0
    reason: str = ""
    held: bool = False  # of ok: the rows had to wait for the learner first, with whoever answers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """U batches of B rows for a learner, with the identity of every row."""

    rows_UBD: np.ndarray  # float32
    slot_UB: np.ndarray  # int64, where each row lives in its shard
    writes_UB: np.ndarray  # int64, how often that slot had been written when it was read
    version_UB: np.ndarray  # int64, policy version that produced each row
    shard: int
    inserted: int  # rows the shard had accepted over its life when it answered
    size: int  # rows it held then

    @property
    def nbytes(self) -> int:
        """Of the rows."""
        return self.rows_UBD.nbytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpisodeBlock:
    """U batches of B whole episodes for a learner, with the identity of each."""

    batches: tuple[Trajectories, ...]  # U
    slot_UB: np.ndarray  # int64, where each episode lives in its shard
    writes_UB: np.ndarray  # int64, of that slot when it was read
    version_UB: np.ndarray  # int64, policy version that began each episode; -1: from a dataset
    shard: int
    inserted: int  # online rows the shard had accepted over its life when it answered
    returns: ReturnSummary

    @property
    def nbytes(self) -> int:
        """Of the episodes' arrays."""
        return sum(array.nbytes for batch in self.batches for array in vars(batch).values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wait:
    """A shard's answer to a sample that its limiter does not yet allow."""

    reason: str  # "min_size" | "samples_ahead" | "exhausted": no more rows are coming and the budget is used up
    retry_after_s: float
