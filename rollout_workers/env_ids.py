"""Environment ids: how they are registered, and which code may be imported for them.

``module:Id`` names code, and so may texts with a colon or a slash among an environment's arguments. Only who may run code here names it: the
command line, RLlib's configuration, a program that calls ``drawbridge``. Nothing that was read from a file is imported.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import difflib
import importlib
import importlib.util
import io
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from replay.task import LIMIT, OWN_PACKAGES, ROOT, TaskError, id_of, join_task, naming_texts, split_task
from rollout_workers.env import EnvError, exit_error
from rollout_workers.renderer import choose_gl

FIXED_GOAL = "FixedGoal/"  # namespace of this project's mazes
FIXED_GOAL_ENTRY_POINT = "rollout_workers.fixed_goal:FixedGoalMaze"  # datasets on disk name it too
FIXED_GOALS = {  # PointMaze id: (row, column) of the one goal, time limit in steps as PointMaze has it
    "PointMaze_UMaze-v3": ((1, 1), 300),
    "PointMaze_Medium-v3": ((6, 6), 600),
    "PointMaze_Large-v3": ((7, 10), 800),
}
DM_CONTROL = "dm_control/"  # namespace of DeepMind Control
CONTROL_SUITE_STEPS = 1_000  # of an episode of its suite

NEAR, RESEMBLES = (
    0.5,
    0.65,
)  # how alike, by difflib, an id is to one that may have been meant, and to one that is worth an import

_named: set[str] = set()  # modules, and naming_texts of arguments, that somebody who may run code here has named
_imported: list[str] = []  # modules that this command has imported because it was asked to
Maker = Callable[..., gym.Env]  # takes the arguments of gymnasium.make
_makers: dict[str, Maker] = {}  # of environments that a program has as a callable, by their id here


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnCode:
    """The user's own code that every process of a run takes before it makes an environment; see ``take_code``."""

    modules: tuple[str, ...]  # imported, because they register environments
    makers: dict[str, Maker]  # registered, by id


def name_module(task: str) -> None:
    """Lets this process import the module of ``module:Id``, and give an environment arguments that may name code or a file.

    For tasks from a command line, from RLlib's configuration, and from the driver of a run to its actors: importing runs
    code. Never for a task that was read from a file: a dataset or a run directory may come from anybody.
    """
    module, _, _ = id_of(task).rpartition(":")
    if module:
        _named.add(module)
    with contextlib.suppress(TaskError):
        _named.update(naming_texts(split_task(task)[1]))


def import_modules(modules: Sequence[str]) -> None:
    """Imports modules that register environments, for whoever may run code here (see ``name_module``); EnvError where one does not import."""
    _imported[:] = modules
    for module in modules:
        _named.add(module)
        _import_module(module, f"--import {module}")


def register_maker(env_id: str, make: Maker) -> None:
    """Registers the environment that ``make`` makes under an id of this project's own."""
    _makers[env_id] = make
    gym.registry.pop(env_id, None)
    gym.register(env_id, entry_point=make)


def own_code() -> OwnCode:
    """What this process was asked to import and to register."""
    return OwnCode(modules=tuple(_imported), makers=dict(_makers))


def take_code(code: OwnCode | None, task: str) -> None:
    """What an actor does before it makes ``task``: its driver could not have made it without."""
    name_module(task)
    if code is not None:
        import_modules(code.modules)
        for env_id, make in code.makers.items():
            register_maker(env_id, make)


def named_modules() -> list[str]:
    """The modules that may be imported here, as far as they are written like one."""
    names = {text.partition(":")[0] for text in _named}
    return sorted(name for name in names if all(part.isidentifier() for part in name.split(".")))


def find_env(task: str) -> EnvSpec:
    """Gymnasium's registration of a task's id, with the task's own arguments and time limit in it (``replay.task``).

    ``module:Id`` imports ``module`` first, as gymnasium.make does, if ``name_module`` has allowed it. gymnasium_robotics
    (PointMaze, AntMaze, Fetch, ...) and shimmy (dm_control/...) are imported only when an id is not registered without
    them; this project's mazes (FixedGoal/...) are registered when an id names them. EnvError when there is no such environment, with the
    nearest ids, when a package that it needs is missing, when the id names a module that nobody has allowed or an argument
    might, and when the arguments are no JSON object.
    """
    try:
        env_id, kwargs = split_task(task)
    except TaskError as error:
        raise EnvError(str(error)) from error
    _check_texts(env_id, kwargs)
    module, _, name = env_id.rpartition(":")
    if module:
        _import_module(module, env_id)
    elif name.startswith(DM_CONTROL):
        _register_dm_control(env_id)
    elif name.startswith(FIXED_GOAL):
        _register_fixed_goal(env_id)
    elif name not in gym.registry:
        _register_robotics(env_id)
    try:
        spec = gym.spec(name)
    except gym.error.Error as error:
        raise EnvError(_unknown(env_id, name)) from error
    if not kwargs:
        return spec
    limit = kwargs.pop(LIMIT, spec.max_episode_steps)
    if name.startswith(DM_CONTROL) and limit is not None and limit > (spec.max_episode_steps or limit):
        raise EnvError(
            f"{env_id} has {LIMIT} {limit:,}, expected at most {spec.max_episode_steps:,}: the task itself ends its episodes then, so they "
            "would not be longer; leave it out, or give less"
        )
    return dataclasses.replace(spec, kwargs=copy.deepcopy(spec.kwargs) | kwargs, max_episode_steps=limit)


