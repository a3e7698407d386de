"""Line charts as inline SVG: no library on the page, colours from its style sheet, values for its hover script."""

from __future__ import annotations

import dataclasses
import html
import json
import math
from collections.abc import Collection, Iterable, Sequence

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


# Okabe-Ito's colours, which color-blind readers can tell apart, lightened where the page is dark.
STYLE = """
:root{--paper:#fff;--ink:#1d232b;--soft:#5b6673;--rule:#e3e7ec;--card:#f7f8fa;--bad:#b3261e;--badbg:#fdecea;
--c0:#0072b2;--c1:#d55e00;--c2:#009e73;--c3:#b55a93;--c4:#c98500;--c5:#3a9bd9;--c6:#6b5bd2;--c7:#6b7280}
@media(prefers-color-scheme:dark){:root{--paper:#14181d;--ink:#e6e9ed;--soft:#9aa5b1;--rule:#2b323b;--card:#1b2027;
--bad:#ff8a80;--badbg:#3a1f1d;--c0:#4ba8e8;--c1:#ff8a3d;--c2:#2fc79a;--c3:#e58cc4;--c4:#f0b93a;--c5:#8fd0ff;--c6:#a99cff;
--c7:#a3abb5}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1180px;padding:24px 16px 64px;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
h1{font-size:24px;margin:0 0 4px}h2{font-size:19px;margin:36px 0 8px;border-top:1px solid var(--rule);padding-top:20px}
h3{font-size:15px;margin:24px 0 8px}p{margin:6px 0}.soft,.unit,figcaption .unit{color:var(--soft)}
.grid-of{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,320px),1fr));gap:12px}
.chart{position:relative;margin:0;padding:10px 8px 4px;background:var(--card);border:1px solid var(--rule);
border-radius:8px}
.chart.hero{margin:12px 0}figcaption{font-weight:600;font-size:13.5px;padding:0 6px 4px}.unit{font-weight:400}
svg{display:block;width:100%;height:auto;touch-action:pan-y}svg.narrow{display:none}
@media(max-width:640px){svg.wide{display:none}svg.narrow{display:block}}
svg text{fill:var(--soft);font-size:10.5px}svg text.y{text-anchor:end}svg text.x{text-anchor:middle}
.grid{stroke:var(--rule)}.axis{stroke:var(--soft)}.cross{stroke:var(--soft);stroke-dasharray:2 3}
polyline{fill:none;stroke:var(--c);stroke-width:1.4;stroke-linejoin:round}.hero polyline.line{stroke-width:2.4}
polyline.faint{stroke-width:1;opacity:.35}polyline.dashed{stroke-dasharray:5 4}
.band{fill:var(--c);opacity:.16}.dot{fill:var(--c)}
.c0{--c:var(--c0)}.c1{--c:var(--c1)}.c2{--c:var(--c2)}.c3{--c:var(--c3)}.c4{--c:var(--c4)}.c5{--c:var(--c5)}
.c6{--c:var(--c6)}.c7{--c:var(--c7)}
.key{display:flex;flex-wrap:wrap;gap:4px 18px;margin:8px 0}
.swatch{display:inline-block;width:18px;height:4px;border-radius:2px;background:var(--c);vertical-align:middle;margin-right:7px}
.tip{position:absolute;pointer-events:none;display:none;z-index:2;background:var(--paper);border:1px solid var(--rule);
border-radius:6px;padding:6px 9px;font-size:12px;line-height:1.45;box-shadow:0 4px 14px #0003;white-space:nowrap;
max-width:90%}
.tip div{overflow:hidden;text-overflow:ellipsis}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:13px;min-width:100%}
th,td{text-align:left;padding:6px 12px 6px 0;border-bottom:1px solid var(--rule);white-space:nowrap;vertical-align:top}
th{color:var(--soft);font-weight:500;white-space:normal}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}td.w,th.w{white-space:normal;overflow-wrap:anywhere}th{vertical-align:bottom}
.split{display:flex;width:130px;height:10px;border-radius:3px;overflow:hidden;background:var(--rule);margin-top:6px}
.split i{display:block;background:var(--c)}
.callout{border-left:4px solid var(--soft);background:var(--card);padding:8px 14px;margin:10px 0;
border-radius:0 6px 6px 0}
.callout.bad{border-color:var(--bad);background:var(--badbg)}.callout.bad b{color:var(--bad)}
pre{overflow-x:auto;font-size:12px;margin:8px 0;max-height:420px}summary{cursor:pointer}
"""

SCRIPT = """
const short = v => Math.abs(v) >= 1000 ? Math.round(v).toLocaleString('en') : +v.toPrecision(4);
for (const figure of document.querySelectorAll('.chart')) {
  const lines = JSON.parse(figure.dataset.lines), tip = figure.appendChild(document.createElement('div'));
  tip.className = 'tip';
  for (const svg of figure.querySelectorAll('svg')) {
    const [left, right, , , x0, x1] = svg.dataset.box.split(',').map(Number), cross = svg.querySelector('.cross');
    const mark = px => { cross.setAttribute('x1', px); cross.setAttribute('x2', px); };
    svg.onpointerleave = () => { tip.style.display = 'none'; mark(-9); };
    svg.onpointermove = event => {
      const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
      const px = Math.min(right, Math.max(left, (event.clientX - box.left) * scale));
      const x = x0 + (px - left) / (right - left) * (x1 - x0);
      mark(px);
      tip.replaceChildren();
      tip.appendChild(document.createElement('div')).textContent = short(Math.round(x)) + ' ' + figure.dataset.axis;
      for (const line of lines) {
        let best = 0;
        line.x.forEach((v, i) => { if (Math.abs(v - x) < Math.abs(line.x[best] - x)) best = i; });
        const row = tip.appendChild(document.createElement('div'));
        const swatch = document.createElement('span'), value = document.createElement('b');
        swatch.className = 'swatch c' + line.colour;
        value.textContent = short(line.y[best]);
        row.append(swatch, line.label + ': ', value);
      }
      tip.style.display = 'block';
      const at = (px / scale) + (box.left - figure.getBoundingClientRect().left);
      tip.style.left = Math.max(4, at > box.width / 2 ? at - tip.offsetWidth - 12 : at + 12) + 'px';
      tip.style.top = '34px';
    };
  }
}
"""


def page(title: str, body: str) -> str:
    """A whole HTML document around ``body``, which is HTML already; its policy forbids it to fetch anything."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body>{body}<script>{SCRIPT}</script></body></html>\n"
    )


def table(head: list[str], rows: list[list[str]], numeric: Collection[int] = (), wrapped: Collection[int] = ()) -> str:
    """A table whose cells are HTML already; columns in ``numeric`` are set right, those in ``wrapped`` may break anywhere."""
    marks = [f'class="{"n " * (i in numeric)}{"w" * (i in wrapped)}"' for i in range(len(head))]
    top = "".join(f"<th {mark}>{cell}</th>" for cell, mark in zip(head, marks))
    body = "".join("<tr>" + "".join(f"<td {m}>{c}</td>" for c, m in zip(row, marks)) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
