"""Settings of the rollout workers and the evaluator."""

from __future__ import annotations

import dataclasses

from replay.option import BUDGET, COUNT, RESERVED, SEED_LIMIT, WIDTH_LIMIT, option, range_problems

NOISE_LIMIT = 100.0  # largest deviation of a planner's action noise: 1 is full force, and actions are clipped there


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """Rollout workers: W processes of E environments each."""

    workers: int = option(
        2,
        "processes",
        "rollout workers, at least one a shard; `drawbridge scale` changes it while the run goes on",
        at_least=1,
        at_most=4_096,
        why="nobody would gather experience, or no machine could hold them",
    )
    envs_per_worker: int = option(
        8,
        "environments",
        "environments a worker steps as one batch",
        at_least=1,
        at_most=WIDTH_LIMIT,
        why="a worker would have nothing to step, or never get round",
    )
    chunk_steps: int = option(
        16,
        "steps",
        "steps of every environment in one message: a message has envs x steps rows",
        at_least=1,
        at_most=1_000_000,
        why="a message would hold nothing, or never be sent",
    )
    random_steps: int = option(
        5_000, "env steps", "uniform random actions first, over all workers (paper: 5,000)", **COUNT
    )
    max_unacked: int = option(
        2,
        "chunks",
        "messages a worker may have on the way before it waits",
        at_least=1,
        at_most=10_000,
        why="a worker could never send, or fill its memory",
    )
    backend: str = option(
        "auto",
        "name",
        "who computes actions: onnx, torch, or auto (compiled code, else onnx where it imports)",
        ("auto", "onnx", "torch"),
    )
    fast_envs: bool = option(
        True, "bool", "batched stepping for the MuJoCo v5 tasks and PointMaze; false: gymnasium's own"
    )
    step_timeout_s: float = option(
        60.0,
        "s",
        "a worker that makes no step of an environment or of a search for a plan for this long is replaced; an inline run whose "
        "environment does not return for this long ends",
        at_least=1,
        why="a healthy worker would be taken for a hung one",
    )
    restart_budget: int = option(
        10,
        "restarts/h",
        "restarts of workers, all together, within any hour; one more halts the run with the first traceback",
        **BUDGET,
    )
    cpus: float = option(0.5, "CPUs", "what one worker reserves on the Ray cluster", **RESERVED)

    def validate(self) -> list[str]:
        """Every value with which no worker could work, with its fix; empty when there is none."""
        return range_problems(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """The evaluator: deterministic policy, fixed seeds, its own process."""

    every_steps: int = option(
        5_000,
        "env steps",
        "between evaluations, in what `steps` counts; a new run is evaluated at its start and at 1/8, 1/4 and 1/2 of it "
        "too; 0: only at the end (paper: 5,000)",
        **COUNT,
    )
    mode: str = option(
        "", "name", "how a policy that plans infers its plan; empty: as its algorithm does by default",
        ("", "prior", "st", "kl", "max"),
    )  # fmt: skip
    episodes: int = option(
        5,
        "episodes",
        "episodes an evaluation (paper: 5)",
        at_least=1,
        at_most=1_000_000,
        why="there would be no return, or no end of episodes",
    )
    final_episodes: int = option(
        10,
        "episodes",
        "episodes of the last evaluation of a run",
        at_least=1,
        at_most=1_000_000,
        why="there would be no return, or no end of episodes",
    )
    seed: int = option(
        10_000,
        "1",
        "start states: episode i is reset with seed + i, the same in every evaluation",
        at_least=0,
        at_most=SEED_LIMIT,
        why="environments take no other seeds",
    )
    max_episode_steps: int = option(
        0,
        "steps",
        "an evaluation cuts its episodes here; 0: at the environment's time limit, or after 10,000 steps where it has none",
        **COUNT,
    )
    timeout_s: float = option(
        600.0,
        "s",
        "an evaluation that takes longer is abandoned and counted",
        at_least=1,
        why="no episode would end in time",
    )

    def validate(self) -> list[str]:
        """Every value with which nothing could be evaluated, with its fix; empty when there is none."""
        return range_problems(self)
