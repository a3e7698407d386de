"""Settings of the learners."""

from __future__ import annotations

import dataclasses

from replay.option import BUDGET, RESERVED, option, range_problems


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """L learner processes that share one update (data-parallel: each takes batch_size / L rows)."""

    learners: int = option(
        1,
        "processes",
        "learner processes; each takes batch_size / learners rows of every batch",
        at_least=1,
        at_most=4_096,
        why="nobody would make updates",
    )
    batch_size: int = option(
        256,
        "rows",
        "rows of one update over all learners (paper: 256)",
        at_least=1,
        at_most=100_000_000,
        why="an update needs rows",
    )
    updates_per_call: int = option(
        16,
        "updates",
        "updates between two looks at the outside world: one block of batches",
        at_least=1,
        at_most=1_000_000,
        why="a block needs a batch",
    )
    prefetch_blocks: int = option(
        2,
        "blocks",
        "blocks fetched ahead of the learner",
        at_least=1,
        at_most=10_000,
        why="the learner would wait for every block",
    )
    publish_updates: int = option(
        64,
        "updates",
        "updates between two publications of weights",
        at_least=1,
        why="workers would act with the first weights for ever",
    )
    checkpoint_s: float = option(
        120.0,
        "s",
        "time between two checkpoints; what a killed learner can lose",
        above=0,
        why="nothing but checkpoints would be written",
    )
    checkpoints_kept: int = option(
        3,
        "checkpoints",
        "newest valid checkpoints kept on disk",
        at_least=1,
        why="there would be nothing to resume from",
    )
    nonfinite_skips: int = option(
        10,
        "updates",
        "non-finite updates skipped in a row before rolling back to a checkpoint",
        at_least=1,
        why="a learner that is never allowed a skip would roll back for nothing",
    )
    rollbacks: int = option(
        2,
        "rollbacks",
        "rollbacks without progress between them before the run halts",
        at_least=0,
        why="a count cannot be negative; 0 halts at once instead of rolling back",
    )
    restart_budget: int = option(
        3,
        "restarts/h",
        "restarts of learners within any hour; one more halts the run with the first traceback",
        **BUDGET,
    )
    device: str = option(
        "auto",
        "name",
        "cpu, cuda, or auto: cuda where there is one, and of several learners on Ray each reserves its own",
        ("cpu", "cuda", "auto"),
    )
    cuda_graph: bool = option(True, "bool", "on CUDA: capture one update as a graph and replay it")
    threads: int = option(
        1,
        "threads",
        "torch threads of a learner process on the CPU",
        at_least=1,
        at_most=1_024,
        why="torch needs a thread, and no machine has more",
    )
    cpus: float = option(0.5, "CPUs", "what one learner reserves on the Ray cluster", **RESERVED)
    gpus: float = option(
        0.0,
        "GPUs",
        "what one learner reserves on the Ray cluster",
        at_least=0,
        at_most=1_024,
        why="no machine could reserve it",
    )

    def validate(self) -> list[str]:
        """Every inconsistent value with its fix, one line each; empty when a learner can start."""
        found = range_problems(self)
        if self.learners >= 1 and self.batch_size % self.learners:
            below = self.batch_size - self.batch_size % self.learners
            found.append(
                f"batch_size {self.batch_size} cannot be split among {self.learners} learners in equal parts: set it to "
                f"{below + self.learners}{f' or {below}' if below else ''}"
            )
        return found
