"""What single workers, nodes and processes do, as far as a record holds it: distributions and sums, and the slowest workers by name;
and on which nodes parts were restarted."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import numpy as np

from cluster.metrics.catalogue import NODE_REASONS, RESTARTED_PARTS, by_reason
from cluster.metrics.metric import Line
from cluster.usage import Usage, usage

WINDOW_S = 30.0  # over which a worker's rate is taken: a chunk may last for seconds
SLOWEST = 3  # workers that are named
NODES = 64  # whose restarts are counted by name: where machines come and go, names would be without end
OTHER = "other"  # name of all further ones


class Parts:
    """Env steps a second by worker and by node, memory and CPU time by part."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._rows: Counter[int] = Counter()  # by worker, since then
        self._rates: dict[int, float] = {}  # of the last window
        self._whole = False  # whether it was: in the first seconds not every worker has begun, so none is called slow
        self._there: set[int] = set()  # workers that have run since this window began
        self._compared: set[int] = set()  # those that ran through the last one
        self._used: dict[tuple[str, int], Usage] = {}  # by part and index
        self._cpu_s: Counter[str] = Counter()  # by part, over all of its processes
        self._shown: set[str] = set()  # nodes of the last record

    def add_worker(self, worker: int, stats: dict[str, float]) -> None:
        """Takes the rows of one chunk, and out of ``stats`` what the worker's process takes, where it says so."""
        self._rows[worker] += int(stats.get("recorded_rows", 0))
        seen = {name: stats.pop(name) for name in Usage._fields if name in stats}
        if seen:
            self.add_usage("worker", worker, Usage(**seen))

    def add_usage(self, part: str, index: int, seen: Usage) -> None:
        """Takes what a process takes now. CPU time that is less than before is of another process."""
        before = self._used.get((part, index))
        then = before.cpu_s if before is not None and before.cpu_s <= seen.cpu_s else 0.0
        self._cpu_s[part] += seen.cpu_s - then  # type: ignore[assignment]
        self._used[part, index] = seen

    def forget(self, part: str, index: int) -> None:
        """That process has ended."""
        self._used.pop((part, index), None)
        if part == "worker":
            self._there.discard(index)
            self._compared.discard(index)

    def record(self, nodes: dict[int, str]) -> dict[str, Any]:
        """The keys of a record.

        Args:
            nodes: where each worker is that runs.
        """
        now = time.monotonic()
        if now - self._since >= WINDOW_S or not self._rates:
            seconds = max(now - self._since, 1e-9)
            self._whole = seconds >= WINDOW_S
            self._compared = self._there & set(nodes) if self._rates else set(nodes)
            self._rates = {worker: self._rows[worker] / seconds for worker in nodes}
            self._there = set(nodes)
            self._since, self._rows = now, Counter()
        return self._of_workers(nodes) | self._of_nodes(nodes) | self._of_processes()

    def _of_workers(self, nodes: dict[int, str]) -> dict[str, Any]:
        compared = self._compared if self._whole else nodes
        rates = {worker: rate for worker, rate in self._rates.items() if worker in nodes and worker in compared}
        if not rates:
            return {}
        low, middle, high = np.quantile(list(rates.values()), (0.0, 0.5, 1.0)).tolist()
        slowest = sorted(rates.items(), key=lambda item: item[1])[:SLOWEST]
        names = ", ".join(f"worker {worker} on {nodes[worker]}: {rate:.1f}" for worker, rate in slowest)
        return {
            "worker_steps_per_s_min": low,
            "worker_steps_per_s_p50": middle,
            "worker_steps_per_s_max": high,
            "slowest_workers": names if self._whole else "",
        }

    def _of_nodes(self, nodes: dict[int, str]) -> dict[str, float]:
        count: Counter[str] = Counter(dict.fromkeys(self._shown, 0))  # a node without workers is 0 once, then gone
        rate: dict[str, float] = dict.fromkeys(self._shown, 0.0)
        for worker, node in nodes.items():
            count[node] += 1
            rate[node] = rate.get(node, 0.0) + self._rates.get(worker, 0.0)
        self._shown = set(nodes.values())
        return {f"node_workers_{node}": n for node, n in count.items()} | {
            f"node_steps_per_s_{node}": value for node, value in rate.items()
        }

    def _of_processes(self) -> dict[str, float]:
        self.add_usage("driver", 0, usage())
        sizes, busy = Counter[str](), dict[str, list[float]]()
        for (part, _), seen in self._used.items():
            for kind in ("rss_bytes", "shm_bytes", "gpu_bytes"):
                if (size := getattr(seen, kind)) is not None:
                    sizes[f"{kind}_{part}"] += size
            if seen.gpu_busy is not None:
                busy.setdefault(f"gpu_busy_{part}", []).append(seen.gpu_busy)
        return {
            **sizes,
            **{key: sum(shares) / len(shares) for key, shares in busy.items()},
            **{f"cpu_s_{part}": seconds for part, seconds in self._cpu_s.items()},
        }


class NodeRestarts:
    """Restarts by part, reason and node."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._shown: set[str] = set()
        self._counts: Counter[tuple[str, str, str]] = Counter()

    def resume_from(self, line: Line) -> None:
        """Takes the counts of the newest line of the run's earlier part."""
        for part in RESTARTED_PARTS:
            for reason in NODE_REASONS:
                for node, count in by_reason(line, f"node_restarts_{part}_{reason}_").items():
                    self._counts[part, reason, self._name(node)] += count

    def count(self, part: str, reason: str, node: str) -> None:
        """One more on ``node``; none where there is no node."""
        if node:
            self._counts[part, reason, self._name(node)] += 1

    def record(self, nodes: set[str]) -> dict[str, int]:
        """The keys of a record: the counts, and once 0 of everything that may happen on each of ``nodes`` that is new, so that its first
        restart shows as an increase."""
        names = {self._name(node) for node in sorted(nodes)}
        new, self._shown = names - self._shown, self._shown | names
        zeros = {(part, why, node): 0 for node in new for part in RESTARTED_PARTS for why in NODE_REASONS}
        found = zeros | self._counts
        return {f"node_restarts_{part}_{why}_{node}": count for (part, why, node), count in found.items()}

    def _name(self, node: str) -> str:
        if node not in self._names and len(self._names) < NODES:
            self._names.add(node)
        return node if node in self._names else OTHER
