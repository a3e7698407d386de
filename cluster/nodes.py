"""The nodes of the Ray cluster: which of them live, and whether a part failed by itself or together with its node.

The head declares a node lost only after its health checks (RAY_health_check_*). Until then a part would be placed there again.
So the driver looks for itself: a node whose raylet answers no connection is dying, and what was there waits until the head knows.
"""

from __future__ import annotations

import dataclasses
import math
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import ray

from cluster.bounded import in_thread
from cluster.connection import hail
from cluster.metrics.catalogue import RestartReason

LOOK_S = 2.0  # between two looks; at once where a part has failed
REACH_S = 1.0  # for a node to answer a connection
Table = tuple[dict[str, dict[str, Any]], set[str]]  # Ray's entries by node id; those that live and do not answer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
    """How a part ended.

    Attributes:
        why: the cause, root last.
        reason: for the counters.
        nodes: where it was, by id; of learners all ranks.
        node: of those the one that it failed on; "" where that is not known.
        at: when it was noticed, monotonic clock.
    """

    why: str
    reason: RestartReason
    nodes: frozenset[str]
    node: str = ""
    at: float = dataclasses.field(default_factory=time.monotonic)


class Nodes:
    """Asks the head in a thread, and never waits for the answer."""

    def __init__(self) -> None:
        from ray.util.client import ray as client

        self._through_client = client.is_connected()  # from there nodes need not be reachable
        self._table: dict[str, dict[str, Any]] = {}
        self._dying: set[str] = set()
        self._suspects: set[str] = set()
        self._answer: Future[Table] | None = None
        self._asked_at = self._seen_at = -math.inf  # of the look under way, and of the one that was taken last

    def look(self) -> list[str]:
        """Takes the answer of the last look, if it is there, and looks again when it is time; the nodes lost since the last call."""
        lost: list[str] = []
        if self._answer is not None and self._answer.done():
            answer, self._answer = self._answer, None
            if answer.exception() is None:  # else the head is gone: HeadWatch's
                before, (self._table, self._dying) = self._table, answer.result()
                self._seen_at = self._asked_at
                self._suspects &= self._dying
                lost = [node for node, entry in before.items() if entry["Alive"] and not self._lives(node)]
        now = time.monotonic()
        if self._answer is None and (now - self._asked_at >= LOOK_S or self._suspects - self._dying):
            self._asked_at, suspects = now, frozenset(self._suspects)
            self._answer = in_thread(lambda: self._see(suspects))
        return lost

    def verdict(self, failure: Failure, limit_s: float) -> str:
        """Whether a part failed with its node: "lost"; or by itself: "alive"; "" while that is not known, for ``limit_s`` at most."""
        placed = {node for node in failure.nodes if node}
        if self._table and any(not self._lives(node) for node in placed):
            return "lost"
        late = time.monotonic() - failure.at > limit_s
        if self._seen_at < failure.at and placed and not late:
            self._suspects |= placed
            return ""
        return "" if placed & self._dying and not late else "alive"

    def lost(self, failure: Failure) -> str:
        """The node that was lost, by its id, where that is the verdict."""
        return next((node for node in sorted(failure.nodes) if node and not self._lives(node)), "")

    def name(self, node: str) -> str:
        """A node's address and the first digits of its id; "" for none."""
        return f"{self.address(node)} ({node[:8]})" if node else ""

    def address(self, node: str) -> str:
        """A node's address; the first digits of its id while the head has not said."""
        return str(self._table.get(node, {}).get("NodeManagerAddress", node[:8]))

    def why_lost(self, node: str) -> str:
        """What the head says of the end of a node."""
        return str(self._table.get(node, {}).get("DeathReasonMessage") or "the head says no reason")

    def _lives(self, node: str) -> bool:
        return bool(self._table.get(node, {}).get("Alive"))

    def _see(self, suspects: frozenset[str]) -> Table:
        table = {entry["NodeID"]: entry for entry in ray.nodes()}
        living = [node for node in suspects if table.get(node, {}).get("Alive")]
        dying = {node for node in living if not (self._through_client or _answers(table[node]))}
        return table, dying


class Restarts:
    """Restarts of a part that has no budget, counted once it is known whether it was lost with its node.

    Args:
        count: called with each reason.
        limit_s: for a node that does not answer.
    """

    def __init__(self, nodes: Nodes, count: Callable[[RestartReason], None], limit_s: float) -> None:
        self._nodes, self._count, self._limit_s = nodes, count, limit_s
        self._uncounted: list[Failure] = []

    def note(self, reason: RestartReason, node: str) -> None:
        """The part is started again; what failed was on ``node``, "" where that is not known."""
        if reason == "died":
            self._uncounted.append(Failure(why="", reason=reason, nodes=frozenset((node,))))
        else:  # it was still there
            self._count(reason)

    def count(self) -> None:
        """Counts those of which that is known by now."""
        for failure in list(self._uncounted):
            if verdict := self._nodes.verdict(failure, self._limit_s):
                self._uncounted.remove(failure)
                self._count("node_lost" if verdict == "lost" else failure.reason)


def _answers(entry: dict[str, Any]) -> bool:
    """Whether a node's raylet says anything: of one that is stopped the kernel accepts connections for a while. With TLS it hangs up,
    which is an answer, too."""
    try:
        with socket.create_connection((entry["NodeManagerAddress"], entry["NodeManagerPort"]), REACH_S) as peer:
            hail(peer)
    except ConnectionResetError:
        return True
    except OSError:
        return False
    return True
