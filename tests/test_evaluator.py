"""The evaluator: an episode depends on its seed and the weights alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from linear_policy import LinearPolicy

from algorithms import ALGORITHMS
from algorithms.interface import AgentSpec
from algorithms.weights import CorruptWeights, Weights
from rollout_workers.env import ActionBox, StepResult
from rollout_workers.envs import env_spec, make_batch_env, make_env
from rollout_workers.evaluator import BrokenEpisodes, EvaluationTimeout, Evaluator

PENDULUM = LinearPolicy(3, 1)


def slow_episode(env_id: str, policy: LinearPolicy, seed: int) -> tuple[float, int]:
    """One episode in Gymnasium's own environment, one torch call a step."""
    env = make_env(env_id)
    box = ActionBox(env.action_space, env_id)
    obs, _ = env.reset(seed=seed)
    total, length, ended = 0.0, 0, False
    while not ended:
        obs_BO = torch.from_numpy(np.asarray(obs, np.float32)[None])
        action_BA = policy.act(obs_BO, torch.zeros(1, policy.action_dim)).numpy()
        obs, reward, terminated, truncated, _ = env.step(box.rescale(action_BA)[0])
        total, length, ended = total + float(reward), length + 1, terminated or truncated
    env.close()
    return total, length


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "Hopper-v5", "InvertedPendulum-v5"])
def test_returns_equal_a_slow_loop_over_gymnasium(env_id: str) -> None:
    spec = env_spec(env_id)
    policy = LinearPolicy(spec.obs_dim, spec.action_dim)
    weights = policy.weights(1, generation=2, version=4)
    policy.load_weights(weights.unpack())
    result = Evaluator(env_id, policy, episodes=3, seed=40, backend="torch").evaluate(weights)
    slow = [slow_episode(env_id, policy, 40 + i) for i in range(3)]
    assert result.lengths == [length for _, length in slow]
    np.testing.assert_allclose(result.returns, [total for total, _ in slow], rtol=1e-5)
    assert (result.generation, result.version, result.env_steps, result.updates, result.seed) == (2, 4, 40, 80, 40)
    assert result.errors == [] and result.wall_s > 0


@pytest.mark.parametrize("backend", ["onnx", "torch"])
@pytest.mark.parametrize("env_id", ["Hopper-v5", "Ant-v5"])
def test_an_episode_is_the_same_whatever_runs_beside_it(env_id: str, backend: str) -> None:
    spec = env_spec(env_id)
    policy = LinearPolicy(spec.obs_dim, spec.action_dim)
    weights = policy.weights(1)
    results = [
        Evaluator(env_id, policy, seed=5, max_envs=side_by_side, backend=backend).evaluate(weights, episodes=5)
        for side_by_side in (1, 2, 5)
    ]
    assert results[0].returns == results[1].returns == results[2].returns
    assert results[0].lengths == results[1].lengths == results[2].lengths
    alone = Evaluator(env_id, policy, backend=backend).evaluate(weights, episodes=1, seed=8)
    assert alone.returns == results[2].returns[3:4]


@pytest.mark.parametrize("backend", ["onnx", "torch"])
def test_the_bridge_gives_the_same_episodes_whatever_runs_beside_them(backend: str) -> None:
    made = ALGORITHMS["softgac"]
    config = made.presets["cpu"]()
    agent = made.make_agent(config, AgentSpec(obs_dim=11, action_dim=3))
    weights = Weights.pack(agent.policy_weights(), generation=0, version=0, env_steps=0, updates=0)
    results = [
        Evaluator("Hopper-v5", made.make_policy(config, 11, 3), max_envs=side_by_side, backend=backend).evaluate(
            weights
        )
        for side_by_side in (1, 3, 5)
    ]
    assert results[0].returns == results[1].returns == results[2].returns


def test_an_evaluation_can_be_repeated_and_older_weights_are_evaluated_too() -> None:
    evaluator = Evaluator("Pendulum-v1", PENDULUM, episodes=2)
    new, old = PENDULUM.weights(1, version=9), PENDULUM.weights(2, version=3)
    first, other, again = evaluator.evaluate(new), evaluator.evaluate(old), evaluator.evaluate(new)
    assert first.returns == again.returns != other.returns
    assert other.version == 3


def test_mean_and_spread_are_over_episodes() -> None:
    result = Evaluator("Pendulum-v1", PENDULUM).evaluate(PENDULUM.weights(0), episodes=4)
    assert result.return_mean == pytest.approx(np.mean(result.returns))
    assert result.return_std == pytest.approx(np.std(result.returns))
    assert result.lengths == [200] * 4


