"""Bytes that are on the disk when a call returns, or not there at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path


def write_synced(path: Path, data: bytes | memoryview) -> None:
    """Writes ``data`` to ``path`` and waits until the disk has it. The name may be seen before all bytes are there."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_atomic(path: Path, data: bytes | memoryview) -> None:
    """Replaces ``path`` by ``data`` in one step: a reader, or a crash, sees the old file or the whole new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_synced(temporary, data)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def append_whole(path: Path, make: Callable[[bytes], bytes]) -> None:
    """Adds what ``make`` gives for the file's last byte (b"" of a new or empty one) to ``path``, all of it or nothing.

    Raises:
        OSError: it could not be written; what of it reached the file was taken back, if that is possible.
    """
    with open(path, "ab+", buffering=0) as file:
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
