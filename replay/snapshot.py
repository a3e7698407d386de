"""Snapshots of a shard: segments of its store's arrays and a manifest, written so that the newest valid one can always be found.

A directory belongs to one shard and holds

    segment-<index>-<snapshot>.safetensors     arrays of the store, about 4 MiB, never rewritten
    manifest-<snapshot>.json                   which file is which segment, and everything that is no array (``replay.manifest``)

The manifest is renamed into place last: a snapshot exists when its manifest does. What no kept manifest names is removed after that.
Segments are safetensors because one file then holds many arrays with names, types and shapes, without pickle. A segment that has not
changed since the store's last snapshot is not written again: the manifest names the older file. Not promised: a segment file shared by
all kept snapshots that rots on the disk takes them all with it, and ``load`` says so.

Nothing blocks for long: ``Saving.step`` writes one segment. Appends between steps are allowed; a segment about to change is copied
first, so the snapshot is the shard as it was when the saving began. At most HELD such copies are held: beyond that an append writes
one out itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load as from_safetensors
from safetensors.numpy import save as to_safetensors

from replay.manifest import (
    Damaged,
    Entry,
    full_length,
    newest_valid,
    read_file,
    read_manifest,
    write_file,
    write_manifest,
)
from replay.shard import Shard
from replay.store import Arrays, Saved, Store

HELD = 8  # segments copied because they changed while a snapshot was being written
_NAME = re.compile(r"\.?(?:manifest|segment-\d+)-(\d+)\.(?:json|safetensors)(?:\.\d+\.tmp)?")


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
    bytes: int  # of all segments
    seconds: float
    warnings: tuple[str, ...] = ()  # newer snapshots that could not be used, and why


def save(shard: Shard, directory: str | Path) -> SnapshotInfo:
    """Writes a snapshot in one go; keeps config.snapshots_kept of those this shard wrote or was loaded from.

    Raises:
        OSError: the disk is full, or the directory cannot be written. Older snapshots are as they were.
    """
    saving = Saving(shard, directory)
    while (info := saving.step()) is None:
        pass
    return info


def load(shard: Shard, directory: str | Path) -> SnapshotInfo | None:
    """Loads the newest valid snapshot into a new shard; None if the directory has none at all.

    The shard then answers and samples bit by bit as the saved one would have. A damaged snapshot is skipped for the next older one
    and named in ``warnings``.

    Raises:
        SnapshotError: every snapshot is damaged, or the newest valid one is of another version, shard, layout or dataset.
        ValueError: the shard has taken or given something already.
    """
    started, directory, store = time.monotonic(), Path(directory), shard.store
    if store.inserted or shard.limiter.sampled:
        raise ValueError(
            f"shard {shard.shard} has taken {store.inserted} rows and given {shard.limiter.sampled} {store.items}; expected an empty one: "
            "nothing was loaded, that would be lost; load before the first call"
        )
    found, warnings = _newest(shard, directory)
    if found is None:
        return None
    path, manifest = found
    entries: list[Entry] = manifest["segments"]
    try:
        store.load(manifest["state"], (from_safetensors((directory / entry["file"]).read_bytes()) for entry in entries))
    except ValueError as error:
        raise SnapshotError(f"{path} does not go with the dataset: {error}") from error
    shard.load_state(manifest["state"])
    numbers = sorted(number for number in intact(directory) if number <= manifest["number"])
    store.dirty[:] = False
    store.saved = Saved(directory.resolve(), dict(enumerate(entries)), tuple(numbers))
    return SnapshotInfo(
        number=manifest["number"],
        path=path,
        inserted=store.inserted,
        segments=len(entries),
        segments_written=0,
        bytes_written=0,
        bytes=sum(int(entry["bytes"]) for entry in entries),
        seconds=time.monotonic() - started,
        warnings=tuple(warnings),
    )


class Saving:
    """A snapshot on its way to the disk, of the moment this object was made. Call ``step`` until it gives its SnapshotInfo.

    If it fails, its files are removed, older snapshots are as they were, and the next one writes what this one should have. An append
    never fails because of a snapshot: the next step raises what went wrong there.

    Raises:
        RuntimeError: another saving of this shard is not over.
        OSError: the directory cannot be made or read.
    """

    def __init__(self, shard: Shard, directory: str | Path) -> None:
        self._store = store = shard.store
        if store.keeper is not None:
            raise RuntimeError(
                f"shard {shard.shard} is being saved already; expected one snapshot at a time: this one was not begun; "
                "finish or cancel the other"
            )
        self.directory = Path(directory).resolve()
        self.directory.mkdir(parents=True, exist_ok=True)
        self._started = time.monotonic()
        self._number = 1 + max((number_of(path) for path in self.directory.iterdir()), default=0)  # never a name twice
        self._manifest = _identity(shard) | {"number": self._number, "state": shard.state()}
        segments = store.segments()
        self._entries = _reusable(store, segments, self.directory)
        self._todo = {index: arrays for index, arrays in segments.items() if index not in self._entries}
        self._copied: list[int] = []  # of the segments to do, because they changed
        self._written: list[Path] = []
        self._bytes = 0
        self._info: SnapshotInfo | None = None
        self._over = False
        self._failure: OSError | None = None
        self._dirty = store.dirty.copy()
        store.dirty[:] = False
        store.keeper = self._keep

    def step(self) -> SnapshotInfo | None:
        """Writes one segment, or at the end the manifest; what was written once the snapshot is complete.

        Raises:
            OSError: the disk is full, or the directory cannot be written.
        """
        if self._failure is not None:
            raise self._failure
        if self._info is None:
            if self._over:
                raise RuntimeError(
                    "this snapshot failed or was cancelled before it was complete: nothing of it is kept; begin anew"
                )
            self._advance()
        return self._info

    def cancel(self) -> None:
        """Gives up: removes what was written; the shard's next snapshot writes it instead."""
        if self._info is None and not self._over:
            self._over = True
            self._store.keeper = None
            self._store.dirty |= self._dirty
            self._todo.clear()
            for path in self._written:
                path.unlink(missing_ok=True)

    def _keep(self, segments: np.ndarray) -> None:
        """Called by the store before it changes ``segments``."""
        for index in segments.tolist():
            if index in self._todo and self._todo[index] is None:
                self._todo[index] = {name: column.copy() for name, column in self._store.segment(index).items()}
                self._copied.append(index)
        try:
            while len(self._copied) > HELD:
                self._advance()
        except OSError as error:
            self._failure = error

    def _advance(self) -> None:
        try:
            if self._todo:
                index = self._copied.pop(0) if self._copied else next(iter(self._todo))
                self._write_segment(index, self._todo.pop(index) or self._store.segment(index))
            else:
                self._write_manifest()
        except BaseException:
            self.cancel()
            raise

    def _write_segment(self, index: int, arrays: Arrays) -> None:
        path = self.directory / segment_name(index, self._number)
        self._written.append(path)
        self._entries[index] = entry = write_file(path, to_safetensors(arrays))
        self._bytes += entry["bytes"]

    def _write_manifest(self) -> None:
        path = manifest_path(self.directory, self._number)
        size = write_manifest(
            path, self._manifest | {"segments": [self._entries[i] for i in range(len(self._entries))]}
        )
        store, saved = self._store, self._store.saved
        before = saved.numbers if saved is not None and saved.directory == self.directory else ()
        numbers = (*before, self._number)[-store.config.snapshots_kept :]
        store.saved, store.keeper = Saved(self.directory, self._entries, numbers), None
        self._info = SnapshotInfo(
            number=self._number,
            path=path,
            inserted=int(self._manifest["state"]["table"]["inserted"]),
            segments=len(self._entries),
            segments_written=len(self._written),
            bytes_written=self._bytes + size,
            bytes=sum(int(entry["bytes"]) for entry in self._entries.values()),
            seconds=time.monotonic() - self._started,
        )
        _remove_others(self.directory, numbers)


