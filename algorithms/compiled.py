"""Builds loops.c with the machine's C compiler, once, and loads it; without one, algorithms/loops.py computes with torch.

The library is kept in ``$XDG_CACHE_HOME/drawbridge`` (~/.cache/drawbridge), a folder that only its user can write. Its name is
the digest of all that it follows from: the source, the compiler's flags and the processor's.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

SOURCE = Path(__file__).with_name("loops.c")
# No flag lets the compiler change the order of a sum or forget about NaN: the same bits in every run. Sums of products are fused
# wherever the processor can: gcc leaves it at some vectors of some processors, and a row alone would differ from the same in a batch.
FUSED = "--param=avoid-fma-max-bits=0"
FLAGS = ("-std=gnu11", "-O3", "-march=native", FUSED, "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
LIMIT_S = 120.0  # of a build, which takes one or two


class Compiled(NamedTuple):
    """The library, or why there is none."""

    library: ctypes.CDLL | None
    words: str


_off = 0  # blocks of ``without`` that are open


@contextlib.contextmanager
def without() -> Iterator[None]:
    """What is made inside the block computes with torch, as where there is no C compiler: for tests and measurements."""
    global _off
    _off += 1
    try:
        yield
    finally:
        _off -= 1


def library() -> ctypes.CDLL | None:
    """The library, or None where torch computes."""
    return None if _off else load().library


def function(found: Any, *arguments: Any) -> Any:
    """A function of the library that takes these and returns nothing."""
    found.argtypes, found.restype = arguments, None
    return found


@functools.cache
def load() -> Compiled:
    """The library of this machine, built if it is not there yet. Never raises: without it everything works, slower."""
    path = _path()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _require_private(path.parent)
        for attempt in range(2):
            with open(path.parent / "lock", "w") as lock:  # one process builds, the others wait for it
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not path.exists():
                    _build(path)
            _require_private(path)
            try:
                return Compiled(ctypes.CDLL(str(path)), str(path))
            except OSError:  # damaged: built again, once
                if attempt:
                    raise
                path.unlink()
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        return Compiled(None, str(error))
    raise AssertionError("unreachable")


def problem() -> str:
    """Why the passes will run in torch on this machine, as far as can be said without building anything; "" if they will not."""
    return "" if _path().exists() or _compiler() else NO_COMPILER


NO_COMPILER = "no C compiler (cc, gcc or clang)"


def _compiler() -> str | None:
    return next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)


def _path() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    digest = hashlib.blake2b(SOURCE.read_bytes(), digest_size=16)
    for part in (*FLAGS, platform.machine(), _processor()):
        digest.update(part.encode() + b"\0")
    return Path(home) / "drawbridge" / f"loops-{digest.hexdigest()}.so"


def _processor() -> str:
    """What -march=native looks at."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return platform.processor()


def _require_private(path: Path) -> None:
    """Code is loaded only from where nobody else can put it."""
    found = path.stat()
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise RuntimeError(f"{path} belongs to, or can be written by, another user")


def _build(path: Path) -> None:
    compiler = _compiler()
    if compiler is None:
        raise RuntimeError(NO_COMPILER)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        made = Path(scratch) / path.name
        done = subprocess.run(
            [compiler, *FLAGS, str(SOURCE), "-o", str(made), "-lm"], capture_output=True, text=True, timeout=LIMIT_S
        )
        if done.returncode:
            raise RuntimeError(f"{compiler} failed: {(done.stderr.strip().splitlines() or ['no words'])[0]}")
        made.chmod(0o700)
        os.replace(made, path)  # whole or not at all
