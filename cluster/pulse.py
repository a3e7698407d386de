"""Whether actors answer: each has one question at a time, and the time it has gone unanswered is known. The driver never blocks on one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray

ANSWER_WAIT_S = 0.5  # longest wait for answers, which normally come in milliseconds


class Pulse:
    """Asks one actor the same question again and again.

    Args:
        ask: makes the remote call and returns its reference.
    """

    def __init__(self, ask: Callable[[], Any]) -> None:
        self._ask = ask
        self._ref: Any = None
        self._since = 0.0
        self.asked_at = 0.0  # when the question of the answer that was taken last was asked, monotonic clock
        self.took_s = 0.0  # how long that answer had been waited for

    @property
    def silent_s(self) -> float:
        """For how long the question under way has had no answer; 0 when there is none."""
        return 0.0 if self._ref is None else time.monotonic() - self._since

    @property
    def refs(self) -> list[Any]:
        """The reference of the question under way, if there is one."""
        return [] if self._ref is None else [self._ref]

    def ask(self) -> None:
        """Asks, unless a question is under way."""
        if self._ref is None:
            self._ref, self._since = self._ask(), time.monotonic()

    def answer(self) -> Any | None:
        """The answer, once; None while there is none. Raises what the call raised: RayActorError, RayTaskError."""
        if self._ref is None or not ray.wait([self._ref], timeout=0)[0]:
            return None
        self.asked_at, self.took_s = self._since, self.silent_s
        ref, self._ref = self._ref, None
        return ray.get(ref)


def ask_all(pulses: Sequence[Pulse], seconds: float = ANSWER_WAIT_S) -> None:
    """Asks every actor and waits until all have answered, or for ``seconds``."""
    for pulse in pulses:
        pulse.ask()
    refs = [ref for pulse in pulses for ref in pulse.refs]
    if refs:
        ray.wait(refs, num_returns=len(refs), timeout=seconds)
