"""A run's newest policy, to act with in a program of one's own: what ``drawbridge.load`` gives.

Letters: E environments, K of them that begin an episode, O observation dim, A action dim.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box

from algorithms import online_names
from algorithms.interface import PlanRequest, PlanRequestError
from cluster.checks import spec_of
from cluster.commands.arguments import name_env_again
from cluster.commands.evaluation import collected, newest_weights, target_notes
from cluster.commands.values import check_path, check_request, check_seed
from cluster.errors import UsageError
from cluster.graph import RunSpec, make_policy
from cluster.run_dir import RunDirectory
from rollout_workers.actor import Actor, seeded_streams
from rollout_workers.env import ActionBox, close_or_warn, to_float32
from rollout_workers.envs import make_env
from rollout_workers.evaluator import plan_streams


class LoadedPolicy:
    """A run's newest policy. Call it with an observation, or with a batch of them, and it returns actions for the environment.

    A policy of an actor-critic, bc or percent-bc needs observations alone. One of gac, rvs or dt carries a plan, a requested return or a history
    through an episode: its first call, and its first after ``reset``, begins an episode in every row, and row e stays environment e.
    Deterministic actions are those of ``drawbridge evaluate``, bit for bit, if ``seed`` is the episode's.

    Attributes:
        run_dir: where it comes from.
        algorithm, env: of the run.
        env_steps, updates: of the run when these weights were made.
        observation_space, action_space: of one environment.
        remembers: whether it carries something through an episode.
        needs_reward: whether it needs the rewards to act (dt, odt).
        actor, box: what acts in [-1, 1], and the box of the environment's actions.
    """

    def __init__(
        self, run_dir: Path, *, mode: str | None = None, target_return: float | None = None, seed: int = 10_000
    ) -> None:
        run = RunDirectory.open(run_dir)
        spec = spec_of(run.config(), run)
        config = spec.config
        self.run_dir, self.algorithm, self.env = run.path, config.algorithm, config.env
        self.observation_space, self.action_space = _spaces(spec)
        self.box = ActionBox(self.action_space, config.env)
        self.actor = Actor(make_policy(spec), backend=config.worker.backend)
        weights = newest_weights(spec)
        self.actor.replace(weights)
        self.env_steps, self.updates = weights.env_steps, weights.updates
        self._request(PlanRequest(mode=config.evaluation.mode if mode is None else mode, target_return=target_return))
        for text in target_notes(spec, target_return):
            warnings.warn(text, stacklevel=4)  # of the line that calls drawbridge.load
        self.remembers = bool(self.actor.policy.state())
        self.needs_reward = bool(getattr(self.actor.policy, "needs_reward", False))
        self.reset(seed)

    def reset(self, seed: int | None = None) -> None:
        """Begins anew: the next call may have another number of rows, and each of them begins an episode.

        Args:
            seed: of everything drawn from now on; environment e draws from ``seed`` + e. None: the random numbers go on.
        """
        if seed is not None:
            seed = check_seed("seed", seed)
            self._rng = np.random.default_rng(seed)
        first = int(self._rng.integers(2**31)) if seed is None else seed
        self._first, self._streams = first, plan_streams([])

    def __call__(self, obs: Any, reward: Any = None, *, begins: Any = None, sample: bool = False) -> np.ndarray:
        """The action for ``obs`` in the environment's own box, or the actions (E, ...) for a batch.

        Args:
            obs: an observation as the environment returns it, a Dict too; or E of them along a first axis.
            reward: what the previous action brought, one a row. Only dt looks at it.
            begins: bool, one a row: where ``obs`` is the first of a new episode. None: nowhere, but in a first call everywhere.
            sample: draw from the policy instead of acting without noise; only of methods that learn from transitions.

        Raises:
            ValueError: what cannot be answered; the message says what was expected.
        """
        obs_EO, single = observation_rows(self.observation_space, obs, "the observation")
        act = self._continued if self.remembers else self._at_once
        action_EA = act(obs_EO, reward, begins, sample)
        action = self.box.rescale(action_EA)
        return action[0] if single else action

    def _at_once(self, obs_EO: np.ndarray, reward: Any, begins: Any, sample: bool) -> np.ndarray:
        """Actions that depend on these observations alone, and on noise."""
        self.actor.reset(len(obs_EO))
        if sample:
            if self.actor.stateless is None:
                raise self._cannot_sample("it has no noise: its actions are the mean of what the data does")
            self.actor.draw_noise(self._rng, 1)
        return self.actor.act(obs_EO, np.zeros(len(obs_EO), np.float32))

    def _continued(self, obs_EO: np.ndarray, reward: Any, begins: Any, sample: bool) -> np.ndarray:
        """Actions of running episodes, after those that begin now have begun."""
        if sample:
            raise self._cannot_sample(
                "what it draws, it draws with the plan; load it with mode='explore', if it has that mode"
            )
        rows = len(obs_EO)
        fresh = not self._streams
        if not fresh and rows != len(self._streams):
            raise UsageError(
                f"{rows} observations, expected {len(self._streams)} as in the call before: {self.algorithm} carries something through "
                "each episode, and it would belong to another environment; no action was taken; call reset() when the number changes"
            )
        begin_E = np.ones(rows, bool) if fresh else _per_row("begins", begins, rows, bool)
        reward_E = _per_row("reward", reward, rows, np.float32)
        if self.needs_reward and reward is None and not begin_E.all():
            raise UsageError(
                f"no reward was given, expected what the previous action brought: {self.algorithm} acts by the return that is still to "
                "come, so no action was taken; call policy(obs, reward)"
            )
        if fresh:
            self.actor.reset(rows)
            self._streams = plan_streams([self._first + e for e in range(rows)])
        env_K = np.flatnonzero(begin_E)
        if env_K.size:
            self.actor.begin(env_K, obs_EO[env_K], seeded_streams([self._streams[e] for e in env_K]))
        return self.actor.act(obs_EO, np.where(begin_E, np.float32(0), reward_E))

    def _request(self, request: PlanRequest) -> None:
        """Takes what is asked of the plans; UsageError, by beginning an episode, when this policy cannot meet it."""
        try:
            with collected() as warned:
                self.actor.policy.aim = request
                self.actor.reset(1)
                obs_KO = np.zeros((1, self.actor.policy.obs_dim), np.float32)
                self.actor.begin(np.zeros(1, np.int64), obs_KO, seeded_streams(plan_streams([0])))
        except PlanRequestError as error:
            raise UsageError(f"{error}; nothing was loaded") from error
        for text in warned:
            warnings.warn(text, stacklevel=5)  # of the line that calls drawbridge.load

    def _cannot_sample(self, why: str) -> UsageError:
        return UsageError(
            f"sample=True was asked of a policy of {self.algorithm}, expected {online_names()}: {why}; no action was taken; leave it out"
        )


def load(
    run_dir: str | Path,
    *,
    mode: str | None = None,
    target_return: float | None = None,
    seed: int = 10_000,
    env: str | None = None,
) -> LoadedPolicy:
    """See ``drawbridge.load``."""
    path = check_path("run", run_dir).absolute()
    check_request(mode, target_return, env)
    check_seed("seed", seed)  # before the environment is made
    name_env_again(path, env)
    return LoadedPolicy(path, mode=mode, target_return=target_return, seed=seed)


def _spaces(spec: RunSpec) -> tuple[gym.Space, gym.Space]:
    """Observation and action space of one environment of the run."""
    env = make_env(spec.config.env)
    try:
        return env.observation_space, env.action_space
    finally:
        close_or_warn(env, spec.config.env)


def observation_rows(space: gym.Space, obs: Any, name: str) -> tuple[np.ndarray, bool]:
    """``obs``, one observation of ``space`` or a batch of them with a leading axis, as float32 (E, O); and whether it was one.

    Raises UsageError, which names the part, for what is neither.
    """
    parts = _leaves(space, obs, name)
    counts = {None if array.ndim == box.ndim else len(array) for box, array in parts}
    if len(counts) > 1 or 0 in counts:
        raise UsageError(
            f"{name} has parts of {', '.join('one' if n is None else str(n) for n in counts)} observations, expected one observation, "
            "or the same number of at least 1 in every part: no action was taken; stack all parts along the first axis"
        )
    (count,) = counts
    obs_EO = np.concatenate([array.reshape(count or 1, -1) for _, array in parts], axis=1)
    if not np.isfinite(obs_EO).all():
        rows = np.flatnonzero(~np.isfinite(obs_EO).all(axis=1)).tolist()
        raise UsageError(
            f"{name} has NaN or infinity in rows {rows}, expected finite numbers (as float32, which ends at 3.4e38): no action was taken; "
            "reset that environment"
        )
    return obs_EO, count is None


def _leaves(space: gym.Space, obs: Any, name: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """A Box's lower bound, for its shape, beside its part of ``obs`` as float32; Dicts in the order of their sorted keys."""
    if isinstance(space, gym.spaces.Dict):
        if not isinstance(obs, Mapping) or set(obs) != set(space):
            seen = sorted(obs) if isinstance(obs, Mapping) else type(obs).__name__
            raise UsageError(
                f"{name} is {seen}, expected a mapping with the keys {sorted(space)}: no action was taken; give every part of the "
                "observation space"
            )
        return [leaf for key in sorted(space) for leaf in _leaves(space[key], obs[key], f"{name}[{key!r}]")]
    assert isinstance(space, Box)
    try:
        array = to_float32(obs)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"{name} is {type(obs).__name__} ({error}), expected numbers of shape {space.shape}: no action was taken; give an array"
        ) from error
    shown = f"({', '.join(map(str, ('batch', *space.shape)))})"
    if array.shape not in (space.shape, array.shape[:1] + space.shape):
        raise UsageError(
            f"{name} has shape {array.shape}, expected {space.shape} or {shown}: no action was taken; give observations "
            "as the environment returns them, or stack them along a new first axis"
        )
    return [(space.low, array)]


def _per_row(name: str, given: Any, rows: int, kind: type) -> np.ndarray:
    """One value a row; zeros for None."""
    try:
        values: np.ndarray = np.zeros(rows, kind) if given is None else np.atleast_1d(np.asarray(given, kind))
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"{name} is {type(given).__name__} ({error}), expected one number for each observation: no action was taken; give an array"
        ) from error
    if values.shape != (rows,):
        raise UsageError(
            f"{name} has shape {values.shape}, expected ({rows},), one value for each observation: no action was taken; give one a row"
        )
    return values
