"""The graph: which parts a run has, and who talks to whom.

    RolloutWorker x W  --append(chunk)--> Shard x S  --sample(U x B)-->  Learner x L
          ^                                     | ack carries the newest policy's version   | publish(version)
          +------------- fetch(version) ------- Store <-------------------------------------+
    driver: Session (starts, watches, scales, restarts), Evaluator, metrics

    edge                 blocks when                      unblocked by  deadline                bound
    worker -> shard      inserts are ahead of samples     a sample      of one answer (1)       worker.max_unacked chunks
    shard -> learner     samples are ahead of inserts     an append     of a block (2)          learner.prefetch_blocks
    learner -> store     never                            -             -                       one set of weights
    store -> worker      never                            -             ray.call_timeout_s      one set of weights
    driver -> evaluator  never: evaluations queue up      -             evaluation.timeout_s    4 sets of weights

(1) ray.call_timeout_s. A shard answers "wait" after a second and is asked again for as long as the learner is behind.
(2) worker.step_timeout_s + ray.start_timeout_s, beginning when the warm-up is over and nobody holds the run.

The parts are plain classes that do not know where they run. ``inline.InlineFleet`` calls them in one process in a fixed
order; ``fleet.RayFleet`` runs the same parts as actors. Both are built from the functions here and nothing else.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.data_kind import kind_of
from cluster.errors import RunError, UsageError
from cluster.made_with import settings_to_keep
from learners import checkpoint
from replay.schema import RowLayout
from replay.shard import Shard
from replay.task import id_of

if TYPE_CHECKING:
    import numpy as np

    from algorithms.interface import Collective, EpisodePolicy, Policy
    from algorithms.weights import Weights
    from cluster.config import RunConfig
    from learners.checkpoint import Checkpoint
    from learners.learner import Learner
    from replay.dataset import Dataset
    from replay.messages import EpisodeBlock
    from rollout_workers.env_ids import OwnCode
    from rollout_workers.evaluator import Evaluator
    from rollout_workers.worker import RolloutWorker

Watched = Callable[[Callable[..., Any]], Callable[..., Any]]
GENERATIONS_A_START = 1_000  # learner restarts within one start of the run; the next start's generations begin above
INCARNATIONS_A_START = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSpec:
    """What every part of a run is built from.

    Attributes:
        config: the resolved configuration.
        obs_dim, action_dim: of the environment, flattened.
        run_dir: the run's directory; every process of the run must see it.
        start: how often this run has been started, from 0: a resumed run's incarnations and generations begin above the earlier ones'.
        own_code: what the user's environment needs in every process that makes it.
    """

    config: RunConfig
    obs_dim: int
    action_dim: int
    run_dir: Path
    start: int = 0
    own_code: OwnCode | None = None

    @property
    def layout(self) -> RowLayout:
        return RowLayout(obs_dim=self.obs_dim, action_dim=self.action_dim)

    @property
    def rank_batch(self) -> int:
        """Rows of one batch that each learner takes."""
        return self.config.learner.batch_size // self.config.learner.learners

    @functools.cached_property
    def dataset(self) -> Dataset | None:
        """The dataset that the run learns from, opened once a process; UsageError when it cannot be."""
        from algorithms import ALGORITHMS
        from replay.dataset import DatasetError, open_dataset

        if not self.config.dataset:
            return None
        try:
            return open_dataset(self.config.dataset, ALGORITHMS[self.config.algorithm].shortest)
        except DatasetError as error:
            raise UsageError(str(error)) from error

    def shard_dir(self, index: int) -> Path:
        return self.run_dir / "replay" / f"shard-{index}"

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with to be loaded: fields with the names that they had first, without those that have their
        former value."""
        config = self.config
        agent = (
            (field.metadata, field.name, getattr(config.agent, field.name))
            for field in dataclasses.fields(config.agent)
        )
        return {
            "algorithm": config.algorithm,
            "env": config.env,
            "obs_dim": self.obs_dim,
            "action_dim": self.action_dim,
            "agent": {
                facts.get("was") or name: facts.get("choices_were", {}).get(value, value)
                for facts, name, value in agent
                if value is None or value != facts.get("former")
            },
        }


def make_shard(spec: RunSpec, index: int) -> Shard:
    """Shard ``index`` with the store and the limiter of what the algorithm learns from."""
    config, kind = spec.config, kind_of(spec.config)
    return Shard(
        kind.make_store(spec, index),
        kind.make_limiter(config),
        shard=index,
        seed=config.seed,
        batch_size=spec.rank_batch,
    )


def make_policy(spec: RunSpec) -> Policy | EpisodePolicy:
    """The acting side of the run's algorithm."""
    from algorithms import ALGORITHMS

    policy = ALGORITHMS[spec.config.algorithm].make_policy(spec.config.agent, spec.obs_dim, spec.action_dim)
    if "torch" in sys.modules:  # a policy that acts without it needs none of its threads
        _set_threads(spec.config)
    return policy


def make_worker(
    spec: RunSpec, index: int, incarnation: int, random_steps: int, watched: Watched = lambda make: make
) -> RolloutWorker:
    """``watched`` is given what makes the worker's environments, and returns it with whatever it adds."""
    from algorithms.interface import PlanRequest
    from rollout_workers.envs import make_batch_env
    from rollout_workers.worker import RolloutWorker

    config = spec.config
    return RolloutWorker(
        config=config.worker,
        env_id=config.env,
        policy=make_policy(spec),
        worker=index,
        incarnation=incarnation,
        seed=config.seed,
        random_steps=random_steps,
        aim=PlanRequest(mode=config.online.plan) if config.online.stages else None,
        make_env=watched(make_batch_env),
    )


