"""What a learner does about non-finite updates: skip, dump, roll back, halt.

The agent itself skips the parameter step of an update whose loss or gradient is not finite and counts it. The guard
looks at that count once a block:

    any at all                                       the block is dumped (at most 3 dumps a process)
    ``nonfinite_skips`` since the last clean block   roll back to the newest valid checkpoint
    ``rollbacks`` without progress between them      halt, with the FIRST cause

Progress is getting further past a rollback than the rollback lost: more updates than there were from the checkpoint to
the first bad one. The rule and its constants are ours.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from learners.config import LearnerConfig
from replay.manifest import write_atomic
from replay.messages import Block, EpisodeBlock

DUMPS = 3


class Halt(RuntimeError):
    """Training cannot go on; the message gives the first cause, which came before all that followed from it."""


@dataclasses.dataclass
class Guard:
    """Watches one learner; the same decisions on every rank, because every rank sees the same counts."""

    config: LearnerConfig
    directory: Path  # of the dumps
    nonfinite: int = 0  # non-finite updates over this process's life
    streak: int = 0  # of them since the last block without one
    rollbacks: int = 0  # since the last progress
    dumps: int = 0
    first_cause: str = ""  # since the last progress
    _rolled_back_at: int = 0  # in updates
    _lost: int = 0  # good updates that the last rollback took back

    def observe(self, block: Block | EpisodeBlock, metrics: dict[str, float], updates: int) -> bool:
        """Takes one block's counts.

        Args:
            block: what the updates were made on.
            metrics: of the block; ``nonfinite`` is the number of its updates that were skipped.
            updates: made by the learner once the block was done.

        Returns:
            True when the learner must roll back now.
        """
        count = round(metrics.get("nonfinite", 0.0))
        if count == 0:
            self.streak = 0
            self._note_progress(updates)
            return False
        self.nonfinite += count
        self.streak += count
        made = block.slot_UB.shape[0]
        where = self._dump(block, metrics, updates)
        self.note(
            f"{count} of the updates {updates - made + 1} to {updates} were not finite ({_names(metrics)}); {where}"
        )
        return self.streak >= self.config.nonfinite_skips

    def note(self, cause: str) -> None:
        """Keeps ``cause`` if it is the first since the last progress."""
        self.first_cause = self.first_cause or cause

    def allow_rollback(self, updates: int) -> None:
        """Raises Halt when there were ``rollbacks`` rollbacks without progress already."""
        if self.rollbacks >= self.config.rollbacks:
            raise Halt(
                f"the learner is not finite again at update {updates}, after {self.rollbacks} rollbacks without "
                f"progress (limit {self.config.rollbacks}), and stops. First cause: {self.first_cause}. Look at the "
                f"dumped blocks in {self.directory}; a lower learning rate, or a support that holds the returns, are "
                "the usual remedies; then resume from the last checkpoint"
            )

    def rolled_back(self, updates: int, to: int) -> None:
        """Counts a rollback made at ``updates`` to a checkpoint of ``to`` updates."""
        self.rollbacks += 1
        self._rolled_back_at, self._lost = updates, updates - to - self.streak
        self.streak = 0

    def halt_without_checkpoint(self, updates: int) -> Halt:
        """The error for a rollback that has nothing to go back to."""
        return Halt(
            f"the learner is not finite at update {updates}, there is no checkpoint yet to roll back to, and it stops. "
            f"First cause: {self.first_cause}. Look at the dumped blocks in {self.directory} and at the learning "
            "rates, then start again"
        )

    def halt_for_state(self, updates: int) -> Halt:
        """The error for a state with a NaN on one of several learners."""
        return Halt(
            f"the state at update {updates} holds a NaN and was not given out as a checkpoint. First cause: "
            f"{self.first_cause}. The learners stop; restart all of them from the newest checkpoint"
        )

    def _note_progress(self, updates: int) -> None:
        if self.rollbacks and updates - self._rolled_back_at > self._lost:
            self.rollbacks, self.first_cause = 0, ""

    def _dump(self, block: Block | EpisodeBlock, metrics: dict[str, float], updates: int) -> str:
        """Writes the block for a later look; says where. A full disk must not end the training."""
        if self.dumps >= DUMPS:
            return f"not dumped, {DUMPS} blocks were dumped before"
        path = self.directory / f"nonfinite-{updates:010d}.safetensors"
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            write_atomic(path, safetensors.numpy.save(_arrays(block)))
            write_atomic(path.with_suffix(".json"), json.dumps(_facts(block, metrics, updates), indent=1).encode())
        except OSError as error:
            return f"its dump to {path} failed: {error}"
        self.dumps += 1
        return f"dumped to {path}"


def _names(metrics: dict[str, float]) -> str:
    bad = [f"{name} {value}" for name, value in metrics.items() if not math.isfinite(value)]
    return ", ".join(bad) or "every metric's mean is finite"


def _arrays(block: Block | EpisodeBlock) -> dict[str, np.ndarray]:
    """Everything in a block by name; the batches of an EpisodeBlock are numbered."""
    arrays = {name: np.array(value) for name, value in vars(block).items() if isinstance(value, np.ndarray)}
    for number, batch in enumerate(getattr(block, "batches", ())):
        arrays |= {f"{number}/{name}": np.array(value) for name, value in vars(batch).items()}
    return arrays


def _facts(block: Block | EpisodeBlock, metrics: dict[str, float], updates: int) -> dict[str, Any]:
    """What JSON can say about a block; non-finite metrics become strings, so that any reader takes the file."""
    rows = [block.rows_UBD] if isinstance(block, Block) else [batch.rows_NF for batch in block.batches]
    finite = [np.isfinite(part).all(axis=-1) for part in rows]
    return {
        "updates": updates,
        "shard": block.shard,
        "shapes": [list(part.shape) for part in rows],
        "nonfinite_rows": int(sum((~good).sum() for good in finite)),
        "largest_value": max(float(np.abs(part[good]).max(initial=0.0)) for part, good in zip(rows, finite)),
        "versions": [int(block.version_UB.min()), int(block.version_UB.max())],
        "metrics": {name: value if math.isfinite(value) else str(value) for name, value in metrics.items()},
    }
