"""The user's own code that a command line names: where it is found here, and how it reaches the nodes of a cluster.

On a cluster of the run's own, every process looks where this one does (``search_path``). A cluster that was running before is sent the packages
(``shipped``), unless the ``ray job submit`` that this process is part of has sent some itself.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shlex
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.config import RunConfig
from cluster.errors import UsageError
from cluster.history import Damaged, read_object
from cluster.outside import named_again
from replay.task import ROOT, names_code

if TYPE_CHECKING:
    from cluster.run_dir import RunDirectory

INSTALLED = {
    "site-packages",
    "dist-packages",
}  # what lies there is installed on every node, as this project's packages are
_paths: list[str] = []  # of --py-modules
_modules: list[str] = []  # of --import


def use_code(modules: Sequence[str], paths: Sequence[Path]) -> None:
    """Does what ``--import`` and ``--py-modules`` ask for, in this process; UsageError when it cannot be done."""
    _paths[:], _modules[:] = [], modules
    for path in paths:
        package = path.resolve()
        if not (package.is_dir() or (package.is_file() and package.suffix == ".py")) or not package.stem.isidentifier():
            raise UsageError(
                f"--py-modules {path} is no package that can be imported, expected its folder, or a module's .py file: no process could "
                "find it, so nothing was started; correct the path"
            )
        _paths.append(str(package))
        find_in(package.parent)
    if modules:
        from rollout_workers.env import EnvError
        from rollout_workers.env_ids import import_modules

        find_in(Path.cwd())
        try:
            import_modules(modules)
        except EnvError as error:
            raise UsageError(f"{error}; nothing was started") from error


def find_in(folder: Path) -> None:
    """Lets modules be found in ``folder``, after everything else; an installed command does not look in the current directory."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def flags() -> str:
    """The flags again that this command was given, for messages."""
    given = [("--import", name) for name in _modules] + [("--py-modules", path) for path in _paths]
    return "".join(f" {flag} {shlex.quote(value)}" for flag, value in given)


def resume_words(run_dir: Path | str, config: RunConfig | Mapping[str, Any]) -> str:
    """The command that goes on with a run, for messages; ``config``: the run's, or what its config.json holds."""
    return run_words("resume", run_dir, config)


def run_words(name: str, run_dir: Path | str, config: RunConfig | Mapping[str, Any]) -> str:
    """A command that goes on from a run, for messages: with all that it must name again, and with what finds the user's own code."""
    task = str(config.env if isinstance(config, RunConfig) else config.get("env", ""))
    again = f" --env {shlex.quote(task)}" if names_code(task) else ""
    return f"drawbridge {name} {shlex.quote(str(run_dir))}{again}{named_again(config)}{flags()}"


def twice_words(run_dir: Path, config: RunConfig) -> str:
    """What follows from a second Ctrl-C, and how to go on with the run."""
    return (
        f"interrupted twice, so the save was cut short: see `drawbridge status {shlex.quote(str(run_dir))}` and go on with "
        f"`{resume_words(run_dir, config)}`"
    )


def cut_start_words(run_dir: Path, config: RunConfig, learned: bool) -> str:
    """What follows from a signal during the start of a run, which had ``learned`` before or not, and how to go on with it."""
    begun = "this resume had not begun, what the run has learned is kept" if learned else "it had not begun to learn"
    verb = "go on" if learned else "start it"
    return (
        f"during the start: {begun}, and all that was started is ended; {verb} with `{resume_words(run_dir, config)}`"
    )


def to_come_words(run: RunDirectory, config: RunConfig, wait: str) -> str:
    """What to do about something that a run has not written yet: ``wait``, while a process drives it."""
    if run.owner() is not None:
        return wait
    return f"no process drives the run, so nothing more is written; go on with it by `{resume_words(run.path, config)}`"


def check_place(path: Path, flag: str = "--run-dir") -> Path:
    """The new run directory ``path``, which ``flag`` names; UsageError for one inside a run's."""
    for outer in path.resolve().parents:
        if (outer / "config.json").is_file() and (outer / "checkpoints").is_dir():
            raise UsageError(
                f"run directory {path} would be inside the run {outer}, expected a directory of its own: whoever copies or removes one "
                f"would do it to both, so nothing was started; choose another {flag}"
            )
    return path


def taken_words(path: Path, flag: str = "--run-dir") -> str:
    """That ``path``, which ``flag`` names, is no new run directory, and how to go on with the run, or the runs of --seeds, in it."""
    if not path.is_dir():
        return f"run directory {path} is a file, expected a new directory; it was not touched; choose another {flag}"
    words = f"run directory {path} exists and is not empty, expected a new one; nothing in it was touched; "
    for config in (path / "config.json", *sorted(path.glob("seed-*/config.json"))):
        with contextlib.suppress(OSError, Damaged):
            again = resume_words(path, read_object(config))
            return f"{words}go on with it by `{again}`, or choose another {flag}"
    return f"{words}choose another {flag}"


def search_path() -> dict[str, str]:
    """Where the processes of a cluster on this machine look for modules: in this tree, then where this process does.

    Ray's own way is to put the current directory first, in which a folder called ``replay`` would hide this project's.
    """
    folders = [str(ROOT), *(os.path.abspath(folder) for folder in sys.path)]
    named = dict.fromkeys(folder for folder in folders if not _is_library(Path(folder)))
    return {"PYTHONPATH": os.pathsep.join(named)}


def shipped(job: dict[str, Any] | None) -> dict[str, list[str]]:
    """What a cluster's nodes are sent, as a part of Ray's runtime_env: the packages that were named here and are not installed.

    Args:
        job: runtime_env of the Ray job that this process is part of; None outside of one.
    """
    found = [*_paths]
    if "rollout_workers.env_ids" in sys.modules:
        from rollout_workers.env_ids import named_modules

        found += [path for module in named_modules() if (path := _source(module.partition(".")[0]))]
    found = list(dict.fromkeys(found))
    if job and job.get("py_modules"):  # they are on every node, and Ray ends a job whose driver names py_modules again
        if _paths:
            raise UsageError(
                f"--py-modules {_paths[0]} was given to a Ray job that has py_modules of its own, expected one of the two: Ray takes no "
                "second list, so nothing was started; name all of them in the runtime_env of `ray job submit`"
            )
        return {}
    return {"py_modules": found} if found else {}


def _source(package: str) -> str:
    """The folder or the file of a top-level package; "" when it is installed, part of Python, or of this tree."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        return ""
    places = list(spec.submodule_search_locations or ())
    path = Path(places[0] if places else spec.origin or "").resolve()
    if _is_library(path) or path.parent == ROOT or not (path.is_dir() or path.suffix == ".py"):
        return ""
    return str(path)


def _is_library(path: Path) -> bool:
    return path.is_relative_to(sysconfig.get_path("stdlib")) or not INSTALLED.isdisjoint(path.parts)
