"""Batched MuJoCo tasks: where episodes start, what is observed, what is rewarded.

A task sees all environments at once: ``now_ES`` holds, row by row, each simulation's qpos, qvel and the extra sensors that
the task asked for. The numbers are those of Gymnasium's v5 environments with their default arguments.

Letters: E environments, S gathered columns, G goal dim, O observation dim, A action dim.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import mujoco
import numpy as np

from rollout_workers.fixed_goal import START_NOISE, draw_start
from rollout_workers.maze import REACHED
from rollout_workers.mujoco_stack import MujocoStack


class Start(NamedTuple):
    """The first state of an episode."""

    qpos: np.ndarray  # float64
    qvel: np.ndarray  # float64
    goal_G: np.ndarray = np.empty(0)  # what the task keeps for the episode outside of the simulation


class Outcome(NamedTuple):
    """What one step earned, before time limits."""

    reward_E: np.ndarray  # float64
    terminated_E: np.ndarray  # bool


class Task:
    """One task's rules; subclasses give the four methods.

    Args:
        env: the unwrapped Gymnasium environment, asked for its model and constants only.
    """

    contact_forces = False
    goal_dim = 0

    def __init__(self, env: Any) -> None:
        self.model: mujoco.MjModel = env.model
        self.frame_skip: int = env.frame_skip
        self.dt: float = env.dt  # s, of one environment step
        self.init_qpos: np.ndarray = env.init_qpos.copy()
        self.init_qvel: np.ndarray = env.init_qvel.copy()

    def extra_sensors(self, data: mujoco.MjData) -> list[np.ndarray]:
        """The 1-D views of a simulation that follow qpos and qvel in its row of ``now_ES``; by default none."""
        return []

    def start(self, rng: np.random.Generator) -> Start:
        """Draws a first state, with the very draws of Gymnasium's ``reset_model``."""
        raise NotImplementedError

    def control(self, stack: MujocoStack, action_EA: np.ndarray) -> np.ndarray:
        """The controls (E, A) of the next step, by default the actions; may change ``stack.qvel_EV``."""
        return action_EA

    def observe(self, now_ES: np.ndarray, goal_EG: np.ndarray) -> np.ndarray:
        """Observations (E, O) float64, a new array."""
        raise NotImplementedError

    def compute_reward(
        self, before_ES: np.ndarray, now_ES: np.ndarray, goal_EG: np.ndarray, action_EA: np.ndarray
    ) -> Outcome:
        """Reward and termination of the step from ``before_ES`` to ``now_ES`` under ``action_EA``."""
        raise NotImplementedError


def square_sum(rows: np.ndarray) -> np.ndarray:
    """sum_i x_i^2 of each row, in the rows' own precision (Gymnasium costs float32 actions in float32)."""
    total: np.ndarray = np.add.reduce(rows * rows, axis=1)
    return total


def never(num_envs: int) -> np.ndarray:
    """The termination of tasks that have none."""
    return np.zeros(num_envs, dtype=bool)


class InvertedPendulum(Task):
    """reward = 1 while the pole stands within 0.2 rad."""

    def start(self, rng: np.random.Generator) -> Start:
        qpos = self.init_qpos + rng.uniform(-0.01, 0.01, self.init_qpos.size)
        return Start(qpos, self.init_qvel + rng.uniform(-0.01, 0.01, self.init_qvel.size))

    def observe(self, now_ES: np.ndarray, goal_EG: np.ndarray) -> np.ndarray:
        return now_ES.copy()

    def compute_reward(
        self, before_ES: np.ndarray, now_ES: np.ndarray, goal_EG: np.ndarray, action_EA: np.ndarray
    ) -> Outcome:
        standing_E = np.isfinite(now_ES).all(axis=1) & (np.abs(now_ES[:, 1]) <= 0.2)
        return Outcome(standing_E.astype(np.float64), ~standing_E)


