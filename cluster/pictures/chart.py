"""Line charts as inline SVG: no library on the page, colours from its style sheet, values for its hover script."""

from __future__ import annotations

import dataclasses
import html
import json
import math
from collections.abc import Iterable, Sequence

COLOURS = 8  # classes c0 to c7 of the page's style sheet; further lines repeat them dashed
MAX_POINTS = 240  # of one line; more are averaged, a screen has no more columns than that
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 34  # margins, px


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a chart: finite points in order of x, and a band (low, high) around it where there is one."""

    label: str
    colour: int
    x: Sequence[float]
    y: Sequence[float]
    band: tuple[Sequence[float], Sequence[float]] | None = None
    faint: bool = False  # a single run behind the mean of several
    dashed: bool = False


def draw_chart(
    title: str, unit: str, lines: Sequence[Line], *, wide: bool = False, axis: str = "environment steps"
) -> str:
    """An HTML figure of ``lines`` against ``axis``; a wide one has a second drawing for narrow screens."""
    drawn = [_thinned(line) for line in lines if len(line.x)]
    if not drawn:
        return ""
    data = [
        {"label": l.label, "colour": _colour(l), "x": [_rounded(v) for v in l.x], "y": [_rounded(v) for v in l.y]}
        for l in drawn
        if not l.faint
    ]
    sizes = [(860, 320, "wide"), (360, 240, "narrow")] if wide else [(360, 200, "")]
    pictures = "".join(_picture(title, axis, drawn, width, height, kind) for width, height, kind in sizes)
    return (
        f'<figure class="chart{" hero" if wide else ""}" data-axis="{html.escape(axis)}" '
        f'data-lines="{html.escape(json.dumps(data))}">'
        f'<figcaption>{html.escape(title)} <span class="unit">{html.escape(unit)}</span></figcaption>'
        f"{pictures}</figure>"
    )


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) within ``low`` < ``high``, about so many."""
    raw = (high - low) / max(1, about - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def tick_text(value: float) -> str:
    """A tick's value, short: 25k, 1.5M, 0.02, -1.6k."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def thin(x: Sequence[float], *columns: Sequence[float], limit: int = MAX_POINTS) -> list[list[float]]:
    """Averages neighbouring points so that at most ``limit`` are left; (x, *columns) in the same order."""
    size = max(1, math.ceil(len(x) / limit))
    starts = range(0, len(x), size)
    return [[math.fsum(c[i : i + size]) / len(c[i : i + size]) for i in starts] for c in (x, *columns)]


def _thinned(line: Line) -> Line:
    low_high = line.band or ()
    x, y, *band = thin(line.x, line.y, *low_high)
    return dataclasses.replace(line, x=x, y=y, band=(band[0], band[1]) if band else None)


def _picture(title: str, axis: str, lines: Sequence[Line], width: int, height: int, kind: str) -> str:
    wide = width > 500
    x0, x1 = _domain(min(0.0, *(min(l.x) for l in lines)), max(max(l.x) for l in lines), pad=0.0)
    y0, y1 = _domain(min(_lowest(lines)), max(_highest(lines)), pad=0.04)
    x_ticks, y_ticks = ticks(x0, x1, about=7 if wide else 5), ticks(y0, y1, about=8 if wide else 6)
    place = _Placement(x0, x1, y0, y1, width, height)
    parts = [
        *_grid(place, axis, x_ticks, y_ticks),
        *(_band(place, l) for l in lines if l.band),
        *(_path(place, l) for l in lines),
    ]
    box = f'data-box="{LEFT},{width - RIGHT},{TOP},{height - BOTTOM},{place.x0:.10g},{place.x1:.10g}"'
    return (
        f'<svg class="{kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(title)}" {box}>'
        f'{"".join(parts)}<line class="cross" y1="{TOP}" y2="{height - BOTTOM}" x1="-9" x2="-9"/></svg>'
    )


@dataclasses.dataclass(frozen=True)
class _Placement:
    """From values to pixels."""

    x0: float
    x1: float
    y0: float
    y1: float
    width: int
    height: int

    def x(self, value: float) -> float:
        return LEFT + (value - self.x0) / (self.x1 - self.x0) * (self.width - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return self.height - BOTTOM - (value - self.y0) / (self.y1 - self.y0) * (self.height - TOP - BOTTOM)

    def points(self, x: Iterable[float], y: Iterable[float]) -> str:
        return " ".join(f"{self.x(a):.1f},{self.y(b):.1f}" for a, b in zip(x, y))


def _grid(place: _Placement, axis: str, x_ticks: Sequence[float], y_ticks: Sequence[float]) -> Iterable[str]:
    right, bottom = place.width - RIGHT, place.height - BOTTOM
    for value in y_ticks:
        y = place.y(value)
        yield f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text class="y" x="{LEFT - 6}" y="{y + 3.5:.1f}">{tick_text(value)}</text>'
    for value in x_ticks:
        yield f'<text class="x" x="{place.x(value):.1f}" y="{bottom + 15}">{tick_text(value)}</text>'
    yield f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>'
    yield f'<text class="x name" x="{(LEFT + right) / 2:.0f}" y="{place.height - 4}">{html.escape(axis)}</text>'


def _band(place: _Placement, line: Line) -> str:
    low, high = line.band or ((), ())
    outline = f"{place.points(line.x, high)} {place.points(reversed(line.x), reversed(low))}"
    return f'<polygon class="band c{line.colour % COLOURS}" points="{outline}"/>'


def _path(place: _Placement, line: Line) -> str:
    style = "faint" if line.faint else "dashed" if line.dashed or line.colour >= COLOURS else "line"
    if len(line.x) == 1:
        x, y = place.x(line.x[0]), place.y(line.y[0])
        return f'<circle class="dot c{line.colour % COLOURS}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
    return f'<polyline class="{style} c{line.colour % COLOURS}" points="{place.points(line.x, line.y)}"/>'


def _domain(low: float, high: float, pad: float) -> tuple[float, float]:
    """The range of an axis: wider than the values by ``pad`` of their range, and never empty."""
    room = (high - low) * pad if high - low > 1e-12 * abs(high) else (abs(low) * 0.1 or 1.0)
    return low - room, high + room


def _lowest(lines: Sequence[Line]) -> Iterable[float]:
    return (min(line.band[0] if line.band else line.y) for line in lines)


def _highest(lines: Sequence[Line]) -> Iterable[float]:
    return (max(line.band[1] if line.band else line.y) for line in lines)


def _colour(line: Line) -> int:
    return line.colour % COLOURS


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
