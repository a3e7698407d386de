"""What the replay service takes of memory, from its configuration alone.

Upper bounds in bytes over all shards, without the interpreters and without blocks and chunks on the way.
"""

from __future__ import annotations

from replay.admission import WINDOW, WRITERS
from replay.arena import FIRST_SLOTS, ROWS_AN_EPISODE, SLOT_BYTES
from replay.config import DataConfig, ReplayConfig
from replay.schema import RowLayout
from replay.snapshot import HELD
from replay.transition_store import META_BYTES, WAITING, segment_slots

_ENTRY_BYTES = 320  # of a Python dict entry with a tuple of two integers as its key
_WRITERS_BYTES = WRITERS * (WINDOW // 8 + 2 * _ENTRY_BYTES)


def transition_bytes(layout: RowLayout, config: ReplayConfig, offline_rows: int = 0) -> int:
    """Of stores of transitions: columns, what is remembered of writers and episodes, snapshots in progress, and ``offline_rows`` rows
    of a dataset, but not the one episode of it that is being read."""
    capacity = config.capacity_rows // config.shards
    row = 4 * layout.width + META_BYTES
    snapshot = (HELD + 3) * segment_slots(layout, capacity) * row  # copies, one being written and its serialised copies
    remembered = 2 * min(WAITING, capacity) * _ENTRY_BYTES + _WRITERS_BYTES
    return config.shards * (capacity * row + snapshot + remembered) + 4 * layout.width * offline_rows


def episode_bytes(layout: RowLayout, config: ReplayConfig, data: DataConfig, posterior_floats: int) -> int:
    """Of stores of episodes with a dataset and stages: rows, columns, partial episodes, what is kept of episodes that streamed out, a
    snapshot in progress."""
    row = 4 * (layout.obs_dim + layout.action_dim + 1)
    rings = data.offline_capacity_rows // config.shards, config.capacity_rows // config.shards
    slot = SLOT_BYTES + 4 * posterior_floats
    slots = 2 * sum(max(FIRST_SLOTS, rows // ROWS_AN_EPISODE) for rows in rings) + FIRST_SLOTS
    return config.shards * (row * (2 * rings[0] + 4 * rings[1]) + 2 * slots * slot + _WRITERS_BYTES)
