"""E environments of Gymnasium, stepped one after the other for a caller that resets them itself and reads no infos.

Letters: E environments, O observation dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rollout_workers.batch_env import EnvError
from rollout_workers.closing import close_or_warn
from rollout_workers.spaces import flatten_checked


class SyncEnvs(SyncVectorEnv):
    """SyncVectorEnv with autoreset disabled, for what environments really return.

    Infos are ignored: merging them fails on ragged arrays, mixed types and None, and nobody reads them. Observations
    (E, O) are float32 and flat, in the order of sorted keys, checked against the space but not cast to its dtype. A
    reward of one element is that number; None is NaN. Every reset passes ``options=None``. ``close`` closes every
    environment and warns of those that raise.

    Args:
        makers: each makes one environment.
        env_id: for messages.
    """

    def __init__(self, makers: Sequence[Callable[[], gym.Env]], env_id: str) -> None:
        super().__init__(makers, copy=False, autoreset_mode=AutoresetMode.DISABLED)
        self._env_id = env_id
        self._obs_E: list[np.ndarray] = [np.empty(0, np.float32)] * self.num_envs

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Resets all environments, or those of ``options["reset_mask"]``; observations (E, O) of all, and no infos."""
        mask_E = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        for i in np.flatnonzero(mask_E):
            obs, _ = self.envs[i].reset(seed=None if seed is None else seed[i], options=None)
            self._obs_E[i] = flatten_checked(self.single_observation_space, obs, self._env_id)
        return np.stack(self._obs_E), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Takes actions (E, *shape), which the environments may change; see the class for what comes back."""
        for i, env in enumerate(self.envs):
            obs, reward, self._terminations[i], self._truncations[i], _ = env.step(actions[i])
            self._obs_E[i] = flatten_checked(self.single_observation_space, obs, self._env_id)
            self._rewards[i] = reward if type(reward) is float else self._number(reward)
        return np.stack(self._obs_E), self._rewards.copy(), self._terminations.copy(), self._truncations.copy(), {}

    def close_extras(self, **kwargs: Any) -> None:
        for env in self.envs:
            close_or_warn(env, self._env_id)

    def _number(self, reward: Any) -> float:
        if reward is None:
            return np.nan
        try:
            return float(np.asarray(reward).reshape(()))
        except (TypeError, ValueError, OverflowError) as error:
            raise EnvError(
                f"{self._env_id} returned the reward {str(reward)[:80]!r} of type {type(reward).__name__}, expected one real "
                "number: the step cannot be recorded and the worker stops; return a float from step()"
            ) from error
