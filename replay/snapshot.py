"""Snapshots of a shard: segments of slots and a manifest, written so that the newest complete one can always be found.

A directory belongs to one shard and holds

    segment-<index>-<snapshot>.safetensors     the columns of some thousand slots, about 4 MiB, never rewritten
    manifest-<snapshot>.json                   which file is which segment, digests, and everything that is not a column

Only segments that changed since the last snapshot are written; the manifest names older files for the others. Files are
fsynced, the manifest is renamed into place last, then the directory is fsynced: a snapshot exists when its manifest
does. What no kept manifest names is removed after that. Segments are safetensors because one file then holds eight
columns with names, types and shapes, without pickle. Not promised: a segment file shared by all kept snapshots that
rots on the disk takes them all with it, and ``load`` says so.

Nothing blocks for long: ``Saving.step`` writes one segment. Appends between steps are allowed; a segment about to
change is copied first, so the snapshot is the shard as it was when the saving began. At most HELD copies are held:
beyond that an append writes one out itself.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load as from_safetensors
from safetensors.numpy import save as to_safetensors

from replay import snapshot_files as files
from replay.durable import write_synced
from replay.shard import ReplayShard
from replay.table import Saved, Table

FORMAT = 1
HELD = 8  # segments copied because they changed while a snapshot was being written


class SnapshotError(RuntimeError):
    """Snapshots are there, but none of them can be loaded into this shard."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SnapshotInfo:
    """A snapshot that was written or loaded."""

    number: int
    path: Path  # of the manifest
    inserted: int  # rows the shard had accepted over its life
    segments: int  # it consists of
    segments_written: int  # of these by this save; 0 for a load
    bytes_written: int
    seconds: float
    warnings: tuple[str, ...] = ()  # newer snapshots that could not be used, and why


def save(shard: ReplayShard, directory: str | Path) -> SnapshotInfo:
    """Writes a snapshot in one go; keeps config.snapshots_kept of those this shard wrote or was loaded from.

    Raises:
        OSError: the disk is full, or the directory cannot be written. Older snapshots are as they were.
    """
    saving = Saving(shard, directory)
    while (info := saving.step()) is None:
        pass
    return info


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
            f"shard {shard.shard} holds {shard.table.size} rows; expected an empty one: nothing was loaded, these "
            "rows would "
            "be lost; load before the first append"
        )
    paths = sorted(directory.glob("manifest-*.json"), key=files.number_of, reverse=True) if directory.is_dir() else []
    warnings: list[str] = []
    for path in paths:
        try:
            manifest = files.read_manifest(path)
            _check_identity(shard, manifest, path)
            for entry in manifest["segments"]:
                files.check_file(directory / entry["file"], entry)
        except files.Damaged as damage:
            warnings.append(f"snapshot {files.number_of(path)}: {damage}; passed over for an older one")
            continue
        older = sorted(files.number_of(p) for p in paths if files.number_of(p) < manifest["number"] and _readable(p))
        _fill(shard, manifest, directory, (*older, manifest["number"]))
        return SnapshotInfo(
            number=manifest["number"],
            path=path,
            inserted=shard.table.inserted,
            segments=len(manifest["segments"]),
            segments_written=0,
            bytes_written=0,
            seconds=time.monotonic() - started,
            warnings=tuple(warnings),
        )
    if not paths:
        return None
    raise SnapshotError(
        f"none of the {len(paths)} snapshots in {directory} can be loaded:\n  "
        + "\n  ".join(warnings)
        + "\nExpected at least "
        "one intact: starting without replay would go unnoticed, so it is refused; restore the files, or remove the "
        "directory "
        "to start with an empty shard"
    )


