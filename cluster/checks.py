"""What is proved before anything starts: every problem of a configuration is found, and all are listed at once."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import psutil

import algorithms
import cluster
import learners
import replay
import rollout_workers
from algorithms import ALGORITHMS, compiled
from cluster.config import RunConfig, make_preset
from cluster.connection import cluster_address
from cluster.data_kind import kind_of
from cluster.dataset_identity import identity_problems
from cluster.errors import UsageError
from cluster.graph import RunSpec
from cluster.last_words import ended_words, last_words
from cluster.learner_memory import learner_bytes
from cluster.metrics.loggers import missing_package
from cluster.run_dir import RunDirectory
from replay.option import range_problems, with_preset
from replay.task import ROOT
from rollout_workers.env import EnvError
from rollout_workers.env_ids import find_env, own_code

PROCESS_BYTES = 560 * 2**20  # of one Python process with torch; the largest seen, an inline run, had 520 MiB resident
LIGHT_BYTES = 280 * 2**20  # of one without torch; a driver had 230 MiB, a worker or a shard without its rows 160
RAY_BYTES = 600 * 2**20  # of a local cluster's own processes; 557 MiB seen


def make_spec(
    config: RunConfig, run: RunDirectory, start: int, found: list[str] | None = None, runs: int = 1
) -> RunSpec:
    """Checks the configuration against the environment and this machine.

    Args:
        found: problems of the command line, which are listed with those found here.
        runs: that many like it are to run side by side.

    Raises:
        UsageError: lists every problem; nothing has been started or written.
    """
    problems = [*(found or ()), *_problems(config), *device_problems(config), *endpoint_problems(config)]
    if runs > 1 and config.metrics.port > 0:
        problems.append(
            f"metrics.port is {config.metrics.port} for {runs} runs, expected 0: only one could listen there; leave it out"
        )
    spec = None
    with last_words(f"drawbridge: error: {ended_words(config.env)}; nothing was started"):
        try:
            spec = spec_of(config, run, start)
        except UsageError as error:
            problems.append(str(error))
        if spec is not None:
            problems += [*dataset_problems(spec), *identity_problems(spec)]
            if not problems:
                problems += _env_problems(config)
    if spec is not None and not problems:
        problems += memory_problems(spec, runs)
    if spec is None or problems:
        raise UsageError(
            "this configuration cannot run; nothing was started:\n" + "\n".join(f"  - {text}" for text in problems)
        )
    return spec


def spec_of(config: RunConfig, run: RunDirectory, start: int = 0) -> RunSpec:
    """The run's parts without proof that this machine can hold them; UsageError when the environment cannot be trained on.

    Paths among its settings are made absolute, because the environment may change the current directory.
    """
    config = _settled(config)
    try:
        find_env(config.env)  # before MuJoCo is imported: whoever misspelt an id need not wait for it
        from rollout_workers.envs import env_spec

        spec = env_spec(config.env)
    except EnvError as error:
        raise UsageError(str(error)) from error
    dims = {"obs_dim": spec.obs_dim, "action_dim": spec.action_dim}
    return RunSpec(config=config, **dims, run_dir=run.path, start=start, own_code=own_code())


def _settled(config: RunConfig) -> RunConfig:
    from replay.minari_files import settled

    metrics = config.metrics
    if metrics.targets_dir:
        metrics = dataclasses.replace(metrics, targets_dir=os.path.abspath(metrics.targets_dir))
    return dataclasses.replace(config, dataset=settled(config.dataset), metrics=metrics)


def read_dataset(spec: RunSpec) -> None:
    """One pass over a new run's dataset, which is kept for its learner: what cannot be learned from is found here."""
    from replay.dataset import DatasetError

    try:
        if spec.dataset is not None:
            spec.dataset.summary()
    except DatasetError as error:
        raise UsageError(f"{error}; nothing was started") from error


