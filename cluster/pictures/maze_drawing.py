"""A point maze seen from above: walls, goal, starts and the trajectories that were walked.

Letters: T positions of a path.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle

from cluster.errors import UsageError
from rollout_workers.maze import BALL, REACHED, Maze

WALL, FLOOR = "#B4BCC6", "#FAFBFC"
RIM = 0.25  # m of the outer walls that are shown


def wall_centres(maze: Maze) -> np.ndarray:
    """(M, 2) float64, (x, y) of the middle of every wall cell, m."""
    rows, columns = maze.wall_RC.shape
    row_M, column_M = np.nonzero(maze.wall_RC)
    return np.stack([column_M + 0.5 - columns / 2, rows / 2 - row_M - 0.5], axis=1)


def check_start(maze: Maze, start: tuple[float, float]) -> None:
    """UsageError, naming the nearest free cell, unless the ball fits at ``start`` (x, y), m."""
    at = np.array(start, dtype=np.float64)
    finite = bool(np.isfinite(at).all())
    nearest = maze.centre_K2[np.linalg.norm(maze.centre_K2 - at, axis=1).argmin() if finite else 0]
    outside = not finite or np.abs(at - nearest).max() > 0.5
    to_walls = np.linalg.norm(np.maximum(np.abs(wall_centres(maze) - at) - 0.5, 0.0), axis=1).min()
    if outside or to_walls < BALL:
        where = (
            "lies in a wall or outside of the maze"
            if outside
            else f"is nearer to a wall than the ball's radius of {BALL:g} m"
        )
        raise UsageError(
            f"--start {start[0]:g},{start[1]:g} {where}, expected a place in a free cell: nothing was drawn; the nearest free "
            f"cell is around {nearest[0]:g},{nearest[1]:g}"
        )


def draw_maze(axes: Any, maze: Maze) -> None:
    """Walls on a light floor, and the goal with the circle within which it pays."""
    rows, columns = maze.wall_RC.shape
    axes.add_patch(Rectangle((-columns / 2, -rows / 2), columns, rows, facecolor=WALL, linewidth=0))
    for x, y in maze.centre_K2:
        axes.add_patch(Rectangle((x - 0.505, y - 0.505), 1.01, 1.01, facecolor=FLOOR, linewidth=0))
    if maze.goal_xy is not None:
        axes.add_patch(Circle(maze.goal_xy, REACHED, facecolor=GOAL, alpha=0.18, linewidth=0))
        axes.plot(*maze.goal_xy, marker="*", markersize=17, color=GOAL, markeredgecolor="white", zorder=5)
    half = columns / 2 - 1 + RIM, rows / 2 - 1 + RIM
    axes.set(xlim=(-half[0], half[0]), ylim=(-half[1], half[1]), aspect="equal", xlabel="x [m]", ylabel="y [m]")
    axes.tick_params(colors=INK, length=0, labelsize=9)
    for spine in axes.spines.values():
        spine.set_visible(False)


def draw_trajectory(
    axes: Any, xy_T2: np.ndarray, colour: str, *, width: float, alpha: float = 1.0, marker: str = ""
) -> None:
    """One path, with a marker where it ends."""
    axes.plot(*xy_T2.T, color=colour, linewidth=width, alpha=alpha, solid_capstyle="round", zorder=3)
    if marker:
        axes.plot(*xy_T2[-1], marker=marker, color=colour, markersize=6, markeredgecolor="white", zorder=4)


def draw_start(axes: Any, xy: np.ndarray, name: str = "") -> None:
    """A ring, and the start's name next to it."""
    axes.plot(*xy, marker="o", markersize=9, color="white", markeredgecolor=INK, markeredgewidth=1.8, zorder=6)
    if name:
        axes.annotate(name, xy, ha="center", va="center", color=INK, fontsize=6.5, fontweight="bold", zorder=7)


INK, SOFT, RULE = "#2B3038", "#7A838E", "#E4E7EB"
GOAL = "#009E73"
MODES = {"prior": "#8A929C", "st": "#E69F00", "kl": "#0072B2", "max": "#CC79A7"}  # Okabe-Ito's but for the grey
MARKERS = {"prior": "o", "st": "s", "kl": "D", "max": "^"}


def check_png(path: Path) -> None:
    """UsageError unless ``path`` can be a picture's name: asked before work is done for it."""
    if path.suffix.lower() != ".png":
        raise UsageError(f"{path} ends in {path.suffix!r}, expected '.png': nothing was drawn; name a .png file")


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, inches, that is drawn without a screen."""
    figure = Figure(figsize=(width, height), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_picture(figure: Figure, path: Path) -> Path:
    """Writes a PNG to ``path``, which is replaced in one go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        figure.savefig(partial, format="png")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def dress(axes: Any) -> None:
    """Thin rules behind the data, no box around it."""
    axes.grid(color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=0, labelsize=9)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(SOFT)