class InvertedDoublePendulum(Task):
    """reward = 10 while standing - 0.01 x^2 - (y - 2)^2 - 1e-3 v1^2 - 5e-3 v2^2, with (x, y) the tip's position."""

    def extra_sensors(self, data: mujoco.MjData) -> list[np.ndarray]:
        return [data.qfrc_constraint[:1], data.site_xpos[0, ::2]]

    def start(self, rng: np.random.Generator) -> Start:
        qpos = self.init_qpos + rng.uniform(-0.1, 0.1, self.init_qpos.size)
        return Start(qpos, self.init_qvel + 0.1 * rng.standard_normal(self.init_qvel.size))

    def observe(self, now_ES: np.ndarray, goal_EG: np.ndarray) -> np.ndarray:
        angles = now_ES[:, 1:3]
        clipped = np.clip(now_ES[:, 3:7], -10.0, 10.0)
        return np.concatenate([now_ES[:, :1], np.sin(angles), np.cos(angles), clipped], axis=1)

    def compute_reward(
        self, before_ES: np.ndarray, now_ES: np.ndarray, goal_EG: np.ndarray, action_EA: np.ndarray
    ) -> Outcome:
        v1_E, v2_E, x_E, y_E = now_ES[:, 4], now_ES[:, 5], now_ES[:, 7], now_ES[:, 8]
        fallen_E = y_E <= 1.0
        penalty_E = 0.01 * x_E**2 + (y_E - 2.0) ** 2 + 1e-3 * v1_E**2 + 5e-3 * v2_E**2
        return Outcome(np.where(fallen_E, 0.0, 10.0) - penalty_E, fallen_E)


class Runner(Task):
    """A planar runner: moves along qpos[0], observes the other positions and all velocities."""

    control_weight: float
    noise: float  # half-width of the uniform noise on first positions
    hidden = 1  # leading positions that are not observed
    normal_velocities = False  # first velocities: N(0, noise^2) instead of uniform

    def start(self, rng: np.random.Generator) -> Start:
        qpos = self.init_qpos + rng.uniform(-self.noise, self.noise, self.init_qpos.size)
        if self.normal_velocities:
            return Start(qpos, self.init_qvel + self.noise * rng.standard_normal(self.init_qvel.size))
        return Start(qpos, self.init_qvel + rng.uniform(-self.noise, self.noise, self.init_qvel.size))

    def observe(self, now_ES: np.ndarray, goal_EG: np.ndarray) -> np.ndarray:
        return now_ES[:, self.hidden :].copy()

    def compute_reward(
        self, before_ES: np.ndarray, now_ES: np.ndarray, goal_EG: np.ndarray, action_EA: np.ndarray
    ) -> Outcome:
        velocity_E = (now_ES[:, 0] - before_ES[:, 0]) / self.dt
        return Outcome(velocity_E - self.control_weight * square_sum(action_EA), never(len(now_ES)))


class HalfCheetah(Runner):
    control_weight, noise, normal_velocities = 0.1, 0.1, True


class Swimmer(Runner):
    control_weight, noise, hidden = 1e-4, 0.1, 2


class Hopper(Runner):
    """Falls when its height or angle leaves a range: termination, and no healthy bonus."""

    control_weight, noise = 1e-3, 5e-3

    def observe(self, now_ES: np.ndarray, goal_EG: np.ndarray) -> np.ndarray:
        obs_EO = now_ES[:, 1:].copy()
        velocity = obs_EO[:, self.init_qpos.size - 1 :]
        np.maximum(velocity, -10.0, out=velocity)
        np.minimum(velocity, 10.0, out=velocity)
        return obs_EO

    def compute_reward(
        self, before_ES: np.ndarray, now_ES: np.ndarray, goal_EG: np.ndarray, action_EA: np.ndarray
    ) -> Outcome:
        velocity_E = (now_ES[:, 0] - before_ES[:, 0]) / self.dt
        healthy_E = self.healthy(now_ES)
        return Outcome(velocity_E + healthy_E - self.control_weight * square_sum(action_EA), ~healthy_E)

    def healthy(self, now_ES: np.ndarray) -> np.ndarray:
        angle_E = np.abs(now_ES[:, 2])
        rest_E = np.maximum.reduce(np.abs(now_ES[:, 2:]), axis=1)
        return (now_ES[:, 1] > 0.7) & (now_ES[:, 1] < np.inf) & (angle_E < 0.2) & (rest_E < 100.0)


class Walker2d(Hopper):
    def healthy(self, now_ES: np.ndarray) -> np.ndarray:
        return (now_ES[:, 1] > 0.8) & (now_ES[:, 1] < 2.0) & (np.abs(now_ES[:, 2]) < 1.0)