def memory_bytes(spec: RunSpec) -> dict[str, int]:
    """Bytes that the run may take on one machine, by part; computed, not measured."""
    config, replay_bytes = spec.config, kind_of(spec.config).replay_bytes(spec)
    if config.backend == "inline":
        return {"replay": replay_bytes, "updates": learner_bytes(spec), "processes": PROCESS_BYTES, "ray": 0}
    acting, rest = (
        kind_of(config).workers(config) + 1,
        2 + config.replay.shards,
    )  # the evaluator; driver and store of weights
    acting_bytes = LIGHT_BYTES if _acts_without_torch(config) else PROCESS_BYTES
    return {
        "replay": replay_bytes,
        "updates": learner_bytes(spec),
        "processes": config.learner.learners * PROCESS_BYTES + acting * acting_bytes + rest * LIGHT_BYTES,
        "ray": RAY_BYTES + config.ray.object_store_bytes,
    }


def _acts_without_torch(config: RunConfig) -> bool:
    return ALGORITHMS[config.algorithm].light and config.worker.backend == "auto" and not compiled.problem()


def check_tree() -> None:
    """The five packages must be this tree's: an older installed copy would win without a word."""
    for package in (algorithms, cluster, learners, replay, rollout_workers):
        found = Path(str(package.__file__)).resolve().parent.parent
        if found != ROOT:
            raise UsageError(
                f"package {package.__name__} comes from {found}, expected {ROOT}: two copies of drawbridge are mixed and nothing was "
                "started; uninstall the other one, or start with `python -m cluster` in the tree you mean"
            )


def _problems(config: RunConfig) -> list[str]:
    kind, preset = kind_of(config), make_preset(config.algorithm, config.preset, config.env)
    found = [*range_problems(config), *kind.problems(config)]
    if missing := missing_package(config.metrics.logger):
        found.append(missing)
    for name in ("agent", "worker", "learner", "evaluation", "data", "online", "metrics", "ray"):
        found += [f"{name}.{text}" for text in getattr(config, name).validate()]
    if config.evaluation.mode and not ALGORITHMS[config.algorithm].plans:
        found.append(
            f"evaluation.mode is {config.evaluation.mode} for {config.algorithm}, expected none: it makes no plans that could be inferred "
            "in that way; leave it out"
        )
    if 0 < kind.workers(config) < config.replay.shards:
        found.append(
            f"replay.shards is {config.replay.shards}, expected at most worker.workers {config.worker.workers}: a worker writes to one shard, so "
            "one would stay empty; start more workers or fewer shards"
        )
    return [with_preset(text, preset) for text in found]


def _env_problems(config: RunConfig) -> list[str]:
    """An environment that cannot be reset and stepped as workers do."""
    from rollout_workers.env_check import try_env

    try:
        try_env(config.env, config.worker.fast_envs, config.worker.step_timeout_s)
    except EnvError as error:
        return [str(error)]
    return []


def dataset_problems(spec: RunSpec, choose: str = "choose the dataset or --env") -> list[str]:
    """A dataset that cannot be read, or is not of this environment; settings that ask for one where it is of no use.

    Args:
        choose: what the command line lets a user choose, for the fix.
    """
    from replay.dataset import DatasetError, check_against
    from rollout_workers.envs import env_spec

    config = spec.config
    try:
        dataset = spec.dataset
        env = env_spec(config.env)
        if dataset is not None:
            check_against(dataset, config.env, env.obs_dim, env.low, env.high, choose)
        return kind_of(config).data_problems(spec, env.max_episode_steps)
    except (UsageError, DatasetError) as error:
        return [str(error)]
    return []


def memory_problems(spec: RunSpec, runs: int = 1) -> list[str]:
    """What this machine cannot hold. A running cluster has machines of its own, about which nothing is known here."""
    if not on_this_machine(spec.config):
        return []
    needed, machine = memory_bytes(spec), psutil.virtual_memory().total
    total = sum(needed.values()) * runs
    if total <= machine:
        return []
    several = f"{runs} runs side by side need" if runs > 1 else "the run needs"
    parts = ", ".join(f"{name} {bytes_ / 2**30:.1f}" for name, bytes_ in needed.items())
    largest = max(needed, key=lambda name: needed[name])
    lower = "learner.batch_size" if largest == "updates" else "replay.capacity_rows or worker.workers"
    return [
        f"{several} up to {total / 2**30:.1f} GiB of memory ({parts}), this machine has {machine / 2**30:.1f}: it would be killed on "
        f"the way; lower {lower}" + (", or give fewer --seeds" if runs > 1 else "")
    ]


