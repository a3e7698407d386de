"""Checkpoints of the RLlib face: a folder on this machine, and the file that makes it one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ray.tune import Checkpoint

from cluster.errors import UsageError

SAVED = "drawbridge_rllib.json"  # written last: a folder without it is no checkpoint
FORMAT = 1


def read_saved(folder: Path, algorithm: str) -> dict[str, Any]:
    """What save_to_path wrote about the checkpoint."""
    try:
        found = dict(json.loads((folder / SAVED).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{folder} is no checkpoint of this face ({error}); nothing was started; give a folder that save_to_path or Tune wrote"
        ) from error
    if (found.get("format"), found.get("algorithm")) != (FORMAT, algorithm):
        raise UsageError(
            f"{folder} holds a checkpoint of {found.get('algorithm')!r}, format {found.get('format')}, expected {algorithm!r}, format "
            f"{FORMAT}; nothing was started; use the class that wrote it"
        )
    return found


def local(path: Any) -> Path:
    """A folder of this machine for a path, a file:// address or a Ray Checkpoint."""
    if isinstance(path, Checkpoint):
        return Path(path.to_directory())
    text = str(path).removeprefix("file://")
    if "://" in text:
        raise UsageError(
            f"{path} is not on this machine; nothing was read or written; give a local folder and copy it, or let Tune do so"
        )
    return Path(text).resolve()
