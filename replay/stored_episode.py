"""One episode of a dataset as everything here takes it, and what makes an episode of a file unfit to be one.

Letters: T steps, O observation dim, A action dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box

UNBOUNDED = 1e10  # a bound this large means "no bound": MuJoCo has it for an actuator without a range
OUTSIDE = 1e-4  # of half the action box: what an action may lie outside it by rounding alone


class DatasetError(ValueError):
    """A dataset that cannot be read, written or used here; the message says what to do."""


class StoredEpisode(NamedTuple):
    """One whole episode."""

    index: int  # type: ignore[assignment]  # in its dataset, from 0
    obs_TO: np.ndarray  # float32, what each action answered
    action_TA: np.ndarray  # float32, in [-1, 1]: the environment's own box, rescaled
    reward_T: np.ndarray  # float64
    terminated: bool  # the environment ended it
    truncated: bool  # a time limit ended it; neither: the recording stopped
    next_obs_O: np.ndarray  # float32, the last observation


class Refused(Exception):
    """An episode that is skipped; the message is one of a few fixed reasons, by which they are counted."""


class EpisodeLayout:
    """Maps episodes as Minari stores them to StoredEpisodes.

    Args:
        obs_space: a Box, or a Dict of Boxes (nested ones too), flattened in the order of sorted keys.
        action_space: a bounded Box of floats.
        name: of the dataset, for messages.
        shortest: fewest steps of an episode that is read.

    Raises:
        DatasetError: other spaces.
    """

    def __init__(self, obs_space: gym.Space, action_space: gym.Space, name: str, shortest: int = 1) -> None:
        _check_observations(obs_space, name)
        _check_actions(action_space, name)
        assert isinstance(action_space, Box)
        self.obs_space, self.action_space, self._shortest = obs_space, action_space, shortest
        self.obs_dim = _dim(obs_space)
        self.action_dim = int(action_space.low.size)
        low_A, high_A = (bound.astype(np.float64).ravel() for bound in (action_space.low, action_space.high))
        self.action_bounds = low_A, high_A
        self._middle_A, half_A = (low_A + high_A) / 2, (high_A - low_A) / 2
        self._half_A = np.where(half_A > 0, half_A, 1.0)
        self.clipped = 0  # steps read so far whose action lay outside the box; environments clip them too

    def columns(self, key: str) -> slice | None:
        """Where the part ``key`` of a Dict stands in flat observations; None where there is no such part."""
        at, spaces = 0, self.obs_space.spaces if isinstance(self.obs_space, gym.spaces.Dict) else {}
        for name in sorted(spaces):
            end = at + _dim(spaces[name])
            if name == key:
                return slice(at, end)
            at = end
        return None

    def episode(self, index: int, raw: Mapping[str, Any], steps: int | None) -> StoredEpisode:
        """The episode in ``raw`` (a dict as Minari's storages give); ``steps`` is what the file says it has, if it says.

        Raises:
            Refused: the reason, by which episodes are counted.
        """
        reward_T = np.asarray(raw["rewards"], np.float64)
        ends = [np.asarray(raw[name], bool) for name in ("terminations", "truncations")]
        if reward_T.ndim != 1 or any(end_T.shape != reward_T.shape for end_T in ends):
            raise Refused("wrong shape")
        count = len(reward_T)
        if steps is not None and count != steps:
            raise Refused("incomplete")
        if count < self._shortest:
            raise Refused("too short")
        obs_NO = _flat(raw["observations"], self.obs_space, count + 1)
        action_TA = _flat(raw["actions"], self.action_space, count)
        for name, values in (("observation", obs_NO), ("action", action_TA), ("reward", reward_T)):
            if not np.isfinite(values).all():
                raise Refused(f"{name} not finite")
        if any(end_T[:-1].any() for end_T in ends):
            raise Refused("ends before its last step")
        return StoredEpisode(
            index=index,
            obs_TO=obs_NO[:-1],
            action_TA=self._unit(action_TA),
            reward_T=reward_T,
            terminated=bool(ends[0][-1]),
            truncated=bool(ends[1][-1]),
            next_obs_O=obs_NO[-1].copy(),
        )

    def boxed(self, action_TA: np.ndarray) -> np.ndarray:
        """The inverse for actions: [-1, 1] as (T, *space.shape) in the box and of its dtype."""
        assert isinstance(self.action_space, Box)
        box_TA = self._middle_A + action_TA.astype(np.float64) * self._half_A
        boxed = box_TA.astype(self.action_space.dtype).reshape(-1, *self.action_space.shape)
        return np.clip(boxed, self.action_space.low, self.action_space.high)

    def _unit(self, action_TA: np.ndarray) -> np.ndarray:
        unit_TA = (action_TA.astype(np.float64) - self._middle_A) / self._half_A
        self.clipped += int((np.abs(unit_TA) > 1 + OUTSIDE).any(axis=1).sum())
        return np.clip(unit_TA, -1.0, 1.0).astype(np.float32)


def check_episode(episode: StoredEpisode, obs_dim: int, action_dim: int) -> None:
    """DatasetError when an episode that is about to be written is none: wrong shapes, not finite, actions outside [-1, 1]."""
    steps = len(episode.reward_T)
    expected = {
        "obs_TO": (steps, obs_dim),
        "action_TA": (steps, action_dim),
        "reward_T": (steps,),
        "next_obs_O": (obs_dim,),
    }
    for name, shape in expected.items():
        values = getattr(episode, name)
        if values.shape != shape:
            raise DatasetError(
                f"episode {episode.index}: {name} has the shape {values.shape}, expected {shape}: nothing was written; "
                "give every episode with the same dims, one row a step"
            )
        if not np.isfinite(values).all():
            raise DatasetError(
                f"episode {episode.index}: {name} has values that are not finite, expected none: nothing was written, "
                "a model would learn from them; leave the episode out or mend its environment"
            )
    if steps and np.abs(episode.action_TA).max() > 1:
        raise DatasetError(
            f"episode {episode.index} has actions up to {np.abs(episode.action_TA).max():.4g} in size, expected "
            "[-1, 1]: nothing was written; rescale the environment's box to [-1, 1]"
        )


def _flat(values: Any, space: gym.Space, rows: int) -> np.ndarray:
    """Float32 (rows, dim) of a Box's array or a Dict's; Refused where the shape is another."""
    if isinstance(space, gym.spaces.Dict):
        if not isinstance(values, Mapping) or set(values) != set(space.spaces):
            raise Refused("wrong shape")
        return np.concatenate([_flat(values[key], space[key], rows) for key in sorted(space.spaces)], axis=1)
    array = np.asarray(values)
    if array.shape != (rows, *(space.shape or ())) or array.dtype.kind not in "fiub":
        raise Refused("wrong shape")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is refused
        return array.reshape(rows, -1).astype(np.float32)


def _dim(space: gym.Space) -> int:
    if isinstance(space, gym.spaces.Dict):
        return sum(_dim(space[key]) for key in space.spaces)
    return int(np.prod(space.shape or (), dtype=np.int64))


def _check_observations(space: gym.Space, name: str) -> None:
    if isinstance(space, gym.spaces.Dict) and len(space.spaces):
        for key in sorted(space.spaces):
            _check_observations(space[key], f"{name} [{key!r}]")
    elif not isinstance(space, Box):
        raise DatasetError(
            f"{name} has observations in {space}, expected a Box or a Dict of Boxes: they are no vectors of floats, so "
            "no model here can be trained on them; choose another dataset"
        )


def _check_actions(space: gym.Space, name: str) -> None:
    if not isinstance(space, Box) or not np.issubdtype(space.dtype, np.floating) or not space.low.size:
        raise DatasetError(
            f"{name} has actions in {space}, expected a Box of floats: policies here give continuous actions, so "
            "nothing can be trained on it; choose a dataset with continuous actions"
        )
    if not (np.abs([space.low, space.high]) < UNBOUNDED).all():
        raise DatasetError(
            f"{name} has actions in the unbounded {space}, expected finite bounds: they cannot be mapped to [-1, 1]; "
            "store it with the bounds of its environment"
        )
