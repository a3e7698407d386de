"""What the driver knows of a run: counters of all parts, folded into lines of metrics.jsonl and the summary."""

from __future__ import annotations

import math
import time
from collections import Counter
from typing import Any

import numpy as np

from cluster.metrics.catalogue import (
    BUDGETED_PARTS,
    DROP_REASONS,
    HOPS,
    LEARNER_PARTS,
    RESTART_REASONS,
    RESTARTED_PARTS,
    RestartReason,
    by_reason,
)
from cluster.metrics.ledger import Ledger
from cluster.metrics.parts import NodeRestarts, Parts
from cluster.metrics.record import CountedAgain, RecentRatio, ended_episodes, plans, quantiles, whole_episodes
from cluster.usage import Usage
from replay.messages import RowTotals
from replay.shard import ShardStats
from rollout_workers.recorder import merge_stats

_SECONDS = ("env_s", "act_s", "plan_s", "record_s", "push_wait_s")
_NONE_DROPPED = dict.fromkeys(DROP_REASONS, 0)
_FETCHED = ("fetch_calls", "fetch_s", "fetch_bytes")  # of workers' stats
SAVED = ("checkpoint", "snapshot")
FAILED = (*SAVED, "report")


class MetricsAggregator:
    """Adds up what shards, workers, learners and evaluations report.

    Args:
        min_size_rows, replay_ratio: the target: updates - pretrain_updates = replay_ratio (env_steps - min_size_rows).
        tolerance_rows: env steps by which the shards let either side run ahead.
        before_s: wall time of the run's earlier parts.
        unit: what the run's length is counted in: env_steps or updates.
        pretrain_updates: made before the first env step, free of the ratio.
    """

    def __init__(
        self,
        *,
        min_size_rows: int,
        replay_ratio: float,
        tolerance_rows: float = 0.0,
        before_s: float = 0.0,
        unit: str = "env_steps",
        pretrain_updates: int = 0,
    ) -> None:
        self.unit = unit
        self.min_size_rows, self.replay_ratio = min_size_rows, replay_ratio
        self.pretrain_updates = pretrain_updates
        self._recent_ratio = RecentRatio(tolerance_rows)
        self.env_steps = self.updates = self.version = self.generation = self.nonfinite_updates = 0
        self.ledger = Ledger()
        self._writer_ended_at = -math.inf  # the newest end of a writer, monotonic clock
        self.episodes_cut: Counter[str] = Counter()  # running episodes that the driver ended, by reason
        self.workers = self.workers_started = 0
        self.workers_wanted = self.workers_pending = 0  # beside those that run
        self.budget_left = dict.fromkeys(BUDGETED_PARTS, 0)  # restarts, by part
        self.disk_free_bytes: int | None = None  # None where the file system does not answer
        self.save_every_s = dict.fromkeys(SAVED, 0.0)
        self.restarts = {part: Counter[str](dict.fromkeys(RESTART_REASONS, 0)) for part in RESTARTED_PARTS}  # by reason
        self._node_restarts = NodeRestarts()
        self.part_nodes: dict[str, set[str]] = {}  # where learners and shards are, by part
        self.memory_bytes = 0
        self.failed = dict.fromkeys(FAILED, 0)  # writes to the run directory, over the run
        self.written = dict.fromkeys(SAVED, 0)  # complete saves, over the run
        self.evaluation: dict[str, Any] = {}
        self._saved_at = dict.fromkeys(SAVED, time.monotonic())
        self._saves: dict[str, float] = {}  # what the newest of each kind took
        self.worker_nodes: dict[int, str] = {}  # where the workers are that run
        self._parts = Parts()
        self._began = time.monotonic() - before_s
        self._shards: dict[int, ShardStats] = {}
        self._grown: Counter[str] = Counter()  # what processes count from their own start, over all their starts
        self._counted: dict[Any, dict[str, float]] = {}  # their newest counts, by process
        self._waiting: dict[int, dict[str, int]] = {}  # calls that wait in each shard
        self.ready_blocks = 0  # that wait for the learner
        self._ages = np.zeros(1, np.int64)  # rows by policy age, at the last line
        self._age = {"p50": 0, "p95": 0}
        self._window: dict[str, float] = {}  # workers' stats since the last line
        self._losses: dict[str, float] = {}
        self._clipped = np.zeros(2)  # sum over updates of the share of target mass that was clipped, and their number
        self._share_s = dict.fromkeys(LEARNER_PARTS, 0.0)
        self._shares: dict[str, float] = {}  # of the learner's time, over its newest reports
        self._shares_of = dict.fromkeys(LEARNER_PARTS, 0.0)  # _share_s when they were taken
        self._made_steps = self._made_updates = 0  # since this start: what is lost and made again counts again
        self._mark = (time.monotonic(), 0, 0, 0)
        self._steps_before: int | None = None  # reported by the earlier parts of the run
        self._again = CountedAgain()

    def resume_from(self, line: dict[str, Any]) -> None:
        """Takes the counters of the newest line of the run's earlier part. Call it before ``add_shard``."""
        self.updates, self.version = int(line.get("updates", 0)), int(line.get("version", 0))
        self.generation = int(line.get("generation", line.get("epoch", 0)))  # "epoch" in earlier versions
        self.workers_started = int(line.get("workers_started", 0))
        for part, counts in self.restarts.items():
            counts.update(by_reason(line, f"{part}s_restarted_"))
        self._node_restarts.resume_from(line)
        self.nonfinite_updates = int(line.get("nonfinite_updates", 0))
        unnamed = int(line.get("workers_restarted", 0)) - self.workers_restarted
        if unnamed > 0:  # of an earlier version, which gave no reasons
            self.restarts["worker"]["unnamed"] = unnamed
        self.episodes_cut.update(by_reason(line, "episodes_cut_"))
        self.failed = {what: int(line.get(f"failed_{what}s", 0)) for what in FAILED}
        self.written = {what: int(line.get(f"written_{what}s", 0)) for what in SAVED}
        self.ledger.resume_from(by_reason(line, "rows_dropped_"))
        self._again.resume_from(line)
        self._steps_before = int(line.get("env_steps", 0)) + int(line.get("rows_in_flight", 0))

    def settle_restart(self) -> None:
        """Counts what the shards' snapshots did not hold. Call it once, when every shard has reported its counters."""
        self.ledger.begin(max(0, (self._steps_before or 0) - self.env_steps))
        self._steps_before = None
        self._mark = (time.monotonic(), self._made_steps, self._made_updates, self.version)

    @property
    def env_steps_before(self) -> int:
        """Rows that the run's earlier parts had stored or had on the way; 0 once ``settle_restart`` has settled them."""
        return self._steps_before or 0

    @property
    def workers_restarted(self) -> int:
        """Rollout workers replaced so far."""
        return self.restarts["worker"].total()

    @property
    def progress(self) -> int:
        """How far the run is, in its unit."""
        return self.updates if self.unit == "updates" else self.env_steps

    @property
    def time_s(self) -> float:
        """Wall time of the run, earlier parts included."""
        return time.monotonic() - self._began

    @property
    def recorded(self) -> int:
        """Rows recorded of which it is known whether they are stored or dropped: all but those in flight."""
        return self.env_steps + sum(self.dropped_rows().values())

    def add_shard(self, stats: ShardStats, reports: list[Any], asked_at: float = math.inf) -> None:
        """Takes a shard's counters, asked for at ``asked_at`` (monotonic clock), and the workers' timings that came through it.

        Counters that were asked for before a writer ended do not say what is left of it: they are ignored.
        """
        for report in reports:
            stats_of = dict(report.stats)
            self._parts.add_worker(report.worker, stats_of)
            self._grown.update({name: stats_of.pop(name) for name in _FETCHED if name in stats_of})
            merge_stats(self._window, stats_of)
        if asked_at < self._writer_ended_at:
            return
        self.ledger.add_shard(stats)
        blocked = {"insert_blocked_s": stats.insert_blocked_s, "sample_blocked_s": stats.sample_blocked_s}
        self.add_served(stats.shard, blocked | stats.served)
        self._shards[stats.shard] = stats
        steps = sum(shard.stored_rows for shard in self._shards.values())
        self._made_steps += max(0, steps - self.env_steps)
        self.env_steps = steps

    def add_served(self, process: Any, counts: dict[str, float]) -> None:
        """Takes what a shard or the store counts from its own start. Less than before: it was restarted."""
        before = self._counted.get(process, {})
        for name, now in counts.items():
            then = before.get(name, 0.0)
            self._grown[name] += now - then if now >= then else now  # type: ignore[assignment]
        self._counted[process] = dict(counts)

    def add_waiting(self, shard: int, calls: dict[str, int]) -> None:
        """Takes how many calls wait in a shard."""
        self._waiting[shard] = calls

    def end_writer(self, worker: int, incarnation: int, totals: RowTotals | None, reason: str) -> None:
        """A worker incarnation has ended: what it recorded and is not stored is dropped for ``reason``."""
        self._writer_ended_at = time.monotonic()
        self._parts.forget("worker", worker)
        self.ledger.end((worker, incarnation), totals, reason)

    def observe_learner(self, updates: int, generation: int, version: int) -> None:
        """Takes how far a learner is. One that begins again from a checkpoint: perhaps less than was reported before."""
        self._made_updates += max(0, updates - self.updates)
        self.updates, self.generation, self.version = updates, generation, version

    def add_learner(self, report: Any) -> None:
        """Takes a learner's report (learners.report.LearnerReport)."""
        if "clipped_mass" in report.metrics:
            made = report.updates_per_s * report.wall_s
            self._clipped += made * np.array([report.metrics["clipped_mass"], 1.0])
        self.observe_learner(report.updates, report.generation, report.version)
        self.nonfinite_updates += round(report.metrics.get("nonfinite", 0.0))
        self._losses.update(report.metrics)
        for name in LEARNER_PARTS:
            self._share_s[name] += report.time.get(name, 0.0) * report.wall_s

    def add_usage(self, part: str, index: int, seen: Usage) -> None:
        """Takes what a process of a part said of its memory and CPU time."""
        self._parts.add_usage(part, index, seen)

    def saved(self, what: str, seconds: float = 0.0, size: int = 0) -> None:
        """A checkpoint is complete, or a snapshot of every shard; what it took."""
        self._saves |= {f"{what}_seconds": seconds, f"{what}_bytes": size}
        self.written[what] += 1
        self._saved_at[what] = time.monotonic()

    def count_restart(self, part: str, reason: RestartReason, node: str) -> None:
        """One of RESTARTED_PARTS began again; what failed was on ``node``, "" where it had no place."""
        self.restarts[part][reason] += 1
        self._node_restarts.count(part, reason, node)

    def add_evaluation(self, evaluation: dict[str, Any]) -> None:
        self.evaluation = evaluation

    def line(self) -> dict[str, Any]:
        """One line of metrics.jsonl: totals so far, rates and means since the last line."""
        now, (then, steps, updates, version) = time.monotonic(), self._mark
        self._mark = (now, self._made_steps, self._made_updates, self.version)
        seconds = max(now - then, 1e-9)
        window, self._window = self._window, {}
        shards = list(self._shards.values())
        line: dict[str, Any] = {
            "time_s": round(self.time_s, 3),
            "env_steps": self.env_steps,
            "updates": self.updates,
            "env_steps_per_s": (self._made_steps - steps) / seconds,
            "updates_per_s": (self._made_updates - updates) / seconds,
            "rows_recorded": self.recorded,
            "rows_stored": self.env_steps,
            "rows_in_flight": self.ledger.in_flight,
            **{f"rows_dropped_{reason}": count for reason, count in (_NONE_DROPPED | self.dropped_rows()).items()},
            **{f"episodes_cut_{reason}": count for reason, count in self.episodes_cut.items()},
            "rows_duplicate": sum(s.duplicate_rows for s in shards),
            "size_rows": sum(s.size for s in shards),
            "fill": sum(s.size for s in shards) / max(1, sum(s.capacity for s in shards)),
            "workers": self.workers,
            "workers_wanted": self.workers_wanted,
            "workers_pending": self.workers_pending,
            "workers_started": self.workers_started,
            "workers_restarted": self.workers_restarted,
            **{f"{part}s_restarted_{why}": n for part, counts in self.restarts.items() for why, n in counts.items()},
            **{f"restart_budget_left_{part}": left for part, left in self.budget_left.items()},
            "version": self.version,
            "generation": self.generation,
            "blocked_insert_s": self._grown["insert_blocked_s"],
            "blocked_sample_s": self._grown["sample_blocked_s"],
            "nonfinite_updates": self.nonfinite_updates,
            "memory_bytes": self.memory_bytes,
            **{f"failed_{what}s": count for what, count in self.failed.items()},
            **{f"written_{what}s": count for what, count in self.written.items()},
            **{f"{what}_age_s": now - saved_at for what, saved_at in self._saved_at.items()},
            **{f"{what}_every_s": seconds for what, seconds in self.save_every_s.items()},
            **self._saves,
            **{f"shard_stored_rows_{s.shard}": s.stored_rows for s in shards},
            **{f"shard_held_rows_{s.shard}": s.size for s in shards},
            **self._parts.record(self.worker_nodes),
            **self._node_restarts.record(set(self.worker_nodes.values()).union(*self.part_nodes.values())),
        }
        if self.disk_free_bytes is not None:
            line["disk_free_bytes"] = self.disk_free_bytes
        if self.version > version:
            line["publish_interval_s"] = seconds / (self.version - version)
        if self.unit == "updates":
            line |= whole_episodes(shards) | plans(window)
        else:
            line |= {"replay_ratio": self.measured_ratio(), "target_replay_ratio": self.replay_ratio}
            warm = self.env_steps > self.min_size_rows
            recent = self._recent_ratio.take(self._made_steps, self._made_updates, warm)
            line |= {} if recent is None else {"replay_ratio_now": recent}
        line |= {f"hop_{hop}_{what}": self._grown[f"{hop}_{what}"] for hop in HOPS for what in ("calls", "s", "bytes")}
        if self._waiting:
            line |= {
                f"queue_{call}": sum(calls[call] for calls in self._waiting.values()) for call in ("append", "sample")
            }
            line["queue_block"] = self.ready_blocks
        line |= {f"policy_age_{name}": age for name, age in self._age_since().items()}
        line |= ended_episodes(window)
        if window.get("reward_steps"):
            line["reward_mean"] = window["reward_sum"] / window["reward_steps"]
        line |= {name: window.get(name, 0.0) for name in _SECONDS}
        line |= self._learner_time()
        line |= {f"loss_{name}": value for name, value in self._losses.items()}
        return line | self._evaluated() | self._again.record(line)

    def _learner_time(self) -> dict[str, float]:
        """Seconds by part, and the shares of what was reported since the last line; as before where nothing was."""
        spent = {name: self._share_s[name] - self._shares_of[name] for name in LEARNER_PARTS}
        if (total := sum(spent.values())) > 0:
            self._shares = {f"learner_{name}": seconds / total for name, seconds in spent.items()}
            self._shares_of = dict(self._share_s)
        return self._shares | {f"learner_{name}_s": seconds for name, seconds in self._share_s.items()}

    def _evaluated(self) -> dict[str, Any]:
        """The newest evaluation, and what its plans promised."""
        made = self.evaluation
        if not made:
            return {}
        found = {"eval_return_mean": float(np.mean(made["returns"]))}
        found |= {"eval_env_steps": made["env_steps"], "eval_updates": made["updates"]}
        if "normalised_mean" in made:
            found["eval_normalised"] = made["normalised_mean"]
        if made.get("predicted") and made.get("promise_limit") is not None:
            found |= {"eval_promise": float(np.mean(made["predicted"])), "eval_promise_limit": made["promise_limit"]}
        return found

    def measured_ratio(self) -> float:
        """Updates for each env step stored after warm-up, those before the first env step aside; 0 during warm-up."""
        after = self.env_steps - self.min_size_rows
        return max(0, self.updates - self.pretrain_updates) / after if after > 0 else 0.0

    def dropped_rows(self) -> dict[str, int]:
        """Rows that were recorded and are not stored, by reason; see ledger.py."""
        return self.ledger.dropped()

    def policy_age(self) -> dict[str, int]:
        """Versions by which the acting policy was behind the newest one when its rows were stored."""
        return quantiles(self._age_rows())

    def _age_rows(self) -> np.ndarray:
        bins = [shard.age_rows for shard in self._shards.values()]
        return np.sum(bins, axis=0) if bins else np.zeros(1, np.int64)

    def _age_since(self) -> dict[str, int]:
        """``policy_age`` of the rows stored since the last line; as before where there are none."""
        now = self._age_rows()
        new, self._ages = np.maximum(now - self._ages, 0), now
        self._age = quantiles(new) if new.any() else self._age
        return self._age

    def summary(self) -> dict[str, Any]:
        """The counters' part of summary.json."""
        spent = sum(self._share_s.values())
        wall_s = self.time_s
        returns = self.evaluation.get("returns", [])
        return {
            "env_steps": self.env_steps,
            "updates": self.updates,
            "wall_s": wall_s,
            "env_steps_per_s": self.env_steps / wall_s,
            "updates_per_s": self.updates / wall_s,
            "replay_ratio": self.measured_ratio() if self.unit == "env_steps" else None,
            "target_replay_ratio": self.replay_ratio if self.unit == "env_steps" else None,
            "min_size_rows": self.min_size_rows if self.unit == "env_steps" else None,
            "pretrain_updates": self.pretrain_updates,
            "eval_return_mean": float(np.mean(returns)) if returns else None,
            "eval_return_std": float(np.std(returns)) if returns else None,
            "eval_episodes": len(returns),
            "eval_normalised": self.evaluation.get("normalised_mean"),
            "eval_env_steps": self.evaluation.get("env_steps"),
            "rows": {"recorded": self.recorded, "stored": self.env_steps, "dropped": self.dropped_rows()},
            "workers": {"started": self.workers_started, "restarted": self.workers_restarted},
            "restarts": {part: reasons.total() for part, reasons in self.restarts.items()},
            "learner_time": {name: self._share_s[name] / spent if spent else 0.0 for name in LEARNER_PARTS},
            "policy_age_versions": self.policy_age(),
            "policy_version": self.version,
            "clipped_mass": self._clipped[0] / self._clipped[1] if self._clipped[1] else None,
        } | self._whole_episodes()

    def _whole_episodes(self) -> dict[str, int]:
        """How many were gathered by a run that learns from whole ones."""
        gathered = sum(shard.stored_episodes for shard in self._shards.values())
        return {"online_episodes": gathered} if self.unit == "updates" else {}
