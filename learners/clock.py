"""Where a process's wall time goes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Clock:
    """Adds up named kinds of work; what is left of the wall time is ``other``."""

    def __init__(self, kinds: tuple[str, ...]) -> None:
        self._spent_s = dict.fromkeys(kinds, 0.0)
        self._since = time.perf_counter()

    def add(self, kind: str, seconds: float) -> None:
        """Counts ``seconds`` that were measured elsewhere."""
        self._spent_s[kind] += seconds

    @contextlib.contextmanager
    def measure(self, kind: str) -> Iterator[None]:
        """Counts the wall time of the block under ``with``; blocks do not nest."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(kind, time.perf_counter() - began)

    def lap(self) -> tuple[dict[str, float], float]:
        """(each kind's and ``other``'s share of the wall time since the last lap, that time in s); begins a new lap."""
        now = time.perf_counter()
        wall_s = max(now - self._since, 1e-9)
        shares = {kind: min(spent / wall_s, 1.0) for kind, spent in self._spent_s.items()}
        shares["other"] = max(0.0, 1.0 - sum(shares.values()))
        self._since, self._spent_s = now, dict.fromkeys(self._spent_s, 0.0)
        return shares, wall_s
