"""The batched MuJoCo path against Gymnasium's own environments."""

from __future__ import annotations

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rollout_workers.batched_mujoco import BatchedMujocoEnv, has_fast_path
from rollout_workers.env import flatten_observation
from rollout_workers.envs import EnvError, episode_seed, make_batch_env, make_env
from rollout_workers.mujoco_stack import MujocoStack

RUNNERS = ["HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5", "Humanoid-v5", "Swimmer-v5"]
MUJOCO = [*RUNNERS, "InvertedPendulum-v5", "InvertedDoublePendulum-v5", "Reacher-v5", "Pusher-v5"]
MAZES = ["PointMaze_UMaze-v3", "PointMaze_LargeDense-v3", "PointMaze_Medium_Diverse_GR-v3"]


def flat(obs):
    """One of Gymnasium's observations as float64, Dicts in sorted order."""
    return np.concatenate([obs[key] for key in sorted(obs)]) if isinstance(obs, dict) else obs


@pytest.mark.parametrize("env_id", MUJOCO + MAZES)
def test_every_step_equals_gymnasiums_own_environments(env_id):
    """200 steps from the same start states: observations (contact forces included), rewards and ends, to 1e-9."""
    batch = BatchedMujocoEnv(env_id, 2, AutoresetMode.DISABLED)
    singles = [make_env(env_id) for _ in range(2)]
    rng = np.random.default_rng(3)
    obs, _ = batch.reset(seed=[11, 42])
    for row, env, seed in zip(obs, singles, (11, 42)):
        np.testing.assert_allclose(row, flat(env.reset(seed=seed)[0]), rtol=0, atol=1e-9)
    box = batch.single_action_space
    forces = 0
    for t in range(200):
        hold = 20 if env_id in MAZES else 1  # pushes long enough to reach walls and the speed limit
        if t % hold == 0:
            actions = rng.uniform(box.low, box.high, batch.action_space.shape).astype(np.float32)
            actions = np.sign(actions) if env_id in MAZES else actions
        obs, reward, terminated, truncated, _ = batch.step(actions)
        for i, env in enumerate(singles):
            own = env.step(actions[i])
            np.testing.assert_allclose(obs[i], flat(own[0]), rtol=0, atol=1e-9)
            assert abs(reward[i] - own[1]) <= 1e-9
            assert (terminated[i], truncated[i]) == own[2:4]
            forces += env_id in ("Ant-v5", "Humanoid-v5") and np.abs(env.unwrapped.data.cfrc_ext).sum() > 0
        ended = terminated | truncated
        if ended.any():
            obs, _ = batch.reset(seed=[100 + t, 500 + t], options={"reset_mask": ended})
            for i in np.flatnonzero(ended):
                np.testing.assert_allclose(obs[i], flat(singles[i].reset(seed=[100 + t, 500 + t][i])[0]), atol=1e-9)
    assert forces or env_id not in ("Ant-v5", "Humanoid-v5")


@pytest.mark.parametrize(
    "env_id", ["HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5", "Humanoid-v5", "Swimmer-v5"]
)
def test_switching_constraint_islands_off_is_bit_identical(env_id):
    models = [make_env(env_id).unwrapped.model for _ in range(2)]
    models[1].opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_ISLAND)
    datas = [mujoco.MjData(model) for model in models]
    rng = np.random.default_rng(0)
    for _ in range(60):
        ctrl = rng.uniform(-0.4, 0.4, models[0].nu)
        for model, data in zip(models, datas):
            data.ctrl[:] = ctrl
            mujoco.mj_step(model, data, 5)
        np.testing.assert_array_equal(datas[0].qpos, datas[1].qpos)
        np.testing.assert_array_equal(datas[0].qvel, datas[1].qvel)


@pytest.mark.parametrize("env_id", ["Pusher-v5", "Reacher-v5"])
def test_islands_stay_on_where_there_are_several_trees(env_id):
    off = int(mujoco.mjtDisableBit.mjDSBL_ISLAND)
    model = make_env(env_id).unwrapped.model
    MujocoStack(model, frame_skip=1, num_envs=1, contact_forces=False, extra_sensors=lambda data: [])
    assert not model.opt.disableflags & off


