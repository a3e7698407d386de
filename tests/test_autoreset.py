"""Any vector environment behind BatchEnv: true last observations, truncation apart from termination, in every mode."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec as Registration
from gymnasium.spaces import Box, Dict
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout_workers.envs import EnvError, env_seeds, episode_seed, make_batch_env
from rollout_workers.gym_vector import VectorBatchEnv

MODES = list(AutoresetMode)
ENV_ID = "drawbridge-test/Counter-v0"
LIMIT = 5


class Counter(gym.Env):
    """Observes (episode's random tag, steps since reset, sum of actions); 1 terminates, -1 gives a NaN reward."""

    observation_space = Dict({"sum": Box(-np.inf, np.inf, (1,)), "count": Box(-np.inf, np.inf, (2,))})
    action_space = Box(-4.0, 4.0, (1,))

    def __init__(self, render_mode=None):
        self.sum = 0.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.tag, self.steps, self.sum = float(self.np_random.integers(1, 1 << 20)), 0, 0.0
        return self._observe(), {}

    def step(self, action):
        self.steps += 1
        self.sum += float(action[0])
        reward = np.nan if action[0] < -3.6 else self.steps
        return self._observe(), reward, bool(action[0] > 3.6), False, {"own": 1}

    def _observe(self):
        return {"count": np.float32([self.tag, self.steps]), "sum": np.float32([self.sum])}


@pytest.fixture(autouse=True)
def counter():
    gym.registry[ENV_ID] = Registration(ENV_ID, entry_point=Counter, max_episode_steps=LIMIT)
    yield
    gym.registry.pop(ENV_ID)


def batch(mode, num_envs=2, kind=SyncVectorEnv):
    makers = [lambda: gym.make(ENV_ID, disable_env_checker=True)] * num_envs
    return VectorBatchEnv(kind(makers, autoreset_mode=mode), env_id=ENV_ID, seed=3)


def act(*values):
    return np.array(values, dtype=np.float32)[:, None]


@pytest.mark.parametrize("mode", MODES)
def test_a_truncated_episode_keeps_its_true_last_observation(mode):
    env = batch(mode)
    first = env.reset()
    for step in range(1, LIMIT + 1):
        result = env.step(act(0.5, 0.25))
        np.testing.assert_array_equal(result.next_obs_EO, [[first[0, 0], step, 2 * step], [first[1, 0], step, step]])
        np.testing.assert_array_equal(result.reward_E, [step, step])
        assert result.valid_E.all() and not result.terminated_E.any()
        assert result.truncated_E.all() == (step == LIMIT)


@pytest.mark.parametrize("mode", MODES)
def test_termination_and_truncation_are_told_apart(mode):
    env = batch(mode)
    env.reset()
    for _ in range(LIMIT - 1):
        env.step(act(0, 0))
    result = env.step(act(1, 0))
    assert result.terminated_E.tolist() == [True, False]
    assert result.truncated_E.tolist() == [True, True]  # both at once is the environment's word, not ours to change


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_the_next_observation_to_act_on_is_the_new_episodes_first(mode):
    env = batch(mode)
    first = env.reset()
    result = env.step(act(1, 0))
    assert result.terminated_E.tolist() == [True, False]
    assert result.next_obs_EO[0].tolist() == [first[0, 0], 1, 4]
    assert result.obs_EO[0, 1:].tolist() == [0, 0] and result.obs_EO[0, 0] != first[0, 0]
    np.testing.assert_array_equal(result.obs_EO[1], result.next_obs_EO[1])
    following = env.step(act(0, 0))
    assert following.next_obs_EO[:, 1].tolist() == [1, 2] and following.valid_E.all()
    assert following.next_obs_EO[0, 0] == result.obs_EO[0, 0]


def test_next_step_mode_marks_the_ignored_action_as_invalid():
    env = batch(AutoresetMode.NEXT_STEP)
    first = env.reset()
    ended = env.step(act(1, 0))
    assert ended.next_obs_EO[0].tolist() == [first[0, 0], 1, 4] and ended.valid_E.all()
    ignored = env.step(act(0.5, 0))
    assert ignored.valid_E.tolist() == [False, True]
    assert not ignored.terminated_E.any() and ignored.obs_EO[0, 1:].tolist() == [0, 0]
    following = env.step(act(0.5, 0))
    assert following.valid_E.all()
    assert following.next_obs_EO[0].tolist() == [ignored.obs_EO[0, 0], 1, 2]


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(MODES), st.lists(st.tuples(*[st.sampled_from([-0.5, 0.0, 0.5, 1.0])] * 2), max_size=25))
def test_recorded_transitions_are_whole_in_every_mode(mode, script):
    """Whatever ends when: no transition crosses episodes, none is missing, and chains of observations close."""
    env = batch(mode)
    obs = env.reset()
    for row in script:
        result = env.step(act(*row))
        for i in np.flatnonzero(result.valid_E):
            tag, steps, total = obs[i]
            assert result.next_obs_EO[i].tolist() == [tag, steps + 1, total + 4 * row[i]]
            assert result.reward_E[i] == steps + 1
            assert result.terminated_E[i] == (row[i] == 1.0)
            assert result.truncated_E[i] == (steps + 1 == LIMIT)
        obs = result.obs_EO


