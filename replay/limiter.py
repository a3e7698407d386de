"""How far inserting and sampling may run apart: the replay ratio, held in both directions.

All counts are rows of ONE shard: ``inserted`` rows stored, ``sampled`` rows handed to learners. With a replay ratio of
r updates per env step and B rows an update, the rows sampled for each row inserted are ``samples_per_insert`` = r B,
whatever the number of shards, because each shard takes its share of both.

    credit = samples_per_insert (inserted - min_size) - sampled          what may be sampled to be exactly on the ratio

    insert n   waits for: credit after it <= tolerance samples_per_insert    unblocked by: a sample   free up to min_size
    sample m   waits for: credit after it >= -tolerance samples_per_insert   unblocked by: an insert  never before min_size

Both blocked at once would need tolerance spi - n spi < credit < m - tolerance spi, so a tolerance of (n + m / spi) / 2
rows makes it impossible: some side is always allowed. Crossing min_size needs n rows. The larger of the two is
``feasible_tolerance``.

With a dataset the first ``pretrain`` rows may be sampled before anything is inserted, and inserts wait for them. They are free of
the ratio: ``sampled`` above stands for sampled - pretrain, and a block that goes beyond pretrain is paid for with the part
that does. They can never block both sides, because until they are drawn a sample may always go on.

That is a promise about one shard. A run of several shards keeps it as long as nobody waits for one shard only while
another would serve: a learner told to wait asks the next shard.

The idea is Reverb's SampleToInsertRatio; that the count starts at min_size, and the closing, are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from replay.base_limiter import BaseLimiter

if TYPE_CHECKING:
    from replay.config import ReplayConfig

_ROUNDING_ROWS = 1e-6  # credit is a float: samples_per_insert need not be a whole number


def feasible_tolerance(*, chunk_rows: int, block_rows: int, samples_per_insert: float) -> int:
    """The least tolerance, in rows inserted of one shard, with which insert and sample can never block each other.

    Args:
        chunk_rows: most rows of one append (environments x steps of a chunk).
        block_rows: most rows of one sample (updates x batch of a block).
        samples_per_insert: rows sampled for each row inserted, > 0.
    """
    return max(chunk_rows, math.ceil((chunk_rows + block_rows / samples_per_insert) / 2))


def dealt(total: int, sampled: Sequence[int], inserted: Sequence[int]) -> list[int]:
    """What each shard has to add to its ``sampled`` for them to be ``total`` together; negative where samples are owed again.

    Rows too many are taken from each in proportion to what it counts, rows too few are added in proportion to the rows
    inserted, so that shards with more writers bear more of it and no count falls below 0.

    Args:
        total: rows that the learners really had from all shards.
        sampled, inserted: what each shard counts.
    """
    missing = total - sum(sampled)
    shares = list(sampled if missing < 0 else inserted)
    if not sum(shares):
        shares = [1] * len(shares)
    bounds = [0, *(missing * part // sum(shares) for part in accumulate(shares))]
    return [after - before for before, after in pairwise(bounds)]


class Limiter(BaseLimiter):
    """Counts rows, and says which side may go on by the replay ratio.

    Args:
        min_size: rows stored before the first sample, at least 1.
        samples_per_insert: rows sampled for each row inserted after min_size, > 0.
        tolerance: rows inserted by which either side may run ahead; see ``feasible_tolerance``.
        pretrain: rows sampled from a dataset alone before the first insert, >= 0; free of the ratio.

    Raises:
        ValueError: a value out of its range.
    """

    def __init__(self, min_size: int, samples_per_insert: float, tolerance: float, pretrain: int = 0) -> None:
        if min_size < 1 or pretrain < 0 or not 0 < samples_per_insert < math.inf or not 0 < tolerance < math.inf:
            raise ValueError(
                f"limiter got min_size {min_size}, samples_per_insert {samples_per_insert}, tolerance {tolerance}, pretrain "
                f"{pretrain}; expected min_size >= 1, pretrain >= 0 and the others positive and finite: nothing could ever be "
                "sampled; set replay.min_size_rows, replay.replay_ratio, replay.tolerance_rows and data.pretrain_updates accordingly"
            )
        super().__init__(min_size)
        self.samples_per_insert = float(samples_per_insert)
        self.tolerance = float(tolerance)
        self.pretrain = pretrain
        self._from_inserted = min_size
        self._from_sampled = pretrain

    @classmethod
    def for_shard(
        cls, config: ReplayConfig, *, batch_size: int, chunk_rows: int, block_rows: int, pretrain_updates: int = 0
    ) -> Limiter:
        """The limiter of one of ``config.shards`` shards; a tolerance of 0 becomes the least that is feasible."""
        ratio = config.replay_ratio * batch_size
        least = feasible_tolerance(chunk_rows=chunk_rows, block_rows=block_rows, samples_per_insert=ratio)
        tolerance = config.tolerance_rows / config.shards if config.tolerance_rows else least
        pretrain = math.ceil(pretrain_updates * batch_size / config.shards)
        return cls(max(1, math.ceil(config.min_size_rows / config.shards)), ratio, tolerance, pretrain)

    @property
    def credit(self) -> float:
        """Rows that may be sampled to be exactly on the ratio; negative where samples are ahead. Without what is sampled before
        the first insert."""
        due = (self.inserted - self._from_inserted) * self.samples_per_insert
        counted = self.sampled - self._from_sampled
        return due - (max(0, counted) if self.pretraining else counted)

    @property
    def pretraining(self) -> bool:
        """Rows of the dataset are still to be sampled before anything may be inserted."""
        return self.sampled < self.pretrain

    @property
    def exhausted(self) -> bool:
        """No more inserts are coming and everything they allow has been sampled, to less than a row."""
        return self.closed and not self.pretraining and (self.inserted < self.min_size or self.credit < 1)

    @property
    def held(self) -> bool:
        """The ceiling is reached: no row is stored until it is raised."""
        return self.inserted >= self.ceiling

    def can_insert(self, n: int) -> bool:
        """Whether ``n`` more rows may be stored now. Below the ceiling a chunk is stored whole, also across it."""
        if self.closed or self.held or self.pretraining:
            return False
        if self.inserted + n <= self.min_size:
            return True
        limit = self.tolerance * self.samples_per_insert + _ROUNDING_ROWS
        return self.credit + n * self.samples_per_insert <= limit

    def can_sample(self, n: int) -> bool:
        """Whether ``n`` more rows may be sampled now; once closed, only what is left of the budget."""
        if self.pretraining:
            return True
        if self.inserted < self.min_size:
            return False
        ahead = 0.0 if self.closed else self.tolerance * self.samples_per_insert
        return self.credit - n >= -ahead - _ROUNDING_ROWS

    def insert(self, n: int) -> None:
        """Counts ``n`` rows that were stored."""
        self.inserted += n

    def state(self) -> dict[str, Any]:
        """Counts and settings, JSON-able. Not whether it is closed: a run that is resumed inserts again."""
        return {
            "inserted": self.inserted,
            "sampled": self.sampled,
            "from_inserted": self._from_inserted,
            "from_sampled": self._from_sampled,
            "min_size": self.min_size,
            "samples_per_insert": self.samples_per_insert,
            **({"pretrain": self.pretrain} if self.pretrain else {}),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes what ``state`` gave. Under another ratio, min_size or pretrain the count of the credit starts anew at zero."""
        self.inserted = int(state["inserted"])
        self.sampled = int(state["sampled"])
        theirs = state["min_size"], state["samples_per_insert"], state.get("pretrain", 0)
        same = theirs == (self.min_size, self.samples_per_insert, self.pretrain)
        self._from_inserted = int(state["from_inserted"]) if same else max(self.min_size, self.inserted)
        self._from_sampled = int(state["from_sampled"]) if same else max(self.sampled, self.pretrain)
        self.closed = False
