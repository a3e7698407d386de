"""Settings of the rollout workers and the evaluator."""

from __future__ import annotations

import dataclasses

from replay.option import option


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """Rollout workers: W processes of E environments each."""

    workers: int = option(2, "processes", "rollout workers; `drawbridge scale` changes it while the run goes on")
    envs_per_worker: int = option(8, "environments", "environments a worker steps as one batch")
    chunk_steps: int = option(16, "steps", "steps of every environment in one message: a message has envs x steps rows")
    random_steps: int = option(5_000, "env steps", "uniform random actions first, over all workers (paper: 5,000)")
    max_unacked: int = option(2, "chunks", "messages a worker may have on the way before it waits")
    backend: str = option("auto", "name", "who computes actions: onnx, torch, or auto (onnx where it imports)", ("auto", "onnx", "torch"))
    fast_envs: bool = option(True, "bool", "batched stepping for the MuJoCo v5 tasks and PointMaze; false: gymnasium's own")
    step_timeout_s: float = option(60.0, "s", "a worker silent for this long while not waiting is replaced")
    restart_budget: int = option(10, "restarts", "restarts of workers before the run halts with the first traceback")
    cpus: float = option(0.5, "CPUs", "what one worker reserves on the Ray cluster")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """The evaluator: deterministic policy, fixed seeds, its own process."""

    every_steps: int = option(5_000, "env steps", "env steps between evaluations; 0: only at the end (paper: 5,000)")
    episodes: int = option(5, "episodes", "episodes an evaluation (paper: 5)")
    final_episodes: int = option(10, "episodes", "episodes of the last evaluation of a run")
    seed: int = option(10_000, "1", "start states: episode i is reset with seed + i, the same in every evaluation")
    timeout_s: float = option(600.0, "s", "an evaluation that takes longer is given up and counted")
