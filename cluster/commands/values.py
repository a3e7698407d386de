"""Values that a program gives to the functions of ``drawbridge``: those that cannot be meant are refused by name, as on the command line."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.errors import UsageError, too_long
from replay.option import COUNT_LIMIT, SEED_LIMIT


def check_path(name: str, value: Any) -> Path:
    """A path; UsageError for anything else, as in every function here."""
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise _refused(name, value, "a path")
    if problem := too_long(Path(value).absolute()):
        raise UsageError(f"{name}: {problem}; nothing was done")
    return Path(value)


def check_text(name: str, value: Any, optional: bool = True) -> None:
    """A text, or None where it is ``optional``."""
    if not isinstance(value, str) and not (optional and value is None):
        raise _refused(name, value, "a text, or None" if optional else "a text")


def check_request(mode: Any, target_return: Any, env: Any) -> None:
    """What a run's policy is asked for: each of the three may be None."""
    check_text("mode", mode)
    check_text("env", env)
    check_number("target_return", target_return)


def check_mapping(name: str, value: Any) -> None:
    """A mapping whose keys are texts, or None."""
    if value is not None and not (isinstance(value, Mapping) and all(isinstance(key, str) for key in value)):
        raise _refused(name, value, "a mapping from texts")


def check_count(name: str, value: Any, least: int = 1) -> int:
    """A whole number of at least ``least``."""
    return _whole(name, value, least, COUNT_LIMIT)


def check_seed(name: str, value: Any) -> int:
    """A seed that every generator takes."""
    return _whole(name, value, 0, SEED_LIMIT)


def check_number(name: str, value: Any, least: float = -math.inf, optional: bool = True) -> None:
    """A finite number of at least ``least``, or None where it is ``optional``."""
    try:
        fits = (optional and value is None) or (not isinstance(value, str) and math.isfinite(value) and value >= least)
    except (TypeError, ValueError, OverflowError):
        fits = False
    if not fits:
        raise _refused(name, value, "a finite number" + (f" of at least {least:g}" if math.isfinite(least) else ""))


def _whole(name: str, value: Any, least: int, most: int) -> int:
    try:
        whole = operator.index(value)
    except TypeError:
        whole = least - 1
    if isinstance(value, bool) or not least <= whole <= most:
        raise _refused(name, value, f"a whole number from {least} to {most}")
    return whole


def _refused(name: str, value: Any, expected: str) -> UsageError:
    return UsageError(
        f"{name} is {str(value)[:80]!r} ({type(value).__name__}), expected {expected}: nothing was done; correct it"
    )
