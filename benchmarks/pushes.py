"""Mazes in which the ball is put somewhere else in mid-episode, and policies that tell when they planned again.

Letters: E environments (one an episode), K of them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from algorithms.gac.config import GACConfig
from algorithms.gac.planning import MODES
from algorithms.gac.policy import GACPolicy
from algorithms.gac.target import REST, Trigger, prediction_error
from rollout_workers.env import EnvError, StepResult
from rollout_workers.envs import WrappedEnv, make_batch_env
from rollout_workers.maze import Maze, maze_of

PUSHES = 3  # spawn key of an episode's push
FAR = 0.5  # m, a push leads farther than this
_POSITION, _VELOCITY = slice(1, 3), slice(3, 5)  # in MuJoCo's state, after the time
_NEVER = -1


def push_steps(first_seed: int, episodes: int, limit: int) -> np.ndarray:
    """The step (E,) int64 after which each episode is pushed: uniform in the second quarter of ``limit`` steps."""
    return np.array([_stream(first_seed + e).integers(limit // 4, limit // 2) for e in range(episodes)], np.int64)


class PushedMaze(WrappedEnv):
    """E point mazes with one fixed goal as a BatchEnv; each ball is put down elsewhere, once, at rest.

    After the episode's ``push_E``-th step the ball lies at the centre of a free cell more than 0.5 m away, all equally
    likely. Both follow from the episode's seed alone. The step itself tells the observation before the push.

    Args:
        env_id: FixedGoal id.
        first_seed: of environment 0; environment e has the next ones.
    """

    def __init__(self, env_id: str, num_envs: int, first_seed: int, fast: bool = True) -> None:
        maze = maze_of(env_id)
        inner = make_batch_env(env_id, num_envs, first_seed, fast)
        if maze is None or maze.goal_xy is None or inner.max_episode_steps is None:
            raise EnvError(
                f"{env_id} was to be pushed, expected a maze with one goal: its state holds no known position"
            )
        super().__init__(inner)
        self._maze: Maze = maze
        self._step, self._first_seed = 0, first_seed
        self.push_E = push_steps(first_seed, num_envs, inner.max_episode_steps)

    def reset(self, seeds: list[int] | None = None) -> np.ndarray:
        """See BatchEnv."""
        self._step = 0
        return self._inner.reset(seeds)

    def step(self, actions_EA: np.ndarray) -> StepResult:
        """See BatchEnv; then pushes."""
        found = self._inner.step(actions_EA)
        self._step += 1
        pushed_K = np.flatnonzero(self.push_E == self._step)
        return found._replace(obs_EO=self._push(pushed_K)) if len(pushed_K) else found

    def _push(self, env_K: np.ndarray) -> np.ndarray:
        state = self._inner.state()
        for env in env_K.tolist():
            state["physics"][env, _POSITION] = self._elsewhere(env, state["obs"][env, :2])
            state["physics"][env, _VELOCITY] = 0.0
            state["obs"][env] = state["physics"][env, 1:5]
        return self._inner.load_state(state)

    def _elsewhere(self, env: int, xy: np.ndarray) -> np.ndarray:
        away_K = np.flatnonzero(np.linalg.norm(self._maze.centre_K2 - xy, axis=1) > FAR)
        rng = _stream(self._first_seed + env)
        rng.integers(2)  # the step's draw
        return self._maze.centre_K2[rng.choice(away_K)]


class WatchedPolicy(GACPolicy):
    """Remembers when it planned again; with ``oracle_E`` it does so after exactly that step of each episode."""

    def __init__(self, config: GACConfig, obs_dim: int, action_dim: int) -> None:
        self.oracle_E: np.ndarray | None = None
        super().__init__(config, obs_dim, action_dim)

    def reset(self, num_envs: int) -> None:
        super().reset(num_envs)
        self.steps = 0
        self.replans: list[tuple[int, int]] = []  # (step, environment)

    def act(self, obs_EO: np.ndarray, reward_E: np.ndarray) -> np.ndarray:
        action_EA = super().act(obs_EO, reward_E)
        self.steps += 1
        return action_EA

    def _plan_again(self, obs_EO: np.ndarray) -> None:
        if self.oracle_E is None:
            super()._plan_again(obs_EO)
            return
        pushed_K = np.flatnonzero(self.oracle_E == self.steps)
        for mode in np.unique(self._mode_E[pushed_K]):
            self._replan(MODES[mode], pushed_K[self._mode_E[pushed_K] == mode], obs_EO)

    def _replan(self, mode: str, env_K: np.ndarray, obs_EO: np.ndarray) -> None:
        self.replans += [(self.steps, int(env)) for env in env_K]
        super()._replan(mode, env_K, obs_EO)


class ElboTrigger(Trigger):
    """Fires when the ELBO of the steps since the plan has fallen further than it does in as many steps of calm episodes.

    Of a running episode's bound the plan's KL stays, and the actions are their own means: what falls is log p(s' | z), by half
    the squared standardised error of each step.
    """

    def __init__(self, config: GACConfig, num_envs: int, obs_dim: int, furthest_S: np.ndarray) -> None:
        super().__init__(config, num_envs, obs_dim)
        self._furthest_S = furthest_S  # (S,) float, nats: by steps since the plan; the last one from there on
        self.fall_E = np.zeros(num_envs)

    def begin(self, env_K: np.ndarray) -> None:
        super().begin(env_K)
        self.fall_E[env_K] = 0.0

    def fired(self, obs_EO: np.ndarray) -> np.ndarray:
        error_E = prediction_error(self.expected_EO - obs_EO, self.precision_O)
        self.fall_E += 0.5 * obs_EO.shape[1] * np.where(self.since_E > 0, error_E, 0.0)
        limit_E = self._furthest_S[np.minimum(self.since_E, len(self._furthest_S) - 1)]
        return np.flatnonzero((self.fall_E > limit_E) & (self.since_E >= REST))


class ElboPolicy(WatchedPolicy):
    """Plans again by an ElboTrigger; asked for nothing else it never does, and ``falls`` has what its limits are made from."""

    def __init__(self, config: GACConfig, obs_dim: int, action_dim: int, furthest_S: np.ndarray | None = None) -> None:
        self._furthest_S = np.array([np.inf]) if furthest_S is None else furthest_S
        super().__init__(config, obs_dim, action_dim)

    def reset(self, num_envs: int) -> None:
        super().reset(num_envs)
        self._trigger = ElboTrigger(self.config, num_envs, self.obs_dim, self._furthest_S)
        self.falls: list[np.ndarray] = []  # (E,) a step

    def _plan_again(self, obs_EO: np.ndarray) -> None:
        super()._plan_again(obs_EO)
        self.falls.append(self._trigger.fall_E.copy())  # type: ignore[attr-defined]


@dataclasses.dataclass(frozen=True)
class Alarms:
    """How replans met pushes."""

    found: float  # share of the pushes that were followed by a replan in time
    delay: float  # median steps until then; NaN when none was found
    false: float  # replans for each 1,000 steps that no push explains


def alarms(replans: list[tuple[int, int]], push_E: np.ndarray, steps: int, patience: int) -> Alarms:
    """``patience``: steps after its push within which a replan counts as an answer to it. ``push_E`` -1: none."""
    delays: dict[int, float] = {}
    false = 0
    for step, env in replans:
        delay = step - push_E[env]
        if push_E[env] == _NEVER or not 0 <= delay <= patience:
            false += 1
        else:
            delays.setdefault(env, float(delay))
    pushed = int((push_E != _NEVER).sum())
    found = len(delays) / pushed if pushed else float("nan")
    return Alarms(
        found, float(np.median(list(delays.values()))) if delays else float("nan"), 1e3 * false / (steps * len(push_E))
    )


def _stream(seed: int) -> Any:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(PUSHES,)))
