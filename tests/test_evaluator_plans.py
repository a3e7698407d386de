"""Evaluations of policies that plan, and paths through mazes."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from linear_policy import LinearPolicy
from numpy.random import SeedSequence
from remembering_policy import RememberingPolicy

from algorithms.interface import PlanRequest
from rollout_workers.actor import seeded_streams
from rollout_workers.env import ActionBox, BatchEnv, StepResult
from rollout_workers.envs import env_spec, make_batch_env, make_env
from rollout_workers.evaluator import Evaluation, Evaluator
from rollout_workers.maze import maze_of

MAZE = "FixedGoal/PointMaze_UMaze-v3"


def slow_episode(
    env_id: str, policy: RememberingPolicy, seed: int
) -> tuple[list[float], list[np.ndarray], list[np.ndarray]]:
    """Rewards, observations and plan of one episode in Gymnasium's own environment, planned and acted by itself."""
    env = make_env(env_id)
    box = ActionBox(env.action_space, env_id)
    obs, _ = env.reset(seed=seed)
    rewards, seen, ended = [0.0], [np.asarray(obs)], False
    policy.reset(1)
    stream = seeded_streams([SeedSequence(seed, spawn_key=(2,))])
    policy.begin(np.array([0]), np.asarray(obs, np.float32)[None], stream)
    while not ended:
        action_EA = policy.act(np.asarray(obs, np.float32)[None], np.array(rewards[-1:], np.float32))
        obs, reward, terminated, truncated, _ = env.step(box.rescale(action_EA)[0])
        rewards.append(float(reward))
        seen.append(np.asarray(obs))
        ended = terminated or truncated
    env.close()
    return rewards[1:], seen, [policy.plan_EA[0]]


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "Hopper-v5"])
def test_returns_equal_a_slow_loop_that_plans_each_episode_by_itself(env_id: str) -> None:
    spec = env_spec(env_id)
    policy = RememberingPolicy(spec.obs_dim, spec.action_dim)
    weights = policy.weights(1, generation=2, version=4)
    result = Evaluator(env_id, policy, episodes=3, seed=40).evaluate(weights)
    slow = [slow_episode(env_id, policy, 40 + i) for i in range(3)]
    assert result.lengths == [len(rewards) for rewards, _, _ in slow]
    np.testing.assert_allclose(result.returns, [sum(rewards) for rewards, _, _ in slow], rtol=1e-5)
    np.testing.assert_allclose(result.predicted, [seen[0].sum() for _, seen, _ in slow], rtol=1e-5)
    assert (result.mode, result.target, result.variance) == ("recall", None, [4.0] * 3)
    assert (result.generation, result.version, result.path_length, result.paths) == (2, 4, [], [])


def test_an_episode_is_the_same_whatever_runs_beside_it() -> None:
    spec = env_spec("Hopper-v5")
    policy = RememberingPolicy(spec.obs_dim, spec.action_dim)
    weights = policy.weights(0)
    results = [Evaluator("Hopper-v5", policy, max_envs=n).evaluate(weights, episodes=5, seed=5) for n in (1, 2, 5)]
    assert results[0].returns == results[1].returns == results[2].returns
    assert results[0].predicted == results[1].predicted == results[2].predicted
    alone = Evaluator("Hopper-v5", policy).evaluate(weights, episodes=1, seed=8)
    assert alone.returns == results[2].returns[3:4]
    assert len(set(results[0].returns)) == 5


def test_all_episodes_are_planned_in_one_batch() -> None:
    policy = RememberingPolicy(3, 1)
    Evaluator("Pendulum-v1", policy).evaluate(policy.weights(0), episodes=40)
    assert [envs for envs, _, _ in policy.begun] == [list(range(40))]


def test_an_aim_is_for_one_evaluation() -> None:
    policy = RememberingPolicy(3, 1)
    evaluator = Evaluator("Pendulum-v1", policy, episodes=2)
    aimed = evaluator.evaluate(policy.weights(0), aim=PlanRequest(mode="st", target_return=-150.0))
    assert (aimed.mode, aimed.target) == ("st", -150.0)
    plain = evaluator.evaluate(policy.weights(0))
    assert (plain.mode, plain.target) == ("recall", None)


def test_an_aim_for_a_policy_that_makes_no_plans_is_refused() -> None:
    policy = LinearPolicy(3, 1)
    with pytest.raises(ValueError, match="requested of a policy that makes no plans"):
        Evaluator("Pendulum-v1", policy).evaluate(policy.weights(0), aim=PlanRequest(mode="st"))


