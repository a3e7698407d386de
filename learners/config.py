"""Settings of the learners."""

from __future__ import annotations

import dataclasses

from replay.option import option


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """L learner processes that share one update (data-parallel: each takes batch_size / L rows)."""

    learners: int = option(1, "processes", "learner processes; each takes batch_size / learners rows of every batch")
    batch_size: int = option(256, "rows", "rows of one update over all learners (paper: 256)")
    updates_per_call: int = option(
        16, "updates", "updates between two looks at the outside world: one block of batches"
    )
    prefetch_blocks: int = option(2, "blocks", "blocks fetched ahead of the learner")
    publish_updates: int = option(64, "updates", "updates between two publications of weights")
    checkpoint_s: float = option(120.0, "s", "time between two checkpoints; what a killed learner can lose")
    checkpoints_kept: int = option(3, "checkpoints", "newest valid checkpoints kept on disk")
    nonfinite_skips: int = option(
        10, "updates", "non-finite updates skipped in a row before rolling back to a checkpoint"
    )
    rollbacks: int = option(2, "rollbacks", "rollbacks without progress between them before the run halts")
    restart_budget: int = option(3, "restarts", "restarts of learners before the run halts with the first traceback")
    device: str = option("auto", "name", "cpu, cuda, or auto (cuda where there is one)", ("cpu", "cuda", "auto"))
    cuda_graph: bool = option(True, "bool", "on CUDA: capture one update as a graph and replay it")
    threads: int = option(1, "threads", "torch threads of a learner process on the CPU")
    cpus: float = option(0.5, "CPUs", "what one learner reserves on the Ray cluster")
    gpus: float = option(0.0, "GPUs", "what one learner reserves on the Ray cluster")

    def problems(self) -> list[str]:
        """Every inconsistent value with its fix, one line each; empty when a learner can start."""
        found = [
            f"{name} is {getattr(self, name)}, expected at least {least}: {why}"
            for name, least, why in _LEAST
            if not getattr(self, name) >= least
        ]
        if self.learners >= 1 and self.batch_size % self.learners:
            below = self.batch_size - self.batch_size % self.learners
            found.append(
                f"batch_size {self.batch_size} cannot be dealt to {self.learners} learners in equal parts: set it to "
                f"{below + self.learners}{f' or {below}' if below else ''}"
            )
        for field in dataclasses.fields(self):
            choices = field.metadata["choices"]
            if choices and getattr(self, field.name) not in choices:
                found.append(f"{field.name} is {getattr(self, field.name)!r}, expected one of {', '.join(choices)}")
        return found


_LEAST: tuple[tuple[str, float, str], ...] = (
    ("learners", 1, "nobody would make updates; set learners=1"),
    ("batch_size", 1, "an update needs rows; the paper's is 256"),
    ("updates_per_call", 1, "a block needs a batch; 16 is the default"),
    ("prefetch_blocks", 1, "the learner would wait for every block; set 2"),
    ("publish_updates", 1, "workers would act with the first weights for ever; 64 is the default"),
    ("checkpoint_s", 1e-9, "time between checkpoints must be positive; 120 is the default"),
    ("checkpoints_kept", 1, "there would be nothing to resume from; 3 is the default"),
    ("nonfinite_skips", 1, "a learner that is never allowed a skip would roll back for nothing; 10 is the default"),
    ("rollbacks", 0, "0 halts at once instead of rolling back"),
    ("restart_budget", 0, "0 halts at the first failure"),
    ("threads", 1, "torch needs a thread"),
    ("cpus", 0, "a reservation cannot be negative"),
    ("gpus", 0, "a reservation cannot be negative"),
)