class Saving:
    """A snapshot on its way to disk: call ``step`` until it gives its SnapshotInfo.

    The snapshot is of the moment this object was made. If a step raises, the saving is over, its files are removed,
    and the next one writes what this one should have. An append never fails for a snapshot's sake: what goes wrong
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
        self.directory = Path(directory).resolve()
        self.directory.mkdir(parents=True, exist_ok=True)
        self._started = time.monotonic()
        self._number = files.next_number(self.directory)
        self._table, self._kept = shard.table, shard.config.snapshots_kept
        self._manifest = _identity(shard) | {"number": self._number, "state": shard.state()}
        self._entries = _reusable(self._table, self.directory)
        self._todo = {i: None for i in range(self._table.segments_in_use()) if i not in self._entries}  # ordered set
        self._held: dict[int, dict[str, np.ndarray]] = {}
        self._written: list[Path] = []
        self._bytes = 0
        self._failure: OSError | None = None
        self._info: SnapshotInfo | None = None
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
                self._guarded(lambda: self._write_segment(next(iter(self._held))))
        except OSError as error:
            self._failure = error

    def step(self) -> SnapshotInfo | None:
        """Writes one segment, or at the end the manifest; what was written once the snapshot is complete."""
        if self._info is not None:
            return self._info
        if self._failure is not None:
            raise self._failure
        if self._table.keeper is not self:
            raise RuntimeError(
                "this snapshot failed or was cancelled before it was complete: nothing of it is kept; begin anew"
            )
        index = next(iter(self._held or self._todo), None)
        if index is None:
            self._guarded(self._finish)
        else:
            self._guarded(lambda: self._write_segment(index))
        return self._info

    def cancel(self) -> None:
        """Gives up: removes what was written; the shard's next snapshot writes it instead."""
        if self._table.keeper is self:
            self._table.keeper = None
            self._table.dirty |= self._dirty
            self._held.clear()
            for path in self._written:
                path.unlink(missing_ok=True)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException:
            self.cancel()
            raise

    def _write_segment(self, index: int) -> None:
        del self._todo[index]
        columns = self._held.pop(index, None) or self._table.segment(index)
        data = to_safetensors(columns)
        path = self.directory / files.segment_name(index, self._number)
        self._written.append(path)
        write_synced(path, data)
        self._entries[index] = {"file": path.name, "digest": files.digest(data), "bytes": len(data)}
        self._bytes += len(data)

    def _finish(self) -> None:
        path = files.manifest_path(self.directory, self._number)
        manifest = self._manifest | {"segments": [self._entries[index] for index in range(len(self._entries))]}
        size = files.write_manifest(path, manifest)
        saved = self._table.saved
        before = saved.numbers if saved is not None and saved.directory == self.directory else ()
        numbers = (*before, self._number)[-self._kept :]
        self._table.saved = Saved(self.directory, self._entries, numbers)
        self._table.keeper = None
        self._info = SnapshotInfo(
            number=self._number,
            path=path,
            inserted=int(manifest["state"]["table"]["inserted"]),
            segments=len(self._entries),
            segments_written=len(self._written),
            bytes_written=self._bytes + size,
            seconds=time.monotonic() - self._started,
        )
        files.remove_garbage(self.directory, numbers)


def _reusable(table: Table, directory: Path) -> dict[int, dict[str, Any]]:
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


def _check_identity(shard: ReplayShard, manifest: dict[str, Any], path: Path) -> None:
    wrong = [
        f"{key} is {manifest.get(key)}, expected {value}"
        for key, value in _identity(shard).items()
        if manifest.get(key) != value
    ]
    if wrong:
        raise SnapshotError(
            f"{path} is of another shard: {'; '.join(wrong)}. Its rows would be misread, so nothing was loaded; "
            "resume with the "
            "configuration it was written under, or start with an empty directory"
        )


def _readable(path: Path) -> bool:
    try:
        files.read_manifest(path)
    except files.Damaged:
        return False
    return True


def _fill(shard: ReplayShard, manifest: dict[str, Any], directory: Path, numbers: tuple[int, ...]) -> None:
    for index, entry in enumerate(manifest["segments"]):
        loaded = from_safetensors((directory / entry["file"]).read_bytes())
        for name, column in shard.table.segment(index).items():
            column[:] = loaded[name]
    shard.load_state(manifest["state"])
    shard.table.dirty[:] = False
    shard.table.saved = Saved(directory.resolve(), dict(enumerate(manifest["segments"])), numbers)
