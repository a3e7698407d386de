"""Commands that look at runs and settings, and ``scale``: ``status``, ``report``, ``presets`` and ``config``."""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from algorithms import ALGORITHMS
from cluster.commands.arguments import add_code, add_command, count, location, named_task, new_file, seconds
from cluster.config import PRESETS, RunConfig, flatten, make_preset, presets_of
from cluster.errors import RunError, UsageError
from cluster.history import document, evaluation_records, number, state_of
from cluster.metrics.alarms import alarms, figures
from cluster.metrics.catalogue import by_reason, restarts
from cluster.own_code import resume_words
from cluster.reports import LATE_S, free_words
from cluster.run_dir import RunDirectory, seed_dirs
from cluster.setting_text import check_known
from replay.option import in_setting_words, range_of, type_of

MISSED = 3  # records that a run may be late, and what a write takes until it hangs, before it counts as silent


def add_status(commands: Any) -> None:
    scale = add_command(commands, "scale", _scale, "change the number of rollout workers while the run goes on")
    scale.add_argument("run_dir", type=location, metavar="RUN_DIR")
    scale.add_argument("--workers", type=count, required=True, help="rollout workers from now on, 1 to 4096")
    scale.add_argument(
        "--timeout", type=seconds, default=120.0, help="seconds to wait for the run's answer (default: 120)"
    )
    status = add_command(commands, "status", _status, "how a run is going, or how it ended")
    status.add_argument("run_dir", type=location, metavar="RUN_DIR")
    status.add_argument("--json", action="store_true", help="one JSON object instead of words")
    report = add_command(commands, "report", _report, "one self-contained HTML page with the curves of these runs")
    report.add_argument("run_dirs", type=location, nargs="+", metavar="RUN_DIR")
    report.add_argument(
        "--output", type=new_file, default=Path("report.html"), help="where the page goes (default: report.html)"
    )
    add_command(commands, "presets", _presets, "the named configurations")
    config = add_command(commands, "config", _config, "every field of a preset: value, unit, meaning")
    config.add_argument("preset", metavar="PRESET", help=", ".join(PRESETS))
    config.add_argument("--env", metavar="ID", help="resolve what preset paper sets by task (default: HalfCheetah-v5)")
    config.add_argument(
        "--algorithm", choices=list(ALGORITHMS), help="(default: softgac, or the first that has the preset)"
    )
    add_code(config)


def _scale(arguments: argparse.Namespace) -> int:
    run = RunDirectory.open(arguments.run_dir)
    owner = require_owner(run, "scale")
    if ends := _ending(run, owner):
        raise RunError(f"{ends}; nothing was changed")
    ident = run.requests.write("scale", arguments.workers)
    over = partial(_ending, run, owner)
    print(run.requests.wait_for_answer(ident, arguments.timeout, over, withdrawn="scale"))
    return 0


def _ending(run: RunDirectory, owner: int) -> str:
    """That the run ends or has ended, and takes no other number of workers; "" while process ``owner`` goes on with it."""
    if run.live().get("state") == "finishing" and run.owner() == owner:
        return f"{run.path} is finishing: it has all it wanted, or was asked to stop"
    return driver_gone(run, owner)


def driver_gone(run: RunDirectory, owner: int) -> str:
    """That process ``owner``, which drove the run and was asked something, has ended; "" while it drives the run."""
    if run.owner() == owner:
        return ""
    return f"no process drives {run.path} any more: process {owner} ended before it answered"


def require_owner(run: RunDirectory, verb: str) -> int:
    """The process that drives the run; UsageError when there is none."""
    owner = run.owner()
    if owner is None:
        raise UsageError(
            f"no process drives {run.path}: there is nothing to {verb}; start it with `{resume_words(run.path, run.config())}`"
        )
    return owner


