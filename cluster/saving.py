"""What a run writes, and what of it is on disk.

- ``look_at_disk``, ``Saved``: what is on disk when a run ends, read from the disk, so the closing words cannot say more.
- ``SaveWatch``: failures of checkpoints and snapshots are counted and reported. CHECKPOINTS_FAILED failed checkpoints in a row
  end the run, since nothing that it learns would last. Failed snapshots never end it: replay is a cache.
- ``check_parts``: what the newest metrics record says was written and is missing now; nothing of it restarts from scratch
  silently. Records of older versions have no such count: there, what was learned and stored must exist somewhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cluster.bounded import in_thread
from cluster.config import RunConfig
from cluster.errors import RunError, UsageError
from cluster.graph import RunSpec
from cluster.metrics.aggregator import MetricsAggregator
from cluster.own_code import resume_words
from cluster.reports import free_words, size_words
from cluster.run_dir import RunDirectory
from learners import checkpoint
from replay import snapshot
from replay.manifest import Damaged, read_manifest

CHECKPOINTS_FAILED = 20  # one after the other that end a run: 40 minutes with the default learner.checkpoint_s
WARN = (3, 10)  # failures of a part one after the other that are said once more
LOOK_S = 5.0  # for a file system to say what is on it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one checkpoint, or of one shard's snapshot.

    Attributes:
        problem: why it was not written; "" when it was.
        seconds: that it took.
        bytes: of the whole, on disk.
    """

    problem: str = ""
    seconds: float = 0.0
    bytes: int = 0


def timed(write: Callable[[], int]) -> Outcome:
    """What becomes of ``write``, which gives the bytes that it has on disk then; an OSError is the problem."""
    began = time.monotonic()
    try:
        size = write()
    except OSError as error:
        return Outcome(problem=f"{type(error).__name__}: {error}")
    return Outcome(seconds=time.monotonic() - began, bytes=size)


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

    def look() -> tuple[int | None, list[int | None]]:
        return _updates(spec.run_dir / "checkpoints"), [_rows(spec.shard_dir(index)) for index in shards]

    try:
        updates, rows = in_thread(look).result(LOOK_S)
    except TimeoutError:
        silent = f"its file system did not answer for {LOOK_S:g} s"
        updates, rows = None, [None] * len(shards)
        checkpoint_problem = checkpoint_problem or silent
        snapshot_problems = dict.fromkeys(shards, silent) | {**snapshot_problems}
    found = [_part(f"shard {i}'s snapshot", rows[i], snapshot_problems.get(i, "")) for i in shards]
    return Saved(checkpoint=_part("the checkpoint", updates, checkpoint_problem), snapshots=tuple(found))


def on_disk_words(spec: RunSpec) -> str:
    """What is on disk of a run that ends without a save."""
    found = look_at_disk(spec, "", {})
    rows = [part.count for part in found.snapshots if part.count is not None]
    if found.checkpoint.count is None and not rows:
        return "nothing of it is on disk"
    updates = (
        "no checkpoint" if found.checkpoint.count is None else f"the checkpoint of update {found.checkpoint.count:,}"
    )
    return f"on disk: {updates} and snapshots of {len(rows)} of {len(found.snapshots)} shards ({sum(rows):,} rows)"


def _part(name: str, count: int | None, problem: str) -> Part:
    missing = "it was written, but is not there" if count is None else ""
    return Part(name=name, count=count, problem=problem or missing)


def _updates(directory: Path) -> int | None:
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
        self._complete: dict[int, Outcome] = {}  # of shards with a snapshot since all of them had one

    def checkpoint(self, outcome: Outcome) -> None:
        """A checkpoint was written, or was not."""
        where = self.spec.run_dir / "checkpoints"
        if self._note("checkpoint", where, outcome.problem, self.every_s["checkpoint"]):
            self.aggregator.saved("checkpoint", outcome.seconds, outcome.bytes)

    def snapshot(self, shard: int, outcome: Outcome) -> None:
        """A snapshot of ``shard`` was written, or was not."""
        where = self.spec.shard_dir(shard)
        if self._note(f"snapshot of shard {shard}", where, outcome.problem, self.every_s["snapshot"]):
            self._complete[shard] = outcome
            if len(self._complete) == self.spec.config.replay.shards:
                made = self._complete.values()
                self.aggregator.saved("snapshot", max(one.seconds for one in made), sum(one.bytes for one in made))
                self._complete.clear()

    def check(self) -> None:
        """RunError when the rule says that the run ends."""
        count = self._failures.get("checkpoint", 0)
        if count >= CHECKPOINTS_FAILED:
            where = self.spec.run_dir / "checkpoints"
            raise RunError(
                f"{count} checkpoints one after the other could not be written to {where} ({self._first['checkpoint']}; "
                f"{self._disk_words(where)}), expected one every {self.spec.config.learner.checkpoint_s:g} s: nothing "
                f"that the run learns would last, so it ends; the older checkpoints stay; free some space, then "
                f"`{resume_words(self.spec.run_dir, self.spec.config)}`"
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
                f"{loud}the {part} could not be written to {where} ({problem}; {self._disk_words(where)}); "
                f"the older ones stay, the next one is due in {every_s:g} s{left}"
            )
        return False

    def _disk_words(self, where: Path) -> str:
        """What is free, and what the newest save in ``where`` takes."""
        try:
            return in_thread(lambda: f"{free_words(self.spec.run_dir)}{_need(where)}").result(LOOK_S / 5)
        except TimeoutError:
            return "its file system does not answer"


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


