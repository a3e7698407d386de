"""What differs between a run that learns from transitions and one that learns from whole episodes; nothing else asks which it is."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from algorithms import ALGORITHMS, online_names
from cluster.config import READ_ON_EPISODES, OnlineConfig, RunConfig
from cluster.errors import RunError
from replay import memory
from replay.option import range_problems

if TYPE_CHECKING:
    from algorithms.interface import EpisodeAgent
    from cluster.graph import RunSpec
    from replay.dataset_stream import OfflineRows
    from replay.limiter import Limiter, StagedLimiter
    from replay.store import Store


class DataKind(ABC):
    """The parts and rules of a run that depend on the items it learns from.

    Attributes:
        acts_on_versions: whether shards and workers must know each published policy: stages begin with one.
    """

    acts_on_versions: bool

    @abstractmethod
    def workers(self, config: RunConfig) -> int:
        """Rollout workers that the run starts with."""

    def evaluate_every(self, config: RunConfig) -> int:
        """The interval between evaluations of a run as long as ``config``, where nobody sets one."""
        return config.evaluation.every_steps

    @abstractmethod
    def row_quota(self, config: RunConfig) -> int | None:
        """Rows after which one shard takes no more; None: its limiter decides."""

    @abstractmethod
    def pretrain_updates(self, config: RunConfig) -> int:
        """Updates on the dataset alone before the first env step, which the replay ratio does not count."""

    @abstractmethod
    def offline_rows(self, spec: RunSpec) -> int:
        """Most transitions of the dataset that all shards hold, by what the dataset says of itself."""

    @abstractmethod
    def make_store(self, spec: RunSpec, index: int) -> Store:
        """The store of shard ``index``."""

    @abstractmethod
    def make_limiter(self, config: RunConfig) -> Limiter | StagedLimiter:
        """The limiter of one shard."""

    @abstractmethod
    def prepare(self, agent: Any, spec: RunSpec) -> None:
        """Gives a new run's agent what it needs before the first update; ``spec`` has a base run, a dataset, or neither."""

    @abstractmethod
    def to_read(self, spec: RunSpec) -> RunSpec:
        """``spec`` for shards that are read from their snapshots and not learned from."""

    @abstractmethod
    def replay_bytes(self, spec: RunSpec) -> int:
        """Upper bound in bytes of what the shards hold."""

    @abstractmethod
    def problems(self, config: RunConfig) -> list[str]:
        """What is wrong with the settings of replay and stages, one line each."""

    def untrained(self, config: RunConfig) -> str:
        """That the run is too short for an update, with the fix; "" where it is not."""
        return ""

    def phase(self, config: RunConfig, line: Mapping[str, Any]) -> str:
        """What the run is at, by its metrics record, if it does different things in turn; else ""."""
        return ""

    @abstractmethod
    def data_problems(self, spec: RunSpec, max_episode_steps: int | None) -> list[str]:
        """What is wrong with the dataset for this run, one line each.

        Args:
            max_episode_steps: steps after which the environment ends an episode; None: unknown.
        """