def test_environments_that_take_turns_in_one_simulation_do_not_touch_each_other():
    """A row's trajectory is the same, bit for bit, whoever else is in the batch."""
    alone, among = (BatchedMujocoEnv("Ant-v5", n) for n in (1, 4))
    actions = np.random.default_rng(0).uniform(-1, 1, (60, 4, 8)).astype(np.float32)
    alone.reset(seed=[5])
    among.reset(seed=[9, 8, 5, 7])
    for action in actions:
        left, right = alone.step(action[2:3]), among.step(action)
        np.testing.assert_array_equal(left[0][0], right[0][2])
        assert left[1][0] == right[1][2]


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("env_id", ["Hopper-v5", "PointMaze_UMaze-v3"])
def test_each_autoreset_mode_equals_gymnasiums_sync_vector_env(env_id, mode):
    """Unseeded autoresets go on with each environment's own random numbers, as in Gymnasium."""
    steps = 320 if env_id.startswith("PointMaze") else 80
    ours = BatchedMujocoEnv(env_id, 2, mode)
    own = SyncVectorEnv([lambda: gym.wrappers.FlattenObservation(make_env(env_id))] * 2, autoreset_mode=mode)
    np.testing.assert_array_equal(ours.reset(seed=7)[0], own.reset(seed=7)[0])
    rng, ends = np.random.default_rng(0), 0
    for _ in range(steps):
        actions = rng.uniform(-1, 1, ours.action_space.shape).astype(np.float32)
        left, right = ours.step(actions), own.step(actions)
        for a, b in zip(left[:4], right[:4]):
            np.testing.assert_array_equal(a, b)
        done = left[2] | left[3]
        ends += int(done.sum())
        assert ("final_obs" in left[4]) == (mode is AutoresetMode.SAME_STEP and done.any())
        if "final_obs" in left[4]:
            np.testing.assert_array_equal(left[4]["_final_obs"], right[4]["_final_obs"])
            for i in np.flatnonzero(done):
                np.testing.assert_array_equal(left[4]["final_obs"][i], right[4]["final_obs"][i])
        if mode is AutoresetMode.DISABLED and done.any():
            left, right = (env.reset(options={"reset_mask": done.copy()})[0] for env in (ours, own))
            np.testing.assert_array_equal(left, right)
    assert ends > 0


def test_the_vector_env_has_gymnasiums_face():
    env = BatchedMujocoEnv("HalfCheetah-v5", 3)
    assert isinstance(env, gym.vector.VectorEnv)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    obs, info = env.reset(seed=0)
    assert env.observation_space.contains(obs) and obs.dtype == np.float64 and info == {}
    assert env.action_space.shape == (3, 6) and env.single_observation_space.shape == (17,)
    wrapped = gym.wrappers.vector.RecordEpisodeStatistics(env)
    wrapped.reset(seed=0)
    wrapped.step(env.action_space.sample())
    env.close()


def test_observations_handed_out_do_not_change_later():
    env = BatchedMujocoEnv("InvertedPendulum-v5", 2)
    first, _ = env.reset(seed=0)
    kept = first.copy()
    second = env.step(np.ones((2, 1), np.float32))[0]
    np.testing.assert_array_equal(first, kept)
    second[:] = np.nan
    assert np.isfinite(env.step(np.ones((2, 1), np.float32))[0]).all()


def test_stepping_what_has_ended_or_not_begun_is_refused():
    env = BatchedMujocoEnv("InvertedPendulum-v5", 1, AutoresetMode.DISABLED)
    with pytest.raises(EnvError, match="reset first"):
        env.step(np.zeros((1, 1), np.float32))
    env.reset(seed=0)
    while not env.step(np.full((1, 1), 3, np.float32))[2][0]:
        pass
    with pytest.raises(EnvError, match=r"environments \[0\] have ended"):
        env.step(np.zeros((1, 1), np.float32))


