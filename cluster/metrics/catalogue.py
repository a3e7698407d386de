"""Every quantity that a run reports: the keys of metrics records, the Prometheus series made of them, units, charts.

docs/metrics.md is this list for people; tests hold it, the records of real runs and the dashboard to it. No series is of
a single worker: a fleet of thousands would be thousands of series, most of them dead.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Literal, get_args

from cluster.metrics.metric import Line, Metric, plain

AGENT_PREFIX = "loss_"  # of the keys that an agent's update reports
ALARM_PREFIX = "alarm_"  # of the keys that say which alarms sound
AGAIN_PREFIX = "again_"  # of the keys that say by how much a count fell

FACTS = Metric(
    series="run_info", kind="gauge", unit="1", labels=("state", "algorithm", "env", "user", "commit"), facts=True,
    keys={},
    help="always 1; state is starting, running, finishing, ended or failed, commit that of the tree the run was started from",
)  # fmt: skip
PROGRESS = (
    FACTS,
    plain(
        "gauge", "run_start_time_seconds", "s since 1970", "started_at",
        "when this process of the run was started; a resume is another one",
    ),
    plain(
        "gauge", "run_ended", "-1, 0 or 1", "ended",
        "1 once the run has ended in order, -1 once it has failed; a run that is gone and whose last value is 0 was killed",
    ),
    plain("counter", "env_steps", "env steps", "env_steps", "environment steps stored since the run began", resumed=True),
    plain("counter", "updates", "updates", "updates", "gradient updates of the learner", resumed=True),
    plain("gauge", "", "env steps/s", "env_steps_per_s", "since the previous record", chart="Environment steps"),
    plain("gauge", "", "updates/s", "updates_per_s", "since the previous record", chart="Updates"),
    plain("counter", "episodes", "episodes", "episodes", "exploring episodes that ended", window=True),
    plain("gauge", "run_seconds", "s", "time_s", "wall time since the run began", resumed=True),
    plain("gauge", "last_line_timestamp_seconds", "s since 1970", "heard_at", "time of the newest metrics record; an old one means a stall"),
    plain("gauge", "memory_bytes", "bytes", "memory_bytes", "memory of the run's processes", chart="Memory"),
    Metric(
        series="part_memory_bytes", kind="gauge", unit="bytes", labels=("part",), keys={"rss_bytes_*": ("*",)},
        help="resident memory by part, as its processes say: driver, worker, learner, shard, store, evaluator (as of its newest "
        "evaluation); inline all are the driver",
    ),
    Metric(
        series="part_object_store_bytes", kind="gauge", unit="bytes", labels=("part",), keys={"shm_bytes_*": ("*",)},
        help="of that memory, pages of Ray's object store by part: each process counts those that it has touched, and all share them",
    ),
    Metric(
        series="part_gpu_memory_bytes", kind="gauge", unit="bytes", labels=("part",), keys={"gpu_bytes_*": ("*",)},
        help="GPU memory that torch holds for each part that computes on a GPU; no value without one",
    ),
    Metric(
        series="part_gpu_utilization", kind="gauge", unit="0 to 1", labels=("part",), keys={"gpu_busy_*": ("*",)},
        help="share of the last second or less in which the devices of each part that computes on a GPU were busy, for whomever: the mean "
        "over its processes; no value without one",
    ),
    Metric(
        series="part_cpu_seconds", kind="counter", unit="s", labels=("part",), keys={"cpu_s_*": ("*",)},
        help="CPU time by part, of all its processes since the run was started or resumed",
    ),
    Metric(
        series="", kind="counter", unit="the count's own", labels=("count",), resumed=True, keys={f"{AGAIN_PREFIX}*": ("*",)},
        help="by how much a count of the run fell so far, as parts began again from what they had saved: exported counters are higher by it",
    ),
    plain("gauge", "disk_free_bytes", "bytes", "disk_free_bytes", "free on the file system of the run directory"),
    Metric(
        series="failed_writes", kind="counter", unit="writes", labels=("what",), resumed=True,
        keys={"failed_checkpoints": ("checkpoint",), "failed_snapshots": ("snapshot",), "failed_reports": ("report",)},
        help="failed writes to the run directory, by what: checkpoint, snapshot (of one shard), report (records, live.json, events)",
    ),
    Metric(
        series="", kind="counter", unit="writes", labels=("what",), resumed=True,
        keys={"written_checkpoints": ("checkpoint",), "written_snapshots": ("snapshot",)},
        help="complete checkpoints, and times that every shard wrote a snapshot",
    ),
    Metric(
        series="save_age_seconds", kind="gauge", unit="s", labels=("what",),
        keys={"checkpoint_age_s": ("checkpoint",), "snapshot_age_s": ("snapshot",)},
        help="time since the newest complete checkpoint, and since every shard wrote a snapshot; since the start before the first",
    ),
    Metric(
        series="save_seconds", kind="gauge", unit="s", labels=("what",),
        keys={"checkpoint_seconds": ("checkpoint",), "snapshot_seconds": ("snapshot",)},
        help="time that the newest checkpoint took, and the newest snapshots (of the slowest shard)",
    ),
    Metric(
        series="save_bytes", kind="gauge", unit="bytes", labels=("what",),
        keys={"checkpoint_bytes": ("checkpoint",), "snapshot_bytes": ("snapshot",)},
        help="size on disk of the newest checkpoint, and of the newest snapshots (all shards)",
    ),
    Metric(
        series="save_interval_seconds", kind="gauge", unit="s", labels=("what",),
        keys={"checkpoint_every_s": ("checkpoint",), "snapshot_every_s": ("snapshot",)},
        help="time between two checkpoints, and between two snapshots, as configured",
    ),
    Metric(
        series="alarm", kind="gauge", unit="0 or 1", labels=("alarm",), keys={f"{ALARM_PREFIX}*": ("*",)},
        help="1 while an alarm sounds: slow_workers, clipping, collapse, plan_return, promise, exploration; the console and `drawbridge status` have "
        "their words",
    ),
)  # fmt: skip
DROP_REASONS = (  # exported from 0, so that a first loss shows as an increase; rejected chunks have reasons of their own
    "nonfinite_observation", "nonfinite_reward", "rest_of_episode", "worker_lost", "shard_restart", "restart", "stopped", "run_complete",
)  # fmt: skip
REPLAY = (
    Metric(
        series="rows", kind="counter", unit="rows", labels=("outcome", "reason"), resumed=True,
        keys={
            "rows_recorded": ("recorded", ""), "rows_stored": ("stored", ""), "rows_duplicate": ("duplicate", ""),
            "rows_recounted": ("recounted", ""), "rows_dropped_*": ("dropped", "*"),
        },
        help="transitions by outcome: recorded = stored + dropped (by reason) - recounted, without rows in flight; recounted ones have two "
        "outcomes, as those that were stored and lost later; a duplicate was sent again and not stored again",
    ),
    plain(
        "gauge", "rows_in_flight", "rows", "rows_in_flight",
        "transitions that workers have made and no shard has acknowledged yet: not among the recorded ones until then",
    ),
    Metric(
        series="shard_rows", kind="counter", unit="rows", labels=("shard",), resumed=True, keys={"shard_stored_rows_*": ("*",)},
        help="transitions stored, by shard",
    ),
    Metric(
        series="shard_held_rows", kind="gauge", unit="rows", labels=("shard",), keys={"shard_held_rows_*": ("*",)},
        help="transitions held, by shard",
    ),
    plain("gauge", "replay_rows", "rows", "size_rows", "transitions held by all shards"),
    plain("gauge", "replay_fill_ratio", "0 to 1", "fill", "share of the replay capacity in use", chart="Replay fill"),
    plain(
        "gauge", "", "updates/env step", "replay_ratio", "updates made for each env step after warm-up, of the whole run", chart="Replay ratio",
    ),
    plain(
        "gauge", "replay_ratio", "updates/env step", "replay_ratio_now",
        "updates made for each of the newest env steps after warm-up: of 1,000 or a few more, or of 20 times what the limiter tolerates",
    ),
    plain("gauge", "replay_ratio_target", "updates/env step", "target_replay_ratio", "the replay ratio the limiter holds"),
    Metric(
        series="blocked_seconds", kind="counter", unit="s", labels=("side",),
        keys={"blocked_insert_s": ("insert",), "blocked_sample_s": ("sample",)},
        help="time that the limiter made one side wait: insert (workers are ahead) or sample (the learner is ahead)",
    ),
)  # fmt: skip
HOPS = ("append", "sample", "publish", "fetch")
HOP_HELP = (
    "by hop: append (a shard stores a chunk), sample (a shard draws a block), publish (the store takes weights), fetch (a worker waits for "
    "them)"
)
TRAFFIC = (
    Metric(
        series="hop_seconds", kind="counter", unit="s", labels=("hop",), keys={f"hop_{hop}_s": (hop,) for hop in HOPS},
        help=f"time that it takes, {HOP_HELP}",
    ),
    Metric(
        series="hop_bytes", kind="counter", unit="bytes", labels=("hop",), keys={f"hop_{hop}_bytes": (hop,) for hop in HOPS},
        help=f"rows and weights moved, {HOP_HELP}",
    ),
    Metric(
        series="hop_calls", kind="counter", unit="calls", labels=("hop",), keys={f"hop_{hop}_calls": (hop,) for hop in HOPS},
        help=f"calls, {HOP_HELP}",
    ),
    Metric(
        series="queue_length", kind="gauge", unit="calls or blocks", labels=("queue",),
        keys={f"queue_{queue}": (queue,) for queue in ("append", "sample", "block")},
        help="what waits now: append and sample (calls that shards hold back), block (blocks that are ready for the learner); on Ray alone",
    ),
)  # fmt: skip
RestartReason = Literal["raised", "died", "hung", "node_lost", "no_place"]
RESTART_REASONS: tuple[RestartReason, ...] = get_args(RestartReason)
NODE_REASONS = tuple(why for why in RESTART_REASONS if why != "no_place")  # of what was on a node
BUDGETED_PARTS = ("worker", "learner", "shard")  # of which so many restarts an hour are free
RESTARTED_PARTS = (*BUDGETED_PARTS, "store", "evaluator")
LEARNER_PARTS = ("data_wait", "update", "publish", "other")  # of its time
ROLLOUT = (
    Metric(
        series="workers", kind="gauge", unit="processes", labels=("state",),
        keys={"workers": ("running",), "workers_wanted": ("wanted",), "workers_pending": ("pending",)},
        help="rollout workers by state: wanted (by the run now; none once its shards are full), running (the process is up), pending "
        "(asked for; waits for CPUs or is starting)",
    ),
    Metric(
        series="worker_env_steps_per_second", kind="gauge", unit="env steps/s", labels=("stat",),
        keys={f"worker_steps_per_s_{stat}": (stat,) for stat in ("min", "p50", "max")},
        help="env steps a second of single workers over the last 30 s: of the slowest, the median and the fastest",
    ),
    plain("gauge", "", "text", "slowest_workers", "the slowest workers by name, with their env steps a second"),
    Metric(
        series="node_workers", kind="gauge", unit="processes", labels=("node",), keys={"node_workers_*": ("*",)},
        help="workers that run, by the address of their node",
    ),
    Metric(
        series="node_env_steps_per_second", kind="gauge", unit="env steps/s", labels=("node",), keys={"node_steps_per_s_*": ("*",)},
        help="env steps a second of all workers on a node over the last 30 s",
    ),
    Metric(
        series="restart_budget_left", kind="gauge", unit="restarts", labels=("part",),
        keys={f"restart_budget_left_{part}": (part,) for part in BUDGETED_PARTS},
        help="restarts left within the hour before the next failure halts the run, by part: worker (all together), learner (all together), "
        "shard (of the one with the fewest left)",
    ),
    plain("counter", "", "processes", "workers_started", "worker slots started", resumed=True),
    plain("counter", "", "restarts", "workers_restarted", "rollout workers replaced, for any reason", resumed=True),
    Metric(
        series="restarts", kind="counter", unit="restarts", labels=("part", "reason"), resumed=True,
        keys={f"{part}s_restarted_*": (part, "*") for part in RESTARTED_PARTS},
        help="restarts by part (worker, learner: all ranks together, shard, store of weights, evaluator) and reason: raised (its code "
        "raised), died (its process is gone), hung (it did not answer), node_lost (with its node), no_place (nothing was free for it)",
    ),
    Metric(
        series="node_restarts", kind="counter", unit="restarts", labels=("part", "reason", "node"), resumed=True,
        keys={f"node_restarts_{part}_{why}_*": (part, why, "*") for part in RESTARTED_PARTS for why in NODE_REASONS},
        help="the same, by the address of the node on which the failed part ran; nodes beyond 64 count as other",
    ),
    Metric(
        series="", kind="counter", unit="episodes", labels=("reason",), resumed=True, keys={"episodes_cut_*": ("*",)},
        help="running episodes that the driver ended on an inline resume",
    ),
    Metric(
        series="rollout_seconds", kind="counter", unit="s", labels=("part",), window=True,
        keys={
            "env_s": ("env",), "act_s": ("act",), "plan_s": ("plan",), "record_s": ("record",), "push_wait_s": ("push_wait",),
        },
        help="time of all workers by part: env (stepping), act (the policy), plan (planning at the start of episodes), record, "
        "push_wait (waiting for a shard)",
    ),
    Metric(
        series="episode_return", kind="gauge", unit="sum of rewards", labels=("stat",),
        keys={"return_mean": ("mean",), "return_min": ("min",), "return_max": ("max",)},
        charts={"return_mean": "Training return"},
        help="return of the exploring episodes that ended since the previous record: mean, min, max",
    ),
    Metric(
        series="episode_length_steps", kind="gauge", unit="env steps", labels=("stat",), keys={"length_mean": ("mean",)},
        charts={"length_mean": "Episode length"},
        help="length of the exploring episodes that ended since the previous record: mean",
    ),
    plain("gauge", "", "reward", "reward_mean", "mean reward of a step since the previous record"),
)  # fmt: skip
EPISODES = (
    plain(
        "gauge", "stage", "stages", "stage",
        "online stage whose episodes are being gathered or were gathered last, of the slowest shard; 0 before the first",
    ),
    plain(
        "counter", "online_episodes", "episodes", "online_episodes", "complete episodes of workers that shards stored", resumed=True,
    ),
    Metric(
        series="held_episodes", kind="gauge", unit="episodes", labels=("origin",),
        keys={"held_dataset_episodes": ("dataset",), "held_online_episodes": ("online",)},
        help="episodes held by all shards, by origin",
    ),
    Metric(
        series="episode_rows", kind="counter", unit="rows", labels=("outcome", "reason"), resumed=True,
        keys={"episode_rows": ("complete", ""), "lost_rows_*": ("lost", "*")},
        help="stored transitions by the outcome of their episodes: complete, or lost (by reason); those of partial episodes are "
        "in neither",
    ),
    plain("gauge", "", "rows", "open_rows", "stored transitions of partial episodes"),
    plain("counter", "planned_episodes", "episodes", "planned_episodes", "episodes that began with a plan", window=True),
    Metric(
        series="plan_return", kind="gauge", unit="sum of rewards", labels=("stat",),
        keys={
            "plan_target_mean": ("target",), "plan_predicted_mean": ("predicted",), "plan_predicted_std": ("predicted_std",),
        },
        help="return of the plans made since the previous record, before they are acted out: mean target, mean prediction, the "
        "model's standard deviation; compare episode_return",
    ),
)  # fmt: skip
LEARNER = (
    plain("gauge", "policy_version", "versions", "version", "newest published policy", resumed=True),
    plain("gauge", "policy_generation", "generations", "generation", "grows by one with each restart of the learner", resumed=True),
    Metric(
        series="policy_age_versions", kind="gauge", unit="versions", labels=("quantile",),
        keys={"policy_age_p50": ("0.5",), "policy_age_p95": ("0.95",)},
        charts={"policy_age_p95": "Policy age, 95th percentile"},
        help="how far behind the newest policy the acting one was when its rows were stored, of the rows since the previous record: "
        "median and 95th percentile",
    ),
    plain("gauge", "publish_interval_seconds", "s", "publish_interval_s", "time between two publications of weights"),
    Metric(
        series="learner_seconds", kind="counter", unit="s", labels=("part",),
        keys={f"learner_{part}_s": (part,) for part in LEARNER_PARTS},
        help="time of the first learner by part: data_wait, update, publish, other",
    ),
    Metric(
        series="", kind="gauge", unit="0 to 1", labels=("part",), keys={f"learner_{part}": (part,) for part in LEARNER_PARTS},
        charts={"learner_data_wait": "Learner waits for data"},
        help="share of that time since the previous record",
    ),
    plain(
        "counter", "nonfinite_updates", "updates", "nonfinite_updates", resumed=True,
        help="updates that were skipped because their loss or gradient was not finite",
    ),
    Metric(
        series="learning", kind="gauge", unit="the metric's own", labels=("metric",), keys={f"{AGENT_PREFIX}*": ("*",)},
        help="what the agent reports of its updates: critic_loss, actor_loss, alpha, control_energy, q_mean, clipped_mass, ...; "
        "of GAC elbo, action_nll, return_nll, return_error, kl_total, kl_token, active_dims, collapse, ...",
    ),
    Metric(
        series="evaluation_promise", kind="gauge", unit="sum of rewards", labels=("stat",),
        keys={"eval_promise": ("mean",), "eval_promise_limit": ("limit",)},
        help="what the plans of the last evaluation promised on average, and the promise beyond which an alarm sounds",
    ),
    plain(
        "gauge", "evaluation_return", "sum of rewards", "eval_return_mean",
        "mean return of the deterministic policy in the last evaluation",
    ),
    plain("gauge", "evaluation_env_steps", "env steps", "eval_env_steps", "env steps at that evaluation"),
    plain("gauge", "", "updates", "eval_updates", "updates at that evaluation"),
    plain(
        "gauge", "", "%", "eval_normalised",
        "mean return of that evaluation where the dataset's random policy has 0 and its expert 100",
    ),
)  # fmt: skip
CATALOGUE = PROGRESS + REPLAY + TRAFFIC + ROLLOUT + EPISODES + LEARNER
METRICS = tuple(metric for metric in CATALOGUE if metric.series)  # those that Prometheus sees
WINDOW_SUMS = tuple(key for metric in CATALOGUE if metric.window for key in metric.keys)

CLIPPED_LIMIT = 0.05  # of the share of target mass that is clipped: above it a run warns


@functools.lru_cache(maxsize=4096)  # readers of a run ask for every key of every record
def find_metric(key: str) -> Metric | None:
    """The quantity that a record holds under ``key``; None for a key that no run writes."""
    return next((metric for metric in CATALOGUE if metric.match(key) is not None), None)


def is_resumed(key: str) -> bool:
    """Whether a resumed run continues from the value under ``key``."""
    metric = find_metric(key)
    return metric is not None and metric.resumed


def is_counter(key: str) -> bool:
    """Whether records hold under ``key`` a count over the run, not one over a window."""
    metric = find_metric(key)
    return metric is not None and metric.kind == "counter" and not metric.window


def by_reason(line: Line, prefix: str) -> dict[str, int]:
    """{reason: count} of the keys of a record that begin with ``prefix``."""
    return {key.removeprefix(prefix): int(count) for key, count in line.items() if key.startswith(prefix)}


def restarts(line: Line) -> dict[str, int]:
    """{part: how often one of it began again, for any reason}; older records have no reasons, but the sum of the rollout workers."""
    counts = {part: sum(by_reason(line, f"{part}s_restarted_").values()) for part in RESTARTED_PARTS}
    return counts | {"worker": max(counts["worker"], int(line.get("workers_restarted", 0)))}


def agent_metrics(keys: Iterable[str]) -> dict[str, str]:
    """Keys of a record that come from the agent's update, by the agent's own name: {"alpha": "loss_alpha"}."""
    return {key.removeprefix(AGENT_PREFIX): key for key in keys if key.startswith(AGENT_PREFIX)}


def charts() -> dict[str, tuple[str, str]]:
    """{key: (title, unit)} of the report's charts of the run itself; wording.AGENT_CHARTS has those of the agent."""
    return {key: (title, metric.unit) for metric in CATALOGUE for key, title in metric.charts.items()}
