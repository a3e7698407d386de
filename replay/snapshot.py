"""Snapshots of a shard: segments of slots and a manifest, written so that the newest complete one can always be found.

A directory belongs to one shard and holds

    segment-<index>-<snapshot>.safetensors     the columns of some thousand slots, about 4 MiB, never rewritten
    manifest-<snapshot>.json                   which file is which segment, digests, and everything that is not a column

Only segments that changed since the last snapshot are written (base_saving.py says how); the manifest names older files for
the others. Segments are safetensors because one file then holds eight columns with names, types and shapes, without pickle.
Not promised: a segment file shared by all kept snapshots that rots on the disk takes them all with it, and ``load`` says so.

Nothing blocks for long: ``Saving.step`` writes one segment. Appends between steps are allowed; a segment about to
change is copied first, so the snapshot is the shard as it was when the saving began. At most HELD copies are held:
beyond that an append writes one out itself.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load as from_safetensors

from replay import snapshot_files as files
from replay.base_saving import BaseSaving
from replay.manifest import Entry
from replay.shard import ReplayShard
from replay.snapshot_files import SnapshotError, SnapshotInfo
from replay.table import Saved, Table

__all__ = ["HELD", "Saving", "SnapshotError", "SnapshotInfo", "load", "save"]

FORMAT = 1
HELD = 8  # segments copied because they changed while a snapshot was being written


def save(shard: ReplayShard, directory: str | Path) -> SnapshotInfo:
    """Writes a snapshot in one go; keeps config.snapshots_kept of those this shard wrote or was loaded from.

    Raises:
        OSError: the disk is full, or the directory cannot be written. Older snapshots are as they were.
    """
    return Saving(shard, directory).finish()


def load(shard: ReplayShard, directory: str | Path) -> SnapshotInfo | None:
    """Loads the newest valid snapshot into a shard that has no rows yet; None if the directory has none at all.

    The shard then answers and samples bit by bit as the saved one would have. A damaged snapshot is passed over for
    the next older one and named in ``warnings``.

    Raises:
        SnapshotError: every snapshot is damaged, or the newest readable one is of another layout, capacity or shard.
        ValueError: the shard already holds rows.
    """
    started, directory = time.monotonic(), Path(directory)
    if shard.table.inserted:
        raise ValueError(
            f"shard {shard.shard} holds {shard.table.size} rows; expected an empty one: nothing was loaded, these rows "
            "would be lost; load before the first append"
        )
    found = files.newest_sound(directory, _identity(shard), "rows")
    if found is None:
        return None
    older = [number for number in files.intact(directory) if number < found.manifest["number"]]
    _fill(shard, found.manifest, directory, (*reversed(older), found.manifest["number"]))
    return found.loaded(shard.table.inserted, started)


class Saving(BaseSaving):
    """A snapshot of a shard that appends meanwhile.

    If it fails, the next one writes what this one should have. An append never fails for a snapshot's sake: what goes wrong
    there is raised by the next step.

    Raises:
        RuntimeError: another saving of this shard is not over.
        OSError: the directory cannot be made or read.
    """

    def __init__(self, shard: ReplayShard, directory: str | Path) -> None:
        if shard.table.keeper is not None:
            raise RuntimeError(
                f"shard {shard.shard} is being saved already; expected one snapshot at a time: this one was not begun; "
                "finish or cancel the other"
            )
        super().__init__(shard, directory, _identity(shard))
        self._table = shard.table
        self._entries = _reusable(self._table, self.directory)
        self._todo = {i: None for i in range(self._table.segments_in_use()) if i not in self._entries}  # ordered set
        self._held: dict[int, dict[str, np.ndarray]] = {}
        self._failure: OSError | None = None
        self._dirty = self._table.dirty.copy()
        self._table.dirty[:] = False
        self._table.keeper = self

    def keep(self, segments: np.ndarray) -> None:
        """Called by the table before it changes ``segments``."""
        for index in segments.tolist():
            if index in self._todo and index not in self._held:
                self._held[index] = {name: column.copy() for name, column in self._table.segment(index).items()}
        try:
            while len(self._held) > HELD:
                self._guarded(self._advance)
        except OSError as error:
            self._failure = error

    def step(self) -> SnapshotInfo | None:
        """Writes one segment, or at the end the manifest; what was written once the snapshot is complete."""
        if self._failure is not None:
            raise self._failure
        return super().step()

    def cancel(self) -> None:
        """Gives up: removes what was written; the shard's next snapshot writes it instead."""
        if self._table.keeper is self:
            self._table.keeper = None
            self._table.dirty |= self._dirty
            self._held.clear()
        super().cancel()

    def _next_segment(self) -> tuple[int, dict[str, np.ndarray]] | None:
        index = next(iter(self._held or self._todo), None)
        if index is None:
            return None
        del self._todo[index]
        return index, self._held.pop(index, None) or self._table.segment(index)

    def _completed(self) -> Iterable[int]:
        saved = self._table.saved
        before = saved.numbers if saved is not None and saved.directory == self.directory else ()
        numbers = (*before, self._number)[-self._kept :]
        self._table.saved = Saved(self.directory, self._entries, numbers)
        self._table.keeper = None
        return numbers


def _reusable(table: Table, directory: Path) -> dict[int, Entry]:
    """Files of the table's last snapshot in this directory that still say what it holds."""
    if table.saved is None or table.saved.directory != directory:
        return {}
    present = {path.name: path.stat().st_size for path in directory.iterdir()}
    entries = {index: entry for index, entry in table.saved.entries.items() if not table.dirty[index]}
    return {index: entry for index, entry in entries.items() if present.get(entry["file"]) == entry["bytes"]}


def _identity(shard: ReplayShard) -> dict[str, Any]:
    """What a snapshot and a shard must have in common."""
    return {
        "format": FORMAT,
        "layout": dataclasses.asdict(shard.layout),
        "capacity": shard.table.capacity,
        "segment_slots": shard.table.segment_slots,
        "shard": shard.shard,
        "shards": shard.shards,
    }


def _fill(shard: ReplayShard, manifest: dict[str, Any], directory: Path, numbers: tuple[int, ...]) -> None:
    for index, entry in enumerate(manifest["segments"]):
        loaded = from_safetensors((directory / entry["file"]).read_bytes())
        for name, column in shard.table.segment(index).items():
            column[:] = loaded[name]
    shard.load_state(manifest["state"])
    shard.table.dirty[:] = False
    shard.table.saved = Saved(directory.resolve(), dict(enumerate(manifest["segments"])), numbers)