class TransitionKind(DataKind):
    """Actor-critics: gather and learn at the same time, at a replay ratio."""

    acts_on_versions = False

    def workers(self, config: RunConfig) -> int:
        return config.worker.workers

    def row_quota(self, config: RunConfig) -> int | None:
        return math.ceil(config.steps / config.replay.shards)

    def pretrain_updates(self, config: RunConfig) -> int:
        return config.data.pretrain_updates if config.dataset else 0

    def untrained(self, config: RunConfig) -> str:
        chunk, least = config.worker.envs_per_worker * config.worker.chunk_steps, config.replay.min_size_rows
        if -(-config.steps // chunk) * chunk >= least or self.pretrain_updates(config):
            return ""
        return (
            f"WARNING: the run makes {config.steps:,} env steps and its first update follows {least:,} (replay.min_size_rows), expected more "
            f"steps than that: it trains nothing; give --steps more than {least:,}, or lower replay.min_size_rows"
        )

    def offline_rows(self, spec: RunSpec) -> int:
        return 0 if spec.dataset is None else min(spec.config.data.offline_capacity_rows, spec.dataset.total_steps)

    def make_store(self, spec: RunSpec, index: int) -> Store:
        from replay.transition_store import TransitionStore

        config, offline = spec.config, _offline_rows(spec, index)
        return TransitionStore(spec.layout, config.replay, gamma=config.agent.gamma, data=config.data, offline=offline)

    def make_limiter(self, config: RunConfig) -> Limiter:
        """Rows in and rows out, at the replay ratio."""
        worker, learner = config.worker, config.learner
        return config.replay.limiter(
            batch_size=learner.batch_size,
            chunk_rows=worker.envs_per_worker * worker.chunk_steps,
            block_rows=learner.updates_per_call * learner.batch_size,
            pretrain_updates=self.pretrain_updates(config),
        )

    def prepare(self, agent: Any, spec: RunSpec) -> None:
        return None

    def to_read(self, spec: RunSpec) -> RunSpec:
        """Without the dataset that was mixed in: it may be gone."""
        return dataclasses.replace(spec, config=dataclasses.replace(spec.config, dataset=""))

    def replay_bytes(self, spec: RunSpec) -> int:
        return memory.transition_bytes(spec.layout, spec.config.replay, self.offline_rows(spec))

    def problems(self, config: RunConfig) -> list[str]:
        worker, learner = config.worker, config.learner
        return config.replay.validate(
            batch_size=learner.batch_size,
            updates_per_call=learner.updates_per_call,
            envs_per_worker=worker.envs_per_worker,
            chunk_steps=worker.chunk_steps,
        ) + _useless(config, "gathers and learns at the same time")

    def data_problems(self, spec: RunSpec, max_episode_steps: int | None) -> list[str]:
        config = spec.config
        return [] if config.dataset else _pretrain_problems(config, "a run without a dataset")


class EpisodeKind(DataKind):
    """gac and the algorithms that imitate: learn from a dataset, or gather and learn in turn."""

    acts_on_versions = True

    def workers(self, config: RunConfig) -> int:
        return config.worker.workers if config.online.stages else 0

    def evaluate_every(self, config: RunConfig) -> int:
        """Ten times a run, however long: its updates take seconds or hours."""
        return max(1, config.steps // 10)

    def row_quota(self, config: RunConfig) -> int | None:
        return None

    def pretrain_updates(self, config: RunConfig) -> int:
        return 0

    def offline_rows(self, spec: RunSpec) -> int:
        return 0

    def make_store(self, spec: RunSpec, index: int) -> Store:
        from replay.episode_store import EpisodeStore

        config, dataset, shards = spec.config, spec.dataset, spec.config.replay.shards
        return EpisodeStore(
            spec.layout,
            config.replay,
            config.data,
            gathers=config.online.stages > 0,
            posterior_floats=config.agent.posterior_floats,
            offline=None if dataset is None else lambda: dataset.episodes(range(index, dataset.total_episodes, shards)),
        )

    def make_limiter(self, config: RunConfig) -> StagedLimiter:
        """Gather, learn, gather, in turn; without stages, learning alone."""
        from replay.limiter import StagedLimiter

        shards, online, learner = config.replay.shards, config.online, config.learner
        before = config.steps - online.stages * online.updates_per_stage
        return StagedLimiter(
            items_before=math.ceil(before * learner.batch_size / shards),
            stages=online.stages,
            episodes_per_stage=math.ceil(online.episodes_per_stage / shards),
            items_per_stage=math.ceil(online.updates_per_stage * learner.batch_size / shards),
        )

    def prepare(self, agent: Any, spec: RunSpec) -> None:
        if spec.config.online.base:
            if spec.config.online.stages:
                cast("EpisodeAgent", agent).start_finetuning()
        elif spec.dataset is not None:
            cast("EpisodeAgent", agent).fit(spec.dataset.summary())

    def to_read(self, spec: RunSpec) -> RunSpec:
        return spec

    def replay_bytes(self, spec: RunSpec) -> int:
        """No more of a dataset than it has, and nothing online without stages."""
        config = spec.config
        offline = 0 if spec.dataset is None else min(config.data.offline_capacity_rows, spec.dataset.total_steps)
        online = config.replay.capacity_rows if config.online.stages else 0
        replay = dataclasses.replace(config.replay, capacity_rows=online)
        data = dataclasses.replace(config.data, offline_capacity_rows=offline)
        return memory.episode_bytes(spec.layout, replay, data, config.agent.posterior_floats)

    def phase(self, config: RunConfig, line: Mapping[str, Any]) -> str:
        """Such as "stage 2 of 3, gathering 120 of 500 episodes"."""
        online, shards = config.online, config.replay.shards
        if not online.stages:
            return ""
        stage, updates = int(line.get("stage", 0)), int(line.get("updates", 0))
        before = config.steps - online.stages * online.updates_per_stage
        if not stage:
            return f"before stage 1 of {online.stages}, update {updates:,} of {before:,} on the dataset"
        each = shards * math.ceil(online.episodes_per_stage / shards)
        gathered = int(line.get("online_episodes", 0)) - (stage - 1) * each
        where = f"stage {stage} of {online.stages}"
        if gathered < each:
            return f"{where}, gathering {max(0, gathered):,} of {each:,} episodes"
        learned = updates - before - (stage - 1) * online.updates_per_stage
        return f"{where}, update {min(max(0, learned), online.updates_per_stage):,} of {online.updates_per_stage:,}"

    def problems(self, config: RunConfig) -> list[str]:
        found = [f"replay.{text}" for text in range_problems(config.replay, READ_ON_EPISODES)]
        if ALGORITHMS[config.algorithm].online != "stages":
            return found + _useless(config, "imitates its dataset and has no plan to explore by")
        return found + _stage_problems(config)

    def data_problems(self, spec: RunSpec, max_episode_steps: int | None) -> list[str]:
        """Episodes for which a shard has no room, or too few for every shard to have one. Reads the dataset where it has to."""
        config, dataset = spec.config, spec.dataset
        if config.data.pretrain_updates > 0:
            learner = (
                f"{config.algorithm}, which learns from its dataset anyway,"
                if config.dataset
                else "a run without a dataset"
            )
            return _pretrain_problems(config, learner)
        shards, found = max(1, config.replay.shards), []
        if dataset is not None and dataset.goals_vary():
            found.append(
                f"dataset {dataset.id} has goals that change (desired_goal in its observations), expected one goal for all: a return would "
                "say how near each goal happened to be, not how good its episode is; of a PointMaze, relabel it for one goal with "
                f"`drawbridge dataset relabel {dataset.id}`, else take a dataset of one goal"
            )
        if dataset is not None and dataset.total_episodes < shards:
            found.append(
                f"replay.shards is {shards}, dataset {dataset.id} has {dataset.total_episodes} episodes, expected one for each shard at "
                "least: one would have nothing to draw; use fewer shards"
            )
        room = config.data.offline_capacity_rows // shards
        if dataset is not None and dataset.total_steps > room and (longest := dataset.summary().max_length) > room:
            found.append(
                f"data.offline_capacity_rows is {config.data.offline_capacity_rows} for {shards} shards, dataset {dataset.id} has an "
                f"episode of {longest} steps, expected room for it in each shard: it could never be learned from; raise it to at least "
                f"{longest * shards}"
            )
        writers = -(-self.workers(config) // shards)
        needed = writers * config.worker.envs_per_worker * (max_episode_steps or config.worker.chunk_steps)
        if writers and config.replay.capacity_rows // shards < needed:
            found.append(
                f"replay.capacity_rows is {config.replay.capacity_rows} for {shards} shards, expected at least {needed * shards}: "
                f"{writers} workers of {config.worker.envs_per_worker} environments write to a shard, and it could not hold their "
                "partial episodes; raise it, or use fewer environments"
            )
        return found


_KINDS: dict[str, DataKind] = {"transitions": TransitionKind(), "episodes": EpisodeKind()}


def kind_of(config: RunConfig) -> DataKind:
    """The kind of data that the run's algorithm learns from."""
    return _KINDS[ALGORITHMS[config.algorithm].items]


def evaluated_often(config: RunConfig, settings: Mapping[str, str]) -> RunConfig:
    """``config`` with an interval between evaluations that fits its length, unless ``settings`` has one."""
    if "evaluation.every_steps" in settings:
        return config
    every = kind_of(config).evaluate_every(config)
    return dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, every_steps=every))


def _offline_rows(spec: RunSpec, index: int) -> OfflineRows | None:
    """The transitions of episodes i, i + S, ... for shard i of S; RunError when there are none."""
    from replay.dataset_stream import OfflineRows
    from replay.stored_episode import DatasetError

    config, dataset, shards = spec.config, spec.dataset, spec.config.replay.shards
    if dataset is None:
        return None
    try:
        return OfflineRows(
            spec.layout,
            dataset.episodes(range(index, dataset.total_episodes, shards)),
            max(1, min(config.data.offline_capacity_rows // shards, dataset.total_steps)),
            n_step=config.replay.n_step,
            gamma=config.agent.gamma,
            seed=config.seed,
            shard=index,
        )
    except DatasetError as error:
        raise RunError(f"{dataset.id}: {error}") from error


def _pretrain_problems(config: RunConfig, without: str) -> list[str]:
    """Updates before the first env step where there is nothing for them to learn from."""
    if config.data.pretrain_updates < 1:
        return []
    return [
        f"data.pretrain_updates is {config.data.pretrain_updates} for {without} expected 0: updates before the first env step "
        f"are those of {online_names()} on a dataset; set it to 0, or give --dataset to one of these"
    ]


def _stage_problems(config: RunConfig) -> list[str]:
    """Stages that could not be gathered or learned from."""
    online, found = config.online, []
    if online.stages < 1:
        return []
    if config.worker.random_steps:
        found.append(
            f"worker.random_steps is {config.worker.random_steps} for {config.algorithm}, expected 0: random warm-up steps cannot be "
            "combined with a policy that plans per episode; set it to 0"
        )
    if online.plan != "explore" and not ALGORITHMS[config.algorithm].plans:
        found.append(
            f"online.plan is {online.plan} for {config.algorithm}, expected explore: it makes no plans and could gather nothing in that way; "
            "set it to explore"
        )
    if 1 <= online.episodes_per_stage < config.replay.shards:
        found.append(
            f"online.episodes_per_stage is {online.episodes_per_stage}, expected at least replay.shards {config.replay.shards}: every shard "
            "gathers its own part of a stage, and learning would wait for more than was asked for; raise it, or use fewer shards"
        )
    least = online.stages * online.updates_per_stage
    if config.steps < least:
        found.append(
            f"steps is {config.steps}, expected at least {least} (online.stages {online.stages} x online.updates_per_stage "
            f"{online.updates_per_stage}): the run would be over before its stages; raise steps or lower one of the two"
        )
    if config.steps > least and not config.dataset:
        found.append(
            f"steps is {config.steps} without a dataset, expected {least}, the updates of the stages alone: there would be nothing to "
            "learn from before the first one; give --dataset, or set steps"
        )
    return found


def _useless(config: RunConfig, why: str) -> list[str]:
    """Settings of stages in a run that makes none; ``base`` is of every run that continues another."""
    usual = OnlineConfig(base=config.online.base)
    changed = [f.name for f in dataclasses.fields(usual) if getattr(config.online, f.name) != getattr(usual, f.name)]
    return [
        f"online.{name} is {getattr(config.online, name)} for {config.algorithm}, expected {getattr(usual, name)}: it {why}, so there "
        "are no stages and the setting would do nothing; leave it out"
        for name in changed
    ]
