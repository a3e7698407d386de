"""``drawbridge check-env``: whether an environment can be trained on, and what it is like."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from cluster.commands.arguments import add_command, add_env_kwargs, count, named_task
from cluster.errors import UsageError
from cluster.last_words import ended_words, last_words
from cluster.metrics.wording import count as counted
from cluster.metrics.wording import number
from replay.task import join_task

if TYPE_CHECKING:
    import numpy as np

    from rollout_workers.env_check import EnvReport


def add_check_env(commands: Any) -> None:
    check = add_command(commands, "check-env", _check_env, "try an environment before a run: its contract, its speed")
    check.add_argument("env", metavar="ID", help="Gymnasium environment id, or module:Id")
    add_env_kwargs(check, "none")
    check.add_argument("--episodes", type=count, default=10, help="episodes with random actions (default: 10)")


def _check_env(arguments: argparse.Namespace) -> int:
    from rollout_workers.env import EnvError
    from rollout_workers.env_check import check_env

    env_id, kwargs = named_task(arguments.env, arguments.env_kwargs)
    task = join_task(env_id, kwargs or {})
    try:
        with last_words(f"drawbridge: error: {ended_words(task)}; no run could go on with it"):
            report = check_env(task, arguments.episodes, say=lambda text: print(text, flush=True))
    except EnvError as error:
        raise UsageError(str(error)) from error
    print(report_in_words(report))
    return 0


def report_in_words(report: EnvReport) -> str:
    """A short table, what is odd, and the verdict."""
    spec, made = report.spec, len(report.returns)
    low, high = number(min(report.returns)), number(max(report.returns))
    path = "batched MuJoCo path" if spec.fast else "its vector entry point" if spec.vector else "Gymnasium's own path"
    rows = {
        "observation": counted(spec.obs_dim, "number"),
        "action": f"{counted(spec.action_dim, 'number')} {_box(spec.low, spec.high)}",
        "episodes": f"{made} with random actions: {_between(report.lengths)} steps, returns {low} to {high}",
        "ends": _ends(report),
        "seeds": _seeds(report),
        "speed": f"{sum(report.lengths) / max(report.step_s, 1e-9):,.0f} steps/s, one environment, {path}",
    }
    lines = [spec.env_id, *(f"  {name:<12} {text}" for name, text in rows.items())]
    lines += [f"  {'note':<12} {text}" for text in _notes(report)]
    return "\n".join([*lines, f"{spec.env_id} can be trained on"])


def _box(low: np.ndarray, high: np.ndarray) -> str:
    if (low == low[0]).all() and (high == high[0]).all():
        return f"in [{low[0]:g}, {high[0]:g}]"
    return f"in boxes of their own, all within [{low.min():g}, {high.max():g}]"


def _between(lengths: list[int]) -> str:
    low, high = min(lengths), max(lengths)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _ends(report: EnvReport) -> str:
    limit = report.spec.max_episode_steps
    made, ended = len(report.returns), f"{report.terminated} terminated, {report.truncated} truncated"
    if limit is None and made == report.terminated + report.truncated:
        return f"{ended}; no time limit"
    if limit is None:
        return f"{ended}; no time limit: a continuing task, of which an evaluation measures evaluation.max_episode_steps steps at most"
    return f"{ended}; time limit {limit:,} steps" + (", which is not kept" if report.beyond else "")


def _seeds(report: EnvReport) -> str:
    if report.repeats:
        return f"do not repeat: with one seed and the same actions, the {report.repeats} differed, in another instance"
    return "repeat: one seed and the same actions give the same episode" + (
        "; every seed starts at the same observation" if report.one_start else ""
    )


def _notes(report: EnvReport) -> list[str]:
    steps = sum(report.lengths)
    found = []
    if len(report.returns) < report.asked:
        found.append(f"{len(report.returns)} of {report.asked} episodes were run in the time for them")
    if report.repeats:
        found.append("inline runs are then not bit for bit the same, and a resumed one cuts the running episodes")
    if report.beyond:
        found.append(
            f"{report.beyond} of {len(report.returns)} episodes went on past the time limit, and so will those of a run; truncate them after "
            "max_episode_steps, which a vector entry point is passed and has to keep itself"
        )
    if report.outside:
        found.append(
            f"{report.outside:,} of {steps:,} observations were outside of their box; they are stored as they are"
        )
    if report.nonfinite:
        found.append(
            f"{report.nonfinite:,} of {steps:,} steps gave a NaN or an infinity; a run drops and counts such rows"
        )
    if not report.rewarded:
        found.append("every reward was 0: random actions earn nothing, so there may be nothing to learn from at first")
    return found