def uneven_shards(workers: int, shards: int) -> str:
    """What it costs that some shards have a worker more than others; "" if none has."""
    least, more = divmod(workers, shards)
    if not (least and more):
        return ""
    return (
        f"WARNING: {workers} workers on {shards} shards: {least + 1} write to each of {more} of them and {least} to each of the others, expected "
        f"a multiple of {shards}: every shard takes an equal part of the run, so gathering it takes up to {workers / shards / least - 1:.0%} "
        f"longer than if all were busy to the end; use {least * shards} or {(least + 1) * shards} workers (`drawbridge scale`)"
    )


def on_this_machine(config: RunConfig) -> bool:
    """Whether every part of the run is on this machine: a running cluster has machines that are not known here."""
    return config.backend == "inline" or not cluster_address(config.ray.address)


def device_problems(config: RunConfig) -> list[str]:
    """Learners that have no device, share one that only one can use, or update in blocks that no CUDA graph holds."""
    learner = config.learner
    here, found = on_this_machine(config), []
    wanted = learner.gpus if config.backend == "ray" else 0.0
    every = max(1, getattr(config.agent, "actor_every", 1))
    broken = learner.updates_per_call % every
    matters = learner.device == "cuda" or wanted > 0 or (learner.device == "auto" and (learner.learners > 1 or broken))
    devices = cuda_devices() if here and matters else None  # looking imports torch
    if devices == 0 and learner.device == "cuda":
        found.append(
            "learner.device is cuda and this machine has no CUDA device that torch can use, expected cpu or auto: no learner could "
            "start; set learner.device=cpu, or start the run where there is a GPU"
        )
    if devices is not None and wanted * learner.learners > devices:
        found.append(
            f"learner.gpus is {wanted:g} for {learner.learners} learners and this machine has {devices} CUDA devices: Ray would never "
            f"place them; set learner.gpus={devices and devices / learner.learners:g}, or give the --address of a cluster with GPUs"
        )
    if wanted > 1 and wanted != int(wanted):
        found.append(
            f"learner.gpus is {wanted:g}, expected a whole number above 1: Ray divides no more than one GPU; round it"
        )
    may_be = devices if here else wanted or learner.learners == 1  # one learner uses a GPU of its node, reserved or not
    on_cuda = learner.device == "cuda" or (learner.device == "auto" and bool(may_be))
    if on_cuda and learner.learners > 1 and config.backend == "ray" and wanted < 1:
        found.append(
            f"learner.gpus is {wanted:g} for {learner.learners} learners on CUDA, expected at least 1: two of them would be given one GPU, "
            "where NCCL lets none meet another; set learner.gpus=1, learner.learners=1, or learner.device=cpu"
        )
    if on_cuda and learner.cuda_graph and broken:
        found.append(
            f"learner.updates_per_call is {learner.updates_per_call} with agent.actor_every {every}, expected a multiple: a CUDA graph makes "
            f"whole cycles of {every} updates alone; set learner.updates_per_call={-(-learner.updates_per_call // every) * every}, "
            "learner.cuda_graph=false or learner.device=cpu"
        )
    return found


def cuda_devices() -> int:
    """CUDA devices of this machine that torch can use."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def endpoint_problems(config: RunConfig) -> list[str]:
    """An address on which the metrics endpoint cannot listen."""
    if config.metrics.validate() or config.metrics.port < 0:
        return []
    from cluster.metrics.exporter import check_can_listen

    try:
        check_can_listen(config.metrics.host, config.metrics.port if on_this_machine(config) else 0)
    except UsageError as error:
        return [str(error)]
    return []