def _check_texts(env_id: str, kwargs: dict[str, Any]) -> None:
    if unnamed := sorted(naming_texts(kwargs) - _named):
        raise EnvError(
            f"an argument of {env_id} has the text {unnamed[0]!r} and was read from a file, expected a text with a colon or a slash to be "
            "given on the command line, because it may name code or a file: the environment was not made; if you trust "
            f"it, repeat the command with --env {shlex.quote(join_task(env_id, kwargs))}"
        )


def _unknown(env_id: str, name: str) -> str:
    by_folded = {known.casefold(): known for known in _newest()}
    nearest = difflib.get_close_matches(name.casefold(), by_folded, n=3, cutoff=NEAR)
    names = ", ".join(by_folded[folded] for folded in nearest) or "none is close"
    return (
        f"unknown environment {env_id!r}, expected a registered Gymnasium id (nearest: {names}): nothing can be "
        "trained; correct the id, or name the module that registers it: write module:Id, or give --import MODULE"
    )


def _newest() -> list[str]:
    """The newest version of every registered id: Gymnasium keeps older ones that it can no longer make."""
    newest: dict[tuple[str | None, str], EnvSpec] = {}
    for spec in gym.registry.values():
        other = newest.get(key := (spec.namespace, spec.name))
        if other is None or (spec.version or 0) > (other.version or 0):
            newest[key] = spec
    return [spec.id for spec in newest.values()]


def _import_module(module: str, env_id: str) -> None:
    if module not in _named:
        raise EnvError(
            f"{env_id} names the module {module!r} and was read from a file, expected a module to be named on the command "
            "line, because importing it runs its code and a dataset or a run directory may come from anybody: nothing was "
            f"imported and the environment cannot be made; if you trust it, repeat the command with --env {env_id} (from Python: env=)"
        )
    if hidden := _hidden({module.partition(".")[0]} & OWN_PACKAGES):
        raise EnvError(
            f"{env_id} names the module {module!r}, and {hidden} cannot be imported under that name, which is one of this project's own "
            f"packages ({', '.join(sorted(OWN_PACKAGES))}), expected another: the environment cannot be made; rename the module"
        )
    try:
        importlib.import_module(module)
    except SystemExit as error:
        raise exit_error(env_id, error) from error
    except Exception as error:
        hidden = _hidden(OWN_PACKAGES) if isinstance(error, ImportError) else ""
        raise EnvError(
            f"{env_id} names the module {module!r}, which did not import ({type(error).__name__}: {error}), expected a "
            "module that registers the environment: it cannot be made; start in the folder of the module, install it, or give "
            "--py-modules PATH"
            + (f"; if it imports {hidden}, rename that: this project has a package of the name" if hidden else "")
        ) from error


def _hidden(names: Iterable[str]) -> str:
    """The first file on the path that would be one of these modules, had this project no package of its name; "" if there is none."""
    for folder in (Path(entry).resolve() for entry in sys.path):
        for path in sorted(folder / file for name in names for file in (f"{name}.py", f"{name}/__init__.py")):
            if folder != ROOT and path.is_file():
                return str(path)
    return ""


def _register_robotics(env_id: str) -> None:
    if any(known.startswith("PointMaze_") for known in gym.registry):
        return
    package = importlib.util.find_spec("gymnasium_robotics")
    if package is None or package.origin is None:
        raise EnvError(
            f"{env_id} is not one of Gymnasium's own environments, and gymnasium-robotics, which has PointMaze and the "
            "like, is not installed, expected to be: it cannot be made; pip install -c constraints.txt "
            "gymnasium-robotics, or correct the id"
        )
    if not env_id.startswith(FIXED_GOAL) and not _resembles_one_of(env_id, Path(package.origin)):
        return
    with contextlib.redirect_stderr(io.StringIO()):  # a notice of AdroitHand's rewards, whatever is asked for
        gym.register_envs(importlib.import_module("gymnasium_robotics"))


def _resembles_one_of(env_id: str, source: Path) -> bool:
    """Whether ``env_id`` can be an id of those that a package's ``source`` registers, or a misspelt one: the import takes long."""
    stems = re.findall(r'\bid=f?"([^"{]+)', source.read_text(encoding="utf-8"))  # up to what the f-strings fill in
    return bool(difflib.get_close_matches(id_of(env_id).casefold(), map(str.casefold, stems), n=1, cutoff=RESEMBLES))


def _register_fixed_goal(env_id: str) -> None:
    _register_robotics(env_id)
    for maze_id, (goal_cell, steps) in FIXED_GOALS.items():
        if FIXED_GOAL + maze_id not in gym.registry:
            kwargs = {"maze_id": maze_id, "goal_cell": goal_cell}
            gym.register(FIXED_GOAL + maze_id, FIXED_GOAL_ENTRY_POINT, max_episode_steps=steps, kwargs=kwargs)


def _register_dm_control(env_id: str) -> None:
    missing = [name for name in ("dm_control", "shimmy") if importlib.util.find_spec(name) is None]
    if missing:
        raise EnvError(
            f"{env_id} needs {' and '.join(missing)}, expected to be installed: DeepMind Control tasks cannot be made; "
            "pip install -c constraints.txt -e '.[dmc]'"
        )
    if "dm_control" not in sys.modules:
        choose_gl()  # dm_control takes it when it is imported, and some tasks draw in every step
    gym.register_envs(importlib.import_module("shimmy"))
    for domain, task in importlib.import_module("dm_control.suite").ALL_TASKS:
        spec = gym.registry.get(f"{DM_CONTROL}{domain}-{task}-v0")
        if spec is not None and domain != "lqr":  # the others end by themselves, but are registered without a limit
            spec.max_episode_steps = CONTROL_SUITE_STEPS
