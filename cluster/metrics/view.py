"""The live picture of a run in a terminal: one panel, drawn to whatever width there is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.box import ASCII, ROUNDED
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from cluster.metrics.catalogue import agent_metrics, by_reason, restarts
from cluster.metrics.wording import clock, number, percent

LABEL_WIDTH = 8
SILENT_AFTER_S = 10.0  # without news from the run, the view says so
LEARNER_PARTS = (("update", "update", "green"), ("data_wait", "data wait", "yellow"), ("publish", "publish", "blue"))
LEARNING = (  # what of the agent's metrics is shown, in order of importance
    ("alpha", "alpha"),
    ("q_mean", "Q"),
    ("control_energy_per_step_coord", "energy/coord"),
    ("control_energy", "energy"),
    ("entropy", "entropy"),
    ("critic_loss", "critic loss"),
    ("actor_loss", "actor loss"),
    ("elbo", "ELBO"),
    ("kl_token", "KL/token"),
    ("active_dims", "active dims"),
    ("action_mse", "action error"),
    ("return_error", "return error"),
)
Parts = list[Text]


def gathers(line: Mapping[str, Any], unit: str) -> bool:
    """Whether a run steps environments: one that is counted in updates may learn from its dataset alone."""
    return unit == "env_steps" or line.get("env_steps", 0) > 0 or line.get("workers_wanted", line.get("workers", 0)) > 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """A rich renderable of the newest metrics.

    ``evaluations`` are (env_steps, mean return) of the evaluations so far. ``silent_s`` is the time since the last
    metrics line. ``ascii`` keeps to ASCII, for terminals without UTF-8.
    """

    title: str
    line: dict[str, Any]
    total_steps: int
    evaluations: Sequence[tuple[float, float]]
    eta_s: float | None
    unit: str = "env_steps"  # of total_steps: env_steps or updates
    phase: str = ""  # of a run in stages
    silent_s: float = 0.0
    ascii: bool = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        inner = max(20, options.max_width - 4)
        rows = Table.grid(padding=(0, 1))
        rows.add_column(width=LABEL_WIDTH, style="bold", no_wrap=True)
        rows.add_column(no_wrap=True, overflow="ellipsis")
        for label, parts in self._rows():
            if parts:
                rows.add_row(label, fitted(parts, inner - LABEL_WIDTH - 1))
        body = Group(self._progress(inner), Text(""), rows)
        yield Panel(
            body,
            title=Text(self.title, style="bold cyan", overflow="ellipsis", no_wrap=True),
            subtitle=self._subtitle(),
            title_align="left",
            subtitle_align="right",
            border_style="cyan",
            box=ASCII if self.ascii else ROUNDED,
        )

    def _subtitle(self) -> Text:
        if self.silent_s > SILENT_AFTER_S:
            return Text(f"no news for {round(self.silent_s)} s", style="bold yellow")
        return Text(f"{clock(self.line.get('time_s'))} elapsed", style="dim")

    def _progress(self, width: int) -> Text:
        steps = self.line.get(self.unit, 0)
        share = min(1.0, steps / self.total_steps) if self.total_steps > 0 else 1.0
        figures = Text.assemble(
            (f" {100 * share:3.0f} %", "bold"),
            f"  {number(steps)} of {number(self.total_steps)} {self.unit.replace('_', ' ')}",
            ("" if share >= 1 else "  ETA ", "dim"),
            "" if share >= 1 else clock(self.eta_s),
        )
        room = width - figures.cell_len
        if room < 8:
            return figures
        full, empty = ("#", ".") if self.ascii else ("━", "━")
        done = round(share * room)
        return Text.assemble((full * done, "green"), (empty * (room - done), "bright_black"), figures)

    def _rows(self) -> Iterable[tuple[str, Parts]]:
        yield "Stage", [Text(self.phase)] if self.phase else []
        yield "Return", self._return()
        yield "", self._spark()
        yield "Speed", self._speed()
        yield "Replay", self._replay()
        yield "Workers", self._workers()
        yield "Policy", self._policy()
        yield "Learner", self._learner()
        yield "Learning", self._learning()
        yield "Restarts", self._restarts()

    def _return(self) -> Parts:
        parts = []
        if self.evaluations:
            at, mean = self.evaluations[-1]
            parts.append(
                shown(
                    "evaluation",
                    number(float(mean)),
                    f"at {number(int(at))} {self.unit.removeprefix('env_')}",
                    strong=True,
                )
            )
            if "eval_normalised" in self.line:
                parts.append(shown("normalised", number(float(self.line["eval_normalised"])), "(expert 100)"))
        if "return_mean" in self.line:
            low, high = self.line.get("return_min"), self.line.get("return_max")
            around = "" if low is None or high is None else f"({number(float(low))} to {number(float(high))})"
            parts.append(shown("training", number(float(self.line["return_mean"])), around))
        if not gathers(self.line, self.unit):
            return parts or [Text("no evaluation yet", style="dim")]
        if "return_mean" not in self.line and "reward_mean" in self.line:
            parts.append(shown("reward", number(float(self.line["reward_mean"])), "a step, no episode has ended yet"))
        return parts or [Text("no episode has ended yet", style="dim")]

    def _spark(self) -> Parts:
        values = [mean for _, mean in self.evaluations]
        if len(values) < 2:
            return []
        ends = f"{number(float(min(values)))} to {number(float(max(values)))}"
        return [Text(sparkline(values, 32, ascii=self.ascii), style="green"), shown("", ends, "over the evaluations")]

    def _speed(self) -> Parts:
        parts = [
            shown("", number(float(self.line[key])), f"{noun}/s")
            for key, noun in (("env_steps_per_s", "env steps"), ("updates_per_s", "updates"))
            if key in self.line and (key != "env_steps_per_s" or gathers(self.line, self.unit))
        ]
        ratio, target = self.line.get("replay_ratio"), self.line.get("target_replay_ratio")
        if ratio is not None:
            off = bool(target) and abs(ratio / target - 1) > 0.1
            aim = f"(target {number(float(target))})" if target is not None else ""
            parts.append(shown("replay ratio", number(float(ratio)), aim, style="yellow" if off else ""))
        return parts

    def _replay(self) -> Parts:
        parts = []
        if "fill" in self.line:
            parts.append(shown("", percent(self.line["fill"]), "full"))
        if "size_rows" in self.line:
            parts.append(shown("", number(int(self.line["size_rows"])), "rows"))
        dropped = by_reason(self.line, "rows_dropped_")
        lost = sum(dropped.values())
        if lost:
            reasons = ", ".join(f"{reason} {number(n)}" for reason, n in sorted(dropped.items()) if n)
            parts.append(shown("", number(lost), f"dropped ({reasons})", style="yellow"))
        elif (dropped or "rows_recorded" in self.line) and gathers(self.line, self.unit):
            parts.append(Text("none dropped", style="dim"))
        return parts

    def _workers(self) -> Parts:
        if "workers" not in self.line or not gathers(self.line, self.unit):
            return []
        restarted = int(self.line.get("workers_restarted", 0))
        parts = [shown("", number(int(self.line["workers"])), "running")]
        parts.append(shown("", number(restarted), "restarted", style="yellow" if restarted else ""))
        busy = {key: self.line.get(f"{key}_s", 0.0) for key in ("env", "act", "record", "push_wait")}
        total = sum(busy.values())
        if total > 0:
            names = {"env": "env", "act": "act", "record": "record", "push_wait": "wait to push"}
            parts += [shown(names[key], percent(value / total)) for key, value in busy.items()]
        return parts

    def _policy(self) -> Parts:
        parts = [shown("version", number(int(self.line["version"])))] if "version" in self.line else []
        if "policy_age_p95" in self.line and gathers(self.line, self.unit):
            middle = f"{self.line['policy_age_p50']:g} / " if "policy_age_p50" in self.line else ""
            label = "age p50 / p95" if middle else "age p95"
            parts.append(shown(label, f"{middle}{self.line['policy_age_p95']:g}", "versions"))
        if "publish_interval_s" in self.line:
            parts.append(shown("published every", number(float(self.line["publish_interval_s"])), "s"))
        return parts

    def _learner(self) -> Parts:
        shares = [(self.line.get(f"learner_{key}"), name, style) for key, name, style in LEARNER_PARTS]
        known = [(share, name, style) for share, name, style in shares if share is not None]
        if not known:
            return []
        room, bar = 16, Text()
        for share, name, style in known:
            block = name[0] if self.ascii else "█"
            bar.append(block * min(room - len(bar), round(share * room)), style=style)
        bar.append(("." if self.ascii else "░") * (room - len(bar)), style="bright_black")
        return [bar, *(Text.assemble((f"{name} ", "dim"), (percent(share), style)) for share, name, style in known)]

    def _restarts(self) -> Parts:
        """Of all parts but the workers, which have their own row."""
        counts = {part: n for part, n in restarts(self.line).items() if n and part != "worker"}
        return [shown(part, number(n), style="yellow") for part, n in counts.items()]

    def _learning(self) -> Parts:
        keys = agent_metrics(self.line)
        parts = []
        skipped = self.line.get(keys.get("nonfinite", ""), 0)
        if skipped:
            parts.append(shown("", number(float(skipped)), "non-finite updates", style="bold red"))
        parts += [shown(label, number(float(self.line[keys[name]]))) for name, label in LEARNING if name in keys]
        return parts


def shown(label: str, value: str, unit: str = "", *, strong: bool = False, style: str = "") -> Text:
    """A figure between its label and its unit, which are dimmed."""
    words = [(label, "dim"), (value, style or ("bold green" if strong else "")), (unit, style or "dim")]
    return Text(" ").join(Text(word, style=how) for word, how in words if word)


def fitted(parts: Parts, width: int) -> Text:
    """As many of ``parts``, most important first, as fit in ``width`` columns; always the first one, cut if need be."""
    line = parts[0].copy()
    for part in parts[1:]:
        if line.cell_len + 3 + part.cell_len > width:
            break
        line = Text.assemble(line, "   ", part)
    line.truncate(width, overflow="ellipsis")
    return line


def sparkline(values: Sequence[float], width: int, *, ascii: bool = False) -> str:
    """The newest values as a row of blocks between their minimum and maximum, at most ``width`` characters."""
    blocks = "_.-=*#" if ascii else "▁▂▃▄▅▆▇█"
    shown_values = list(values)[-width:]
    low, high = min(shown_values), max(shown_values)
    scale = (len(blocks) - 1) / (high - low) if high > low else 0.0
    return "".join(blocks[round((value - low) * scale)] for value in shown_values)
