"""What SIGTERM and Ctrl-C do: they end a command at once, also the start of a run; one under way takes note and ends in order.
`drawbridge stop` does what SIGTERM does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from cluster.errors import Interrupted

STOP = "`drawbridge stop`"
TWICE = "interrupted twice, so the command was cut short; give it again"


class Signals:
    """Takes this process's SIGTERM and SIGINT while it is entered; entered outside the main thread it takes none.

    The first one is noted in ``caught``. A second SIGINT raises KeyboardInterrupt, which says ``twice``.
    """

    def __init__(self, twice: str = TWICE) -> None:
        self._twice = twice
        self._sender = ""  # whoever sent SIGTERM, where that is known
        self.caught: list[int] = []
        self._consequence = ""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._take) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def at_once(self, consequence: str) -> Iterator[None]:
        """Raises Interrupted in this block, in the main thread; ``consequence`` is what it says after the signal's name."""
        self._consequence = consequence
        try:
            if self.caught:
                raise self.interrupted(consequence)
            yield
        except KeyboardInterrupt as error:
            if self.caught and not isinstance(error, Interrupted):  # Ray's waits raise one of their own instead
                raise self.interrupted(consequence) from error
            raise
        finally:
            self._consequence = ""

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Within ``at_once``: a block that is not torn. What would be raised in it is raised after it."""
        consequence, self._consequence = self._consequence, ""
        try:
            yield
        finally:
            self._consequence = consequence
        if self.caught and consequence:
            raise self.interrupted(consequence)

    def send(self, sender: str) -> None:
        """SIGTERM to this process, in the name of ``sender``; for any thread."""
        self._sender = sender
        os.kill(os.getpid(), signal.SIGTERM)

    def interrupted(self, consequence: str) -> Interrupted:
        """The error to end with after a signal was caught."""
        sender = self._sender or signal.Signals(self.caught[0]).name
        return Interrupted(self.caught[0], f"ended by {sender} {consequence}")

    def _take(self, signum: int, frame: FrameType | None) -> None:
        if self.caught:
            if signum == signal.SIGINT:
                raise KeyboardInterrupt(self._twice)
            return
        self.caught.append(signum)
        if self._consequence:
            raise self.interrupted(self._consequence)
