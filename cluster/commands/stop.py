"""``stop``: ends a run, or all runs of a directory of ``--seeds``, with a checkpoint."""

from __future__ import annotations

import argparse
import time
from typing import Any

from cluster.commands.arguments import add_command, location, seconds
from cluster.commands.status import driver_gone, require_owner
from cluster.errors import RunError
from cluster.own_code import resume_words
from cluster.run_dir import RunDirectory, seed_dirs
from cluster.signals import NOT_SAVED, STOP


def add_stop(commands: Any) -> None:
    stop = add_command(commands, "stop", _stop, "end a run with a checkpoint, from any machine that sees its directory")
    stop.add_argument("run_dir", type=location, metavar="RUN_DIR")
    stop.add_argument("--timeout", type=seconds, default=120.0, help="seconds to wait for its end (default: 120)")


def _stop(arguments: argparse.Namespace) -> int:
    deadline = time.monotonic() + arguments.timeout
    parent = RunDirectory(arguments.run_dir)
    driver, said = None if (parent.path / "config.json").is_file() else parent.owner(), ""
    if driver is not None:  # it reaches the seeds that are only starting, too
        try:
            said = _ask_driver(parent, driver, arguments.timeout)
        except RunError:
            if parent.owner() == driver:
                raise
            driver = None  # it ended meanwhile, as a rule with all its runs
    runs = [RunDirectory.open(path) for path in seed_dirs(parent.path) or ([] if driver else [parent.path])]
    asked = {run: owner for run in runs if (owner := run.owner()) is not None}
    if driver is None:
        for run, owner in asked.items():
            run.requests.write("stop", owner)
        if not asked:
            require_owner(runs[0], "stop")
    problems = []
    for run, owner in asked.items():
        try:
            _wait(run, owner, deadline)
            print(_how_it_ended(run))
        except RunError as error:  # says nothing of the others
            problems.append(str(error))
    if driver is not None:
        if said:
            print(said)
        _wait(parent, driver, deadline)
    if problems:
        raise RunError("\n".join(problems))
    return 0


def _ask_driver(parent: RunDirectory, driver: int, timeout_s: float) -> str:
    """Asks process ``driver`` to stop all runs of --seeds in ``parent``; what it answers."""
    ident = parent.requests.write("stop", driver)
    return parent.requests.wait_for_answer(ident, timeout_s, lambda: driver_gone(parent, driver))


def _wait(run: RunDirectory, owner: int, deadline: float) -> None:
    while run.owner() == owner:
        if time.monotonic() > deadline:
            raise RunError(
                f"{run.path} did not end in time (--timeout), expected process {owner} to save and end: it was asked to "
                f"and may still do so; see `drawbridge status {run.path}`, or send that process SIGTERM"
            )
        time.sleep(0.1)


def _how_it_ended(run: RunDirectory) -> str:
    """From its summary alone, which needs no settings; RunError when it left none, or could not save everything."""
    summary = run.summary()
    if summary is None and not (run.path / "failure.json").exists():
        raise RunError(
            f"{run.path} ended without a word, expected a summary: its process was killed before it had saved everything; go on from the newest "
            f"saved state with `{resume_words(run.path, run.config())}`"
        )
    if summary is None and STOP in (error := str(run.failure().get("error", ""))):
        if NOT_SAVED in error:
            raise RunError(f"{run.path} {error}")
        return f"{run.path} {error}"  # it was only starting
    if summary is None:
        raise RunError(
            f"{run.path} ended without a summary, expected one of a run that saves and ends: it failed meanwhile; see "
            f"`drawbridge status {run.path}`"
        )
    saved = summary.get("saved", {})
    parts = [
        ("the checkpoint", saved.get("checkpoint", {})),
        *((f"shard {i}", one) for i, one in enumerate(saved.get("snapshots", []))),
    ]
    if problems := [f"{name} ({part['problem']})" for name, part in parts if "problem" in part]:
        raise RunError(
            f"{run.path} ended, but did not save everything: {'; '.join(problems)}; the newest on disk is used when it goes on"
        )
    return f"{run.path} ended at {summary['env_steps']:,} env steps and {summary['updates']:,} updates; everything is saved"
