"""Environments by their Gymnasium id: what they are, whether they can be trained on, and how to make E of them."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from rollout_workers.batched_mujoco import BatchedMujocoEnv, has_fast_path
from rollout_workers.env import (
    ActionBox,
    BatchEnv,
    EnvError,
    StepResult,
    close_or_warn,
    env_seeds,
    episode_seed,
    exit_error,
    observation_dim,
    thread_note,
    without_exit,
)
from rollout_workers.env_ids import find_env
from rollout_workers.gym_vector import SyncEnvs, VectorBatchEnv
from rollout_workers.maze import maze_of
from rollout_workers.single_vectors import SingleVectors, takes_own_seeds

__all__ = [
    "BatchEnv",
    "EnvError",
    "EnvSpec",
    "StepResult",
    "env_seeds",
    "env_spec",
    "episode_seed",
    "make_batch_env",
    "make_env",
    "make_seeded_env",
]
INSTALL = "; install what it asks for, correct its arguments, and try gymnasium.make by itself"


def _quiet_mujoco() -> None:
    """No MUJOCO_LOG.TXT in the working directory, no warnings of Gymnasium's own models across the terminal.

    A simulation that blows up is not missed: its rows are refused and counted.
    """
    settings = mujoco.MjLogConfig.get()
    settings.logto_file = settings.logto_console = False
    mujoco.MjLogConfig.set(settings)


_quiet_mujoco()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EnvSpec:
    """What the rest of the system has to know of an environment before any is running."""

    env_id: str
    obs_dim: int
    action_dim: int
    low: np.ndarray  # (A,) float64, the environment's own action box
    high: np.ndarray
    max_episode_steps: int | None  # steps after which an episode is truncated; None: no limit
    fast: bool  # whether the batched MuJoCo path serves it
    vector: bool = False  # else, whether a vector entry point of its own does


def env_spec(env_id: str) -> EnvSpec:
    """Checks that ``env_id`` can be trained on, by making one, and says what it is.

    Raises EnvError for an unknown id (with the nearest ones), an environment that does not start, actions that
    are not a bounded Box of floats, observations that are not a Box or a Dict of Boxes.
    """
    env = make_env(env_id)
    try:
        with without_exit(env_id):
            action_space, observation_space = env.action_space, env.observation_space
        box = ActionBox(action_space, env_id)
        obs_dim, registered = observation_dim(observation_space, env_id), find_env(env_id)
        if not obs_dim:
            raise EnvError(
                f"{env_id} has an observation of no numbers, {observation_space}, expected at least one: there is nothing "
                "to act on; give the environment an observation"
            )
        return EnvSpec(
            env_id=env_id,
            obs_dim=obs_dim,
            action_dim=box.dim,
            low=box.low_A,
            high=box.high_A,
            max_episode_steps=registered.max_episode_steps,
            fast=has_fast_path(env_id),
            vector=registered.vector_entry_point is not None and not has_fast_path(env_id),
        )
    finally:
        close_or_warn(env, env_id)


def make_env(env_id: str, render_mode: str | None = None) -> gym.Env:
    """One environment as Gymnasium makes it, time limit included; EnvError when it cannot be made."""
    spec = find_env(env_id)
    if spec.entry_point is None:
        raise EnvError(
            f"{env_id} is registered with a vector entry point alone, expected an entry_point too: spaces and pictures are those of one "
            "environment, so nothing can be trained; give gymnasium.register both"
        )
    rendering: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}  # not all take the word
    try:
        return gym.make(spec, disable_env_checker=True, **rendering)
    except SystemExit as error:
        raise exit_error(env_id, error) from error
    except Exception as error:
        if render_mode is not None and "render_mode" in str(error):
            raise EnvError(
                f"{env_id} takes no render_mode ({type(error).__name__}: {error}), expected to be made with render_mode={render_mode!r}: it "
                "cannot be drawn; give its __init__ that argument, and let render() return a picture (height, width, 3)"
            ) from error
        raise EnvError(
            f"{env_id} is registered but did not start ({type(error).__name__}: {error}), expected gymnasium.make to "
            f"build it: no worker can run it{thread_note(error) or INSTALL}"
        ) from error


def make_batch_env(env_id: str, num_envs: int, seed: int, fast: bool = True) -> BatchEnv:
    """``num_envs`` environments behind one face, not yet reset.

    The standard MuJoCo v5 tasks and PointMaze take the batched path unless ``fast`` is False; an id with a
    vector entry point of its own is made through that; everything else is stepped in turn by SyncEnvs.
    """
    return _vector_batch(env_id, num_envs, seed, fast)


def make_seeded_env(env_id: str, num_envs: int, seed: int, fast: bool = True) -> BatchEnv:
    """As ``make_batch_env``, for episodes that are to start from seeds of their own, whatever runs beside them.

    A vector entry point that takes one int, or mixes the seeds of a list, is called once for each environment.
    """
    env = _vector_batch(env_id, num_envs, seed, fast)
    if num_envs == 1 or not _has_vector(env_id, fast) or takes_own_seeds(env, seed):
        return env
    env.close()
    return SingleVectors([_vector_batch(env_id, 1, one, fast) for one in env_seeds(seed, num_envs)])


def _vector_batch(env_id: str, num_envs: int, seed: int, fast: bool) -> VectorBatchEnv:
    if num_envs < 1:
        raise EnvError(f"{num_envs} environments asked for, expected 1 or more: there is nothing to step; ask for more")
    with without_exit(env_id):
        return VectorBatchEnv(_vector_env(env_id, num_envs, fast), env_id=env_id, seed=seed)


def _has_vector(env_id: str, fast: bool) -> bool:
    """Whether a vector entry point of the environment's own makes it."""
    return find_env(env_id).vector_entry_point is not None and not (fast and has_fast_path(env_id))


