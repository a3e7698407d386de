"""A snapshot on its way to disk, one file a step: what both kinds of shards do the same way.

Files are fsynced and never rewritten, the manifest is renamed into place last, then the directory is fsynced: a snapshot exists
when its manifest does. What no kept manifest names is removed after that.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save as to_safetensors

from replay import snapshot_files as files
from replay.base_shard import BaseShard
from replay.manifest import Entry, write_file, write_manifest
from replay.snapshot_files import SnapshotInfo


class BaseSaving(ABC):
    """Call ``step`` until it gives its SnapshotInfo. The snapshot is of the moment this object was made.

    If a step raises, the saving is over and its files are removed; older snapshots are as they were.

    Raises:
        OSError: the directory cannot be made or read.
    """

    def __init__(self, shard: BaseShard, directory: str | Path, identity: dict[str, Any]) -> None:
        self.directory = Path(directory).resolve()
        self.directory.mkdir(parents=True, exist_ok=True)
        self._started = time.monotonic()
        self._number = files.next_number(self.directory)
        self._kept = shard.config.snapshots_kept
        self._manifest = identity | {"number": self._number, "state": shard.state()}
        self._entries: dict[int, Entry] = {}  # by segment
        self._written: list[Path] = []
        self._bytes = 0
        self._info: SnapshotInfo | None = None
        self._over = False

    def step(self) -> SnapshotInfo | None:
        """Writes one segment, or at the end the manifest; what was written once the snapshot is complete."""
        if self._info is not None:
            return self._info
        if self._over:
            raise RuntimeError(
                "this snapshot failed or was cancelled before it was complete: nothing of it is kept; begin anew"
            )
        self._guarded(self._advance)
        return self._info

    def finish(self) -> SnapshotInfo:
        """All the steps in one go.

        Raises:
            OSError: the disk is full, or the directory cannot be written.
        """
        while (info := self.step()) is None:
            pass
        return info

    def cancel(self) -> None:
        """Gives up: removes what was written."""
        if self._info is None and not self._over:
            self._over = True
            for path in self._written:
                path.unlink(missing_ok=True)

    @abstractmethod
    def _next_segment(self) -> tuple[int, dict[str, np.ndarray]] | None:
        """The next segment to be written, which is given once, and its arrays; None: all are."""

    @abstractmethod
    def _completed(self) -> Iterable[int]:
        """Called when the manifest is in place; the numbers of the snapshots to keep."""

    def _advance(self) -> None:
        segment = self._next_segment()
        if segment is None:
            self._write_manifest()
        else:
            self._write_segment(*segment)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException:
            self.cancel()
            raise

    def _write_segment(self, index: int, arrays: dict[str, np.ndarray]) -> None:
        data = to_safetensors(arrays)
        path = self.directory / files.segment_name(index, self._number)
        self._written.append(path)
        self._entries[index] = write_file(path, data)
        self._bytes += len(data)

    def _write_manifest(self) -> None:
        path = files.manifest_path(self.directory, self._number)
        manifest = self._manifest | {"segments": [self._entries[index] for index in range(len(self._entries))]}
        size = write_manifest(path, manifest)
        self._info = SnapshotInfo(
            number=self._number,
            path=path,
            inserted=int(manifest["state"]["table"]["inserted"]),
            segments=len(self._entries),
            segments_written=len(self._written),
            bytes_written=self._bytes + size,
            seconds=time.monotonic() - self._started,
        )
        files.remove_garbage(self.directory, self._completed())
