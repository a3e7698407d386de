"""Configuration fields that carry their own unit, meaning and range, and the check of any value against them."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

Number = int | float
DEFAULT = "; the default is "  # how the line about a value ends

COUNT_LIMIT = 10**15  # of any whole number that has no upper limit of its own
SIZE_LIMIT = 1e9  # of any other number: its square is still a float32
LEAST = 1e-12  # of a positive number
TEXT_LIMIT = 1_000  # characters
WIDTH_LIMIT = 65_536
SEED_LIMIT = 2**62

# Ranges that many fields share, as keywords of ``option``.
COUNT: dict[str, Any] = {"at_least": 0, "why": "a count cannot be negative"}
BUDGET: dict[str, Any] = {"at_least": 0, "why": "a count cannot be negative; 0 halts at the first failure"}
WIDTH: dict[str, Any] = {
    "at_least": 1,
    "at_most": WIDTH_LIMIT,
    "why": "a layer without units computes nothing, and no memory holds a wider one",
}
HEADS: dict[str, Any] = {"at_least": 1, "at_most": WIDTH_LIMIT, "why": "attention needs a head"}
LAYERS: dict[str, Any] = {"at_least": 1, "at_most": 256, "why": "the input would not reach the output"}
DRAWS: dict[str, Any] = {"at_least": 1, "at_most": 1_000_000, "why": "there would be nothing to compute with"}
PROCESSES: dict[str, Any] = {"at_least": 1, "at_most": 4_096, "why": "nobody would do the work, or too many"}
RESERVED: dict[str, Any] = {"at_least": 0, "at_most": 100_000, "why": "no machine could reserve it"}
RATE: dict[str, Any] = {  # of Adam: a step of 1 moves every parameter by about 1
    "above": 0,
    "at_most": 1,
    "why": "nothing would be learned, or what was learned be lost in one step",
}
SHARE: dict[str, Any] = {"at_least": 0, "at_most": 1, "why": "it is a share"}
WEIGHT: dict[str, Any] = {"at_least": 0, "why": "its effect would be reversed"}
FOLLOW: dict[str, Any] = {"above": 0, "at_most": 1, "why": "the copy would never move"}  # of a slow copy, in one update
DECAY: dict[str, Any] = {"at_least": 0, "why": "parameters would grow on their own"}
LOG_VARIANCE: dict[str, Any] = {"at_least": -40, "at_most": 40, "why": "no float32 holds such a variance"}


def option(
    default: Any,
    unit: str,
    help: str,
    choices: tuple[Any, ...] | None = None,
    *,
    at_least: Number | None = None,
    above: Number | None = None,
    at_most: Number | None = None,
    below: Number | None = None,
    infinite: bool = False,
    why: str = "",
    former: Any = None,
    was: str = "",
    choices_were: dict[str, str] | None = None,
) -> Any:
    """A dataclass field with a unit, a one-line meaning and a range; ``drawbridge config`` prints all three.

    Args:
        default: value of the field when nobody sets it.
        unit: unit of the value ("rows", "s", "bytes", "1" for pure numbers, "name" for names).
        help: one line of what the field does and where its default comes from.
        choices: the only values allowed, or None for any value of the field's type.
        at_least, above, at_most, below: bounds of a number; the first and third are allowed values themselves.
        infinite: whether infinity is allowed. NaN never is.
        why: the consequence of a value outside the range.
        former: what configurations mean that were written before the field existed; None: they are refused.
        was: the field's name in older configurations, which stays its name in checkpoints.
        choices_were: the same for choices: today's word to the older one.
    """
    bounds = {"at_least": at_least, "above": above, "at_most": at_most, "below": below}
    metadata = {
        "unit": unit,
        "help": help,
        "choices": choices,
        "infinite": infinite,
        "why": why,
        "former": former,
        "was": was,
        "choices_were": choices_were or {},
        **bounds,
    }
    return dataclasses.field(default=default, metadata=metadata)


def range_of(field: dataclasses.Field[Any]) -> str:
    """The range that a field declares, in words: "at least 1", "in [0, 1)", "one of a, b"; "" where it declares none."""
    bounds = field.metadata
    if bounds.get("choices"):
        return f"one of {', '.join(_shown(choice) for choice in bounds['choices'])}"
    low = bounds.get("at_least") if bounds.get("at_least") is not None else bounds.get("above")
    high = bounds.get("at_most") if bounds.get("at_most") is not None else bounds.get("below")
    if low is not None and high is not None and "int" not in str(field.type):
        return (
            f"in {'[' if bounds['at_least'] is not None else '('}{low:g}, {high:g}"
            f"{']' if bounds['at_most'] is not None else ')'}"
        )
    words = {
        "at_least": "at least {}",
        "above": "a positive number" if bounds.get("above") == 0 else "above {}",
        "at_most": "at most {}",
        "below": "below {}",
    }
    return " and ".join(text.format(bounds[name]) for name, text in words.items() if bounds.get(name) is not None)


def problem_with(field: dataclasses.Field[Any], value: Any) -> str:
    """What is wrong with ``value`` for ``field``, in words that begin with the field's name; "" when nothing is."""
    if unfit := unfit_for(field, value):
        return unfit
    bounds = field.metadata
    if bounds["choices"]:
        return "" if value in bounds["choices"] else _told(field, value, range_of(field))
    if isinstance(value, (bool, str)) or value is None or value == math.inf:
        return ""
    if not _inside(bounds, value):
        return _told(field, value, range_of(field))
    if bounds["above"] == 0 and value < LEAST:
        return _told(field, value, f"no less than {LEAST:g}")
    limit = COUNT_LIMIT if isinstance(value, int) else SIZE_LIMIT
    if bounds["at_most"] is None and bounds["below"] is None and abs(value) > limit:
        return _told(field, value, f"no more than {limit:g}")
    return ""


