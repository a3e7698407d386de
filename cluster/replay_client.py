"""The worker's side of the wire: chunks go to one shard, newer weights come back.

    replay client -> shard    send(chunk)      at most ``max_unacked`` chunks are on the way
    shard -> replay client    ok               stored; so is a duplicate, which says that an earlier answer was lost
                        wait             nothing was stored: the same chunk goes again, under the same sequence
                        rejected         dropped and counted by reason; run_complete or stopped: the shard takes no more rows
                        (no answer)      the shard is dead or silent: the same chunk goes again; it may have been stored
    store -> replay client    fetch()          only when an answer names a policy newer than the one at hand; if the shard held rows
                                         back before that, episodes that follow a plan begin anew with it

Delivery is at least once; the shard's table of writers makes storage exactly once. Chunks are settled in the order in
which they were collected, so what waits is bounded. However ``run`` ends, every chunk on the way is settled first: stored,
or dropped under a reason in the worker's totals. The exception is a chunk whose answer was lost: only the shard can tell
whether it was stored, so the worker counts it as recorded and the driver settles it (cluster/metrics/ledger.py). This file does not
know what carries the messages.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from algorithms import progress
from algorithms.weights import CorruptWeights
from cluster.errors import RunError
from replay.messages import Ack, Chunk, RowTotals

if TYPE_CHECKING:
    from algorithms.weights import Weights
    from rollout_workers.worker import RolloutWorker

RUN_COMPLETE, STOPPED = "run_complete", "stopped"  # a shard's reasons for taking no more rows
SETTLE_S = 4.0  # how long chunks on the way may take to be stored after ``stop``
LOST_RETRY_S = 0.2  # a chunk whose answer did not come goes again after this
WEIGHTS_RETRY_S = 0.1


class Lost(Exception):
    """No answer came: the other side died, is being restarted, or was silent for too long."""


class ReplayClient:
    """Collects with one worker and brings its chunks to its shard until the run is complete or ``stop`` is called.

    Args:
        worker: who collects.
        send: sends a chunk and gives a handle for its answer; must not block.
        answer: waits for the answer to a handle, at most ``timeout_s``; raises Lost.
        fetch: the newest weights, None before the first publication; raises Lost.
        max_unacked: chunks on the way, at least 1. Beyond, the replay client waits for the oldest one's answer.
        timeout_s: deadline of the wait for one answer.
        patience_s: deadline of every wait for a part that is being restarted: a shard that stays lost, a learner before its
            first publication. Long enough for the driver to notice and to replace it; None: ``timeout_s``.
        clock, sleep: seconds.
    """

    def __init__(
        self,
        worker: RolloutWorker,
        *,
        send: Callable[[Chunk], Any],
        answer: Callable[[Any, float], Ack],
        fetch: Callable[[], Weights | None],
        max_unacked: int,
        timeout_s: float,
        patience_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.worker = worker
        self.stopping = self.complete = False
        self.pending: deque[tuple[Chunk, Any]] = deque()  # on the way, oldest first, each with its handle
        self._send, self._answer, self._fetch = send, answer, fetch
        self._limit, self._timeout_s = max_unacked, timeout_s
        self._patience_s = timeout_s if patience_s is None else patience_s
        self._clock, self._sleep = clock, sleep
        self._lost_since: float | None = None  # when the shard last stopped answering
        self._held = False  # the shard has held rows back since the running episodes were begun
        self._unsure = False  # an answer to the chunk that is being settled was lost: it may have been stored
        self._settle_by: float | None = None  # when chunks that the shard makes wait are dropped; None: never
        self._collecting = threading.Lock()

    def run(self) -> str:
        """Collects and pushes; returns why it ended: "complete" (the shard has its rows) or "stopped".

        When the worker raises, the chunks on the way are settled before its error is.

        Raises:
            Lost: the shard gave no answer for ``patience_s``.
            RunError: no weights came for ``patience_s`` although the next chunk needs them.
        """
        self._load((0, 0))
        try:
            while not self.stopping and not self.complete:
                if not self._wait_for_weights():
                    break
                self._collect()
                while len(self.pending) >= self._limit and not self.complete:
                    self._settle()
        except Lost:
            raise  # nobody answers: the driver counts what is on the way
        except Exception:
            self.stop()
            with contextlib.suppress(Lost):
                self._settle_all()
            raise
        self._settle_all()
        return "complete" if self.complete else "stopped"

    def stop(self) -> None:
        """Lets ``run`` return once the chunk in hand and those on the way are settled, for which they have SETTLE_S."""
        if self._settle_by is None:
            self._settle_by = self._clock() + SETTLE_S
        self.stopping = True

    def last_words(self, limit_s: float) -> RowTotals:
        """Row counts that stay true: ``stop``, and the chunk in hand is waited for, at most ``limit_s``. For another thread than ``run``'s."""
        self.stop()
        if self._collecting.acquire(timeout=limit_s):
            self._collecting.release()
        return self.worker.totals()

    def _collect(self) -> None:
        with self._collecting:
            if not self.stopping:
                chunk = self.worker.collect()
                self.pending.append((chunk, self._send(chunk)))

    def _settle_all(self) -> None:
        while self.pending:
            self._settle()

    def _settle(self) -> None:
        """Waits for the answer to the oldest chunk; sends it again until it is stored or refused, or its time is over."""
        chunk, handle = self.pending[0]
        started, self._unsure = self._clock(), False
        ack = self._ask(handle)
        while ack.status == "wait" and (self._settle_by is None or self._clock() < self._settle_by):
            self._sleep(ack.retry_after_s)
            ack = self._ask(self._send(chunk))
        self.pending.popleft()
        self.worker.note_wait(self._clock() - started)
        if ack.status in ("ok", "duplicate"):
            self.worker.note_stored(chunk)
        elif ack.status == "rejected":
            self.worker.note_rejected(chunk, ack.reason)
            self.complete = self.complete or ack.reason == RUN_COMPLETE
        elif not self._unsure:
            self.worker.note_rejected(chunk, STOPPED)
        if not self.stopping and self._load((ack.generation, ack.version)) and self._held:
            self.worker.restart_episodes()
            self._held = False

    def _ask(self, handle: Any) -> Ack:
        """The shard's answer; a lost one counts as "wait" until the shard has been lost for ``patience_s``."""
        limit_s = self._timeout_s
        if self._settle_by is not None:
            limit_s = min(limit_s, max(0.5, self._settle_by - self._clock()))
        try:
            ack = self._answer(handle, limit_s)
        except Lost:
            self._unsure = True
            now = self._clock()
            if self._lost_since is None:
                self._lost_since = now
            if now - self._lost_since > self._patience_s:
                raise
            return Ack(status="wait", generation=0, version=0, retry_after_s=LOST_RETRY_S)
        self._lost_since = None
        self._held = self._held or ack.held or ack.status == "wait"
        return ack

    def _wait_for_weights(self) -> bool:
        """Whether the next chunk can be collected; waits for a policy when it needs one: a learner may still be loading."""
        deadline = self._clock() + self._patience_s
        while self.worker.needs_weights and not self.stopping:
            self._load((0, 0))
            if not self.worker.needs_weights:
                break
            if self._clock() > deadline:
                raise RunError(
                    f"the store had no good weights for {self._patience_s:.0f} s, expected the learner's first publication: this "
                    "worker cannot act and ends; look at what the learner says"
                )
            self._sleep(WEIGHTS_RETRY_S)
            progress.mark()  # this wait has its own deadline
        return not self.stopping

    def _load(self, order: tuple[int, int]) -> bool:
        """Fetches the newest weights if ``order`` is newer than what the worker acts with; whether it has newer ones now."""
        if order <= self.worker.policy_order:
            return False
        try:
            weights = self._fetch()
        except Lost:
            return False  # asked for again after the next answer
        if weights is None:
            return False
        try:
            return self.worker.load_weights(weights)
        except CorruptWeights:
            self.worker.note_corrupt_weights()
            return False
