"""What an ascent does step by step, and how much the plans say: through training and through inference.

Letters: S ascent steps, K starts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gac import TEST
from benchmarks.markdown import over_seeds, table
from benchmarks.trained import Trained, by_data
from cluster.pictures.maze_drawing import INK, MODES, dress, new_figure, save_picture

STARTS = (TEST[0], TEST[1] // 2)
STEPS = {"kl": "agent.infer_steps", "st": "agent.infer_steps", "max": "agent.infer_max_steps"}
ASCENTS = (1, 10, 30, 60, 100, 200)
MARKS = (0.02, 0.25, 0.5, 0.75, 1.0)  # shares of a training run


def dynamics(runs: Sequence[Trained], picture: Path) -> str:
    """Predicted return, its deviation and the achieved return after ascents of several lengths, kl and max; drawn too."""
    groups, rows = by_data(runs), []
    figure = new_figure(4.6 * len(groups), 4.2)
    axes_D: Any = np.atleast_1d(figure.subplots(1, len(groups)))
    for axes, (data, group) in zip(axes_D, groups.items()):
        dress(axes)
        for mode in ("kl", "max"):
            found = np.array([[_climb(run, mode, steps) for steps in ASCENTS] for run in group])  # (runs, ascents, 4)
            for i, steps in enumerate(ASCENTS):
                rows.append([data, mode, str(steps), *(over_seeds(list(found[:, i, part])) for part in range(4))])
            _draw(axes, mode, found.mean(0))
        axes.set_title(f"{data}, {len(group)} seeds", loc="left", fontsize=10, color=INK)
        axes.set_xlabel("ascent steps", color=INK)
    axes_D[0].set_ylabel("score", color=INK)
    axes_D[0].legend(frameon=False, fontsize=8, labelcolor=INK)
    save_picture(figure, picture)
    return table(["", "mode", "steps", "predicted", "deviation", "achieved", "KL, nats"], rows)


def _climb(run: Trained, mode: str, steps: int) -> tuple[float, float, float, float]:
    policy = run.policy(mode, {STEPS[mode]: str(steps)})
    made = run.run(policy, mode, STARTS)
    assert policy.inferred is not None
    scale = float(run.scores([1.0])[0] - run.scores([0.0])[0])
    deviation = float(np.sqrt(np.mean(made.variance))) * scale
    predicted, achieved = (float(run.scores(values).mean()) for values in (made.predicted, made.returns))
    return predicted, deviation, achieved, float(policy.inferred.kl_K.mean())


def _draw(axes: Any, mode: str, mean_A4: np.ndarray) -> None:
    colour, (predicted_A, deviation_A, achieved_A, _) = MODES[mode], mean_A4.T
    axes.fill_between(
        ASCENTS, predicted_A - deviation_A, predicted_A + deviation_A, color=colour, alpha=0.14, linewidth=0
    )
    axes.plot(ASCENTS, predicted_A, color=colour, label=f"{mode}, predicted ± 1 std")
    axes.plot(ASCENTS, achieved_A, color=colour, linestyle="--", marker="o", markersize=4, label=f"{mode}, achieved")


def kl(runs: Sequence[Trained], picture: Path) -> str:
    """KL a token and active dimensions through training, KL of the plans that were searched, by mode; drawn too."""
    groups, rows = by_data(runs), []
    figure = new_figure(4.6 * len(groups), 6.4)
    panels: Any = np.reshape(figure.subplots(2, len(groups)), (2, len(groups)))
    for column, (data, group) in enumerate(groups.items()):
        courses = [_course(run) for run in group]
        for mark in MARKS:
            at = [course[:, round(mark * (course.shape[1] - 1))] for course in courses]
            cells = [over_seeds([float(one[part]) for one in at], 2 if part else 0) for part in range(4)]
            rows.append([data, "training", cells[0].split()[0], *cells[1:]])
        for part, name in ((1, "KL a token, nats"), (2, "active dimensions, share")):
            axes = panels[0, column] if part == 1 else panels[0, column].twinx()
            if part == 1:
                dress(axes)
            for course in courses:
                axes.plot(course[0], course[part], color=MODES["kl"] if part == 1 else MODES["st"], alpha=0.8)
            axes.set_ylabel(name, color=MODES["kl"] if part == 1 else MODES["st"], fontsize=8)
        panels[0, column].set(title=f"{data}, training", xlabel="updates")
        dress(panels[1, column])
        for mode in ("st", "kl", "max"):
            traces = [_trace(run, mode) for run in group]
            for trace_S in traces:
                panels[1, column].plot(
                    trace_S, color=MODES[mode], alpha=0.8, label=mode if trace_S is traces[0] else None
                )
            cells = [over_seeds([float(trace_S[at]) for trace_S in traces], 2) for at in (0, -1)]
            rows.append([data, f"{mode}, a plan", f"{len(traces[0]) - 1} steps", f"{cells[0]} to {cells[1]}", "", ""])
        panels[1, column].set(title=f"{data}, inference", xlabel="ascent steps", ylabel="KL a plan, nats", yscale="log")
        panels[1, column].legend(frameon=False, fontsize=8)
    save_picture(figure, picture)
    return table(["", "", "at", "KL a token, nats", "active dimensions", "collapse alarm"], rows)


def _course(run: Trained) -> np.ndarray:
    """(4, lines) updates, KL a token, share of active dimensions, alarm, of every line of the run's metrics."""
    lines = [json.loads(line) for line in (run.run_dir / "metrics.jsonl").read_text().splitlines()]
    names = ("updates", "loss_kl_token", "loss_active_dims", "loss_collapse")
    return np.array([[line[name] for line in lines if "loss_kl_token" in line] for name in names], np.float64)


def _trace(run: Trained, mode: str) -> np.ndarray:
    """Mean KL (S + 1,) over the starts, before and after every step of the ascent."""
    policy = run.policy(mode)
    run.run(policy, mode, (TEST[0], 20))
    assert policy.inferred is not None
    mean_S: np.ndarray = policy.inferred.trace.kl_SK.numpy().mean(1)
    return mean_S
