"""A planner that walks point mazes from cell to cell: where the maze data come from, and the expert they are scored by.

The recipe is that of D4RL's maze data (arXiv 2004.07219): a PD controller drives to the centre of the next cell on a
shortest way to a target, gains 10 and -1, with noise added before the action is clipped. Breadth-first search in place of
value iteration, and how long it stays at a target (``dwell``), are choices of this project.

Letters: E environments, A = 2 action coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.random import Generator

from replay.schema import EpisodeMetadata
from rollout_workers.actor import noise_by_step
from rollout_workers.config import NOISE_LIMIT
from rollout_workers.env import EnvError
from rollout_workers.maze import Maze

P_GAIN, D_GAIN = 10.0, -1.0  # action per m, action per m/s
ARRIVED = 0.1  # m: a cell's centre counts as reached within it (D4RL's)
_UNDER_WAY = -1


class WaypointPlanner:
    """Acts in E environments of one maze, from the first step of an episode in each, by the contract of an EpisodePolicy.

    An environment's actions depend on its own observations and generator alone, not on how many there are.

    Args:
        maze: where.
        noise: standard deviation of the Gaussian noise on actions, in units of the action (1 is full force).
        dwell: steps that it stays at a target, counted from its arrival, before the next one is drawn; 0 draws at once.
        target: (row, column) of the one cell to go to and stay at. None: targets are drawn, each uniform over all free
            cells, the current one included.
    """

    def __init__(
        self,
        maze: Maze,
        *,
        noise: float = 0.0,
        dwell: int = 0,
        target: tuple[int, int] | None = None,
    ) -> None:
        if not (0 <= noise <= NOISE_LIMIT and dwell >= 0):
            raise EnvError(
                f"noise {noise} and dwell {dwell}, expected neither to be negative and noise to be at most {NOISE_LIMIT:g}, where 1 is "
                "full force: nothing of the walk would be left in the actions; correct them"
            )
        self._maze, self._deviation, self._dwell = maze, noise, dwell
        self._fixed = None if target is None else maze.index_of(target)

    def reset(self, num_envs: int) -> None:
        """See EpisodePolicy."""

    def begin(self, env_K: np.ndarray, obs_KO: np.ndarray, rng: Generator) -> list[EpisodeMetadata]:
        """Begins an episode in every environment, with a stream of ``rng`` for each; there are no metadata."""
        self.start(rng.spawn(len(env_K)))
        return []

    def start(self, rngs: Sequence[Generator]) -> None:
        """Begins an episode in as many environments as there are generators."""
        streams = [rng.spawn(2) for rng in rngs]  # apart, so that targets do not depend on how noise is drawn
        self._target_rngs = [pair[0] for pair in streams]
        self._noise = noise_by_step(
            [pair[1] for pair in streams], lambda rng, n: rng.normal(0.0, self._deviation, (n, 2))
        )
        self.target_E = np.array([self._draw(e) for e in range(len(rngs))], dtype=np.int64)  # free cells
        self._waypoint_E: np.ndarray | None = None  # free cells, the next centre to drive to
        self._stay_E = np.full(len(rngs), _UNDER_WAY)  # steps that are left to stay at the target

    def act(self, obs_EO: np.ndarray, reward_E: np.ndarray | None = None) -> np.ndarray:
        """Actions float32 (E, 2) in [-1, 1] for observations [x, y, vx, vy] (E, 4), m and m/s; rewards do not matter."""
        xy_E2, velocity_E2 = obs_EO[:, :2].astype(np.float64), obs_EO[:, 2:4]
        self._choose_waypoints(xy_E2)
        force_EA = P_GAIN * (self._maze.centre_K2[self._waypoint_E] - xy_E2) + D_GAIN * velocity_E2
        if self._deviation > 0:
            force_EA += next(self._noise)
        return np.clip(force_EA, -1.0, 1.0).astype(np.float32)

    def _choose_waypoints(self, xy_E2: np.ndarray) -> None:
        maze, cell_E = self._maze, self._maze.cells_of(xy_E2)
        if self._waypoint_E is None:
            self._waypoint_E = maze.next_KK[cell_E, self.target_E]
        gap_E2 = maze.centre_K2[self._waypoint_E] - xy_E2
        reached_E = (gap_E2 * gap_E2).sum(axis=1) <= ARRIVED * ARRIVED
        redrawn_E = self._redraw(reached_E & (self._waypoint_E == self.target_E))
        # The way goes on from a centre that was reached; from where it stands, if it was pushed off its way.
        far_E = maze.steps_KK[cell_E, self._waypoint_E] > 1
        from_E = np.where(far_E, cell_E, self._waypoint_E)
        onward_E = maze.next_KK[from_E, self.target_E]
        self._waypoint_E = np.where(reached_E | redrawn_E | far_E, onward_E, self._waypoint_E)

    def _redraw(self, arrived_E: np.ndarray) -> np.ndarray:
        """Draws new targets where the stay is over; bool (E,), where that is."""
        self._stay_E[arrived_E & (self._stay_E < 0)] = self._dwell
        over_E = (self._stay_E == 0) & (self._fixed is None)
        for e in np.flatnonzero(over_E).tolist():
            self.target_E[e] = self._draw(e)
        self._stay_E[over_E] = _UNDER_WAY
        self._stay_E[self._stay_E > 0] -= 1
        return over_E

    def _draw(self, env: int) -> int:
        return int(self._target_rngs[env].integers(len(self._maze.free_K2))) if self._fixed is None else self._fixed
