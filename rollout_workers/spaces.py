"""Gymnasium spaces as flat float vectors: which can be trained on, and the one mapping between the two.

Letters: E environments, O observation dim, A action dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box

from replay.stored_episode import UNBOUNDED
from rollout_workers.batch_env import EnvError


class ActionBox:
    """The one rescale from [-1, 1] to an environment's action box.

    Raises EnvError unless ``space`` is a bounded Box of floats; ``env_id`` is for the message alone.
    """

    def __init__(self, space: gym.Space, env_id: str) -> None:
        self._check(space, env_id)
        assert isinstance(space, Box)
        self.low_A = space.low.astype(np.float64).ravel()
        self.high_A = space.high.astype(np.float64).ravel()
        self._shape = space.shape
        self._low_A, self._high_A = space.low.ravel(), space.high.ravel()
        self._middle_A = ((self.high_A + self.low_A) / 2).astype(space.dtype)
        self._half_A = ((self.high_A - self.low_A) / 2).astype(space.dtype)
        ends_2A = self._middle_A - self._half_A, self._middle_A + self._half_A
        self._exact = np.array_equal(ends_2A, (self._low_A, self._high_A))  # else rounding misses a bound

    @property
    def dim(self) -> int:
        """A, the number of action coordinates."""
        return int(self.low_A.size)

    def rescale(self, actions_EA: np.ndarray) -> np.ndarray:
        """Actions (E, A) in [-1, 1] as (E, *space.shape) in the box and of its dtype.

        -1 is the lower bound, 0 the middle, 1 the upper bound. The result never leaves the box, neither by rounding nor
        by an input outside [-1, 1]; NaN stays NaN.
        """
        if actions_EA.ndim != 2 or actions_EA.shape[1] != self.dim:
            raise EnvError(
                f"actions of shape {actions_EA.shape}, expected (environments, {self.dim}): nothing was stepped; "
                "give one row of action coordinates for each environment"
            )
        scaled_EA = np.multiply(actions_EA, self._half_A, dtype=self._half_A.dtype, casting="same_kind")
        scaled_EA += self._middle_A
        np.maximum(scaled_EA, self._low_A, out=scaled_EA)
        np.minimum(scaled_EA, self._high_A, out=scaled_EA)
        if not self._exact:
            np.copyto(scaled_EA, self._low_A, where=actions_EA <= -1)
            np.copyto(scaled_EA, self._high_A, where=actions_EA >= 1)
        return scaled_EA.reshape(-1, *self._shape) if len(self._shape) != 1 else scaled_EA

    @staticmethod
    def _check(space: gym.Space, env_id: str) -> None:
        if not isinstance(space, Box):
            raise EnvError(
                f"{env_id} has the action space {space}, expected a Box of floats: policies here give continuous "
                "actions, so it cannot be trained on; choose an environment with continuous actions"
            )
        if not np.issubdtype(space.dtype, np.floating) or not space.shape or 0 in space.shape:
            raise EnvError(
                f"{env_id} has actions of type {space.dtype} and shape {space.shape}, expected a non-empty vector of "
                "floats: actions in [-1, 1] cannot be mapped onto it; wrap the environment with a float action Box"
            )
        bounds = np.stack([space.low.ravel(), space.high.ravel()]).astype(np.float64)
        unbounded = np.flatnonzero(~(np.abs(bounds) < UNBOUNDED).all(axis=0))
        if unbounded.size:
            at = int(unbounded[0])
            raise EnvError(
                f"{env_id} has an unbounded action box: coordinate {at} is in [{space.low.ravel()[at]}, "
                f"{space.high.ravel()[at]}], expected finite bounds below {UNBOUNDED:g}: actions in [-1, 1] "
                "cannot be mapped onto it; wrap the environment with gymnasium.wrappers.RescaleAction or a Box with finite bounds"
            )


def observation_dim(space: gym.Space, env_id: str) -> int:
    """O of a Box, or of a Dict of Boxes (nested ones too); anything else is an EnvError that names the part."""
    if isinstance(space, gym.spaces.Dict):
        return sum(observation_dim(space[key], f"{env_id} [{key!r}]") for key in sorted(space.keys()))
    if not isinstance(space, Box):
        raise EnvError(
            f"{env_id} has the observation space {space}, expected a Box or a Dict of Boxes: it cannot be stored as a "
            "vector of floats, so it cannot be trained on; wrap the environment with "
            "gymnasium.wrappers.FlattenObservation or choose another one"
        )
    return int(np.prod(space.shape, dtype=np.int64))


def flatten_observations(obs: Any, num_envs: int) -> np.ndarray:
    """Batched observations as a new float32 (E, O) array; Dicts in the order of their sorted keys.

    ``obs`` is (E, ...) or a Dict of such, as a gymnasium.vector.VectorEnv gives.
    """
    if isinstance(obs, np.ndarray):
        return obs.reshape(num_envs, -1).astype(np.float32)
    parts = _parts(obs, num_envs)
    return np.concatenate(parts, axis=1, dtype=np.float32, casting="unsafe")


def flatten_checked(space: gym.Space, obs: Any, env_id: str) -> np.ndarray:
    """As ``flatten_observation``; EnvError, naming the part, where ``obs`` has other keys or shapes than ``space``."""
    if isinstance(space, gym.spaces.Dict):
        if not isinstance(obs, Mapping) or any(key not in obs for key in space):
            seen = sorted(obs) if isinstance(obs, Mapping) else type(obs).__name__
            raise EnvError(
                f"{env_id} returned an observation with {seen}, expected the keys {sorted(space)} of its space: it "
                "cannot be stored and the worker stops; return every key of the observation space"
            )
        return np.concatenate([flatten_checked(space[key], obs[key], f"{env_id} [{key!r}]") for key in sorted(space)])
    try:
        array = np.array(obs, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise EnvError(
            f"{env_id} returned {type(obs).__name__} as an observation ({error}), expected numbers of shape {space.shape}: "
            "it cannot be stored and the worker stops; return an array from reset() and step()"
        ) from error
    if array.shape != space.shape:
        raise EnvError(
            f"{env_id} returned an observation of shape {array.shape}, expected {space.shape} as its space says: it cannot "
            "be stored and the worker stops; return that shape from reset() and step(), or correct the space"
        )
    return array.ravel()


def flatten_observation(obs: Any) -> np.ndarray:
    """One environment's observation as a new float32 (O,) array; Dicts in the order of their sorted keys."""
    if isinstance(obs, Mapping):
        return np.concatenate([flatten_observation(obs[key]) for key in sorted(obs)])
    return np.array(obs, dtype=np.float32).ravel()


def _parts(obs: Any, num_envs: int) -> list[np.ndarray]:
    if isinstance(obs, Mapping):
        return [part for key in sorted(obs) for part in _parts(obs[key], num_envs)]
    return [np.asarray(obs).reshape(num_envs, -1)]