def _status(arguments: argparse.Namespace) -> int:
    runs = seed_dirs(arguments.run_dir)
    found = [status(path) for path in runs or [arguments.run_dir]]
    if arguments.json:
        print(json.dumps(found if runs else found[0]), file=arguments.stdout)
    else:
        print("\n".join(map(status_in_words, found)))
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from cluster.pictures.report import write_report

    try:
        write_report([run for path in arguments.run_dirs for run in seed_dirs(path) or [path]], arguments.output)
    except OSError as error:
        raise RunError(
            f"{arguments.output} could not be written ({error}); give --output a file that can be"
        ) from error
    print(arguments.output)
    return 0


def _presets(arguments: argparse.Namespace) -> int:
    for name, make in PRESETS.items():
        print(f"{name:11} {(make.__doc__ or '').strip()}")
    print("\n`drawbridge config PRESET` shows every field of one.")
    return 0


def _config(arguments: argparse.Namespace) -> int:
    owners = [name for name in ALGORITHMS if arguments.preset in presets_of(name)]
    if arguments.algorithm is None:
        check_known(arguments.preset, PRESETS, "preset")  # of any algorithm
    algorithm = arguments.algorithm or next(iter(owners), "softgac")
    config = make_preset(algorithm, arguments.preset, arguments.env)
    if arguments.env is not None:
        _check_env(arguments.env)
    print(_described(config))
    return 0


def _check_env(env: str) -> None:
    """UsageError if there is no such environment. A task of the paper may be of a package that is not installed."""
    from algorithms.config import published

    task = published(env)
    if task is not None and (task.suite == "HumanoidBench" or (task.suite == "DMC" and not find_spec("shimmy"))):
        return
    named_task(env, None)
    from rollout_workers.env import EnvError
    from rollout_workers.env_ids import find_env

    try:
        find_env(env)
    except EnvError as error:
        raise UsageError(str(error)) from error


