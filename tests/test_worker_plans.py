"""Workers whose policy carries a plan through its episodes."""

from __future__ import annotations

import functools
from collections.abc import Callable

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_policy import LinearPolicy
from numpy.random import SeedSequence
from remembering_policy import RememberingPolicy
from tagged_env import LAYOUT, TaggedEnv

from algorithms.interface import PlanRequest
from replay.schema import RowLayout
from rollout_workers.actor import NoWeights, seeded_streams
from rollout_workers.config import WorkerConfig
from rollout_workers.env import BatchEnv, StepResult
from rollout_workers.gym_vector import VectorBatchEnv
from rollout_workers.worker import RolloutWorker


def make_worker(
    env_id: str = "Pendulum-v1",
    *,
    policy: RememberingPolicy | LinearPolicy | None = None,
    envs: int = 3,
    steps: int = 8,
    seed: int = 7,
    random_steps: int = 0,
    load: bool = True,
    **options: object,
) -> RolloutWorker:
    policy = RememberingPolicy(3, 1) if policy is None else policy
    worker = RolloutWorker(
        config=WorkerConfig(envs_per_worker=envs, chunk_steps=steps),
        env_id=env_id,
        policy=policy,
        worker=1,
        incarnation=2,
        seed=seed,
        random_steps=random_steps,
        **options,  # type: ignore[arg-type]
    )
    if load:
        worker.load_weights(policy.weights(1, generation=1, version=3))
    return worker


class TappedEnv(TaggedEnv):
    """Remembers the actions that it was given."""

    def __init__(self, num_envs: int, seed: int, faults: float) -> None:
        super().__init__(num_envs, seed, faults=faults)
        self.actions: list[np.ndarray] = []

    def step(self, actions_EA: np.ndarray) -> StepResult:
        self.actions.append(actions_EA.copy())
        return super().step(actions_EA)


def tapped(seed: int, faults: float) -> Callable[..., BatchEnv]:
    return lambda env_id, num_envs, env_seed, fast: TappedEnv(num_envs, seed, faults)


def slow_actions(seed: int, faults: float, steps: int, envs: int) -> list[np.ndarray]:
    """What the environments are given when each has a policy of its own that is begun by itself."""
    env = TappedEnv(envs, seed, faults)
    policies = [RememberingPolicy(3, 1) for _ in range(envs)]
    for policy in policies:
        policy.reset(1)
        policy.load_weights(policy.weights(1).unpack())
    obs_EO, begun, begin, reward = env.reset(), [0] * envs, [True] * envs, [0.0] * envs
    for _ in range(steps):
        actions = []
        for e, policy in enumerate(policies):
            if begin[e]:
                stream = seeded_streams([SeedSequence([7, 1, 2], spawn_key=(2, e, begun[e]))])
                policy.begin(np.array([0]), obs_EO[e : e + 1], stream)
                begun[e] += 1
                reward[e] = 0.0
            actions.append(policy.act(obs_EO[e : e + 1], np.array([reward[e]], np.float32))[0])
        step = env.step(np.array(actions))
        good_E = np.isfinite(step.next_obs_EO).all(axis=1) & np.isfinite(step.reward_E)
        obs_EO = step.obs_EO if good_E.all() else env.force_reset(np.flatnonzero(~good_E).tolist())
        for e in range(envs):
            begin[e] = bool(not good_E[e] or step.terminated_E[e] or step.truncated_E[e])
            reward[e] = float(step.reward_E[e])
    return env.actions


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.1]))
@settings(deadline=None, max_examples=25)
def test_a_worker_equals_one_policy_for_each_environment_across_resets_and_cuts(seed: int, faults: float) -> None:
    worker = make_worker(make_env=tapped(seed, faults))
    while worker.env_steps < 3 * 32:
        worker.collect()
    steps = worker.env_steps // 3
    np.testing.assert_array_equal(worker._env.actions, slow_actions(seed, faults, steps, 3))


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.05, 0.3]))
@settings(deadline=None, max_examples=25)
def test_every_first_row_has_its_episodes_stamp_in_the_same_chunk_and_nothing_else_has(
    seed: int, faults: float
) -> None:
    worker = make_worker(make_env=tapped(seed, faults))
    for _ in range(5):
        chunk = worker.collect()
        first = np.flatnonzero(chunk.step_N == 0)
        starts = dict(zip(chunk.episode_N[first].tolist(), LAYOUT.views(chunk.rows_ND[first]).obs, strict=True))
        assert len(starts) == len(first) == len(chunk.metadata)
        assert {stamp.episode for stamp in chunk.metadata} == set(starts)
        for stamp in chunk.metadata:
            assert (stamp.mode, stamp.predicted) == ("recall", float(starts[stamp.episode].sum()))
        assert chunk.stats["planned_episodes"] == len(chunk.metadata)
        assert chunk.stats["predicted_sum"] == pytest.approx(sum(s.predicted for s in chunk.metadata))
        assert chunk.stats["target_episodes"] == 0 and chunk.stats["act_s"] >= 0 <= chunk.stats["plan_s"]


