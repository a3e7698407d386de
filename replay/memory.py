"""What the replay service takes of memory, from its configuration alone."""

from __future__ import annotations

from replay.config import ReplayConfig
from replay.rows import RowLayout
from replay.snapshot import HELD
from replay.table import META_BYTES, WAITING, segment_slots
from replay.writers import WINDOW, WRITERS

_ENTRY_BYTES = 320  # of a Python dict entry with a tuple of two integers as its key


def bytes_needed(layout: RowLayout, config: ReplayConfig, offline_rows: int = 0) -> int:
    """Upper bound in bytes over all shards: columns, what is remembered of writers and episodes, snapshots in progress, and
    ``offline_rows`` rows of a dataset.

    Without the interpreters, without blocks and chunks on the way, and without the one episode of a dataset that is being read.
    """
    capacity = config.capacity_rows // config.shards
    row = 4 * layout.width + META_BYTES
    columns = capacity * row
    snapshot = (
        (HELD + 3) * segment_slots(layout, capacity) * row
    )  # held back, one being written and its serialised copies
    remembered = 2 * min(WAITING, capacity) * _ENTRY_BYTES + WRITERS * (WINDOW // 8 + 2 * _ENTRY_BYTES)
    return config.shards * (columns + snapshot + remembered) + 4 * layout.width * offline_rows
