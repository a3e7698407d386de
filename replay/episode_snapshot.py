"""Snapshots of a shard of whole episodes: what it gathered, what was inferred, and which episodes of the dataset it held.

Files and rules are those of ``replay.snapshot``: a directory belongs to one shard, files are written as base_saving.py says, a
damaged snapshot is passed over for the next older one.

    segment-000000-<snapshot>.safetensors      columns of all slots, posteriors, open rows
    segment-<1..>-<snapshot>.safetensors       rows of the online ring, some megabytes each
    manifest-<snapshot>.json                   files, digests, and everything that is no array

Rows of a dataset are not written: they are read again, by index. Unlike ``replay.snapshot`` every snapshot is whole (episodes
are few megabytes, and older snapshots then share no file with it); it is copied when it begins, so that appends may go on.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load as from_safetensors

from replay import snapshot_files as files
from replay.base_saving import BaseSaving
from replay.episode_shard import EpisodeShard
from replay.snapshot_files import SnapshotError, SnapshotInfo

FORMAT = "episodes-1"
PART_BYTES = 4 << 20  # about what one step writes
_TABLE, _OPEN, _LEFT, _ROWS = "table.", "open_rows", "left_behind", "rows"


def save(shard: EpisodeShard, directory: str | Path) -> SnapshotInfo:
    """Writes a snapshot in one go; keeps config.snapshots_kept intact ones.

    Raises:
        OSError: the disk is full, or the directory cannot be written. Older snapshots are as they were.
    """
    return Saving(shard, directory).finish()


def load(shard: EpisodeShard, directory: str | Path) -> SnapshotInfo | None:
    """Loads the newest valid snapshot into a shard that took no chunk yet; None if the directory has none at all.

    The shard then answers and samples bit by bit as the saved one would have. A damaged snapshot is passed over for the
    next older one and named in ``warnings``.

    Raises:
        SnapshotError: every snapshot is damaged, or the newest readable one is of another shard, layout or dataset.
        ValueError: the shard has taken or given something already.
    """
    started, directory = time.monotonic(), Path(directory)
    if shard.table.inserted or shard.limiter.sampled:
        raise ValueError(
            f"shard {shard.shard} has taken {shard.table.inserted} rows and given {shard.limiter.sampled} episodes; expected a new "
            "one: nothing was loaded, that would be lost; load before the first call"
        )
    found = files.newest_sound(directory, _identity(shard), "episodes")
    if found is None:
        return None
    _fill(shard, found.manifest, found.path)
    return found.loaded(shard.table.inserted, started)


class Saving(BaseSaving):
    """A snapshot of what was copied when this object was made."""

    def __init__(self, shard: EpisodeShard, directory: str | Path) -> None:
        super().__init__(shard, directory, _identity(shard))
        self._parts = _copies(shard)

    def cancel(self) -> None:
        """Gives up: removes what was written."""
        self._parts.clear()
        super().cancel()

    def _next_segment(self) -> tuple[int, dict[str, np.ndarray]] | None:
        return (len(self._entries), self._parts.pop(0)) if self._parts else None

    def _completed(self) -> Iterable[int]:
        return list(islice(files.intact(self.directory), self._kept))


def _copies(shard: EpisodeShard) -> list[dict[str, np.ndarray]]:
    """The arrays of a snapshot, by file."""
    table, ring = shard.table, shard.table.online
    first = {_TABLE + name: array for name, array in table.arrays().items()}
    first[_OPEN] = shard.assembly.open_rows()
    first[_LEFT] = np.zeros((0, 0), np.float32) if shard.stream is None else shard.stream.left_behind()
    used = ring.base + max((int(table.start[s] + table.length[s]) - ring.base for s in ring.order), default=0)
    step = max(1, PART_BYTES // (4 * table.width))
    stops = [(start, min(start + step, used)) for start in range(ring.base, used, step)]
    return [first, *({_ROWS: table.rows[start:stop].copy()} for start, stop in stops)]


def _identity(shard: EpisodeShard) -> dict[str, Any]:
    """What a snapshot and a shard must have in common."""
    table = shard.table
    return {
        "format": FORMAT,
        "layout": dataclasses.asdict(shard.layout),
        "offline_capacity": table.offline.capacity,
        "online_capacity": table.online.capacity,
        "posterior_floats": table.posterior_floats,
        "shard": shard.shard,
        "shards": shard.shards,
    }


def _fill(shard: EpisodeShard, manifest: dict[str, Any], path: Path) -> None:
    state, table = manifest["state"], shard.table
    parts = [from_safetensors((path.parent / entry["file"]).read_bytes()) for entry in manifest["segments"]]
    table.load_arrays({name: parts[0][_TABLE + name] for name in table.columns})
    table.load_state(state["table"])
    shard.assembly.load_state(state["assembly"], parts[0][_OPEN])
    if shard.stream is not None:
        try:
            shard.stream.load_state(state["stream"], parts[0][_LEFT])
        except ValueError as error:
            raise SnapshotError(f"{path} does not go with the dataset: {error}") from error
    start = table.online.base
    for part in parts[1:]:
        table.rows[start : start + len(part[_ROWS])] = part[_ROWS]
        start += len(part[_ROWS])
    shard.load_state(state)
