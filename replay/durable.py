"""Bytes that are on the disk when a call returns, or not there at all."""

from __future__ import annotations

import os
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


def fsync_directory(path: Path) -> None:
    """Waits until the disk has the names in directory ``path``: a rename is durable only then."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
