"""Spaces as flat vectors: the rescale to the action box, flattening, and what cannot be trained on."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec as Registration
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout_workers.env import ActionBox, flatten_observation, flatten_observations, observation_dim
from rollout_workers.env_ids import name_module
from rollout_workers.envs import EnvError, env_spec, make_batch_env

bounds = st.floats(-1e3, 1e3, width=32)


class Odd(gym.Env):
    """An environment with any spaces."""

    def __init__(self, action_space=None, observation_space=None, fails=False, render_mode=None):
        if fails:
            raise RuntimeError("no licence file")
        self.action_space = action_space or Box(-1, 1, (2,))
        self.observation_space = observation_space or Box(-1, 1, (3,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


@pytest.fixture
def registered():
    """Registers an Odd environment under drawbridge-test/Odd-v0 for one test."""
    env_id = "drawbridge-test/Odd-v0"

    def register(**kwargs):
        gym.registry[env_id] = Registration(env_id, entry_point=Odd, kwargs=kwargs)
        return env_id

    yield register
    gym.registry.pop(env_id, None)


@settings(deadline=None)
@given(st.lists(st.tuples(bounds, bounds).map(sorted), min_size=1, max_size=5), st.data())
def test_rescaled_actions_stay_in_the_box_and_reach_its_corners(pairs, data):
    low, high = np.array(pairs, dtype=np.float32).T
    box = ActionBox(Box(low, high, dtype=np.float32), "box")
    width = len(pairs)
    action = np.array([data.draw(st.lists(st.floats(-1.5, 1.5), min_size=width, max_size=width))], dtype=np.float32)
    assert box.rescale(action).dtype == np.float32
    assert (box.rescale(action) >= low).all() and (box.rescale(action) <= high).all()
    tolerance = 1e-6 * max(1.0, float(np.abs([low, high]).max()))
    np.testing.assert_allclose(box.rescale(np.full((1, width), -1, np.float32))[0], low, atol=tolerance)
    np.testing.assert_allclose(box.rescale(np.full((1, width), 1, np.float32))[0], high, atol=tolerance)
    slow = [lo + (np.clip(a, -1, 1) + 1) / 2 * (hi - lo) for a, lo, hi in zip(action[0].astype(float), low, high)]
    np.testing.assert_allclose(box.rescale(action)[0], slow, atol=2 * tolerance)


@pytest.mark.parametrize(("env_id", "bound"), [("Humanoid-v5", 0.4), ("Pendulum-v1", 2.0), ("Pusher-v5", 2.0)])
def test_one_is_the_upper_bound_of_known_tasks(env_id, bound):
    spec = env_spec(env_id)
    assert np.allclose(spec.high, bound) and np.allclose(spec.low, -bound)


def test_rescaling_keeps_nan_and_does_not_touch_its_input():
    box = ActionBox(Box(-2, 2, (2,)), "box")
    action = np.array([[np.nan, 0.5]], dtype=np.float32)
    kept = action.copy()
    scaled = box.rescale(action)
    assert np.isnan(scaled[0, 0]) and scaled[0, 1] == 1.0
    np.testing.assert_array_equal(action, kept)


def test_actions_take_the_shape_of_the_box():
    box = ActionBox(Box(-3, 3, (2, 2)), "box")
    assert box.dim == 4
    np.testing.assert_allclose(box.rescale(np.full((5, 4), 0.5, np.float32)), np.full((5, 2, 2), 1.5))


@pytest.mark.parametrize("shape", [(3,), (2, 3), (1, 1, 2)])
def test_actions_of_a_wrong_shape_are_refused(shape):
    with pytest.raises(EnvError, match=r"expected \(environments, 2\)"):
        ActionBox(Box(-1, 1, (2,)), "box").rescale(np.zeros(shape, np.float32))


def test_dict_observations_are_flattened_in_the_order_of_their_sorted_keys():
    space = Dict({"b": Box(-1, 1, (2, 2)), "a": Dict({"z": Box(-1, 1, ()), "y": Box(0, 255, (3,), dtype=np.uint8)})})
    obs = {"b": np.arange(8.0).reshape(2, 2, 2), "a": {"z": np.array([90.0, 91.0]), "y": np.arange(6).reshape(2, 3)}}
    flat = flatten_observations(obs, 2)
    assert observation_dim(space, "env") == 8 and flat.dtype == np.float32
    np.testing.assert_array_equal(flat, [[0, 1, 2, 90, 0, 1, 2, 3], [3, 4, 5, 91, 4, 5, 6, 7]])
    one = {"b": obs["b"][1], "a": {"z": obs["a"]["z"][1], "y": obs["a"]["y"][1]}}
    np.testing.assert_array_equal(flatten_observation(one), flat[1])


def test_flattened_observations_are_copies():
    obs = np.zeros((2, 3), dtype=np.float32)
    flatten_observations(obs, 2)[:] = 1
    assert (obs == 0).all()


@pytest.mark.parametrize(
    ("spaces", "message"),
    [
        ({"action_space": Discrete(3)}, "continuous actions"),
        ({"action_space": Box(-np.inf, np.inf, (2,))}, r"unbounded action box: coordinate 0 is in \[-inf, inf\]"),
        ({"action_space": Box(np.array([-1, 0]), np.array([1, np.inf]), dtype=np.float64)}, "coordinate 1"),
        ({"action_space": Box(0, 9, (2,), dtype=np.int64)}, "of type int64"),
        ({"action_space": MultiBinary(2)}, "expected a Box of floats"),
        ({"observation_space": Discrete(4)}, "expected a Box or a Dict of Boxes"),
        ({"observation_space": Dict({"a": Discrete(4)})}, r"\['a'\] has the observation space Discrete"),
        ({"fails": True}, "RuntimeError: no licence file"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_with_what_to_do(registered, spaces, message):
    env_id = registered(**spaces)
    with pytest.raises(EnvError, match=message) as caught:
        env_spec(env_id)
    assert env_id in str(caught.value) and "expected" in str(caught.value)


def test_any_environment_with_boxes_is_accepted(registered):
    env_id = registered(observation_space=Dict({"b": Box(-1, 1, (2, 2)), "a": Box(-1, 1, (1,))}))
    spec = env_spec(env_id)
    assert (spec.obs_dim, spec.action_dim, spec.max_episode_steps, spec.fast) == (5, 2, None, False)
    env = make_batch_env(env_id, 3, seed=0)
    assert env.reset().shape == (3, 5)
    assert env.step(np.zeros((3, 2), np.float32)).next_obs_EO.shape == (3, 5)
    env.close()


def test_a_discrete_task_of_gymnasium_is_refused():
    with pytest.raises(EnvError, match="CartPole-v1 has the action space Discrete"):
        env_spec("CartPole-v1")


@pytest.mark.parametrize(
    ("env_id", "nearest"),
    [
        ("HalfCheeta-v5", "HalfCheetah-v5"),
        ("halfcheetah-v5", "HalfCheetah-v5"),
        ("PointMaze_Umaze-v3", "PointMaze_UMaze-v3"),
    ],
)
def test_an_unknown_id_is_answered_with_the_nearest_ones(env_id, nearest):
    with pytest.raises(EnvError, match=f"unknown environment '{env_id}'.*nearest: .*{nearest}"):
        env_spec(env_id)


def test_an_id_like_no_other_says_so():
    with pytest.raises(EnvError, match="none is close"):
        env_spec("qqqqqqqq")


def test_a_module_before_the_id_is_imported_first(tmp_path, monkeypatch):
    (tmp_path / "drawbridge_odd_envs.py").write_text(
        "import gymnasium as gym\n"
        "gym.register('OddPendulum-v0', 'gymnasium.envs.classic_control.pendulum:PendulumEnv', max_episode_steps=7)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    name_module("drawbridge_odd_envs:OddPendulum-v0")
    assert env_spec("drawbridge_odd_envs:OddPendulum-v0").max_episode_steps == 7
    gym.registry.pop("OddPendulum-v0")


def test_a_module_that_does_not_import_is_named():
    name_module("no_such_module:Some-v0")
    with pytest.raises(EnvError, match=r"names the module 'no_such_module'.*--py-modules PATH"):
        env_spec("no_such_module:Some-v0")


def test_dm_control_without_its_packages_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EnvError, match=r"pip install -c constraints.txt -e '\.\[dmc\]'"):
        env_spec("dm_control/dog-walk-v0")


@pytest.mark.parametrize(
    ("env_id", "dims", "limit", "fast"),
    [
        ("HalfCheetah-v5", (17, 6), 1000, True),
        ("Humanoid-v5", (348, 17), 1000, True),
        ("PointMaze_UMaze-v3", (8, 2), 300, True),
        ("Pendulum-v1", (3, 1), 200, False),
    ],
)
def test_the_spec_says_what_the_environment_is(env_id, dims, limit, fast):
    spec = env_spec(env_id)
    assert ((spec.obs_dim, spec.action_dim), spec.max_episode_steps, spec.fast) == (dims, limit, fast)


def test_no_environments_are_refused():
    with pytest.raises(EnvError, match="expected 1 or more"):
        make_batch_env("Pendulum-v1", 0, seed=0)