class Ant(Runner):
    """Observes and pays for contact forces clipped to [-1, 1]; moves with the position of its torso."""

    contact_forces = True
    control_weight, noise, hidden, normal_velocities = 0.5, 0.1, 2, True

    def extra_sensors(self, data: mujoco.MjData) -> list[np.ndarray]:
        # The torso's position is the one that the last substep started from, as in Gymnasium.
        return [data.cfrc_ext[1:].reshape(-1), data.xpos[1, :1]]

    def observe(self, now_ES: np.ndarray, goal_EG: np.ndarray) -> np.ndarray:
        obs_EO = now_ES[:, 2:-1].copy()
        forces = obs_EO[:, self.init_qpos.size + self.init_qvel.size - 2 :]
        np.clip(forces, -1.0, 1.0, out=forces)
        return obs_EO

    def compute_reward(
        self, before_ES: np.ndarray, now_ES: np.ndarray, goal_EG: np.ndarray, action_EA: np.ndarray
    ) -> Outcome:
        state = self.init_qpos.size + self.init_qvel.size
        forces = np.clip(now_ES[:, state:-1], -1.0, 1.0)
        velocity_E = (now_ES[:, -1] - before_ES[:, -1]) / self.dt
        height_E = now_ES[:, 2]
        healthy_E = np.isfinite(now_ES[:, :state]).all(axis=1) & (height_E >= 0.2) & (height_E <= 1.0)
        cost_E = self.control_weight * square_sum(action_EA) + 5e-4 * square_sum(forces)
        return Outcome(velocity_E + healthy_E - cost_E, ~healthy_E)


class Humanoid(Runner):
    """Observes inertias, velocities, actuator and contact forces too; moves with its centre of mass."""

    contact_forces = True
    control_weight, noise, hidden = 0.1, 1e-2, 2

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self._bodies: int = self.model.nbody
        self._mass_share: np.ndarray = self.model.body_mass / self.model.body_mass.sum()

    def extra_sensors(self, data: mujoco.MjData) -> list[np.ndarray]:
        observed = [data.cinert[1:], data.cvel[1:], data.qfrc_actuator[6:], data.cfrc_ext[1:]]
        return [*(field.reshape(-1) for field in observed), data.xipos[:, 0]]

    def observe(self, now_ES: np.ndarray, goal_EG: np.ndarray) -> np.ndarray:
        return now_ES[:, 2 : -self._bodies].copy()

    def compute_reward(
        self, before_ES: np.ndarray, now_ES: np.ndarray, goal_EG: np.ndarray, action_EA: np.ndarray
    ) -> Outcome:
        centre_E, centre_before_E = (rows[:, -self._bodies :] @ self._mass_share for rows in (now_ES, before_ES))
        velocity_E = (centre_E - centre_before_E) / self.dt
        healthy_E = (now_ES[:, 2] > 1.0) & (now_ES[:, 2] < 2.0)
        forces = now_ES[:, -self._bodies - 6 * (self._bodies - 1) : -self._bodies]
        contact_E = np.minimum(5e-7 * square_sum(forces), 10.0)
        cost_E = self.control_weight * square_sum(action_EA.astype(np.float64)) + contact_E
        return Outcome(1.25 * velocity_E + 5.0 * healthy_E - cost_E, ~healthy_E)


class Reacher(Task):
    """reward = -|tip - target| - |action|^2."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self._tip, self._target = (self.model.body(name).id for name in ("fingertip", "target"))

    def extra_sensors(self, data: mujoco.MjData) -> list[np.ndarray]:
        return [data.xpos[self._tip], data.xpos[self._target]]

    def start(self, rng: np.random.Generator) -> Start:
        qpos = rng.uniform(-0.1, 0.1, self.init_qpos.size) + self.init_qpos
        goal = rng.uniform(-0.2, 0.2, 2)
        while np.linalg.norm(goal) >= 0.2:
            goal = rng.uniform(-0.2, 0.2, 2)
        qpos[-2:] = goal
        qvel = self.init_qvel + rng.uniform(-0.005, 0.005, self.init_qvel.size)
        qvel[-2:] = 0.0
        return Start(qpos, qvel)

    def observe(self, now_ES: np.ndarray, goal_EG: np.ndarray) -> np.ndarray:
        angles, gap = now_ES[:, :2], now_ES[:, 8:10] - now_ES[:, 11:13]
        return np.concatenate([np.cos(angles), np.sin(angles), now_ES[:, 2:6], gap], axis=1)

    def compute_reward(
        self, before_ES: np.ndarray, now_ES: np.ndarray, goal_EG: np.ndarray, action_EA: np.ndarray
    ) -> Outcome:
        distance_E = np.sqrt(square_sum(now_ES[:, 8:11] - now_ES[:, 11:14]))
        return Outcome(-distance_E - square_sum(action_EA), never(len(now_ES)))


class Pusher(Task):
    """reward = -|object - goal| - 0.1 |action|^2 - 0.5 |object - tip|."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self._bodies = [self.model.body(name).id for name in ("tips_arm", "object", "goal")]

    def extra_sensors(self, data: mujoco.MjData) -> list[np.ndarray]:
        return [data.xpos[body] for body in self._bodies]

    def start(self, rng: np.random.Generator) -> Start:
        cylinder = self._cylinder(rng)
        while np.linalg.norm(cylinder) <= 0.17:
            cylinder = self._cylinder(rng)
        qpos = self.init_qpos.copy()
        qpos[-4:] = [*cylinder, 0.0, 0.0]
        qvel = self.init_qvel + rng.uniform(-0.005, 0.005, self.init_qvel.size)
        qvel[-4:] = 0.0
        return Start(qpos, qvel)

    def observe(self, now_ES: np.ndarray, goal_EG: np.ndarray) -> np.ndarray:
        nq = self.init_qpos.size
        return np.concatenate([now_ES[:, :7], now_ES[:, nq : nq + 7], now_ES[:, -9:]], axis=1)

    def compute_reward(
        self, before_ES: np.ndarray, now_ES: np.ndarray, goal_EG: np.ndarray, action_EA: np.ndarray
    ) -> Outcome:
        tip, thing, goal = now_ES[:, -9:-6], now_ES[:, -6:-3], now_ES[:, -3:]
        near_E, distance_E = np.sqrt(square_sum(thing - tip)), np.sqrt(square_sum(thing - goal))
        return Outcome(-distance_E - 0.1 * square_sum(action_EA) - 0.5 * near_E, never(len(now_ES)))

    @staticmethod
    def _cylinder(rng: np.random.Generator) -> np.ndarray:
        return np.array([rng.uniform(-0.3, 0.0), rng.uniform(-0.2, 0.2)])


