"""Deterministic episodes from fixed start states.

Letters: E environments (one an episode), O observation dim, A action dim.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.random import SeedSequence

from algorithms.interface import EpisodePolicy, PlanRequest, Policy
from algorithms.weights import Weights
from rollout_workers.actor import Actor
from rollout_workers.env import BatchEnv
from rollout_workers.envs import make_seeded_env
from rollout_workers.episodes import PLANS, UNLIMITED_STEPS, EpisodeGroup, run_episodes
from rollout_workers.maze import Maze, maze_of

MAX_ENVS, MAX_PLANNED = 32, 128  # episodes side by side; planning costs nearly the same for one as for many


class EvaluationTimeout(TimeoutError):
    """An evaluation that did not end in its time."""


class BrokenEpisodes(FloatingPointError):
    """No episode of an evaluation could be finished."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What deterministic episodes of one policy gave.

    ``returns`` and ``lengths`` are those of the episodes that ended by themselves or were cut, in the order of their seeds, and so
    is every other list but ``errors``. An episode that met a NaN or an infinity has no return: it is named in ``errors``
    instead.
    """

    env_steps: int  # when the weights were made
    updates: int
    generation: int
    version: int
    seed: int  # episode i started from seed + i
    returns: list[float]  # undiscounted
    lengths: list[int]  # env steps
    errors: list[str]
    wall_s: float
    note: str = ""  # which episodes were cut, and where; "" if none was
    mode: str = ""  # how plans were inferred; "" for a policy that makes none
    target: float | None = None  # return that was asked for (mean over the episodes), None where nothing was
    predicted: list[float] = dataclasses.field(
        default_factory=list
    )  # return; empty unless the policy predicts every one
    variance: list[float] = dataclasses.field(default_factory=list)  # of the prediction
    promise_limit: float | None = None  # a mean prediction beyond it means nothing; None where no policy says so
    # The rest in mazes with one goal only, empty elsewhere.
    path_length: list[float] = dataclasses.field(default_factory=list)  # metres, until arrival or to the episode's end
    shortest_path: list[float] = dataclasses.field(default_factory=list)  # metres, from the start to the goal's edge
    reached: list[int] = dataclasses.field(default_factory=list)  # steps made on arrival at the goal, -1: never
    starts_in_goal: list[bool] = dataclasses.field(default_factory=list)
    paths: list[list[list[float]]] = dataclasses.field(default_factory=list)  # (steps + 1, 2) each, where recorded

    @property
    def return_mean(self) -> float:
        return float(np.mean(self.returns))

    @property
    def return_std(self) -> float:
        """Standard deviation over the episodes (of the population, not of the mean)."""
        return float(np.std(self.returns))


class Evaluator:
    """Runs episodes side by side, one an environment, with the noise-free policy.

    An episode depends on its seed and the weights alone, not on how many run alongside. What an EpisodePolicy draws for
    its plan comes from a stream of the episode's own seed; it must see to it itself that its rounding does not depend on
    the height of a batch.

    Args:
        env_id: Gymnasium id.
        policy: the acting side of the algorithm.
        episodes: default number of episodes.
        seed: default seed: episode i is reset with seed + i.
        timeout_s: how long one evaluation may take.
        max_episode_steps: cuts every episode there; 0: at the environment's time limit, or after 10,000 steps where it has none
            or does not keep it.
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
        max_episode_steps: int = 0,
        backend: str = "auto",
        fast: bool = True,
        max_envs: int | None = None,
        make_env: Callable[[str, int, int, bool], BatchEnv] = make_seeded_env,
    ) -> None:
        self._env_id, self._fast, self._make_env = env_id, fast, make_env
        self._episodes, self._seed, self._timeout_s = episodes, seed, timeout_s
        self._actor = Actor(policy, backend=backend)
        self._aim = self._actor.policy.aim
        self._most_steps = max_episode_steps
        self._max_envs = max_envs or (MAX_ENVS if self._actor.stateless else MAX_PLANNED)
        self._maze = _maze(env_id)

    def evaluate(
        self,
        weights: Weights,
        episodes: int | None = None,
        seed: int | None = None,
        aim: PlanRequest | None = None,
        record_paths: bool = False,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Evaluation:
        """Runs ``episodes`` episodes with ``weights``, whatever weights were used before.

        ``aim``: what an EpisodePolicy is asked for; None: what it was set to when the evaluator was made.
        ``record_paths``: the positions of every episode in a maze are given too.
        ``meanwhile``: called before every step.
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
        self._actor.policy.aim = self._aim if aim is None else aim
        self._actor.replace(weights)
        groups: list[EpisodeGroup] = []
        for done in range(0, count, self._max_envs):
            seeds = [first + i for i in range(done, min(done + self._max_envs, count))]
            before = f"{done} of {count} episodes were finished before"
            groups.append(self._run(seeds, started + self._timeout_s, before, record_paths, meanwhile))
        if all(group.broken_E.all() for group in groups):
            raise BrokenEpisodes(
                f"none of {count} episodes of {self._env_id} with policy {weights.order} could be finished ({groups[0].errors[0]}), "
                "expected observations and rewards without a NaN or an infinity: there is no return; correct the environment, or let it "
                "end an episode before that"
            )
        finished = _finished(groups)
        return Evaluation(
            env_steps=weights.env_steps,
            updates=weights.updates,
            generation=weights.generation,
            version=weights.version,
            seed=first,
            errors=[error for group in groups for error in group.errors],
            wall_s=time.monotonic() - started,
            promise_limit=self._promise_limit(finished["returns"]),
            note=_note(groups, count),
            **_requested(groups),
            **finished,
        )

    def _promise_limit(self, returns: list[float]) -> float | None:
        """What the policy says of the promises of episodes with these returns."""
        limit_of = getattr(self._actor.policy, "promise_limit", None)
        return None if limit_of is None else limit_of(float(np.mean(returns)))

    def _run(
        self, seeds: list[int], deadline: float, before: str, record_paths: bool, meanwhile: Callable[[], None]
    ) -> EpisodeGroup:
        """One group of episodes to their ends."""

        def check(group: EpisodeGroup) -> None:
            meanwhile()
            if time.monotonic() <= deadline:
                return
            slow = [seeds[e] for e in np.flatnonzero(group.running_E)]
            raise EvaluationTimeout(
                f"the evaluation of {self._env_id} with policy {self._actor.order} took longer than {self._timeout_s:g} s: "
                f"{before}, the episodes with seeds {slow} were at step {int(group.length_E.max())}; it is abandoned and "
                "has no result; raise evaluation.timeout_s or ask for fewer episodes"
            )

        env = self._make_env(self._env_id, len(seeds), seeds[0], self._fast)
        most = self._most_steps or max(UNLIMITED_STEPS, env.max_episode_steps or 0)  # not every limit is kept

        def cut(group: EpisodeGroup, *_: object) -> None:
            group.cut_at(most)

        try:
            paths: dict[str, Any] = {"maze": self._maze, "record_paths": record_paths}
            return run_episodes(
                env, self._actor, seeds, plan_streams(seeds), before_step=check, after_step=cut, **paths
            )
        finally:
            env.close()


def plan_streams(seeds: list[int]) -> list[SeedSequence]:
    """The source of each evaluation episode's plan, by its seed; its environment draws from the seed itself."""
    return [SeedSequence(seed, spawn_key=(PLANS,)) for seed in seeds]


def _requested(groups: list[EpisodeGroup]) -> dict[str, Any]:
    """``Evaluation.mode`` and ``target`` of all the episodes: one mode, and the mean of their targets."""
    metadata = [one for group in groups for one in group.metadata]
    targets = [one.target for one in metadata if math.isfinite(one.target)]
    return {"mode": metadata[0].mode, "target": float(np.mean(targets)) if targets else None}


def _note(groups: list[EpisodeGroup], count: int) -> str:
    cut = sum(int(group.cut_E.sum()) for group in groups)
    if not cut:
        return ""
    at = max(int(group.length_E[group.cut_E].max(initial=0)) for group in groups)
    return (
        f"{cut} of {count} episodes were cut after {at:,} steps (evaluation.max_episode_steps): their returns are the sums of those "
        "rewards alone"
    )


def _finished(groups: list[EpisodeGroup]) -> dict[str, Any]:
    """The lists of an Evaluation, over the episodes that ended by themselves.

    There are no predictions unless the policy predicts every episode, because NaN is not JSON.
    """
    lists: dict[str, list[Any]] = {}
    for group in groups:
        complete = np.flatnonzero(~group.broken_E).tolist()
        parts: dict[str, list[Any]] = {
            "returns": group.return_E[complete].tolist(),
            "lengths": group.length_E[complete].tolist(),
            "predicted": [float(group.metadata[e].predicted) for e in complete],
            "variance": [float(group.metadata[e].variance) for e in complete],
        }
        if (paths := group.paths) is not None:
            parts["path_length"] = paths.length_E[complete].tolist()
            parts["shortest_path"] = paths.shortest_E[complete].tolist()
            parts["reached"] = paths.reached_E[complete].tolist()
            parts["starts_in_goal"] = paths.starts_in_goal_E[complete].tolist()
            if paths.recorded:
                parts["paths"] = [paths.positions(e, int(group.length_E[e])) for e in complete]
        for name, values in parts.items():
            lists.setdefault(name, []).extend(values)
    if not np.isfinite(lists["predicted"] + lists["variance"]).all():
        del lists["predicted"], lists["variance"]
    return lists


def _maze(env_id: str) -> Maze | None:
    """The maze of an environment whose episodes all have one goal."""
    maze = maze_of(env_id)
    return None if maze is None or maze.goal_xy is None else maze
