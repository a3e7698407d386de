"""Is the space of plans a map of the maze? Linear probes from plans to places, plans of one episode from another's start, pictures.

Asked of runs on episodes with one target each. EPISODES are walked anew by the planner to random targets, so no plan is of an
episode that was learned; a plan is the mean of its posterior. Letters: K episodes, T steps, B recorded episodes, n d a plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.colors import to_hex

from algorithms.gac.agent import GAC
from algorithms.gac.diagnosis import posteriors
from benchmarks.ablations import act_out, plans, run_all
from benchmarks.gac import TEST
from benchmarks.markdown import over_seeds, table
from benchmarks.trained import Trained, by_data
from cluster.commands.evaluation import newest_learner
from cluster.diagnosis import packed
from cluster.pictures.maze_drawing import INK, draw_maze, draw_start, draw_trajectory, new_figure, save_picture
from replay.stored_episode import StoredEpisode
from rollout_workers.maze import REACHED, Maze
from rollout_workers.waypoints import WaypointPlanner

EPISODES, PROBED = 200, 800  # walked anew; recorded ones that the probe is fitted to
SEEDS = [TEST[0] + i for i in range(EPISODES)]
NOISE = 0.5  # of the planner that made the data
LAST = 50  # steps whose mean is where an episode ends
RIDGE = 1e-2  # of the probe, on z-scores
DRAWN, BETWEEN = 8, 7  # targets of a picture, plans on the straight line between two


class Walks(NamedTuple):
    """Episodes of the planner, each to one random target, and what a run makes of them."""

    agent: GAC
    episodes: list[StoredEpisode]
    start_K: np.ndarray  # int64, free cells
    target_K: np.ndarray
    z_Knd: torch.Tensor  # plans


def cognitive_map(runs: Sequence[Trained], picture: Path) -> str:
    """How well plans tell where a walk ends, and where they lead from starts that are not their own; drawn for the first run of each
    kind of data."""
    rows, groups = [], by_data(runs)
    figure = new_figure(9.2, 4.4 * len(groups))
    axes_D: Any = np.atleast_2d(figure.subplots(len(groups), 2))
    for axes_2, (data, group) in zip(axes_D, groups.items()):
        walks = [walked(run) for run in group]
        found = [asked(run, own) for run, own in zip(group, walks)]
        rows.append([data, *(over_seeds([one[i] for one in found], 2 if i < 3 else 1) for i in range(len(found[0])))])
        draw(axes_2, group[0], walks[0], data)
    save_picture(figure, picture)
    return table(
        [
            "",
            "R2 of the end by the plan",
            "by the return",
            "by the start",
            "its own start, %",
            "another's start, %",
            "of them ways nobody recorded, %",
            "a plan of the prior, %",
        ],
        rows,
    )


def asked(run: Trained, walks: Walks) -> tuple[float, ...]:
    """R2 of the walk's end three times, then shares of plans that end at their walk's target, in percent."""
    agent, maze, recorded = walks.agent, run.maze, list(run.dataset.episodes())
    start_B2, end_B2 = starts(recorded), ends(recorded)
    ways = set(zip(maze.cells_of(start_B2).tolist(), maze.cells_of(end_B2).tolist()))
    z_Bm, z_Km = planned(agent, recorded[:PROBED]).flatten(1).numpy(), walks.z_Knd.flatten(1).numpy()
    y_B1, y_K1 = (np.array([[one.reward_T.sum()] for one in some]) for some in (recorded, walks.episodes))
    pairs = ((z_Bm, z_Km), (y_B1, y_K1), (start_B2, starts(walks.episodes)))
    probes = [probed(x_Bm[:PROBED], end_B2[:PROBED], x_Km, ends(walks.episodes)) for x_Bm, x_Km in pairs]
    noise = torch.randn(walks.z_Knd.shape, generator=torch.Generator().manual_seed(0))
    other_K = np.roll(walks.target_K, 1)
    own, other, chance = (
        arrived(maze, act_out(agent, run.spec.config.env, z_Knd, SEEDS), target_K)
        for z_Knd, target_K in (
            (walks.z_Knd, walks.target_K),
            (walks.z_Knd.roll(1, 0), other_K),
            (plans(agent, noise, walks.episodes), other_K),
        )
    )
    new_K = np.array([way not in ways for way in zip(walks.start_K.tolist(), other_K.tolist())])
    shares = (own.mean(), other.mean(), other[new_K].mean() if new_K.any() else np.nan, chance.mean())
    return (*probes, *(100.0 * float(share) for share in shares))


def walked(run: Trained) -> Walks:
    """From the test starts on."""
    agent, planner = cast(GAC, newest_learner(run.spec).agent), Remembering(run.maze, noise=NOISE, dwell=10_000)
    episodes = run_all(run.spec.config.env, planner, SEEDS)
    start_K = run.maze.cells_of(starts(episodes))
    return Walks(agent, episodes, start_K, np.array(planner.targets), planned(agent, episodes))


class Remembering(WaypointPlanner):
    """Keeps the targets that it drew, in the order in which episodes begin."""

    def __init__(self, maze: Maze, **how: Any) -> None:
        super().__init__(maze, **how)
        self.targets: list[int] = []

    def start(self, rngs: Sequence[np.random.Generator]) -> None:
        super().start(rngs)
        self.targets.extend(self.target_E.tolist())


def planned(agent: GAC, episodes: Sequence[StoredEpisode]) -> torch.Tensor:
    """z (K, n, d) at the posteriors' means, each as its own start has it."""
    return plans(agent, posteriors(agent, packed(episodes)).mean_Bnd, episodes)


