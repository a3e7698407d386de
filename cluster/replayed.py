"""Whole episodes out of the newest replay snapshots of a run, from the oldest policy's to the newest's.

Letters: T steps of an episode.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from cluster.errors import RunError, UsageError
from cluster.graph import Plan, make_shard
from replay.chunk import TERMINATED, TRUNCATED
from replay.episodes import complete_episodes
from replay.rows import RowLayout
from replay.shard import ReplayShard
from replay.snapshot import SnapshotError, load
from replay.stored_episode import StoredEpisode
from replay.table import Table

Progress = Callable[[int], None]  # told how many episodes have been made


def replayed_episodes(plan: Plan, episodes: int | None, progress: Progress | None) -> Iterator[StoredEpisode]:
    """At most ``episodes`` of them, evenly spread over their age; None: all.

    Raises UsageError when there is none, RunError when no snapshot is intact, both before the first episode.
    """
    tables = [table for index in range(plan.config.replay.shards) if (table := _table(plan, index)) is not None]
    found = [(age, shard, slot_T) for shard, table in enumerate(tables) for age, slot_T in _whole(table)]
    order = sorted(found, key=lambda one: one[:2])
    if not order:
        raise UsageError(
            f"{plan.run_dir} has no replay snapshot with a whole episode in it, expected one; nothing was collected; let the "
            "run go on until it writes its next checkpoint"
        )
    count = len(order) if episodes is None else min(episodes, len(order))
    chosen = [order[at] for at in np.linspace(0, len(order) - 1, count).round().astype(int)]
    return _stored(plan.layout, [(tables[shard], slot_T) for _, shard, slot_T in chosen], progress)


def _stored(
    layout: RowLayout, chosen: list[tuple[Table, np.ndarray]], progress: Progress | None
) -> Iterator[StoredEpisode]:
    for index, (table, slot_T) in enumerate(chosen):
        columns, flag = layout.views(table.rows[slot_T]), int(table.flag[slot_T[-1]])
        if progress is not None:
            progress(index + 1)
        yield StoredEpisode(
            index=index,
            obs_TO=columns.obs.copy(),
            action_TA=columns.action.copy(),
            reward_T=columns.reward.astype(np.float64),
            terminated=bool(flag & TERMINATED),
            truncated=bool(flag & TRUNCATED),
            next_obs_O=columns.next_obs[-1].copy(),
        )


def _table(plan: Plan, index: int) -> Table | None:
    """The rows of one shard's newest snapshot; None where it has none. A dataset that was mixed in is not asked for."""
    shard = make_shard(dataclasses.replace(plan, config=dataclasses.replace(plan.config, dataset="")), index)
    assert isinstance(shard, ReplayShard)
    try:
        return None if load(shard, plan.shard_dir(index)) is None else shard.table
    except SnapshotError as error:
        raise RunError(str(error)) from error


def _whole(table: Table) -> Iterator[tuple[tuple[int, int, int], np.ndarray]]:
    """Age and slots of every episode that the environment ended (a worker's end cuts others short).

    Age: of the policy at its first step, then when that step was stored.
    """
    for episode in complete_episodes(table):
        if episode.flag & (TERMINATED | TRUNCATED):
            first = int(episode.slot_T[0])
            stored = (int(episode.generation_T[0]) - 1) * table.capacity + first
            age = (int(table.epoch[first]), int(episode.version_T[0]), stored)
            yield age, episode.slot_T
