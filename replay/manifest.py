"""Files that are on disk when a call returns, or not there at all; and manifests, which make a snapshot or a checkpoint of them.

    {"digest": BLAKE2b-256 of the manifest, "manifest": {"segments": [{"file", "bytes", "digest"}, ...], ...}}

The named files are synced before their manifest is, so what a valid manifest names is on the disk. Whatever is not as it was
written is ``Damaged``, to the last bit. Nothing here is a pickle: reading runs no code.

Files of earlier versions are read too: digests of 128 bits, and checkpoints of format 1, which keep the digest among their fields.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import sys
from collections.abc import Callable, Iterable
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any, TypedDict, TypeVar

DIGEST_BYTES = 32
LARGEST_TEXT = 256 << 20  # bytes of a JSON file that are read; a run's largest has a quarter of them
T = TypeVar("T")


class Entry(TypedDict):
    """A file that a manifest names."""

    file: str
    bytes: int
    digest: str


class Damaged(Exception):
    """A file that is not what was written; the message names the file and its fault."""


def write_file(path: Path, data: bytes) -> Entry:
    """Writes ``data`` durably; the entry that a manifest names it by."""
    write_synced(path, data)
    return {"file": path.name, "bytes": len(data), "digest": _digest(data)}


def read_file(directory: Path, entry: Entry) -> bytes:
    """The bytes of the file that ``entry`` names; Damaged unless they are those that were written."""
    name, data = entry["file"], _bytes(directory / entry["file"], entry["bytes"])
    if len(data) != entry["bytes"]:
        raise Damaged(f"{name} is truncated: {len(data)} bytes, expected {entry['bytes']}")
    if _digest(data, entry["digest"]) != entry["digest"]:
        raise Damaged(f"{name} is damaged: its digest differs from the one written with it")
    return data


def full_length(directory: Path, entries: Iterable[Entry]) -> bool:
    """Whether each of the files is there with as many bytes as were written. Reads none."""
    try:
        return all((directory / entry["file"]).stat().st_size == entry["bytes"] for entry in entries)
    except FileNotFoundError:
        return False


def seal(manifest: dict[str, Any]) -> bytes:
    """The content of a manifest's file. TypeError or ValueError unless it is JSON."""
    return json.dumps({"digest": _digest(_canonical(manifest)), "manifest": manifest}).encode()


def write_manifest(path: Path, manifest: dict[str, Any]) -> int:
    """Puts ``manifest`` in place in one step, or leaves nothing of it; its size in bytes."""
    data = seal(manifest)
    try:
        write_atomic(path, data)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return len(data)


def read_manifest(path: Path) -> dict[str, Any]:
    """A manifest as it was written; Damaged otherwise."""
    data = _bytes(path)
    try:
        content = json.loads(data)
        digest = content["digest"]
        if "manifest" in content:
            manifest, intact = content["manifest"], data == json.dumps(content).encode()
            sealed = _canonical(manifest)
        else:  # a checkpoint of format 1
            intact = data == json.dumps(content, sort_keys=True, indent=1).encode()
            manifest = {key: value for key, value in content.items() if key != "digest"}
            sealed = json.dumps(manifest, sort_keys=True, indent=1).encode()
        intact = intact and digest == _digest(sealed, digest)
        manifest = dict(manifest)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise Damaged(f"{path.name} is damaged or truncated: {type(error).__name__}") from error
    if not intact:
        raise Damaged(f"{path.name} is damaged: its digest differs from the one written with it")
    if not all(map(_is_entry, manifest.get("segments", ()))):  # the digest is no secret: anybody can write one
        raise Damaged(f"{path.name} names files that are not beside it, or not as they are named here")
    return manifest


def newest_valid(
    paths: Iterable[Path], read: Callable[[Path], T], name: Callable[[Path], str] = str
) -> tuple[T | None, list[str]]:
    """What ``read`` gives of the first of ``paths`` (newest first) that is not Damaged, and the fault of each path before it."""
    faults: list[str] = []
    for path in paths:
        try:
            return read(path), faults
        except Damaged as fault:
            faults.append(f"{name(path)}: {fault}")
    return None, faults


