"""Episodes for datasets, against Gymnasium's own environments, the evaluator and the shard's own episodes."""

from __future__ import annotations

from itertools import islice

import broken_envs
import gymnasium as gym
import numpy as np
import pytest
from numpy.random import SeedSequence
from remembering_policy import RememberingPolicy
from tiny_runs import train_inline

from cluster.checks import spec_of
from cluster.commands import collecting
from cluster.commands.collecting import (
    FIXED_STARTS,
    collect_agent_episodes,
    collect_maze_episodes,
    measure_agent_references,
    measure_references,
)
from cluster.commands.evaluation import newest_weights
from cluster.errors import RunError, UsageError
from cluster.graph import make_evaluator, make_shard
from cluster.run_dir import RunDirectory
from replay.messages import CUT
from replay.snapshot import load
from rollout_workers.env import EnvError
from rollout_workers.env_ids import find_env
from rollout_workers.envs import make_env
from rollout_workers.episodes import EpisodeRuns
from rollout_workers.maze import maze_of
from rollout_workers.waypoints import WaypointPlanner

UMAZE = "FixedGoal/PointMaze_UMaze-v3"


def same(one, other):
    assert one._replace(index=0, obs_TO=0, action_TA=0, reward_T=0, next_obs_O=0) == other._replace(
        index=0, obs_TO=0, action_TA=0, reward_T=0, next_obs_O=0
    )
    for name in ("obs_TO", "action_TA", "reward_T", "next_obs_O"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def slow_maze_episode(number, *, noise, dwell, seed):
    """One episode in Gymnasium's own environment: observations, actions and rewards as lists."""
    env = make_env(UMAZE)
    start, stream = (SeedSequence(seed, spawn_key=(number, use)) for use in (0, 1))
    planner = WaypointPlanner(maze_of(UMAZE), noise=noise, dwell=dwell)
    planner.start([np.random.default_rng(stream)])
    seen, actions, rewards, over = (
        [env.reset(seed=int(start.generate_state(1)[0]))[0].astype(np.float32)],
        [],
        [],
        False,
    )
    while not over:
        actions.append(planner.act(seen[-1][None])[0])
        obs, reward, _, over, _ = env.step(actions[-1])
        seen.append(obs.astype(np.float32))
        rewards.append(reward)
    return np.array(seen), np.array(actions), np.array(rewards)


def test_maze_episodes_are_those_of_gymnasiums_own_environment_bit_by_bit():
    for number, episode in enumerate(collect_maze_episodes(UMAZE, episodes=2, noise=0.5, dwell=20, seed=3)):
        seen, actions, rewards = slow_maze_episode(number, noise=0.5, dwell=20, seed=3)
        np.testing.assert_array_equal(episode.obs_TO, seen[:-1])
        np.testing.assert_array_equal(episode.next_obs_O, seen[-1])
        np.testing.assert_array_equal(episode.action_TA, actions)
        np.testing.assert_array_equal(episode.reward_T, rewards)
        assert (episode.index, episode.terminated, episode.truncated) == (number, False, True)
        assert episode.obs_TO.dtype == episode.action_TA.dtype == np.float32 and episode.reward_T.dtype == np.float64
        assert np.abs(episode.action_TA).max() <= 1


def test_an_episode_depends_on_the_seed_and_its_number_alone():
    many = list(collect_maze_episodes(UMAZE, episodes=66, seed=5))
    few = list(collect_maze_episodes("PointMaze_UMaze-v3", episodes=3, seed=5))
    for one, other in zip(many, few):
        same(one, other)
    assert [episode.index for episode in many] == list(range(66))
    assert len({episode.obs_TO.tobytes() for episode in many}) == 66
    other_seed = next(collect_maze_episodes(UMAZE, episodes=1, seed=6))
    assert not np.array_equal(other_seed.obs_TO[0], many[0].obs_TO[0])


def test_episodes_come_while_others_are_still_to_be_made():
    result = []
    stream = collect_maze_episodes(UMAZE, episodes=10**9, seed=0, progress=result.append)
    assert [episode.index for episode in islice(stream, 2)] == [0, 1] and result == [1, 2]
    stream.close()


def test_staying_at_targets_makes_better_episodes():
    best = [
        max(episode.reward_T.sum() for episode in collect_maze_episodes(UMAZE, episodes=128, dwell=dwell, seed=0))
        for dwell in (0, 50)
    ]
    assert best[0] < 160 < best[1]


def test_references_are_measured_on_the_fixed_starts():
    found = measure_references("PointMaze_UMaze-v3", seed=1, episodes=3)
    returns = []
    for number in range(3):
        env = make_env(UMAZE)
        obs, total, over = env.reset(seed=FIXED_STARTS + number)[0], 0.0, False
        planner = WaypointPlanner(maze_of(UMAZE), target=(1, 1))
        planner.start([np.random.default_rng(0)])
        while not over:
            obs, reward, _, over, _ = env.step(planner.act(obs[None].astype(np.float32))[0])
            total += reward
        returns.append(total)
    assert found.expert_return == pytest.approx(np.mean(returns), abs=1e-9)
    assert found.random_return < found.expert_return
    again = measure_references(UMAZE, seed=2, episodes=3)
    assert again.expert_return == found.expert_return


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"env_id": "Hopper-v5"}, EnvError, "Hopper-v5 has no variant with a fixed goal"),
        ({"episodes": 0}, UsageError, "0 episodes with seed 0 asked for"),
        ({"seed": -1}, UsageError, "seed -1 asked for"),
        ({"noise": -1.0}, EnvError, "noise -1.0"),
        ({"dwell": -1}, EnvError, "dwell -1"),
    ],
)
def test_what_cannot_be_collected_is_refused_before_the_first_episode(change, error, message):
    asked = {"env_id": UMAZE, "episodes": 1, "seed": 0} | change
    with pytest.raises(error, match=message):
        collect_maze_episodes(asked.pop("env_id"), **asked)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("collecting") / "run"
    assert train_inline(path, "InvertedPendulum-v5", 400) == 0
    return path


