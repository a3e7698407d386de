"""Episodes that are begun with a plan: who begins which, from which stream, and what is told of it.

Letters: E environments, K of them that begin an episode, O observation dim, A action dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, TypeGuard

import numpy as np
from numpy.random import PCG64, Generator, SeedSequence
from numpy.random.bit_generator import ISpawnableSeedSequence

from algorithms.interface import EpisodePolicy
from replay.trajectories import EpisodeMetadata
from rollout_workers.acting import NewestWeights
from rollout_workers.env import StepResult

_PLANS = 2  # spawn key of the plans' streams; 0 and 1 are those of the environments and of the noise
_STATE = ("begin_E", "reward_E", "begun_E")
_POLICY = "policy."  # prefix of the policy's own entries


def plans(policy: object) -> TypeGuard[EpisodePolicy]:
    """Whether ``policy`` carries something through an episode and has to be told where one begins."""
    return hasattr(policy, "begin")


class PlanActor(NewestWeights):
    """An EpisodePolicy that acts, and never goes back to older weights; running episodes keep their plans."""

    def __init__(self, policy: EpisodePolicy) -> None:
        self.policy = policy
        super().__init__(policy.load_weights)

    def reset(self, num_envs: int) -> None:
        """Forgets every episode and makes room for E environments."""
        self.policy.reset(num_envs)

    def begin(self, env_K: np.ndarray, obs_KO: np.ndarray, seeds: Sequence[SeedSequence]) -> list[EpisodeMetadata]:
        """Begins episodes in the environments ``env_K`` int64 from ``obs_KO`` float32, in one batch.

        ``seeds``: K, the source of each environment's own draw. Raises NoWeights before the first weights.
        """
        self.require_weights()
        stamps = self.policy.begin(env_K, obs_KO, seeded_streams(seeds))
        if len(stamps) != len(env_K):
            raise ValueError(
                f"the policy gave {len(stamps)} stamps for {len(env_K)} episodes that it began, expected one for each: "
                "nobody could tell which plan is whose; return them in the order of env_K"
            )
        return stamps

    def act(self, obs_EO: np.ndarray, reward_E: np.ndarray) -> np.ndarray:
        """Actions float32 (E, A) in [-1, 1] for obs float32 (E, O) and what the previous action brought, float32 (E,).

        Raises NoWeights before the first weights and NonFiniteAction when an action is NaN or infinite.
        """
        self.require_weights()
        return self.finite(self.policy.act(obs_EO, reward_E))


class RunningPlans:
    """Which of a worker's environments begin an episode before their next action, and what their last action brought.

    The n-th episode that is begun in environment e draws from ``SeedSequence(entropy, spawn_key=(2, e, n))``: its plan
    depends neither on the environments beside it nor on when they begin theirs.

    Args:
        actor: what plans and acts.
        num_envs: E.
        entropy: of the worker.
        tell: takes environments and stamps of the episodes whose first row is recorded next.
    """

    def __init__(
        self,
        actor: PlanActor,
        num_envs: int,
        entropy: Sequence[int],
        tell: Callable[[np.ndarray, list[EpisodeMetadata]], None],
    ) -> None:
        self._actor, self._entropy, self._tell = actor, tuple(entropy), tell
        self._begin_E = np.ones(num_envs, bool)
        self._reward_E = np.zeros(num_envs, np.float32)
        self._begun_E = np.zeros(num_envs, np.int64)  # episodes begun so far
        self._any = True
        self._plan_s = 0.0
        actor.reset(num_envs)

    def act(self, obs_EO: np.ndarray) -> np.ndarray:
        """Begins what has to be begun, with the weights at hand, and gives the actions (E, A) of all environments."""
        if self._any:
            self._begin(obs_EO)
        return self._actor.act(obs_EO, self._reward_E)

    def note(self, step: StepResult, refused: np.ndarray | None) -> None:
        """Takes what the actions led to; ``refused``: the environments that were reset because of a row of theirs.

        An environment that is reset by its next step ends here with an observation that belongs to no new episode: its
        plan of then is replaced after that step, of which ``valid_E`` is False.
        """
        begin_E = step.terminated_E | step.truncated_E | ~step.valid_E
        if refused is not None:
            begin_E[refused] = True
        self._any = bool(begin_E.any())
        self._begin_E = begin_E
        self._reward_E = step.reward_E.astype(np.float32)
        if self._any:
            self._reward_E[begin_E] = 0.0

    @property
    def running(self) -> np.ndarray:
        """The environments, int64, that are in the middle of an episode and of its plan."""
        return np.flatnonzero(~self._begin_E)

    def begin_anew(self, env_K: np.ndarray | slice = slice(None)) -> None:
        """Begins episodes in these environments (all) before their next action; whoever calls has ended those that ran."""
        self._begin_E[env_K] = True
        self._reward_E[env_K] = 0.0
        self._any = True

    def take_seconds(self) -> float:
        """Wall time spent beginning episodes since the last call, in s."""
        taken, self._plan_s = self._plan_s, 0.0
        return taken

    def state(self) -> dict[str, np.ndarray]:
        """Everything that the next plans and actions depend on but for the weights; the policy's own is under ``policy.``."""
        policy = {_POLICY + name: value for name, value in self._actor.policy.state().items()}
        return self._own_state() | policy

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Takes what ``state`` gave, of as many environments; after the weights, which leave running plans alone."""
        for name, own in self._own_state().items():
            if name not in state or state[name].shape != own.shape:
                seen = state[name].shape if name in state else "absent"
                raise ValueError(
                    f"state of the plans {name!r} has shape {seen}, expected {own.shape}: it is of another number of "
                    "environments or of a policy that does not plan and cannot be resumed; use the settings it was "
                    "made with"
                )
        self._begin_E, self._reward_E, self._begun_E = (state[name].copy() for name in _STATE)
        self._any = bool(self._begin_E.any())
        policy = {name.removeprefix(_POLICY): value for name, value in state.items() if name.startswith(_POLICY)}
        self._actor.policy.load_state(policy)

    def _own_state(self) -> dict[str, np.ndarray]:
        return dict(zip(_STATE, (self._begin_E.copy(), self._reward_E.copy(), self._begun_E.copy())))

    def _begin(self, obs_EO: np.ndarray) -> None:
        started = perf_counter()
        env_K = np.flatnonzero(self._begin_E)
        seeds = [SeedSequence(self._entropy, spawn_key=(_PLANS, int(e), int(self._begun_E[e]))) for e in env_K]
        self._tell(env_K, self._actor.begin(env_K, obs_EO[env_K], seeds))
        self._begun_E[env_K] += 1
        self._begin_E[:] = False
        self._any = False
        self._plan_s += perf_counter() - started


def stamp_stats(stamps: Sequence[EpisodeMetadata]) -> dict[str, float]:
    """Sums over the episodes that were begun: how many, and of them those with a target and those with a prediction.

    Returns ``planned_episodes``, ``target_episodes``, ``target_sum``, ``predicted_episodes``, ``predicted_sum``,
    ``predicted_variance_sum``; targets and predictions in the environment's own units.
    """
    targets = [s.target for s in stamps if math.isfinite(s.target)]
    predicted = [(s.predicted, s.variance) for s in stamps if math.isfinite(s.predicted) and math.isfinite(s.variance)]
    return {
        "planned_episodes": float(len(stamps)),
        "target_episodes": float(len(targets)),
        "target_sum": float(sum(targets)),
        "predicted_episodes": float(len(predicted)),
        "predicted_sum": float(sum(mean for mean, _ in predicted)),
        "predicted_variance_sum": float(sum(variance for _, variance in predicted)),
    }


def seeded_streams(seeds: Sequence[SeedSequence]) -> Generator:
    """A generator whose ``spawn(K)`` gives K generators, the k-th of which follows from ``seeds[k]`` alone.

    For ``EpisodePolicy.begin``, which spawns one stream an environment in order; spawning again gives new ones.
    """
    return Generator(PCG64(_Streams(seeds)))  # type: ignore[arg-type]  # numpy's stub asks for the class, numpy for the interface


class _Streams(ISpawnableSeedSequence):
    """The seeds of K streams as what numpy spawns generators from."""

    def __init__(self, seeds: Sequence[SeedSequence]) -> None:
        self._seeds = list(seeds)

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        """Of the generator itself, which serves nobody but must start somewhere: the first stream's."""
        return (self._seeds[0] if self._seeds else SeedSequence(0)).generate_state(n_words, dtype)

    def spawn(self, n_children: int) -> list[SeedSequence]:  # type: ignore[override]
        """The next seed of each stream."""
        if n_children != len(self._seeds):
            raise ValueError(
                f"{n_children} streams were spawned, expected {len(self._seeds)}, one for each episode that begins: a "
                "plan would depend on the episodes beside it; spawn one an environment, in the order of env_K"
            )
        return [seed.spawn(1)[0] for seed in self._seeds]
