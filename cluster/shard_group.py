"""The replay shards of a run on Ray: watched, killed when they hang, saved. Ray restarts them, each from its newest snapshot."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import ActorDiedError, GetTimeoutError, RayTaskError

from cluster.actors import ShardActor
from cluster.errors import RunError
from cluster.graph import RunSpec
from cluster.metrics.aggregator import MetricsAggregator
from cluster.nodes import Failure, Nodes, Undecided
from cluster.placement import Reservation
from cluster.remote import DIED, PAUSE_S, Budget, Pulse, cause, ended, make_actor, root, started
from cluster.saving import Outcome, SaveWatch

DEAD_S = 2.0  # a shard that Ray gave up is believed to be so after this


class ShardGroup:
    """S shard actors.

    Args:
        quota_rows: rows of the run for each; None: its limiter knows how many episodes.
    """

    def __init__(
        self,
        spec: RunSpec,
        aggregator: MetricsAggregator,
        event: Callable[[str], None],
        nodes: Nodes,
        reservation: Reservation,
        quota_rows: int | None,
    ) -> None:
        self.spec, self.aggregator, self.event, self.config = spec, aggregator, event, spec.config
        self.full: set[int] = set()  # those that have the rows of the run
        self._nodes, self._timeout_s = nodes, spec.config.ray.call_timeout_s
        count = spec.config.replay.shards
        self.actors = [
            make_actor(
                ShardActor,
                num_cpus=self.config.ray.shard_cpus,
                max_restarts=-1,  # the budget is the driver's
                scheduling_strategy=reservation.place("shard", index),
            ).remote(spec, index, quota_rows)
            for index in range(count)
        ]
        self.pulses = [Pulse(shard.stats.remote) for shard in self.actors]
        self._budgets = [Budget(self.config.ray.shard_restart_budget) for _ in range(count)]
        self._started: dict[int, float] = {}  # when the process of a shard was started
        self._nodes_of: dict[int, str] = {}
        self._lost: dict[int, float] = {}  # since when a shard is known to be dead, or killed because it hung
        self._hung: dict[int, str] = {}  # why the driver killed a shard that is not back yet
        self._undecided = Undecided("shard", nodes, aggregator, spec.config.ray.start_timeout_s)
        self._hold: int | None = None  # rows of one shard at which the driver holds the run
        self._saves: dict[Any, int] = {}  # snapshots that are being written -> their shards

    @property
    def reported(self) -> int:
        """How many have given their counters."""
        return len(self._started)

    @property
    def any_lost(self) -> bool:
        return bool(self._lost)

    @property
    def holding(self) -> bool:
        return self._hold is not None

    def wait(self, check: Callable[[], None]) -> None:
        """Until all are up; says which snapshots were skipped."""
        refs = [shard.restored.remote() for shard in self.actors]
        warnings = started(refs, "replay shards", self.config.ray.start_timeout_s, check, self.event)
        for index, skipped in enumerate(warnings):
            for warning in skipped:
                self.event(f"shard {index}: snapshot skipped: {warning}")

    def on(self, node: str) -> list[str]:
        """Those on a node, for people; also those that Ray has restarted elsewhere before it was known what had become of the node."""
        moved = self._undecided.on(node)
        return [f"shard {index}" for index, place in sorted(self._nodes_of.items()) if place == node or index in moved]

    def take(self, index: int) -> tuple[dict[str, Any] | None, bool]:
        """What a shard answered, if it did, and whether its workers had to wait for it. RunError when it is gone for good."""
        pulse, report = self.pulses[index], None
        try:
            report = pulse.answer()
        except DIED as error:
            self._lost.setdefault(index, time.monotonic())
            self._check_silent(index, error)
            return None, False
        if report is None:
            self._check_silent(index)
            return None, False
        late = index in self._lost or pulse.took_s > PAUSE_S
        self._lost.pop(index, None)
        return report, late

    def observe(self, index: int, report: dict[str, Any]) -> bool:
        """Takes a shard's report; whether Ray had restarted it since the last one."""
        restarted = self._started.setdefault(index, report["started"]) != report["started"]
        if restarted:
            self._started[index] = report["started"]
            why, node = self._hung.pop(index, ""), self._nodes_of.get(index, "")
            failure = Failure(why=why, reason="hung" if why else "died", nodes=frozenset((node,)))
            self._undecided.add(index, failure)
            self._say_restarted(index, report["restored"])
            if self._hold is not None:
                self.actors[index].hold_at.remote(self._hold)
        self._nodes_of[index] = report["node"]
        (self.full.add if report["full"] else self.full.discard)(index)
        return restarted

    def watch(self) -> None:
        """Counts restarts of which the cause is known by now; RunError when one was too many."""
        for index, failure, lost in self._undecided.decided():
            budget = self._budgets[index]
            if not lost and not budget.spend():
                raise RunError(f"replay shard {index} failed again, and {self._spent(budget)}. {failure.why}")
        self.aggregator.budget_left["shard"] = min(budget.left for budget in self._budgets)
        self.aggregator.part_nodes["shard"] = {self._nodes.address(node) for node in self._nodes_of.values()}

    def hold_at(self, rows: int) -> None:
        """Lets every shard take no rows beyond ``rows``."""
        self._hold = rows
        for shard in self.actors:
            shard.hold_at.remote(rows)

    def close(self) -> None:
        """Tells every shard that no more rows are coming."""
        for shard in self.actors:
            shard.close.remote()

    def seal(self, limit_s: float) -> None:
        """Lets the shards take no more rows, so that their snapshots and the last counters agree."""
        refs = [shard.seal.remote() for shard in self.actors]
        ray.wait(refs, num_returns=len(refs), timeout=limit_s)

    def last_reports(self, limit_s: float) -> dict[int, dict[str, Any]]:
        """The last counters, of the shards that still answer."""
        refs, found = [shard.stats.remote() for shard in self.actors], {}
        ray.wait(refs, num_returns=len(refs), timeout=limit_s)
        for index, ref in enumerate(refs):
            try:
                found[index] = ray.get(ref, timeout=0)
            except (*DIED, RayTaskError, GetTimeoutError) as error:
                self.event(f"replay shard {index} gave no last counters: {root(error)}")
        return found

    def begin_save(self) -> None:
        """Lets every shard write a snapshot, unless some still write the last one."""
        if not self._saves:
            self._saves = {shard.save.remote(): index for index, shard in enumerate(self.actors)}

    @property
    def saving(self) -> list[int]:
        """Shards whose snapshot is being written."""
        return list(self._saves.values())

    def check_saves(self, watch: SaveWatch) -> dict[int, str]:
        """Looks at the snapshots that are being written; what went wrong with those that have ended, by shard."""
        problems: dict[int, str] = {}
        ready = ray.wait(list(self._saves), num_returns=len(self._saves), timeout=0)[0] if self._saves else []
        for ref in ready:
            index = self._saves.pop(ref)
            try:
                outcome = ray.get(ref)
            except DIED as error:  # its end is what counts, no write has failed
                problems[index] = ended(error)
                continue
            except RayTaskError as error:
                outcome = Outcome(problem=root(error))
                problems[index] = outcome.problem
            watch.snapshot(index, outcome)
        return problems

    def end_saves(self, watch: SaveWatch, deadline: float) -> dict[int, str]:
        """Waits for the snapshots that are being written; what went wrong, by shard."""
        problems, began = self.check_saves(watch), time.monotonic()
        while self._saves and time.monotonic() < deadline:
            ray.wait(list(self._saves), num_returns=len(self._saves), timeout=min(0.5, deadline - time.monotonic()))
            problems |= self.check_saves(watch)
        late = f"not written within {time.monotonic() - began:.0f} s"
        return problems | dict.fromkeys(self._saves.values(), late)

    def _check_silent(self, index: int, error: Exception | None = None) -> None:
        """A shard that hangs is killed, one that Ray is restarting is given its time; one that does not come back ends the run."""
        silent_s, since = self.pulses[index].silent_s, self._lost.get(index)
        if since is None and silent_s > self._timeout_s:
            self._kill(index, f"it did not answer for {silent_s:.0f} s (ray.call_timeout_s {self._timeout_s:g})")
        if since is None:
            return
        gone_s, limit_s = time.monotonic() - since, self._timeout_s + self.config.ray.start_timeout_s
        if gone_s > (DEAD_S if isinstance(error, ActorDiedError) else limit_s):
            raise RunError(
                f"replay shard {index} is gone for {gone_s:.0f} s, expected Ray to restart it; the run halts and can be resumed from its "
                f"snapshot. {self._hung.get(index, '')}\n{cause(error) if error else 'It does not answer.'}"
            )

    def _kill(self, index: int, why: str) -> None:
        if self._budgets[index].left <= 0:
            raise RunError(f"replay shard {index} hangs: {why}, and {self._spent(self._budgets[index])}")
        self.event(f"replay shard {index} hangs: {why}; it is killed, and Ray restarts it from its newest snapshot")
        ray.kill(self.actors[index], no_restart=False)
        self._lost[index], self._hung[index] = time.monotonic(), f"The driver killed it: {why}."

    def _spent(self, budget: Budget) -> str:
        return (
            f"has had its {budget.an_hour} restarts within an hour (ray.shard_restart_budget), so the run halts; it can be resumed from "
            "its snapshot"
        )

    def _say_restarted(self, index: int, restored: tuple[int, tuple[str, ...]] | None) -> None:
        """That Ray restarted shard ``index``, and from what: the rows of a snapshot and what was skipped, or nothing."""
        if restored is None:
            self.event(
                f"WARNING: replay shard {index} was restarted by Ray and found no snapshot in {self.spec.shard_dir(index)}: it begins empty, "
                "all rows that it held are lost and count as rows_dropped_shard_restart"
            )
            return
        rows, warnings = restored
        self.event(f"replay shard {index} was restarted by Ray, from its newest snapshot, of {rows:,} rows")
        for warning in warnings:
            self.event(f"shard {index}: snapshot skipped: {warning}")
