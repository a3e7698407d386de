"""Whole episodes out of the newest replay snapshots of a run, from the oldest policy's to the newest's.

Letters: T steps of an episode.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from cluster.errors import RunError, UsageError
from cluster.graph import Plan, make_shard, snapshots_of
from replay.chunk import TERMINATED, TRUNCATED
from replay.episode_shard import EpisodeShard
from replay.episode_table import EpisodeTable
from replay.episodes import complete_episodes
from replay.rows import RowLayout
from replay.shard import ReplayShard
from replay.snapshot import SnapshotError
from replay.stored_episode import StoredEpisode
from replay.table import Table

Progress = Callable[[int], None]  # told how many episodes have been made


class Found(NamedTuple):
    """An episode that the environment ended, in a snapshot."""

    age: tuple[int, int, int]  # of the policy at its first step, then when it was stored
    shard: int
    read: Callable[[int], StoredEpisode]  # with this index


def replayed_episodes(plan: Plan, episodes: int | None, progress: Progress | None) -> Iterator[StoredEpisode]:
    """At most ``episodes`` of them, evenly spread over their age; None: all. Of a run on whole episodes those of its stages.

    Shards of whole episodes keep no observation after the last action: there the last step's own observation is given once
    more, so that actions, rewards and returns are exact.

    Raises UsageError when there is none, RunError when no snapshot is intact, both before the first episode.
    """
    config = plan.config
    if config.learns_from_episodes and not config.online.stages:
        raise UsageError(
            f"{plan.run_dir} is a run of {config.algorithm} without stages, expected one that gathered episodes: all it has is its dataset "
            "and nothing was collected; give a run of `drawbridge finetune`"
        )
    found = [one for index in range(config.replay.shards) for one in _found(plan, index)]
    found.sort(key=lambda one: (one.age, one.shard))
    if not found:
        raise UsageError(
            f"{plan.run_dir} has no replay snapshot with a whole episode in it, expected one; nothing was collected; let the "
            "run go on until it writes its next checkpoint"
        )
    count = len(found) if episodes is None else min(episodes, len(found))
    chosen = [found[at] for at in np.linspace(0, len(found) - 1, count).round().astype(int)]
    return _stored(chosen, progress)


def _stored(chosen: list[Found], progress: Progress | None) -> Iterator[StoredEpisode]:
    for index, found in enumerate(chosen):
        if progress is not None:
            progress(index + 1)
        yield found.read(index)


def _found(plan: Plan, index: int) -> Iterator[Found]:
    """The whole episodes of one shard's newest snapshot; nothing where it has none."""
    if not plan.config.learns_from_episodes:  # a dataset that was mixed in is not asked for: it may be gone
        plan = dataclasses.replace(plan, config=dataclasses.replace(plan.config, dataset=""))
    shard = make_shard(plan, index)
    try:
        if snapshots_of(plan.config).load(shard, plan.shard_dir(index)) is None:
            return iter(())
    except SnapshotError as error:
        raise RunError(str(error)) from error
    if isinstance(shard, EpisodeShard):
        return _of_stages(shard, index)
    assert isinstance(shard, ReplayShard)
    return _of_transitions(plan.layout, shard.table, index)


def _of_transitions(layout: RowLayout, table: Table, shard: int) -> Iterator[Found]:
    for episode in complete_episodes(table):
        if episode.flag & (TERMINATED | TRUNCATED):  # a worker's end cuts others short
            first = int(episode.slot_T[0])
            stored = (int(episode.generation_T[0]) - 1) * table.capacity + first
            age = int(table.epoch[first]), int(episode.version_T[0]), stored
            yield Found(age, shard, functools.partial(_from_slots, layout, table, episode.slot_T))


def _of_stages(shard: EpisodeShard, index: int) -> Iterator[Found]:
    table = shard.table
    for stored, slot in enumerate(table.online.order):
        age = int(table.stage[slot]), int(table.version[slot]), stored
        yield Found(age, index, functools.partial(_from_extent, table, slot))


def _from_slots(layout: RowLayout, table: Table, slot_T: np.ndarray, index: int) -> StoredEpisode:
    columns, flag = layout.views(table.rows[slot_T]), int(table.flag[slot_T[-1]])
    return StoredEpisode(
        index=index,
        obs_TO=columns.obs.copy(),
        action_TA=columns.action.copy(),
        reward_T=columns.reward.astype(np.float64),
        terminated=bool(flag & TERMINATED),
        truncated=bool(flag & TRUNCATED),
        next_obs_O=columns.next_obs[-1].copy(),
    )


def _from_extent(table: EpisodeTable, slot: int, index: int) -> StoredEpisode:
    first, dim = int(table.start[slot]), table.layout.obs_dim
    rows_TF, flag = table.rows[first : first + int(table.length[slot])], int(table.flag[slot])
    return StoredEpisode(
        index=index,
        obs_TO=rows_TF[:, :dim].copy(),
        action_TA=rows_TF[:, dim:-1].copy(),
        reward_T=rows_TF[:, -1].astype(np.float64),
        terminated=bool(flag & TERMINATED),
        truncated=bool(flag & TRUNCATED),
        next_obs_O=rows_TF[-1, :dim].copy(),
    )
