"""The frame of the report: one HTML page that fetches nothing, with its style sheet and its hover script inside."""

from __future__ import annotations

import html

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
th{color:var(--soft);font-weight:500}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}td.differs{font-weight:600}
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


def table(head: list[str], rows: list[list[str]], numeric: set[int] | None = None) -> str:
    """A table whose cells are HTML already; columns in ``numeric`` are set right."""
    marks = ['class="n"' if index in (numeric or set()) else "" for index in range(len(head))]
    top = "".join(f"<th {mark}>{cell}</th>" for cell, mark in zip(head, marks))
    body = "".join("<tr>" + "".join(f"<td {m}>{c}</td>" for c, m in zip(row, marks)) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
