"""Which dataset a run learned from: noted when the run starts, so that another one under the same id is noticed later."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.history import Damaged, read_object
from replay.manifest import write_atomic

if TYPE_CHECKING:
    from cluster.graph import RunSpec
    from replay.dataset import Dataset

FILE = "dataset.json"


def keep_identity(dataset: Dataset | None, run_dir: Path) -> None:
    """Writes what tells the dataset from others into the run directory, the first time that the run starts."""
    if dataset is not None and not (run_dir / FILE).exists():
        write_atomic(run_dir / FILE, json.dumps(_identity(dataset), indent=1).encode())


def identity_notes(spec: RunSpec) -> list[str]:
    """One line if the run's dataset is another one than it learned from; of a run that has not begun, than its base run did.

    Runs of earlier versions have no note and get no line; nor does one that was given a dataset of another id.
    """
    dataset, run_dir = spec.dataset, spec.run_dir
    if dataset is None:
        return []
    if spec.config.online.base and not (run_dir / FILE).exists():
        run_dir = Path(spec.config.online.base)
    try:
        then = read_object(run_dir / FILE)
    except (OSError, Damaged):
        return []
    now = _identity(dataset)
    if then == now or then.get("id") != dataset.id:
        return []
    return [
        f"{dataset.id} is not the dataset that {run_dir} learned from: {_in_words(then)} then, {_in_words(now)} now, made anew; its "
        "episodes and reference returns are used all the same; put the first one back to have that run's"
    ]


def _identity(dataset: Dataset) -> dict[str, Any]:
    return {
        "id": dataset.id,
        "episodes": dataset.total_episodes,
        "steps": dataset.total_steps,
        "metadata": dataset.metadata_digest,
    }


def _in_words(identity: dict[str, Any]) -> str:
    episodes, steps = (
        f"{value:,}" if isinstance(value, int) else "?" for value in map(identity.get, ("episodes", "steps"))
    )
    return f"{episodes} episodes of {steps} steps in all"
