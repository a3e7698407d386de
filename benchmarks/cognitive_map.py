"""Is the space of plans a map of the maze? Linear probes from plans to places, plans of one episode from another's start, pictures.

Asked of runs on episodes with one target each. EPISODES are walked anew by the planner to random targets, so no plan is of an
episode that was learned; a plan is the mean of its posterior. Letters: K episodes, T steps, B recorded episodes, n d a plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import matplotlib
import numpy as np
import torch

from algorithms.gac.agent import GAC
from algorithms.gac.diagnosis import posteriors
from algorithms.interface import PlanRequest
from benchmarks.ablations import GivenPlans
from benchmarks.gac import TEST
from benchmarks.markdown import over_seeds, table
from benchmarks.trained import Trained, by_data
from cluster.commands.evaluation import newest_learner
from cluster.diagnosis import packed
from cluster.pictures.maze_drawing import INK, draw_maze, draw_start, draw_trajectory, new_figure, save_picture
from replay.stored_episode import StoredEpisode
from rollout_workers.episodes import EpisodeRuns
from rollout_workers.maze import REACHED, Maze
from rollout_workers.waypoints import WaypointPlanner

EPISODES, PROBED = 200, 800  # walked anew; recorded ones that the probe is fitted to
NOISE = 0.5  # of the planner that made the data
LAST = 50  # steps whose mean is where an episode ends
RIDGE = 1e-2  # of the probe, on z-scores
DRAWN, BETWEEN = 8, 7  # targets of a picture, plans on the straight line between two


class Walks(NamedTuple):
    """Episodes of the planner, each to one random target."""

    episodes: list[StoredEpisode]
    target_K: np.ndarray  # int64, free cells
    start_K: np.ndarray


def cognitive_map(runs: Sequence[Trained], picture: Path) -> str:
    """How well plans tell where a walk ends, and where they lead from starts that are not their own; drawn for the first run of each
    kind of data."""
    rows, groups = [], by_data(runs)
    figure = new_figure(9.2, 4.4 * len(groups))
    axes_D: Any = np.atleast_2d(figure.subplots(len(groups), 2))
    for axes_2, (data, group) in zip(axes_D, groups.items()):
        found = [asked(run) for run in group]
        rows.append([data, *(over_seeds([one[i] for one in found], 2 if i < 3 else 1) for i in range(len(found[0])))])
        draw(axes_2, group[0], data)
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


def asked(run: Trained) -> tuple[float, ...]:
    """R2 of the walk's end three times, then shares of plans that end at their walk's target, in percent."""
    agent, maze = cast(GAC, newest_learner(run.spec).agent), run.maze
    walks = walked(run, EPISODES)
    recorded = list(run.dataset.episodes(range(PROBED)))
    z_Knd, z_Bnd = plans(agent, walks.episodes), plans(agent, recorded)
    end_B2, end_K2 = ends(recorded), ends(walks.episodes)
    y_B1, y_K1 = (np.array([[part.reward_T.sum()] for part in some]) for some in (recorded, walks.episodes))
    start_B2, start_K2 = (np.stack([part.obs_TO[0, :2] for part in some]) for some in (recorded, walks.episodes))
    z_Km, z_Bm = (part.flatten(1).numpy() for part in (z_Knd, z_Bnd))
    probes = [probed(a, end_B2, b, end_K2) for a, b in ((z_Bm, z_Km), (y_B1, y_K1), (start_B2, start_K2))]
    own = arrived(maze, acted(run, agent, z_Knd), walks.target_K)
    other_K = np.roll(walks.target_K, 1)
    other = arrived(maze, acted(run, agent, z_Knd.roll(1, 0)), other_K)
    pairs = {(int(maze.cells_of(s[None])[0]), int(maze.cells_of(e[None])[0])) for s, e in zip(*all_ways(run))}
    new_K = np.array([(int(s), int(t)) not in pairs for s, t in zip(walks.start_K, other_K)])
    noise = torch.randn(z_Knd.shape, generator=torch.Generator().manual_seed(0))
    chance = arrived(maze, acted(run, agent, drawn(agent, noise, walks.episodes)), other_K)
    shares = (own.mean(), other.mean(), other[new_K].mean() if new_K.any() else np.nan, chance.mean())
    return (*probes, *(100.0 * float(share) for share in shares))


def walked(run: Trained, count: int) -> Walks:
    """From the test starts on."""
    seeds, streams = [TEST[0] + i for i in range(count)], np.random.SeedSequence(0).spawn(count)
    runs, planner = EpisodeRuns(run.spec.config.env), Remembering(run.maze, noise=NOISE, dwell=10_000)
    episodes = [episode for episode in runs.run(planner, seeds, streams) if episode is not None]
    runs.close()
    start_K = run.maze.cells_of(np.stack([episode.obs_TO[0, :2] for episode in episodes]))
    return Walks(episodes, np.array(planner.targets), start_K)


class Remembering(WaypointPlanner):
    """Keeps the targets that it drew, in the order in which episodes begin."""

    def __init__(self, maze: Maze, **how: Any) -> None:
        super().__init__(maze, **how)
        self.targets: list[int] = []

    def start(self, rngs: Sequence[np.random.Generator]) -> None:
        super().start(rngs)
        self.targets.extend(self.target_E.tolist())


def plans(agent: GAC, episodes: Sequence[StoredEpisode]) -> torch.Tensor:
    """z (K, n, d) at the posteriors' means, each as its own start has it."""
    return drawn(agent, posteriors(agent, packed(list(episodes))).mean_Bnd, episodes)