def unfit_for(field: dataclasses.Field[Any], value: Any) -> str:
    """What is wrong with ``value`` whatever the range of ``field``: another type, not finite, no text that can be printed."""
    declared = range_of(field)
    if not fits_type(field, value):
        kind = type_of(field)
        expected = declared if declared.startswith("one of") else f"{kind}, {declared}" if declared else kind
        return _told(field, value, expected)
    if isinstance(value, str) and (len(value) > TEXT_LIMIT or not (value.isprintable() or field.metadata["choices"])):
        return _told(field, value, f"text of at most {TEXT_LIMIT} characters that can be printed")
    finite = not isinstance(value, float) or math.isfinite(value)
    if not finite and not (field.metadata["infinite"] and value == math.inf):
        return _told(field, value, declared if "number" in declared else f"a finite number {declared}".strip())
    return ""


def range_problems(config: Any, read: tuple[str, ...] | None = None) -> list[str]:
    """One line for each field of ``config`` whose value has not its type or range.

    A line says what was seen, what was expected, the consequence and the default to go back to.

    Args:
        read: the fields that are looked at by whoever has this configuration; the others are checked for their type alone.
    """
    return [
        text
        for field in dataclasses.fields(config)
        if field.metadata.get("unit")
        if (
            text := (problem_with if read is None or field.name in read else unfit_for)(
                field, getattr(config, field.name)
            )
        )
    ]


def fits_type(field: dataclasses.Field[Any], value: Any) -> bool:
    """Whether ``value`` has the type of ``field``; a whole number is one of any kind."""
    declared = str(field.type)
    if value is None:
        return "None" in declared
    if "bool" in declared:
        return isinstance(value, bool)
    if "str" in declared:
        return isinstance(value, str)
    if isinstance(value, bool):
        return False
    return isinstance(value, int) or ("float" in declared and isinstance(value, float))


def type_of(field: dataclasses.Field[Any]) -> str:
    """The type of a field in words."""
    declared = str(field.type)
    words = {"bool": "true or false", "str": "text", "float": "a number", "int": "a whole number"}
    kind = next(text for name, text in words.items() if name in declared)
    return f"{kind} or none" if "None" in declared else kind


def _inside(bounds: Any, value: Number) -> bool:
    return (
        (bounds["at_least"] is None or value >= bounds["at_least"])
        and (bounds["above"] is None or value > bounds["above"])
        and (bounds["at_most"] is None or value <= bounds["at_most"])
        and (bounds["below"] is None or value < bounds["below"])
    )


def _told(field: dataclasses.Field[Any], value: Any, expected: str) -> str:
    seen = value if isinstance(value, float) or type(value) is int else repr(value)
    shown = str(seen) if len(str(seen)) <= 80 else f"{str(seen)[:77]}..."
    why = field.metadata["why"] or "nothing could work with it"
    return f"{field.name} is {shown}, expected {expected}: {why}{DEFAULT}{_shown(field.default)}"


def with_preset(problem: str, preset: Any) -> str:
    """A line of ``range_problems``, after a dotted name, with the value that ``preset`` has there for the class's default."""
    said, default, _ = problem.rpartition(DEFAULT)
    if not default:
        return problem
    try:
        value = functools.reduce(getattr, problem.partition(" ")[0].split("."), preset)
    except AttributeError:
        return problem
    return f"{said}{DEFAULT}{_shown(value)}"


def _shown(value: Any) -> str:
    return "empty" if value == "" else in_setting_words(value)


def in_setting_words(value: Any) -> str:
    """``value`` as ``--set`` takes it."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