@pytest.mark.parametrize("mode", MODES)
def test_nan_passes_through_without_harm(mode):
    env = batch(mode)
    env.reset()
    assert np.isnan(env.step(act(-1, 0)).reward_E[0])
    result = env.step(act(np.nan, 0))
    assert np.isnan(result.next_obs_EO[0, 2]) and np.isfinite(result.next_obs_EO[1]).all()
    for _ in range(2 * LIMIT):
        result = env.step(act(0, 0))
    assert np.isfinite(result.next_obs_EO).all()


def test_processes_behind_a_vector_environment_work_too():
    env = batch(AutoresetMode.NEXT_STEP, kind=AsyncVectorEnv)
    try:
        first = env.reset()
        assert env.step(act(1, 0)).next_obs_EO[0].tolist() == [first[0, 0], 1, 4]
        assert env.step(act(0, 0)).valid_E.tolist() == [False, True]
        state = env.state()
        begun = env.load_state(state)  # episodes that none of these environments has had
        assert env.not_replayed.keys() == {0, 1} and (begun[:, 0] != state["obs"][:, 0]).all()
    finally:
        env.close()


def test_a_vector_entry_point_decides_its_own_mode():
    for mode in MODES:
        gym.registry[ENV_ID] = Registration(
            ENV_ID,
            entry_point=Counter,
            vector_entry_point=lambda num_envs, mode=mode: SyncVectorEnv([Counter] * num_envs, autoreset_mode=mode),
        )
        env = make_batch_env(ENV_ID, 2, seed=0)
        env.reset()
        env.step(act(1, 0))
        assert env.step(act(0, 0)).valid_E.all() == (mode is not AutoresetMode.NEXT_STEP)


def test_a_vector_environment_that_hides_its_mode_is_refused():
    vec = SyncVectorEnv([Counter])
    vec.metadata = {}
    with pytest.raises(EnvError, match=r"metadata\['autoreset_mode'\] is None"):
        VectorBatchEnv(vec, env_id=ENV_ID)


def test_a_vector_environment_that_loses_last_observations_is_refused():
    class Forgetful(SyncVectorEnv):
        def step(self, actions):
            *result, _ = super().step(actions)
            return (*result, {})

    env = VectorBatchEnv(Forgetful([Counter], autoreset_mode=AutoresetMode.SAME_STEP), env_id=ENV_ID)
    env.reset()
    with pytest.raises(EnvError, match="no infos\\['final_obs'\\]"):
        env.step(act(1))


def test_last_observations_may_come_as_one_batch_of_each_part():
    class Batched(SyncVectorEnv):
        def step(self, actions):
            *result, infos = super().step(actions)
            ended = [one or {"sum": np.zeros(1), "count": np.zeros(2)} for one in infos.get("final_obs", [])]
            final = {key: np.stack([one[key] for one in ended]) for key in ("sum", "count")} if ended else {}
            return (*result, {"final_obs": final})

    env = VectorBatchEnv(Batched([Counter] * 2, autoreset_mode=AutoresetMode.SAME_STEP), env_id=ENV_ID)
    first = env.reset()
    assert env.step(act(1, 0)).next_obs_EO.tolist() == [[first[0, 0], 1, 4], [first[1, 0], 1, 0]]


def test_every_episode_starts_from_its_derived_seed():
    """A run is a function of its seeds, whatever has happened before in the process."""
    env = batch(AutoresetMode.DISABLED)
    obs = env.reset([70, 80])
    tags = [[obs[0, 0]], [obs[1, 0]]]
    for _ in range(3 * LIMIT):
        result = env.step(act(0, 0))
        for i in np.flatnonzero(result.terminated_E | result.truncated_E):
            tags[i].append(result.obs_EO[i, 0])
    for i, seed in enumerate((70, 80)):
        for episode, tag in enumerate(tags[i]):
            single = Counter()
            assert tag == single.reset(seed=episode_seed(seed, episode))[0]["count"][0]


@settings(deadline=None)
@given(st.integers(0, 2**63), st.integers(0, 500))
def test_seeds_are_32_bit_and_do_not_repeat(seed, episode):
    seeds = env_seeds(seed, 4)
    assert len(set(seeds)) == 4 and all(0 <= s < 2**32 for s in seeds)
    assert env_seeds(seed, 6)[:4] == seeds
    later = episode_seed(seeds[0], episode + 1)
    assert 0 <= later < 2**32 and later == episode_seed(seeds[0], episode + 1)
    assert episode_seed(seeds[0], 0) == seeds[0] and later != episode_seed(seeds[0], episode + 2)


