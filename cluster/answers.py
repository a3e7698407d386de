"""What other commands ask of a run that goes on, and what it answers: `drawbridge scale` and `drawbridge stop`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Protocol

from cluster.bounded import Look
from cluster.errors import RunError, UsageError
from cluster.metrics.aggregator import MetricsAggregator
from cluster.reports import WAIT_S, Reports
from cluster.requests import Request
from cluster.run_dir import RunDirectory

SCALED_S = 10.0  # that workers are given to start before `scale` is answered with how many do not run


class Scalable(Protocol):
    """What of ``session.Fleet`` is asked here."""

    def scale(self, workers: int) -> str:
        """Makes the number of rollout workers ``workers``; says what was done."""

    def workers_in_words(self) -> str:
        """How many rollout workers run and what the others wait for."""


class Answers:
    """Takes requests, one at a time, and never waits for the file system.

    Args:
        event: called with every line worth a person's attention.
        tell: writes down how the run is going, so that `drawbridge status` says what the answer says.
    """

    def __init__(
        self,
        run: RunDirectory,
        fleet: Scalable,
        aggregator: MetricsAggregator,
        reports: Reports,
        event: Callable[[str], None],
        tell: Callable[[], None],
    ) -> None:
        self._run, self._fleet, self._aggregator, self._reports = run, fleet, aggregator, reports
        self._event, self._tell = event, tell
        self._requests = Look(run.requests.take)
        self._scaled: tuple[Request, str, float] | None = None  # a request, what was done, when it is due
        self.asked_to_stop = False

    def take(self) -> None:
        """Takes the next request, if there is one, and answers those whose time has come."""
        self.settle()
        try:
            request = self._requests.result(WAIT_S)
        except RunError as error:
            self._event(str(error))
            return
        if request is None:
            return
        if request.kind == "stop":
            self.asked_to_stop = request.number == os.getpid()  # else it was meant for an earlier process of this run
            return
        self.settle(now=True)  # the one before
        workers = request.number
        try:
            self._scaled = request, self._fleet.scale(workers), time.monotonic() + SCALED_S
            self._reports.write("config.json", lambda: self._run.keep_workers(workers), again=True)
            self.settle()
        except (UsageError, RunError) as error:
            self._reply(request, False, str(error))

    def settle(self, now: bool = False) -> None:
        """Answers a request to scale once every worker runs, at the latest SCALED_S after it, or ``now``."""
        if self._scaled is None:
            return
        request, done, by = self._scaled
        words = f"{done}: {self._fleet.workers_in_words()}"
        if now or not self._aggregator.workers_pending or time.monotonic() >= by:
            self._scaled = None
            self._tell()
            self._event(words)
            self._reply(request, True, words)

    def _reply(self, request: Request, ok: bool, words: str) -> None:
        self._reports.write("control/answer.json", lambda: self._run.requests.answer(request, ok, words), again=True)