def test_an_evaluation_that_takes_too_long_says_how_far_it_was() -> None:
    evaluator = Evaluator("Pendulum-v1", PENDULUM, timeout_s=-1.0)
    with pytest.raises(EvaluationTimeout, match=r"seeds \[1, 2\] were at step 0.*raise evaluation.timeout_s"):
        evaluator.evaluate(PENDULUM.weights(0), episodes=2, seed=1)


def test_corrupt_weights_are_not_evaluated() -> None:
    weights = dataclasses.replace(PENDULUM.weights(0), digest="0" * 32)
    with pytest.raises(CorruptWeights):
        Evaluator("Pendulum-v1", PENDULUM).evaluate(weights)


def test_no_episodes_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Evaluator("Pendulum-v1", PENDULUM).evaluate(PENDULUM.weights(0), episodes=0)


def breaking(environments: list[int], what: str) -> Callable:
    """Pendulums of which ``environments`` give NaN in their tenth step, and NaN for ever after."""

    class Breaking:
        def __init__(self, *args: object) -> None:
            self.env, self.t = make_batch_env(*args), 0

        def __getattr__(self, name: str) -> object:
            return getattr(self.env, name)

        def spoil(self, array: np.ndarray) -> np.ndarray:
            array = array.copy()
            if self.t >= 10:
                array[environments] = np.nan
            return array

        def step(self, actions_EA: np.ndarray) -> StepResult:
            self.t += 1
            step = self.env.step(actions_EA)
            if what == "reward":
                return step._replace(reward_E=self.spoil(step.reward_E))
            return step._replace(obs_EO=self.spoil(step.obs_EO), next_obs_EO=self.spoil(step.next_obs_EO))

        def force_reset(self, indices: list[int]) -> np.ndarray:
            obs_EO = self.env.force_reset(indices)
            return obs_EO if what == "reward" else self.spoil(obs_EO)

    return Breaking


@pytest.mark.parametrize("what", ["observation", "reward"])
def test_an_episode_that_breaks_is_named_and_spoils_no_other(what: str) -> None:
    weights = PENDULUM.weights(0)
    healthy = Evaluator("Pendulum-v1", PENDULUM, seed=7).evaluate(weights, episodes=3)
    result = Evaluator("Pendulum-v1", PENDULUM, seed=7, make_env=breaking([1], what)).evaluate(weights, episodes=3)
    assert result.errors == [f"episode with seed 8: a non-finite {what} after 10 steps"]
    assert result.returns == [healthy.returns[0], healthy.returns[2]]


def test_when_every_episode_breaks_there_is_no_return() -> None:
    evaluator = Evaluator("Pendulum-v1", PENDULUM, make_env=breaking([0, 1], "observation"))
    with pytest.raises(BrokenEpisodes, match=r"none of 2 episodes.*non-finite observation after 10 steps"):
        evaluator.evaluate(PENDULUM.weights(0), episodes=2)


class Endless(gym.Env):
    """Pays 1 a step and never ends; a limit, if any, is its registration's."""

    observation_space = Box(-1, 1, (3,), np.float32)
    action_space = Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(3, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(3, np.float32), 1.0, False, False, {}


gym.register("evaluator/Endless-v0", Endless)
gym.register("evaluator/Limited-v0", Endless, max_episode_steps=30)


@pytest.mark.parametrize(
    ("env_id", "cap", "length"), [("Endless", 0, 20), ("Endless", 7, 7), ("Limited", 0, 30), ("Limited", 7, 7), ("Limited", 90, 30)]
)  # fmt: skip
def test_episodes_without_an_end_are_cut_and_the_evaluation_says_so(
    env_id: str, cap: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollout_workers.evaluator.UNLIMITED_STEPS", 20)
    policy = LinearPolicy(3, 1)
    evaluator = Evaluator(
        f"evaluator/{env_id}-v0", policy, episodes=2, max_episode_steps=cap, max_envs=1, backend="torch"
    )
    result = evaluator.evaluate(policy.weights(1))
    assert result.lengths == [length] * 2 and result.returns == [length] * 2 and result.errors == []
    cut = f"2 of 2 episodes were cut after {length} steps (evaluation.max_episode_steps)"
    assert result.note.startswith(cut) if length < 30 else result.note == ""