def missing_checkpoint(run: RunDirectory) -> str:
    """That the run wrote checkpoints and none is there, in words; "" where that is not so."""
    if checkpoint.exists(run.checkpoints):
        return ""
    line = run.live()
    updates = int(line.get("updates", 0))
    if not line.get("written_checkpoints", updates):
        return ""
    seen = "is empty" if run.checkpoints.is_dir() else "does not exist"
    return f"{run.checkpoints} {seen}, expected the checkpoints of a run that has made {updates:,} updates"


def _damaged_checkpoints(run: RunDirectory) -> str:
    """That the run has checkpoints and none is whole, in words; "" where that is not so."""
    found = checkpoint.damage(run.checkpoints)
    return f"{run.checkpoints} has {len(found)} checkpoints, expected a whole one: {'; '.join(found)}" if found else ""


def check_parts(run: RunDirectory, config: RunConfig, accept_loss: bool) -> list[str]:
    """Looks for the checkpoint and for every shard's snapshot before a run goes on.

    Args:
        accept_loss: what is missing or damaged begins anew.

    Returns:
        what begins anew, in words.

    Raises:
        UsageError: something is missing or damaged and ``accept_loss`` is False; nothing was changed.
    """
    line = run.live()
    problem = missing_checkpoint(run) or _damaged_checkpoints(run)
    problems = [problem] if problem else []
    folders = [run.replay / f"shard-{index}" for index in range(config.replay.shards)]
    if _snapshots_expected(line, folders):
        problems += filter(None, map(_lacking, folders))
    if not problems:
        return []
    lost = [
        f"{int(line.get('updates', 0)):,} updates" if problem else "",
        f"rows of the replay ({int(line.get('size_rows', 0)):,} were held)" if len(problems) > bool(problem) else "",
    ]
    if not accept_loss:
        raise UsageError(
            "files that the run wrote are missing or damaged:\n"
            + "\n".join(f"  - {text}" for text in problems)
            + f"\nGoing on without them would throw away {' and '.join(filter(None, lost))}, so nothing was started. Put them back, or "
            f"begin anew what is missing and keep the rest with `{resume_words(run.path, config)} --accept-loss`"
        )
    return [f"begins anew, as --accept-loss allows: {text}" for text in problems]


def set_aside(run: RunDirectory, config: RunConfig, lost: list[str]) -> None:
    """Moves what nobody can load out of the way of a run that begins it anew: to ``shard-I.unusable``, ``checkpoints.unusable``.

    ``lost`` is of ``check_parts``: where nothing is, no checkpoint is read and checked a second time.
    """
    folders = [run.replay / f"shard-{index}" for index in range(config.replay.shards)]
    unusable = [folder for folder in folders if any(folder.glob("manifest-*.json")) and _lacking(folder)]
    if lost and _damaged_checkpoints(run):
        unusable.append(run.checkpoints)
    for folder in unusable:
        number = itertools.count(2)
        target = folder.with_name(f"{folder.name}.unusable")
        while target.exists():
            target = folder.with_name(f"{folder.name}.unusable-{next(number)}")
        folder.rename(target)


def _snapshots_expected(line: Mapping[str, Any], folders: list[Path]) -> bool:
    if "written_snapshots" in line:
        return bool(line["written_snapshots"])
    return bool(line.get("env_steps")) or any(any(folder.glob("manifest-*.json")) for folder in folders)


def _lacking(folder: Path) -> str:
    """What a shard's ``folder`` lacks of a snapshot; "" if it has one with all of its files in full length."""
    manifests = len(list(folder.glob("manifest-*.json")))
    if manifests and next(snapshot.intact(folder), None) is not None:
        return ""
    if manifests:
        return (
            f"{folder} has {manifests} manifests and not all files of any, expected those that it names, in full length"
        )
    segments = len(list(folder.glob("segment-*"))) if folder.is_dir() else 0
    if segments:
        return f"{folder} has {segments} segments and no manifest, expected the manifest that says what is in them"
    return f"{folder} {'is empty' if folder.is_dir() else 'does not exist'}, expected a snapshot of that replay shard"
