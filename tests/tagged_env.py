"""A batch of environments whose observations say which step of which episode they are, and that break at times.

Letters: E environments, O observation dim.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from replay.schema import Columns, RowLayout
from rollout_workers.env import StepResult

LAYOUT = RowLayout(obs_dim=3, action_dim=1)
STEP = 1 / 32  # what the second observation grows by with each step: exact in float32


def reward_of(obs: np.ndarray) -> np.ndarray:
    """Follows from the observation (..., O) alone, so that a row of two episodes would be found out."""
    return np.sin(7 * obs[..., 0].astype(np.float64) + obs[..., 1])


def assert_whole(columns: Columns) -> None:
    """Every row is one step of one episode."""
    np.testing.assert_array_equal(columns.next_obs[..., 0], columns.obs[..., 0])
    np.testing.assert_array_equal(columns.next_obs[..., 1], columns.obs[..., 1] + np.float32(STEP))
    np.testing.assert_array_equal(columns.reward, reward_of(columns.obs).astype(np.float32))


class TaggedEnv:
    """obs = (tag of the episode, step of it / 32, noise). Episodes end by themselves after 2 to 20 steps.

    Args:
        faults: probability a step and environment of NaN or infinity, half in the observation, half in the reward.
        raises: probability a step that ``step`` raises.
        fired: counts of what went wrong.
    """

    obs_dim, action_dim = LAYOUT.obs_dim, LAYOUT.action_dim
    action_low_A, action_high_A = -np.ones(1), np.ones(1)
    max_episode_steps = None

    def __init__(
        self, num_envs: int, seed: int, *, faults: float = 0.0, raises: float = 0.0, fired: Counter[str] | None = None
    ) -> None:
        self.num_envs = num_envs
        self._rng = np.random.default_rng(seed)
        self._faults, self._raises = faults, raises
        self._fired: Counter[str] = Counter() if fired is None else fired
        self._obs_EO = np.zeros((num_envs, self.obs_dim), np.float32)
        self._left_E = np.zeros(num_envs, np.int64)
        self.made = 0  # env steps, by the environment's own count

    def reset(self, seeds: list[int] | None = None) -> np.ndarray:
        return self.force_reset(list(range(self.num_envs)))

    def force_reset(self, env_indices: list[int]) -> np.ndarray:
        for e in env_indices:
            self._obs_EO[e] = self._rng.uniform(-1, 1), 0.0, self._rng.uniform(-1, 1)
            self._left_E[e] = self._rng.integers(2, 21)
        return self._obs_EO.copy()

    def step(self, actions_EA: np.ndarray) -> StepResult:
        if self._rng.random() < self._raises:
            self._fired["environment raised"] += 1
            raise RuntimeError("the simulator lost its licence")
        reward_E = reward_of(self._obs_EO)
        self._obs_EO[:, 1] += np.float32(STEP)
        self._obs_EO[:, 2] = actions_EA[:, 0]
        self._left_E -= 1
        next_obs_EO = self._obs_EO.copy()
        ended_E = self._left_E == 0
        terminated_E = ended_E & (self._rng.random(self.num_envs) < 0.5)
        for e in np.flatnonzero(self._rng.random(self.num_envs) < self._faults):
            self._break(e, next_obs_EO, reward_E)
        obs_EO = self.force_reset(np.flatnonzero(ended_E).tolist())
        obs_EO[~ended_E] = next_obs_EO[~ended_E]
        valid_E = np.ones(self.num_envs, bool)
        self.made += self.num_envs
        return StepResult(obs_EO, next_obs_EO, reward_E, terminated_E, ended_E & ~terminated_E, valid_E)

    def _break(self, e: int, next_obs_EO: np.ndarray, reward_E: np.ndarray) -> None:
        if self._rng.random() < 0.5:
            self._fired["not finite observation"] += 1
            next_obs_EO[e, 2] = self._rng.choice([np.nan, np.inf])
        else:
            self._fired["not finite reward"] += 1
            reward_E[e] = self._rng.choice([np.nan, -np.inf])

    def state(self) -> dict[str, np.ndarray]:
        raise NotImplementedError("a crashed worker starts anew")

    def load_state(self, state: dict[str, np.ndarray]) -> np.ndarray:
        raise NotImplementedError("a crashed worker starts anew")

    def close(self) -> None:
        """Nothing to free."""
