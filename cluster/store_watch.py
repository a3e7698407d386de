"""The store of weights as the driver sees it: whether it answers, what it serves, where it is, whether Ray has restarted it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray

from cluster.actors import StoreActor
from cluster.config import RayConfig
from cluster.metrics.aggregator import MetricsAggregator
from cluster.metrics.catalogue import RestartReason
from cluster.nodes import Failure, Nodes, Undecided
from cluster.remote import DIED, PAUSE_S, Pulse, make_actor


class StoreWatch:
    """Starts the store. Ray restarts one that dies; this kills one that hangs, and then Ray does so, too.

    Args:
        limits: for an answer (call_timeout_s), and for the head to say whether a node was lost (start_timeout_s).
        place: Ray's scheduling strategy.
    """

    def __init__(
        self,
        aggregator: MetricsAggregator,
        event: Callable[[str], None],
        nodes: Nodes,
        limits: RayConfig,
        place: Any,
    ) -> None:
        self.aggregator, self.event, self._nodes, self._timeout_s = aggregator, event, nodes, limits.call_timeout_s
        self.actor = make_actor(StoreActor, num_cpus=0, max_restarts=-1, scheduling_strategy=place).remote()
        self.pulse = Pulse(self.actor.started.remote)
        self.late = self.restarted = (
            False  # by the newest answer: that it kept others waiting, that it is of a new process
        )
        self._started, self._node, self._hung = 0.0, "", False
        self._undecided = Undecided("store", nodes, aggregator, limits.start_timeout_s)

    def on(self, node: str) -> bool:
        """Whether it is on a node, or was when it failed."""
        return node == self._node or bool(self._undecided.on(node))

    def answered(self) -> bool:
        """Takes the answer to the last question, if it is there."""
        try:
            answer = self.pulse.answer()
        except DIED:
            return False  # Ray restarts it
        if answer is None:
            if self.pulse.silent_s > self._timeout_s:
                self._kill()
            return False
        self.late = self.pulse.took_s > PAUSE_S
        started, node, used, served = answer
        self.aggregator.add_usage("store", 0, used)
        self.aggregator.add_served("store", served)
        self.restarted = bool(self._started) and started != self._started
        if self.restarted:
            reason: RestartReason = "hung" if self._hung else "died"
            self._undecided.add(0, Failure(why="", reason=reason, nodes=frozenset((self._node,))))
        self._started, self._node, self._hung = started, node, False
        self.aggregator.part_nodes["store"] = {self._nodes.address(node)}
        return True

    def watch(self) -> None:
        """Counts restarts of which the cause is known by now."""
        self._undecided.decided()

    def _kill(self) -> None:
        self.event(
            f"the store of weights hangs: it did not answer for {self.pulse.silent_s:.0f} s (ray.call_timeout_s "
            f"{self._timeout_s:g}); it is killed, and Ray restarts it"
        )
        ray.kill(self.actor, no_restart=False)
        self.pulse, self._hung = Pulse(self.actor.started.remote), True
