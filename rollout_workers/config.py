"""Settings of the rollout workers and the evaluator."""

from __future__ import annotations

import dataclasses

from replay.option import option, too_low


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """Rollout workers: W processes of E environments each."""

    workers: int = option(
        2, "processes", "rollout workers, at least one a shard; `drawbridge scale` changes it while the run goes on"
    )
    envs_per_worker: int = option(8, "environments", "environments a worker steps as one batch")
    chunk_steps: int = option(16, "steps", "steps of every environment in one message: a message has envs x steps rows")
    random_steps: int = option(5_000, "env steps", "uniform random actions first, over all workers (paper: 5,000)")
    max_unacked: int = option(2, "chunks", "messages a worker may have on the way before it waits")
    backend: str = option(
        "auto", "name", "who computes actions: onnx, torch, or auto (onnx where it imports)", ("auto", "onnx", "torch")
    )
    fast_envs: bool = option(
        True, "bool", "batched stepping for the MuJoCo v5 tasks and PointMaze; false: gymnasium's own"
    )
    step_timeout_s: float = option(60.0, "s", "a worker silent for this long while not waiting is replaced")
    restart_budget: int = option(10, "restarts", "restarts of workers before the run halts with the first traceback")
    cpus: float = option(0.5, "CPUs", "what one worker reserves on the Ray cluster")

    def problems(self) -> list[str]:
        """Every value with which no worker could work, with its fix; empty when there is none."""
        return too_low(
            self,
            (
                ("workers", 1, "nobody would gather experience"),
                ("envs_per_worker", 1, "a worker would have nothing to step"),
                ("chunk_steps", 1, "a message would hold nothing"),
                ("random_steps", 0, "a count cannot be negative"),
                ("max_unacked", 1, "a worker could never send"),
                ("step_timeout_s", 1, "a healthy worker would be taken for a hung one"),
                ("restart_budget", 0, "a count cannot be negative"),
                ("cpus", 0, "a share cannot be negative"),
            ),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """The evaluator: deterministic policy, fixed seeds, its own process."""

    every_steps: int = option(
        5_000, "env steps", "between evaluations, in what `steps` counts; 0: only at the end (paper: 5,000)"
    )
    mode: str = option(
        "", "name", "how a policy that plans infers its plan; empty: as its algorithm does by default",
        ("", "prior", "st", "kl", "max"),
    )  # fmt: skip
    episodes: int = option(5, "episodes", "episodes an evaluation (paper: 5)")
    final_episodes: int = option(10, "episodes", "episodes of the last evaluation of a run")
    seed: int = option(10_000, "1", "start states: episode i is reset with seed + i, the same in every evaluation")
    timeout_s: float = option(600.0, "s", "an evaluation that takes longer is given up and counted")

    def problems(self) -> list[str]:
        """Every value with which nothing could be evaluated, with its fix; empty when there is none."""
        return too_low(
            self,
            (
                ("every_steps", 0, "a count cannot be negative"),
                ("episodes", 1, "there would be no return"),
                ("final_episodes", 1, "there would be no return"),
                ("seed", 0, "environments take seeds from 0"),
                ("timeout_s", 1, "no episode would end in time"),
            ),
        )
