"""Gathering and learning in turn: how far an online run of whole episodes may go on either side.

Counts are of ONE shard: ``inserted`` online episodes stored, ``sampled`` episodes drawn for learners (updates times batch).
With n0 = items_before, n = items_per_stage, e = episodes_per_stage and S stages

    opened(sampled)   = how many of the stages k = 1..S have n0 + (k - 1) n <= sampled        may be gathered
    stored(inserted)  = min(S, floor(inserted / e))                                           are complete
    allowed(inserted) = n0 + stored n                                                         may be drawn

    insert   waits for: inserted < opened e          unblocked by: samples, until the next stage opens
    sample   waits for: sampled < allowed            unblocked by: inserts, until the stage is complete

Both blocked at once would need opened <= stored, and sampled >= allowed, which opens stage stored + 1: a contradiction unless
all S stages are complete and all n0 + S n were drawn, which is the end. Both sides follow from the two counts alone, so a
shard that comes back from a snapshot goes on where they say.

Nothing is cut in two. A chunk is stored whole although several environments end their episodes in it: those beyond the quota
belong to the stage that was open (``stage``), and the next one has that many fewer to gather. A block is drawn whole although
it crosses the bound: what is drawn too much counts for the next stage.

Stages of gathering and training are the paper's ("Generative Actor Critic", arXiv 2512.21527, online stages [L]); holding
them by counts in each shard is ours [C].
"""

from __future__ import annotations

from typing import Any

from replay.base_limiter import BaseLimiter


class StagedLimiter(BaseLimiter):
    """Counts online episodes, and says which side may go on by the stages.

    Args:
        items_before: episodes drawn before the first stage is gathered; >= 0, 0: gathering begins at once.
        stages: S >= 0; 0: nothing is ever inserted, and the run is over when ``items_before`` were drawn.
        episodes_per_stage: online episodes of one stage in this shard, >= 1 where there are stages.
        items_per_stage: episodes drawn after each stage's gathering, >= 1 where there are stages.

    Raises:
        ValueError: a value out of its range, or nothing to do at all.
    """

    pretraining = False  # what comes before the first stage is ``items_before``

    def __init__(
        self, *, items_before: int, stages: int = 0, episodes_per_stage: int = 1, items_per_stage: int = 1
    ) -> None:
        if items_before < 0 or stages < 0 or episodes_per_stage < 1 or items_per_stage < 1 or items_before + stages < 1:
            raise ValueError(
                f"limiter got items_before {items_before}, stages {stages}, episodes_per_stage {episodes_per_stage}, "
                f"items_per_stage {items_per_stage}; expected counts of which the last two are at least 1, and updates before "
                "the stages where there are none: nothing would ever be learned; set steps and online.* accordingly"
            )
        super().__init__(min_size=0 if items_before else episodes_per_stage)
        self.items_before, self.stages = items_before, stages
        self.episodes_per_stage, self.items_per_stage = episodes_per_stage, items_per_stage
        self.rows = 0  # online rows accepted, of episodes that are not over too

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
