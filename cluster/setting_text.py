"""Values of settings from the text of ``--set KEY=VALUE``."""

from __future__ import annotations

import re
from typing import Any

from cluster.errors import UsageError

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
