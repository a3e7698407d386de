"""Episodes as they run: those of a worker, one after the other, and whole ones side by side, run to their ends.

Letters: E environments, K of them that begin an episode, O observation dim, A action dim.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter
from typing import Protocol

import numpy as np
from numpy.random import Generator, SeedSequence

from replay.schema import EpisodeMetadata
from replay.stored_episode import StoredEpisode
from rollout_workers.actor import Actor, seeded_streams
from rollout_workers.env import BatchEnv, EnvError, StepResult, to_float32
from rollout_workers.env_ids import find_env
from rollout_workers.envs import make_seeded_env
from rollout_workers.maze import Maze, MazePaths

UNLIMITED_STEPS = 10_000  # of an episode in an environment without a time limit, unless a cap is given
SIDE_BY_SIDE = 64  # episodes of a dataset that run at once
PLANS = 2  # spawn key of the plans' streams; 0 and 1 are those of the environments and of the noise
_STATE = ("begin_E", "reward_E", "begun_E")
_POLICY = "policy."  # prefix of the policy's own entries


class RunningEpisodes:
    """A worker's episodes: which environments begin one before their next action, and the rewards of their last action.

    The n-th episode begun in environment e draws from ``SeedSequence(entropy, spawn_key=(2, e, n))``: its plan depends
    neither on the other environments nor on when they begin theirs. A policy without plans needs none of this: nothing is
    begun, and every method but ``act`` does nothing.

    Args:
        actor: plans and acts.
        num_envs: E.
        entropy: of the worker.
        record: takes environments and metadata of the episodes whose first row is recorded next.
    """

    def __init__(
        self,
        actor: Actor,
        num_envs: int,
        entropy: Sequence[int],
        record: Callable[[np.ndarray, list[EpisodeMetadata]], None],
    ) -> None:
        self._actor, self._entropy, self._record = actor, tuple(entropy), record
        self._planned = actor.stateless is None
        self._begin_E = np.full(num_envs, self._planned)
        self._reward_E = np.zeros(num_envs, np.float32)
        self._begun_E = np.zeros(num_envs, np.int64)  # episodes begun so far
        self._any = self._planned
        self._plan_s = 0.0
        actor.reset(num_envs)

    def act(self, obs_EO: np.ndarray) -> np.ndarray:
        """Begins the episodes that are due, with the weights at hand, and returns the actions (E, A) of all environments."""
        if self._any:
            self._begin(obs_EO)
        return self._actor.act(obs_EO, self._reward_E)

    def note(self, step: StepResult, refused: np.ndarray | None) -> None:
        """Takes the result of the actions; ``refused``: the environments that were reset because their row was refused.

        An environment that is reset by its next step ends here with an observation that belongs to no new episode: its
        plan is replaced after that step, whose ``valid_E`` is False.
        """
        if not self._planned:
            return
        begun_E = ~step.valid_E if step.left_E is None else ~(step.valid_E | step.left_E)
        begin_E = step.terminated_E | step.truncated_E | begun_E
        if refused is not None:
            begin_E[refused] = True
        self._any = bool(begin_E.any())
        self._begin_E = begin_E
        self._reward_E = to_float32(step.reward_E)
        if self._any:
            self._reward_E[begin_E] = 0.0

    @property
    def planned(self) -> np.ndarray:
        """The environments, int64, in the middle of an episode with a plan."""
        return np.flatnonzero(~self._begin_E & self._planned)

    def restart(self, env_K: np.ndarray | slice = slice(None)) -> None:
        """Begins episodes in these environments (all) before their next action; the caller has ended the running ones."""
        if self._planned:
            self._begin_E[env_K] = self._any = True
            self._reward_E[env_K] = 0.0

    def take_stats(self, metadata: Sequence[EpisodeMetadata]) -> dict[str, float]:
        """Statistics of a chunk with the episodes of ``metadata``: ``plan_s`` (wall time spent planning) and metadata_stats."""
        if not self._planned:
            return {}
        taken, self._plan_s = self._plan_s, 0.0
        return {"plan_s": taken, **metadata_stats(metadata)}

    def state(self) -> dict[str, np.ndarray]:
        """Everything that the next plans and actions depend on except the weights; the policy's own is under ``policy.``."""
        policy = {_POLICY + name: value for name, value in self._actor.policy.state().items()}
        return self._own_state() | policy

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Takes what ``state`` gave, for as many environments; after the weights, which leave running plans alone."""
        own_state = self._own_state()
        for name, own in own_state.items():
            if name not in state or state[name].shape != own.shape:
                seen = state[name].shape if name in state else "absent"
                raise ValueError(
                    f"state of the plans {name!r} has shape {seen}, expected {own.shape}: it is of another number of "
                    "environments or of a policy that does not plan and cannot be resumed; use the settings it was "
                    "made with"
                )
        if own_state:
            self._begin_E, self._reward_E, self._begun_E = (state[name].copy() for name in _STATE)
            self._any = bool(self._begin_E.any())
        policy = {name.removeprefix(_POLICY): value for name, value in state.items() if name.startswith(_POLICY)}
        self._actor.policy.load_state(policy)

    def _own_state(self) -> dict[str, np.ndarray]:
        values = self._begin_E.copy(), self._reward_E.copy(), self._begun_E.copy()
        return dict(zip(_STATE, values)) if self._planned else {}

    def _begin(self, obs_EO: np.ndarray) -> None:
        started = perf_counter()
        env_K = np.flatnonzero(self._begin_E)
        seeds = [SeedSequence(self._entropy, spawn_key=(PLANS, int(e), int(self._begun_E[e]))) for e in env_K]
        self._record(env_K, self._actor.begin(env_K, obs_EO[env_K], seeded_streams(seeds)))
        self._begun_E[env_K] += 1
        self._begin_E[:] = self._any = False
        self._plan_s += perf_counter() - started


def metadata_stats(metadata: Sequence[EpisodeMetadata]) -> dict[str, float]:
    """Sums over the episodes that were begun: how many, and of them those with a target and those with a prediction.

    Returns ``planned_episodes``, ``target_episodes``, ``target_sum``, ``predicted_episodes``, ``predicted_sum``,
    ``predicted_variance_sum``; targets and predictions in the environment's own units.
    """
    targets = [m.target for m in metadata if math.isfinite(m.target)]
    predicted = [m for m in metadata if math.isfinite(m.predicted) and math.isfinite(m.variance)]
    return {
        "planned_episodes": float(len(metadata)),
        "target_episodes": float(len(targets)),
        "target_sum": float(sum(targets)),
        "predicted_episodes": float(len(predicted)),
        "predicted_sum": float(sum(m.predicted for m in predicted)),
        "predicted_variance_sum": float(sum(m.variance for m in predicted)),
    }


class Acts(Protocol):
    """What acts in whole episodes: an Actor, an EpisodePolicy, a planner."""

    def reset(self, num_envs: int) -> None:
        """Forgets every episode and makes room for E environments."""

    def begin(self, env_K: np.ndarray, obs_KO: np.ndarray, rng: Generator) -> list[EpisodeMetadata]:
        """Begins episodes, here in all environments at once; an empty list if there is nothing to say of them."""

    def act(self, obs_EO: np.ndarray, reward_E: np.ndarray) -> np.ndarray:
        """Actions float32 (E, A) in [-1, 1]."""


class EpisodeGroup:
    """Episodes that run side by side, one an environment: those still running, and what the others gave."""

    def __init__(self, seeds: list[int]) -> None:
        self.seeds = seeds
        self.return_E = np.zeros(len(seeds))
        self.length_E = np.zeros(len(seeds), np.int64)
        self.running_E = np.ones(len(seeds), bool)
        self.broken_E = np.zeros(len(seeds), bool)
        self.cut_E = np.zeros(len(seeds), bool)
        self.errors: list[str] = []
        self.metadata: list[EpisodeMetadata] = []
        self.paths: MazePaths | None = None

    def reject_observations(self, obs_EO: np.ndarray) -> np.ndarray:
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
        if self.paths is not None:
            self.paths.add(counted_E, self.length_E, step.next_obs_EO, step.reward_E)
        self.running_E &= ~(counted_E & (step.terminated_E | step.truncated_E))
        return self.reject_observations(step.obs_EO)

    def cut_at(self, steps: int) -> None:
        """Ends the running episodes that are ``steps`` long."""
        long_E = self.running_E & (self.length_E >= steps)
        self.cut_E |= long_E
        self.running_E &= ~long_E

    def _end_broken(self, bad_E: np.ndarray, what: str) -> None:
        for e in np.flatnonzero(bad_E & self.running_E):
            self.errors.append(f"episode with seed {self.seeds[e]}: {what} after {self.length_E[e]} steps")
            self.broken_E[e] = True
        self.running_E &= ~bad_E


_watch: list[Callable[[EpisodeGroup], None]] = []  # the last one is called after every step of whole episodes


@contextlib.contextmanager
def watched(show: Callable[[EpisodeGroup], None]) -> Iterator[None]:
    """Calls ``show`` after every step of the groups that ``run_episodes`` runs in this block, but in none inside it."""
    _watch.append(show)
    try:
        yield
    finally:
        _watch.pop()


AfterStep = Callable[[EpisodeGroup, np.ndarray, np.ndarray, StepResult], None]  # group, observations, actions, result


def run_episodes(
    env: BatchEnv,
    actor: Acts,
    seeds: list[int],
    streams: Sequence[SeedSequence],
    *,
    maze: Maze | None = None,
    record_paths: bool = False,
    before_step: Callable[[EpisodeGroup], None] | None = None,
    after_step: AfterStep | None = None,
) -> EpisodeGroup:
    """Runs one episode in each of ``env``'s environments to its end: the one runner of whole episodes.

    An episode that meets a NaN or an infinity ends as broken, and its environment is reset.

    Args:
        env: one environment for each seed.
        actor: acts in all of them.
        seeds: of the environments' resets.
        streams: what each episode's actor draws from.
        maze: whose paths are measured, if any; ``record_paths``: keep their positions too.
        before_step, after_step: called with every step; clearing the group's ``running_E`` ends it.
    """
    group = EpisodeGroup(seeds)
    obs_EO = env.reset(seeds)
    obs_EO = _without(env, obs_EO, group.reject_observations(obs_EO))
    actor.reset(len(seeds))
    group.metadata = actor.begin(np.arange(len(seeds)), obs_EO, seeded_streams(streams))
    group.paths = None if maze is None else MazePaths(maze, obs_EO, record_paths)
    reward_E = np.zeros(len(seeds), np.float32)
    while group.running_E.any():
        if before_step is not None:
            before_step(group)
        action_EA = actor.act(obs_EO, reward_E)
        step = env.step(action_EA)
        bad_E = group.add(step)
        if after_step is not None:
            after_step(group, obs_EO, action_EA, step)
        if _watch:
            _watch[-1](group)
        obs_EO = _without(env, step.obs_EO, bad_E)
        reward_E = _finite(to_float32(step.reward_E))
    return group


def _without(env: BatchEnv, obs_EO: np.ndarray, bad_E: np.ndarray) -> np.ndarray:
    """Observations to act on after the environments of ``bad_E`` were reset."""
    return _finite(env.force_reset(np.flatnonzero(bad_E).tolist())) if bad_E.any() else obs_EO


def _finite(values: np.ndarray) -> np.ndarray:
    """Zeros for what is not finite: the environment of an ended episode may be broken for good."""
    return np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)


class EpisodeRuns:
    """Runs groups of episodes in one kind of environment, which is made once for groups of one size, and keeps them.

    EnvError for an environment without a time limit.
    """

    def __init__(self, env_id: str, fast: bool = True) -> None:
        self._env_id, self._fast = env_id, fast
        self._env: BatchEnv | None = None
        if find_env(env_id).max_episode_steps is None:
            raise EnvError(
                f"{env_id} has no time limit, expected one: an episode might never end, so none was begun; register the "
                "environment with max_episode_steps"
            )

    def run(self, actor: Acts, seeds: list[int], streams: Sequence[SeedSequence]) -> list[StoredEpisode | None]:
        """One episode from each seed, in their order (``index`` is 0); None for one that met a NaN or an infinity."""
        if self._env is None or self._env.num_envs != len(seeds):
            self.close()
            self._env = make_seeded_env(self._env_id, len(seeds), 0, self._fast)
        steps: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        found: list[StoredEpisode | None] = [None] * len(seeds)

        def keep(group: EpisodeGroup, obs_EO: np.ndarray, action_EA: np.ndarray, step: StepResult) -> None:
            steps.append((obs_EO, action_EA, step.reward_E))
            for e in np.flatnonzero(~group.running_E & ~group.broken_E & (group.length_E == len(steps))).tolist():
                found[e] = StoredEpisode(
                    index=0,
                    obs_TO=np.stack([obs_EO[e] for obs_EO, _, _ in steps]),
                    action_TA=np.stack([action_EA[e] for _, action_EA, _ in steps]),
                    reward_T=np.array([reward_E[e] for _, _, reward_E in steps], np.float64),
                    terminated=bool(step.terminated_E[e]),
                    truncated=bool(step.truncated_E[e]),
                    next_obs_O=step.next_obs_EO[e].copy(),
                )

        run_episodes(self._env, actor, seeds, streams, after_step=keep)
        return found

    def mean_return(self, actor: Acts, seed: int, streams: Sequence[SeedSequence]) -> float:
        """Mean undiscounted return over the episodes from seed, seed + 1, ..., one a stream; broken ones are left out."""
        returns: list[float] = []
        try:
            for first in range(0, len(streams), SIDE_BY_SIDE):
                chosen = streams[first : first + SIDE_BY_SIDE]
                group = self.run(actor, [seed + first + i for i in range(len(chosen))], chosen)
                returns += [float(episode.reward_T.sum()) for episode in group if episode is not None]
        finally:
            self.close()
        if not returns:
            raise EnvError(
                f"none of {len(streams)} episodes of {self._env_id} ended without a NaN or an infinity, expected one: there "
                "is no mean return; look at the environment and at who acts in it"
            )
        return float(np.mean(returns))

    def close(self) -> None:
        """Frees the environments."""
        if self._env is not None:
            self._env.close()
            self._env = None
