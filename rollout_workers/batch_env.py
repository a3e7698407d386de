"""What the worker, the recorder and the evaluator know of environments: E of them, stepped as one batch.

Letters: E environments, O observation dim, A action dim.
"""

from __future__ import annotations

import functools
from typing import NamedTuple, Protocol

import numpy as np


class EnvError(ValueError):
    """An environment that cannot be trained on, or was used against its contract."""


class StepResult(NamedTuple):
    """One step of E environments."""

    obs_EO: np.ndarray  # float32, what to act on next: the first observation of the new episode where one ended
    next_obs_EO: np.ndarray  # float32, the true observation after the action, the last one where an episode ended
    reward_E: np.ndarray  # float64
    terminated_E: np.ndarray  # bool, the task ended: no value beyond
    truncated_E: np.ndarray  # bool, cut by a time limit: the value goes on (both may be set; terminated wins)
    valid_E: np.ndarray  # bool, False where the action was ignored and nothing happened that may be recorded


class BatchEnv(Protocol):
    """E environments with actions in [-1, 1] and same-step resets.

    When an episode ends, the environment is reset inside the same ``step``, with the seed
    ``episode_seed(env seed, episode number)``: a run depends on its seeds alone, not on how long it has been
    running in one process. Observations are float32; NaN and infinity pass through (the recorder judges them).
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

    def cut(self, env_indices: list[int]) -> np.ndarray:
        """Ends the episodes of these environments now and resets them; observations (E, O) of all environments."""

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
