"""A picture of a run's plans: the trajectories they led in its maze, how their ascent went, and what came of them.

Letters: E episodes, S ascent steps, P starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from cluster.checks import spec_of
from cluster.commands.evaluation import newest_weights
from cluster.graph import RunSpec
from cluster.metrics.wording import algorithm_name, count, number
from cluster.pictures.maze_drawing import (
    INK,
    MARKERS,
    MODES,
    SOFT,
    check_png,
    draw_maze,
    draw_start,
    draw_trajectory,
    dress,
    new_figure,
    save_picture,
)
from cluster.pictures.plan_trial import Trial, best_return, chosen_starts, maze_of_plans, planning_policy, try_modes
from cluster.run_dir import RunDirectory
from rollout_workers.maze import Maze

HEAD = ("mode", "predicted", "achieved", "KL, nats", "goal reached", "path / shortest")
WIDTHS = {"st": 3.6, "max": 2.3, "kl": 1.2}  # of trajectories; the later ones lie on the earlier, which still show
PLACES = (0.02, 0.20, 0.38, 0.54, 0.71, 0.92)  # of the table's columns, shares of its width


def draw_plans(run_dir: Path, path: Path, *, start: tuple[float, float] | None = None, seed: int) -> str:
    """Draws the plans of a run's newest policy into the PNG ``path``; the same in words.

    In a maze: the trajectories walked by plans drawn from the prior and by those that were searched for (st, kl, max), from ``start``
    (x, y), m, or from three places far apart. Everywhere: predicted return, its standard deviation and KL over the steps of the
    ascent, beside what was predicted and achieved in the end.

    Raises:
        UsageError: a run of another algorithm, a start in a wall or for no maze, a path that is no .png. Nothing is drawn.
        RunError: no checkpoint, or an episode that could not be finished.
    """
    check_png(path)
    run = RunDirectory.open(run_dir)
    spec = spec_of(run.config(), run)
    planning_policy(spec)
    maze = maze_of_plans(spec)
    starts_P2 = chosen_starts(spec, maze, start, seed)
    weights = newest_weights(spec)
    trials = try_modes(spec, weights, maze, starts_P2, seed)
    picture = _Picture(spec, maze, starts_P2, trials)
    picture.draw(_title(spec, weights.updates, seed), best_return(weights), path)
    rows = _rows(trials)
    lines = ["  ".join(f"{cell:<17}" for cell in row).rstrip() for row in rows]
    return "\n".join(
        [
            f"{spec.config.env}: plans of {spec.run_dir} after {count(weights.updates, 'update')}",
            *lines,
            f"drawn in {path}",
        ]
    )


class _Picture:
    """The panels: maze on the left, ascent, outcome and KL on the right with a table below."""

    def __init__(
        self, spec: RunSpec, maze: Maze | None, starts_P2: np.ndarray | None, trials: dict[str, Trial]
    ) -> None:
        self.spec, self.maze, self.starts_P2, self.trials = spec, maze, starts_P2, trials

    def draw(self, title: tuple[str, str], best: float, path: Path) -> None:
        figure = new_figure(8.2 if self.maze is None else 14.2, 7.2)
        figure.suptitle(title[0], x=0.012, ha="left", fontsize=15, fontweight="bold", color=INK)
        panels: Any = figure
        if self.maze is not None:
            halves: Any = figure.subfigures(1, 2, width_ratios=(1, 1.08), wspace=0.02)
            left, panels = halves
            self._trajectories(left.add_subplot(), self.maze)
        grid = panels.add_gridspec(3, 2, height_ratios=(3.3, 1.3, 1.15), width_ratios=(3.2, 1))
        ascent = panels.add_subplot(grid[0, 0])
        outcome = panels.add_subplot(grid[0, 1], sharey=ascent)
        kl = panels.add_subplot(grid[1, 0], sharex=ascent)
        self._ascent(ascent, best)
        self._outcome(outcome, best)
        self._kl(kl)
        _legend(panels.add_subplot(grid[1, 1]), self.trials, len(self._starts()) > 1)
        _table(panels.add_subplot(grid[2, :]), self.trials)
        figure.supxlabel(title[1], x=0.012, ha="left", fontsize=8.5, color=SOFT)
        save_picture(figure, path)

    def _starts(self) -> Sequence[int]:
        return range(int(self.trials["kl"].start_E.max()) + 1)

    def _trajectories(self, axes: Any, maze: Maze) -> None:
        draw_maze(axes, maze)
        for path in self.trials["prior"].trajectories:
            draw_trajectory(axes, path, MODES["prior"], width=0.8, alpha=0.6)
        for mode, width in WIDTHS.items():
            for path in self.trials[mode].trajectories:
                draw_trajectory(axes, path, MODES[mode], width=width, marker=MARKERS[mode])
        assert self.starts_P2 is not None
        for index, xy in enumerate(self.starts_P2):
            draw_start(axes, xy, str(index + 1) if len(self.starts_P2) > 1 else "")
        axes.set_title("trajectories walked", loc="left", fontsize=11, color=INK)

    def _ascent(self, axes: Any, best: float) -> None:
        """Predicted return over the ascent; single starts thin, their mean with a band of one standard deviation."""
        dress(axes)
        for trial in self._searched():
            steps, colour = np.arange(len(trial.ascent_SE)), MODES[trial.mode]
            mean_S, std_S = trial.ascent_SE.mean(axis=1), np.sqrt(trial.variance_SE.mean(axis=1))
            axes.fill_between(steps, mean_S - std_S, mean_S + std_S, color=colour, alpha=0.14, linewidth=0)
            if trial.ascent_SE.shape[1] > 1:
                axes.plot(steps, trial.ascent_SE, color=colour, linewidth=0.8, alpha=0.45)
            axes.plot(steps, mean_S, color=colour, linewidth=2.4)
            axes.plot(
                steps[-1], trial.achieved_E.mean(), marker=MARKERS[trial.mode], color=colour, markersize=9,
                markeredgecolor="white", clip_on=False, zorder=5,
            )  # fmt: skip
        if np.isfinite(best):
            axes.axhline(best, color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
        axes.tick_params(labelbottom=False)
        axes.set_ylabel("return", color=INK)
        axes.set_title(
            "predicted return over the ascent, ± 1 std; markers: achieved", loc="left", fontsize=11, color=INK
        )

    def _outcome(self, axes: Any, best: float) -> None:
        """Every episode: predicted as a dash, achieved as a marker, a line between."""
        dress(axes)
        for place, (mode, trial) in enumerate(self.trials.items()):
            colour, episodes, drawn = MODES[mode], len(trial.achieved_E), mode == "prior"
            at_E = place + (np.linspace(-0.25, 0.25, episodes) if episodes > 1 else np.zeros(1))
            axes.vlines(at_E, trial.predicted_E, trial.achieved_E, color=colour, linewidth=1, alpha=0.55)
            axes.scatter(at_E, trial.predicted_E, marker="_", s=45, color=colour)
            axes.scatter(
                at_E, trial.achieved_E, marker=MARKERS[mode], s=18 if drawn else 36, color=colour,
                edgecolor="white", linewidth=0.6, zorder=4,
            )  # fmt: skip
        if np.isfinite(best):
            axes.axhline(best, color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_xticks(range(len(self.trials)), list(self.trials))
        axes.tick_params(labelleft=False)
        axes.set_title("in the end", loc="left", fontsize=11, color=INK)

    def _kl(self, axes: Any) -> None:
        dress(axes)
        for trial in self._searched():
            colour, steps = MODES[trial.mode], np.arange(len(trial.kl_SE))
            if trial.kl_SE.shape[1] > 1:
                axes.plot(steps, trial.kl_SE, color=colour, linewidth=0.8, alpha=0.45)
            axes.plot(steps, trial.kl_SE.mean(axis=1), color=colour, linewidth=2)
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("ascent step", color=INK)
        axes.set_ylabel("KL [nats]", color=INK)

    def _searched(self) -> list[Trial]:
        return [trial for mode, trial in self.trials.items() if mode != "prior"]


def _legend(axes: Any, trials: dict[str, Trial], several: bool) -> None:
    axes.axis("off")
    labels = {"prior": "drawn, not searched", "st": "for a target", "kl": "return, less KL", "max": "return alone"}
    target = trials["st"].target
    labels["st"] = f"for a return of {number(target)}" if target is not None else labels["st"]
    for place, (mode, words) in enumerate(labels.items()):
        y = 0.95 - 0.2 * place
        axes.plot(
            0.04,
            y,
            marker=MARKERS[mode],
            color=MODES[mode],
            markersize=7,
            transform=axes.transAxes,
        )
        axes.text(0.13, y, f"{mode}: {words}", transform=axes.transAxes, va="center", fontsize=8.5, color=INK)
    notes = ["dash: predicted" + ("; thin: single starts" if several else ""), "dashed line: best return in the data"]
    for place, note in enumerate(notes):
        axes.text(0.0, 0.14 - 0.15 * place, note, transform=axes.transAxes, va="center", fontsize=8, color=SOFT)


def _table(axes: Any, trials: dict[str, Trial]) -> None:
    axes.axis("off")
    for index, row in enumerate(_rows(trials)):
        for column in range(len(row)):
            bold = column == 0 and index > 0
            colour = MODES[row[0]] if bold else SOFT if index == 0 else INK
            axes.text(
                PLACES[column], 0.92 - 0.2 * index, row[column], transform=axes.transAxes, va="center", fontsize=9.5,
                ha="left" if column == 0 else "center", color=colour, fontweight="bold" if bold else "normal",
            )  # fmt: skip


def _rows(trials: dict[str, Trial]) -> list[tuple[str, ...]]:
    """The table: the head, then a row each mode; without the columns of a maze, the last ones, where there is none."""
    rows = [HEAD, *(_row(trial) for trial in trials.values())]
    filled = [column for column in range(len(HEAD)) if any(row[column] for row in rows[1:])]
    return [tuple(row[column] for column in filled) for row in rows]


def _row(trial: Trial) -> tuple[str, ...]:
    """One mode in cells, means over its episodes; "" where there is nothing to say."""
    arrived = int((trial.reached_E >= 0).sum())
    detours = trial.detour_E[np.isfinite(trial.detour_E)]
    std = float(np.sqrt(trial.variance_E.mean()))
    return (
        trial.mode,
        f"{number(float(trial.predicted_E.mean()))} ± {number(std)}",
        number(float(trial.achieved_E.mean())),
        "-" if trial.mode == "prior" else number(float(trial.kl_E.mean())),
        f"{arrived} of {len(trial.reached_E)}" if len(trial.reached_E) else "",
        (f"{detours.mean():.2f}" if len(detours) else "-") if len(trial.reached_E) else "",
    )


def _title(spec: RunSpec, updates: int, seed: int) -> tuple[str, str]:
    config = spec.config
    data = f", learned from {config.dataset}" if config.dataset else ""
    return (
        f"Plans of {algorithm_name(config.algorithm)} on {config.env}",
        f"{spec.run_dir.name}, {count(updates, 'update')}{data}, starts and samples of seed {seed}. Numbers are means over episodes.",
    )
