"""The files of a snapshot directory: names, digests, durable writes, checked reads."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any

from replay.durable import write_atomic

_READ_BYTES = 1 << 20
_NAME = re.compile(r"\.?(?:manifest|segment-\d+)-(\d+)\.(?:json|safetensors)(?:\.\d+\.tmp)?")


class Damaged(Exception):
    """A file that is not what was written."""


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


def remove_garbage(directory: Path, numbers: Iterable[int]) -> None:
    """Removes every snapshot file that the manifests ``numbers`` do not name, those manifests aside."""
    keep = {manifest_path(directory, number).name for number in numbers}
    for name in tuple(keep):
        with contextlib.suppress(Damaged):
            keep |= {entry["file"] for entry in read_manifest(directory / name)["segments"]}
    for path in directory.iterdir():
        if number_of(path) and path.name not in keep:
            path.unlink(missing_ok=True)


def _canonical(manifest: dict[str, Any]) -> bytes:
    return json.dumps(manifest, sort_keys=True).encode()
