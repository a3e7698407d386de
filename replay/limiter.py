"""How far inserting and sampling may run apart in one shard: by the replay ratio, or by stages.

**The replay ratio** (``Limiter``), held in both directions. All counts are rows of ONE shard: ``inserted`` rows stored, ``sampled``
rows handed to learners. With a replay ratio of r updates per env step and B rows an update, the rows sampled for each row inserted
are ``samples_per_insert`` = r B, whatever the number of shards, because each shard takes its share of both.

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
another would serve: a learner that must wait asks the next shard.

The idea is Reverb's SampleToInsertRatio; that the count starts at min_size, and the closing, are ours.

**Stages** (``StagedLimiter``): gathering and learning in turn. Counts are of ONE shard: ``inserted`` online episodes stored,
``sampled`` episodes drawn for learners (updates times batch). With n0 = items_before, n = items_per_stage,
e = episodes_per_stage and S stages

    opened(sampled)   = how many of the stages k = 1..S have n0 + (k - 1) n <= sampled        may be gathered
    stored(inserted)  = min(S, floor(inserted / e))                                           are complete
    allowed(inserted) = n0 + stored n                                                         may be drawn

    insert   waits for: inserted < opened e          unblocked by: samples, until the next stage opens
    sample   waits for: sampled < allowed            unblocked by: inserts, until the stage is complete

Both blocked at once would need opened <= stored, and sampled >= allowed, which opens stage stored + 1: a contradiction unless
all S stages are complete and all n0 + S n were drawn, which is the end. Both sides follow from the two counts alone, so a
shard that is restored from a snapshot continues where they say.

Nothing is cut in two. A chunk is stored whole although several environments end their episodes in it: those beyond the quota
belong to the stage that was open (``stage``), and the next one has that many fewer to gather. A block is drawn whole although
it crosses the bound: what is drawn too much counts for the next stage.

Stages of gathering and training are the paper's ("Generative Actor Critic", arXiv 2512.21527, online stages [L]); holding
them by counts in each shard is ours [C].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

_ROUNDING_ROWS = 1e-6  # credit is a float: samples_per_insert need not be a whole number


def feasible_tolerance(*, chunk_rows: int, block_rows: int, samples_per_insert: float) -> int:
    """The least tolerance, in rows inserted of one shard, with which insert and sample can never block each other.

    Args:
        chunk_rows: most rows of one append (environments x steps of a chunk).
        block_rows: most rows of one sample (updates x batch of a block).
        samples_per_insert: rows sampled for each row inserted, > 0.
    """
    return max(chunk_rows, math.ceil((chunk_rows + block_rows / samples_per_insert) / 2))


def apportioned(total: int, sampled: Sequence[int], inserted: Sequence[int]) -> list[int]:
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


class _Counts:
    """What both limiters count, in items: rows, or whole episodes."""

    def __init__(self, min_size: int, items_before: int) -> None:
        self.min_size = min_size  # items stored before the first sample
        self.items_before = items_before  # items sampled from a dataset before the first insert
        self.inserted = 0  # items stored
        self.sampled = 0  # items handed to learners
        self.closed = False
        self.ceiling = math.inf  # ROWS accepted at which inserts stop, whatever the rule allows

    def sample(self, n: int) -> None:
        """Counts ``n`` items that were sampled."""
        self.sampled += n

    def close(self) -> None:
        """No more inserts are coming. Samples may use up what is left and then are exhausted."""
        self.closed = True


class Limiter(_Counts):
    """Counts rows, and says which side may go on by the replay ratio.

    Args:
        min_size: rows stored before the first sample, at least 1.
        samples_per_insert: rows sampled for each row inserted after min_size, > 0.
        tolerance: rows inserted by which either side may run ahead; see ``feasible_tolerance``.
        pretrain: rows sampled from a dataset alone before the first insert, >= 0; free of the ratio.

    Raises:
        ValueError: a value out of its range.
    """

    stage, gathered = 0, False  # no stages, and no end of its own

    def __init__(self, min_size: int, samples_per_insert: float, tolerance: float, pretrain: int = 0) -> None:
        if min_size < 1 or pretrain < 0 or not 0 < samples_per_insert < math.inf or not 0 < tolerance < math.inf:
            raise ValueError(
                f"limiter got min_size {min_size}, samples_per_insert {samples_per_insert}, tolerance {tolerance}, pretrain "
                f"{pretrain}; expected min_size >= 1, pretrain >= 0 and the others positive and finite: nothing could ever be "
                "sampled; set replay.min_size_rows, replay.replay_ratio, replay.tolerance_rows and data.pretrain_updates accordingly"
            )
        super().__init__(min_size, pretrain)
        self.samples_per_insert = float(samples_per_insert)
        self.tolerance = float(tolerance)
        self._from_inserted = min_size
        self._from_sampled = pretrain

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
        return self.sampled < self.items_before

    @property
    def ended(self) -> bool:
        """No row will be taken any more."""
        return self.closed

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

    def insert(self, rows: int, episodes: int = 0) -> None:
        """Counts ``rows`` that were stored; episodes are not counted here."""
        self.inserted += rows

    def state(self) -> dict[str, Any]:
        """Counts and settings, JSON-able. Not whether it is closed: a run that is resumed inserts again."""
        return {
            "inserted": self.inserted,
            "sampled": self.sampled,
            "from_inserted": self._from_inserted,
            "from_sampled": self._from_sampled,
            "min_size": self.min_size,
            "samples_per_insert": self.samples_per_insert,
            **({"pretrain": self.items_before} if self.items_before else {}),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes what ``state`` gave. Under another ratio, min_size or pretrain the count of the credit starts anew at zero."""
        self.inserted = int(state["inserted"])
        self.sampled = int(state["sampled"])
        theirs = state["min_size"], state["samples_per_insert"], state.get("pretrain", 0)
        same = theirs == (self.min_size, self.samples_per_insert, self.items_before)
        self._from_inserted = int(state["from_inserted"]) if same else max(self.min_size, self.inserted)
        self._from_sampled = int(state["from_sampled"]) if same else max(self.sampled, self.items_before)
        self.closed = False


