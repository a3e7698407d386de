"""When this process last got on with its work: whatever takes long marks it, so that a slow worker does not pass for one that hangs."""

from __future__ import annotations

import time


class _Progress:
    at = time.monotonic()


def mark() -> None:
    """A piece of work is done: an environment's step, a step of the search for a plan."""
    _Progress.at = time.monotonic()


def idle_s() -> float:
    """Seconds since the last mark. Any thread may ask."""
    return time.monotonic() - _Progress.at
