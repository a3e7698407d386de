"""Deterministic episodes from fixed start states.

Letters: E environments (one an episode), O observation dim, A action dim.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.random import SeedSequence

from algorithms.interface import EpisodePolicy, PlanRequest, Policy
from algorithms.weights import Weights
from replay.trajectories import EpisodeMetadata
from rollout_workers.acting import Actor
from rollout_workers.env import BatchEnv
from rollout_workers.envs import make_batch_env
from rollout_workers.episode_group import EpisodeGroup, asked, joined
from rollout_workers.evaluation import BrokenEpisodes, Evaluation, EvaluationTimeout
from rollout_workers.maze import Maze, MazePaths, maze_of
from rollout_workers.planning import PlanActor, plans

__all__ = ["BrokenEpisodes", "Evaluation", "EvaluationTimeout", "Evaluator"]

MAX_ENVS, MAX_PLANNED = 32, 128  # episodes side by side; planning costs nearly the same for one as for many
_PLANS = 2  # spawn key of an episode's plan: its environment draws from the seed itself


class Evaluator:
    """Runs episodes side by side, one an environment, with the noise-free policy.

    An episode depends on its seed and the weights alone, not on how many run beside it. What an EpisodePolicy draws for
    its plan comes from a stream of the episode's own seed; it must see to it itself that its rounding does not depend on
    the height of a batch.

    Args:
        env_id: Gymnasium id.
        policy: the acting side of the algorithm.
        episodes: default number of episodes.
        seed: default seed: episode i is reset with seed + i.
        timeout_s: how long one evaluation may take.
        backend, fast: as in WorkerConfig.
        max_envs: episodes that run side by side; more run one group after the other. None: 32, or 128 with an
            EpisodePolicy.
        make_env: (env_id, num_envs, seed, fast) -> BatchEnv.
    """

    def __init__(
        self,
        env_id: str,
        policy: Policy | EpisodePolicy,
        *,
        episodes: int = 5,
        seed: int = 10_000,
        timeout_s: float = 600.0,
        backend: str = "auto",
        fast: bool = True,
        max_envs: int | None = None,
        make_env: Callable[[str, int, int, bool], BatchEnv] = make_batch_env,
    ) -> None:
        self._env_id, self._fast, self._make_env = env_id, fast, make_env
        self._episodes, self._seed, self._timeout_s = episodes, seed, timeout_s
        self._pilot = _pilot(policy, backend)
        self._max_envs = self._pilot.max_envs if max_envs is None else max_envs
        self._maze = _maze(env_id)

    def evaluate(
        self,
        weights: Weights,
        episodes: int | None = None,
        seed: int | None = None,
        aim: PlanRequest | None = None,
        record_paths: bool = False,
    ) -> Evaluation:
        """Runs ``episodes`` episodes with ``weights``, whatever weights were used before.

        ``aim``: what an EpisodePolicy is asked for; None: what it was set to when the evaluator was made.
        ``record_paths``: the positions of every episode in a maze are given too.
        Raises CorruptWeights, EvaluationTimeout, NonFiniteAction, BrokenEpisodes when not one episode ended, and
        ValueError for what cannot be asked of this policy or environment.
        """
        count = self._episodes if episodes is None else episodes
        first = self._seed if seed is None else seed
        if count < 1:
            raise ValueError(f"{count} episodes asked for, expected at least 1: there would be no return; ask for more")
        if record_paths and self._maze is None:
            raise ValueError(
                f"paths of {self._env_id} asked for, expected a maze with one goal: its observations hold no positions "
                "that are known; leave record_paths out"
            )
        started = time.monotonic()
        self._pilot.take(weights, aim)
        groups: list[EpisodeGroup] = []
        for done in range(0, count, self._max_envs):
            seeds = [first + i for i in range(done, min(done + self._max_envs, count))]
            before = f"{done} of {count} episodes were finished before"
            groups.append(self._run(seeds, started + self._timeout_s, before, record_paths))
        if all(group.broken_E.all() for group in groups):
            raise BrokenEpisodes(
                f"none of {count} episodes of {self._env_id} with policy {weights.order} could be finished, so there "
                f"is no return; the first: {groups[0].errors[0]}"
            )
        return Evaluation(
            env_steps=weights.env_steps,
            updates=weights.updates,
            epoch=weights.epoch,
            version=weights.version,
            seed=first,
            errors=[error for group in groups for error in group.errors],
            wall_s=time.monotonic() - started,
            **asked([stamp for group in groups for stamp in group.stamps]),
            **joined([group.finished() for group in groups]),
        )

    def _run(self, seeds: list[int], deadline: float, before: str, record_paths: bool) -> EpisodeGroup:
        """One group of episodes to their ends."""
        env = self._make_env(self._env_id, len(seeds), seeds[0], self._fast)
        try:
            obs_EO = env.reset(seeds)
            group = EpisodeGroup(seeds)
            obs_EO = _without(env, obs_EO, group.refuse_observations(obs_EO))
            group.begin(self._pilot.begin(seeds, obs_EO), self._paths(obs_EO, record_paths))
            reward_E = np.zeros(len(seeds), np.float32)
            while group.running_E.any():
                if time.monotonic() > deadline:
                    raise EvaluationTimeout(self._late(group, before))
                step = env.step(self._pilot.act(obs_EO, reward_E))
                obs_EO = _without(env, step.obs_EO, group.add(step))
                reward_E = _finite(step.reward_E.astype(np.float32))
            return group
        finally:
            env.close()

    def _paths(self, obs_EO: np.ndarray, record: bool) -> MazePaths | None:
        return None if self._maze is None else MazePaths(self._maze, obs_EO, record)

    def _late(self, group: EpisodeGroup, before: str) -> str:
        slow = [group.seeds[e] for e in np.flatnonzero(group.running_E)]
        return (
            f"the evaluation of {self._env_id} with policy {self._pilot.order} took longer than {self._timeout_s:g} s: "
            f"{before}, the episodes with seeds {slow} were at step {int(group.length_E.max())}; it is given up and "
            "has no result; raise evaluation.timeout_s or ask for fewer episodes"
        )


def plan_streams(seeds: list[int]) -> list[SeedSequence]:
    """What the plan of the evaluation episode of each seed is drawn from."""
    return [SeedSequence(seed, spawn_key=(_PLANS,)) for seed in seeds]


def _pilot(policy: Any, backend: str) -> _Noiseless | _Planning:
    return _Planning(policy) if plans(policy) else _Noiseless(policy, backend)


class _Noiseless:
    """Drives episodes with the noise-free actions of a Policy."""

    max_envs = MAX_ENVS

    def __init__(self, policy: Policy, backend: str) -> None:
        self._actor = Actor(policy, backend=backend)

    @property
    def order(self) -> tuple[int, int]:
        return self._actor.order

    def take(self, weights: Weights, aim: PlanRequest | None) -> None:
        if aim is not None:
            raise ValueError(
                f"{aim} asked for, expected none with a policy that makes no plans: it acts in one way only; leave "
                "mode and target return out"
            )
        self._actor.replace(weights)

    def begin(self, seeds: list[int], obs_EO: np.ndarray) -> list[EpisodeMetadata]:
        self._noise = self._actor.no_noise(max(2, len(seeds)))
        return []

    def act(self, obs_EO: np.ndarray, reward_E: np.ndarray) -> np.ndarray:
        """Actions whose rounding does not depend on how many rows there are, or one episode would differ in the end.

        torch's does at any number, so it gets them one by one; onnxruntime's only for one row, which it gets twice.
        """
        if self._actor.backend == "torch":
            return np.concatenate([self._actor.act(obs_EO[e : e + 1], self._noise[:1]) for e in range(len(obs_EO))])
        if len(obs_EO) == 1:
            return self._actor.act(np.repeat(obs_EO, 2, axis=0), self._noise)[:1]
        return self._actor.act(obs_EO, self._noise)


class _Planning:
    """Drives episodes with an EpisodePolicy, which sees to it that they do not depend on each other."""

    max_envs = MAX_PLANNED

    def __init__(self, policy: EpisodePolicy) -> None:
        self._actor, self._aim = PlanActor(policy), policy.aim

    @property
    def order(self) -> tuple[int, int]:
        return self._actor.order

    def take(self, weights: Weights, aim: PlanRequest | None) -> None:
        self._actor.replace(weights)
        self._actor.policy.aim = self._aim if aim is None else aim

    def begin(self, seeds: list[int], obs_EO: np.ndarray) -> list[EpisodeMetadata]:
        self._actor.reset(len(seeds))
        return self._actor.begin(np.arange(len(seeds)), obs_EO, plan_streams(seeds))

    def act(self, obs_EO: np.ndarray, reward_E: np.ndarray) -> np.ndarray:
        return self._actor.act(obs_EO, reward_E)


def _without(env: BatchEnv, obs_EO: np.ndarray, bad_E: np.ndarray) -> np.ndarray:
    """Observations to act on after the environments of ``bad_E`` were reset."""
    return _finite(env.force_reset(np.flatnonzero(bad_E).tolist())) if bad_E.any() else obs_EO


def _finite(values: np.ndarray) -> np.ndarray:
    """Zeros for what is not finite: the environment of an ended episode may be broken for good."""
    return np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)


def _maze(env_id: str) -> Maze | None:
    """The maze of an environment whose episodes all have one goal."""
    maze = maze_of(env_id)
    return None if maze is None or maze.goal_xy is None else maze
