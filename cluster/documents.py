"""The JSON files of a run directory, read without trusting any byte of them.

A file may be cut, empty, of another encoding, nested without end, or hold values of other types than a run writes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.metrics.catalogue import find_metric, is_resumed

DEPTH = 20  # levels of nesting; a run writes four
LARGEST = 1e30  # of any figure: what is beyond it was never counted or measured

FIGURES = {  # of live.json, summary.json and failure.json, beside those of a metrics record
    "written", "pid", "metrics_port", "when", "wall_s", "eval_return_std", "eval_episodes", "policy_version",
}  # fmt: skip
TEXTS = {"state", "algorithm", "env", "backend", "preset", "error", "traceback"}
GROUPS = {"rows", "workers", "learner_time", "policy_age_versions"}  # of summary.json: objects of numbers


class Damaged(ValueError):
    """Bytes that are not what a run writes; the message says what was seen and what was expected."""


def parsed(raw: bytes) -> Any:
    """The JSON value that ``raw`` stands for; Damaged when it stands for none, or for one that could not be printed."""
    if not raw.strip():
        raise Damaged("it is empty, expected JSON")
    try:
        value = json.loads(raw)
        if b"\\ud" in raw.lower() or b"\xed" in raw:
            json.dumps(value, ensure_ascii=False).encode()  # halves of surrogate pairs
    except RecursionError:
        raise Damaged(f"it is nested deeper than {DEPTH} levels, expected what a run writes") from None
    except ValueError as error:
        raise Damaged(f"it is no JSON: {error}") from None
    level = [value]
    for _ in range(DEPTH):
        level = [
            item
            for node in level
            if isinstance(node, (dict, list))
            for item in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return value
    raise Damaged(f"it is nested deeper than {DEPTH} levels, expected what a run writes")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``; Damaged when it holds something else, OSError when it cannot be read."""
    value = parsed(path.read_bytes())
    if not isinstance(value, dict):
        raise Damaged(f"it holds {_kind(value)}, expected an object")
    return value


def misfits(data: Mapping[str, Any]) -> dict[str, str]:
    """The keys of live.json, summary.json or failure.json that hold what a run never writes there, with what was expected."""
    found = {}
    for key, value in data.items():
        if key in GROUPS and isinstance(value, dict):
            bad, expected = not all(_counted(name, item) for name, item in value.items()), "an object of numbers"
        elif is_resumed(key):
            bad, expected = not (number(value) and value >= 0), "a number of at least 0"
        elif key in FIGURES or (key not in GROUPS and find_metric(key)):
            bad = not (value is None or number(value) or (isinstance(value, float) and not math.isfinite(value)))
            expected = "a number"
        elif key in GROUPS:
            bad, expected = value is not None, "an object of numbers"
        else:
            bad, expected = key in TEXTS and not isinstance(value, str), "text"
        if bad:
            found[key] = f"{key} is {_kind(value)}, expected {expected}"
    return found


def number(value: Any) -> bool:
    """Whether ``value`` is a finite number of a size that is ever counted or measured."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -LARGEST < value < LARGEST


def _counted(name: str, item: Any) -> bool:
    """Whether ``item`` is a number, or numbers by reason where rows were dropped."""
    return number(item) or (name == "dropped" and isinstance(item, dict) and all(map(number, item.values())))


def _kind(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