def make_learner(
    spec: RunSpec,
    generation: int,
    publish: Callable[[Weights], None],
    collective: Collective | None = None,
    write_back: Callable[[EpisodeBlock, list[np.ndarray]], None] = lambda block, values: None,
) -> Learner:
    """A learner as a new run begins with it; whoever resumes loads a checkpoint into it."""
    from algorithms import ALGORITHMS
    from algorithms.interface import AgentSpec, Solo
    from learners.learner import Learner

    config, collective = spec.config, collective or Solo()
    _set_threads(config)
    agent = ALGORITHMS[config.algorithm].make_agent(
        config.agent,
        AgentSpec(
            obs_dim=spec.obs_dim,
            action_dim=spec.action_dim,
            device=learner_device(config),
            seed=config.seed,
            collective=collective,
        ),
    )
    if not checkpoint_exists(spec):
        _prepare(spec, agent)
    return Learner(
        agent,
        config.learner,
        directory=spec.run_dir / "dumps",
        publish=publish,
        newest=lambda: newest_checkpoint(spec),
        write_back=write_back,
        collective=collective,
        shards=config.replay.shards,
        generation=generation,
    )


def _prepare(spec: RunSpec, agent: Any) -> None:
    """Gives a new run's agent what it has before the first update: its base run's state, or its dataset's statistics."""
    config = spec.config
    if config.online.base:
        agent.load_state(base_state(Path(config.online.base), spec))
    kind_of(config).prepare(agent, spec)


def base_state(base: Path, spec: RunSpec) -> dict[str, Any]:
    """The agent's state in the newest checkpoint of run ``base``; RunError unless it has one that fits ``spec``."""
    from cluster.own_code import to_come_words
    from cluster.run_dir import RunDirectory
    from learners.learner import AGENT, PART

    theirs = RunDirectory.open(base).config()  # settings that change nothing in the weights may differ
    env = theirs.env if id_of(theirs.env) == id_of(spec.config.env) else spec.config.env  # so may its arguments
    config = dataclasses.replace(spec.config, agent=theirs.agent, env=env)
    expected = dataclasses.replace(spec, config=config).identity()
    try:
        found = checkpoint.load_newest(base / "checkpoints", expected)
    except checkpoint.CheckpointError as error:
        raise RunError(f"{base} cannot be gone on from: {error}") from error
    if found is None:
        then = to_come_words(RunDirectory(base), theirs, "let that run learn first")
        raise RunError(f"{base} has no checkpoint, so there is nothing to go on from and nothing was started; {then}")
    part = found.part(PART)
    return {name.removeprefix(AGENT): tensor for name, tensor in part.items() if name.startswith(AGENT)}


def checkpoint_exists(spec: RunSpec) -> bool:
    """Whether the run has a checkpoint that its learner is going to load."""
    return checkpoint.exists(spec.run_dir / "checkpoints")


def newest_checkpoint(spec: RunSpec) -> Checkpoint | None:
    """The newest valid checkpoint of the run, None before the first; RunError when there are some and none can be used."""
    try:
        return checkpoint.load_newest(spec.run_dir / "checkpoints", spec.identity())
    except checkpoint.CheckpointError as error:
        raise RunError(str(error)) from error


def checkpoint_writer(
    spec: RunSpec, learner: Learner, env_steps: int, others: dict[str, Any] | None = None
) -> Callable[[], int]:
    """Writes, when it is called, a checkpoint of the run as it is now, and gives its bytes on disk.

    It holds the learner's part, and ``others``, which have their own prefixes and must not change until then.
    """
    from learners.learner import PART

    parts = checkpoint.prefixed(PART, learner.state()) | (others or {})
    made = {"env_steps": env_steps, "updates": learner.updates, "backend": spec.config.backend}
    made["settings"] = settings_to_keep(spec.config)
    keep = spec.config.learner.checkpoints_kept

    def write() -> int:
        path = checkpoint.save(spec.run_dir / "checkpoints", parts, {**spec.identity(), **made}, keep=keep)
        return sum(file.stat().st_size for file in path.iterdir())

    return write


def make_evaluator(spec: RunSpec, watched: Watched = lambda make: make) -> Evaluator:
    from algorithms.interface import PlanRequest
    from rollout_workers.envs import make_seeded_env
    from rollout_workers.evaluator import Evaluator

    config = spec.config
    policy: Any = make_policy(spec)
    if config.evaluation.mode:
        policy.aim = PlanRequest(mode=config.evaluation.mode)
    return Evaluator(
        config.env,
        policy,
        episodes=config.evaluation.episodes,
        seed=config.evaluation.seed,
        timeout_s=config.evaluation.timeout_s,
        max_episode_steps=config.evaluation.max_episode_steps,
        backend=config.worker.backend,
        fast=config.worker.fast_envs,
        make_env=watched(make_seeded_env),
    )


def learner_device(config: RunConfig) -> str:
    """Where learners compute: what was asked for, or CUDA where there is one that no two of them would share."""
    import torch

    learner = config.learner
    if learner.device != "auto":
        return learner.device
    shared = config.backend == "ray" and learner.learners > 1 and learner.gpus < 1
    return "cuda" if torch.cuda.is_available() and not shared else "cpu"


def random_steps_left(config: RunConfig, env_steps: int) -> int:
    """Env steps with random actions that one worker still owes when the run has made ``env_steps``."""
    return max(0, math.ceil((config.worker.random_steps - env_steps) / config.worker.workers))


def _set_threads(config: RunConfig) -> None:
    """One torch thread a process by default: two spinning pools on two cores cost a factor of 30."""
    import torch

    torch.set_num_threads(config.learner.threads)
