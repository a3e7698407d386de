"""What a learner says of itself. Without torch, because the driver, which reads it, has none."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnerReport:
    """What a learner did since its last report."""

    updates: int  # made over the run, skipped ones included; a rollback does not take them back
    env_steps: int  # rows the shards had accepted when they gave the newest blocks
    generation: int
    version: int  # newest published
    metrics: dict[str, float]  # finite means over the blocks since the last report; of ``nonfinite`` the sum
    nonfinite: int  # non-finite updates over the run
    rollbacks: int  # over this process's life
    updates_per_s: float  # wall clock
    wall_s: float  # since the last report
    time: dict[str, float]  # shares of wall time: data_wait, update, publish, other
