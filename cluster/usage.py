"""Memory and CPU time of a part of a run, reported by the part itself: the driver sees only processes of its own machine."""

from __future__ import annotations

import time
from typing import NamedTuple

import psutil

EVERY_S = 1.0  # between two looks of a part that is asked more often


class Usage(NamedTuple):
    """Of one process."""

    rss_bytes: float
    cpu_s: float  # since it began


def usage() -> Usage:
    """Of this process, now."""
    process = psutil.Process()
    times = process.cpu_times()
    return Usage(float(process.memory_info().rss), times.user + times.system)


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
