"""Which dataset a run learned from: noted when the run starts, so that another one under the same id is noticed later."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.errors import UsageError
from cluster.history import Damaged, read_object
from cluster.own_code import run_words
from replay.manifest import write_atomic

if TYPE_CHECKING:
    from cluster.graph import RunSpec
    from replay.dataset import Dataset

IDENTITY_FILE = "dataset.json"
NAMES = {  # keys of the note, and what people call it
    "id": "id",
    "episodes": "episodes",
    "steps": "steps",
    "random_return": "return of the random policy",
    "expert_return": "return of the expert",
    "metadata": "digest of the metadata",
}


def keep_identity(dataset: Dataset | None, run_dir: Path) -> None:
    """Writes what tells the dataset from others into the run directory, the first time that the run starts."""
    if dataset is not None and not (run_dir / IDENTITY_FILE).exists():
        write_atomic(run_dir / IDENTITY_FILE, json.dumps(_identity(dataset), indent=1).encode())


def kept_identity(run_dir: Path) -> dict[str, Any] | None:
    """The note; None in runs without a dataset, of an earlier version or with a damaged one."""
    try:
        return read_object(run_dir / IDENTITY_FILE)
    except (OSError, Damaged):
        return None


def identity_notes(spec: RunSpec) -> list[str]:
    """One line if the run's dataset has changed since it learned from it; of a run that has not begun, since its base run did.

    Runs of earlier versions have no note and get no line; nor does one that begins with another dataset than its base run's.
    """
    changed = _change(spec)
    return [f"{changed}; its episodes and reference returns are used as they are now"] if changed else []


def identity_problems(spec: RunSpec) -> list[str]:
    """One line if the dataset has moved or changed since the run, which has begun and is to go on, learned from it."""
    if kept_identity(spec.run_dir) is None:
        return []
    if _opened(spec) is None:
        again = run_words("resume", spec.run_dir, spec.config)
        return [
            f"{spec.run_dir} learned from it; where it is in another place now, name that: `{again} --dataset PATH`"
        ]
    changed = _change(spec)
    if not changed:
        return []
    return [
        f"{changed}; expected the same, because the run would not go on as if it had never stopped; put the first one back (`drawbridge "
        "dataset show` says how one was made), or begin a new run"
    ]


def _change(spec: RunSpec) -> str:
    run_dir, base, dataset = spec.run_dir, spec.config.online.base, _opened(spec)
    if dataset is None:
        return ""
    begins = bool(base) and not (run_dir / IDENTITY_FILE).exists()
    if begins:
        run_dir = Path(base)
    then, now = kept_identity(run_dir), _identity(dataset)
    if then is None or then == now or (begins and then.get("id") != dataset.id):
        return ""
    differing = [
        f"{name} {_in_words(then.get(key))} then, {_in_words(now[key])} now"
        for key, name in NAMES.items()
        if then.get(key) != now[key]
    ]
    another = "id" in then and then["id"] != dataset.id
    said = "is not the dataset that {} learned from" if another else "has changed since {} learned from it"
    return f"{dataset.id} {said.format(run_dir)}: {'; '.join(differing)}"


def _opened(spec: RunSpec) -> Dataset | None:
    """The run's dataset, if it has one that can be opened; others say that it cannot."""
    try:
        return spec.dataset
    except UsageError:
        return None


def _identity(dataset: Dataset) -> dict[str, Any]:
    values = (
        dataset.id,
        dataset.total_episodes,
        dataset.total_steps,
        dataset.random_return,
        dataset.expert_return,
        dataset.metadata_digest,
    )
    return dict(zip(NAMES, values, strict=True))


def _in_words(value: Any) -> str:
    if isinstance(value, str):
        return repr(value[:80])
    return f"{value:,.6g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else "unknown"
