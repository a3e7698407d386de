"""A real file system of a few megabytes, and files that fill it."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


class SmallDisk:
    """A tmpfs at ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def fill(self) -> None:
        """Takes what is free, to the last byte."""
        with open(self._ballast, "ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 12))

    def kept_full(self, condition: Callable[[], Any]) -> Callable[[], Any]:
        """``condition``, asked on a full disk: what the run itself frees is taken too."""

        def asked() -> Any:
            self.fill()
            return condition()

        return asked

    def read_only(self, value: bool) -> None:
        """What a kernel does after an I/O error, and what undoes it."""
        subprocess.run(["mount", "-o", f"remount,{'ro' if value else 'rw'}", str(self.path)], check=True)

    def free(self) -> None:
        self._ballast.unlink()


@contextlib.contextmanager
def small_disk(path: Path, size: str = "24m") -> Iterator[SmallDisk]:
    """Mounts a file system of ``size`` at ``path``; skips the test where that is not allowed."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True, timeout=30)
