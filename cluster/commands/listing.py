"""``list``: the runs below a directory, a line each."""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from textwrap import shorten
from typing import Any

from cluster.commands.arguments import add_command, location
from cluster.commands.status import status
from cluster.commands.table import aligned
from cluster.errors import RunError, UsageError

LONGEST = 200  # characters of why a run cannot be read
HEAD = ("RUN", "ALGORITHM", "ENVIRONMENT", "STATE", "DONE", "RETURN")


def add_list(commands: Any) -> None:
    listing = add_command(commands, "list", _list, "the runs below a directory: state, progress, last evaluation")
    listing.add_argument(
        "directory", type=location, nargs="?", default=Path("runs"), metavar="DIR", help="(default: runs)"
    )


def _list(arguments: argparse.Namespace) -> int:
    directory = arguments.directory
    if not directory.is_dir():
        raise UsageError(
            f"{directory} is not a directory, expected one that holds runs; nothing was listed; give another DIR"
        )
    print("\n".join(table_of(directory)))
    return 0


def table_of(directory: Path, leave_out: Collection[Path] = ()) -> list[str]:
    """The lines of the table of all runs at or below a directory but the (resolved) ones to ``leave_out``, or one that says that there are none."""
    rows: list[tuple[str, ...]] = [HEAD]
    problems: dict[int, str] = {}
    for path in (path for path in run_dirs(directory) if path.resolve() not in leave_out):
        name = str(path.relative_to(directory)) if path != directory else path.name
        try:
            rows.append(_row(name, status(path)))
        except (RunError, UsageError) as error:
            rows.append((name, "-", "-", "unreadable", "-", "-"))
            problems[len(rows) - 1] = shorten(str(error), LONGEST)
    if len(rows) == 1:
        return [f"no runs below {directory}; `drawbridge train` makes one"]
    lines = []
    for index, line in enumerate(aligned(rows, left=4)):
        lines.append(line)
        if index in problems:
            lines.append(f"  ! {problems[index]}")
    return lines


def run_dirs(directory: Path) -> Iterator[Path]:
    """Every run directory at or below ``directory``, sorted; none is looked for inside another."""
    for found, folders, files in os.walk(directory):
        folders.sort()
        if {"config.json", "run.lock"} <= set(files):
            folders.clear()
            yield Path(found)


def _row(name: str, found: dict[str, Any]) -> tuple[str, ...]:
    unit, evaluation = found["unit"], found["last_evaluation"]
    done = found["live"].get(unit)
    progress = f"{done:,}/{found['steps']:,} {unit.replace('_', ' ')}" if type(done) is int else "-"
    mean = f"{sum(evaluation['returns']) / len(evaluation['returns']):,.1f}" if evaluation else "-"
    state = found["state"] + (", silent" if found["silent"] else "")
    return name, found["algorithm"], found["env"], state, progress, mean
