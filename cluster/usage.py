"""Memory, CPU time and GPU of a part of a run, reported by the part itself: the driver sees only processes of its own machine."""

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
    gpu_busy: float | None = None  # share of time in which that device computes, for whomever; None: not known

    def stats(self) -> dict[str, float]:
        """What is known, as a chunk's stats carry it."""
        return {name: value for name, value in self._asdict().items() if value is not None}


def usage() -> Usage:
    """Of this process, now."""
    process = psutil.Process()
    times = process.cpu_times()
    return Usage(float(process.memory_info().rss), times.user + times.system, _shm_bytes(), *_gpu())


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


def _gpu() -> tuple[float | None, float | None]:
    """Never the first to import torch or to start CUDA: a worker without a device does neither."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is None or not cuda.is_initialized():
        return None, None
    held = float(cuda.memory_reserved())
    try:
        return held, cuda.utilization(cuda.current_device()) / 100
    except Exception:  # the driver's library is missing, or does not know: of a part of a device (MIG), for one
        return held, None


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
