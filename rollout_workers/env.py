"""What an environment is here: the contract of a batch, its errors, spaces as flat vectors.

Letters: E environments, O observation dim, A action dim.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box

from replay.stored_episode import UNBOUNDED


class EnvError(ValueError):
    """An environment that cannot be trained on, or was used against its contract."""


def exit_error(env_id: str, error: SystemExit) -> EnvError:
    """What ``sys.exit`` in an environment's own code counts as: it must not end a process, least of all with exit code 0."""
    at = traceback.extract_tb(error.__traceback__)[-1]
    return EnvError(
        f"{env_id} called sys.exit({'' if error.code is None else repr(error.code)}) in {at.name} "
        f"({os.path.basename(at.filename)}, line {at.lineno}), expected it to return or to raise: this counts as a failure of the "
        "environment, whatever the exit code; raise an exception that says what is wrong"
    )


def raised_error(env_id: str, error: Exception) -> EnvError:
    """What an exception of an environment's own code counts as: with the environment, the place, and what to do."""
    at = traceback.extract_tb(error.__traceback__)[-1]
    callers = (
        os.path.dirname(__file__),
        os.path.dirname(gym.__file__),
    )  # which could not call it, or use what it returned
    where = (
        "reset or step"
        if at.filename.startswith(callers)
        else f"{at.name}, {os.path.basename(at.filename)}, line {at.lineno}"
    )
    return EnvError(
        f"{env_id} raised {type(error).__name__} in {where} ({' '.join(str(error).split())}), expected Gymnasium's reset(seed=, options=) "
        "-> (observation, info) and step(action) -> (observation, reward, terminated, truncated, info): no worker could run it; "
        f"correct the environment, or wrap it{thread_note(error)}"
    )


def thread_note(error: Exception) -> str:
    """What to add to the report of an exception that only a thread besides the main one raises; "" for any other."""
    if not re.search("main thread|event loop in thread", str(error)):
        return ""
    return (
        "; environments are made and stepped in other threads than the main one too, such as that of the check before a run, which may "
        "hang: install no signal handler (they are the run's), and make an event loop with asyncio.new_event_loop()"
    )


@contextlib.contextmanager
def without_exit(env_id: str) -> Iterator[None]:
    """Raises ``exit_error`` for a SystemExit of the code in the block."""
    try:
        yield
    except SystemExit as error:
        raise exit_error(env_id, error) from error


class StepResult(NamedTuple):
    """One step of E environments."""

    obs_EO: np.ndarray  # float32, what to act on next: the first observation of the new episode where one ended
    next_obs_EO: np.ndarray  # float32, the true observation after the action, the last one where an episode ended
    reward_E: np.ndarray  # float64
    terminated_E: np.ndarray  # bool, the task ended: no value beyond
    truncated_E: np.ndarray  # bool, cut by a time limit: the value goes on (both may be set; terminated wins)
    valid_E: np.ndarray  # bool, False where nothing happened that may be recorded
    left_E: np.ndarray | None = None  # bool, of those: steps in an episode that was given up and goes on to its own end


class BatchEnv(Protocol):
    """E environments with actions in [-1, 1] and same-step resets.

    When an episode ends, the environment is reset inside the same ``step``, with the seed
    ``episode_seed(env seed, episode number)``: a run depends on its seeds alone, not on how long it has been
    running in one process. Observations are float32; NaN and infinity pass through (the recorder rejects them).
    """

    num_envs: int
    obs_dim: int
    action_dim: int
    action_low_A: np.ndarray  # float64, the box of the environment itself, which [-1, 1] is mapped onto
    action_high_A: np.ndarray
    max_episode_steps: int | None

    @property
    def not_replayed(self) -> dict[int, str]:
        """The environments that the last ``load_state`` could not bring back, and why."""

    def reset(self, seeds: list[int] | None = None) -> np.ndarray:
        """Resets every environment, each with its own seed; observations (E, O) float32.

        None takes the seeds derived from the ``seed`` that the batch was made with.
        """

    def step(self, actions_EA: np.ndarray) -> StepResult:
        """Applies actions (E, A) float32 in [-1, 1]; what lies outside is clipped."""

    def force_reset(self, env_indices: list[int]) -> np.ndarray:
        """Ends the episodes of these environments now and resets them; observations (E, O) of all environments.

        One that only resets itself goes on to its own end: until then its observation is 0 and its steps are in ``left_E``.
        """

    def state(self) -> dict[str, np.ndarray]:
        """Everything that ``load_state`` needs for the following steps to be bit-identical."""

    def load_state(self, state: dict[str, np.ndarray]) -> np.ndarray:
        """Takes what ``state`` gave; the observations (E, O) to act on next.

        An environment that could not be brought back to its saved observation is reset, for its next episode, and is in
        ``not_replayed``: no transition may join the two.
        """

    def close(self) -> None:
        """Frees the environments."""


