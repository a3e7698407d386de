"""The report's small charts: which metrics of a run are shown, under which title, in which order."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cluster.history import Run
from cluster.metrics.catalogue import AGENT_CHARTS, agent_metrics, charts
from cluster.pictures.chart import Line, draw_chart

AXES = {"env_steps": "environment steps", "updates": "updates"}  # what a run's length is counted in, in words
EPISODES = ("return_mean", "length_mean")  # charts before those of the agent; the others follow them
ONLINE = {"env_steps_per_s", "policy_age_p95"}  # all zero where nothing was gathered
TARGET_COLOUR = 7


class Shown(NamedTuple):
    """A run as the charts show it."""

    label: str
    colour: int
    run: Run


def small_charts(shown: Sequence[Shown], unit: str) -> Iterable[str]:
    """HTML figures of ``shown``, runs whose length is counted in ``unit``; metrics that none of them has are left out."""
    agents = {name: key for each in shown for name, key in agent_metrics(each.run.last).items()}
    order = [name for name in AGENT_CHARTS if name in agents] + sorted(set(agents) - set(AGENT_CHARTS))
    learning = {agents[name]: AGENT_CHARTS.get(name, (name.replace("_", " "), "")) for name in order}
    own = charts()
    first = {key: own.pop(key) for key in EPISODES}
    for key, (title, meaning) in (first | learning | own).items():
        lines = [Line(label=label, colour=colour, x=x, y=y) for label, colour, x, y in _series(shown, key)]
        if unit == "updates" and _says_nothing(key, lines):
            continue
        if key == "replay_ratio":
            lines += _targets(shown)
        yield draw_chart(title, meaning, lines, axis=AXES.get(unit, unit))


def _series(shown: Sequence[Shown], key: str) -> Iterable[tuple[str, int, list[float], list[float]]]:
    return ((each.label, each.colour, *each.run.series(key)) for each in shown)


def _says_nothing(key: str, lines: Sequence[Line]) -> bool:
    """In a run of stages: a ratio that nothing holds, and what only gathering makes other than zero."""
    return key == "replay_ratio" or (key in ONLINE and not any(any(line.y) for line in lines))


def _targets(shown: Sequence[Shown]) -> Iterable[Line]:
    runs = [each.run for each in shown]
    targets = {run.last["target_replay_ratio"] for run in runs if "target_replay_ratio" in run.last}
    for target in sorted(filter(math.isfinite, targets)):
        reach = max(run.length for run in runs)
        yield Line(label="target", colour=TARGET_COLOUR, x=[0.0, float(reach)], y=[target, target], dashed=True)
