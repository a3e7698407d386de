"""Finding an environment by id: lazy registration of known packages, and the nearest names when there is none."""

from __future__ import annotations

import difflib
import importlib
import importlib.util

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from rollout_workers.batch_env import EnvError

_named: set[str] = set()  # modules that somebody who may run code here has named


def name_module(env_id: str) -> None:
    """Lets this process import the module of ``module:Id``; for an id without a module nothing changes.

    For ids from a command line, from RLlib's configuration, and from the driver of a run to its actors: importing runs
    code. Never for an id that was read from a file: a dataset or a run directory may come from anybody.
    """
    module, _, _ = env_id.rpartition(":")
    if module:
        _named.add(module)


def find_env(env_id: str) -> EnvSpec:
    """Gymnasium's registration of ``env_id``.

    ``module:Id`` imports ``module`` first, as gymnasium.make does, if ``name_module`` has allowed it. gymnasium_robotics
    (PointMaze, AntMaze, Fetch, ...) and shimmy (dm_control/...) are imported only when an id is not registered without
    them, this project's mazes (FixedGoal/...) when an id names them. EnvError when there is no such environment, with the
    nearest ids, when a package that it needs is missing, and when the id names a module that nobody has allowed.
    """
    module, _, name = env_id.rpartition(":")
    if module:
        _import_module(module, env_id)
    elif name.startswith("dm_control/"):
        _register_dm_control(env_id)
    elif name.startswith("FixedGoal/"):
        _register_fixed_goal(env_id)
    elif name not in gym.registry:
        _register_robotics(env_id)
    try:
        return gym.spec(name)
    except gym.error.Error as error:
        raise EnvError(_unknown(env_id, name)) from error


def _unknown(env_id: str, name: str) -> str:
    by_folded = {known.casefold(): known for known in gym.registry}
    nearest = difflib.get_close_matches(name.casefold(), by_folded, n=3, cutoff=0.5)
    names = ", ".join(by_folded[folded] for folded in nearest) or "none is close"
    return (
        f"unknown environment {env_id!r}, expected a registered Gymnasium id (nearest: {names}): nothing can be "
        "trained; correct the id, or write module:Id to import the module that registers it"
    )


def _import_module(module: str, env_id: str) -> None:
    if module not in _named:
        raise EnvError(
            f"{env_id} names the module {module!r} and was read from a file, expected a module to be named on the command "
            "line, because importing it runs its code and a dataset or a run directory may come from anybody: nothing was "
            f"imported and the environment cannot be made; if you trust it, repeat the command with --env {env_id}"
        )
    try:
        importlib.import_module(module)
    except Exception as error:
        raise EnvError(
            f"{env_id} names the module {module!r}, which did not import ({type(error).__name__}: {error}), expected a "
            "module that registers the environment: it cannot be made; install it, or put its folder on PYTHONPATH"
        ) from error


def _register_robotics(env_id: str) -> None:
    if any(known.startswith("PointMaze_") for known in gym.registry):
        return
    if importlib.util.find_spec("gymnasium_robotics") is None:
        raise EnvError(
            f"{env_id} is not one of Gymnasium's own environments, and gymnasium-robotics, which has PointMaze and the "
            "like, is not installed, expected to be: it cannot be made; pip install -c constraints.txt "
            "gymnasium-robotics, or correct the id"
        )
    gym.register_envs(importlib.import_module("gymnasium_robotics"))


def _register_fixed_goal(env_id: str) -> None:
    _register_robotics(env_id)
    importlib.import_module("rollout_workers.fixed_goal")


def _register_dm_control(env_id: str) -> None:
    missing = [name for name in ("dm_control", "shimmy") if importlib.util.find_spec(name) is None]
    if missing:
        raise EnvError(
            f"{env_id} needs {' and '.join(missing)}, expected to be installed: DeepMind Control tasks cannot be made; "
            "pip install -c constraints.txt -e '.[dmc]'"
        )
    gym.register_envs(importlib.import_module("shimmy"))
