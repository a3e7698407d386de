"""Rollout workers on their way out: asked to end or failed, waited for, killed when they are late. Nothing here waits but ``settle``."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import Any, Protocol

import ray
from ray.exceptions import RayError, RayTaskError

from cluster.metrics.aggregator import MetricsAggregator
from cluster.metrics.wording import count
from cluster.remote import DIED, root
from cluster.replay_client import SETTLE_S, STOPPED

RETIRE_S = SETTLE_S + 4.0  # for a worker to finish the chunk in hand and to settle
LAST_WORDS_S = 1.0  # for workers that are killed to give their row counts
SLICE_S = 0.1


class Member(Protocol):
    """What a worker's slot holds of it."""

    actor: Any
    run: Any  # reference of its run() call
    incarnation: int
    up: Any  # reference of its node, there once its process has built its environments


@dataclasses.dataclass
class _Leaver:
    index: int
    member: Member
    reason: str  # why rows are dropped that it does not bring in
    by: float  # when it must have returned, or have given its counts, monotonic clock
    words: Any = None  # reference of its last counts, once it is to be killed


class Leaving:
    """Takes workers that go until they are gone and their rows are counted."""

    def __init__(self, aggregator: MetricsAggregator, event: Callable[[str], None]) -> None:
        self.aggregator, self.event = aggregator, event
        self._leavers: list[_Leaver] = []

    @property
    def actors(self) -> list[Any]:
        return [leaver.member.actor for leaver in self._leavers]

    @property
    def members(self) -> list[Any]:
        """Those that are not gone yet."""
        return [leaver.member for leaver in self._leavers]

    def retire(self, members: dict[int, Any]) -> None:
        """Asks workers to end in order: each finishes the chunk in hand and brings in what is on the way.

        One that has not returned within RETIRE_S is killed; what it had on the way and the shard does not have is dropped as
        ``stopped``. One that is not up yet is killed at once.
        """
        by = time.monotonic() + RETIRE_S
        up = {index: member for index, member in members.items() if ray.wait([member.up], timeout=0)[0]}
        for index, member in up.items():
            member.actor.stop.remote()
            self._leavers.append(_Leaver(index, member, STOPPED, by))
        absent = {index: member for index, member in members.items() if index not in up}
        self.end(absent, STOPPED, ask=absent)

    def end(self, members: dict[int, Any], reason: str, ask: dict[int, Any]) -> None:
        """Lets workers go that failed or hang; those of ``ask``, which are not dead, have LAST_WORDS_S to give their row counts.

        One that was not up yet is asked, too: it may be so by now, and make steps.
        """
        for index, member in members.items():
            leaver = _Leaver(index, member, reason, 0.0)
            if index in ask:
                self._leavers.append(leaver)
                self._ask(leaver)
            else:
                self._kill(leaver, None)

    def go_on(self) -> None:
        """Takes what came of those that go since the last call."""
        if not self._leavers:
            return
        self._take_runs([leaver for leaver in self._leavers if leaver.words is None])
        asked = [leaver for leaver in self._leavers if leaver.words is not None]
        ready = _ready([leaver.words for leaver in asked])
        for leaver in asked:
            if leaver.words in ready or time.monotonic() >= leaver.by:
                totals = None
                with contextlib.suppress(RayError):
                    totals = ray.get(leaver.words, timeout=0)
                self._leavers.remove(leaver)
                self._kill(leaver, totals)

    def settle(self) -> None:
        """Waits until all are gone, each within its time."""
        while self._leavers:
            refs = [leaver.member.run if leaver.words is None else leaver.words for leaver in self._leavers]
            ray.wait(refs, num_returns=len(refs), timeout=SLICE_S)
            self.go_on()

    def _take_runs(self, settling: list[_Leaver]) -> None:
        """Those that have returned are gone; those that failed or are late are asked for their counts."""
        ready, late = _ready([leaver.member.run for leaver in settling]), 0
        for leaver in settling:
            if leaver.member.run in ready:
                try:
                    totals = ray.get(leaver.member.run)
                except (RayTaskError, *DIED) as error:
                    self.event(f"worker {leaver.index} did not end in order: {root(error)}")
                    self._ask(leaver)
                else:
                    self._leavers.remove(leaver)
                    self._kill(leaver, totals)
            elif time.monotonic() >= leaver.by:
                late += 1
                self._ask(leaver)
        if late:
            self.event(f"{count(late, 'worker')} did not end within {RETIRE_S:.0f} s and had to be killed")

    def _ask(self, leaver: _Leaver) -> None:
        leaver.words, leaver.by = leaver.member.actor.last_words.remote(), time.monotonic() + LAST_WORDS_S

    def _kill(self, leaver: _Leaver, totals: Any) -> None:
        self.aggregator.end_writer(leaver.index, leaver.member.incarnation, totals, leaver.reason)
        ray.kill(leaver.member.actor, no_restart=True)


def _ready(refs: list[Any]) -> set[Any]:
    return set(ray.wait(refs, num_returns=len(refs), timeout=0)[0]) if refs else set()
