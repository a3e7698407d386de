"""A path that is no run directory: the error, and what to give instead."""

from __future__ import annotations

import shlex
from pathlib import Path

from cluster.errors import UsageError


class NotARun(UsageError):
    """A path that is no run directory."""


def what_to_give(path: Path) -> str:
    """What to give instead of ``path``: one of the runs in it, if there are any."""
    for found in (*path.glob("*/config.json"), *path.glob("*/*/config.json")):
        if (found.parent / "run.lock").is_file():
            return f"it holds runs: give one of those that `drawbridge list {shlex.quote(str(path))}` names"
    return "give the directory that `drawbridge train` named when it started"
