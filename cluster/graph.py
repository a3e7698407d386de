"""The graph: which parts a run has, and who talks to whom.

    RolloutWorker x W  --append(chunk)-->  ReplayShard x S  --sample(U x B)-->  Learner x L
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
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.errors import RunError
from replay.limiter import Limiter
from replay.rows import RowLayout
from replay.shard import ReplayShard

if TYPE_CHECKING:
    from algorithms.interface import Collective, Policy
    from algorithms.weights import Weights
    from cluster.config import RunConfig
    from learners.checkpoint import Checkpoint
    from learners.learner import Learner
    from rollout_workers.evaluator import Evaluator
    from rollout_workers.worker import RolloutWorker

EPOCHS_A_START = 1_000  # learner restarts that one start of the run may count without meeting the next start's epochs
INCARNATIONS_A_START = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What every part of a run is built from.

    Attributes:
        config: the resolved configuration.
        obs_dim, action_dim: of the environment, flattened.
        run_dir: the run's directory; every process of the run must see it.
        start: how often this run has been started, from 0: a resumed run's incarnations and epochs begin above the earlier ones'.
    """

    config: RunConfig
    obs_dim: int
    action_dim: int
    run_dir: Path
    start: int = 0

    @property
    def layout(self) -> RowLayout:
        return RowLayout(obs_dim=self.obs_dim, action_dim=self.action_dim)

    @property
    def rank_batch(self) -> int:
        """Rows of one batch that each learner takes."""
        return self.config.learner.batch_size // self.config.learner.learners

    def shard_dir(self, index: int) -> Path:
        return self.run_dir / "replay" / f"shard-{index}"

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with to be loaded."""
        config = self.config
        return {
            "algorithm": config.algorithm,
            "env": config.env,
            "obs_dim": self.obs_dim,
            "action_dim": self.action_dim,
            "agent": dataclasses.asdict(config.agent),
        }


def make_limiter(config: RunConfig) -> Limiter:
    """The limiter of one shard: rows in and rows out, at the replay ratio."""
    worker, learner = config.worker, config.learner
    return Limiter.for_shard(
        config.replay,
        batch_size=learner.batch_size,
        chunk_rows=worker.envs_per_worker * worker.chunk_steps,
        block_rows=learner.updates_per_call * learner.batch_size,
    )


def make_shard(plan: Plan, index: int) -> ReplayShard:
    config = plan.config
    return ReplayShard(
        plan.layout,
        config.replay,
        shard=index,
        shards=config.replay.shards,
        seed=config.seed,
        batch_size=plan.rank_batch,
        limiter=make_limiter(config),
        gamma=config.agent.gamma,
    )


def make_policy(plan: Plan) -> Policy:
    """The acting side of the run's algorithm."""
    from algorithms import ALGORITHMS

    return ALGORITHMS[plan.config.algorithm].make_policy(plan.config.agent, plan.obs_dim, plan.action_dim)


def make_worker(plan: Plan, index: int, incarnation: int, random_steps: int) -> RolloutWorker:
    from rollout_workers.worker import RolloutWorker

    config = plan.config
    return RolloutWorker(
        config=config.worker,
        env_id=config.env,
        policy=make_policy(plan),
        worker=index,
        incarnation=incarnation,
        seed=config.seed,
        random_steps=random_steps,
    )


def make_learner(
    plan: Plan, epoch: int, publish: Callable[[Weights], None], collective: Collective | None = None
) -> Learner:
    """A learner with the newest valid checkpoint of the run, if it has one."""
    from algorithms import ALGORITHMS
    from algorithms.interface import Solo
    from learners.learner import Learner

    config, collective = plan.config, collective or Solo()
    agent = ALGORITHMS[config.algorithm].make_agent(
        config.agent,
        plan.obs_dim,
        plan.action_dim,
        device=learner_device(config),
        seed=config.seed,
        collective=collective,
    )
    return Learner(
        agent,
        config.learner,
        directory=plan.run_dir / "dumps",
        publish=publish,
        newest=lambda: newest_checkpoint(plan),
        collective=collective,
        epoch=epoch,
    )


def newest_checkpoint(plan: Plan) -> Checkpoint | None:
    """The newest valid checkpoint of the run, None before the first; RunError when there are some and none can be used."""
    from learners import checkpoint

    try:
        return checkpoint.load_newest(plan.run_dir / "checkpoints", plan.identity())
    except checkpoint.CheckpointError as error:
        raise RunError(str(error)) from error


def save_checkpoint(plan: Plan, learner: Learner, env_steps: int, others: dict[str, Any] | None = None) -> None:
    """Writes a checkpoint of the run: the learner's part, and ``others``, which have their own prefixes."""
    from learners import checkpoint
    from learners.learner import PART

    parts = checkpoint.prefixed(PART, learner.state()) | (others or {})
    made = {"env_steps": env_steps, "updates": learner.updates, "backend": plan.config.backend}
    keep = plan.config.learner.checkpoints_kept
    checkpoint.save(plan.run_dir / "checkpoints", parts, {**plan.identity(), **made}, keep=keep)


def make_evaluator(plan: Plan) -> Evaluator:
    from rollout_workers.evaluator import Evaluator

    config = plan.config
    return Evaluator(
        config.env,
        make_policy(plan),
        episodes=config.evaluation.episodes,
        seed=config.evaluation.seed,
        timeout_s=config.evaluation.timeout_s,
        backend=config.worker.backend,
        fast=config.worker.fast_envs,
    )


def learner_device(config: RunConfig) -> str:
    """Where learners compute: what was asked for, or CUDA where there is one."""
    import torch

    if config.learner.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return config.learner.device


def random_steps_left(config: RunConfig, env_steps: int) -> int:
    """Env steps with random actions that one worker still owes when the run has made ``env_steps``."""
    return max(0, math.ceil((config.worker.random_steps - env_steps) / config.worker.workers))


def set_threads(config: RunConfig) -> None:
    """One torch thread a process unless told otherwise: two spinning pools on two cores cost a factor of 30."""
    import torch

    torch.set_num_threads(config.learner.threads)