def env_seeds(seed: int, num_envs: int) -> list[int]:
    """Seeds of ``num_envs`` environments, 32 bits each, from one seed of any size (numpy's SeedSequence)."""
    return [int(s) for s in np.random.SeedSequence(seed).generate_state(num_envs)]


def episode_seed(env_seed: int, episode: int) -> int:
    """The seed that an environment's ``episode``-th episode starts with.

    Episode 0 takes the environment's own seed, so that ``reset([s])`` starts where Gymnasium's
    ``env.reset(seed=s)`` does. Episode n > 0 takes word n % 64 of ``SeedSequence([env_seed, n // 64])``, 32 bits.
    """
    if episode == 0:
        return env_seed
    return _seed_block(env_seed, episode // _BLOCK)[episode % _BLOCK]


_BLOCK = 64


@functools.lru_cache(maxsize=1024)
def _seed_block(env_seed: int, block: int) -> list[int]:
    """Seeds are drawn in blocks, since a SeedSequence costs as much as a short task's step."""
    words: list[int] = np.random.SeedSequence([env_seed, block]).generate_state(_BLOCK).tolist()
    return words


class ActionBox:
    """The one rescale from [-1, 1] to an environment's action box.

    Raises EnvError unless ``space`` is a bounded Box of floats; ``env_id`` is for the message alone.
    """

    def __init__(self, space: gym.Space, env_id: str) -> None:
        self._check(space, env_id)
        assert isinstance(space, Box)
        self.low_A = space.low.astype(np.float64).ravel()
        self.high_A = space.high.astype(np.float64).ravel()
        self.shape = space.shape
        self.lowest_A, self.highest_A = space.low.ravel(), space.high.ravel()
        self.middle_A = ((self.high_A + self.low_A) / 2).astype(space.dtype)
        self.half_A = ((self.high_A - self.low_A) / 2).astype(space.dtype)
        ends_2A = self.middle_A - self.half_A, self.middle_A + self.half_A
        self._exact = np.array_equal(ends_2A, (self.lowest_A, self.highest_A))  # else rounding misses a bound

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
        scaled_EA = np.multiply(actions_EA, self.half_A, dtype=self.half_A.dtype, casting="same_kind")
        scaled_EA += self.middle_A
        np.maximum(scaled_EA, self.lowest_A, out=scaled_EA)
        np.minimum(scaled_EA, self.highest_A, out=scaled_EA)
        if not self._exact:
            np.copyto(scaled_EA, self.lowest_A, where=actions_EA <= -1)
            np.copyto(scaled_EA, self.highest_A, where=actions_EA >= 1)
        return scaled_EA.reshape(-1, *self.shape) if len(self.shape) != 1 else scaled_EA

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


def to_float32(values: Any) -> np.ndarray:
    """A new float32 array; a number beyond float32's largest, 3.4e38, is an infinity there, which nothing stores."""
    if isinstance(values, np.ndarray) and values.dtype == np.float32:
        return np.array(values)
    if np.iscomplexobj(values):
        raise TypeError("complex numbers, expected real ones: the imaginary parts would be lost")
    with np.errstate(over="ignore"):  # whoever checks for infinities says what it is
        return np.array(values, dtype=np.float32)


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
        return to_float32(obs.reshape(num_envs, -1))
    parts = _parts(obs, num_envs)
    return np.concatenate([to_float32(part) for part in parts], axis=1)


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
        array = to_float32(obs)
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
    return to_float32(obs).ravel()


def _parts(obs: Any, num_envs: int) -> list[np.ndarray]:
    if isinstance(obs, Mapping):
        return [part for key in sorted(obs) for part in _parts(obs[key], num_envs)]
    return [np.asarray(obs).reshape(num_envs, -1)]


def close_or_warn(env: Any, env_id: str) -> None:
    """Closes one environment, or a vector of them; an exception of its own becomes a RuntimeWarning."""
    try:
        env.close()
    except (Exception, SystemExit) as error:
        warnings.warn(
            f"{env_id}: close() raised {type(error).__name__}: {error}; expected it to free the environment. Results are kept "
            "and the run continues, but what the environment holds may stay in use until this process ends; mend its "
            "close()",
            RuntimeWarning,
            stacklevel=2,
        )