def manifest_path(directory: Path, number: int) -> Path:
    return directory / f"manifest-{number:09d}.json"


def segment_name(index: int, number: int) -> str:
    return f"segment-{index:06d}-{number:09d}.safetensors"


def number_of(path: Path) -> int:
    """Number of the snapshot that wrote this file; 0 for a file of another kind."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else 0


def intact(directory: Path) -> Iterator[int]:
    """Numbers of the snapshots whose manifests can be read and whose files are there in full length, newest first."""
    for path in _manifests(directory):
        with contextlib.suppress(Damaged):
            if full_length(directory, read_manifest(path)["segments"]):
                yield number_of(path)


def _newest(shard: Shard, directory: Path) -> tuple[tuple[Path, dict[str, Any]] | None, list[str]]:
    """Manifest of the newest snapshot that is intact to the last bit, None if there is none at all; and what was skipped."""

    def read(path: Path) -> tuple[Path, dict[str, Any]]:
        manifest = read_manifest(path)
        _check(shard, path, manifest)
        for entry in manifest["segments"]:
            read_file(directory, entry)
        return path, manifest

    found, faults = newest_valid(_manifests(directory), read, lambda path: f"snapshot {number_of(path)}")
    if found is None and faults:
        raise SnapshotError(
            f"none of the {len(faults)} snapshots in {directory} can be loaded:\n  "
            + "\n  ".join(faults)
            + f"\nExpected at least one intact: starting without the {shard.store.items} would go unnoticed, so it is refused; restore the "
            "files, or remove the directory to start without them"
        )
    return found, [f"{fault}; skipped for an older one" for fault in faults]


def _check(shard: Shard, path: Path, manifest: dict[str, Any]) -> None:
    """SnapshotError unless the snapshot is one that this shard can read."""
    expected, formats = _identity(shard), shard.store.formats
    if manifest.get("format") not in formats:
        raise SnapshotError(
            f"{path} has format {manifest.get('format')!r}, this version reads {' and '.join(map(repr, formats))} here: its "
            f"{shard.store.items} would be misread, so nothing was loaded; resume with the version of Drawbridge and the algorithm that "
            "wrote it, or start with an empty directory"
        )
    wrong = [
        f"{key} is {manifest.get(key)}, expected {value}"
        for key, value in expected.items()
        if key != "format" and manifest.get(key) != value
    ]
    if wrong:
        raise SnapshotError(
            f"{path} is of another shard: {'; '.join(wrong)}. Its {shard.store.items} would be misread, so nothing was loaded; resume with "
            "the configuration it was written under, or start with an empty directory"
        )


def _identity(shard: Shard) -> dict[str, Any]:
    """What a snapshot and a shard must have in common."""
    parts = {"shard": shard.shard, "shards": shard.store.config.shards}
    return {"format": shard.store.formats[-1]} | shard.store.identity() | parts


def _reusable(store: Store, segments: dict[int, Arrays | None], directory: Path) -> dict[int, Entry]:
    """Files of the store's last snapshot in this directory that still say what it holds."""
    if store.saved is None or store.saved.directory != directory:
        return {}
    present = {path.name: path.stat().st_size for path in directory.iterdir()}
    return {
        index: entry
        for index, entry in store.saved.entries.items()
        if segments.get(index, {}) is None and not store.dirty[index] and present.get(entry["file"]) == entry["bytes"]
    }


def _remove_others(directory: Path, numbers: Iterable[int]) -> None:
    """Removes every snapshot file that the manifests ``numbers`` do not name, those manifests aside."""
    keep = {manifest_path(directory, number).name for number in numbers}
    for name in tuple(keep):
        with contextlib.suppress(Damaged):
            keep |= {entry["file"] for entry in read_manifest(directory / name)["segments"]}
    for path in directory.iterdir():
        if number_of(path) and path.name not in keep:
            path.unlink(missing_ok=True)


def _manifests(directory: Path) -> list[Path]:
    """Newest first; none of a directory that is not there."""
    return sorted(directory.glob("manifest-*.json"), key=number_of, reverse=True)