@pytest.mark.parametrize("predicts", [True, False])
def test_an_evaluation_is_strict_json(predicts: bool) -> None:
    policy = RememberingPolicy(4, 2, predicts=predicts)
    result = Evaluator(MAZE, policy, episodes=2).evaluate(policy.weights(0), record_paths=True)
    found = json.loads(json.dumps(dataclasses.asdict(result), allow_nan=False))
    assert Evaluation(**found) == result
    assert len(result.predicted) == len(result.variance) == (2 if predicts else 0)


def test_a_policy_that_makes_no_plans_leaves_the_plans_fields_empty() -> None:
    policy = LinearPolicy(3, 1)
    result = Evaluator("Pendulum-v1", policy, episodes=2).evaluate(policy.weights(0))
    assert (result.mode, result.target, result.predicted, result.reached) == ("", None, [], [])


class BreakingEnv:
    """Environments of which the second and the first step of the third give NaN."""

    def __init__(self, env_id: str, num_envs: int, seed: int, fast: bool) -> None:
        self.env: BatchEnv = make_batch_env(env_id, num_envs, seed, fast)
        self.t = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self.env, name)

    def reset(self, seeds: list[int]) -> np.ndarray:
        obs_EO = self.env.reset(seeds)
        obs_EO[1] = np.nan
        return obs_EO

    def step(self, actions_EA: np.ndarray) -> StepResult:
        step, self.t = self.env.step(actions_EA), self.t + 1
        if self.t == 10:
            step.reward_E[2] = np.nan
        return step


def test_a_broken_episode_is_left_out_of_every_list_and_touches_no_other() -> None:
    policy = RememberingPolicy(4, 2)
    weights = policy.weights(0)
    whole = Evaluator(MAZE, policy, episodes=4, seed=3).evaluate(weights, record_paths=True)
    result = Evaluator(MAZE, policy, episodes=4, seed=3, make_env=BreakingEnv).evaluate(weights, record_paths=True)
    assert result.errors == [
        "episode with seed 4: a non-finite observation after 0 steps",
        "episode with seed 5: a non-finite reward after 10 steps",
    ]
    for field in dataclasses.fields(Evaluation):
        values = getattr(whole, field.name)
        if isinstance(values, list) and field.name != "errors":
            assert getattr(result, field.name) == [values[0], values[3]], field.name


def test_paths_equal_a_slow_walk_along_gymnasiums_observations() -> None:
    maze = maze_of(MAZE)
    assert maze is not None and maze.goal_xy is not None
    policy = RememberingPolicy(4, 2)
    policy.act = (
        lambda obs_EO, reward_E: np.clip(  # pushes towards the goal: arrives from the cells beside it, and stays
            10 * (maze.goal_xy - obs_EO[:, :2]) - obs_EO[:, 2:], -1, 1
        ).astype(np.float32)
    )
    result = Evaluator(MAZE, policy, episodes=12, seed=0).evaluate(policy.weights(0), record_paths=True)
    for i in range(12):
        rewards, seen, _ = slow_episode(MAZE, policy, i)
        xy_T2 = np.array(seen)[:, :2]
        inside = np.linalg.norm(xy_T2[0] - maze.goal_xy) <= 0.45
        paid = [t + 1 for t, reward in enumerate(rewards) if reward > 0]
        reached = 0 if inside else paid[0] if paid else -1
        walked = xy_T2 if reached < 0 else xy_T2[: reached + 1]
        assert (result.reached[i], result.starts_in_goal[i]) == (reached, inside)
        np.testing.assert_allclose(result.paths[i], xy_T2, atol=1e-4)
        assert result.path_length[i] == pytest.approx(np.linalg.norm(np.diff(walked, axis=0), axis=1).sum(), abs=1e-3)
        straight = maze.shortest_path(xy_T2[:1])[0] - 0.45
        assert result.shortest_path[i] == pytest.approx(max(0.0, straight), abs=1e-6)
        if reached > 0:
            assert result.path_length[i] >= result.shortest_path[i] - 1e-3
    assert len(result.paths[0]) == result.lengths[0] + 1
    assert {0, -1} < set(result.reached) and any(result.starts_in_goal)


def test_mazes_whose_goals_change_have_no_path_figures() -> None:
    spec = env_spec("PointMaze_UMaze-v3")
    policy = RememberingPolicy(spec.obs_dim, spec.action_dim)
    result = Evaluator("PointMaze_UMaze-v3", policy, episodes=2).evaluate(policy.weights(0))
    assert result.path_length == result.reached == []


def test_paths_of_what_is_no_maze_are_refused() -> None:
    policy = RememberingPolicy(3, 1)
    with pytest.raises(ValueError, match="paths of Pendulum-v1"):
        Evaluator("Pendulum-v1", policy).evaluate(policy.weights(0), record_paths=True)
