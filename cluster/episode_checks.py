"""Problems that only runs on whole episodes have, and what their shards take of memory; ``checks`` lists them with the others."""

from __future__ import annotations

import dataclasses

from cluster.commands.finetune import STAGED
from cluster.config import READ_ON_EPISODES, OnlineConfig, RunConfig
from cluster.graph import RunSpec, workers_of
from replay import memory
from replay.config import ReplayConfig
from replay.option import range_problems


def replay_problems(config: RunConfig) -> list[str]:
    """What is wrong with the shards' settings, of those that shards of whole episodes have."""
    found = range_problems(config.replay, READ_ON_EPISODES)
    return [f"replay.{text}" for text in found]


def stage_problems(config: RunConfig) -> list[str]:
    """Stages that could not be gathered or learned from; settings of stages where there are none."""
    online, stages = config.online, config.online.stages
    if not config.learns_from_episodes:
        return _useless(config, "gathers and learns at the same time")
    if config.algorithm not in STAGED:
        return _useless(config, "imitates its dataset and has no plan to explore by")
    if stages < 1:
        return []
    found = []
    if config.worker.random_steps:
        found.append(
            f"worker.random_steps is {config.worker.random_steps} for {config.algorithm}, expected 0: an episode would be half of "
            "nobody's plan; set it to 0"
        )
    if 1 <= online.episodes_per_stage < config.replay.shards:
        found.append(
            f"online.episodes_per_stage is {online.episodes_per_stage}, expected at least replay.shards {config.replay.shards}: every shard "
            "gathers its own part of a stage, and learning would wait for more than was asked for; raise it, or use fewer shards"
        )
    least = stages * online.updates_per_stage
    if config.steps < least:
        found.append(
            f"steps is {config.steps}, expected at least {least} (online.stages {stages} x online.updates_per_stage "
            f"{online.updates_per_stage}): the run would be over before its stages; raise steps or lower one of the two"
        )
    if config.steps > least and not config.dataset:
        found.append(
            f"steps is {config.steps} without a dataset, expected {least}, the updates of the stages alone: there would be nothing to "
            "learn from before the first one; give --dataset, or set steps"
        )
    return found


def data_problems(spec: RunSpec, max_episode_steps: int | None) -> list[str]:
    """Episodes for which a shard has no room, or too few for every shard to have one. Reads the dataset where it has to.

    Args:
        max_episode_steps: steps after which the environment ends an episode; None: nobody knows.
    """
    config, dataset = spec.config, spec.dataset
    shards, found = max(1, config.replay.shards), []
    if dataset is not None and dataset.total_episodes < shards:
        found.append(
            f"replay.shards is {shards}, dataset {dataset.id} has {dataset.total_episodes} episodes, expected one for each shard at least: "
            "one would have nothing to draw; use fewer shards"
        )
    room = config.data.offline_capacity_rows // shards
    if dataset is not None and dataset.total_steps > room and (longest := dataset.summary().max_length) > room:
        found.append(
            f"data.offline_capacity_rows is {config.data.offline_capacity_rows} for {shards} shards, dataset {dataset.id} has an episode "
            f"of {longest} steps, expected room for it in each shard: it could never be learned from; raise it to at least "
            f"{longest * shards}"
        )
    writers = -(-workers_of(config) // shards)
    needed = writers * config.worker.envs_per_worker * (max_episode_steps or config.worker.chunk_steps)
    if writers and config.replay.capacity_rows // shards < needed:
        found.append(
            f"replay.capacity_rows is {config.replay.capacity_rows} for {shards} shards, expected at least {needed * shards}: "
            f"{writers} workers of {config.worker.envs_per_worker} environments write to a shard, and it could not hold the episodes "
            "that they are in the middle of; raise it, or use fewer environments"
        )
    return found


def episode_bytes(spec: RunSpec) -> int:
    """Upper bound in bytes of what the shards hold: no more of a dataset than it has, and nothing online without stages."""
    config = spec.config
    offline = 0 if spec.dataset is None else min(config.data.offline_capacity_rows, spec.dataset.total_steps)
    online = config.replay.capacity_rows if config.online.stages else 0
    replay: ReplayConfig = dataclasses.replace(config.replay, capacity_rows=online)
    data = dataclasses.replace(config.data, offline_capacity_rows=offline)
    return memory.episode_bytes(spec.layout, replay, data, config.agent.posterior_floats)


def _useless(config: RunConfig, why: str) -> list[str]:
    """Settings of stages in a run that makes none; ``base`` is of every run that goes on from another."""
    usual = OnlineConfig(base=config.online.base)
    set_ = [f.name for f in dataclasses.fields(usual) if getattr(config.online, f.name) != getattr(usual, f.name)]
    return [
        f"online.{name} is {getattr(config.online, name)} for {config.algorithm}, expected {getattr(usual, name)}: it {why}, so there "
        "are no stages and the setting would do nothing; leave it out"
        for name in set_
    ]
