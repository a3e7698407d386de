"""Configuration fields that carry their own unit and meaning."""

from __future__ import annotations

import dataclasses
from typing import Any


def option(default: Any, unit: str, help: str, choices: tuple[Any, ...] | None = None) -> Any:
    """A dataclass field with a unit and a one-line meaning, printed by ``drawbridge config``.

    Args:
        default: value of the field when nobody sets it.
        unit: unit of the value ("rows", "s", "bytes", "1" for pure numbers, "name" for names).
        help: one line of what the field does and where its default comes from.
        choices: the only values allowed, or None for any value of the field's type.
    """
    return dataclasses.field(default=default, metadata={"unit": unit, "help": help, "choices": choices})


def too_low(config: Any, least: tuple[tuple[str, float, str], ...]) -> list[str]:
    """One line for each (field, least value, consequence of less) that ``config`` falls short of; NaN does."""
    return [
        f"{name} is {getattr(config, name)}, expected at least {bound}: {why}; raise it"
        for name, bound, why in least
        if not getattr(config, name) >= bound
    ]
