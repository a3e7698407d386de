"""What a shard counts about itself."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np

from replay.writers import Written

AGE_BINS = 65  # ages 0 .. 63 versions; the last bin: 64 and more, or acted under an earlier learner


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardStats:
    """A shard at one moment. Rows over its life, which a loaded snapshot continues.

    received_rows = stored_rows + duplicate_rows + the sum of rejected_rows, always. Chunks told to wait are not in it:
    they come again.
    """

    shard: int
    size: int  # rows held
    capacity: int  # rows
    fill: float  # size / capacity
    bytes: int  # of the columns, filled or not
    received_rows: int
    stored_rows: int
    duplicate_rows: int
    rejected_rows: dict[str, int]  # by reason
    rejected_chunks: dict[str, int]  # by reason; a chunk with no countable rows counts here alone
    sampled_rows: int
    credit_rows: float  # of the limiter: what may be sampled to be exactly on the replay ratio
    insert_blocked_s: float  # time during which an append had been told to wait and none had been taken since
    sample_blocked_s: float  # the same for samples
    epoch: int  # newest policy heard of
    version: int
    age_rows: np.ndarray  # (AGE_BINS,) int64: rows by policy age at insert, in versions behind the newest heard of
    age_p50: int  # versions
    age_p95: int  # versions
    sampled_age_mean: float  # versions behind the newest heard of, over the rows of the last block
    writers: int  # incarnations remembered
    last_seen_s: dict[int, float]  # worker -> monotonic clock of the shard when a chunk of it last came
    written: tuple[Written, ...]  # rows of each remembered incarnation
    stats_dropped: int  # worker reports overwritten before anybody drained them
    episodes: int = 0  # held, of a shard of whole episodes; this and all below
    offline_episodes: int = 0  # of these from a dataset; rows of a dataset are in size, capacity and bytes alone
    stored_episodes: int = 0  # online, over its life
    episode_rows: int = 0  # stored_rows = episode_rows (in stored_episodes) + open_rows + the sum of lost_rows, always
    open_rows: int = 0  # of episodes that are not over
    open_episodes: int = 0
    lost_rows: dict[str, int] = dataclasses.field(default_factory=dict)  # by reason, see episode_assembly
    sampled_episodes: int = 0
    stage: int = 0  # newest online stage whose gathering has begun


class Blocked:
    """Time one side spent between a refusal and the next time it was let through."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since: float | None = None

    @property
    def waiting(self) -> bool:
        return self._since is not None

    def refuse(self, now: float) -> None:
        if self._since is None:
            self._since = now

    def allow(self, now: float) -> None:
        self.seconds = self.until(now)
        self._since = None

    def until(self, now: float) -> float:
        return self.seconds + (0.0 if self._since is None else now - self._since)


class Tally:
    """Rows by what became of them, and how old their policies were."""

    def __init__(self) -> None:
        self.received = 0
        self.duplicate = 0
        self.rejected_rows: Counter[str] = Counter()
        self.rejected_chunks: Counter[str] = Counter()
        self.age_rows = np.zeros(AGE_BINS, np.int64)

    def reject(self, reason: str, rows: int) -> None:
        self.received += rows
        self.rejected_rows[reason] += rows
        self.rejected_chunks[reason] += 1

    def repeat(self, rows: int) -> None:
        self.received += rows
        self.duplicate += rows

    def store(self, rows: int, age: int | None) -> None:
        """Counts rows whose policy was ``age`` versions behind; None if it was of an earlier learner."""
        self.received += rows
        self.age_rows[AGE_BINS - 1 if age is None else min(age, AGE_BINS - 1)] += rows

    def age_quantile(self, q: float) -> int:
        """The least age that at least a share ``q`` of the stored rows had not above; 0 without rows."""
        total = int(self.age_rows.sum())
        return int(np.searchsorted(np.cumsum(self.age_rows), q * total)) if total else 0

    def state(self) -> dict[str, Any]:
        return {
            "received": self.received,
            "duplicate": self.duplicate,
            "rejected_rows": dict(self.rejected_rows),
            "rejected_chunks": dict(self.rejected_chunks),
            "age_rows": self.age_rows.tolist(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.received = int(state["received"])
        self.duplicate = int(state["duplicate"])
        self.rejected_rows = Counter(state["rejected_rows"])
        self.rejected_chunks = Counter(state["rejected_chunks"])
        self.age_rows = np.array(state["age_rows"], np.int64)
