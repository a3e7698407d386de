"""Predicted returns against achieved ones: how far a plan's promise can be believed.

Letters: N episodes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cluster.errors import RunError
from cluster.metrics.wording import algorithm_name, count, number
from cluster.pictures.maze_drawing import GOAL, INK, MODES, SOFT, dress, new_figure, save_picture


def rank_correlation(one_N: Sequence[float] | np.ndarray, other_N: Sequence[float] | np.ndarray) -> float | None:
    """Spearman's rank correlation in [-1, 1]: Pearson's of the ranks, equal values sharing the mean of theirs.

    None where it is not defined: fewer than two pairs, or all values of one side equal.
    """
    if len(one_N) != len(other_N):
        raise ValueError(
            f"{len(one_N)} values beside {len(other_N)}, expected as many: nothing can be paired; give one of each for an episode"
        )
    centred_2N = [ranks(np.asarray(values, np.float64)) - (len(values) + 1) / 2 for values in (one_N, other_N)]
    scale = math.sqrt(math.prod(float(values_N @ values_N) for values_N in centred_2N))
    return max(-1.0, min(1.0, float(centred_2N[0] @ centred_2N[1]) / scale)) if scale else None


def ranks(values_N: np.ndarray) -> np.ndarray:
    """Ranks (N,) float64 from 1; equal values share the mean of theirs."""
    _, group_N, size_G = np.unique(values_N, return_inverse=True, return_counts=True)
    last_G = np.cumsum(size_G)
    shared_N: np.ndarray = (last_G - (size_G - 1) / 2)[group_N]
    return shared_N


def draw_calibration(found: Mapping[str, Any], path: Path) -> Path:
    """Draws every episode of an evaluation (what ``drawbridge evaluate --json`` gives) into the PNG ``path``.

    Episodes lie at (predicted, achieved), with one predicted standard deviation to either side, around the diagonal. In mazes those
    that start inside the goal are hollow: their return says little about the plan.

    Raises RunError where the policy predicted no returns.
    """
    predicted_N, achieved_N = (np.array(found.get(name) or [], np.float64) for name in ("predicted", "returns"))
    if not len(predicted_N):
        raise RunError(
            f"the evaluation of {found['algorithm']} on {found['env']} has no predicted returns, expected one an episode: there is "
            "no calibration to draw; leave --plot out"
        )
    figure = new_figure(6.4, 6.6)
    axes = figure.add_subplot()
    dress(axes)
    _diagonal(axes, *_range(predicted_N, achieved_N))
    _episodes(axes, found, predicted_N, achieved_N)
    axes.set_xlabel("predicted return", color=INK)
    axes.set_ylabel("achieved return", color=INK)
    axes.legend(frameon=False, loc="upper left", fontsize=8.5, labelcolor=INK)
    _titles(axes, found, rank_correlation(predicted_N, achieved_N))
    return save_picture(figure, path)


def _diagonal(axes: Any, low: float, high: float) -> None:
    axes.plot([low, high], [low, high], color=SOFT, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
    axes.annotate(
        "kept what it promised",
        (low, low),
        xytext=(8, 18),
        textcoords="offset points",
        rotation=45,
        color=SOFT,
        fontsize=8,
    )
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")


def _episodes(axes: Any, found: Mapping[str, Any], predicted_N: np.ndarray, achieved_N: np.ndarray) -> None:
    """Every episode, and the mean of all."""
    colour, std_N = MODES.get(str(found.get("mode")), MODES["kl"]), np.sqrt(np.array(found["variance"], np.float64))
    axes.errorbar(predicted_N, achieved_N, xerr=std_N, fmt="none", ecolor=colour, alpha=0.25, elinewidth=1, zorder=2)
    inside_N = np.array(found.get("starts_in_goal") or [False] * len(predicted_N), bool)
    for chosen_N, face, edge, label in (
        (~inside_N, colour, "white", "episode, ± 1 std of its prediction"),
        (inside_N, "white", colour, "started in the goal"),
    ):
        if chosen_N.any():
            axes.scatter(
                predicted_N[chosen_N], achieved_N[chosen_N], s=26, color=face, edgecolor=edge, alpha=0.9, label=label,
                linewidth=0.5 if edge == "white" else 1.1, zorder=3,
            )  # fmt: skip
    mean = float(predicted_N.mean()), float(achieved_N.mean())
    label = f"mean: {number(mean[0])} predicted, {number(mean[1])} achieved"
    axes.plot(
        *mean, marker="P", markersize=12, color=GOAL, markeredgecolor="white", linestyle="", label=label, zorder=4
    )


def _titles(axes: Any, found: Mapping[str, Any], correlation: float | None) -> None:
    text = "not defined" if correlation is None else f"{correlation:.2f}"
    axes.annotate(
        f"Rank correlation {text}", (0, 1), xycoords="axes fraction", xytext=(0, 36), textcoords="offset points",
        fontsize=15, fontweight="bold", color=INK,
    )  # fmt: skip
    mode = f", mode {found['mode']}" if found.get("mode") else ""
    target = f", for a return of {number(float(found['target']))}" if found.get("target") is not None else ""
    axes.set_title(
        f"{algorithm_name(str(found['algorithm']))} on {found['env']}{mode}{target}\n"
        f"{count(len(found['returns']), 'episode')}, policy of {count(found['updates'], 'update')}",
        loc="left", fontsize=9.5, color=SOFT,
    )  # fmt: skip


def _range(*values: np.ndarray) -> tuple[float, float]:
    """One range for both axes, wider than all values by a twentieth."""
    low, high = float(min(map(np.min, values))), float(max(map(np.max, values)))
    room = 0.05 * (high - low) or 1.0
    return low - room, high + room
