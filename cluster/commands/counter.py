"""How far a command is that runs episodes: a line on standard error, redrawn on a terminal and now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

from cluster.metrics.wording import count

if TYPE_CHECKING:
    from rollout_workers.episodes import EpisodeGroup

REFRESH_S = 0.5  # of the line on a terminal
PLAIN_S = 10.0  # between two lines elsewhere


class Counter:
    """The line; ``stream``: where it goes (default: standard error)."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._shown_at, self._open = time.monotonic(), False

    @property
    def due(self) -> bool:
        """Whether the last line is old enough for another one."""
        return time.monotonic() - self._shown_at >= (REFRESH_S if self._terminal else PLAIN_S)

    def show(self, text: str, last: bool = False) -> None:
        """Prints ``text``, over the line before it on a terminal; ``last``: and begins a new line."""
        self._shown_at, self._open = time.monotonic(), self._terminal and not last
        start, end = ("\r\x1b[K", "\n" if last else "") if self._terminal else ("", "\n")
        print(f"{start}{text}", end=end, file=self._stream, flush=True)

    def close(self) -> None:
        """Leaves the line that was begun, if any."""
        if self._open:
            self._open = False
            print(file=self._stream, flush=True)


@contextlib.contextmanager
def counted(what: str, episodes: int, stream: TextIO | None = None, *, part: bool = False) -> Iterator[None]:
    """Counts the whole episodes, ``episodes`` in all, that end in this block; of a single one its steps.

    Args:
        part: of a command with several blocks, each of which may be too short for a line now and then: says so when it begins.
    """
    from rollout_workers.episodes import watched

    counter, ended = Counter(stream), 0
    group: EpisodeGroup | None = None
    if part:
        counter.show(f"{what}: {count(episodes, 'episode')}")

    def show(now: EpisodeGroup) -> None:
        nonlocal group, ended
        if group is not None and now is not group:
            ended += len(group.running_E)
        group = now
        if counter.due:
            done = ended + int((~now.running_E).sum())
            of = f"{done:,} of {episodes:,} episodes, " if episodes > 1 else ""
            counter.show(f"{what}: {of}step {int(now.length_E.max()):,}")

    try:
        with watched(show):
            yield
    finally:
        counter.close()
