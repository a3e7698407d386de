"""What the latent plan is worth: what hiding it costs, one plan for all starts, ways against shortest ways.

Letters: E episodes, T steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.gac import TEST
from benchmarks.markdown import over_seeds, table
from benchmarks.trained import Trained, by_data
from cluster.diagnosis import diagnose
from rollout_workers.episodes import EpisodeRuns
from rollout_workers.evaluator import Evaluation
from rollout_workers.maze import REACHED, Maze
from rollout_workers.waypoints import WaypointPlanner

MODES = ("prior", "st", "kl", "max")
SHARES = {  # of recorded actions
    "state_return": "state and return",
    "others": "others' plans",
    "promise": "same promise",
    "own": "own plan",
}
LEAST = 0.5  # m: ways shorter than this have no ratio worth the name


def carried(runs: Sequence[Trained]) -> str:
    """`drawbridge diagnose` of each run: scores, shares of the recorded actions, contents of the plan."""
    rows = []
    for data, group in by_data(runs).items():
        found = [diagnose(run.run_dir, TEST[1], TEST[0]) for run in group]
        scores = [
            over_seeds([one["scores"][name]["normalised_mean"] for one in found])
            for name in ("searched", "one", "hidden", "redrawn", "prior")
        ]
        shares = [over_seeds([one["explained"][name] for one in found], 3) for name in SHARES]
        said = [over_seeds([one["plan"][name] for one in found], 2) for name in ("kl_token", "return_share")]
        rows.append([data, *scores, *shares, *said])
    head = [
        "",
        "searched",
        "one plan",
        "hidden",
        "redrawn",
        "prior",
        *SHARES.values(),
        "nats a token",
        "of it the return",
    ]
    return table(head, rows)


def paths(runs: Sequence[Trained]) -> str:
    """Path length over the shortest way to the goal's edge, of starts more than 0.5 m away; by distance, and references."""
    rows = []
    for data, group in by_data(runs).items():
        for mode in MODES:
            made = [run.run(run.policy(mode), mode, TEST) for run in group]
            rows.append([data, mode, *_path_cells([_ratios(one) for one in made])])
        for name, noise in (("planner", 0.0), ("planner, noise 0.5", 0.5)):
            rows.append([data, name, *_path_cells([planner_ratios(group[0].spec.config.env, group[0].maze, noise)])])
        rows.append([data, "data, first arrival", *_path_cells([data_ratios(group[0])])])
    return table(["", "", "arrived", "median", "mean", "near half", "far half"], rows)


def _path_cells(found: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[str]:
    """``found``: (ratio (E,), NaN where the goal was not reached; shortest (E,)) of each seed."""
    cells = [over_seeds([100 * float(np.isfinite(ratio_E).mean()) for ratio_E, _ in found], 0) + " %"]
    statistics: tuple[Any, ...] = (np.nanmedian, np.nanmean)
    cells += [over_seeds([_of(statistic, ratio_E) for ratio_E, _ in found], 2) for statistic in statistics]
    for near in (True, False):
        halves = [ratio_E[(shortest_E <= np.median(shortest_E)) == near] for ratio_E, shortest_E in found]
        cells.append(over_seeds([_of(np.nanmedian, half_E) for half_E in halves], 2))
    return cells


def _of(statistic: Any, ratio_E: np.ndarray) -> float:
    return float(statistic(ratio_E)) if np.isfinite(ratio_E).any() else float("nan")


def _ratios(made: Evaluation) -> tuple[np.ndarray, np.ndarray]:
    return path_ratios(np.array(made.path_length), np.array(made.shortest_path), np.array(made.reached))


def path_ratios(length_E: np.ndarray, shortest_E: np.ndarray, reached_E: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ratio (NaN: never arrived) and shortest way of the episodes whose way is long enough to have one."""
    far_E = shortest_E > LEAST
    ratio_E = np.where(reached_E[far_E] >= 0, length_E[far_E] / shortest_E[far_E], np.nan)
    return ratio_E, shortest_E[far_E]


def planner_ratios(env_id: str, maze: Maze, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """The waypoint planner's ways to the goal, from the test starts."""
    seeds = [TEST[0] + i for i in range(TEST[1])]
    planner = WaypointPlanner(maze, noise=noise, target=maze.goal_cell)
    streams = [np.random.SeedSequence(seed) for seed in seeds]
    runs = EpisodeRuns(env_id)
    try:
        episodes = [episode for episode in runs.run(planner, seeds, streams) if episode is not None]
    finally:
        runs.close()
    return _walked(maze, [(episode.obs_TO, episode.next_obs_O, episode.reward_T) for episode in episodes])


def data_ratios(run: Trained) -> tuple[np.ndarray, np.ndarray]:
    """The data's own ways to their first arrival at the goal, which was seldom what they went for."""
    episodes = run.dataset.episodes()
    return _walked(run.maze, [(episode.obs_TO, episode.next_obs_O, episode.reward_T) for episode in episodes])


def _walked(maze: Maze, episodes: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    length_E, reached_E = np.zeros(len(episodes)), np.full(len(episodes), -1)
    starts_E2 = np.stack([obs_TO[0, :2] for obs_TO, _, _ in episodes]).astype(np.float64)
    for e, (obs_TO, last_O, reward_T) in enumerate(episodes):
        paid_T = np.flatnonzero(reward_T > 0)
        steps = int(paid_T[0]) + 1 if len(paid_T) else len(reward_T)
        xy_T2 = np.concatenate([obs_TO, last_O[None]])[: steps + 1, :2].astype(np.float64)
        length_E[e] = np.linalg.norm(np.diff(xy_T2, axis=0), axis=1).sum()
        reached_E[e] = steps if len(paid_T) else -1
    shortest_E = np.maximum(maze.shortest_path(starts_E2) - REACHED, 0.0)
    return path_ratios(length_E, shortest_E, reached_E)