def plan_at(path):
    directory = RunDirectory.open(path)
    return spec_of(directory.config(), directory)


def test_expert_episodes_are_those_of_the_deterministic_evaluation(run):
    plan = plan_at(run)
    expected = make_evaluator(plan).evaluate(newest_weights(plan), 5, 77)
    actor, streams = collecting._actor(plan), collecting._streams(0, range(5))
    found = EpisodeRuns(plan.config.env).run(actor, [77 + i for i in range(5)], streams)
    assert [len(episode.reward_T) for episode in found] == expected.lengths
    assert [episode.reward_T.sum() for episode in found] == expected.returns
    assert all(episode.terminated != episode.truncated for episode in found)


def test_mixed_episodes_are_those_of_the_two_kinds_in_turn(run):
    kinds = {kind: list(collect_agent_episodes(run, kind, 4, seed=9)) for kind in ("medium", "expert", "mixed")}
    for number, episode in enumerate(kinds["mixed"]):
        same(episode, kinds["medium" if number % 2 == 0 else "expert"][number])
    assert not np.array_equal(kinds["medium"][0].action_TA[:1], kinds["expert"][0].action_TA[:1])
    np.testing.assert_array_equal(kinds["medium"][0].obs_TO[0], kinds["expert"][0].obs_TO[0])
    same(next(collect_agent_episodes(run, "medium", 70, seed=9)), kinds["medium"][0])
    assert all(np.abs(episode.action_TA).max() <= 1 for episode in kinds["medium"])


def test_replayed_episodes_are_all_whole_ones_of_the_snapshot_from_old_to_new(run):
    plan = plan_at(run)
    shard = make_shard(plan, 0)
    assert load(shard, plan.shard_dir(0)) is not None
    expected = sorted(
        (one for one in shard.store.episodes() if one.flag & ~CUT), key=lambda one: (one.version_T[0], one.slot_T[0])
    )
    found = list(collect_agent_episodes(run, "replay", None, seed=0))
    assert len(found) == len(expected) > 10
    for index, (episode, own) in enumerate(zip(found, expected)):
        columns = plan.layout.views(own.rows_TD)
        assert episode.index == index
        np.testing.assert_array_equal(episode.obs_TO, columns.obs)
        np.testing.assert_array_equal(episode.obs_TO[1:], columns.next_obs[:-1])
        np.testing.assert_array_equal(episode.next_obs_O, columns.next_obs[-1])
        np.testing.assert_array_equal(episode.action_TA, columns.action)
        assert episode.terminated == bool(columns.discount[-1] == 0) and episode.terminated != episode.truncated
    some = list(collect_agent_episodes(run, "replay", 5, seed=0))
    assert [episode.index for episode in some] == list(range(5))
    same(some[0], found[0])
    same(some[-1], found[-1])
    assert len(list(collect_agent_episodes(run, "replay", 10**6, seed=0))) == len(found)


