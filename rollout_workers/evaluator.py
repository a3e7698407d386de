"""Deterministic episodes from fixed start states.

Letters: E environments (one an episode), O observation dim, A action dim.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import numpy as np

from algorithms.interface import Policy
from algorithms.weights import Weights
from rollout_workers.acting import Actor
from rollout_workers.batch_env import BatchEnv, StepResult
from rollout_workers.envs import make_batch_env


class EvaluationTimeout(TimeoutError):
    """An evaluation that did not end in its time."""


class BrokenEpisodes(FloatingPointError):
    """No episode of an evaluation could be finished."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What deterministic episodes of one policy gave.

    ``returns`` and ``lengths`` are those of the episodes that ended by themselves, in the order of their seeds. An
    episode that met a NaN or an infinity has no return: it is named in ``errors`` instead.
    """

    env_steps: int  # when the weights were made
    updates: int
    epoch: int
    version: int
    seed: int  # episode i started from seed + i
    returns: list[float]  # undiscounted
    lengths: list[int]  # env steps
    errors: list[str]
    wall_s: float

    @property
    def return_mean(self) -> float:
        return float(np.mean(self.returns))

    @property
    def return_std(self) -> float:
        """Standard deviation over the episodes (of the population, not of the mean)."""
        return float(np.std(self.returns))


class Evaluator:
    """Runs episodes side by side, one an environment, with the noise-free policy.

    An episode depends on its seed and the weights alone, not on how many run beside it.

    Args:
        env_id: Gymnasium id.
        policy: the acting side of the algorithm.
        episodes: default number of episodes.
        seed: default seed: episode i is reset with seed + i.
        timeout_s: how long one evaluation may take.
        backend, fast: as in WorkerConfig.
        max_envs: episodes that run side by side; more run one group after the other.
        make_env: (env_id, num_envs, seed, fast) -> BatchEnv.
    """

    def __init__(
        self,
        env_id: str,
        policy: Policy,
        *,
        episodes: int = 5,
        seed: int = 10_000,
        timeout_s: float = 600.0,
        backend: str = "auto",
        fast: bool = True,
        max_envs: int = 32,
        make_env: Callable[[str, int, int, bool], BatchEnv] = make_batch_env,
    ) -> None:
        self._env_id, self._fast, self._make_env = env_id, fast, make_env
        self._episodes, self._seed, self._timeout_s, self._max_envs = episodes, seed, timeout_s, max_envs
        self._actor = Actor(policy, backend=backend)

    def evaluate(self, weights: Weights, episodes: int | None = None, seed: int | None = None) -> Evaluation:
        """Runs ``episodes`` episodes with ``weights``, whatever weights were used before.

        Raises CorruptWeights, EvaluationTimeout, NonFiniteAction, and BrokenEpisodes when not one episode ended.
        """
        count = self._episodes if episodes is None else episodes
        first = self._seed if seed is None else seed
        if count < 1:
            raise ValueError(f"{count} episodes asked for, expected at least 1: there would be no return; ask for more")
        started = time.monotonic()
        self._actor.replace(weights)
        returns: list[float] = []
        lengths: list[int] = []
        errors: list[str] = []
        for done in range(0, count, self._max_envs):
            seeds = [first + i for i in range(done, min(done + self._max_envs, count))]
            group = self._run(seeds, started + self._timeout_s, f"{done} of {count} episodes were finished before")
            returns += group.return_E[~group.broken_E].tolist()
            lengths += group.length_E[~group.broken_E].tolist()
            errors += group.errors
        if not returns:
            raise BrokenEpisodes(
                f"none of {count} episodes of {self._env_id} with policy {weights.order} could be finished, so there "
                f"is no return; the first: {errors[0]}"
            )
        return Evaluation(
            env_steps=weights.env_steps,
            updates=weights.updates,
            epoch=weights.epoch,
            version=weights.version,
            seed=first,
            returns=returns,
            lengths=lengths,
            errors=errors,
            wall_s=time.monotonic() - started,
        )

    def _run(self, seeds: list[int], deadline: float, before: str) -> _Episodes:
        """One group of episodes to their ends."""
        env = self._make_env(self._env_id, len(seeds), seeds[0], self._fast)
        try:
            obs_EO = env.reset(seeds)
            group = _Episodes(seeds)
            noise = self._actor.no_noise(max(2, len(seeds)))
            bad_E = group.refuse_observations(obs_EO)
            while True:
                if bad_E.any():
                    obs_EO = _finite_rows(env.cut(np.flatnonzero(bad_E).tolist()))
                if not group.running_E.any():
                    return group
                if time.monotonic() > deadline:
                    raise EvaluationTimeout(self._late(group, before))
                step = env.step(self._act(obs_EO, noise))
                bad_E = group.add(step)
                obs_EO = step.obs_EO
        finally:
            env.close()

    def _act(self, obs_EO: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Actions whose rounding does not depend on how many rows there are, or one episode would differ in the end.

        torch's does at any number, so it gets them one by one; onnxruntime's only for one row, which it gets twice.
        """
        if self._actor.backend == "torch":
            return np.concatenate([self._actor.act(obs_EO[e : e + 1], noise[:1]) for e in range(len(obs_EO))])
        if len(obs_EO) == 1:
            return self._actor.act(np.repeat(obs_EO, 2, axis=0), noise)[:1]
        return self._actor.act(obs_EO, noise)

    def _late(self, group: _Episodes, before: str) -> str:
        slow = [group.seeds[e] for e in np.flatnonzero(group.running_E)]
        return (
            f"the evaluation of {self._env_id} with policy {self._actor.order} took longer than {self._timeout_s:g} s: "
            f"{before}, the episodes with seeds {slow} were at step {int(group.length_E.max())}; it is given up and "
            "has no result; raise evaluation.timeout_s or ask for fewer episodes"
        )


