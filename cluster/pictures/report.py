"""One self-contained page about runs: their curves, summaries, differences and failures."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import html
import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cluster.errors import UsageError
from cluster.history import Run, read_run
from cluster.metrics.alarms import alarms, figures, planned_updates
from cluster.metrics.catalogue import agent_metrics, charts, restarts
from cluster.metrics.view import gathers
from cluster.metrics.wording import AGENT_CHARTS, algorithm_name, clock, number, percent
from cluster.no_run import NotARun
from cluster.own_code import resume_words
from cluster.pictures.chart import COLOURS, Line, draw_chart, page, table

__all__ = ["NotARun", "Run", "bootstrap_interval", "read_run", "write_report"]

RESAMPLES = 2_000
AGE, DROPPED = 4, 5  # of the summary's cells: both say nothing of a run that gathers nothing
SEPARATE = {"seed", "steps", "versions", "git", "command"}  # differences that do not make another experiment


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that differ in nothing but their seed and length: repetitions of one experiment."""

    label: str
    colour: int
    runs: tuple[Run, ...]


def write_report(run_dirs: Sequence[str | Path], path_html: str | Path) -> Path:
    """Writes the page about ``run_dirs`` to ``path_html``, which is replaced in one go.

    Runs of one algorithm, environment and configuration (seed and length aside) are repetitions: their evaluation
    return is shown as the mean over runs with its 95 % bootstrap interval. A run alone shows its episodes' spread.

    Raises:
        NotARun: one of the directories is no run directory.
        UsageError: no directory was given.
    """
    if not run_dirs:
        raise UsageError("a report needs at least one run directory, none was given; nothing was written")
    runs = [read_run(path) for path in dict.fromkeys(Path(path).resolve() for path in run_dirs)]
    title = f"Drawbridge: {runs[0].name}" if len(runs) == 1 else f"Drawbridge: {len(runs)} runs"
    made = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    parts = [
        f'<h1>{_text(title)}</h1><p class="soft">{_text(made)}</p>',
        *_alarms(runs),
        "<h2>Summary</h2>",
        _summary(runs),
    ]
    for env, unit in dict.fromkeys((run.env, run.unit) for run in runs):
        parts += _section(env, unit, [run for run in runs if (run.env, run.unit) == (env, unit)])
    parts += [*_diagnoses(runs), *_differences(runs), *_configurations(runs)]
    path = Path(path_html)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(page(title, "\n".join(parts)), encoding="utf-8")
    partial.replace(path)
    return path


