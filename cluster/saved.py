"""What of a run is on disk when it ends: read from the disk, so that the closing words cannot say more than there is."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.graph import RunSpec
from replay import snapshot
from replay.manifest import Damaged, read_manifest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """The checkpoint, or one shard's snapshot.

    Attributes:
        name: what it is, for people.
        count: updates of the newest one on disk, or the rows stored over the run that it stands for; None: there is none.
        problem: why the newest one on disk is older than this save; "" when it is not.
    """

    name: str
    count: int | None
    problem: str

    def words(self, unit: str) -> str:
        """Why it was not saved, and what there is instead."""
        left = "there is none on disk" if self.count is None else f"the newest on disk: {self.count:,} {unit}"
        return f"{self.name} ({self.problem}; {left})"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Saved:
    """What a save left on disk."""

    checkpoint: Part
    snapshots: tuple[Part, ...]

    @property
    def problems(self) -> list[str]:
        """One line for each part that was not saved."""
        lines = [self.checkpoint.words("updates")] if self.checkpoint.problem else []
        return lines + [part.words("rows") for part in self.snapshots if part.problem]

    def words(self) -> str:
        """What was saved, and what was not and why, in one line."""
        made = [] if self.checkpoint.problem else [f"the checkpoint of update {self.checkpoint.count:,}"]
        whole = [part.count or 0 for part in self.snapshots if not part.problem]
        if whole:
            made.append(f"snapshots of {len(whole)} of {len(self.snapshots)} shards ({sum(whole):,} rows)")
        text = f"saved: {', '.join(made)}" if made else "nothing was saved"
        return f"{text}; NOT saved: {'; '.join(self.problems)}" if self.problems else text

    def as_json(self) -> dict[str, Any]:
        """For summary.json: what is on disk, with a ``problem`` where that is older than the end of the run."""

        def entry(part: Part, unit: str) -> dict[str, Any]:
            return {unit: part.count} | ({"problem": part.problem} if part.problem else {})

        return {
            "checkpoint": entry(self.checkpoint, "updates"),
            "snapshots": [entry(part, "rows") for part in self.snapshots],
        }


def look_at_disk(spec: RunSpec, checkpoint_problem: str, snapshot_problems: Mapping[int, str]) -> Saved:
    """What ``spec``'s run directory holds after a save whose problems were these, by shard; "" and {} where there were none."""
    shards = range(spec.config.replay.shards)
    found = [_part(f"shard {i}'s snapshot", _rows(spec.shard_dir(i)), snapshot_problems.get(i, "")) for i in shards]
    return Saved(
        checkpoint=_part("the checkpoint", _updates(spec.run_dir / "checkpoints"), checkpoint_problem),
        snapshots=tuple(found),
    )


def _part(name: str, count: int | None, problem: str) -> Part:
    missing = "it was written, but is not there" if count is None else ""
    return Part(name=name, count=count, problem=problem or missing)


def _updates(directory: Path) -> int | None:
    from learners import checkpoint

    with contextlib.suppress(OSError):
        meta = checkpoint.newest_meta(directory)
        return None if meta is None else int(meta["updates"])
    return None


def _rows(directory: Path) -> int | None:
    with contextlib.suppress(OSError, Damaged):
        for number in snapshot.intact(directory):
            manifest = read_manifest(snapshot.manifest_path(directory, number))
            return int(manifest["state"]["table"]["inserted"])
    return None
