"""Whether checkpoints and snapshots are written: failures are counted, said, and end the run by one rule.

The rule: CHECKPOINTS_FAILED checkpoints that fail one after the other end the run, as nothing that it learns would last. Snapshots
that fail never end it: replay is a cache.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from cluster.errors import RunError
from cluster.graph import RunSpec
from cluster.metrics.aggregator import MetricsAggregator
from cluster.reports import free_words, size_words
from replay.manifest import Damaged, read_manifest

CHECKPOINTS_FAILED = 20  # one after the other that end a run: 40 minutes with the default learner.checkpoint_s
WARN = (3, 10)  # failures of a part one after the other that are said once more


class SaveWatch:
    """Takes the outcome of every save of a run.

    Args:
        aggregator: gets the number of failed and of complete saves, and when the last complete one was.
        event: called with what a person should know.
    """

    def __init__(self, spec: RunSpec, aggregator: MetricsAggregator, event: Callable[[str], None]) -> None:
        self.spec, self.aggregator, self.event = spec, aggregator, event
        config = spec.config
        snapshot_s = config.learner.checkpoint_s if config.backend == "inline" else config.replay.snapshot_s
        self.every_s = aggregator.save_every_s = {"checkpoint": config.learner.checkpoint_s, "snapshot": snapshot_s}
        self._failures: dict[str, int] = {}  # one after the other, by part
        self._first: dict[str, str] = {}  # the first of them
        self._complete: set[int] = set()  # shards with a snapshot since all of them had one

    def checkpoint(self, problem: str) -> None:
        """A checkpoint was written ("") or was not, because of ``problem``."""
        if self._note("checkpoint", self.spec.run_dir / "checkpoints", problem, self.every_s["checkpoint"]):
            self.aggregator.saved("checkpoint")

    def snapshot(self, shard: int, problem: str) -> None:
        """A snapshot of ``shard`` was written ("") or was not, because of ``problem``."""
        if self._note(f"snapshot of shard {shard}", self.spec.shard_dir(shard), problem, self.every_s["snapshot"]):
            self._complete.add(shard)
            if len(self._complete) == self.spec.config.replay.shards:
                self._complete.clear()
                self.aggregator.saved("snapshot")

    def check(self) -> None:
        """RunError when the rule says that the run ends."""
        count = self._failures.get("checkpoint", 0)
        if count >= CHECKPOINTS_FAILED:
            where = self.spec.run_dir / "checkpoints"
            raise RunError(
                f"{count} checkpoints one after the other could not be written to {where} ({self._first['checkpoint']}; "
                f"{free_words(self.spec.run_dir)}{_need(where)}), expected one every {self.spec.config.learner.checkpoint_s:g} s: nothing "
                "that the run learns would last, so it ends; the older checkpoints stay; free some space, then `drawbridge resume "
                f"{self.spec.run_dir}`"
            )

    def _note(self, part: str, where: Path, problem: str, every_s: float) -> bool:
        if not problem:
            if count := self._failures.pop(part, 0):
                self.event(f"the {part} is written again, after {count:,} failed ones")
            return True
        self.aggregator.failed["checkpoint" if part == "checkpoint" else "snapshot"] += 1
        self._failures[part] = count = self._failures.get(part, 0) + 1
        if count == 1:
            self._first[part] = problem
        if count == 1 or count in WARN or count % CHECKPOINTS_FAILED == 0:
            left = f"; {CHECKPOINTS_FAILED - count} more end the run" if part == "checkpoint" and count > 1 else ""
            loud = f"WARNING: {count} one after the other: " if count > 1 else ""
            self.event(
                f"{loud}the {part} could not be written to {where} ({problem}; {free_words(self.spec.run_dir)}{_need(where)}); "
                f"the older ones stay, the next one is due in {every_s:g} s{left}"
            )
        return False


def _need(directory: Path) -> str:
    """What the newest checkpoint or snapshot in ``directory`` takes, as far as there is one."""
    with contextlib.suppress(OSError, Damaged, ValueError):
        newest = max(
            entry.path for entry in os.scandir(directory) if entry.name.startswith(("checkpoint-", "manifest-"))
        )
        if newest.endswith(".json"):
            size = sum(int(entry["bytes"]) for entry in read_manifest(Path(newest))["segments"])
        else:
            size = sum(entry.stat().st_size for entry in os.scandir(newest))
        return f", the last one takes {size_words(size)}"
    return ""
