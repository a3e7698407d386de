"""Snapshots of a shard of whole episodes: what it gathered, what was inferred, and which episodes of the dataset it held.

Files and rules are those of ``replay.snapshot``: a directory belongs to one shard, files are fsynced and never rewritten, the
manifest with the digests comes last and in one step, a damaged snapshot is passed over for the next older one.

    segment-000000-<snapshot>.safetensors      columns of all slots, posteriors, open rows
    segment-<1..>-<snapshot>.safetensors       rows of the online ring, some megabytes each
    manifest-<snapshot>.json                   files, digests, and everything that is no array

Rows of a dataset are not written: they are read again, by index. Unlike ``replay.snapshot`` every snapshot is whole (episodes
are few megabytes, and older snapshots then share no file with it); it is copied when it begins, so that appends may go on.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load as from_safetensors
from safetensors.numpy import save as to_safetensors

from replay import snapshot_files as files
from replay.durable import write_synced
from replay.episode_shard import EpisodeShard
from replay.snapshot import SnapshotError, SnapshotInfo

FORMAT = "episodes-1"
PART_BYTES = 4 << 20  # about what one step writes
_TABLE, _OPEN, _LEFT, _ROWS = "table.", "open_rows", "left_behind", "rows"


def save(shard: EpisodeShard, directory: str | Path) -> SnapshotInfo:
    """Writes a snapshot in one go; keeps config.snapshots_kept intact ones.

    Raises:
        OSError: the disk is full, or the directory cannot be written. Older snapshots are as they were.
    """
    saving = Saving(shard, directory)
    while (info := saving.step()) is None:
        pass
    return info


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
    paths = sorted(directory.glob("manifest-*.json"), key=files.number_of, reverse=True) if directory.is_dir() else []
    warnings: list[str] = []
    for path in paths:
        try:
            manifest = files.read_manifest(path)
            _check_identity(shard, manifest, path)
            for entry in manifest["segments"]:
                files.check_file(directory / entry["file"], entry)
        except files.Damaged as damage:
            warnings.append(f"snapshot {files.number_of(path)}: {damage}; passed over for an older one")
            continue
        _fill(shard, manifest, path)
        return SnapshotInfo(
            number=manifest["number"],
            path=path,
            inserted=shard.table.inserted,
            segments=len(manifest["segments"]),
            segments_written=0,
            bytes_written=0,
            seconds=time.monotonic() - started,
            warnings=tuple(warnings),
        )
    if not paths:
        return None
    raise SnapshotError(
        f"none of the {len(paths)} snapshots in {directory} can be loaded:\n  "
        + "\n  ".join(warnings)
        + "\nExpected at least one "
        "intact: starting without the gathered episodes would go unnoticed, so it is refused; restore the files, or remove the "
        "directory to start without them"
    )


class Saving:
    """A snapshot on its way to disk: call ``step`` until it gives its SnapshotInfo.

    The snapshot is of the moment this object was made. If a step raises, the saving is over and its files are removed.

    Raises:
        OSError: the directory cannot be made or read.
    """

    def __init__(self, shard: EpisodeShard, directory: str | Path) -> None:
        self.directory = Path(directory).resolve()
        self.directory.mkdir(parents=True, exist_ok=True)
        self._started = time.monotonic()
        self._number = files.next_number(self.directory)
        self._kept = shard.config.snapshots_kept
        self._manifest = _identity(shard) | {"number": self._number, "state": shard.state()}
        self._parts = _copies(shard)
        self._entries: list[dict[str, Any]] = []
        self._info: SnapshotInfo | None = None
        self._over = False

    def step(self) -> SnapshotInfo | None:
        """Writes one file, or at the end the manifest; what was written once the snapshot is complete."""
        if self._info is not None:
            return self._info
        if self._over:
            raise RuntimeError(
                "this snapshot failed or was cancelled before it was complete: nothing of it is kept; begin anew"
            )
        try:
            if self._parts:
                self._write(self._parts.pop(0))
            else:
                self._finish()
        except BaseException:
            self.cancel()
            raise
        return self._info

    def cancel(self) -> None:
        """Gives up: removes what was written."""
        if self._info is None and not self._over:
            self._over = True
            self._parts.clear()
            for index in range(len(self._entries) + 1):
                (self.directory / files.segment_name(index, self._number)).unlink(missing_ok=True)

    def _write(self, arrays: dict[str, np.ndarray]) -> None:
        data = to_safetensors(arrays)
        path = self.directory / files.segment_name(len(self._entries), self._number)
        write_synced(path, data)
        self._entries.append({"file": path.name, "digest": files.digest(data), "bytes": len(data)})

    def _finish(self) -> None:
        path = files.manifest_path(self.directory, self._number)
        size = files.write_manifest(path, self._manifest | {"segments": self._entries})
        self._info = SnapshotInfo(
            number=self._number,
            path=path,
            inserted=int(self._manifest["state"]["table"]["inserted"]),
            segments=len(self._entries),
            segments_written=len(self._entries),
            bytes_written=size + sum(entry["bytes"] for entry in self._entries),
            seconds=time.monotonic() - self._started,
        )
        files.remove_garbage(self.directory, _intact(self.directory, self._kept))


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


def _check_identity(shard: EpisodeShard, manifest: dict[str, Any], path: Path) -> None:
    wrong = [
        f"{key} is {manifest.get(key)}, expected {value}"
        for key, value in _identity(shard).items()
        if manifest.get(key) != value
    ]
    if wrong:
        raise SnapshotError(
            f"{path} is of another shard: {'; '.join(wrong)}. Its episodes would be misread, so nothing was loaded; resume with the "
            "configuration it was written under, or start with an empty directory"
        )


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


def _intact(directory: Path, kept: int) -> list[int]:
    """Numbers of the ``kept`` newest snapshots whose manifests can be read and whose files are there."""
    found: list[int] = []
    for path in sorted(directory.glob("manifest-*.json"), key=files.number_of, reverse=True):
        if len(found) == kept:
            break
        try:
            entries = files.read_manifest(path)["segments"]
        except files.Damaged:
            continue
        if all(
            (directory / e["file"]).is_file() and (directory / e["file"]).stat().st_size == e["bytes"] for e in entries
        ):
            found.append(files.number_of(path))
    return found
