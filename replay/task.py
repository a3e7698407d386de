"""A task as one line of text: a Gymnasium id, and the arguments of ``gymnasium.make`` where there are some.

``Hopper-v5`` is the environment as registered; ``Hopper-v5?{"forward_reward_weight":2.0,"max_episode_steps":300}`` is what
``gymnasium.make("Hopper-v5", forward_reward_weight=2.0, max_episode_steps=300)`` makes. One string, so that nobody who
passes an environment on can forget its arguments. Only text is read here: nothing is built or imported.
No module of a task can be called like one of this project's packages.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from replay.option import COUNT_LIMIT

ROOT = Path(__file__).resolve().parent.parent  # of this project's tree
OWN_PACKAGES = frozenset(path.parent.name for path in ROOT.glob("*/__init__.py"))
LIMIT = "max_episode_steps"  # the argument that gymnasium.make takes for itself


class TaskError(ValueError):
    """Arguments that no environment can be given; the message says what to do."""


def join_task(env_id: str, kwargs: dict[str, Any]) -> str:
    """The task in which ``env_id`` has these arguments; TaskError when they are none."""
    return f"{env_id}?{_canonical(kwargs, repr(kwargs))}" if kwargs else env_id


def split_task(task: str) -> tuple[str, dict[str, Any]]:
    """The id and the arguments of a task; TaskError when what follows the id is none."""
    env_id, mark, text = task.partition("?")
    return env_id, parse_kwargs(text) if mark else {}


def id_of(task: str) -> str:
    """The id alone, with its module if it names one; of any text."""
    return task.partition("?")[0]


def name_of(task: str) -> str:
    """The id alone, without a module."""
    return id_of(task).rpartition(":")[2]


def parse_kwargs(text: str) -> dict[str, Any]:
    """The arguments that a JSON object names; TaskError when it is none."""
    try:
        kwargs = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TaskError(_told(text, f"which is no JSON ({error})")) from error
    if not isinstance(kwargs, dict):
        raise TaskError(_told(text, f"which is JSON for a {type(kwargs).__name__}"))
    _canonical(kwargs, text)
    return kwargs


def names_code(task: str) -> bool:
    """Whether a task names a module, or has an argument that might name one or a file; of any text."""
    try:
        env_id, kwargs = split_task(task)
    except TaskError:
        env_id, kwargs = id_of(task), {}
    return ":" in env_id or bool(naming_texts(kwargs))


def naming_texts(value: Any) -> set[str]:
    """The texts in a JSON value that may name something outside of it: code, as ``module:Id``, or a file, as ``folder/name``. An
    environment may make another one by its id, and read or write a file, in whatever way."""
    found, left = set(), [value]
    while left:
        one = left.pop()
        if isinstance(one, str) and (":" in one or "/" in one):
            found.add(one)
        elif isinstance(one, dict):
            left += [*one, *one.values()]
        elif isinstance(one, list):
            left += one
    return found


def _canonical(kwargs: dict[str, Any], text: str) -> str:
    limit = kwargs.get(LIMIT, 1)
    if type(limit) is not int or not 1 <= limit <= COUNT_LIMIT:
        raise TaskError(
            f"the environment's {LIMIT} is {limit!r}, expected a whole number of at least 1 and at most {COUNT_LIMIT:g}: an "
            "episode would not end; correct it, or leave it out for the registered limit"
        )
    if "render_mode" in kwargs:
        raise TaskError(
            f"the environment's arguments have render_mode {kwargs['render_mode']!r}, expected none: every worker would draw; "
            "leave it out (`drawbridge evaluate --video` draws)"
        )
    try:
        return json.dumps(kwargs, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise TaskError(_told(text, f"which holds what JSON cannot ({error})")) from error


def _told(text: str, seen: str) -> str:
    return (
        f"the environment's arguments are {text[:200]!r}, {seen}, expected a JSON object: the environment cannot be made with "
        """them; write for example '{"forward_reward_weight": 2.0, "max_episode_steps": 300}'"""
    )