@pytest.mark.parametrize("kwargs", [{"ctrl_cost_weight": 1.0}, {"continuing_task": False}])
def test_other_arguments_than_the_defaults_take_gymnasiums_path(kwargs):
    base = "HalfCheetah-v5" if "ctrl_cost_weight" in kwargs else "PointMaze_UMaze-v3"
    assert has_fast_path(base)
    entry_point = gym.spec(base).entry_point
    gym.register("drawbridge-test/Other-v0", entry_point, kwargs=gym.spec(base).kwargs | kwargs)
    try:
        assert not has_fast_path("drawbridge-test/Other-v0")
        with pytest.raises(EnvError, match="no batched path"):
            BatchedMujocoEnv("drawbridge-test/Other-v0", 1)
    finally:
        gym.registry.pop("drawbridge-test/Other-v0")


@pytest.mark.parametrize("steps_before", [0, 1, 5])
def test_a_simulation_that_blows_up_is_shown_as_nan_not_as_mujocos_silent_restart(steps_before):
    env = make_batch_env("HalfCheetah-v5", 2, seed=0)
    env.reset()
    for _ in range(steps_before):
        env.step(np.zeros((2, 6), np.float32))
    state = env.state()
    state["physics"][1, 3] = np.nan
    env.load_state(state)
    result = env.step(np.zeros((2, 6), np.float32))
    assert np.isnan(result.next_obs_EO[1]).all() and np.isnan(result.obs_EO[1]).all()
    assert np.isfinite(result.next_obs_EO[0]).all()
    assert np.isfinite(env.force_reset([1])).all()
    assert np.isfinite(env.step(np.zeros((2, 6), np.float32)).next_obs_EO).all()


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("env_id", ["Hopper-v5", "Humanoid-v5", "PointMaze_UMaze-v3"])
def test_the_steps_after_a_saved_state_are_bit_identical(env_id, fast):
    source, target = (make_batch_env(env_id, 2, seed=seed, fast=fast) for seed in (1, 2))
    source.reset()
    target.reset()
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (100, 2, source.action_dim)).astype(np.float32)
    for action in actions[:45]:
        source.step(action)
    obs = target.load_state(source.state())
    for action in actions[45:]:
        left, right = source.step(action), target.step(action)
        for a, b in zip(left, right):
            np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(obs.shape, left.obs_EO.shape)


def test_the_states_random_numbers_are_saved_too():
    source, target = (BatchedMujocoEnv("Reacher-v5", 2) for _ in range(2))
    source.reset(seed=0)
    target.reset(seed=1)
    target.load_state(source.state())
    for _ in range(55):  # past the time limit: an unseeded reset
        actions = np.zeros((2, 2), np.float32)
        np.testing.assert_array_equal(source.step(actions)[0], target.step(actions)[0])


def test_a_state_of_another_batch_is_refused():
    two, three = (make_batch_env("Hopper-v5", n, seed=0) for n in (2, 3))
    two.reset()
    three.reset()
    with pytest.raises(EnvError, match=r"expected \(3, 11\): nothing was changed"):
        three.load_state(two.state())


@pytest.mark.parametrize("env_id", ["Hopper-v5", "PointMaze_UMaze-v3", "Reacher-v5"])
def test_the_fast_path_and_gymnasiums_give_the_same_run(env_id):
    """One seed, two paths behind BatchEnv: equal in float32, over the ends of episodes and their derived seeds."""
    fast, slow = (make_batch_env(env_id, 3, seed=4, fast=fast) for fast in (True, False))
    np.testing.assert_array_equal(fast.reset(), slow.reset())
    rng = np.random.default_rng(0)
    for _ in range(120):
        actions = rng.uniform(-1, 1, (3, fast.action_dim)).astype(np.float32)
        *one, left_in_one = fast.step(actions)
        *other, left_in_other = slow.step(actions)
        assert left_in_one is None and left_in_other is None  # no episode is given up
        for a, b in zip(one, other):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
    assert fast.max_episode_steps == slow.max_episode_steps


def test_an_episodes_first_state_is_that_of_its_derived_seed():
    env = make_batch_env("InvertedPendulum-v5", 1, seed=0)
    env.reset([77])
    single = make_env("InvertedPendulum-v5")
    for episode in range(1, 4):
        result = env.step(np.ones((1, 1), np.float32))
        while not (result.terminated_E | result.truncated_E)[0]:
            result = env.step(np.ones((1, 1), np.float32))
        first = flatten_observation(single.reset(seed=episode_seed(77, episode))[0])
        np.testing.assert_array_equal(result.obs_EO[0], first)