MAX_SPEED = 5.0  # m/s, in each coordinate, which PointMaze imposes before a step


class PointMaze(Task):
    """PointMaze of gymnasium_robotics, v3: a force-driven ball finds its way to a goal.

    The registered ids are continuing tasks that keep their goal: an episode ends at its time limit alone, and being within
    0.45 m of the goal pays at every step. Observes, in the order of sorted keys, achieved_goal (2), desired_goal (2),
    observation (position, velocity).
    """

    goal_dim = 2

    def __init__(self, env: Any) -> None:
        super().__init__(env.point_env)
        self._goals: list[np.ndarray] = env.maze.unique_goal_locations
        self._starts: list[np.ndarray] = env.maze.unique_reset_locations
        self._dense: bool = env.reward_type == "dense"

    def start(self, rng: np.random.Generator) -> Start:
        goal = self._place(rng, self._goals)
        goal += self._noise(rng)
        position = self._place(rng, self._starts)
        while np.linalg.norm(position - goal) <= 0.5:
            position = self._place(rng, self._starts)
        qpos = self.init_qpos.copy()
        qpos[:2] = position + self._noise(rng)
        return Start(qpos, self.init_qvel, goal)

    def control(self, stack: MujocoStack, action_EA: np.ndarray) -> np.ndarray:
        np.clip(stack.qvel_EV, -MAX_SPEED, MAX_SPEED, out=stack.qvel_EV)
        return np.clip(action_EA, -1.0, 1.0)

    def observe(self, now_ES: np.ndarray, goal_EG: np.ndarray) -> np.ndarray:
        return np.concatenate([now_ES[:, :2], goal_EG, now_ES], axis=1)

    def compute_reward(
        self, before_ES: np.ndarray, now_ES: np.ndarray, goal_EG: np.ndarray, action_EA: np.ndarray
    ) -> Outcome:
        distance_E = np.sqrt(square_sum(now_ES[:, :2] - goal_EG))
        reward_E = np.exp(-distance_E) if self._dense else (distance_E <= REACHED).astype(np.float64)
        return Outcome(reward_E, never(len(now_ES)))

    @staticmethod
    def _place(rng: np.random.Generator, cells: list[np.ndarray]) -> np.ndarray:
        return cells[rng.integers(low=0, high=len(cells))].copy()

    @staticmethod
    def _noise(rng: np.random.Generator) -> np.ndarray:
        return np.array([rng.uniform(-START_NOISE, START_NOISE), rng.uniform(-START_NOISE, START_NOISE)])


class FixedGoalPointMaze(PointMaze):
    """The task of ``fixed_goal.FixedGoalMaze``: observes position and velocity alone."""

    def __init__(self, env: Any) -> None:
        super().__init__(env.point_maze)
        self._goal, self._start_K2 = env.goal_xy, env.start_K2

    def start(self, rng: np.random.Generator) -> Start:
        qpos = self.init_qpos.copy()
        qpos[:2] = draw_start(rng, self._start_K2)
        return Start(qpos, self.init_qvel, self._goal)

    def observe(self, now_ES: np.ndarray, goal_EG: np.ndarray) -> np.ndarray:
        return now_ES.copy()
