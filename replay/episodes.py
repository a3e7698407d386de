"""Whole episodes, recovered from the columns of a table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from replay.table import Table


class Episode(NamedTuple):
    """One episode from its first row to its flagged last one."""

    episode: int
    rows_TD: np.ndarray  # float32, a copy, in step order
    flag: int  # how it ended: TERMINATED | TRUNCATED | CUT
    version_T: np.ndarray  # int64, of the policy that acted at each step
    slot_T: np.ndarray  # int64
    generation_T: np.ndarray  # int64


def complete_episodes(table: Table) -> Iterator[Episode]:
    """Every episode of which all rows are held, by episode id. The table must not change in between."""
    slot_N = np.lexsort((table.step[: table.size], table.episode[: table.size]))
    bounds = np.flatnonzero(np.diff(table.episode[slot_N], prepend=-1, append=-1))
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist()):
        slot_T = slot_N[start:stop]
        flag = int(table.flag[slot_T[-1]])
        if flag == 0 or (table.step[slot_T] != np.arange(len(slot_T))).any():
            continue
        yield Episode(
            episode=int(table.episode[slot_T[0]]),
            rows_TD=table.rows[slot_T],
            flag=flag,
            version_T=table.version[slot_T],
            slot_T=slot_T,
            generation_T=table.generation(slot_T),
        )
