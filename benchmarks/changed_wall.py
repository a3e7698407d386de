"""Mazes in which one wall is not where it was learned.

Letters: R rows, C columns of a map, K free cells.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable

import gymnasium as gym
import numpy as np

from rollout_workers.env import BatchEnv, EnvError
from rollout_workers.env_ids import FIXED_GOAL, FIXED_GOAL_ENTRY_POINT, find_env
from rollout_workers.envs import make_batch_env
from rollout_workers.maze import Maze, maze_of

Cell = tuple[int, int]


def changed_wall(maze: Maze) -> tuple[Cell, bool]:
    """The cell (row, column) that changes, and whether it is a wall afterwards.

    The free cell is closed through which most of the shortest ways to the goal lead, of those without which every start still has
    a way. Where there is none, as in a maze that is one corridor, the wall is opened that shortens the ways most.
    """
    closed = [(_ways_through(maze, cell), cell) for cell in _cells(maze.free_K2) if _changed(maze, cell, wall=True)]
    if (most := max(closed, default=(0,)))[0] > 1:  # besides the way of who starts there
        return most[1], True
    rows, columns = maze.wall_RC.shape
    inner = _cells(np.argwhere(maze.wall_RC[1 : rows - 1, 1 : columns - 1]) + 1)
    opened = [(_steps_to_goal(maze, made), cell) for cell in inner if (made := _changed(maze, cell, wall=False))]
    return min(opened)[1], False


def make_changed_maze(env_id: str, num_envs: int, first_seed: int, fast: bool = True) -> BatchEnv:
    """The fixed-goal maze ``env_id`` with its ``changed_wall``; starts over all free cells that both have."""
    maze, spec = maze_of(env_id), find_env(env_id)
    assert maze is not None and maze.goal_cell is not None
    cell, wall = changed_wall(maze)
    bare = find_env(spec.kwargs["maze_id"])
    walls = copy.deepcopy(bare.kwargs["maze_map"])
    walls[cell[0]][cell[1]] = int(wall)
    changed_id = bare.id.replace("-v", f"_{cell[0]}_{cell[1]}_changed-v")
    if changed_id not in gym.registry:
        gym.registry[changed_id] = dataclasses.replace(bare, id=changed_id, kwargs=bare.kwargs | {"maze_map": walls})
        starts = [other for other in _cells(maze.free_K2) if other != cell]
        kwargs = {"maze_id": changed_id, "goal_cell": maze.goal_cell, "start_cells": starts}
        gym.register(
            FIXED_GOAL + changed_id, FIXED_GOAL_ENTRY_POINT, max_episode_steps=spec.max_episode_steps, kwargs=kwargs
        )
    return make_batch_env(FIXED_GOAL + changed_id, num_envs, first_seed, fast)


def _cells(cell_K2: Iterable[np.ndarray]) -> list[Cell]:
    return [(int(row), int(column)) for row, column in cell_K2]


def _changed(maze: Maze, cell: Cell, *, wall: bool) -> Maze | None:
    """The maze with the cell changed; None where it would not be whole, or without its goal."""
    wall_RC = maze.wall_RC.copy()
    wall_RC[cell] = wall
    try:
        return Maze(wall_RC, maze.goal_cell)
    except EnvError:
        return None


def _ways_through(maze: Maze, cell: Cell) -> int:
    """Cells with a shortest way to the goal through ``cell``."""
    assert maze.goal_cell is not None
    here, goal = maze.index_of(cell), maze.index_of(maze.goal_cell)
    return int((maze.steps_KK[:, here] + maze.steps_KK[here, goal] == maze.steps_KK[:, goal]).sum())


def _steps_to_goal(maze: Maze, made: Maze) -> int:
    """Moves from all cells of ``maze`` to the goal in ``made``."""
    assert maze.goal_cell is not None
    goal = made.index_of(maze.goal_cell)
    return sum(int(made.steps_KK[made.index_of(cell), goal]) for cell in _cells(maze.free_K2))