@torch.no_grad()
def drawn(agent: GAC, z0_Knd: torch.Tensor, episodes: Sequence[StoredEpisode]) -> torch.Tensor:
    """z (K, n, d) of z_0 at the episodes' starts."""
    return agent.model.plan(z0_Knd, torch.from_numpy(np.stack([episode.obs_TO[0] for episode in episodes])))


def ends(episodes: Sequence[StoredEpisode]) -> np.ndarray:
    """(K, 2) m."""
    return np.stack([episode.obs_TO[-LAST:, :2].mean(0) for episode in episodes])


def all_ways(run: Trained) -> tuple[np.ndarray, np.ndarray]:
    """Starts and ends (B, 2) of every recorded episode."""
    episodes = list(run.dataset.episodes())
    return np.stack([episode.obs_TO[0, :2] for episode in episodes]), ends(episodes)


def probed(x_Bm: np.ndarray, y_B2: np.ndarray, x_Km: np.ndarray, y_K2: np.ndarray) -> float:
    """R2 on K of a ridge regression fitted to B."""
    mean_m, std_m = x_Bm.mean(0), x_Bm.std(0) + 1e-8
    a_Bm, a_Km = (np.column_stack([(x - mean_m) / std_m, np.ones(len(x))]) for x in (x_Bm, x_Km))
    weight_m2 = np.linalg.solve(a_Bm.T @ a_Bm + RIDGE * len(a_Bm) * np.eye(a_Bm.shape[1]), a_Bm.T @ y_B2)
    left = np.square(y_K2 - a_Km @ weight_m2).sum()
    return float(1.0 - left / np.square(y_K2 - y_K2.mean(0)).sum())


def acted(run: Trained, agent: GAC, z_Knd: torch.Tensor, seed: int | None = None) -> list[StoredEpisode]:
    """Episodes of the plans, from the test starts on, or all from that of ``seed``."""
    policy = GivenPlans(agent.config, run.spec.obs_dim, run.spec.action_dim)
    policy.load_weights({name: tensor.numpy() for name, tensor in agent.policy_weights().items()})
    policy.aim, policy.z_Knd = PlanRequest(mode="prior"), z_Knd
    seeds = [TEST[0] + i if seed is None else seed for i in range(len(z_Knd))]
    runs = EpisodeRuns(run.spec.config.env)
    episodes = runs.run(policy, seeds, np.random.SeedSequence(0).spawn(len(seeds)))
    runs.close()
    return [episode for episode in episodes if episode is not None]


def arrived(maze: Maze, episodes: Sequence[StoredEpisode], target_K: np.ndarray) -> np.ndarray:
    """bool (K,): the episode ends at the target, as near as the goal would have to be reached."""
    gap_K = np.linalg.norm(ends(episodes) - maze.centre_K2[target_K], axis=1)
    found: np.ndarray = gap_K <= REACHED
    return found


def draw(axes_2: Any, run: Trained, data: str) -> None:
    """From one start: plans of walks to several targets, and plans on the straight line between two of them."""
    agent, maze, walks = cast(GAC, newest_learner(run.spec).agent), run.maze, walked(run, EPISODES)
    z_Knd = plans(agent, walks.episodes)
    far_K = maze.steps_KK[walks.target_K, walks.start_K[0]]
    _, first_T = np.unique(walks.target_K, return_index=True)  # one walk a target
    chosen = first_T[np.argsort(-far_K[first_T])][:DRAWN]
    apart_TT = maze.steps_KK[np.ix_(walks.target_K[chosen], walks.target_K[chosen])]
    a, b = chosen[list(np.unravel_index(apart_TT.argmax(), apart_TT.shape))]
    line = [torch.lerp(z_Knd[a], z_Knd[b], share) for share in np.linspace(0, 1, BETWEEN)]

    groups = (
        (
            f"{data}: plans of walks to {len(chosen)} targets",
            z_Knd[chosen],
            matplotlib.colormaps["tab10"](range(len(chosen))),
        ),
        (
            "plans on the straight line between two",
            torch.stack(line),
            matplotlib.colormaps["viridis"](np.linspace(0, 0.9, BETWEEN)),
        ),
    )
    for axes, (title, some, colours) in zip(axes_2, groups):
        draw_maze(axes, maze)
        episodes = acted(run, agent, some, seed=TEST[0])
        for episode, colour in zip(episodes, colours):
            draw_trajectory(
                axes, episode.obs_TO[:, :2], matplotlib.colors.to_hex(colour), width=1.6, alpha=0.9, marker="o"
            )
        draw_start(axes, episodes[0].obs_TO[0, :2])
        axes.set_title(title, loc="left", fontsize=9.5, color=INK)
    for k, colour in zip(chosen, groups[0][2]):
        axes_2[0].plot(
            *maze.centre_K2[walks.target_K[k]],
            marker="x",
            markersize=9,
            color=matplotlib.colors.to_hex(colour),
            zorder=5,
        )
