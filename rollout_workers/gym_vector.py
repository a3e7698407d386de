"""Any gymnasium.vector.VectorEnv, in any autoreset mode, as a BatchEnv.

Letters: E environments, O observation dim, A action dim.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from rollout_workers.action_log import ActionLog
from rollout_workers.batch_env import EnvError, StepResult, env_seeds, episode_seed
from rollout_workers.batched_mujoco import BatchedMujocoEnv
from rollout_workers.closing import close_or_warn
from rollout_workers.spaces import ActionBox, flatten_observation, flatten_observations, observation_dim


class VectorBatchEnv:
    """E environments behind the BatchEnv contract.

    DISABLED (what this project makes itself): this class resets what has ended, with seeds of its own, inside the step.
    SAME_STEP: the vector environment has done so; the last observation is taken from ``infos["final_obs"]``.
    NEXT_STEP: the step after an end resets and ignores the action: ``valid_E`` is False there, ``next_obs_EO`` equals
    ``obs_EO``, and nothing may be recorded. In the last two modes only the first episodes have seeds of ours, and the
    state cannot be saved.

    Args:
        vec: the gymnasium.vector.VectorEnv to wrap; its ``metadata["autoreset_mode"]`` says the mode.
        env_id: for messages.
        seed: the environments' seeds are ``env_seeds(seed, E)`` unless ``reset`` is given others.
    """

    def __init__(self, vec: Any, *, env_id: str, seed: int = 0) -> None:
        self._vec = vec
        self._mode = _autoreset_mode(vec, env_id)
        self._box = ActionBox(vec.single_action_space, env_id)
        self.env_id = env_id
        self.num_envs = vec.num_envs
        self.obs_dim = observation_dim(vec.single_observation_space, env_id)
        self.action_dim = self._box.dim
        self.action_low_A, self.action_high_A = self._box.low_A, self._box.high_A
        self.max_episode_steps = _max_episode_steps(vec)
        self._seeds = env_seeds(seed, vec.num_envs)
        self._episode_E = np.zeros(vec.num_envs, dtype=np.int64)
        self._obs_EO = np.zeros((vec.num_envs, self.obs_dim), dtype=np.float32)
        self._ended_E = np.zeros(vec.num_envs, dtype=bool)  # NEXT_STEP: those that the next step resets
        self._log = ActionLog(vec) if isinstance(vec, SyncVectorEnv) else None
        self._mujoco = vec if isinstance(vec, BatchedMujocoEnv) else None
        if isinstance(vec, SyncVectorEnv | AsyncVectorEnv):
            vec._add_info = functools.partial(_only_final_obs, vec.num_envs)  # type: ignore[method-assign]
        self._all_E = np.ones(vec.num_envs, dtype=bool)
        self.not_replayed: dict[int, str] = {}

    def reset(self, seeds: list[int] | None = None) -> np.ndarray:
        """See BatchEnv."""
        if seeds is not None:
            if len(seeds) != self.num_envs:
                raise EnvError(
                    f"{len(seeds)} seeds, expected {self.num_envs}: nothing was reset; give one for each environment"
                )
            self._seeds = [int(seed) for seed in seeds]
        self._episode_E[:] = 0
        self._ended_E = np.zeros(self.num_envs, dtype=bool)
        obs, _ = self._vec.reset(seed=list(self._seeds))
        if self._log is not None:
            self._log.clear(range(self.num_envs))
        self._obs_EO = flatten_observations(obs, self.num_envs)
        return self._obs_EO.copy()

    def step(self, actions_EA: np.ndarray) -> StepResult:
        """See BatchEnv."""
        boxed = self._box.rescale(actions_EA)
        if self._log is not None:
            self._log.append(boxed)
        obs, reward_E, terminated_E, truncated_E, infos = self._vec.step(boxed)
        obs_EO = next_obs_EO = flatten_observations(obs, self.num_envs)
        if self._mujoco is not None and self._mujoco.unstable_E is not None:
            next_obs_EO[self._mujoco.unstable_E] = (
                np.nan
            )  # it was started over: what it shows did not follow the action
        valid_E = self._all_E
        done_E = terminated_E | truncated_E
        if self._mode is AutoresetMode.NEXT_STEP:
            valid_E, self._ended_E = ~self._ended_E, done_E
        elif np.count_nonzero(done_E):
            if self._mode is AutoresetMode.DISABLED:
                obs_EO = self._restart(done_E, obs_EO)
            else:
                next_obs_EO = self._with_final(obs_EO, done_E, infos)
        self._obs_EO = obs_EO
        reward_E = np.asarray(reward_E, dtype=np.float64)
        return StepResult(obs_EO.copy(), next_obs_EO, reward_E, terminated_E, truncated_E, valid_E.copy())

    def cut(self, env_indices: list[int]) -> np.ndarray:
        """See BatchEnv; a vector environment that resets by itself is reset as a whole."""
        mask_E = np.zeros(self.num_envs, dtype=bool)
        mask_E[list(env_indices)] = True
        if not mask_E.any():
            return self._obs_EO.copy()
        if self._mode is not AutoresetMode.DISABLED:
            raise self._unsupported("reset some of its environments only")
        self._obs_EO = self._restart(mask_E, self._obs_EO)
        return self._obs_EO.copy()

    def state(self) -> dict[str, np.ndarray]:
        """See BatchEnv."""
        common: dict[str, np.ndarray] = {
            "obs": self._obs_EO.copy(),
            "seeds": np.array(self._seeds, dtype=np.int64),
            "episode": self._episode_E.copy(),
        }
        if self._mujoco is not None and self._mode is AutoresetMode.DISABLED:
            return common | self._mujoco.state()
        if self._log is None or self._mode is not AutoresetMode.DISABLED:
            raise self._unsupported("give its state")
        return common | self._log.state()

    def load_state(self, state: dict[str, np.ndarray]) -> np.ndarray:
        """See BatchEnv. Environments other than batched MuJoCo are brought there by replaying the episode's actions."""
        if state["obs"].shape != self._obs_EO.shape:
            raise EnvError(
                f"a state with observations {state['obs'].shape}, expected {self._obs_EO.shape}: nothing was changed; "
                "give a state of the same environment and the same number of them"
            )
        self._seeds = [int(seed) for seed in state["seeds"]]
        self._episode_E = np.array(state["episode"])
        self._obs_EO = np.array(state["obs"])
        self.not_replayed = {}
        if self._mujoco is not None:
            self._mujoco.load_state(state)
        elif self._log is not None:
            self._replay(self._log, state)
        else:
            raise self._unsupported("take a state")
        return self._obs_EO.copy()

    def close(self) -> None:
        """See BatchEnv."""
        close_or_warn(self._vec, self.env_id)

    def _episode_seed(self, index: int) -> int:
        return episode_seed(self._seeds[index], int(self._episode_E[index]))

    def _replay(self, log: ActionLog, state: dict[str, np.ndarray]) -> None:
        """Replays the running episodes; those that do not arrive at the saved observations are ended."""
        first, _ = self._vec.reset(seed=[self._episode_seed(i) for i in range(self.num_envs)])
        first_EO = flatten_observations(first, self.num_envs)
        for i, (obs, problem) in enumerate(log.replay(state)):
            obs_O = first_EO[i] if obs is None else flatten_observation(obs)
            if problem or not np.array_equal(obs_O, self._obs_EO[i], equal_nan=True):
                self.not_replayed[i] = problem or f"step {int(state['steps'][i])} arrived at another observation"
        if self.not_replayed:
            mask_E = np.zeros(self.num_envs, dtype=bool)
            mask_E[list(self.not_replayed)] = True
            self._obs_EO = self._restart(mask_E, self._obs_EO)

    def _restart(self, mask_E: np.ndarray, obs_EO: np.ndarray) -> np.ndarray:
        """Resets the environments of the mask with their next episodes' seeds; ``obs_EO`` with their first observations."""
        chosen = np.flatnonzero(mask_E).tolist()
        seeds: list[int | None] = [None] * self.num_envs
        for i in chosen:
            self._episode_E[i] += 1
            seeds[i] = self._episode_seed(i)
        obs, _ = self._vec.reset(seed=seeds, options={"reset_mask": mask_E})
        if self._log is not None:
            self._log.clear(chosen)
        return np.where(mask_E[:, None], flatten_observations(obs, self.num_envs), obs_EO)

    def _with_final(self, obs_EO: np.ndarray, done_E: np.ndarray, infos: dict[str, Any]) -> np.ndarray:
        if "final_obs" not in infos:
            raise EnvError(
                f"{self.env_id} resets in the same step but gives no infos['final_obs'] (it has {sorted(infos)}), "
                "expected every ended episode's last observation there: transitions would end in another episode's "
                "state; add it, or register the environment without its vector entry point"
            )
        next_obs_EO = obs_EO.copy()
        for i in np.flatnonzero(done_E):
            next_obs_EO[i] = flatten_observation(infos["final_obs"][i])
        return next_obs_EO

    def _unsupported(self, what: str) -> EnvError:
        return EnvError(
            f"{self.env_id} comes as a vector environment with autoreset mode {self._mode.value}, expected "
            f"{AutoresetMode.DISABLED.value} to {what}: this was not done; register it without its vector entry point"
        )


def _only_final_obs(num_envs: int, infos: dict[str, Any], info: dict[str, Any], index: int) -> dict[str, Any]:
    """Replaces ``VectorEnv._add_info``: other infos are read by nobody here, and not all of them can be merged."""
    if "final_obs" in info:
        infos.setdefault("final_obs", np.full(num_envs, None, dtype=object))[index] = info["final_obs"]
    return infos


def _autoreset_mode(vec: VectorEnv, env_id: str) -> AutoresetMode:
    mode = vec.metadata.get("autoreset_mode")
    try:
        return AutoresetMode(mode)
    except ValueError as error:
        raise EnvError(
            f"{env_id} comes as a vector environment whose metadata['autoreset_mode'] is {mode!r}, expected one of "
            f"{[known.value for known in AutoresetMode]}: its last observations cannot be told from first ones; set it"
        ) from error


def _max_episode_steps(vec: VectorEnv) -> int | None:
    spec = vec.envs[0].spec if isinstance(vec, SyncVectorEnv) else vec.spec
    return None if spec is None else spec.max_episode_steps
