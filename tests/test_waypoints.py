"""The planner that walks point mazes."""

from __future__ import annotations

import numpy as np
import pytest

from rollout_workers.env import EnvError
from rollout_workers.envs import make_batch_env
from rollout_workers.maze import maze_of
from rollout_workers.waypoints import ARRIVED, WaypointPlanner

MAZES = [f"FixedGoal/PointMaze_{name}-v3" for name in ("UMaze", "Medium", "Large")]
UMAZE = MAZES[0]


def streams(count, seed=0):
    return [np.random.default_rng([seed, e]) for e in range(count)]


def started(maze, rngs, **options):
    planner = WaypointPlanner(maze, **options)
    planner.start(rngs)
    return planner


def walk(env_id, planner, seeds, steps):
    """Observations, actions and targets of ``steps`` steps (T, E, ...), and the rewards."""
    env = make_batch_env(env_id, len(seeds), 0)
    obs, seen = env.reset(seeds), []
    for _ in range(steps):
        action = planner.act(obs)
        step = env.step(action)
        seen.append((obs, action, planner.target_E.copy(), step.reward_E))
        obs = step.next_obs_EO
    return tuple(np.array(column) for column in zip(*seen))


@pytest.mark.parametrize("env_id", MAZES)
def test_without_noise_it_reaches_the_goal_from_everywhere_and_stays(env_id):
    maze = maze_of(env_id)
    env = make_batch_env(env_id, 64, 0)
    planner = started(maze, streams(64), target=maze.goal_cell)
    *_, reward = walk(env_id, planner, list(range(64)), env.max_episode_steps - 1)
    assert (reward[-50:] == 1).all()
    assert (np.diff(reward, axis=0) >= 0).all()  # once there it never leaves


class SlowPlanner:
    """One environment, one step at a time, in plain words; the same generators give the same draws."""

    def __init__(self, maze, rng, noise, dwell):
        self.maze, self.noise, self.dwell = maze, noise, dwell
        self.targets, self.noises = rng.spawn(2)
        self.target, self.waypoint, self.stay = self.draw(), None, None

    def draw(self):
        return int(self.targets.integers(len(self.maze.free_K2)))

    def act(self, obs):
        xy, velocity = obs[:2].astype(np.float64), obs[2:]
        cell = int(self.maze.cells_of(xy[None])[0])
        if self.waypoint is None:
            self.waypoint = self.maze.next_KK[cell, self.target]
        reached = ((self.maze.centre_K2[self.waypoint] - xy) ** 2).sum() <= ARRIVED**2
        if reached and self.waypoint == self.target and self.stay is None:
            self.stay = self.dwell
        redrawn = self.stay == 0
        if redrawn:
            self.target, self.stay = self.draw(), None
        elif self.stay is not None:
            self.stay -= 1
        lost = self.maze.steps_KK[cell, self.waypoint] > 1
        if reached or redrawn or lost:
            self.waypoint = self.maze.next_KK[cell if lost else self.waypoint, self.target]
        force = 10.0 * (self.maze.centre_K2[self.waypoint] - xy) - 1.0 * velocity + self.noises.normal(0, self.noise, 2)
        return np.clip(force, -1, 1).astype(np.float32)


@pytest.mark.parametrize("dwell", [0, 7])
def test_the_batch_equals_the_plain_planner_of_each_environment(dwell):
    maze = maze_of(MAZES[1])
    planner = started(maze, streams(4), noise=0.5, dwell=dwell)
    obs, action, target, _ = walk(MAZES[1], planner, [1, 2, 3, 4], 400)
    for e, rng in enumerate(streams(4)):
        slow = SlowPlanner(maze, rng, 0.5, dwell)
        for t in range(400):
            np.testing.assert_array_equal(slow.act(obs[t, e]), action[t, e])
            assert slow.target == target[t, e]


@pytest.mark.parametrize("dwell", [0, 30])
def test_a_target_is_left_when_the_stay_is_over(dwell):
    """Steps from the first within 0.1 m of a target to the next target: ``dwell`` of them."""
    maze = maze_of(UMAZE)
    obs, _, target, _ = walk(UMAZE, started(maze, streams(8), dwell=dwell), list(range(8)), 299)
    stays = []
    for e in range(8):
        changes = np.flatnonzero(np.diff(target[:, e])) + 1
        for begin, end in zip([0, *changes[:-1]], changes):
            near = np.linalg.norm(obs[begin : end + 1, e, :2] - maze.centre_K2[target[begin, e]], axis=1) <= ARRIVED
            stays.append(end - begin - int(np.argmax(near)))
    assert len(stays) > 8
    assert min(stays) == dwell
    assert np.mean(np.array(stays) == dwell) > 0.6  # longer where the same target was drawn again


def test_targets_are_uniform_over_the_free_cells():
    maze = maze_of(UMAZE)
    count = np.bincount(started(maze, streams(7_000)).target_E, minlength=7)
    assert np.abs(count - 1_000).max() < 4 * np.sqrt(1_000)


def test_the_noise_has_the_deviation_asked_for_and_actions_stay_in_the_box():
    maze = maze_of(UMAZE)
    target = tuple(maze.free_K2[3])
    obs = np.zeros((50, 4), np.float32)
    obs[:, :2] = maze.centre_K2[3]  # where no force is due
    planner = started(maze, streams(50), noise=0.2, target=target)
    actions = np.concatenate([planner.act(obs) for _ in range(200)])
    assert actions.dtype == np.float32 and np.abs(actions).max() <= 1
    assert actions.std() == pytest.approx(0.2, abs=0.005) and np.abs(actions.mean(axis=0)).max() < 0.01
    loud = started(maze, streams(50), noise=5.0, target=target).act(obs)
    assert np.abs(loud).max() == 1


def test_an_environments_walk_does_not_depend_on_those_beside_it():
    maze = maze_of(UMAZE)
    many = walk(UMAZE, started(maze, streams(5), noise=0.5), [1, 2, 3, 4, 5], 200)
    one = walk(UMAZE, started(maze, streams(5)[3:4], noise=0.5), [4], 200)
    for a, b in zip(many, one):
        np.testing.assert_array_equal(a[:, 3], b[:, 0])


def at_rest(xy):
    return np.array([[*xy, 0, 0]], np.float32)


def test_pushed_off_its_way_it_plans_anew_from_where_it_stands():
    maze = maze_of(UMAZE)
    planner = started(maze, streams(1), target=maze.goal_cell)
    near, far = maze.centre_K2[1], maze.centre_K2[5]
    planner.act(at_rest(near))
    after = maze.centre_K2[maze.next_KK[5, 0]]
    expected = np.clip(10 * (after - far), -1, 1)
    np.testing.assert_allclose(planner.act(at_rest(far))[0], expected, atol=1e-5)


@pytest.mark.parametrize("wrong", [{"noise": -0.1}, {"noise": 101.0}, {"noise": float("nan")}, {"dwell": -1}])
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(EnvError, match="expected neither to be negative"):
        WaypointPlanner(maze_of(UMAZE), **wrong)
