"""Settings of the replay service."""

from __future__ import annotations

import dataclasses

from replay.option import option


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """One table of transitions, spread over ``shards`` processes. Counts are totals over all shards."""

    shards: int = option(1, "processes", "replay shards; workers deal chunks to them in turn")
    capacity_rows: int = option(1_000_000, "rows", "transitions kept over all shards; the oldest are overwritten (paper: 1e6)")
    min_size_rows: int = option(5_000, "rows", "rows stored before the first update (paper: 5,000 random steps)")
    replay_ratio: float = option(2.0, "updates/env step", "updates a learner makes for each stored env step (paper: UTD 2)")
    tolerance_rows: int = option(0, "rows", "how far, in env steps, either side may run ahead; 0: the least that is feasible")
    recent_fraction: float = option(0.2, "1", "share of each batch drawn uniformly from the newest rows (paper: 0.2)")
    recent_rows: int = option(4_096, "rows", "how many of the newest rows that share is drawn from (paper: 4,096)")
    n_step: int = option(1, "steps", "rewards summed before bootstrapping; shorter at episode ends (paper: 1)")
    snapshot_s: float = option(300.0, "s", "time between two snapshots of a shard; what a killed shard can lose")
    snapshots_kept: int = option(2, "snapshots", "newest valid snapshots kept on disk")
