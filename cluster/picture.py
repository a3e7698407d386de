"""A picture as a file, and the colours that all of them share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cluster.errors import UsageError

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
