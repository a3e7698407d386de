"""Point mazes with one fixed goal: gymnasium-robotics' own simulation, its batched twin, and how they are found by id."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rollout_workers.batched_mujoco import BatchedMujocoEnv
from rollout_workers.envs import EnvError, env_spec, make_batch_env, make_env
from rollout_workers.fixed_goal import fixed_goal_id
from rollout_workers.maze import maze_of
from rollout_workers.renderer import NoRenderer, find_gl

UMAZE, MEDIUM, LARGE = (f"FixedGoal/PointMaze_{name}-v3" for name in ("UMaze", "Medium", "Large"))
ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(("env_id", "limit"), [(UMAZE, 300), (MEDIUM, 600), (LARGE, 800)])
def test_the_spec_says_what_the_maze_is(env_id, limit):
    spec = env_spec(env_id)
    assert (spec.obs_dim, spec.action_dim, spec.max_episode_steps, spec.fast) == (4, 2, limit, True)
    assert spec.low.tolist() == [-1, -1] and spec.high.tolist() == [1, 1]


@pytest.mark.filterwarnings("ignore:.*A Box observation space")
def test_gymnasiums_checker_finds_nothing_to_complain_of():
    check_env(gym.make(UMAZE).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("env_id", [UMAZE, MEDIUM, LARGE])
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_the_batched_path_is_bit_identical_to_gymnasiums_own_environments(env_id, mode):
    """Through walls' contacts, the speed limit, the goal, the time limit, and resets of every kind."""
    limit = env_spec(env_id).max_episode_steps
    ours = BatchedMujocoEnv(env_id, 3, mode)
    own = SyncVectorEnv([lambda: make_env(env_id)] * 3, autoreset_mode=mode)
    np.testing.assert_array_equal(ours.reset(seed=[5, 6, 7])[0], own.reset(seed=[5, 6, 7])[0])
    rng, ends = np.random.default_rng(0), 0
    for t in range(limit + 60):
        if t % 15 == 0:
            actions = rng.choice([-1.0, 0.3, 1.0], (3, 2)).astype(np.float32)
        left, right = ours.step(actions), own.step(actions)
        for a, b in zip(left[:4], right[:4]):
            np.testing.assert_array_equal(a, b)
        done = left[3]
        ends += int(done.sum())
        if mode is AutoresetMode.DISABLED and done.any():
            left, right = (env.reset(seed=[1, None, 2], options={"reset_mask": done.copy()})[0] for env in (ours, own))
            np.testing.assert_array_equal(left, right)
    assert ends > 0


def test_a_step_is_paid_within_45_cm_of_the_goal_and_nothing_ends_there():
    env, goal = make_batch_env(UMAZE, 64, seed=0), maze_of(UMAZE).goal_xy
    obs = env.reset()
    paid = []
    for _ in range(80):
        step = env.step(np.clip(10 * (goal - obs[:, :2]) - obs[:, 2:], -1, 1).astype(np.float32))
        obs = step.next_obs_EO
        near = np.linalg.norm(obs[:, :2] - goal, axis=1)
        clear = np.abs(near - 0.45) > 1e-4
        np.testing.assert_array_equal(step.reward_E[clear], (near <= 0.45)[clear])
        assert not step.terminated_E.any() and not step.truncated_E.any()
        paid.append(step.reward_E.mean())
    assert 0 < paid[-1] < 1


@pytest.mark.parametrize("env_id", [UMAZE, MEDIUM, LARGE])
def test_starts_are_at_rest_and_spread_evenly_over_all_free_cells(env_id):
    maze = maze_of(env_id)
    batch = 4_000
    obs = BatchedMujocoEnv(env_id, batch).reset(seed=0)[0]
    cell = maze.cells_of(obs)
    offset = obs[:, :2] - maze.centre_K2[cell]
    assert np.abs(offset).max() <= 0.25 and np.abs(offset.mean(axis=0)).max() < 0.01 and (obs[:, 2:] == 0).all()
    count = np.bincount(cell, minlength=len(maze.free_K2))
    mean = batch / len(count)
    assert np.abs(count - mean).max() < 4.5 * np.sqrt(mean)
    assert count[maze.index_of(maze.goal_cell)] > 0


def test_the_goal_is_the_same_in_every_episode():
    env = make_env(UMAZE)
    for seed in range(5):
        env.reset(seed=seed)
        np.testing.assert_array_equal(env.unwrapped.point_maze.goal, [-1.0, 1.0])
        site = env.unwrapped.point_maze.target_site_id
        np.testing.assert_array_equal(env.unwrapped.point_maze.model.site_pos[site, :2], [-1.0, 1.0])


def test_the_steps_after_a_saved_state_are_bit_identical():
    source, target = (make_batch_env(UMAZE, 2, seed=seed) for seed in (1, 2))
    source.reset()
    target.reset()
    actions = np.random.default_rng(0).uniform(-1, 1, (320, 2, 2)).astype(np.float32)
    for action in actions[:250]:
        source.step(action)
    target.load_state(source.state())
    for action in actions[250:]:
        for a, b in zip(source.step(action), target.step(action)):
            np.testing.assert_array_equal(a, b)


def test_it_draws_itself_with_the_goal_in_view():
    try:
        gl = find_gl()
    except NoRenderer as error:
        pytest.skip(str(error))
    code = (
        "from rollout_workers.envs import make_env\n"
        f"env = make_env({UMAZE!r}, render_mode='rgb_array'); env.reset(seed=0)\n"
        "frame = env.render().astype(int); print('red', int(((frame[..., 0] - frame[..., 1:].max(-1)) > 80).sum()))"
    )
    words = ["env", f"MUJOCO_GL={gl}", f"PYOPENGL_PLATFORM={gl}", sys.executable, "-c", code]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split("red")[-1]) > 50


def test_another_process_finds_a_maze_by_its_id_alone():
    code = f"from rollout_workers.envs import make_batch_env; print(make_batch_env({MEDIUM!r}, 2, 0).reset().shape)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "(2, 4)" in done.stdout, done.stderr


@pytest.mark.parametrize("wrong", ["FixedGoal/PointMaze_Umaze-v3", "FixedGoal/PointMaze_UMaz-v3", "FixedGoal/UMaze-v3"])
def test_an_unknown_maze_is_answered_with_the_nearest_one(wrong):
    with pytest.raises(EnvError, match=rf"unknown environment '{wrong}'.*nearest: .*{UMAZE}"):
        env_spec(wrong)


@pytest.mark.parametrize("env_id", [UMAZE, "PointMaze_UMaze-v3"])
def test_without_gymnasium_robotics_the_message_says_what_to_install(env_id, monkeypatch):
    for known in [name for name in gym.registry if "PointMaze" in name]:
        monkeypatch.delitem(gym.registry, known)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EnvError, match=r"gymnasium-robotics, .* is not installed.*pip install"):
        env_spec(env_id)


def test_a_maze_with_a_moving_goal_has_a_variant_with_a_fixed_one():
    assert fixed_goal_id("PointMaze_UMaze-v3") == fixed_goal_id(UMAZE) == UMAZE
    with pytest.raises(EnvError, match=f"Hopper-v5 has no variant with a fixed goal, expected one of {UMAZE}"):
        fixed_goal_id("Hopper-v5")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"maze_id": "Hopper-v5"}, "is no PointMaze id"), ({"goal_cell": (0, 0)}, r"cell \(0, 0\) is a wall")],
)
def test_a_goal_that_cannot_be_placed_is_refused(kwargs, message):
    with pytest.raises(EnvError, match=message):
        gym.make(UMAZE, **kwargs)
