"""Any gymnasium.vector.VectorEnv, in any autoreset mode, as a BatchEnv.

Letters: E environments, O observation dim, A action dim.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from algorithms import progress
from rollout_workers.action_log import ActionLog
from rollout_workers.batched_mujoco import BatchedMujocoEnv
from rollout_workers.env import (
    ActionBox,
    EnvError,
    StepResult,
    close_or_warn,
    env_seeds,
    episode_seed,
    exit_error,
    flatten_checked,
    flatten_observation,
    flatten_observations,
    observation_dim,
    raised_error,
)

P = ParamSpec("P")
R = TypeVar("R")


def _runs_env_code(method: Callable[Concatenate[VectorBatchEnv, P], R]) -> Callable[Concatenate[VectorBatchEnv, P], R]:
    """A method of VectorBatchEnv in which the environments' own code runs."""

    @functools.wraps(method)
    def guarded(self: VectorBatchEnv, /, *args: P.args, **words: P.kwargs) -> R:
        try:
            return method(self, *args, **words)
        except SystemExit as error:
            raise exit_error(self.env_id, error) from error
        except EnvError:
            raise
        except Exception as error:
            raise raised_error(self.env_id, error) from error

    return guarded


class VectorBatchEnv:
    """E environments behind the BatchEnv contract.

    DISABLED (what this project makes itself): this class resets what has ended, with seeds of its own, inside the step.
    SAME_STEP: the vector environment has done so; the last observation is taken from ``infos["final_obs"]``.
    NEXT_STEP: the step after an end resets and ignores the action: ``valid_E`` is False there, ``next_obs_EO`` equals
    ``obs_EO``, and nothing may be recorded. In the last two modes only the first episodes have seeds of ours, and an episode
    that is to end now is left out to its own end.

    A user's vector environment cannot give its state: ``load_state`` begins new episodes and says so. One that takes no list
    of seeds is given one int, which follows from the list.

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
        self._left_E = np.zeros(vec.num_envs, dtype=bool)  # those whose episode was given up before its own end
        self._begun_E = np.zeros(vec.num_envs, dtype=bool)  # those that the last step itself reset
        self._log = ActionLog(vec) if isinstance(vec, SyncVectorEnv) else None
        self._mujoco = vec if isinstance(vec, BatchedMujocoEnv) else None
        if isinstance(vec, SyncVectorEnv | AsyncVectorEnv):
            vec._add_info = functools.partial(_only_final_obs, vec.num_envs)  # type: ignore[method-assign]
        known = isinstance(vec, SyncVectorEnv | AsyncVectorEnv | BatchedMujocoEnv)
        self.one_seed = False if known else None  # whether it takes one int instead of a list; None: nobody knows yet
        self._all_E = np.ones(vec.num_envs, dtype=bool)
        self.not_replayed: dict[int, str] = {}

    @_runs_env_code
    def reset(self, seeds: list[int] | None = None) -> np.ndarray:
        """See BatchEnv."""
        if seeds is not None:
            if len(seeds) != self.num_envs:
                raise EnvError(
                    f"{len(seeds)} seeds, expected {self.num_envs}: nothing was reset; give one for each environment"
                )
            self._seeds = [int(seed) for seed in seeds]
        self._episode_E[:] = 0
        self._begin(list(self._seeds))
        if self._log is not None:
            self._log.clear(range(self.num_envs))
        return self._obs_EO.copy()

    @_runs_env_code
    def step(self, actions_EA: np.ndarray) -> StepResult:
        """See BatchEnv."""
        boxed = self._box.rescale(actions_EA)
        if self._log is not None:
            self._log.append(boxed)
        obs, reward, terminated, truncated, infos = self._vec.step(boxed)
        obs_EO = next_obs_EO = self._flat(obs)
        reward_E = self._column("reward", reward, np.float64)
        terminated_E, truncated_E = self._ends("terminated", terminated), self._ends("truncated", truncated)
        if self._mujoco is not None and self._mujoco.unstable_E is not None:
            next_obs_EO[self._mujoco.unstable_E] = (
                np.nan
            )  # it was started over: what it shows did not follow the action
        valid_E = self._all_E
        done_E = terminated_E | truncated_E
        if self._mode is AutoresetMode.NEXT_STEP:
            valid_E, self._begun_E, self._ended_E = ~self._ended_E, self._ended_E, done_E
        elif self._mode is AutoresetMode.SAME_STEP:
            self._begun_E = done_E
            if np.count_nonzero(done_E):
                next_obs_EO = self._with_final(obs_EO, done_E, infos)
        elif np.count_nonzero(done_E):
            obs_EO = self._restart(done_E, obs_EO)
        self._obs_EO = obs_EO
        result = StepResult(obs_EO.copy(), next_obs_EO, reward_E, terminated_E, truncated_E, valid_E.copy())
        return self._leave_out(result) if np.count_nonzero(self._left_E) else result

    def _leave_out(self, step: StepResult) -> StepResult:
        """``step`` without the rows of the episodes that were given up, until the environment has begun another one."""
        left_E = self._left_E & step.valid_E
        self._left_E = self._left_E & ~self._begun_E
        step.next_obs_EO[left_E] = 0.0
        step.reward_E[left_E] = 0.0
        for obs_EO in (step.obs_EO, self._obs_EO):
            obs_EO[self._left_E] = 0.0
        return step._replace(valid_E=step.valid_E & ~left_E, left_E=left_E)

    @_runs_env_code
    def force_reset(self, env_indices: list[int]) -> np.ndarray:
        """See BatchEnv."""
        mask_E = np.zeros(self.num_envs, dtype=bool)
        mask_E[list(env_indices)] = True
        if not mask_E.any():
            return self._obs_EO.copy()
        if self._mode is AutoresetMode.DISABLED:
            self._obs_EO = self._restart(mask_E, self._obs_EO)
        else:  # what has just begun another episode has no other one to leave out
            self._left_E = self._left_E | (mask_E & ~(self._begun_E & np.isfinite(self._obs_EO).all(axis=1)))
            self._obs_EO[self._left_E] = 0.0
        return self._obs_EO.copy()

    @_runs_env_code
    def state(self) -> dict[str, np.ndarray]:
        """See BatchEnv."""
        common: dict[str, np.ndarray] = {
            "obs": self._obs_EO.copy(),
            "seeds": np.array(self._seeds, dtype=np.int64),
            "episode": self._episode_E.copy(),
        }
        if self._mujoco is not None and self._mode is AutoresetMode.DISABLED:
            return common | self._mujoco.state()
        return common if self._log is None or self._mode is not AutoresetMode.DISABLED else common | self._log.state()

    @_runs_env_code
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
        elif self._log is not None and self._mode is AutoresetMode.DISABLED:
            self._replay(self._log, state)
        else:
            self._begin_anew()
        return self._obs_EO.copy()

    def close(self) -> None:
        """See BatchEnv."""
        close_or_warn(self._vec, self.env_id)

    def _episode_seed(self, index: int) -> int:
        return episode_seed(self._seeds[index], int(self._episode_E[index]))

    def _replay(self, log: ActionLog, state: dict[str, np.ndarray]) -> None:
        """Replays the running episodes; those that do not arrive at the saved observations are ended."""
        first_EO = self._flat(self._reset([self._episode_seed(i) for i in range(self.num_envs)]))
        for i, (obs, problem) in enumerate(log.replay(state)):
            obs_O = first_EO[i] if obs is None else flatten_observation(obs)
            if problem or not np.array_equal(obs_O, self._obs_EO[i], equal_nan=True):
                self.not_replayed[i] = problem or f"step {int(state['steps'][i])} arrived at another observation"
        if self.not_replayed:
            mask_E = np.zeros(self.num_envs, dtype=bool)
            mask_E[list(self.not_replayed)] = True
            self._obs_EO = self._restart(mask_E, self._obs_EO)

    def _begin_anew(self) -> None:
        """New episodes everywhere, with seeds that no earlier load had: there is no way back to the saved ones."""
        self._episode_E += 1
        self._begin([self._episode_seed(i) for i in range(self.num_envs)])
        self.not_replayed = dict.fromkeys(
            range(self.num_envs), "it comes as a vector environment, which gives no state"
        )

    def _begin(self, seeds: Sequence[int]) -> None:
        """Resets everything."""
        self._ended_E, self._left_E, self._begun_E = np.zeros((3, self.num_envs), dtype=bool)
        self._obs_EO = self._flat(self._reset(seeds))

    def _flat(self, obs: Any) -> np.ndarray:
        """All observations as float32 (E, O)."""
        obs_EO = flatten_observations(obs, self.num_envs)
        if obs_EO.shape[1] != self.obs_dim:
            raise EnvError(
                f"{self.env_id} returned observations of {obs_EO.size:,} numbers for {self.num_envs} environments, expected "
                f"{self.obs_dim} for each as its space says: they cannot be stored and the worker stops; return that shape from reset() "
                "and step(), or correct the space"
            )
        return obs_EO

    def _column(self, name: str, value: Any, dtype: Any) -> np.ndarray:
        """One number for each environment, (E,); of shape (E,) or (E, 1)."""
        try:
            return np.array(value, dtype=dtype).reshape(self.num_envs)
        except (TypeError, ValueError, OverflowError) as error:
            raise EnvError(
                f"{self.env_id} returned {name}={str(value)[:80]!r} of shape {np.shape(value)}, expected one number for each of "
                f"{self.num_envs} environments: the step cannot be recorded and the worker stops; return that from step()"
            ) from error

    def _ends(self, name: str, value: Any) -> np.ndarray:
        """Which episodes have ended, bool (E,)."""
        if isinstance(value, np.ndarray) and value.dtype == bool and value.shape == (self.num_envs,):
            return value.copy()
        flag_E = self._column(name, value, np.float64)
        if not np.isin(flag_E, (0, 1)).all():
            raise EnvError(
                f"{self.env_id} returned {name}={str(value)[:80]!r}, expected True or False for each environment: whether its episode has "
                "ended is unknown and the worker stops; return bools from step()"
            )
        return flag_E.astype(bool)

    def _reset(self, seeds: Sequence[int | None], **options: Any) -> Any:
        """The observations after a reset with these seeds, or with one int that follows from them."""
        if self.one_seed is None:
            try:
                obs, _ = self._vec.reset(seed=list(seeds), **options)
                self.one_seed = False
                return obs
            except Exception:
                self.one_seed = True
        given = [seed for seed in seeds if seed is not None]
        one = given[0] if len(given) == 1 else int(np.random.SeedSequence(given).generate_state(1)[0])
        return self._vec.reset(seed=one if self.one_seed else list(seeds), **options)[0]

    def _restart(self, mask_E: np.ndarray, obs_EO: np.ndarray) -> np.ndarray:
        """Resets the environments of the mask with their next episodes' seeds; ``obs_EO`` with their first observations."""
        chosen = np.flatnonzero(mask_E).tolist()
        seeds: list[int | None] = [None] * self.num_envs
        for i in chosen:
            self._episode_E[i] += 1
            seeds[i] = self._episode_seed(i)
        obs = self._reset(seeds, options={"reset_mask": mask_E})
        if self._log is not None:
            self._log.clear(chosen)
        return np.where(mask_E[:, None], self._flat(obs), obs_EO)

    def _with_final(self, obs_EO: np.ndarray, done_E: np.ndarray, infos: dict[str, Any]) -> np.ndarray:
        if "final_obs" not in infos:
            raise EnvError(
                f"{self.env_id} resets in the same step but gives no infos['final_obs'] (it has {sorted(infos)}), "
                "expected every ended episode's last observation there: transitions would end in another episode's "
                "state; add it, or register the environment without its vector entry point"
            )
        next_obs_EO, final = obs_EO.copy(), infos["final_obs"]
        if isinstance(final, Mapping):  # a batch of each part
            next_obs_EO[done_E] = self._flat(final)[done_E]
        else:
            for i in np.flatnonzero(done_E):
                next_obs_EO[i] = flatten_observation(final[i])
        return next_obs_EO


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
            f"{[known.value for known in AutoresetMode]}: last observations cannot be distinguished from first ones; set it"
        ) from error


