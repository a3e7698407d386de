"""Settings from a file of ``train --config``: a run's config.json, or a JSON object with some of its fields."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.config import flatten, from_json
from cluster.errors import UsageError
from cluster.history import Damaged, read_object
from cluster.run_dir import FACTS


def read_settings(path: Path) -> dict[str, str]:
    """The file's fields by dotted key, as text; a config.json has all of them, with the former values of those it is older than."""
    try:
        data = read_object(path)
        if "versions" in data:  # a whole configuration
            settings = {key: value for key, value in data.items() if key not in FACTS}
            data = {key: value for key, (value, _) in flatten(from_json(settings)).items()}
    except (OSError, Damaged, UsageError) as error:
        raise UsageError(
            f"--config {path} cannot be used ({error}), expected a run's config.json, or a JSON object with some of its fields: nothing "
            "was started; correct it, or leave it out"
        ) from error
    return {key: "none" if value is None else str(value) for key, value in _leaves(data)}


def _leaves(data: dict[str, Any], before: str = "") -> list[tuple[str, Any]]:
    """Every value that is no object, under its dotted key."""
    found: list[tuple[str, Any]] = []
    for key, value in data.items():
        found += _leaves(value, f"{before}{key}.") if isinstance(value, dict) else [(before + key, value)]
    return found
