"""The files of a snapshot directory: names, digests, durable writes, checked reads, and which snapshot is the newest sound one."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import time
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from replay.durable import write_atomic

_READ_BYTES = 1 << 20
_NAME = re.compile(r"\.?(?:manifest|segment-\d+)-(\d+)\.(?:json|safetensors)(?:\.\d+\.tmp)?")


class Damaged(Exception):
    """A file that is not what was written."""


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


def digest(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()


def write_manifest(path: Path, manifest: dict[str, Any]) -> int:
    """Puts ``manifest`` in place in one step, or leaves nothing of it; returns its size in bytes."""
    data = json.dumps({"digest": digest(_canonical(manifest)), "manifest": manifest}).encode()
    try:
        write_atomic(path, data)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return len(data)


def read_manifest(path: Path) -> dict[str, Any]:
    """A manifest whose digest is right; Damaged otherwise."""
    try:
        content = json.loads(path.read_bytes())
        manifest, expected = content["manifest"], content["digest"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{path.name} cannot be read: {error!r}") from error
    seen = digest(_canonical(manifest))
    if seen != expected:
        raise Damaged(f"{path.name} has digest {seen}, expected {expected}")
    return manifest


def check_file(path: Path, entry: dict[str, Any]) -> None:
    """Damaged unless the file has the size and the digest that the manifest's ``entry`` says."""
    state, size = blake2b(digest_size=16), 0
    try:
        with open(path, "rb") as file:
            while data := file.read(_READ_BYTES):
                state.update(data)
                size += len(data)
    except OSError as error:
        raise Damaged(f"{path.name} cannot be read: {error!r}") from error
    if size != entry["bytes"]:
        raise Damaged(f"{path.name} has {size} bytes, expected {entry['bytes']}")
    if state.hexdigest() != entry["digest"]:
        raise Damaged(f"{path.name} has digest {state.hexdigest()}, expected {entry['digest']}")


def newest_sound(directory: Path, identity: dict[str, Any], items: str) -> Found | None:
    """The newest snapshot that is intact to the last bit; None if the directory has none at all.

    Args:
        identity: what its manifest must have in common with the shard.
        items: what would be lost, in words.

    Raises:
        SnapshotError: every snapshot is damaged, or the newest readable one is of another shard.
    """
    warnings: list[str] = []
    for path in _manifests(directory):
        try:
            manifest = read_manifest(path)
            _check_identity(path, manifest, identity, items)
            for entry in manifest["segments"]:
                check_file(directory / entry["file"], entry)
        except Damaged as damage:
            warnings.append(f"snapshot {number_of(path)}: {damage}; passed over for an older one")
            continue
        return Found(path, manifest, tuple(warnings))
    if not warnings:
        return None
    raise SnapshotError(
        f"none of the {len(warnings)} snapshots in {directory} can be loaded:\n  "
        + "\n  ".join(warnings)
        + f"\nExpected at least one intact: starting without the {items} would go unnoticed, so it is refused; restore the files, or "
        "remove the directory to start without them"
    )


def intact(directory: Path) -> Iterator[int]:
    """Numbers of the snapshots whose manifests can be read and whose files are there in full length, newest first."""
    for path in _manifests(directory):
        try:
            entries = read_manifest(path)["segments"]
            whole = all((directory / entry["file"]).stat().st_size == entry["bytes"] for entry in entries)
        except (Damaged, FileNotFoundError):
            continue
        if whole:
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


def _canonical(manifest: dict[str, Any]) -> bytes:
    return json.dumps(manifest, sort_keys=True).encode()
