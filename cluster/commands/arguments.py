"""Types of the command line's arguments: what cannot be meant is a usage error before any command runs."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cluster.config import RunConfig
from cluster.errors import UsageError, too_long
from cluster.own_code import find_in
from cluster.run_dir import RunDirectory
from replay.option import COUNT_LIMIT, SEED_LIMIT, SIZE_LIMIT
from replay.task import TaskError, id_of, join_task, parse_kwargs, split_task
from rollout_workers.config import NOISE_LIMIT


def point(text: str) -> tuple[float, float]:
    """Two finite numbers with a comma between."""
    try:
        x, y = (float(part) for part in text.split(","))
        if not (math.isfinite(x) and math.isfinite(y)):
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not two numbers with a comma between, such as -1,1") from None
    return x, y


def cell(text: str) -> list[int]:
    """Row and column of a maze's cell, with a comma between."""
    row, _, column = text.partition(",")
    if not (row.isdecimal() and column.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a row and a column with a comma between, such as 3,1")
    return [int(row), int(column)]


def location(text: str) -> Path:
    """An absolute path, because an environment may change the directory; no text would be the current one, as it comes from a
    variable that is not set."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty, expected a path; give one, or '.' for the current directory")
    path = Path(text).absolute()
    if problem := too_long(path):
        raise argparse.ArgumentTypeError(problem)
    return path


def new_file(text: str) -> Path:
    """A path at which a file can be made: its folder is there."""
    path = location(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder, expected the name of a file")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(
            f"{path.parent} is no folder, expected the one for the file to be there; make it first"
        )
    return path


def count(text: str) -> int:
    """A whole number of at least 1, also written as 25e3 or 25_000."""
    return int(_number(text, 1, COUNT_LIMIT, f"a whole number of at least 1 and at most {COUNT_LIMIT:g}", whole=True))


def whole(text: str) -> int:
    """A whole number of at least 0."""
    return int(_number(text, 0, COUNT_LIMIT, f"a whole number of at least 0 and at most {COUNT_LIMIT:g}", whole=True))


def seed(text: str) -> int:
    """A seed that every generator takes; read as an integer, because a float holds no more than 53 bits of it."""
    try:
        if 0 <= int(text) <= SEED_LIMIT:
            return int(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to {SEED_LIMIT}")


def noise(text: str) -> float:
    """A deviation of actions in [-1, 1]."""
    return _number(text, 0, NOISE_LIMIT, f"a number of at least 0 and at most {NOISE_LIMIT:g}, where 1 is full force")


def seconds(text: str) -> float:
    """A time that can be waited for."""
    return _number(text, 1e-3, SIZE_LIMIT, f"a number of seconds above 0 and up to {SIZE_LIMIT:g}")


def _number(text: str, least: float, most: float, expected: str, whole: bool = False) -> float:
    try:
        value = float(text.replace("_", ""))
        if least <= value <= most and (not whole or value == int(value)):
            return value
    except (ValueError, OverflowError):
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")


def add_env_again(parser: argparse.ArgumentParser) -> None:
    """Adds ``--env`` to a command that takes a run directory."""
    parser.add_argument(
        "--env",
        metavar="MODULE:ID",
        help="the run's environment again, where its id names a module: only the command line has modules imported",
    )
    add_code(parser)


def add_code(parser: argparse.ArgumentParser) -> None:
    """Adds ``--import`` and ``--py-modules`` to a command that makes an environment; ``own_code.use_code`` takes them."""
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="a module of your own that registers environments; may be repeated",
    )
    parser.add_argument(
        "--py-modules",
        type=location,
        action="append",
        default=[],
        metavar="PATH",
        help="a package's folder, or a .py file, that every process can import, on all nodes of a cluster; may be repeated",
    )


def name_env_again(run_dir: Path, env_id: str | None) -> None:
    """Lets the module of ``env_id`` be imported, if that is the environment of the run; None: no module is.

    The id alone will do: the run's own arguments stay.

    Raises:
        UsageError: the run is of another environment, or there is no run.
    """
    run = RunDirectory.open(run_dir)
    if env_id is None:
        return
    from rollout_workers.env_ids import name_module

    if ":" in env_id:
        find_in(Path.cwd())
    theirs = run.config().env
    if _canonical(env_id) not in (_canonical(theirs), id_of(theirs)):
        raise UsageError(
            f"--env {env_id} was given to a run of {theirs}, expected its own environment: what was learned there would not hold "
            "in another, so nothing was done; leave --env out, or repeat the run's own if it names a module"
        )
    name_module(env_id)


def _canonical(task: str) -> str:
    """``task`` with its arguments as this project writes them; as it is where they are none."""
    try:
        return join_task(*split_task(task))
    except TaskError:
        return task


def add_env_kwargs(parser: argparse.ArgumentParser, default: str = "the dataset's, else none") -> None:
    parser.add_argument(
        "--env-kwargs",
        metavar="JSON",
        help=f"arguments of gymnasium.make, as '{{\"max_episode_steps\": 300}}' (default: {default})",
    )
    add_code(parser)


def named_task(env: str | None, env_kwargs: str | Mapping[str, Any] | None) -> tuple[str, dict[str, Any] | None]:
    """The id ("" if none) and the arguments (None if none) that ``--env`` and ``--env-kwargs`` name; lets its module be imported."""
    if env is None and env_kwargs is None:
        return "", None
    from rollout_workers.env_ids import name_module

    if ":" in f"{env} {env_kwargs}":  # a module may be named; otherwise nothing here is to be imported
        find_in(Path.cwd())
    try:
        env_id, kwargs = split_task(env or "")
        if env_kwargs is not None:
            kwargs = parse_kwargs(env_kwargs) if isinstance(env_kwargs, str) else dict(env_kwargs)
        name_module(join_task(env_id, kwargs))
    except TaskError as error:
        raise UsageError(f"{error}; nothing was started") from error
    return env_id, kwargs if kwargs or env_kwargs is not None else None


def add_settings(
    parser: argparse.ArgumentParser, help: str = "any field of `drawbridge config PRESET`; may be repeated"
) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=help,
    )


def without_effect(config: RunConfig, settings: Mapping[str, str], new: bool = True) -> list[str]:
    """What the command line asks of a run in one process that only a cluster has.

    Args:
        settings: those that the command names, by dotted key.
        new: whether the run is to begin; one that resumes keeps its learners.
    """
    if config.backend != "inline":
        return []
    found = []
    if address := settings.get("ray.address"):
        found.append(
            f"ray.address is {address!r} with backend inline, expected none: such a run is one process and joins no cluster, so the "
            "address would do nothing; leave --address out" + (", or give --backend ray" if new else "")
        )
    if new and config.learner.learners > 1:
        found.append(
            f"learner.learners is {config.learner.learners} with backend inline, expected 1: one process makes all updates, so there would "
            "be no others; leave --learners out, or give --backend ray"
        )
    return found


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int | None], help: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
    parser.set_defaults(command=run)
    return parser


def settings_of(pairs: list[str]) -> dict[str, str]:
    """What --set asked for, by key."""
    settings = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--set {pair}: expected KEY=VALUE; nothing was started")
        settings[key] = value
    return settings
