"""Snapshots of a shard: segments of its store's arrays and a manifest, written so that the newest valid one can always be found.

A directory belongs to one shard and holds

    segment-<index>-<snapshot>.safetensors     arrays of the store, about 4 MiB, never rewritten
    manifest-<snapshot>.json                   which file is which segment, and everything that is no array (``replay.manifest``)

The manifest is renamed into place last: a snapshot exists when its manifest does. What no kept manifest names is removed after that.
Segments are safetensors because one file then holds many arrays with names, types and shapes, without pickle. A segment that has not
changed since the store's last snapshot is not written again: the manifest names the older file. Not promised: a segment file shared by
all kept snapshots that rots on the disk takes them all with it, and ``load`` says so.

A disk may take its time: ``save_beside`` touches files in threads alone, and the shard goes on meanwhile. A segment about to change
is copied first, so the snapshot is the shard as it was when the saving began. Segments are written in the order in which the shard
overwrites its rows, so copies are few unless the disk is slower than the rows come. At HELD of them the snapshot is given up.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
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

HELD = 8  # segments copied because they changed before they were written; one more, and the snapshot is given up
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


async def save_beside(shard: Shard, directory: str | Path) -> SnapshotInfo:
    """Like ``save``, for a shard that is used meanwhile in the loop that this runs in: files are touched in threads alone.

    One call at a time for each shard.

    Raises:
        OSError: as ``save``; TimeoutError, one of these, if rows came so much faster than the disk took them that HELD copies were held.
    """
    files = await asyncio.to_thread(_files, Path(directory))
    saving = Saving(shard, directory, files)
    try:
        while (info := saving.info) is None:
            await asyncio.to_thread(saving.work())
    except BaseException:
        saving.give_up()
        await asyncio.to_thread(saving.clear)
        raise
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
    store.saved = Saved(directory.absolute(), dict(enumerate(entries)), tuple(numbers))
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
    never waits for a snapshot nor fails because of one.

    Args:
        files: what is in the directory, which exists: sizes by name; None: it is made, and looked at.

    Raises:
        RuntimeError: another saving of this shard is not over.
        OSError: the directory cannot be made or read.
    """

    def __init__(self, shard: Shard, directory: str | Path, files: Mapping[str, int] | None = None) -> None:
        self._store = store = shard.store
        if store.keeper is not None:
            raise RuntimeError(
                f"shard {shard.shard} is being saved already; expected one snapshot at a time: this one was not begun; "
                "finish or cancel the other"
            )
        self.directory = Path(directory).absolute()
        files = _files(self.directory) if files is None else files
        self._started = time.monotonic()
        self._before = (
            store.saved.numbers if store.saved is not None and store.saved.directory == self.directory else ()
        )
        self._number = 1 + max((0, *self._before, *map(number_of, map(Path, files))))  # never a name twice
        self._manifest = _identity(shard) | {"number": self._number, "state": shard.state()}
        segments = store.segments()
        self._entries = _reusable(store, segments, self.directory, files)
        self._segments = len(segments)
        self._todo = {i: segments[i] for i in store.next_changed(self._segments) if i not in self._entries}
        self._copied: list[int] = []  # of the segments to do, because they changed
        self._written: list[Path] = []
        self._bytes = self._size = 0  # of the segments written; of the manifest
        self.info: SnapshotInfo | None = None  # once it is complete
        self._over = False
        self._failure = ""  # why it was given up while the shard went on
        self._dirty = store.dirty.copy()
        store.dirty[:] = False
        store.keeper = self._keep

    def step(self) -> SnapshotInfo | None:
        """Writes one segment, or at the end the manifest; what was written once the snapshot is complete.

        Raises:
            OSError: the disk is full, or the directory cannot be written.
        """
        if self.info is None:
            try:
                self.work()()
                if self._size:
                    self.work()()
            except BaseException:
                self.cancel()
                raise
        return self.info

    def work(self) -> Callable[[], None]:
        """What is to be done next until there is ``info``: a call that touches files alone, so a thread may make it while the shard
        goes on. It must be over before this is called again.

        Raises:
            TimeoutError: too many segments changed before they were written.
            RuntimeError: it was given up before.
        """
        if self._failure:
            raise TimeoutError(self._failure)
        if self._over:
            raise RuntimeError(
                "this snapshot failed or was cancelled before it was complete: nothing of it is kept; begin anew"
            )
        if self._todo:
            index = self._copied.pop(0) if self._copied else next(iter(self._todo))
            return functools.partial(self._write_segment, index, self._todo.pop(index) or self._copy(index))
        if not self._size:
            return self._write_manifest
        self._complete()
        return functools.partial(_remove_others, self.directory, self._numbers())

    def cancel(self) -> None:
        """Gives up: removes what was written; the shard's next snapshot writes it instead."""
        self.give_up()
        self.clear()

    def give_up(self) -> None:
        """Lets the shard's next snapshot write what this one should have, unless it is complete. Touches no file."""
        if not self._over:
            self._over = True
            self._store.keeper = None
            self._store.dirty |= self._dirty
            self._todo.clear()
            self._copied.clear()

    def clear(self) -> None:
        """Removes the files of a snapshot that was given up. Touches nothing else."""
        if self.info is None:
            for path in self._written:
                path.unlink(missing_ok=True)

    def _keep(self, segments: np.ndarray) -> None:
        """Called by the store before it changes ``segments``: nothing here may take time."""
        for index in segments.tolist():
            if index in self._todo and self._todo[index] is None:
                if len(self._copied) == HELD:
                    self.give_up()
                    self._failure = (
                        f"rows came faster than the disk took them: more than {HELD} segments changed within "
                        f"{time.monotonic() - self._started:.0f} s before they were written, expected fewer: the snapshot was given up"
                    )
                    return
                self._todo[index] = self._copy(index)
                self._copied.append(index)

    def _copy(self, index: int) -> Arrays:
        return {name: column.copy() for name, column in self._store.segment(index).items()}

    def _write_segment(self, index: int, arrays: Arrays) -> None:
        path = self.directory / segment_name(index, self._number)
        self._written.append(path)
        self._entries[index] = entry = write_file(path, to_safetensors(arrays))
        self._bytes += entry["bytes"]

    def _write_manifest(self) -> None:
        path = manifest_path(self.directory, self._number)
        entries = [self._entries[i] for i in range(self._segments)]
        self._size = write_manifest(path, self._manifest | {"segments": entries})

    def _numbers(self) -> tuple[int, ...]:
        """Of the snapshots that are kept, this one last."""
        return (*self._before, self._number)[-self._store.config.snapshots_kept :]

    def _complete(self) -> None:
        self._over = True
        self._store.saved, self._store.keeper = Saved(self.directory, self._entries, self._numbers()), None
        self.info = SnapshotInfo(
            number=self._number,
            path=manifest_path(self.directory, self._number),
            inserted=int(self._manifest["state"]["table"]["inserted"]),
            segments=self._segments,
            segments_written=len(self._written),
            bytes_written=self._bytes + self._size,
            bytes=sum(int(entry["bytes"]) for entry in self._entries.values()),
            seconds=time.monotonic() - self._started,
        )


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


def _files(directory: Path) -> dict[str, int]:
    """Sizes of a directory's files, by name; it is made where there is none."""
    directory.mkdir(parents=True, exist_ok=True)
    return {path.name: path.stat().st_size for path in directory.iterdir()}


def _reusable(
    store: Store, segments: dict[int, Arrays | None], directory: Path, files: Mapping[str, int]
) -> dict[int, Entry]:
    """Files of the store's last snapshot in this directory that still say what it holds."""
    if store.saved is None or store.saved.directory != directory:
        return {}
    return {
        index: entry
        for index, entry in store.saved.entries.items()
        if segments.get(index, {}) is None and not store.dirty[index] and files.get(entry["file"]) == entry["bytes"]
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
