"""Checkpoints of the RLlib face: a folder on this machine, and the file that makes it one; or a run of the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ray.tune import Checkpoint

from cluster.config import flatten
from cluster.errors import UsageError
from cluster.run_dir import RunDirectory
from replay.task import split_task

SAVED = "drawbridge_rllib.json"  # written last: a folder without it is no checkpoint
FORMAT = 1
OF_THE_FACE = {
    "algorithm",
    "preset",
    "env",
    "steps",
    "evaluation.episodes",
    "evaluation.every_steps",
}  # set by its own methods


def read_saved(folder: Path, algorithm: str) -> dict[str, Any]:
    """What save_to_path wrote about the checkpoint, or what it would have written about the run directory ``folder``."""
    try:
        found = _of_run(folder) if _is_run(folder) else dict(json.loads((folder / SAVED).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{folder} is no checkpoint of this face ({error}); nothing was started; give a folder that save_to_path or Tune wrote, "
            "or a run directory"
        ) from error
    if (found.get("format"), found.get("algorithm")) != (FORMAT, algorithm):
        raise UsageError(
            f"{folder} holds a checkpoint of {found.get('algorithm')!r}, format {found.get('format')}, expected {algorithm!r}, format "
            f"{FORMAT}; nothing was started; use the class that wrote it"
        )
    return found


def _is_run(folder: Path) -> bool:
    """Whether it is a run directory: save_to_path writes no lock, so a folder that it did not finish is none."""
    return not (folder / SAVED).exists() and (folder / "run.lock").exists() and (folder / "config.json").exists()


def _of_run(folder: Path) -> dict[str, Any]:
    """A run of the command line as a checkpoint with the run's settings, but without its end: the caller decides that."""
    run = RunDirectory.open(folder)
    if owner := run.owner():
        raise UsageError(
            f"{folder} is a run that continues (process {owner}), expected one that ended: its files change while they are copied, so "
            f"nothing was started; `drawbridge stop {folder}` ends it with a checkpoint"
        )
    config = run.config()
    kept = {key: value for key, (value, _) in flatten(config).items() if key not in OF_THE_FACE}
    env_id, kwargs = split_task(config.env)
    settings = {"env": env_id, "env_config": kwargs, "preset": config.preset, "fleet_settings": kept}
    return {
        "format": FORMAT,
        "algorithm": config.algorithm,
        "iteration": 0,
        "time_total_s": float(run.live().get("time_s", 0.0)),
        "starts": run.starts(),
        "settings": settings | {"evaluation_duration": config.evaluation.episodes},
    }


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