def _vector_env(env_id: str, num_envs: int, fast: bool) -> VectorEnv:
    if fast and has_fast_path(env_id):
        return BatchedMujocoEnv(env_id, num_envs, autoreset_mode=AutoresetMode.DISABLED)
    if _has_vector(env_id, fast):
        try:
            return gym.make_vec(find_env(env_id), num_envs=num_envs, vectorization_mode="vector_entry_point")
        except Exception as error:
            raise EnvError(
                f"{env_id} is registered with a vector entry point that did not start ({type(error).__name__}: {error}), expected "
                "gymnasium.make_vec to build it, which passes num_envs and max_episode_steps: no worker can run it; correct it, or "
                f"register the environment without it{thread_note(error)}"
            ) from error
    return SyncEnvs([functools.partial(make_env, env_id)] * num_envs, env_id)


class WrappedEnv:
    """A BatchEnv that does what ``inner`` does; a subclass overrides what it does otherwise."""

    def __init__(self, inner: BatchEnv) -> None:
        self._inner = inner
        self.num_envs, self.obs_dim, self.action_dim = inner.num_envs, inner.obs_dim, inner.action_dim
        self.action_low_A, self.action_high_A = inner.action_low_A, inner.action_high_A
        self.max_episode_steps = inner.max_episode_steps

    def reset(self, seeds: list[int] | None = None) -> np.ndarray:
        """See BatchEnv."""
        return self._inner.reset(seeds)

    def step(self, actions_EA: np.ndarray) -> StepResult:
        """See BatchEnv."""
        return self._inner.step(actions_EA)

    def force_reset(self, env_indices: list[int]) -> np.ndarray:
        """See BatchEnv."""
        return self._inner.force_reset(env_indices)

    def state(self) -> dict[str, np.ndarray]:
        """See BatchEnv."""
        return self._inner.state()

    def load_state(self, state: dict[str, np.ndarray]) -> np.ndarray:
        """See BatchEnv."""
        return self._inner.load_state(state)

    @property
    def not_replayed(self) -> dict[int, str]:
        """See BatchEnv."""
        return self._inner.not_replayed

    def close(self) -> None:
        """See BatchEnv."""
        self._inner.close()


_TIME = 1  # columns before the positions in MuJoCo's state


class GivenStarts(WrappedEnv):
    """E point mazes with one fixed goal as a BatchEnv; the first episode of environment e begins at rest at ``start_E2[e]``.

    Later episodes begin where the environment draws them.

    Args:
        env_id: FixedGoal id.
        start_E2: (x, y) of every environment's start, m.

    Raises EnvError for an environment of another kind.
    """

    def __init__(self, env_id: str, start_E2: np.ndarray) -> None:
        maze = maze_of(env_id)
        if maze is None or maze.goal_xy is None:
            raise EnvError(
                f"{env_id} was given starts, expected a maze with one goal: its state holds no position that is known, so nothing "
                "was made; leave the starts out"
            )
        self._start_E2 = np.array(start_E2, dtype=np.float64)
        super().__init__(make_batch_env(env_id, len(self._start_E2), 0))

    def reset(self, seeds: list[int] | None = None) -> np.ndarray:
        """See BatchEnv; at the given starts."""
        self._inner.reset(seeds)
        state = self._inner.state()
        state["physics"][:, _TIME : _TIME + 2] = self._start_E2
        state["obs"][:, :2] = self._start_E2
        return self._inner.load_state(state)