class _Episodes:
    """The episodes of one group: who still runs, and what the others gave."""

    def __init__(self, seeds: list[int]) -> None:
        self.seeds = seeds
        self.return_E = np.zeros(len(seeds))
        self.length_E = np.zeros(len(seeds), np.int64)
        self.running_E = np.ones(len(seeds), bool)
        self.broken_E = np.zeros(len(seeds), bool)
        self.errors: list[str] = []

    def refuse_observations(self, obs_EO: np.ndarray) -> np.ndarray:
        """Ends the running episodes whose observation is not finite; the environments (E,) that need a reset."""
        bad_E = ~np.isfinite(obs_EO).all(axis=1)
        self._end_broken(bad_E, "a non-finite observation")
        return bad_E

    def add(self, step: StepResult) -> np.ndarray:
        """Counts one step of the running episodes; the environments (E,) that need a reset."""
        counted_E = self.running_E & step.valid_E
        self.length_E[counted_E] += 1
        self._end_broken(~np.isfinite(step.next_obs_EO).all(axis=1) & counted_E, "a non-finite observation")
        self._end_broken(~np.isfinite(step.reward_E) & counted_E, "a non-finite reward")
        counted_E &= self.running_E
        self.return_E[counted_E] += step.reward_E[counted_E]
        self.running_E &= ~(counted_E & (step.terminated_E | step.truncated_E))
        return self.refuse_observations(step.obs_EO)

    def _end_broken(self, bad_E: np.ndarray, what: str) -> None:
        for e in np.flatnonzero(bad_E & self.running_E):
            self.errors.append(f"episode with seed {self.seeds[e]}: {what} after {self.length_E[e]} steps")
            self.broken_E[e] = True
        self.running_E &= ~bad_E


def _finite_rows(obs_EO: np.ndarray) -> np.ndarray:
    """Zeros for what is not finite: the environment of an ended episode may be broken for good."""
    return np.nan_to_num(obs_EO, nan=0.0, posinf=0.0, neginf=0.0)
