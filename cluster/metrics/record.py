"""Parts of a metrics record that follow from what shards, workers and learners report alone."""

from __future__ import annotations

import math
from collections import Counter, deque
from typing import Any

import numpy as np

from cluster.metrics.catalogue import AGAIN_PREFIX, is_counter, is_resumed
from cluster.metrics.metric import Line
from replay.episode_assembly import LOST_REASONS
from replay.shard import ShardStats

LEAST_STEPS, TOLERANCES = 1_000, 20  # what the limiter tolerates at both ends of so many of them is a tenth


class CountedAgain:
    """By how much the counts of a run fell so far, over all of its processes, as parts began again from what they had saved. The sum of a
    count and of what it fell by never goes back, which Prometheus needs."""

    def __init__(self) -> None:
        self._counts: dict[str, float] = {}  # as the newest record has them
        self._fell: Counter[str] = Counter()

    def resume_from(self, line: Line) -> None:
        """Takes the newest record of the run's earlier part."""
        counts = {key: line[key] for key in line if is_counter(key) and is_resumed(key)}
        self._fell.update(
            {key.removeprefix(AGAIN_PREFIX): counts.pop(key) for key in list(counts) if key.startswith(AGAIN_PREFIX)}
        )
        self._counts = counts

    def record(self, line: Line) -> dict[str, Any]:
        """The keys of a record whose others are in ``line``. Rows that fell from one outcome rose in another: they are recounted."""
        for key in line:
            if is_counter(key) and is_resumed(key):
                if line[key] < self._counts.get(key, 0):
                    self._fell[key] += self._counts[key] - line[key]
                self._counts[key] = line[key]
        outcomes = sum(n for key, n in self._fell.items() if key == "rows_stored" or key.startswith("rows_dropped_"))
        fell = {f"{AGAIN_PREFIX}{key}": n for key, n in self._fell.items() if n}
        return fell | {"rows_recounted": outcomes - self._fell["rows_recorded"]}


class RecentRatio:
    """Updates for each env step over the newest env steps: LEAST_STEPS or a few more, or TOLERANCES where these are more.

    Args:
        tolerance_rows: env steps by which the limiters of all shards let either side run ahead.
    """

    def __init__(self, tolerance_rows: float) -> None:
        self._steps = max(LEAST_STEPS, TOLERANCES * tolerance_rows)
        self._marks: deque[tuple[int, int]] = deque()  # env steps and updates made, at earlier records

    def take(self, steps: int, updates: int, warm: bool) -> float | None:
        """Takes what was made by now; None until there are enough env steps after the warm-up, which is not over where not ``warm``."""
        if not warm:
            self._marks.clear()
            return None
        if self._marks and self._marks[-1][0] == steps:
            self._marks.pop()
        self._marks.append((steps, updates))
        while len(self._marks) > 1 and steps - self._marks[1][0] >= self._steps:
            self._marks.popleft()
        made = steps - self._marks[0][0]
        return (updates - self._marks[0][1]) / made if made >= self._steps else None


def quantiles(rows_by_age: np.ndarray) -> dict[str, int]:
    """Median and 95th percentile of the age, by how many rows have each; 0 without rows."""
    below = np.cumsum(rows_by_age)
    quantile = {name: int(np.searchsorted(below, q * below[-1])) for name, q in (("p50", 0.5), ("p95", 0.95))}
    return quantile if below[-1] else {"p50": 0, "p95": 0}


def ended_episodes(window: dict[str, float]) -> dict[str, float]:
    """How many episodes ended in a window, and their returns and lengths where there are any."""
    count = window.get("episodes", 0)
    record = {"episodes": count}
    if count:
        record["return_mean"], record["length_mean"] = window["return_sum"] / count, window["length_sum"] / count
        record |= {"return_min": window["return_min"], "return_max": window["return_max"]}
    return record


def whole_episodes(shards: list[ShardStats]) -> dict[str, float]:
    """What shards of whole episodes hold, and what became of the online rows that they stored.

    rows_stored = episode_rows + open_rows + the sum of lost_rows_*, always. ``stage`` is that of the slowest shard.
    """
    lost: Counter[str] = Counter(dict.fromkeys(LOST_REASONS, 0))
    for shard in shards:
        lost.update(shard.lost_rows)
    return {
        "stage": min((shard.stage for shard in shards), default=0),
        "online_episodes": sum(shard.stored_episodes for shard in shards),
        "held_dataset_episodes": sum(shard.offline_episodes for shard in shards),
        "held_online_episodes": sum(shard.episodes - shard.offline_episodes for shard in shards),
        "episode_rows": sum(shard.episode_rows for shard in shards),
        "open_rows": sum(shard.open_rows for shard in shards),
        **{f"lost_rows_{reason}": rows for reason, rows in lost.items()},
    }


def plans(window: dict[str, float]) -> dict[str, float]:
    """What the plans that were made in a window asked for and predicted, means in the environment's own units."""
    record = {"planned_episodes": window.get("planned_episodes", 0)}
    if window.get("target_episodes"):
        record["plan_target_mean"] = window["target_sum"] / window["target_episodes"]
    if window.get("predicted_episodes"):
        count = window["predicted_episodes"]
        record["plan_predicted_mean"] = window["predicted_sum"] / count
        record["plan_predicted_std"] = math.sqrt(max(0.0, window["predicted_variance_sum"] / count))
    return record