def starts(episodes: Sequence[StoredEpisode]) -> np.ndarray:
    """(K, 2) m."""
    return np.stack([episode.obs_TO[0, :2] for episode in episodes])


def ends(episodes: Sequence[StoredEpisode]) -> np.ndarray:
    """(K, 2) m."""
    return np.stack([episode.obs_TO[-LAST:, :2].mean(0) for episode in episodes])


def probed(x_Bm: np.ndarray, y_B2: np.ndarray, x_Km: np.ndarray, y_K2: np.ndarray) -> float:
    """R2 on K of a ridge regression fitted to B."""
    mean_m, std_m = x_Bm.mean(0), x_Bm.std(0) + 1e-8
    a_Bm, a_Km = (np.column_stack([(x - mean_m) / std_m, np.ones(len(x))]) for x in (x_Bm, x_Km))
    weight_m2 = np.linalg.solve(a_Bm.T @ a_Bm + RIDGE * len(a_Bm) * np.eye(a_Bm.shape[1]), a_Bm.T @ y_B2)
    left = np.square(y_K2 - a_Km @ weight_m2).sum()
    return float(1.0 - left / np.square(y_K2 - y_K2.mean(0)).sum())


def arrived(maze: Maze, episodes: Sequence[StoredEpisode], target_K: np.ndarray) -> np.ndarray:
    """bool (K,): the episode ends at the target, as near as the goal would have to be reached."""
    gap_K = np.linalg.norm(ends(episodes) - maze.centre_K2[target_K], axis=1)
    found: np.ndarray = gap_K <= REACHED
    return found


def draw(axes_2: Any, run: Trained, walks: Walks, data: str) -> None:
    """From one start: plans of walks to several targets, and plans on the straight line between two of them."""
    maze, target_K, z_Knd = run.maze, walks.target_K, walks.z_Knd
    _, first_T = np.unique(target_K, return_index=True)  # one walk a target
    far_T = maze.steps_KK[target_K[first_T], walks.start_K[0]]
    chosen = first_T[np.argsort(-far_T)][:DRAWN]
    apart_TT = maze.steps_KK[np.ix_(target_K[chosen], target_K[chosen])]
    a, b = chosen[list(np.unravel_index(apart_TT.argmax(), apart_TT.shape))]
    line = torch.stack([torch.lerp(z_Knd[a], z_Knd[b], share) for share in np.linspace(0, 1, BETWEEN)])
    by_target = [to_hex(colour) for colour in colormaps["tab10"](range(len(chosen)))]
    by_share = [to_hex(colour) for colour in colormaps["viridis"](np.linspace(0, 0.9, BETWEEN))]
    titles = (f"{data}: plans of walks to {len(chosen)} targets", "plans on the straight line between two")
    for axes, title, some, colours in zip(axes_2, titles, (z_Knd[chosen], line), (by_target, by_share)):
        draw_maze(axes, maze)
        episodes = act_out(walks.agent, run.spec.config.env, some, [TEST[0]] * len(some))
        for episode, colour in zip(episodes, colours):
            draw_trajectory(axes, episode.obs_TO[:, :2], colour, width=1.6, alpha=0.9, marker="o")
        draw_start(axes, episodes[0].obs_TO[0, :2])
        axes.set_title(title, loc="left", fontsize=9.5, color=INK)
    for target, colour in zip(target_K[chosen], by_target):
        axes_2[0].plot(*maze.centre_K2[target], marker="x", markersize=9, color=colour, zorder=5)
