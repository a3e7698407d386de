"""Whole episodes of vector entry points that take one seed for all: each starts from its own, whatever runs beside it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec as Registration
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from linear_policy import LinearPolicy

from rollout_workers.envs import make_batch_env, make_seeded_env
from rollout_workers.episodes import EpisodeRuns
from rollout_workers.evaluator import Evaluator, plan_streams

ENV_ID = "one-seed/Drift-v0"
LIMIT = 12
POLICY = LinearPolicy(2, 1)


class Drift(VectorEnv):
    """Points that are pushed and drift at random, all drawn from one generator; those beyond 2 terminate."""

    mode = AutoresetMode.DISABLED
    starts_apart = True

    def __init__(self, num_envs: int, max_episode_steps: int) -> None:
        self.metadata = {"autoreset_mode": self.mode}
        self.num_envs, self.limit = num_envs, max_episode_steps
        self.single_observation_space, self.single_action_space = Box(-9, 9, (2,), np.float32), Box(-1, 1, (1,))
        self.x_E, self.steps_E = np.zeros((2, num_envs))
        self.ended_E = np.zeros(num_envs, bool)

    def seeded(self, seed: Any) -> np.random.Generator:
        if not isinstance(seed, int):
            raise TypeError(f"seed is {seed!r}, expected an int")
        return np.random.default_rng(seed)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        if seed is not None:
            self.rng = self.seeded(seed)
        self._begin((options or {}).get("reset_mask", np.ones(self.num_envs, bool)))
        return self._seen(), {}

    def step(self, actions: np.ndarray) -> Any:
        begun_E = self.ended_E if self.mode is AutoresetMode.NEXT_STEP else np.zeros(self.num_envs, bool)
        self.x_E = self.x_E + 0.5 * actions[:, 0] + self.rng.normal(0, 0.5, self.num_envs)
        self.steps_E = self.steps_E + 1
        reward_E = self.x_E.copy()
        if begun_E.any():
            self._begin(begun_E)
        terminated_E = (np.abs(self.x_E) > 2) & ~begun_E
        truncated_E = (self.steps_E >= self.limit) & ~begun_E
        self.ended_E, infos = terminated_E | truncated_E, {}
        if self.mode is AutoresetMode.SAME_STEP and self.ended_E.any():
            infos["final_obs"] = self._seen()
            self._begin(self.ended_E)
        return self._seen(), reward_E, terminated_E, truncated_E, infos

    def _begin(self, mask_E: np.ndarray) -> None:
        spread = 1.0 if self.starts_apart else 0.0
        self.x_E = np.where(mask_E, spread * self.rng.uniform(-1, 1, self.num_envs), self.x_E)
        self.steps_E = np.where(mask_E, 0, self.steps_E)
        self.ended_E = self.ended_E & ~mask_E

    def _seen(self) -> np.ndarray:
        return np.stack([self.x_E, self.steps_E], axis=1).astype(np.float32)


class SameStep(Drift):
    mode = AutoresetMode.SAME_STEP


class NextStep(Drift):
    mode = AutoresetMode.NEXT_STEP


class Mixes(Drift):
    """Takes a list of seeds as the entropy of one generator."""

    def seeded(self, seed: Any) -> np.random.Generator:
        return np.random.default_rng(seed)


class MixesUnseen(Mixes):
    """All start at one place, so that a reset does not show it."""

    starts_apart = False


KINDS = [Drift, SameStep, NextStep, Mixes, MixesUnseen]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest) -> Iterator[type[Drift]]:
    about: dict[str, Any] = {"entry_point": "gymnasium.envs.classic_control:PendulumEnv"}
    gym.registry[ENV_ID] = Registration(ENV_ID, vector_entry_point=request.param, max_episode_steps=LIMIT, **about)
    yield request.param
    gym.registry.pop(ENV_ID)


def slow_episode(kind: type[Drift], seed: int) -> tuple[float, int]:
    """One episode of one environment that was made for it alone and given the seed as Gymnasium says; a torch call a step."""
    vector, total, length, ended = kind(1, LIMIT), 0.0, 0, False
    obs, _ = vector.reset(seed=seed)
    while not ended:
        action_BA = POLICY.act(torch.from_numpy(obs), torch.zeros(1, 1)).numpy()
        obs, reward, terminated, truncated, _ = vector.step(np.clip(action_BA, -1, 1))
        total, length, ended = total + float(reward[0]), length + 1, bool(terminated[0] | truncated[0])
    return total, length


def test_every_episode_of_an_evaluation_starts_from_its_own_seed(kind: type[Drift]) -> None:
    weights = POLICY.weights(1)
    POLICY.load_weights(weights.unpack())
    slow = [slow_episode(kind, 40 + i) for i in range(5)]
    assert len({length for _, length in slow}) > 1  # some terminate before the others
    for side_by_side in (1, 2, 5):
        evaluator = Evaluator(ENV_ID, POLICY, seed=40, max_envs=side_by_side, backend="torch")
        result = evaluator.evaluate(weights, episodes=5)
        assert result.lengths == [length for _, length in slow] and result.errors == []
        np.testing.assert_allclose(result.returns, [total for total, _ in slow], rtol=1e-5)


class Still:
    """Does nothing."""

    def reset(self, num_envs: int) -> None:
        pass

    def begin(self, env_K: np.ndarray, obs_KO: np.ndarray, rng: Any) -> list[Any]:
        return []

    def act(self, obs_EO: np.ndarray, reward_E: np.ndarray) -> np.ndarray:
        return np.zeros((len(obs_EO), 1), np.float32)


def test_every_episode_of_a_dataset_starts_from_its_own_seed(kind: type[Drift]) -> None:
    runs = EpisodeRuns(ENV_ID)
    together = runs.run(Still(), [7, 8, 9], plan_streams([7, 8, 9]))
    for seed, episode in zip((7, 8, 9), together):
        (alone,) = runs.run(Still(), [seed], plan_streams([seed]))
        assert alone is not None and episode is not None and alone.terminated == episode.terminated
        np.testing.assert_array_equal(alone.obs_TO, episode.obs_TO)
        np.testing.assert_array_equal(alone.next_obs_O, episode.next_obs_O)
    runs.close()


def test_episodes_that_are_given_up_or_go_on_from_a_state_do_so_one_by_one(kind: type[Drift]) -> None:
    env, alone = make_seeded_env(ENV_ID, 3, seed=0), make_batch_env(ENV_ID, 1, seed=0)
    env.reset([1, 2, 3])
    alone.reset([2])
    for step in range(3 * LIMIT):
        result, one = env.step(np.zeros((3, 1), np.float32)), alone.step(np.zeros((1, 1), np.float32))
        for seen, true in zip(result[:6], one[:6]):
            np.testing.assert_array_equal(seen[1], true[0])
        if step == 4:  # only the second is given up, in both
            np.testing.assert_array_equal(env.force_reset([1])[1], alone.force_reset([0])[0])
    begun_EO = env.load_state(env.state())
    assert env.not_replayed.keys() == {0, 1, 2} and begun_EO.shape == (3, 2)
    assert not begun_EO[:, 1].any()
    env.close()
