"""The geometry of point mazes: cells, breadth-first distances over them, shortest paths in metres.

Letters: R rows, C columns of the map, K free cells (row by row), S cells in which episodes begin, E positions, M walls,
V corners.
"""

from __future__ import annotations

import functools
import operator
from collections import deque
from collections.abc import Sequence

import gymnasium as gym
import numpy as np

from replay.task import id_of
from rollout_workers.env import EnvError
from rollout_workers.env_ids import find_env

BALL = 0.1  # m, radius of PointMaze's ball
REACHED = 0.45  # m, distance of the ball's centre to the goal within which PointMaze pays
_MARGIN = BALL / np.sqrt(2.0)  # m, see Maze.shortest_path
_MAPPED = ("PointMaze_", "FixedGoal/PointMaze_")  # ids whose cells are 1 m wide


class Maze:
    """A map of square cells, 1 m wide, whose centre is the origin of x (to the right) and y (upwards, against rows).

    Attributes:
        wall_RC: bool. free_K2: int64 (row, column) of the free cells. centre_K2: float64 (x, y) of their centres, m.
        goal_cell: (row, column) of the one fixed goal, None where episodes have goals of their own. goal_xy: its centre.
        start_S: int64, numbers k of the cells in which episodes begin.
        steps_KK: int64, moves between neighbouring cells on a shortest way. next_KK[k, t]: the cell after k towards t.

    Args:
        wall_RC: the map.
        goal_cell: (row, column) of the one fixed goal, if there is one.
        start_cells: (row, column) of each cell in which episodes may begin. None: all free cells.

    Raises EnvError for a map that is not rectangular, closed and connected, for a goal or a start inside a wall, and for
    start cells that are named twice, or the goal's alone; TypeError or ValueError for what is no cell.
    """

    def __init__(
        self,
        wall_RC: np.ndarray,
        goal_cell: Sequence[int] | None = None,
        start_cells: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.wall_RC = np.asarray(wall_RC, dtype=bool)
        _check_closed(self.wall_RC)
        self.free_K2 = np.argwhere(~self.wall_RC)
        self.centre_K2 = self._xy(self.free_K2)
        self._index_RC = np.full(self.wall_RC.shape, -1)
        self._index_RC[tuple(self.free_K2.T)] = np.arange(len(self.free_K2))
        self._nearest_RC = self._nearest_free()
        self.steps_KK, self.next_KK = self._search()
        self.goal_cell = None if goal_cell is None else cell_of(goal_cell)
        self.goal_xy = None
        if self.goal_cell is not None:
            self.goal_xy = self.centre_K2[self.index_of(self.goal_cell, "goal cell")]
        self.start_S = self._starts(start_cells)

    def index_of(self, cell: tuple[int, int], name: str = "cell") -> int:
        """The number k of a free cell (row, column); EnvError, by ``name``, for a wall and for what lies outside."""
        inside = all(0 <= at < size for at, size in zip(cell, self.wall_RC.shape))
        if not inside or self.wall_RC[cell]:
            raise EnvError(
                f"{name} {tuple(cell)} is {'a wall' if inside else 'outside of the maze'}, expected one of the free "
                f"cells {self.free_K2.tolist()} (row, column): nothing can be there; choose one of them"
            )
        return int(self._index_RC[cell])

    def cells_of(self, xy_E2: np.ndarray) -> np.ndarray:
        """The free cell (E,) int64 in which each position lies; for one inside a wall or outside, the nearest."""
        rows, columns = self.wall_RC.shape
        row_E = np.clip(np.floor(rows / 2 - xy_E2[:, 1]), 0, rows - 1).astype(np.int64)
        column_E = np.clip(np.floor(xy_E2[:, 0] + columns / 2), 0, columns - 1).astype(np.int64)
        found: np.ndarray = self._nearest_RC[row_E, column_E]
        return found

    def shortest_path(self, xy_E2: np.ndarray, target_xy: Sequence[float] | np.ndarray | None = None) -> np.ndarray:
        """Length (E,) float64, m, of the shortest way of the ball's centre to ``target_xy``, by default the goal.

        The way is a taut string round the walls' corners, not one from cell to cell. No ball of radius 0.1 m can go
        a shorter one: round a corner its centre keeps to an arc of that radius, the string to the square inscribed in
        it. To come within a distance r < 0.5 m of a cell's centre, the way is shorter by r (and at least 0).
        """
        if target_xy is None and self.goal_xy is None:
            raise EnvError("this maze has no fixed goal, expected a target: no length was found; give target_xy")
        target_12 = np.asarray(self.goal_xy if target_xy is None else target_xy, dtype=np.float64)[None]
        here_E2 = np.asarray(xy_E2, dtype=np.float64)
        length_E = self._taut(here_E2, target_12)
        squeezed_E = ~np.isfinite(length_E)  # pressed into a wall: by way of its cell's centre
        if squeezed_E.any():
            centre_E2 = self.centre_K2[self.cells_of(here_E2[squeezed_E])]
            detour_E = np.linalg.norm(here_E2[squeezed_E] - centre_E2, axis=1)
            length_E[squeezed_E] = detour_E + self._taut(centre_E2, target_12)
        return length_E

    def _taut(self, here_E2: np.ndarray, target_12: np.ndarray) -> np.ndarray:
        corner_V2, between_VV = self._corners
        onward_V = (between_VV + self._in_sight(corner_V2, target_12)[:, 0]).min(axis=1, initial=np.inf)
        around_E = (self._in_sight(here_E2, corner_V2) + onward_V).min(axis=1, initial=np.inf)
        return np.minimum(self._in_sight(here_E2, target_12)[:, 0], around_E)

    @functools.cached_property
    def _corners(self) -> tuple[np.ndarray, np.ndarray]:
        """Where taut strings bend (V, 2), and the shortest paths between those points (V, V)."""
        wall_RC, points = self.wall_RC, []
        for row in range(1, wall_RC.shape[0]):
            for column in range(1, wall_RC.shape[1]):
                around = wall_RC[row - 1 : row + 1, column - 1 : column + 1]
                if around.sum() == 1:  # a corner that sticks out
                    down, right = (int(at) for at in np.argwhere(around)[0])
                    out = np.array([1 - 2 * right, 2 * down - 1])  # away from the wall, in x and y
                    points.append(self._xy(np.array([row - 0.5, column - 0.5])) + _MARGIN * out)
        corner_V2 = np.array(points).reshape(-1, 2)
        between_VV = self._in_sight(corner_V2, corner_V2)
        for v in range(len(corner_V2)):  # Floyd and Warshall
            between_VV = np.minimum(between_VV, between_VV[:, v : v + 1] + between_VV[v])
        return corner_V2, between_VV

    def _in_sight(self, from_P2: np.ndarray, to_Q2: np.ndarray) -> np.ndarray:
        """Distances (P, Q), infinite where the straight way comes closer to a wall than the margin."""
        half = 0.5 + _MARGIN - 1e-9  # touching is allowed
        wall_M2 = self._xy(np.argwhere(self.wall_RC))
        way_PQ2 = to_Q2[None] - from_P2[:, None]
        safe_PQ2 = np.where(way_PQ2 == 0, 1e-300, way_PQ2)[:, :, None]
        gap_PM2 = (wall_M2 - from_P2[:, None])[:, None]
        with np.errstate(over="ignore"):
            one, other = (gap_PM2 - half) / safe_PQ2, (gap_PM2 + half) / safe_PQ2
        enter_PQM = np.minimum(one, other).max(axis=-1)
        leave_PQM = np.maximum(one, other).min(axis=-1)
        hit_PQ = (np.maximum(enter_PQM, 0.0) < np.minimum(leave_PQM, 1.0)).any(axis=-1)
        return np.where(hit_PQ, np.inf, np.linalg.norm(way_PQ2, axis=-1))

    def _starts(self, cells: Sequence[Sequence[int]] | None) -> np.ndarray:
        if cells is None:
            return np.arange(len(self.free_K2))
        found = [self.index_of(cell_of(cell), "start cell") for cell in cells]
        if not found or len(set(found)) < len(found):
            raise EnvError(
                f"the start cells are {[list(cell) for cell in cells]}, expected at least one and none twice, because "
                "episodes begin in each of them equally often: no episode can begin; correct them, or leave them out for all free cells"
            )
        if self.goal_cell is not None and found == [self.index_of(self.goal_cell)]:
            raise EnvError(
                f"the only start cell {self.goal_cell} is the goal's, expected another one: every episode would be paid from its "
                "first step on, whatever its plan; add a start cell, or move the goal"
            )
        return np.array(sorted(found))

    def _xy(self, cell_N2: np.ndarray) -> np.ndarray:
        rows, columns = self.wall_RC.shape
        x_N, y_N = cell_N2[..., 1] + 0.5 - columns / 2, rows / 2 - cell_N2[..., 0] - 0.5
        return np.stack([x_N, y_N], axis=-1)

    def _nearest_free(self) -> np.ndarray:
        place_RC2 = np.moveaxis(np.indices(self.wall_RC.shape), 0, -1)
        gap_RCK = ((place_RC2[:, :, None] - self.free_K2) ** 2).sum(axis=-1)
        nearest_RC: np.ndarray = gap_RCK.argmin(axis=-1)
        return nearest_RC

    def _search(self) -> tuple[np.ndarray, np.ndarray]:
        """Breadth-first search from every cell; among equal paths the one up, down, left, right first is taken."""
        free = len(self.free_K2)
        steps_KK, next_KK = np.full((free, free), -1), np.full((free, free), -1)
        for target in range(free):
            steps_KK[target, target], next_KK[target, target] = 0, target
            queue = deque([target])
            while queue:
                cell = queue.popleft()
                for move in ((-1, 0), (1, 0), (0, -1), (0, 1)):
                    neighbour = int(self._index_RC[tuple(self.free_K2[cell] + move)])
                    if neighbour >= 0 and steps_KK[neighbour, target] < 0:
                        steps_KK[neighbour, target] = steps_KK[cell, target] + 1
                        next_KK[neighbour, target] = cell
                        queue.append(neighbour)
        if (steps_KK < 0).any():
            raise EnvError(
                f"the maze has {free} free cells that are not all connected, expected every one to be reachable: a "
                "start could have no way to the goal; open a wall between its parts"
            )
        return steps_KK, next_KK


@functools.lru_cache(maxsize=64)
def maze_of(env_id: str) -> Maze | None:
    """The maze of a PointMaze or FixedGoal id, None for an environment of another kind or one nobody registered.

    Reads the registration alone: no environment is built, and no module that the id may name is imported. EnvError
    when gymnasium-robotics, which has the maps, is not installed.
    """
    if not env_id.startswith(_MAPPED) or ":" in id_of(env_id):
        return None
    kwargs = find_env(env_id).kwargs
    goal_cell, start_cells = kwargs.get("goal_cell"), kwargs.get("start_cells")
    try:
        if "maze_id" in kwargs:
            kwargs = gym.spec(kwargs["maze_id"]).kwargs
        wall_RC = np.array([[cell == 1 for cell in row] for row in kwargs["maze_map"]])
        return Maze(wall_RC, goal_cell, start_cells)
    except EnvError:  # a ValueError, too
        raise
    except (TypeError, ValueError, KeyError, IndexError, gym.error.Error) as error:
        raise EnvError(
            f"the arguments of {env_id} describe no maze ({type(error).__name__}: {error}), expected maze_map as rows of cells, "
            "goal_cell as [row, column], start_cells as a list of such cells and maze_id as a PointMaze id: it cannot be made; "
            "correct them"
        ) from error


def cell_of(cell: Sequence[int]) -> tuple[int, int]:
    """(row, column) as JSON or Python has it; TypeError and ValueError for anything else."""
    row, column = cell
    return operator.index(row), operator.index(column)


def _check_closed(wall_RC: np.ndarray) -> None:
    sound = wall_RC.ndim == 2 and wall_RC.size > 0 and not wall_RC.all()
    rim = [] if not sound else [wall_RC[0], wall_RC[-1], wall_RC[:, 0], wall_RC[:, -1]]
    if not sound or not all(side.all() for side in rim):
        raise EnvError(
            f"a maze map of shape {wall_RC.shape}, expected a rectangle with walls all around and free cells within: "
            "the ball could leave it; close it"
        )


class MazePaths:
    """Path length, shortest path and the first arrival of E episodes that run side by side.

    An episode arrives with the step that first pays, as the environment computes it, and at step 0 when it starts inside
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
