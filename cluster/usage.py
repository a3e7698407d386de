"""Memory and CPU time of a part of a run, reported by the part itself: the driver sees only processes of its own machine."""

from __future__ import annotations

import sys
import time
from typing import NamedTuple

import psutil

EVERY_S = 1.0  # between two looks of a part that is asked more often


class Usage(NamedTuple):
    """Of one process."""

    rss_bytes: float
    cpu_s: float  # since it began
    shm_bytes: float | None = None  # of them pages of Ray's object store, counted by all who map them; None: not known
    gpu_bytes: float | None = None  # that torch holds of its device; None without one

    def stats(self) -> dict[str, float]:
        """What is known, as a chunk's stats carry it."""
        return {name: value for name, value in self._asdict().items() if value is not None}


def usage() -> Usage:
    """Of this process, now."""
    process = psutil.Process()
    times = process.cpu_times()
    return Usage(float(process.memory_info().rss), times.user + times.system, _shm_bytes(), _gpu_bytes())


def memory_bytes() -> int:
    """Resident bytes of this process and those it started on this machine."""
    total = 0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            total += process.memory_info().rss
        except psutil.Error:
            continue
    return total


def _shm_bytes() -> float | None:
    """Linux alone says it."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            return next((1024.0 * int(line.split()[1]) for line in status if line.startswith("RssShmem:")), None)
    except OSError:
        return None


def _gpu_bytes() -> float | None:
    """Never the first to import torch or to start CUDA: a worker without a device does neither."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    return float(cuda.memory_reserved()) if cuda is not None and cuda.is_initialized() else None


class Meter:
    """Looks at this process at most every EVERY_S."""

    def __init__(self) -> None:
        self._due = 0.0

    def read(self) -> Usage | None:
        """None while the last look is young."""
        if time.monotonic() < self._due:
            return None
        self._due = time.monotonic() + EVERY_S
        return usage()
