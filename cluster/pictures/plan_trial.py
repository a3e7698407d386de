"""What the newest policy of a run plans in every mode from a few starts, and what came of it.

Letters: E episodes, S ascent steps, P starts, T positions of a path.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from cluster.commands.counter import counted
from cluster.errors import RunError, UsageError
from cluster.graph import RunSpec, make_policy
from cluster.pictures.maze_drawing import check_start
from rollout_workers.maze import Maze, maze_of

if TYPE_CHECKING:
    from algorithms.gac.policy import GACPolicy
    from algorithms.weights import Weights

PRIORS = 6  # plans drawn from the prior at each start
STARTS = 3  # where none is given
JITTER = 0.25  # m, half-width around a cell's centre, as the environment draws its own


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """The plans of one mode, an episode each. Returns in the environment's units."""

    mode: str
    target: float | None  # return asked for
    start_E: np.ndarray  # int64, number of each episode's start
    ascent_SE: np.ndarray  # (S + 1, E) mean return predicted, before and after every step
    variance_SE: np.ndarray  # (S + 1, E) of that prediction
    kl_SE: np.ndarray  # (S + 1, E) nats
    predicted_E: np.ndarray  # of the plan that was acted by
    variance_E: np.ndarray
    kl_E: np.ndarray  # nats
    achieved_E: np.ndarray
    trajectories: tuple[np.ndarray, ...]  # (T, 2) each, m; empty where there is no maze
    reached_E: np.ndarray  # steps made on arrival at the goal, -1: never; empty where there is no maze
    detour_E: np.ndarray  # path length over shortest path of those that arrived, NaN otherwise; empty without a maze


def planning_policy(spec: RunSpec) -> GACPolicy:
    """The policy of a run that predicts its plans' returns; UsageError for one of another algorithm."""
    from algorithms.gac.policy import GACPolicy

    policy = make_policy(spec)
    if not isinstance(policy, GACPolicy):
        raise UsageError(
            f"{spec.run_dir} is a run of {spec.config.algorithm}, which infers no plans and predicts no returns: there is nothing to "
            "draw; give a run of gac (`drawbridge evaluate` measures every algorithm)"
        )
    return policy


def maze_of_plans(spec: RunSpec) -> Maze | None:
    """The maze that a run's plans lead through; None where the environment is none with one goal."""
    maze = maze_of(spec.config.env)
    return None if maze is None or maze.goal_xy is None else maze


def chosen_starts(spec: RunSpec, maze: Maze | None, start: tuple[float, float] | None, seed: int) -> np.ndarray | None:
    """Starts (P, 2), m: the given one, or some far from the goal and from each other; None where there is no maze."""
    if maze is None:
        if start is not None:
            raise UsageError(
                f"--start was given for {spec.config.env}, expected a maze with one goal: its states hold no position that is known, "
                "so nothing was drawn; leave --start out"
            )
        return None
    if start is not None:
        check_start(maze, start)
        return np.array([start], dtype=np.float64)
    return spread_starts(maze, STARTS) + np.random.default_rng(seed).uniform(-JITTER, JITTER, (STARTS, 2))


def spread_starts(maze: Maze, count: int) -> np.ndarray:
    """Centres (``count``, 2) of cells in which episodes begin, each the farthest by steps from the goal and from those before it."""
    assert maze.goal_cell is not None
    taken = [maze.index_of(maze.goal_cell)]
    for _ in range(count):
        gap_S = maze.steps_KK[maze.start_S][:, taken].min(axis=1)
        taken.append(int(maze.start_S[gap_S.argmax()]))
    return maze.centre_K2[taken[1:]]


def try_modes(
    spec: RunSpec, weights: Weights, maze: Maze | None, starts_P2: np.ndarray | None, seed: int
) -> dict[str, Trial]:
    """Plans of every mode from every start, and the episodes they led to; the prior draws several plans a start.

    Without a maze the starts are those of episodes ``seed``, ``seed`` + 1, ... of an evaluation.
    """
    return {mode: _try(spec, weights, maze, starts_P2, mode, seed) for mode in ("prior", "st", "kl", "max")}


def best_return(weights: Weights) -> float:
    """The highest return among those that the predictor was trained on; NaN where it is not known."""
    import torch

    from algorithms.gac.target import decode_nan

    return float(decode_nan(torch.as_tensor(weights.unpack()["return_high"])))


def _try(
    spec: RunSpec, weights: Weights, maze: Maze | None, starts_P2: np.ndarray | None, mode: str, seed: int
) -> Trial:
    from algorithms.interface import PlanRequest
    from rollout_workers.envs import GivenStarts, make_seeded_env
    from rollout_workers.evaluator import Evaluator

    starts = STARTS if starts_P2 is None else len(starts_P2)
    start_E = np.repeat(np.arange(starts), PRIORS if mode == "prior" and maze is not None else 1)
    policy = planning_policy(spec)
    evaluator = Evaluator(
        spec.config.env,
        policy,
        timeout_s=spec.config.evaluation.timeout_s,
        make_env=make_seeded_env if starts_P2 is None else lambda env_id, *_: GivenStarts(env_id, starts_P2[start_E]),
    )
    with counted(f"acting by plans of mode {mode}", len(start_E), part=True):
        found = evaluator.evaluate(weights, len(start_E), seed, PlanRequest(mode=mode), record_paths=maze is not None)
    if found.errors:
        raise RunError(f"{spec.run_dir}: not every episode in mode {mode} could be finished: {found.errors[0]}")
    assert policy.inferred is not None
    inferred, arrived_E = policy.inferred, np.array(found.reached) >= 0
    with np.errstate(divide="ignore", invalid="ignore"):
        detour_E = np.array(found.path_length) / np.array(found.shortest_path)
    return Trial(
        mode=mode,
        target=found.target,
        start_E=start_E,
        ascent_SE=inferred.trace.predicted_SK.numpy(),
        variance_SE=inferred.trace.variance_SK.numpy(),
        kl_SE=inferred.trace.kl_SK.numpy(),
        predicted_E=inferred.predicted_K.numpy(),
        variance_E=inferred.variance_K.numpy(),
        kl_E=inferred.kl_K.numpy(),
        achieved_E=np.array(found.returns),
        trajectories=tuple(np.array(path) for path in found.paths),
        reached_E=np.array(found.reached, dtype=np.int64),
        detour_E=np.where(arrived_E & np.isfinite(detour_E), detour_E, np.nan) if found.reached else detour_E,
    )
