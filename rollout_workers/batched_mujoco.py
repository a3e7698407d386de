"""One gymnasium.vector.VectorEnv for E MuJoCo environments, whose observations and rewards are computed at once.

Letters: E environments, S gathered columns, G goal dim, O observation dim, A action dim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils.seeding import np_random
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from rollout_workers.env import EnvError, close_or_warn
from rollout_workers.env_ids import FIXED_GOAL_ENTRY_POINT, find_env
from rollout_workers.mujoco_stack import MujocoStack
from rollout_workers.tasks import (
    Ant,
    FixedGoalPointMaze,
    HalfCheetah,
    Hopper,
    Humanoid,
    InvertedDoublePendulum,
    InvertedPendulum,
    Outcome,
    PointMaze,
    Pusher,
    Reacher,
    Swimmer,
    Task,
    Walker2d,
)

_MUJOCO = "gymnasium.envs.mujoco."
_TASKS: dict[Any, Callable[[Any], Task]] = {  # by the entry point of Gymnasium's own environment
    _MUJOCO + "half_cheetah_v5:HalfCheetahEnv": HalfCheetah,
    _MUJOCO + "hopper_v5:HopperEnv": Hopper,
    _MUJOCO + "walker2d_v5:Walker2dEnv": Walker2d,
    _MUJOCO + "ant_v5:AntEnv": Ant,
    _MUJOCO + "humanoid_v5:HumanoidEnv": Humanoid,
    _MUJOCO + "swimmer_v5:SwimmerEnv": Swimmer,
    _MUJOCO + "inverted_pendulum_v5:InvertedPendulumEnv": InvertedPendulum,
    _MUJOCO + "inverted_double_pendulum_v5:InvertedDoublePendulumEnv": InvertedDoublePendulum,
    _MUJOCO + "reacher_v5:ReacherEnv": Reacher,
    _MUJOCO + "pusher_v5:PusherEnv": Pusher,
    "gymnasium_robotics.envs.maze.point_maze:PointMazeEnv": PointMaze,
    FIXED_GOAL_ENTRY_POINT: FixedGoalPointMaze,
}
_KNOWN_KWARGS: dict[Any, set[str]] = {  # the others: none
    PointMaze: {"maze_map", "reward_type"},
    FixedGoalPointMaze: {"maze_id", "goal_cell", "start_cells"},
}


def has_fast_path(env_id: str) -> bool:
    """Whether BatchedMujocoEnv serves this id: a known environment, registered with arguments that its task follows."""
    spec = find_env(env_id)
    task = _TASKS.get(spec.entry_point)
    if task is None or spec.additional_wrappers or spec.vector_entry_point is not None:
        return False
    return set(spec.kwargs) <= _KNOWN_KWARGS.get(task, set())


class BatchedMujocoEnv(VectorEnv):
    """E environments of one MuJoCo task.

    Equal to ``gymnasium.vector.SyncVectorEnv`` over the same id, seeds and actions: observations (E, O) and rewards
    (E,) float64, all three autoreset modes, ``options={"reset_mask": mask_E}``. Differs in that Dict observations come
    flat in the order of their sorted keys, and that ``infos`` hold ``final_obs`` alone.

    Attributes:
        unstable_E: bool (E,), the simulations that MuJoCo put back to their initial state in the last step because they had
            become non-finite; None: none. An attribute, because a key of ``infos`` may be anybody's.

    Args:
        env_id: an id for which ``has_fast_path``.
        num_envs: E.
        autoreset_mode: when an environment whose episode ended is reset.
    """

    def __init__(
        self, env_id: str, num_envs: int, autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP
    ) -> None:
        if not has_fast_path(env_id):
            raise EnvError(
                f"{env_id} has no batched path, expected a MuJoCo v5 task or PointMaze with default arguments: it "
                "was not made; use gymnasium.make_vec"
            )
        self.num_envs = num_envs
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {"autoreset_mode": self.autoreset_mode}
        self.spec = find_env(env_id)
        self._task, self.single_action_space, self.single_observation_space = _open_task(self.spec)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._max_steps = self.spec.max_episode_steps or np.iinfo(np.int64).max
        self._stack = MujocoStack(
            self._task.model,
            frame_skip=self._task.frame_skip,
            num_envs=num_envs,
            contact_forces=self._task.contact_forces,
            extra_sensors=self._task.extra_sensors,
        )
        self.unstable_E: np.ndarray | None = None
        self._rngs: list[np.random.Generator] | None = None  # None before the first reset
        self._now_ES = self._stack.gather()
        self._goal_EG = np.zeros((num_envs, self._task.goal_dim))
        self._elapsed_E = np.zeros(num_envs, dtype=np.int64)
        self._done_E = np.zeros(num_envs, dtype=bool)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Resets all environments, or those of ``options["reset_mask"]``; all observations (E, O) float64.

        ``seed`` is an int (environment i takes seed + i), a list with an int or None for each, or None: an environment
        without a seed goes on with its own random numbers.
        """
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed
        mask_E = (options or {}).get("reset_mask")
        if self._rngs is None:
            self._rngs = [np_random(None)[0] for _ in range(self.num_envs)]
        chosen = range(self.num_envs) if mask_E is None else np.flatnonzero(mask_E).tolist()
        for i in chosen:
            if seeds is not None and seeds[i] is not None:
                self._rngs[i] = np_random(seeds[i])[0]
        self._start(chosen)
        return self._task.observe(self._now_ES, self._goal_EG), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Takes actions (E, A) in the action box; obs (E, O) and reward (E,) float64, terminated, truncated, infos."""
        if self._rngs is None:
            raise EnvError("step before reset, expected reset first: nothing was stepped; call reset(seed=...)")
        if np.count_nonzero(self._done_E):
            return self._step_after_end(actions)
        outcome, infos = self._advance(actions, None), dict[str, Any]()
        obs_EO = self._task.observe(self._now_ES, self._goal_EG)
        self._elapsed_E += 1
        truncated_E = self._elapsed_E >= self._max_steps
        done_E = outcome.terminated_E | truncated_E
        if np.count_nonzero(done_E):
            if self.autoreset_mode is AutoresetMode.SAME_STEP:
                obs_EO = self._reset_same_step(obs_EO, done_E, infos)
            else:
                self._done_E = done_E
        return obs_EO, outcome.reward_E, outcome.terminated_E, truncated_E, infos

    def state(self) -> dict[str, np.ndarray]:
        """All that the following steps depend on."""
        if self._rngs is None:
            raise EnvError("state asked for before reset: there is none; call reset(seed=...) first")
        return {
            **self._stack.state(),
            "goal": self._goal_EG.copy(),
            "elapsed": self._elapsed_E.copy(),
            "done": self._done_E.copy(),
            "rng": np.stack([pack_generator(rng) for rng in self._rngs]),
        }

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Takes what ``state`` gave; the following steps are bit-identical with the same MuJoCo and machine."""
        for name, array in self._stack.state().items():
            seen = np.shape(state[name])
            if seen != array.shape:
                raise EnvError(
                    f"a state with {name} of shape {seen}, expected {array.shape}: nothing was changed; "
                    "give a state of the same task and the same number of environments"
                )
        self._stack.load_state(state)
        self._now_ES = self._stack.gather()
        self._goal_EG = np.array(state["goal"])
        self._elapsed_E = np.array(state["elapsed"])
        self._done_E = np.array(state["done"])
        self._rngs = [unpack_generator(row) for row in state["rng"]]

    def _advance(self, actions: np.ndarray, indices: list[int] | None) -> Outcome:
        before_ES = self._now_ES
        self.unstable_E = self._stack.step(self._task.control(self._stack, actions), indices)
        self._now_ES = self._stack.gather()
        outcome = self._task.compute_reward(before_ES, self._now_ES, self._goal_EG, actions)
        return outcome

    def _start(self, chosen: Any) -> None:
        assert self._rngs is not None
        for i in chosen:
            start = self._task.start(self._rngs[i])
            self._stack.start(i, start.qpos, start.qvel)
            self._goal_EG[i] = start.goal_G
            self._elapsed_E[i] = 0
            self._done_E[i] = False
        self._now_ES = self._stack.gather()

    def _reset_same_step(self, obs_EO: np.ndarray, done_E: np.ndarray, infos: dict[str, Any]) -> np.ndarray:
        ended = np.flatnonzero(done_E).tolist()
        final = np.full(self.num_envs, None, dtype=object)
        for i in ended:
            final[i] = obs_EO[i].copy()
        infos["final_obs"], infos["_final_obs"] = final, done_E
        self._start(ended)
        return self._task.observe(self._now_ES, self._goal_EG)

    def _step_after_end(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """A step with environments whose episode has ended: NEXT_STEP resets those and steps the others."""
        if self.autoreset_mode is not AutoresetMode.NEXT_STEP:
            raise EnvError(
                f"environments {np.flatnonzero(self._done_E).tolist()} have ended, expected a reset first (autoreset "
                'is disabled): nothing was stepped; call reset(options={"reset_mask": ended})'
            )
        fresh_E = self._done_E.copy()
        outcome = self._advance(actions, np.flatnonzero(~fresh_E).tolist())
        self._elapsed_E += 1
        self._start(np.flatnonzero(fresh_E).tolist())
        truncated_E = self._elapsed_E >= self._max_steps
        terminated_E = outcome.terminated_E & ~fresh_E
        self._done_E = terminated_E | truncated_E
        obs_EO = self._task.observe(self._now_ES, self._goal_EG)
        return obs_EO, np.where(fresh_E, 0.0, outcome.reward_E), terminated_E, truncated_E, {}


def _open_task(spec: gym.envs.registration.EnvSpec) -> tuple[Task, gym.spaces.Box, gym.spaces.Box]:
    """The task of one environment as Gymnasium builds it, and that environment's spaces, flat."""
    env = gym.make(spec, disable_env_checker=True)
    try:
        task = _TASKS[spec.entry_point](env.unwrapped)
        observation_space = gym.spaces.flatten_space(env.observation_space)
        assert isinstance(observation_space, gym.spaces.Box) and isinstance(env.action_space, gym.spaces.Box)
        return task, env.action_space, observation_space
    finally:
        close_or_warn(env, spec.id)


_MASK = (1 << 64) - 1


def pack_generator(rng: np.random.Generator) -> np.ndarray:
    """The state of a PCG64 generator, uint64 (6,): state and increment as two words each, and the spare 32 bits."""
    state = rng.bit_generator.state
    words = state["state"]
    parts = [words["state"] >> 64, words["state"] & _MASK, words["inc"] >> 64, words["inc"] & _MASK]
    return np.array([*parts, state["has_uint32"], state["uinteger"]], dtype=np.uint64)


def unpack_generator(words_6: np.ndarray) -> np.random.Generator:
    """The generator that ``pack_generator`` was given."""
    high, low, inc_high, inc_low, has_uint32, uinteger = (int(word) for word in words_6)
    bits = np.random.PCG64()
    bits.state = {
        "bit_generator": "PCG64",
        "state": {"state": high << 64 | low, "inc": inc_high << 64 | inc_low},
        "has_uint32": has_uint32,
        "uinteger": uinteger,
    }
    return np.random.Generator(bits)
