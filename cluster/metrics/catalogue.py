"""Every Prometheus series of a run: its name, its unit, and where in a metrics line its values come from.

docs/metrics.md is this list for people, and a test holds the two together. No series is of a single worker: a
fleet of thousands would be thousands of series, most of them dead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from cluster.history import agent_metrics

Line = Mapping[str, Any]
Readings = Iterable[tuple[tuple[str, ...], float]]  # (values of the series' own labels, value)
WINDOW_SUMS = (
    "episodes",
    "planned_episodes",
    "env_s",
    "act_s",
    "plan_s",
    "record_s",
    "push_wait_s",
)  # of one window: counters add them up


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
    """One metric. ``labels`` stand beside run, role and shard, which every metric has."""

    name: str  # without the prefix drawbridge_ and the suffix _total of counters
    kind: Literal["counter", "gauge"]
    unit: str
    meaning: str
    labels: tuple[str, ...] = ()
    read: Callable[[Line], Readings]

    @property
    def full_name(self) -> str:
        return f"drawbridge_{self.name}{'_total' if self.kind == 'counter' else ''}"


def _plain(kind: Literal["counter", "gauge"], name: str, unit: str, key: str, meaning: str) -> Series:
    """A series without labels of its own, read from one key."""
    return Series(
        name=name, kind=kind, unit=unit, meaning=meaning, read=lambda line: [((), line[key])] if key in line else []
    )


def _labelled(
    kind: Literal["counter", "gauge"], name: str, unit: str, label: str, keys: dict[str, str], meaning: str
) -> Series:
    """A series with one label, whose values come from one key each: {key: label's value}."""

    def read(line: Line) -> Readings:
        return [((value,), line[key]) for key, value in keys.items() if key in line]

    return Series(name=name, kind=kind, unit=unit, meaning=meaning, labels=(label,), read=read)


def _rows(line: Line) -> Readings:
    for outcome in ("recorded", "stored", "duplicate"):
        if f"rows_{outcome}" in line:
            yield (outcome, ""), line[f"rows_{outcome}"]
    for key, value in line.items():
        if key.startswith("rows_dropped_"):
            yield ("dropped", key.removeprefix("rows_dropped_")), value


def _episode_rows(line: Line) -> Readings:
    if "episode_rows" in line:
        yield ("whole", ""), line["episode_rows"]
    for key, value in line.items():
        if key.startswith("lost_rows_"):
            yield ("lost", key.removeprefix("lost_rows_")), value


def _restarts(line: Line) -> Readings:
    prefix = "workers_restarted_"
    named = {key.removeprefix(prefix): value for key, value in line.items() if key.startswith(prefix)}
    yield from (((reason,), value) for reason, value in named.items())
    if "workers_restarted" in line:
        yield ("unnamed",), max(0.0, line["workers_restarted"] - sum(named.values()))


def _learning(line: Line) -> Readings:
    return (((name,), line[key]) for name, key in agent_metrics(line).items())


_PROGRESS = (
    _plain("counter", "env_steps", "env steps", "env_steps", "environment steps recorded since the run began"),
    _plain("counter", "updates", "updates", "updates", "gradient updates of the learner"),
    _plain("counter", "episodes", "episodes", "episodes", "episodes that ended while exploring"),
    _plain("gauge", "run_seconds", "s", "time_s", "wall time since the run began"),
    _plain(
        "gauge", "last_line_timestamp_seconds", "s since 1970", "heard_at",
        "when the newest figures were made; an old one means a stall",
    ),
    _plain("gauge", "memory_bytes", "bytes", "memory_bytes", "memory of the run's processes"),
    _labelled(
        "counter", "failed_writes", "writes", "what",
        {"failed_checkpoints": "checkpoint", "failed_snapshots": "snapshot", "failed_reports": "report"},
        "writes to the run directory that failed, by what: checkpoint, snapshot (of one shard), report (lines, live.json, events)",
    ),
    _labelled(
        "gauge", "save_age_seconds", "s", "what", {"checkpoint_age_s": "checkpoint", "snapshot_age_s": "snapshot"},
        "time since the newest complete checkpoint, and since every shard wrote a snapshot; since the start before the first",
    ),
)  # fmt: skip
_REPLAY = (
    Series(
        name="rows", kind="counter", unit="rows", labels=("outcome", "reason"), read=_rows,
        meaning="transitions by what became of them: recorded = stored + dropped (by reason), without rows in flight; a duplicate "
        "was sent again and not stored again",
    ),
    _plain("gauge", "replay_rows", "rows", "size_rows", "transitions held by all shards"),
    _plain("gauge", "replay_fill_ratio", "0 to 1", "fill", "share of the replay capacity in use"),
    _plain("gauge", "replay_ratio", "updates/env step", "replay_ratio", "updates made for each env step after warm-up"),
    _plain(
        "gauge", "replay_ratio_target", "updates/env step", "target_replay_ratio", "the replay ratio the limiter holds"
    ),
    _labelled(
        "counter", "blocked_seconds", "s", "side", {"blocked_insert_s": "insert", "blocked_sample_s": "sample"},
        "time the limiter held back one side: insert (workers are ahead) or sample (the learner is ahead)",
    ),
)  # fmt: skip
_ROLLOUT = (
    _plain("gauge", "workers", "processes", "workers", "rollout workers running"),
    Series(
        name="worker_restarts", kind="counter", unit="restarts", labels=("reason",), read=_restarts,
        meaning="rollout workers replaced, by reason; unnamed where none was given",
    ),
    _labelled(
        "counter", "rollout_seconds", "s", "part", 
        {"env_s": "env", "act_s": "act", "plan_s": "plan", "record_s": "record", "push_wait_s": "push_wait"},
        "time of all workers by part: env (stepping), act (the policy), plan (beginning episodes), record, push_wait "
        "(waiting for a shard)",
    ),
    _labelled(
        "gauge", "episode_return", "sum of rewards", "stat",
        {"return_mean": "mean", "return_min": "min", "return_max": "max"},
        "return of the exploring episodes of the last window: mean, min, max",
    ),
    _labelled(
        "gauge", "episode_length_steps", "env steps", "stat", {"length_mean": "mean"},
        "length of the exploring episodes of the last window: mean",
    ),
)  # fmt: skip
_EPISODES = (
    _plain(
        "gauge", "stage", "stages", "stage",
        "online stage whose episodes are gathered or were gathered last, of the slowest shard; 0 before the first",
    ),
    _plain("counter", "online_episodes", "episodes", "online_episodes", "whole episodes that shards stored of workers"),
    _labelled(
        "gauge", "held_episodes", "episodes", "origin",
        {"held_dataset_episodes": "dataset", "held_online_episodes": "online"},
        "episodes held by all shards, by where they come from",
    ),
    Series(
        name="episode_rows", kind="counter", unit="rows", labels=("outcome", "reason"), read=_episode_rows,
        meaning="stored transitions by what became of their episodes: whole, or lost (by reason); those still open are "
        "in neither",
    ),
    _plain("counter", "planned_episodes", "episodes", "planned_episodes", "episodes that were begun with a plan"),
    _labelled(
        "gauge", "plan_return", "sum of rewards", "stat",
        {"plan_target_mean": "target", "plan_predicted_mean": "predicted", "plan_predicted_std": "predicted_std"},
        "return of the plans of the last window, before they are acted out: mean target, mean prediction, standard "
        "deviation that the model gives it; episode_return is what they brought",
    ),
)  # fmt: skip
_LEARNER = (
    _plain("gauge", "policy_version", "versions", "version", "newest published policy"),
    _plain("gauge", "policy_epoch", "epochs", "epoch", "grows by one with each restart of the learner"),
    _labelled(
        "gauge", "policy_age_versions", "versions", "quantile", {"policy_age_p50": "0.5", "policy_age_p95": "0.95"},
        "how far behind the newest policy the acting one was when its rows were stored: median and 95th percentile",
    ),
    _plain("gauge", "publish_interval_seconds", "s", "publish_interval_s", "time between two publications of weights"),
    _labelled(
        "gauge", "learner_time_ratio", "0 to 1", "part",
        {"learner_data_wait": "data_wait", "learner_update": "update", "learner_publish": "publish"},
        "share of the learner's time in the last window: data_wait, update, publish",
    ),
    Series(
        name="learning", kind="gauge", unit="the metric's own", labels=("metric",), read=_learning,
        meaning="what the agent reports of its updates: critic_loss, actor_loss, alpha, control_energy, q_mean, ...; "
        "of GAC elbo, action_nll, return_nll, return_error, kl_total, kl_token, active_dims, collapse, ...",
    ),
    _plain(
        "gauge", "evaluation_return", "sum of rewards", "eval_return_mean",
        "mean return of the deterministic policy in the last evaluation",
    ),
    _plain("gauge", "evaluation_env_steps", "env steps", "eval_env_steps", "env steps at that evaluation"),
)  # fmt: skip
METRICS = _PROGRESS + _REPLAY + _ROLLOUT + _EPISODES + _LEARNER
