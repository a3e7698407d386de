"""Threads of which exactly one runs at a time, each until it waits: code that blocks, in an order that a test chooses."""

from __future__ import annotations

import threading
from collections.abc import Callable

DEADLINE_S = 60.0  # of real time, for one turn of one thread


class Killed(BaseException):
    """Ends a thread where it waits, as SIGKILL ends a process."""


class Turn:
    """One thread. ``resume`` lets it run until it calls ``wait`` or ends; only one of the two sides ever runs."""

    def __init__(self, body: Callable[[], object]) -> None:
        self.ended = False
        self.error: BaseException | None = None
        self._killed = False
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._ready: Callable[[], bool] = lambda: True
        self._thread = threading.Thread(target=self._run, args=(body,), daemon=True)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether what it waits for is there."""
        return not self.ended and self._ready()

    def resume(self) -> None:
        """Gives the turn to the thread and takes it back when it waits or ends."""
        self._go.release()
        if not self._back.acquire(timeout=DEADLINE_S):
            raise TimeoutError(f"a thread kept its turn for {DEADLINE_S:.0f} s")

    def wait(self, ready: Callable[[], bool]) -> None:
        """Called by the thread itself: gives the turn back until it is resumed, which is to be when ``ready()``."""
        self._ready = ready
        self._back.release()
        self._go.acquire()
        if self._killed:
            raise Killed

    def kill(self) -> None:
        """Ends the thread where it waits."""
        if not self.ended:
            self._killed = True
            self.resume()
        self._thread.join(DEADLINE_S)

    def _run(self, body: Callable[[], object]) -> None:
        self._go.acquire()
        try:
            if not self._killed:
                body()
        except Killed:
            pass
        except Exception as error:
            self.error = error
        self.ended = True
        self._back.release()