def _max_episode_steps(vec: VectorEnv) -> int | None:
    spec = vec.envs[0].spec if isinstance(vec, SyncVectorEnv) else vec.spec
    return None if spec is None else spec.max_episode_steps


class SyncEnvs(SyncVectorEnv):
    """SyncVectorEnv with autoreset disabled, for what environments really return.

    Infos are ignored: merging them fails on ragged arrays, mixed types and None, and nobody reads them. Observations
    (E, O) are float32 and flat, in the order of sorted keys, checked against the space but not cast to its dtype. A
    reward of one element is that number; None is NaN. Ends of episodes are bools, 0 or 1. Every reset passes
    ``options=None``. ``close`` closes every
    environment and warns of those that raise.

    Args:
        makers: each makes one environment.
        env_id: for messages.
    """

    def __init__(self, makers: Sequence[Callable[[], gym.Env]], env_id: str) -> None:
        self._env_id = env_id
        self.envs = []  # until they are made: a maker that raises leaves an object that is closed
        super().__init__(makers, copy=False, autoreset_mode=AutoresetMode.DISABLED)
        self._obs_E: list[np.ndarray] = [np.empty(0, np.float32)] * self.num_envs

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Resets all environments, or those of ``options["reset_mask"]``; observations (E, O) of all, and no infos."""
        mask_E = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        for i in np.flatnonzero(mask_E):
            obs, _ = self.envs[i].reset(seed=None if seed is None else seed[i], options=None)
            self._obs_E[i] = flatten_checked(self.single_observation_space, obs, self._env_id)
            progress.mark()
        return np.stack(self._obs_E), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Takes actions (E, *shape), which the environments may change; see the class for what comes back."""
        for i, env in enumerate(self.envs):
            obs, reward, terminated, truncated, _ = env.step(actions[i])
            self._terminations[i] = terminated if type(terminated) is bool else self._flag("terminated", terminated)
            self._truncations[i] = truncated if type(truncated) is bool else self._flag("truncated", truncated)
            self._obs_E[i] = flatten_checked(self.single_observation_space, obs, self._env_id)
            self._rewards[i] = reward if type(reward) is float else self._number(reward)
            progress.mark()
        return np.stack(self._obs_E), self._rewards.copy(), self._terminations.copy(), self._truncations.copy(), {}

    def close_extras(self, **kwargs: Any) -> None:
        for env in self.envs:
            close_or_warn(env, self._env_id)

    def _flag(self, name: str, value: Any) -> bool:
        array = np.asarray(value)
        if array.size == 1 and array.dtype.kind in "biuf" and array.item() in (0, 1):
            return bool(array.item())
        raise EnvError(
            f"{self._env_id} returned {name}={str(value)[:80]!r} of type {type(value).__name__}, expected True or False: whether the "
            "episode has ended is unknown and the worker stops; return bools from step()"
        )

    def _number(self, reward: Any) -> float:
        if reward is None:
            return np.nan
        try:
            if np.iscomplexobj(reward):
                raise TypeError("complex")
            return float(np.asarray(reward).reshape(()))
        except (TypeError, ValueError, OverflowError) as error:
            raise EnvError(
                f"{self._env_id} returned the reward {str(reward)[:80]!r} of type {type(reward).__name__}, expected one real "
                "number: the step cannot be recorded and the worker stops; return a float from step()"
            ) from error