def test_an_agents_references_are_random_and_its_best_policy(run):
    directory = RunDirectory.open(run)
    found = measure_agent_references(run, seed=0, episodes=5)
    assert found == measure_agent_references(run, seed=0, episodes=5)
    directory.append("evaluations.jsonl", {"env_steps": 1, "returns": [1000.0, 900.0]})
    assert measure_agent_references(run, seed=0, episodes=5) == (found.random_return, 950.0)
    assert 3 < found.random_return < 12 < 950


def test_what_a_run_cannot_give_is_refused_with_what_to_do(run, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="kind is 'best', expected one of medium, expert, mixed, replay"):
        collect_agent_episodes(run, "best", 1, seed=0)
    with pytest.raises(UsageError, match="None episodes"):
        collect_agent_episodes(run, "medium", None, seed=0)
    with pytest.raises(UsageError, match="is not a run directory"):
        collect_agent_episodes(tmp_path, "medium", 1, seed=0)
    bare = RunDirectory.create(tmp_path / "bare", RunDirectory.open(run).config())
    bare.release()
    for driven, advice in (
        (False, "no process drives the run, .* `drawbridge resume .*bare`$"),
        (True, "let the run|wait for"),
    ):
        if driven:
            bare.hold()
        with pytest.raises(UsageError, match=f"no replay snapshot with a whole episode.*({advice})"):
            collect_agent_episodes(bare.path, "replay", None, seed=0)
        with pytest.raises(RunError, match=f"no checkpoint yet.*({advice})"):
            collect_agent_episodes(bare.path, "medium", 1, seed=0)
    bare.release()
    monkeypatch.setattr(collecting, "make_policy", lambda plan: RememberingPolicy(plan.obs_dim, plan.action_dim))
    with pytest.raises(UsageError, match="expected softgac, sac"):
        collect_agent_episodes(run, "medium", 1, seed=0)


class Fragile(broken_envs.Walk):
    """Its fifth step gives NaN after a start above ``limit``; starts are uniform in [-1, 1]."""

    def __init__(self, limit):
        self.limit = limit

    def reset(self, **words):
        self.steps = 0
        obs, info = super().reset(**words)
        self.breaks = obs[0] > self.limit
        return obs, info

    def step(self, action):
        self.steps += 1
        if self.breaks and self.steps == 5:
            self.place[:] = np.nan
        return self.place.copy(), 0.0, False, False, {}


class Still:
    """Acts with zeros."""

    def reset(self, num_envs):
        pass

    def begin(self, env_K, obs_KO, rng):
        return []

    def act(self, obs_EO, reward_E):
        return np.zeros((len(obs_EO), 1), np.float32)


def collect_fragile(limit, episodes):
    gym.register("drawbridge-test/Fragile-v0", Fragile, max_episode_steps=9, kwargs={"limit": limit})
    try:
        return list(collecting._collect(EpisodeRuns("drawbridge-test/Fragile-v0"), Still(), episodes, 0, None))
    finally:
        gym.registry.pop("drawbridge-test/Fragile-v0")


def test_an_episode_that_meets_a_nan_is_left_out_and_another_made():
    episodes = collect_fragile(0.5, 150)
    assert [episode.index for episode in episodes] == list(range(150))
    assert all(np.isfinite(episode.obs_TO).all() and len(episode.reward_T) == 9 for episode in episodes)
    healthy = collect_fragile(1.0, 150)
    kept = [episode for episode in healthy if episode.obs_TO[0, 0] <= 0.5]
    for one, other in zip(episodes, kept):  # the sound ones are those they would have been
        same(one, other)


def test_nothing_but_nan_is_an_error_not_an_endless_search():
    with pytest.raises(RunError, match="72 of 72 episodes met a NaN or an infinity, expected few: 0 of 3"):
        collect_fragile(-1.0, 3)


def test_an_environment_without_a_time_limit_is_refused():
    spec = find_env("Walk-v0")
    gym.register("drawbridge-test/Endless-v0", spec.entry_point)
    try:
        with pytest.raises(EnvError, match="has no time limit"):
            EpisodeRuns("drawbridge-test/Endless-v0")
    finally:
        gym.registry.pop("drawbridge-test/Endless-v0")
