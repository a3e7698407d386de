"""A dataset in words and as a picture.

Letters: T steps, N episodes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cluster.metrics.wording import number
from replay.dataset import Dataset
from replay.minari_files import RecordedEnv
from replay.stored_episode import StoredEpisode
from replay.task import join_task

TRAJECTORIES = 150  # episodes whose path is drawn, evenly over the dataset
QUANTILES = (0, 10, 25, 50, 75, 90, 100)


class Reading:
    """What one pass over a dataset leaves behind: every episode's return and length, and the trajectories of some."""

    def __init__(self, dataset: Dataset, trajectories: int) -> None:
        self._kept = (
            set(np.linspace(0, dataset.total_episodes - 1, trajectories).astype(int).tolist())
            if trajectories
            else set()
        )
        self.returns: list[float] = []
        self.lengths: list[int] = []
        self.trajectories: list[tuple[float, np.ndarray]] = []  # (return, xy (T, 2)) of the kept ones
        for episode in dataset.episodes():
            self._take(episode)

    def _take(self, episode: StoredEpisode) -> None:
        self.returns.append(float(episode.reward_T.sum()))
        self.lengths.append(len(episode.reward_T))
        if episode.index in self._kept:
            self.trajectories.append((self.returns[-1], episode.obs_TO[:, :2].copy()))


def describe_dataset(dataset: Dataset, plot: Path | None = None) -> str:
    """What is in a dataset, from one pass over it; with ``plot`` a PNG is drawn there too."""
    from rollout_workers.maze import maze_of

    maze = maze_of(_map_task(dataset)) if plot is not None else None
    reading = Reading(dataset, TRAJECTORIES if maze is not None else 0)
    if plot is not None:
        draw_dataset(dataset, reading, maze, plot)
    rows = list(_rows(dataset, reading))
    if plot is not None:
        rows.append(("drawn in", str(plot)))
    return "\n".join([dataset.id, *(f"  {name:<13} {text}" for name, text in rows)])


def _map_task(dataset: Dataset) -> str:
    """The dataset's environment with those of its arguments that say what a maze looks like."""
    drawn = ("maze_map", "maze_id", "goal_cell")
    return join_task(dataset.env_id, {name: value for name, value in dataset.env.kwargs.items() if name in drawn})


def _recorded_with(env: RecordedEnv) -> str:
    limit = f"{env.max_episode_steps:,} steps" if env.max_episode_steps is not None else "none"
    wrappers = f"; wrappers {', '.join(env.wrappers)}" if env.wrappers else ""
    return f"arguments {json.dumps(env.kwargs)[:500]}; time limit {limit}{wrappers}"


def _rows(dataset: Dataset, reading: Reading) -> Iterator[tuple[str, str]]:
    returns_N, lengths = np.array(reading.returns), reading.lengths
    env = dataset.env_id or "not named"
    yield "environment", f"{env}; observations of {dataset.obs_dim}, actions of {dataset.action_dim} numbers"
    if dataset.env.entry_point:
        yield "recorded with", _recorded_with(dataset.env)
    yield "folder", str(dataset.path)
    span = f"{min(lengths):,} to {max(lengths):,} steps, median {np.median(lengths):,.0f}"
    yield "episodes", f"{len(lengths):,} ({sum(lengths):,} steps); {span}"
    spread = "  ".join(f"{q} %: {number(float(np.percentile(returns_N, q)))}" for q in QUANTILES)
    yield "returns", f"mean {number(float(returns_N.mean()))}, std {number(float(returns_N.std()))}; {spread}"
    if dataset.normalised(0.0) is not None:
        scores = [dataset.normalised(value) for value in (float(returns_N.mean()), float(returns_N.max()))]
        yield "normalised", f"mean {number(scores[0])}, best {number(scores[1])}"
    yield "references", _references(dataset)
    refused = dataset.refused
    counts = ", ".join(f"{len(found):,} {reason}" for reason, found in refused.items())
    yield (
        "refused",
        f"{sum(map(len, refused.values())):,} of {dataset.total_episodes:,} episodes"
        + (f": {counts}" if counts else ""),
    )
    if dataset.clipped_steps:
        yield "clipped", f"{dataset.clipped_steps:,} steps had an action outside its box"
    made = dataset.description
    if made:
        yield "made by", str(made.get("command") or ", ".join(f"{name} {value}" for name, value in made.items()))


def _references(dataset: Dataset) -> str:
    if dataset.random_return is None or dataset.expert_return is None:
        return "none: scores are not normalised"
    return f"random {number(dataset.random_return)} (0), {dataset.expert or 'expert'} {number(dataset.expert_return)} (100)"


def draw_dataset(dataset: Dataset, reading: Reading, maze: Any, path: Path) -> None:
    """A PNG with the returns' histogram and, given a Maze, trajectories in it coloured by their episodes' returns."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11 if maze is not None else 5.5, 4.5), layout="constrained")
    panels = figure.subplots(1, 2 if maze is not None else 1, squeeze=False)[0]
    panels[0].hist(reading.returns, bins=40, color="#4063d8")
    for value, label, colour in (
        (dataset.random_return, "random", "#888888"),
        (dataset.expert_return, dataset.expert or "expert", "#389826"),
    ):
        if value is not None:
            panels[0].axvline(value, color=colour, linestyle="--", label=f"{label}: {number(value)}")
    if panels[0].get_legend_handles_labels()[0]:
        panels[0].legend()
    panels[0].set(
        xlabel="return of an episode", ylabel="episodes", title=f"{dataset.id}\n{len(reading.returns):,} episodes"
    )
    if maze is not None:
        _draw_trajectories(figure, panels[1], reading, maze)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _draw_trajectories(figure: Any, panel: Any, reading: Reading, maze: Any) -> None:
    from matplotlib.collections import LineCollection

    rows, columns = maze.wall_RC.shape
    edges = (-columns / 2, columns / 2, -rows / 2, rows / 2)  # m; cells are 1 m wide, the middle is the origin
    panel.imshow(maze.wall_RC, extent=edges, cmap="Greys", vmin=0, vmax=2)
    trajectories = sorted(reading.trajectories, key=lambda path: path[0])  # the best on top
    lines = LineCollection(
        [xy_T2 for _, xy_T2 in trajectories], array=np.array([value for value, _ in trajectories]), linewidths=0.6
    )
    panel.add_collection(lines)
    figure.colorbar(lines, ax=panel, label="return")
    if maze.goal_xy is not None:
        panel.plot(*maze.goal_xy, marker="*", markersize=14, color="#cb3c33", markeredgecolor="white")
    panel.set(xlabel="x [m]", ylabel="y [m]", title=f"{len(trajectories)} episodes' trajectories")
