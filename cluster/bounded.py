"""Calls that have no deadline of their own: into Ray while the head of the cluster hangs, to a file system that does not answer."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Generic, TypeVar

SHUTDOWN_S = 5.0  # for ray.shutdown, which takes less than a second if the head answers

T = TypeVar("T")


def in_thread(call: Callable[[], T]) -> Future[T]:
    """Makes ``call`` in a daemon thread, so that the caller can give up on it: ``in_thread(call).result(seconds)``."""
    answer: Future[T] = Future()

    def work() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return answer


class Look(Generic[T]):
    """Makes one call again and again, each time in a thread, never twice at once."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._answer: Future[T] | None = None

    def result(self, wait_s: float) -> T | None:
        """What the call gave that this or an earlier one began; None while there is nothing, for which a new one waits ``wait_s``.

        Raises:
            What the call raised.
        """
        if self._answer is None:
            self._answer = in_thread(self._call)
            wait([self._answer], wait_s)
        if not self._answer.done():
            return None
        answer, self._answer = self._answer, None
        return answer.result()


def leave_cluster(code: int) -> None:
    """Disconnects this process, which is about to exit with ``code``, from the cluster that it joined.

    The last resort, if that does not return within SHUTDOWN_S: the process exits here. Otherwise Ray's own hook at exit would wait for
    as long as the head hangs. All files of the run are closed by now.
    """
    ray = sys.modules.get("ray")  # commands that need no Ray do not import it
    if ray is None or not ray.is_initialized():
        return
    try:
        in_thread(ray.shutdown).result(SHUTDOWN_S)
    except TimeoutError:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
