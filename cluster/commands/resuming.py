"""The configuration with which a run resumes: what it was made with, and what the command line or an edit of its config.json changes."""

from __future__ import annotations

from typing import Any

from cluster.commands.arguments import without_effect
from cluster.config import RunConfig, flatten, from_json, override, to_json
from cluster.dataset_identity import kept_identity
from cluster.errors import UsageError
from cluster.made_with import settings_made_with, why_fixed_in
from cluster.outside import check_named
from cluster.own_code import run_words
from cluster.run_dir import RunDirectory
from replay.option import in_setting_words


def resumed(run: RunDirectory, settings: dict[str, str]) -> RunConfig:
    """The run's configuration with other settings; UsageError names every one that cannot change, with the reason, and all else that
    is wrong with them."""
    config = run.config()
    problems: list[str] = []
    changed = override(config, settings, problems)
    problems += without_effect(changed, settings, new=False)
    check_named(changed, settings, run.path / "config.json")
    moved = bool(changed.dataset) and kept_identity(run.path) is not None  # whether it is the same one is checked later
    before, after = flatten(config), flatten(changed)
    made = {key: value for key, (value, _) in before.items()} | settings_made_with(run.path / "checkpoints", config)
    fixed = {
        key: f"{key} is {_seen(made[key])} in this run, expected no other value than that "
        f"({f'{_seen(value)} was given' if key in settings else f'config.json has {_seen(value)}'}): {why}"
        for key, (value, _) in after.items()
        if key in made and made[key] != value and (why := why_fixed_in(made, key)) and not (moved and key == "dataset")
    }
    problems += fixed.values()
    problems += [] if "steps" in fixed else _too_short(run, changed, max(config.steps, made["steps"]))
    if problems:
        edited = {key: made[key] for key in fixed if key != "env" and before[key][0] != made[key]}
        may = {key: text for key, text in settings.items() if key not in fixed}
        fixes = ["Put config.json back to what the run was made with"] if fixed.keys() - settings.keys() else []
        fixes += ["leave out what cannot change"] if fixed.keys() & settings.keys() else []
        begin = f"begin a new run with it: `drawbridge train`, or `{run_words('finetune', run.path, config)}` to keep its policy"
        advice = ", or ".join([*fixes, begin]) if fixes else ""
        listed = _with_others(run, override(_put_back(config, edited), may, []), problems)
        raise UsageError(f"{listed}\n{advice[:1].upper()}{advice[1:]}".rstrip())
    return changed


def _seen(value: Any) -> str:
    """A value as a person would write it: true and none as ``--set`` takes them, texts in quotes."""
    return repr(value) if isinstance(value, str) else in_setting_words(value)


def _too_short(run: RunDirectory, config: RunConfig, planned: int) -> list[str]:
    """That the run has made more than its new length; of one that has ended ``check_resumable`` says so.

    The length that it had until now is none too short: a run makes a few steps more, and evaluates after them.
    """
    done, noun = int(run.live().get(config.unit, 0)), config.unit.replace("_", " ")
    if config.steps >= min(done, planned) or run.is_complete(config):
        return []
    return [
        f"steps is {config.steps}, expected at least {done}, the {noun} that the run has made of {planned}: what is learned cannot be taken "
        f"back; give --steps {done} to end it there, or more to go on"
    ]


def _put_back(config: RunConfig, values: dict[str, Any]) -> RunConfig:
    """``config`` with these values by dotted key; as it is if they make none today."""
    data = to_json(config)
    for key, value in values.items():
        part, _, leaf = key.rpartition(".")
        (data[part] if part else data)[leaf] = value
    try:
        return from_json(data)
    except UsageError:
        return config


def _with_others(run: RunDirectory, config: RunConfig, problems: list[str]) -> str:
    """``problems`` in one text with all others that ``config`` has for this run."""
    from cluster.checks import make_spec

    try:
        run.check_resumable(config)
    except UsageError as error:
        problems.append(str(error))
    try:
        make_spec(config, run, 0, problems)
    except UsageError as error:
        return str(error)
    raise AssertionError("make_spec refuses whatever has problems")
