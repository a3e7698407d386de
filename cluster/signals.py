"""What SIGTERM and Ctrl-C do: they end a command at once, also the start of a run; one under way takes note and ends in order.
`drawbridge stop` does what SIGTERM does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from cluster.errors import Interrupted

STOP = "`drawbridge stop`"
CALL = signal.SIGURG  # ignored by default, and of use to nobody else here
NOT_SAVED = "so nothing was saved now"  # of a run that could not end in order
TWICE = "interrupted twice, so the command was cut short; give it again"


class Signals:
    """Takes this process's SIGTERM and SIGINT while it is entered; entered outside the main thread it takes none.

    The first one is noted in ``caught``. A second SIGINT raises KeyboardInterrupt, which says ``twice``.
    """

    def __init__(self, twice: str = TWICE) -> None:
        self._twice = twice
        self._sender = ""  # whoever sent SIGTERM, where that is known
        self.caught: list[int] = []
        self._cut = False  # whether a second SIGINT came
        self._consequence = ""
        self._before: dict[int, Any] = {}
        self._pipe: tuple[int, int] | None = None  # Python writes the number of each signal there as it comes
        self._first: int | None = None  # that was read from it
        self._call: Callable[[], None] | None = None  # for the main thread to make

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._take) for number in (signal.SIGTERM, signal.SIGINT)}
            self._before[CALL] = signal.signal(CALL, self._make_call)
            self._pipe = os.pipe()
            for end in self._pipe:
                os.set_blocking(end, False)
            self._wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        if self._pipe is not None:
            signal.set_wakeup_fd(self._wakeup)
            ends, self._pipe = self._pipe, None
            for end in ends:
                os.close(end)

    @contextlib.contextmanager
    def at_once(self, consequence: str) -> Iterator[None]:
        """Raises Interrupted in this block, in the main thread; ``consequence`` is what it says after the signal's name."""
        self._consequence = consequence
        try:
            if self.caught:
                raise self.interrupted(consequence)
            yield
        except BaseException as error:
            if self.caught and not isinstance(error, Interrupted) and _of_a_signal(error):
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

    @contextlib.contextmanager
    def worded(self) -> Iterator[None]:
        """Gives the KeyboardInterrupt of a second SIGINT in this block its words, also where Ray's waits raise one of their own instead."""
        try:
            yield
        except KeyboardInterrupt as error:
            if self._cut and not isinstance(error, Interrupted):
                raise KeyboardInterrupt(self._twice) from None
            raise

    def send(self, sender: str) -> None:
        """SIGTERM to this process, in the name of ``sender``; for any thread."""
        self._sender = sender
        os.kill(os.getpid(), signal.SIGTERM)

    def noticed(self) -> int | None:
        """The first signal that came, also while native code keeps the main thread from noting it in ``caught``; for one other thread."""
        if not self.caught and self._first is None and self._pipe is not None:
            with contextlib.suppress(OSError):  # there is none
                numbers = os.read(self._pipe[0], 4096)
                self._first = next((n for n in numbers if n in (signal.SIGTERM, signal.SIGINT)), None)
        return self.caught[0] if self.caught else self._first

    def interrupt(self, call: Callable[[], None]) -> bool:
        """Makes ``call`` in the main thread in the middle of what it does, where it may raise; for any other thread.

        Returns:
            False if this takes no signals. Whether and when native code lets the call be made is not known.
        """
        if CALL not in self._before:
            return False
        self._call = call
        signal.pthread_kill(threading.main_thread().ident or 0, CALL)
        return True

    def interrupted(self, consequence: str) -> Interrupted:
        """The error to end with after a signal came."""
        number = self.noticed() or signal.SIGTERM
        return Interrupted(number, f"ended by {self._sender or signal.Signals(number).name} {consequence}")

    def _make_call(self, signum: int, frame: FrameType | None) -> None:
        call, self._call = self._call, None
        if call is not None:
            call()

    def _take(self, signum: int, frame: FrameType | None) -> None:
        if self.caught:
            if signum == signal.SIGINT:
                self._cut = True
                raise KeyboardInterrupt(self._twice)
            return
        self.caught.append(signum)
        if self._consequence:
            raise self.interrupted(self._consequence)


def _of_a_signal(error: BaseException | None) -> bool:
    """Whether it is what others make of an Interrupted: Ray's waits raise a KeyboardInterrupt of their own, and a native module that is
    being imported an ImportError because of it."""
    return error is not None and (
        isinstance(error, KeyboardInterrupt) or _of_a_signal(error.__cause__ or error.__context__)
    )
