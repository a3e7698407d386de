"""The learning curve of one run as a picture; `python -m cluster.pictures.curve RUN` draws it in a process of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from cluster.history import Run, read_run
from cluster.metrics.wording import algorithm_name, count, number
from cluster.pictures.background import UNWRITABLE

EVALUATION, TRAINING, INK = "#0072B2", "#B8BEC6", "#2B3038"  # Okabe-Ito's blue over grey: distinct without hue


def draw_curve(run_dir: str | Path, path_png: str | Path) -> Path:
    """Draws a run's returns against its environment steps, or updates, into ``path_png``, which is replaced in one go.

    Deterministic evaluations: mean line, every episode a dot, a band from the worst to the best episode. Training:
    the mean return of the exploring episodes of each metrics line, lighter. Of a run on a dataset also what the returns mean
    that its scores are reckoned from: 0 the random policy, 100 the expert. Raises NotARun where ``run_dir`` is none.
    """
    figure, path = learning_curve(run_dir), Path(path_png)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        figure.savefig(partial, format="png")
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    return path


def learning_curve(run_dir: str | Path) -> Figure:
    """The figure that ``draw_curve`` writes."""
    run = read_run(run_dir)
    figure = Figure(figsize=(8.0, 4.5), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _training(axes, run)
    _evaluations(axes, run)
    for (label, value), style in zip(run.references.items(), (":", "--")):
        axes.axhline(value, color=INK, alpha=0.6, linewidth=1.2, linestyle=style, label=label)
    _dress(axes, run)
    return figure


def _training(axes: Any, run: Run) -> None:
    steps, returns = run.series("return_mean")
    if steps:
        axes.plot(steps, returns, color=TRAINING, linewidth=1.2, label="training (exploring), mean of the window")


def _evaluations(axes: Any, run: Run) -> None:
    if not run.evaluations:
        return
    steps = [e.at for e in run.evaluations]
    spread = [min(e.returns) for e in run.evaluations], [max(e.returns) for e in run.evaluations]
    axes.fill_between(steps, *spread, color=EVALUATION, alpha=0.15, linewidth=0, label="worst to best episode")
    dots = [(e.at, value) for e in run.evaluations for value in e.returns]
    axes.scatter(*zip(*dots), color=EVALUATION, s=7, alpha=0.45, linewidths=0)
    means = [e.mean for e in run.evaluations]
    label = "evaluation (deterministic), mean"
    axes.plot(steps, means, color=EVALUATION, linewidth=2.2, marker="o", markersize=4.5, label=label)
    axes.annotate(
        number(float(means[-1])), (steps[-1], means[-1]), xytext=(6, 0), textcoords="offset points", color=EVALUATION,
        va="center", fontweight="bold", annotation_clip=False,
    )  # fmt: skip


def _dress(axes: Any, run: Run) -> None:
    seed = f", seed {run.seed}" if run.seed is not None else ""
    axes.set_title(
        f"{algorithm_name(run.algorithm)} on {run.env}{seed}", loc="left", fontweight="bold", color=INK, pad=22
    )
    axes.text(0, 1.03, _subtitle(run), transform=axes.transAxes, color=INK, alpha=0.75, fontsize=9)
    axes.set_xlabel("updates" if run.unit == "updates" else "environment steps", color=INK)
    axes.set_ylabel("return of an episode (sum of rewards)", color=INK)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.grid(color="#E4E7EB", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.set_xlim(left=0)
        axes.legend(frameon=False, loc="best", labelcolor=INK, fontsize=9)
    else:
        axes.text(0.5, 0.5, "no episode has ended yet", transform=axes.transAxes, ha="center", color=INK, alpha=0.6)


def _subtitle(run: Run) -> str:
    noun = "update" if run.unit == "updates" else "env step"
    parts = [
        count(run.length, noun),
        *([run.state] if run.state in ("interrupted", "unsaved", "failed", "lost") else []),
    ]
    if run.evaluations:
        last = run.evaluations[-1]
        parts.append(f"last evaluation {number(float(last.mean))} over {count(len(last.returns), 'episode')}")
    return " · ".join(parts)


def main() -> int:
    """Draws curve.png in the run directory that the command line names; says why not on stdout. UNWRITABLE: an OSError."""
    try:
        draw_curve(sys.argv[1], Path(sys.argv[1]) / "curve.png")
    except OSError as error:
        print(error)
        return UNWRITABLE
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