def _described(config: RunConfig) -> str:
    """A table of every field: key, value, unit, range, meaning."""
    rows = [
        (
            key,
            in_setting_words(value),
            field.metadata["unit"],
            range_of(field) or type_of(field),
            field.metadata["help"],
        )
        for key, (value, field) in flatten(config).items()
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join("  ".join(f"{cell:<{width}}" for cell, width in zip(row, (*widths, 0))) for row in rows)


def status(run_dir: Path) -> dict[str, Any]:
    """What is known of a run: its state, newest line, last evaluation, and how it ended if it did."""
    run = RunDirectory.open(run_dir)
    notes: list[str] = []
    config, owner = run.config(), run.owner()
    live, summary, failure = (document(run.path / f"{name}.json", notes) for name in ("live", "summary", "failure"))
    evaluations = evaluation_records(run.path, config.unit, notes)
    state = state_of(live, summary, failure, owner is not None)
    silent_s = round(time.time() - live["written"], 1) if number(live.get("written")) else None
    found = {
        "run_dir": str(run.path),
        "state": state,
        "pid": owner,
        "algorithm": config.algorithm,
        "env": config.env,
        "seed": config.seed,
        "backend": config.backend,
        "steps": config.steps,
        "unit": config.unit,
        "silent_s": silent_s,
        "silent": state == "running" and (silent_s or 0.0) > MISSED * config.metrics.line_s + LATE_S,
        "line_s": config.metrics.line_s,
        "live": {key: value for key, value in live.items() if key not in ("pid", "state", "written")},
        "last_evaluation": evaluations[-1][0] if evaluations else None,
        "summary": summary or None,
        "alarms": list(alarms(figures(live), config.planned_updates).values()),
        "notes": notes,
        "resume": resume_words(run.path, config),
    }
    if (run.path / "failure.json").exists():
        found["failure"] = failure
    return found


def _above_0(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)


def status_in_words(found: dict[str, Any]) -> str:
    """``status`` for a person."""
    unit, lost = found["unit"], found["state"] == "lost"
    live = {key: value for key, value in found["live"].items() if value is not None}
    lines = [
        f"{found['run_dir']}: {found['algorithm']} on {found['env']}, seed {found['seed']}, {found['state']}"
        + (f" (process {found['pid']})" if found["pid"] else ""),
    ]
    if found["silent"]:
        lines.append(
            f"  silent     these figures are {found['silent_s']:,.0f} s old, and one record is due every {found['line_s']:g} s: process "
            f"{found['pid']} was stopped or hangs, or it cannot write there ({free_words(Path(found['run_dir']))}); its output says which"
        )
    if lost and found["silent_s"] is not None:
        lines.append(f"  lost       its process is gone; these are its last figures, {found['silent_s']:,.0f} s old")
    if live.get("phase"):
        lines.append(f"  now        {live['phase']}")
    if "env_steps" in live:
        gathered = unit == "env_steps" or live["env_steps"] > 0 or live.get("workers_wanted", 0) > 0
        bounds = {unit: f" of {found['steps']:,}"}
        names = ("env_steps", "updates")
        rates = {name: "" if lost else f"   {live.get(f'{name}_per_s', 0):,.0f}/s" for name in names}
        ratio = f"   replay ratio {live.get('replay_ratio', 0):.3f} (target {live.get('target_replay_ratio', 0):g})"
        if gathered:
            lines.append(f"  env steps  {live['env_steps']:>12,}{bounds.get('env_steps', '')}{rates['env_steps']}")
        lines += [
            f"  updates    {live.get('updates', 0):>12,}{bounds.get('updates', '')}{rates['updates']}"
            + (ratio if unit == "env_steps" else ""),
            f"  replay     {live.get('size_rows', 0):>12,} rows, {100 * live.get('fill', 0):.1f} % full",
        ]
        age = (
            f", age p50 {live.get('policy_age_p50', 0)} p95 {live.get('policy_age_p95', 0)} versions"
            if gathered
            else ""
        )
        lines.append(f"  policy     version {live.get('version', 0)}{age}")
        if gathered and found["state"] in ("starting", "running", "finishing"):
            running = live.get("workers_in_words") or live.get("workers", 0)
            lines.append(f"  workers    {running}")
    if "plan_predicted_mean" in live:
        asked = f"ask for {live['plan_target_mean']:,.1f}, " if "plan_target_mean" in live else ""
        reached = f", episodes reach {live['return_mean']:,.1f}" if "return_mean" in live else ""
        lines.append(f"  plans      {asked}predict {live['plan_predicted_mean']:,.1f}{reached}")
    again = restarts(live)
    dropped = by_reason(live, "rows_dropped_")
    if any(again.values()):
        lines.append(f"  restarts   {_above_0(again)}")
    if any(dropped.values()):
        lines.append(f"  dropped    {sum(dropped.values()):,} rows: {_above_0(dropped)}")
    evaluation = found["last_evaluation"]
    if evaluation:
        mean = sum(evaluation["returns"]) / len(evaluation["returns"])
        lines.append(
            f"  evaluated  {mean:,.1f} over {len(evaluation['returns'])} episodes at {evaluation[unit]:,} {unit.replace('_', ' ')}"
            + (f", normalised {score:.1f}" if number(score := evaluation.get("normalised_mean")) else "")
        )
    lines += [f"  alarm      {text}" for text in found["alarms"]]
    if "failure" in found:
        how = "ended" if found["state"] == "interrupted" else "failed"
        lines.append(f"  {how:10} {found['failure'].get('error', 'no error was recorded')}")
    elif found["summary"] and found["summary"].get("why"):
        lines.append(f"  ended      {found['summary']['why']}")
    lines += [f"  note       {text}" for text in found["notes"]]
    if found["state"] in ("lost", "failed", "unsaved", "interrupted") and found["resume"] not in "".join(lines):
        lines.append(f"  go on with `{found['resume']}`")
    return "\n".join(lines)
