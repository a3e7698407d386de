"""The flag that names a run's environment again: what a run directory says is data, and no module is imported for it."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from cluster.errors import UsageError


def add_env_again(parser: argparse.ArgumentParser) -> None:
    """Adds ``--env`` to a command that takes a run directory."""
    parser.add_argument(
        "--env",
        metavar="MODULE:ID",
        help="the run's environment again, where its id names a module: only the command line has modules imported",
    )


def name_env_again(run_dir: Path, env_id: str | None) -> None:
    """Lets the module of ``env_id`` be imported, if that is the environment of the run; None: no module is.

    Raises:
        UsageError: the run is of another environment, or there is no run.
    """
    from cluster.run_dir import RunDirectory
    from rollout_workers.env import name_module

    if env_id is None:
        return
    theirs = RunDirectory.open(run_dir).config().env
    if env_id != theirs:
        raise UsageError(
            f"--env {env_id} was given to a run of {theirs}, expected its own environment: what was learned there would not hold "
            "in another, so nothing was done; leave --env out, or repeat the run's own if it names a module"
        )
    name_module(env_id)


def resume_words(run_dir: Path | str, env_id: str) -> str:
    """The command that goes on with a run, for messages."""
    again = f" --env {shlex.quote(env_id)}" if ":" in env_id else ""
    return f"drawbridge resume {run_dir}{again}"
