"""Settings in text: values of ``--set KEY=VALUE``, older names of fields, names of algorithms and presets."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Collection
from typing import Any

from cluster.errors import UsageError

REMOVED = {"timed": "it scored 5 to 29 on the mazes where linear scores 23 to 64"}  # presets, and why
SHOWN = 5  # keys of a list in an error
_EXAMPLES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def _whole(text: str) -> int:
    """25000, 25_000 or 25e3; ValueError or OverflowError for what is no whole number. Long ones keep every digit."""
    try:
        return int(text)
    except ValueError:
        number = float(text)
        if number != int(number):
            raise
        return int(number)


def in_todays_words(key: str, value: Any, expected: dict[str, tuple[Any, dataclasses.Field[Any]]]) -> tuple[str, Any]:
    """A field that an older version wrote, under the names that it and its choices have now; ``expected``: today's, by name."""
    part, _, leaf = key.rpartition(".")
    for name, (_, field) in expected.items() if key not in expected else ():
        if name.rpartition(".")[0] == part and field.metadata.get("was") == leaf:
            key = name
    choices = expected[key][1].metadata.get("choices_were", {}) if key in expected else {}
    return key, next((new for new, old in choices.items() if old == value), value)


def parse_setting(key: str, text: str, kind: type) -> Any:
    """The value of type ``kind`` that ``text`` stands for; UsageError when it stands for none."""
    try:
        if kind is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
        if kind is int:
            return _whole(text)
        return kind(text)
    except (KeyError, ValueError, OverflowError):
        raise UsageError(
            f"--set {key}={text}: {text!r} is not of type {kind.__name__}, expected {_EXAMPLES[kind]}; nothing was started; "
            "give the field a value of its type"
        ) from None


def parse_labels(text: str) -> dict[str, str]:
    """Ray's label selector from "key=value,key=!value,key=in(a,b)"; ValueError for another text."""
    pairs = [pair.partition("=") for pair in re.split(r",(?![^(]*\))", text) if pair.strip()]
    if not all(key.strip() and value.strip() for key, _, value in pairs):
        raise ValueError(text)
    return {key.strip(): value.strip() for key, _, value in pairs}


def unfit_labels(text: Any) -> str:
    """Why Ray could choose no node by ``text``; "" where it could."""
    try:
        parse_labels(text if isinstance(text, str) else "")
    except ValueError:
        return (
            f"{text!r}, expected key=value pairs with commas between them: Ray could choose no node by it; give labels that nodes were "
            "started with (`ray start --labels`), as key=value, key=!value or key=in(a,b)"
        )
    return ""


def check_known(name: str, table: Collection[str], kind: str) -> None:
    """UsageError where ``table`` has no ``name``, with the nearest that it has."""
    if kind == "preset" and name in REMOVED:
        raise UsageError(
            f"preset {name!r} was removed ({REMOVED[name]}), expected one of {', '.join(sorted(table))}; nothing was started. Train again "
            "with --preset linear, or use the version that wrote the run"
        )
    if name not in table:
        near = difflib.get_close_matches(name, table, n=1)
        hint = f"did you mean {near[0]!r}?" if near else ""
        raise UsageError(
            f"unknown {kind} {name!r}, expected one of {', '.join(sorted(table))}; nothing was started. {hint}".rstrip()
        )


def named_keys(keys: list[str]) -> str:
    """The first keys, and how many more."""
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return f"{keys[:SHOWN]}{more}"


def unfit_fields(surplus: list[str], missing: list[str], writer: str, algorithm: str) -> str:
    """Why a configuration of ``algorithm`` with other fields cannot be used; ``writer``: the algorithm whose they are, if any."""
    why = (
        f"they are those of {writer}, not of {algorithm}; nothing was started; put algorithm back"
        if writer
        else "another version of drawbridge wrote it, with other settings, so it would not mean the same here; nothing was started; check "
        "out the version named in its config.json, or train again with this one"
    )
    unfit = [
        f"{verb} {named_keys(keys)}" for verb, keys in (("has unknown fields", surplus), ("lacks", missing)) if keys
    ]
    return f"the configuration {' and '.join(unfit)}: {why}"