class StagedLimiter(_Counts):
    """Counts online episodes, and says which side may go on by the stages.

    Args:
        items_before: episodes drawn before the first stage is gathered; >= 0, 0: gathering begins at once.
        stages: S >= 0; 0: nothing is ever inserted, and the run is over when ``items_before`` were drawn.
        episodes_per_stage: online episodes of one stage in this shard, >= 1 where there are stages.
        items_per_stage: episodes drawn after each stage's gathering, >= 1 where there are stages.

    Raises:
        ValueError: a value out of its range, or nothing to do at all.
    """

    pretraining = False  # what comes before the first stage needs no other rule

    def __init__(
        self, *, items_before: int, stages: int = 0, episodes_per_stage: int = 1, items_per_stage: int = 1
    ) -> None:
        if items_before < 0 or stages < 0 or episodes_per_stage < 1 or items_per_stage < 1 or items_before + stages < 1:
            raise ValueError(
                f"limiter got items_before {items_before}, stages {stages}, episodes_per_stage {episodes_per_stage}, "
                f"items_per_stage {items_per_stage}; expected counts of which the last two are at least 1, and updates before "
                "the stages where there are none: nothing would ever be learned; set steps and online.* accordingly"
            )
        super().__init__(0 if items_before else episodes_per_stage, items_before)
        self.stages, self.episodes_per_stage, self.items_per_stage = stages, episodes_per_stage, items_per_stage
        self.rows = 0  # online rows accepted, those of partial episodes too

    @property
    def opened(self) -> int:
        """Stages that may be gathered by now, 0 to S."""
        if self.sampled < self.items_before:
            return 0
        return min(self.stages, 1 + (self.sampled - self.items_before) // self.items_per_stage)

    @property
    def stored(self) -> int:
        """Stages that are complete, 0 to S."""
        return min(self.stages, self.inserted // self.episodes_per_stage)

    @property
    def stage(self) -> int:
        """The newest stage whose gathering has begun, 0 before the first; an episode stored now belongs to it."""
        return self.opened

    @property
    def gathered(self) -> bool:
        """Every episode of every stage is stored: no row will be taken any more. Always so without stages."""
        return self.inserted >= self.stages * self.episodes_per_stage

    @property
    def credit(self) -> float:
        """Episodes that may still be drawn with what is stored; negative where the last block crossed the bound."""
        return float(self.items_before + self.stored * self.items_per_stage - self.sampled)

    @property
    def ended(self) -> bool:
        """No row will be taken any more."""
        return self.closed or self.gathered

    @property
    def exhausted(self) -> bool:
        """No more inserts are coming and everything they allow has been drawn."""
        return self.ended and self.credit <= 0

    @property
    def held(self) -> bool:
        """The ceiling is reached: no row is stored until it is raised."""
        return self.rows >= self.ceiling

    def can_insert(self, n: int = 1) -> bool:
        """Whether a chunk may be stored now, whole, however many rows ``n`` it has."""
        return not (self.closed or self.held) and self.inserted < self.opened * self.episodes_per_stage

    def can_sample(self, n: int = 1) -> bool:
        """Whether a block may be drawn now, whole, however many episodes ``n`` it has."""
        return self.credit > 0

    def insert(self, rows: int, episodes: int) -> None:
        """Counts ``rows`` that were accepted and the ``episodes`` that became complete with them."""
        self.rows += rows
        self.inserted += episodes

    def state(self) -> dict[str, Any]:
        """The counts, JSON-able. Not the settings: a run resumed with more stages goes on with more."""
        return {"inserted": self.inserted, "rows": self.rows, "sampled": self.sampled}

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes what ``state`` gave."""
        self.inserted, self.rows, self.sampled = int(state["inserted"]), int(state["rows"]), int(state["sampled"])
        self.closed = False


AnyLimiter = Limiter | StagedLimiter
