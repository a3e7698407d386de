"""How episodes walked through a maze, beside the shortest way.

Letters: E environments (one an episode), T steps of one, O observation dim.
"""

from __future__ import annotations

import numpy as np

from rollout_workers.maze import REACHED, Maze


class MazePaths:
    """Path length, shortest path and the first arrival of E episodes that run side by side.

    An episode arrives with the step that first pays, as the environment judges it, and at step 0 when it starts inside
    the goal. Its path is measured until it arrives, and to its end where it never does: staying at a goal that goes on
    paying is no detour.

    Args:
        maze: with one fixed goal.
        obs_EO: first observations; a position in metres stands in the first two columns.
        record: whether the positions of every step are kept.
    """

    def __init__(self, maze: Maze, obs_EO: np.ndarray, record: bool) -> None:
        self._xy_E2 = _positions(obs_EO)
        self.length_E = np.zeros(len(obs_EO))  # float64, metres
        self.shortest_E = np.maximum(maze.shortest_path(self._xy_E2) - REACHED, 0.0)  # metres, to the goal's edge
        self.starts_in_goal_E = np.linalg.norm(self._xy_E2 - maze.goal_xy, axis=1) <= REACHED
        self.reached_E = np.where(self.starts_in_goal_E, 0, -1)  # steps made on arrival; -1: never arrived
        self._track = [self._xy_E2] if record else []

    @property
    def recorded(self) -> bool:
        return bool(self._track)

    def add(self, counted_E: np.ndarray, step_E: np.ndarray, next_obs_EO: np.ndarray, reward_E: np.ndarray) -> None:
        """Takes one step of the environments in ``counted_E`` (bool); ``step_E``: steps they have made with it."""
        xy_E2 = np.where(counted_E[:, None], _positions(next_obs_EO), self._xy_E2)
        under_way_E = counted_E & (self.reached_E < 0)
        self.length_E += np.where(under_way_E, np.hypot(*(xy_E2 - self._xy_E2).T), 0.0)
        arrived_E = under_way_E & (reward_E > 0.0)
        self.reached_E[arrived_E] = step_E[arrived_E]
        self._xy_E2 = xy_E2
        if self._track:
            self._track.append(xy_E2)

    def positions(self, episode: int, steps: int) -> list[list[float]]:
        """Recorded positions (steps + 1, 2) of one episode, its start first."""
        path: list[list[float]] = [xy_E2[episode].tolist() for xy_E2 in self._track[: steps + 1]]
        return path


def _positions(obs_EO: np.ndarray) -> np.ndarray:
    return obs_EO[:, :2].astype(np.float64)
