"""Cells, ways and taut strings of point mazes."""

from __future__ import annotations

import sys

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout_workers.env import EnvError
from rollout_workers.envs import make_env
from rollout_workers.maze import BALL, Maze, maze_of

MAZES = [f"FixedGoal/PointMaze_{name}-v3" for name in ("UMaze", "Medium", "Large")]


def draw(*rows: str) -> Maze:
    return Maze(np.array([[letter == "#" for letter in row] for row in rows]))


@pytest.mark.parametrize("env_id", MAZES)
def test_cells_stand_where_the_simulation_has_them(env_id):
    maze, own = maze_of(env_id), make_env(env_id).unwrapped.point_maze.maze
    for cell, centre in zip(maze.free_K2, maze.centre_K2):
        np.testing.assert_array_equal(own.cell_rowcol_to_xy(cell), centre)
        assert own.maze_map[cell[0]][cell[1]] == 0
    assert len(maze.free_K2) == sum(row.count(0) for row in own.maze_map)


def test_the_goals_are_those_of_the_contract():
    cells = [maze_of(env_id).goal_cell for env_id in MAZES]
    assert cells == [(1, 1), (6, 6), (7, 10)]
    np.testing.assert_array_equal(maze_of(MAZES[0]).goal_xy, [-1.0, 1.0])


@pytest.mark.parametrize("env_id", MAZES)
def test_steps_and_next_cells_equal_floyd_and_warshall(env_id):
    maze = maze_of(env_id)
    gap = np.abs(maze.free_K2[:, None] - maze.free_K2).sum(-1)
    steps = np.where(gap <= 1, gap, 10**6)
    for k in range(len(gap)):
        steps = np.minimum(steps, steps[:, k : k + 1] + steps[k])
    np.testing.assert_array_equal(maze.steps_KK, steps)
    for k in range(len(gap)):
        for t in range(len(gap)):
            after = maze.next_KK[k, t]
            assert after == t == k if k == t else gap[k, after] == 1 and steps[after, t] == steps[k, t] - 1


@given(x=st.floats(-3, 3), y=st.floats(-3, 3))
@settings(deadline=None)
def test_a_position_lies_in_the_cell_around_it_or_the_nearest_free_one(x, y):
    maze = maze_of(MAZES[0])
    found = maze.centre_K2[maze.cells_of(np.array([[x, y]]))[0]]
    inside = np.abs(maze.centre_K2 - [x, y]).max(axis=1) < 0.5
    if inside.any():
        np.testing.assert_array_equal(found, maze.centre_K2[inside][0])
    assert np.isin(found, maze.centre_K2).all()