@pytest.mark.parametrize("steps", [5, 6, 7])  # an episode has 5, and the 6th step resets
def test_an_environment_that_resets_in_its_next_step_is_planned_from_its_true_first_observation(steps: int) -> None:
    make = functools.partial(gym.make, "Pendulum-v1", max_episode_steps=5)

    def make_env(env_id: str, num_envs: int, seed: int, fast: bool) -> BatchEnv:
        vec = SyncVectorEnv([make] * num_envs, autoreset_mode=AutoresetMode.NEXT_STEP)
        return VectorBatchEnv(vec, env_id=env_id, seed=seed)

    worker, stamped = make_worker(make_env=make_env, steps=steps), 0
    for _ in range(5):
        chunk = worker.collect()
        first = chunk.step_N == 0
        obs = RowLayout(obs_dim=3, action_dim=1).views(chunk.rows_ND[first]).obs
        found = dict(zip(chunk.episode_N[first].tolist(), obs.sum(axis=1).tolist()))
        assert {s.episode: s.predicted for s in chunk.metadata} == found
        stamped += len(chunk.metadata)
    assert stamped == 3 * -(-5 * steps // 6)


def test_episodes_that_begin_at_one_step_are_begun_in_one_batch() -> None:
    policy = RememberingPolicy(3, 1)
    worker = make_worker(policy=policy, steps=200)
    for _ in range(3):
        worker.collect()
    assert [envs for envs, _, _ in policy.begun] == [[0, 1, 2]] * 3


def test_nothing_is_begun_before_weights_have_come() -> None:
    policy = RememberingPolicy(3, 1)
    worker = make_worker(policy=policy, load=False)
    assert worker.needs_weights
    with pytest.raises(NoWeights):
        worker.collect()
    assert policy.begun == []
    worker.load_weights(policy.weights(2, version=5))
    assert not worker.needs_weights
    assert (worker.collect().version, len(policy.begun)) == (5, 1)


def test_running_episodes_keep_their_plans_and_the_next_ones_have_the_newest_weights() -> None:
    policy = RememberingPolicy(3, 1)
    worker = make_worker(policy=policy, steps=100)
    worker.collect()
    plan_EA = policy.plan_EA.copy()
    worker.load_weights(policy.weights(9, generation=1, version=4))
    middle = worker.collect()  # ends with step 200, the last of these episodes
    np.testing.assert_array_equal(policy.plan_EA, plan_EA)
    assert middle.metadata == ()
    worker.load_weights(policy.weights(5, generation=1, version=5))
    after = worker.collect()
    assert [bias for _, _, bias in policy.begun] == [1.0, 5.0]
    assert len(after.metadata) == 3 and after.version == 5


@pytest.mark.parametrize("chunks", [0, 1, 2])
def test_a_resumed_worker_goes_on_bit_for_bit_in_the_middle_of_its_plans(chunks: int) -> None:
    worker = make_worker(steps=100)
    for _ in range(chunks):
        worker.collect()
    state = worker.state()
    assert all(isinstance(value, np.ndarray) and value.dtype != object for value in state.values())
    other = make_worker(steps=100, load=False)
    other.load_state(state)
    for _ in range(3):
        a, b = worker.collect(), other.collect()
        for name in ("rows_ND", "episode_N", "step_N", "flag_N"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        assert [s[:4] for s in a.metadata] == [(*s[:2], pytest.approx(np.nan, nan_ok=True), s[3]) for s in b.metadata]


def test_a_state_of_a_policy_that_does_not_plan_is_refused() -> None:
    state = make_worker(policy=LinearPolicy(3, 1)).state()
    assert not any(name.startswith("plans.") for name in state)
    with pytest.raises(ValueError, match="of a policy that does not plan"):
        make_worker().load_state(state)


def test_an_aim_is_what_the_stamps_carry() -> None:
    stamps = make_worker(aim=PlanRequest(mode="st", target_return=-150.0)).collect().metadata
    assert [(s.mode, s.target) for s in stamps] == [("st", -150.0)] * 3


def test_what_a_policy_cannot_follow_is_refused() -> None:
    with pytest.raises(ValueError, match=r"50 random steps .* set worker.random_steps to 0"):
        make_worker(random_steps=50)
    with pytest.raises(ValueError, match="makes no plans"):
        make_worker(policy=LinearPolicy(3, 1), aim=PlanRequest(mode="st"))


def test_a_policy_that_plans_can_be_given_as_what_makes_it() -> None:
    worker = RolloutWorker(
        config=WorkerConfig(envs_per_worker=1, chunk_steps=2),
        env_id="Pendulum-v1",
        policy=lambda: RememberingPolicy(3, 1),
        worker=0,
        incarnation=0,
        seed=0,
        random_steps=0,
    )
    assert worker.needs_weights


def test_two_incarnations_plan_differently_from_the_same_state() -> None:
    plans_EA = []
    for seed in (7, 8):
        policy = RememberingPolicy(3, 1)
        make_worker(policy=policy, seed=seed).collect()
        plans_EA.append(policy.plan_EA)
    assert not np.isin(*plans_EA).any() and len(np.unique(plans_EA)) == 6