def read_whole(path: Path, most: int = LARGEST_TEXT) -> bytes:
    """The bytes of a regular file; of a pipe or a device there may be no end.

    Raises:
        OSError: it cannot be read, is no regular file, or has more than ``most`` bytes.
    """
    with open(path, "rb", opener=_regular(0)) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"it has {size:,} bytes, expected at most {most:,}", str(path))
        return file.read()


def open_own(path: Path, mode: str, buffering: int = -1) -> IO[bytes]:
    """Opens a file that is to be changed, as ``open`` does in a binary ``mode``, if it is no link, soft or hard: whoever has put a link
    there would have another file changed.

    Raises:
        OSError: it cannot be opened, is a link, has another name, or is no regular file.
    """
    try:
        return open(path, mode, buffering, opener=_regular(os.O_NOFOLLOW, most_names=1))
    except OSError as error:
        if odd := {errno.ELOOP: "link", errno.ENXIO: "pipe"}.get(error.errno or 0):
            raise OSError(error.errno, f"it is a {odd}, expected a file", str(path)) from error
        raise


def _regular(flags: int, most_names: int = sys.maxsize) -> Callable[[str, int], int]:
    """What opens a regular file for ``open``, and refuses all else, before it changes anything. Nobody is waited for at the other end of
    a pipe."""

    def opener(path: str, asked: int) -> int:
        descriptor = os.open(path, asked & ~os.O_TRUNC | flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        found = os.fstat(descriptor)
        try:
            if stat.S_IFMT(found.st_mode) not in (stat.S_IFREG, stat.S_IFDIR):  # a folder is refused by ``open``
                raise OSError(errno.EINVAL, "it is no regular file", os.fspath(path))
            if found.st_nlink > most_names and stat.S_ISREG(found.st_mode):
                raise OSError(
                    errno.EMLINK,
                    "it has another name (a hard link), expected a file of its own; copy it",
                    os.fspath(path),
                )
            if asked & os.O_TRUNC:
                os.ftruncate(descriptor, 0)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    return opener


def _is_entry(entry: Any) -> bool:
    """Whether ``entry`` is one that ``write_file`` makes: of a file in the manifest's own folder."""
    if not isinstance(entry, dict):
        return False
    name, size, digest = (entry.get(key) for key in ("file", "bytes", "digest"))
    named = isinstance(name, str) and name not in ("", ".", "..") and "/" not in name and "\0" not in name
    return (
        named and type(size) is int and size >= 0 and isinstance(digest, str) and len(digest) in (32, 2 * DIGEST_BYTES)
    )


def _bytes(path: Path, most: int = LARGEST_TEXT) -> bytes:
    try:
        return read_whole(path, most)
    except FileNotFoundError:
        raise Damaged(f"{path.name} is missing") from None
    except OSError as error:
        raise Damaged(f"{path.name} cannot be read: {error.strerror}") from error


def _digest(data: bytes, like: str = "0" * 2 * DIGEST_BYTES) -> str:
    """In hexadecimal, of the length of ``like``."""
    return blake2b(data, digest_size=len(like) // 2).hexdigest()


def _canonical(manifest: dict[str, Any]) -> bytes:
    return json.dumps(manifest, sort_keys=True).encode()


def write_synced(path: Path, data: bytes | memoryview) -> None:
    """Writes ``data`` to ``path`` and waits until the disk has it. The name may be seen before all bytes are there."""
    with open_own(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_atomic(path: Path, data: bytes | memoryview) -> None:
    """Replaces ``path`` by ``data`` in one step: a reader, or a crash, sees the old file or the whole new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_synced(temporary, data)
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise
    fsync_directory(path.parent)


def append_whole(path: Path, make: Callable[[bytes], bytes]) -> None:
    """Adds what ``make`` gives for the file's last byte (b"" of a new or empty one) to ``path``, all of it or nothing.

    Raises:
        OSError: it could not be written; what of it reached the file was taken back, if that is possible.
    """
    with open_own(path, "ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(-1, os.SEEK_END)
        data = memoryview(make(file.read(1) if size else b""))
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(size)
            raise


def fsync_directory(path: Path) -> None:
    """Waits until the disk has the names in directory ``path``: a rename is durable only then."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
