"""The actions of running episodes, by which environments that cannot give their state are brought back to it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import SyncVectorEnv

_LIMIT = 100_000  # steps of one episode that are remembered


class Replayed(NamedTuple):
    """Where an environment is after its actions were replayed."""

    obs: Any  # its last observation; None where no step was replayed
    problem: str  # why the replay stopped early; "" where it did not


class ActionLog:
    """The actions of every environment's running episode, as long as it has at most 100,000 steps: a longer one is not replayed.

    Exact for environments that are deterministic given a seed and the actions; whoever replays must compare where the
    others arrive.
    """

    def __init__(self, vec: SyncVectorEnv) -> None:
        self._vec = vec
        self._actions: list[list[np.ndarray]] = [[] for _ in range(vec.num_envs)]
        self._steps = [0] * vec.num_envs

    def clear(self, indices: Iterable[int]) -> None:
        """A new episode has begun in these environments."""
        for i in indices:
            self._actions[i] = []
            self._steps[i] = 0

    def append(self, actions: np.ndarray) -> None:
        """Remembers a copy of one step's actions (E, ...): environments may change those that they are given."""
        actions = actions.copy()
        for i, log in enumerate(self._actions):
            self._steps[i] += 1
            if self._steps[i] <= _LIMIT:
                log.append(actions[i])
            else:
                log.clear()

    def state(self) -> dict[str, np.ndarray]:
        """``steps`` int64 (E,) and ``actions`` (E, T, ...), of which an environment's first ``steps`` count, if it has them."""
        longest = max(len(log) for log in self._actions)
        space = self._vec.single_action_space
        actions = np.zeros((len(self._actions), longest, *(space.shape or ())), dtype=space.dtype)
        for row, log in zip(actions, self._actions):
            row[: len(log)] = np.array(log).reshape(-1, *row.shape[1:])
        return {"steps": np.array(self._steps, dtype=np.int64), "actions": actions}

    def replay(self, state: dict[str, np.ndarray]) -> list[Replayed]:
        """Takes what ``state`` gave, and replays the actions in environments that were just reset with their episodes' seeds.

        Returns:
            Where each environment is now.
        """
        self._steps = state["steps"].tolist()
        self._actions = [
            list(row[:steps]) if steps <= _LIMIT else [] for row, steps in zip(state["actions"], self._steps)
        ]
        return [
            _replay(env, actions)
            if steps <= _LIMIT
            else Replayed(None, f"it had {steps:,} steps, of which at most {_LIMIT:,} are kept")
            for env, actions, steps in zip(self._vec.envs, self._actions, self._steps)
        ]


def _replay(env: gym.Env, actions: list[np.ndarray]) -> Replayed:
    obs = None
    for step, action in enumerate(actions, 1):
        try:
            obs, _, terminated, truncated, _ = env.step(action.copy())
        except (Exception, SystemExit) as error:  # in a state that the saved episode never had, perhaps
            return Replayed(obs, f"step {step} of {len(actions)} raised {type(error).__name__}: {error}")
        if terminated or truncated:
            return Replayed(obs, f"the episode ended at step {step} of {len(actions)}")
    return Replayed(obs, "")
