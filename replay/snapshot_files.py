"""The files of a snapshot directory: names, digests, durable writes, checked reads, and which snapshot is the newest sound one."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from replay.manifest import Damaged, full_length, newest_valid, read_file, read_manifest

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
    seconds: float
    warnings: tuple[str, ...] = ()  # newer snapshots that could not be used, and why


class Found(NamedTuple):
    """A snapshot whose manifest and segments are what was written."""

    path: Path  # of the manifest
    manifest: dict[str, Any]
    warnings: tuple[str, ...]  # newer snapshots that could not be used, and why

    def loaded(self, inserted: int, started: float) -> SnapshotInfo:
        """What to say of it once a shard has taken it: ``inserted`` rows, by a load that began at ``started``."""
        return SnapshotInfo(
            number=self.manifest["number"],
            path=self.path,
            inserted=inserted,
            segments=len(self.manifest["segments"]),
            segments_written=0,
            bytes_written=0,
            seconds=time.monotonic() - started,
            warnings=self.warnings,
        )


def manifest_path(directory: Path, number: int) -> Path:
    return directory / f"manifest-{number:09d}.json"


def segment_name(index: int, number: int) -> str:
    return f"segment-{index:06d}-{number:09d}.safetensors"


def number_of(path: Path) -> int:
    """Number of the snapshot that wrote this file; 0 for a file of another kind."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else 0


def next_number(directory: Path) -> int:
    """One above every number in use, damaged and unfinished snapshots included: no file is written twice."""
    return 1 + max((number_of(path) for path in directory.iterdir()), default=0)


def newest_sound(directory: Path, identity: dict[str, Any], items: str) -> Found | None:
    """The newest snapshot that is intact to the last bit; None if the directory has none at all.

    Args:
        identity: what its manifest must have in common with the shard.
        items: what would be lost, in words.

    Raises:
        SnapshotError: every snapshot is damaged, or the newest readable one is of another shard.
    """

    def read(path: Path) -> Found:
        manifest = read_manifest(path)
        _check_identity(path, manifest, identity, items)
        for entry in manifest["segments"]:
            read_file(directory, entry)
        return Found(path, manifest, ())

    found, faults = newest_valid(_manifests(directory), read, lambda path: f"snapshot {number_of(path)}")
    if found is not None:
        return found._replace(warnings=tuple(f"{fault}; passed over for an older one" for fault in faults))
    if not faults:
        return None
    raise SnapshotError(
        f"none of the {len(faults)} snapshots in {directory} can be loaded:\n  "
        + "\n  ".join(faults)
        + f"\nExpected at least one intact: starting without the {items} would go unnoticed, so it is refused; restore the files, or "
        "remove the directory to start without them"
    )


def intact(directory: Path) -> Iterator[int]:
    """Numbers of the snapshots whose manifests can be read and whose files are there in full length, newest first."""
    for path in _manifests(directory):
        with contextlib.suppress(Damaged):
            if full_length(directory, read_manifest(path)["segments"]):
                yield number_of(path)


def remove_garbage(directory: Path, numbers: Iterable[int]) -> None:
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


def _check_identity(path: Path, manifest: dict[str, Any], identity: dict[str, Any], items: str) -> None:
    wrong = [
        f"{key} is {manifest.get(key)}, expected {value}"
        for key, value in identity.items()
        if manifest.get(key) != value
    ]
    if wrong:
        raise SnapshotError(
            f"{path} is of another shard: {'; '.join(wrong)}. Its {items} would be misread, so nothing was loaded; resume with the "
            "configuration it was written under, or start with an empty directory"
        )