def bootstrap_interval(values_RG: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """95 % percentile bootstrap interval of the mean over R runs at each of G points: (low_G, high_G)."""
    runs = len(values_RG)
    chosen = np.random.default_rng(seed).integers(0, runs, size=(RESAMPLES, runs))
    weights = np.stack([(chosen == run).mean(axis=1) for run in range(runs)], axis=1)
    low, high = np.percentile(weights @ values_RG, [2.5, 97.5], axis=0)
    return low, high


def interquartile_mean(values_R: np.ndarray) -> np.ndarray:
    """Mean of the middle half along the last axis: a quarter of the runs, rounded down, is left out at each end."""
    cut = values_R.shape[-1] // 4
    return np.sort(values_R)[..., cut : values_R.shape[-1] - cut].mean(axis=-1)


def compare(scores_R: np.ndarray, seed: int = 0) -> dict[str, tuple[float, float, float]]:
    """Mean and interquartile mean over R runs, each with its 95 % percentile bootstrap interval: (value, low, high).

    Source: Agarwal et al. (2021), "Deep RL at the edge of the statistical precipice", and its rliable, for one task.
    """
    drawn = scores_R[np.random.default_rng(seed).integers(0, len(scores_R), size=(RESAMPLES, len(scores_R)))]
    found = {}
    for name, statistic in (("mean", functools.partial(np.mean, axis=-1)), ("IQM", interquartile_mean)):
        low, high = np.percentile(statistic(drawn), [2.5, 97.5])
        found[name] = float(statistic(scores_R)), float(low), float(high)
    return found


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Runs of one environment as groups of repetitions, in the order of their first run."""
    sorted_out: dict[str, list[Run]] = {}
    for run in runs:
        sorted_out.setdefault(json.dumps([run.algorithm, _settings(run)], sort_keys=True, default=str), []).append(run)
    groups = list(sorted_out.values())
    labels = [_label(members[0], [other[0] for other in groups]) for members in groups]
    return [Group(label=label, colour=i, runs=tuple(g)) for i, (label, g) in enumerate(zip(labels, groups))]


def _label(run: Run, firsts: Sequence[Run]) -> str:
    rivals = [_settings(other) for other in firsts if other.algorithm == run.algorithm]
    mine = _settings(run)
    keys = [key for key in mine if len({str(settings.get(key)) for settings in rivals}) > 1]
    text = ", ".join(f"{key} = {mine[key]}" for key in keys[:3]) + (", ..." if len(keys) > 3 else "")
    return algorithm_name(run.algorithm) + (f" ({text})" if text else "")


def _section(env: str, unit: str, runs: Sequence[Run]) -> Iterable[str]:
    """The charts of one environment's runs whose length is counted in one unit: others share no axis with them."""
    groups = grouped(runs)
    counted = ' <span class="soft">from data, counted in updates</span>' if unit == "updates" else ""
    yield f"<h2>{_text(env)}{counted}</h2>"
    keys = [
        f'<span><i class="swatch c{g.colour % COLOURS}"></i>{_text(g.label)} '
        f'<span class="soft">{_text(_members(g))}</span></span>'
        for g in groups
    ]
    yield f'<div class="key">{"".join(keys)}</div>'
    lines = [line for group in groups for line in _evaluation_lines(group)] + _references(runs)
    yield draw_chart(
        "Evaluation return", "sum of rewards, deterministic policy", lines, wide=True, axis=AXES.get(unit, unit)
    ) or ('<p class="soft">No evaluation has been made yet.</p>')
    yield from _comparison(groups)
    notes = {_band_note(group) for group in groups if any(run.evaluations for run in group.runs)}
    yield "".join(f'<p class="soft">{_text(note)}</p>' for note in sorted(notes))
    yield f'<div class="grid-of">{"".join(small_charts(_shown(groups), unit))}</div>'


def _comparison(groups: Sequence[Group]) -> Iterable[str]:
    """The last evaluations of groups of runs, where one of them has several."""
    if all(len(_evaluated(group)) < 2 for group in groups):
        return
    rows = []
    for group in groups:
        last = [run.evaluations[-1] for run in _evaluated(group)]
        if last:
            steps = " to ".join(dict.fromkeys(f"{at:,}" for at in (min(e.at for e in last), max(e.at for e in last))))
            found = compare(np.array([evaluation.mean for evaluation in last]))
            cells = [f"{_figure(value)} [{_figure(low)}, {_figure(high)}]" for value, low, high in found.values()]
            if len(last) == 1:
                cells = [_figure(last[0].mean), "-"]
            rows.append([_text(group.label), str(len(last)), steps, *cells])
    head = ["last evaluation of", "runs", "at", "mean [95 % interval]", "interquartile mean [95 % interval]"]
    yield table(head, rows, numeric=range(1, 5), wrapped={0})


def _members(group: Group) -> str:
    return group.runs[0].name if len(group.runs) == 1 else f"{len(group.runs)} runs"


def _band_note(group: Group) -> str:
    if len(_evaluated(group)) > 1:
        return (
            "Several runs: the mean over runs with its 95 % bootstrap interval, up to where all of them have come; "
            "single runs are faint."
        )
    return "One run: the mean of its evaluation, with a band from the worst to the best episode."


def _evaluated(group: Group) -> list[Run]:
    return [run for run in group.runs if run.evaluations]


def _evaluation_lines(group: Group) -> Iterable[Line]:
    runs = _evaluated(group)
    curves = [([float(e.at) for e in run.evaluations], [e.mean for e in run.evaluations]) for run in runs]
    first, last = max((x[0] for x, _ in curves), default=0), min((x[-1] for x, _ in curves), default=0)
    grid = sorted({at for x, _ in curves for at in x if first <= at <= last})
    if len(runs) > 1 and grid:
        yield from (
            Line(label=run.name, colour=group.colour, x=x, y=y, faint=True) for run, (x, y) in zip(runs, curves)
        )
        values_RG = np.array([np.interp(grid, x, y) for x, y in curves])
        low, high = bootstrap_interval(values_RG)
        mean = values_RG.mean(axis=0).tolist()
        yield Line(label=group.label, colour=group.colour, x=grid, y=mean, band=(low.tolist(), high.tolist()))
        return
    for run, (x, y) in zip(runs, curves):
        worst, best = [min(e.returns) for e in run.evaluations], [max(e.returns) for e in run.evaluations]
        yield Line(label=group.label, colour=group.colour, x=x, y=y, band=(worst, best))


def _references(runs: Sequence[Run]) -> list[Line]:
    """What the random policy and the expert of these runs' datasets return, each once."""
    reach = float(max(run.length for run in runs))
    ends = dict.fromkeys(end for run in runs for end in run.references.items())
    return [Line(label=name, colour=TARGET_COLOUR, x=[0.0, reach], y=[y, y], dashed=True) for name, y in ends]


def _shown(groups: Sequence[Group]) -> list[Shown]:
    return [
        Shown(group.label if len(group.runs) == 1 else run.name, group.colour, run)
        for group in groups
        for run in group.runs
    ]


def _alarms(runs: Sequence[Run]) -> Iterable[str]:
    for run in runs:
        if run.state == "interrupted":
            yield f'<div class="callout"><b>{_text(run.name)}:</b> {_text(run.why_interrupted)}</div>'
        elif run.failure:
            trace = run.failure.get("traceback")
            details = f"<details><summary>traceback</summary><pre>{_text(trace)}</pre></details>" if trace else ""
            error = _text(run.failure.get("error", "no error was recorded"))
            yield f'<div class="callout bad"><b>{_text(run.name)} failed:</b> {error}{details}</div>'
        elif run.state == "lost":
            yield (
                f'<div class="callout bad"><b>{_text(run.name)} is lost:</b> its process is gone and left no summary; '
                f"resume it with <code>{_text(resume_words(run.path, {'env': run.env, **run.config}))}</code></div>"
            )
        newest = figures(run.live) if "updates" in run.live else run.last
        for text in alarms(newest, planned_updates(run.config)).values():
            yield f'<div class="callout bad"><b>{_text(run.name)}:</b> {_text(text)}</div>'
        if run.notes:
            notes = "; ".join(run.notes)
            yield f'<div class="callout"><b>{_text(run.name)}:</b> {_text(notes)}</div>'


def _summary(runs: Sequence[Run]) -> str:
    head = ["run", "state", "env steps", "updates", "time", "replay ratio", "last evaluation", "policy age p50 / p95"]
    head += ["rows dropped", "restarts", "learner's time"]
    return table(head, [_summary_row(run) for run in runs], numeric=range(2, 10), wrapped={0})


def _summary_row(run: Run) -> list[str]:
    facts, last = run.summary, run.last
    groups = (facts.get(key) for key in ("rows", "policy_age_versions"))
    rows, age = (group if isinstance(group, dict) else {} for group in groups)
    dropped = rows.get("dropped", {k: v for k, v in last.items() if k.startswith("rows_dropped_")})
    lost = sum(dropped.values()) if isinstance(dropped, dict) else dropped
    parts = facts.get("learner_time") or {k: last.get(f"learner_{k}") for k in ("update", "data_wait", "publish")}
    ages = [age.get(q, last.get(f"policy_age_{q}")) for q in ("p50", "p95")]
    rates = [_figure(facts.get(key, last.get(key))) for key in ("env_steps_per_s", "updates_per_s")]
    about = ", ".join([algorithm_name(run.algorithm), run.env, *([] if run.seed is None else [f"seed {run.seed}"])])
    cells = [
        run.state,
        clock(facts.get("wall_s", last.get("time_s"))),
        _figure(facts.get("replay_ratio", last.get("replay_ratio"))),
    ]
    cells += [_evaluation_cell(run), " / ".join("-" if a is None else f"{a:g}" for a in ages), number(_whole(lost))]
    cells += [number(sum(restarts(last).values())) if last else "-"]
    counts = number(run.env_steps), number(_whole(facts.get("updates", last.get("updates"))))
    counted = [_two_lines(count, f"{rate}/s") for count, rate in zip(counts, rates)]
    if not gathers(last, run.unit):
        counted[0] = cells[AGE] = cells[DROPPED] = "-"
    state, *others = map(_text, cells)
    return [_two_lines(run.name, about), state, *counted, *others, _split(parts)]


def _two_lines(first: str, second: str) -> str:
    return f'{_text(first)}<br><span class="soft">{_text(second)}</span>'


def _evaluation_cell(run: Run) -> str:
    if run.summary.get("eval_return_mean") is not None:
        return f"{_figure(run.summary['eval_return_mean'])} ± {_figure(run.summary.get('eval_return_std'))}"
    if not run.evaluations:
        return "-"
    return f"{_figure(run.evaluations[-1].mean)} at {number(run.evaluations[-1].at)}"


def _split(parts: dict[str, Any]) -> str:
    """A bar of the learner's time: updating, waiting for data, publishing."""
    shown = [
        (key, parts[key], c)
        for key, c in (("update", 2), ("data_wait", 4), ("publish", 0))
        if parts.get(key) is not None
    ]
    if not shown:
        return "-"
    text = ", ".join(f"{key.replace('_', ' ')} {percent(share)}" for key, share, _ in shown)
    bars = "".join(f'<i class="c{c}" style="width:{100 * share:.2f}%"></i>' for _, share, c in shown)
    return (
        f'<div class="split" role="img" aria-label="{text}" title="{text}">{bars}</div><span class="soft">{text}</span>'
    )


def _diagnoses(runs: Sequence[Run]) -> Iterable[str]:
    if any(run.diagnosis for run in runs):
        yield "<h2>What the behaviour depends on</h2>"
    for run in runs:
        if run.diagnosis:
            yield f"<h3>{_text(run.name)}</h3><pre>{_text(run.diagnosis)}</pre>"


def _differences(runs: Sequence[Run]) -> Iterable[str]:
    if len(runs) < 2:
        return
    groups = grouped(runs)
    flat = [[_flat(run.config) for run in group.runs] for group in groups]
    every = [config for configs in flat for config in configs]
    keys = [key for key in dict.fromkeys(k for c in every for k in c) if len({str(c.get(key, "-")) for c in every}) > 1]
    yield "<h2>Differences of configuration</h2>"
    if not keys:
        yield '<p class="soft">There are none.</p>'
        return
    rows = [[_text(key), *(_text(_values(configs, key)) for configs in flat)] for key in keys]
    columns = [_two_lines(group.label, _members(group)) for group in groups]
    yield table(["field", *columns], rows, wrapped=range(1, len(columns) + 1))


def _values(configs: Sequence[dict[str, Any]], key: str) -> str:
    """What the runs of a group have there, each value once."""
    return ", ".join(dict.fromkeys(str(config.get(key, "-")) for config in configs))


def _configurations(runs: Sequence[Run]) -> Iterable[str]:
    yield "<h2>Configurations</h2>"
    for run in runs:
        text = json.dumps(run.config, indent=2) if run.config else "none was recorded"
        yield f"<details><summary>{_text(run.name)}</summary><pre>{_text(text)}</pre></details>"


def _settings(run: Run) -> dict[str, Any]:
    return {key: value for key, value in _flat(run.config).items() if key.split(".")[0] not in SEPARATE}


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves


def _whole(value: Any) -> int | None:
    return None if value is None else int(value)


def _figure(value: Any) -> str:
    return number(None if value is None else float(value))


def _text(value: Any) -> str:
    return html.escape(str(value))


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