def slow_shortest_path(maze: Maze, start: np.ndarray, target: np.ndarray, per_m: int) -> float:
    """Dijkstra over a fine grid with moves to 16 directions: up to 2.8 % longer than the ball's true way."""
    import heapq

    rows, columns = maze.wall_RC.shape
    moves = [(i, j) for i in range(-2, 3) for j in range(-2, 3) if np.gcd(i, j) == 1]
    walls = np.argwhere(maze.wall_RC)
    centres = np.stack([walls[:, 1] + 0.5 - columns / 2, rows / 2 - walls[:, 0] - 0.5], axis=1)

    def free(x: float, y: float) -> bool:
        gap = np.maximum(np.abs(centres - [x, y]) - 0.5, 0.0)
        return bool((np.hypot(gap[:, 0], gap[:, 1]) >= BALL - 1e-9).all())

    grid = {
        (i, j): free(i / per_m, j / per_m)
        for i in range(-columns * per_m // 2, columns * per_m // 2 + 1)
        for j in range(-rows * per_m // 2, rows * per_m // 2 + 1)
    }
    first, last = (tuple(np.round(np.asarray(point) * per_m).astype(int).tolist()) for point in (start, target))
    best, queue = {first: 0.0}, [(0.0, first)]
    while queue:
        length, at = heapq.heappop(queue)
        if at == last:
            return length
        if length > best[at]:
            continue
        for i, j in moves:
            to = (at[0] + i, at[1] + j)
            longer = length + float(np.hypot(i, j)) / per_m
            if grid.get(to, False) and longer < best.get(to, np.inf):
                best[to] = longer
                heapq.heappush(queue, (longer, to))
    raise AssertionError("no way")


def test_the_taut_string_is_just_below_the_balls_way_over_a_fine_grid():
    maze = maze_of(MAZES[0])
    for start in ([-1.0, -1.0], [-1.25, -0.75], [1.25, -1.25], [0.75, 1.25]):
        ball = slow_shortest_path(maze, np.array(start), maze.goal_xy, per_m=40)
        string = maze.shortest_path(np.array([start]))[0]
        assert 0.96 * ball - 0.01 <= string <= ball + 0.005  # its moves cut the arc by some mm


def test_ways_that_can_be_told_by_hand():
    hall = draw("######", "#    #", "######")
    assert hall.shortest_path(np.array([[-1.5, 0.2]]), (1.5, 0.2))[0] == pytest.approx(3.0)
    bend = draw("####", "#  #", "## #", "####")  # one corner, at (0, 0)
    inner = BALL / np.sqrt(2)  # the square inscribed in the ball's arc around it
    down, along = np.hypot(0.5 - inner, 0.5 + inner), np.hypot(0.5 + inner, 0.5 - inner)
    seen = bend.shortest_path(np.array([[-0.5, 0.5]]), (0.5, -0.5))[0]
    assert seen == pytest.approx(min(down + along, 2 * np.hypot(0.5 + inner, 0.5 - inner)))
    assert (bend.shortest_path(np.array([[0.5, -0.5]]), (0.5, -0.5)) == 0).all()


@pytest.mark.parametrize("env_id", MAZES)
def test_the_string_is_between_the_straight_line_and_the_way_over_centres(env_id):
    maze = maze_of(env_id)
    rng = np.random.default_rng(0)
    cell = rng.integers(len(maze.free_K2), size=500)
    xy = maze.centre_K2[cell] + rng.uniform(-0.39, 0.39, (500, 2))
    length = maze.shortest_path(xy)
    over_centres = (
        np.linalg.norm(xy - maze.centre_K2[cell], axis=1) + maze.steps_KK[cell, maze.index_of(maze.goal_cell)]
    )
    assert (length >= np.linalg.norm(xy - maze.goal_xy, axis=1) - 1e-12).all() and (
        length <= over_centres + 1e-12
    ).all()
    nearby = xy + rng.uniform(-0.005, 0.005, xy.shape)
    assert np.abs(maze.shortest_path(nearby) - length).max() <= 0.0071 + 1e-9  # it changes no faster than one moves


def test_a_ball_pressed_into_a_wall_has_a_way_too():
    maze = maze_of(MAZES[0])
    assert np.isfinite(maze.shortest_path(np.array([[-1.0, 0.52], [1.48, 0.0], [0.52, 0.0]]))).all()


def test_what_is_no_maze_gives_none_and_imports_nothing():
    assert maze_of("Hopper-v5") is None and maze_of("antigravity:PointMaze_UMaze-v3") is None
    assert "antigravity" not in sys.modules
    assert maze_of("PointMaze_Medium-v3").goal_cell is None
    with pytest.raises(EnvError, match="no fixed goal"):
        maze_of("PointMaze_Medium-v3").shortest_path(np.zeros((1, 2)))
    with pytest.raises(EnvError, match="unknown environment 'PointMaze_Nowhere-v3'"):
        maze_of("PointMaze_Nowhere-v3")


def test_a_map_is_made_without_building_an_environment(monkeypatch):
    def refuse(*words, **settings):
        raise AssertionError("an environment was built")

    monkeypatch.setattr(gym, "make", refuse)
    maze_of.cache_clear()
    assert maze_of(MAZES[1]).goal_cell == (6, 6)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (("###", "#  ", "###"), "walls all around"),
        (("###", "###", "###"), "walls all around"),
        (("#####", "# # #", "#####"), "not all connected"),
    ],
)
def test_a_map_that_the_ball_could_leave_or_that_falls_apart_is_refused(rows, message):
    with pytest.raises(EnvError, match=message):
        draw(*rows)


def test_a_cell_that_is_not_free_is_refused():
    maze = maze_of(MAZES[0])
    with pytest.raises(EnvError, match=r"cell \(0, 0\) is a wall"):
        maze.index_of((0, 0))
    with pytest.raises(EnvError, match=r"cell \(9, 1\) is outside of the maze"):
        maze.index_of((9, 1))
