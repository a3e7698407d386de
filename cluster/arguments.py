"""Types of the command line's arguments: what cannot be meant is a usage error before any command runs."""

from __future__ import annotations

import argparse
import math

from replay.option import COUNT_LIMIT, SEED_LIMIT, SIZE_LIMIT


def point(text: str) -> tuple[float, float]:
    """Two finite numbers with a comma between."""
    try:
        x, y = (float(part) for part in text.split(","))
        if not (math.isfinite(x) and math.isfinite(y)):
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not two numbers with a comma between, such as -1,1") from None
    return x, y


def count(text: str) -> int:
    """A whole number of at least 1, also written as 25e3 or 25_000."""
    try:
        value = float(text.replace("_", ""))
        if 1 <= value <= COUNT_LIMIT and value == int(value):
            return int(value)
    except (ValueError, OverflowError):
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1 and at most {COUNT_LIMIT:g}")


def seed(text: str) -> int:
    """A seed that every generator takes."""
    try:
        if 0 <= int(text) <= SEED_LIMIT:
            return int(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to {SEED_LIMIT}")


def seconds(text: str) -> float:
    """A time that can be waited for."""
    try:
        if 0 < float(text) <= SIZE_LIMIT:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0 and up to {SIZE_LIMIT:g}")
