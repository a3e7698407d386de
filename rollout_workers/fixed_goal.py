"""Point mazes with one goal that never moves: gymnasium-robotics' PointMaze, ids FixedGoal/PointMaze_<map>-v3.

A trajectory's return can only say how good its plan is when all trajectories are paid for the same thing: the maze data
of D4RL visit random targets, and evaluation asks for one goal. Which cell that is here, and that starts are drawn from
all cells (the goal's included) unless some are named, are choices of this project.

Letters: K cells in which episodes begin.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from replay.task import id_of
from rollout_workers.env import EnvError
from rollout_workers.env_ids import FIXED_GOAL, FIXED_GOALS
from rollout_workers.maze import Maze, cell_of, maze_of

START_NOISE = 0.25  # m, half-width in each coordinate around the centre of the start's cell


class FixedGoalMaze(gym.Env):
    """PointMaze with its goal at the centre of ``goal_cell`` in every episode, and starts over all free cells or some.

    Observes [x, y, vx, vy], float64, m and m/s. Actions: force (2,) in [-1, 1]. Pays 1 for every step that ends within
    0.45 m of the goal, 0 otherwise, and never terminates. Starts at rest, 0.25 m at most from the centre of a
    start cell in each coordinate, all of them equally likely. Drawn as PointMaze draws itself.

    Args:
        maze_id: PointMaze id whose map and physics are used.
        goal_cell: (row, column) of a free cell.
        start_cells: (row, column) of each free cell in which episodes may begin. None: all.
        render_mode: as in PointMaze.
    """

    metadata = {"render_modes": ["human", "rgb_array", "depth_array"], "render_fps": 50}  # noqa: RUF012

    def __init__(
        self,
        maze_id: str,
        goal_cell: Sequence[int],
        start_cells: Sequence[Sequence[int]] | None = None,
        render_mode: str | None = None,
    ) -> None:
        bare = maze_of(maze_id)
        if bare is None:
            raise EnvError(f"{maze_id} is no PointMaze id, expected one: it has no map to put a goal in; correct it")
        goal = cell_of(goal_cell)
        maze = Maze(bare.wall_RC, goal, start_cells)
        self.start_K2 = maze.centre_K2[maze.start_S]
        self.goal_xy = maze.centre_K2[maze.index_of(goal)]
        point_maze: Any = gym.make(maze_id, disable_env_checker=True, render_mode=render_mode).unwrapped
        self.point_maze = point_maze
        self.render_mode = render_mode
        self.action_space = point_maze.action_space
        self.observation_space = point_maze.point_env.observation_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """See Gymnasium; no options are known."""
        super().reset(seed=seed)
        self.point_maze.goal = self.goal_xy.copy()
        self.point_maze.update_target_site_pos()
        self.point_maze.point_env.init_qpos[:2] = draw_start(self.np_random, self.start_K2)
        obs_O, _ = self.point_maze.point_env.reset(seed=seed)
        return obs_O, {"success": bool(np.linalg.norm(obs_O[:2] - self.goal_xy) <= 0.45)}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """See Gymnasium; ``info["success"]`` says whether the step was paid."""
        obs, reward, terminated, truncated, info = self.point_maze.step(action)
        return obs["observation"], float(reward), terminated, truncated, info

    def render(self) -> Any:
        return self.point_maze.render()

    def close(self) -> None:
        self.point_maze.close()


def draw_start(rng: np.random.Generator, start_K2: np.ndarray) -> np.ndarray:
    """A first position (x, y), m: a cell, then its noise."""
    start = start_K2[rng.integers(len(start_K2))]
    moved: np.ndarray = start + rng.uniform(-START_NOISE, START_NOISE, 2)
    return moved


def fixed_goal_id(env_id: str) -> str:
    """The FixedGoal id of a PointMaze map: ``PointMaze_UMaze-v3`` gives ``FixedGoal/PointMaze_UMaze-v3``.

    A FixedGoal id stays as it is, and so do a task's arguments. EnvError, naming those that exist, for anything else.
    """
    known = [FIXED_GOAL + maze_id for maze_id in FIXED_GOALS]
    wanted = env_id if env_id.startswith(FIXED_GOAL) else FIXED_GOAL + env_id
    if id_of(wanted) not in known:
        raise EnvError(
            f"{env_id} has no variant with a fixed goal, expected one of {', '.join(known)}: a return there would say "
            "nothing about one plan; choose one of them"
        )
    return wanted
