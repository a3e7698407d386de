"""Settings of the learners."""

from __future__ import annotations

import dataclasses

from replay.option import option


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """L learner processes that share one update (data-parallel: each takes batch_size / L rows)."""

    learners: int = option(1, "processes", "learner processes; each takes batch_size / learners rows of every batch")
    batch_size: int = option(256, "rows", "rows of one update over all learners (paper: 256)")
    updates_per_call: int = option(16, "updates", "updates between two looks at the outside world: one block of batches")
    prefetch_blocks: int = option(2, "blocks", "blocks fetched ahead of the learner")
    publish_updates: int = option(64, "updates", "updates between two publications of weights")
    checkpoint_s: float = option(120.0, "s", "time between two checkpoints; what a killed learner can lose")
    checkpoints_kept: int = option(3, "checkpoints", "newest valid checkpoints kept on disk")
    nonfinite_skips: int = option(10, "updates", "non-finite updates skipped in a row before rolling back to a checkpoint")
    rollbacks: int = option(2, "rollbacks", "rollbacks without progress between them before the run halts")
    restart_budget: int = option(3, "restarts", "restarts of learners before the run halts with the first traceback")
    device: str = option("auto", "name", "cpu, cuda, or auto (cuda where there is one)", ("cpu", "cuda", "auto"))
    cuda_graph: bool = option(True, "bool", "on CUDA: capture one update as a graph and replay it")
    threads: int = option(1, "threads", "torch threads of a learner process on the CPU")
    cpus: float = option(0.5, "CPUs", "what one learner reserves on the Ray cluster")
    gpus: float = option(0.0, "GPUs", "what one learner reserves on the Ray cluster")