def test_reset_without_seeds_takes_those_of_the_batch():
    np.testing.assert_array_equal(
        batch(AutoresetMode.DISABLED).reset(), batch(AutoresetMode.DISABLED).reset(env_seeds(3, 2))
    )


def test_a_wrong_number_of_seeds_is_refused():
    with pytest.raises(EnvError, match="3 seeds, expected 2"):
        batch(AutoresetMode.DISABLED).reset([1, 2, 3])


@pytest.mark.parametrize("fast", [True, False])
def test_cutting_starts_new_episodes_in_those_environments_alone(fast):
    env = make_batch_env("Hopper-v5", 3, seed=0, fast=fast)
    env.reset()
    before = env.step(np.zeros((3, 3), np.float32)).obs_EO
    obs = env.force_reset([1])
    np.testing.assert_array_equal(obs[[0, 2]], before[[0, 2]])
    assert (obs[1] != before[1]).any()
    np.testing.assert_array_equal(env.force_reset([]), obs)
    single = gym.make("Hopper-v5")
    np.testing.assert_array_equal(obs[1], single.reset(seed=episode_seed(env_seeds(0, 3)[1], 1))[0].astype(np.float32))


SELF_RESETTING = [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP]
STEPS = st.tuples(*[st.sampled_from([-0.5, 0.0, 0.5, 1.0])] * 2, st.sampled_from([[], [], [0], [1], [0, 1]]))


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(SELF_RESETTING), st.lists(STEPS, max_size=25))
def test_an_episode_given_up_where_only_the_environment_resets_is_left_out_to_its_own_end(mode, script):
    """Against one that nobody gives up: whatever is not left out is the same, and what is left out is one episode's rest."""
    env, truth = batch(mode), batch(mode)
    env.reset()
    truth.reset()
    left_E, reset_E = np.zeros((2, 2), bool)
    for *row, given_up in script:
        result, true = env.step(act(*row)), truth.step(act(*row))
        expected_E = left_E & true.valid_E
        seen_E = np.zeros(2, bool) if result.left_E is None else result.left_E
        assert seen_E.tolist() == expected_E.tolist() and result.valid_E.tolist() == (true.valid_E & ~left_E).tolist()
        for seen, real in zip(result[:5], true[:5]):
            np.testing.assert_array_equal(seen[result.valid_E], real[result.valid_E])
        ended_E = true.terminated_E | true.truncated_E
        reset_E = ended_E if mode is AutoresetMode.SAME_STEP else ~true.valid_E
        left_E = left_E & ~reset_E
        np.testing.assert_array_equal(result.obs_EO, np.where(left_E[:, None], 0, true.obs_EO))
        for i in given_up:
            left_E[i] |= not reset_E[i]  # it has only just begun another episode
        np.testing.assert_array_equal(env.force_reset(given_up), np.where(left_E[:, None], 0, true.obs_EO))
    np.testing.assert_array_equal(env.reset([1, 2]), truth.reset([1, 2]))
    assert env.step(act(0, 0)).left_E is None


def test_a_replayed_state_goes_on_bit_identically():
    source, target = batch(AutoresetMode.DISABLED), batch(AutoresetMode.DISABLED)
    source.reset([1, 2])
    target.reset([3, 4])
    actions = np.random.default_rng(0).uniform(-0.8, 0.8, (20, 2, 1)).astype(np.float32)
    for action in actions[:8]:
        source.step(action)
    np.testing.assert_array_equal(target.load_state(source.state()), source.load_state(source.state()))
    for action in actions[8:]:
        for a, b in zip(source.step(action), target.step(action)):
            np.testing.assert_array_equal(a, b)


def test_an_episode_too_long_to_replay_is_saved_without_its_actions_and_ended_when_it_is_loaded(monkeypatch):
    monkeypatch.setattr("rollout_workers.action_log._LIMIT", 3)
    env = batch(AutoresetMode.DISABLED)
    env.reset()
    for _ in range(4):
        env.step(act(0, 0))
    state = env.state()
    assert state["steps"].tolist() == [4, 4] and state["actions"].shape[1] == 0
    there = batch(AutoresetMode.DISABLED)
    there.load_state(state)
    assert there.not_replayed == dict.fromkeys((0, 1), "it had 4 steps, of which at most 3 are kept")
    assert there.state()["steps"].tolist() == [0, 0]
    env.step(act(0, 0))
    assert env.state()["steps"].tolist() == [0, 0]


@pytest.mark.parametrize("mode", MODES)
def test_results_handed_out_do_not_change_later(mode):
    env = batch(mode)
    env.reset()
    first = env.step(act(1, 0))
    kept = [array.copy() for array in first[:6]]
    for _ in range(3):
        env.step(act(0, 1))
    for array, copy in zip(first, kept):
        np.testing.assert_array_equal(array, copy)
