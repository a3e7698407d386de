"""HalfCheetah, Hopper, Walker2d, Swimmer, Ant and Humanoid, v5.

reward = forward weight * x velocity + healthy bonus - control cost [- contact cost]

Letters: E environments, S gathered columns, G goal dim, O observation dim, A action dim.
"""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np

from rollout_workers.tasks import Outcome, Start, Task, never, square_sum


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

    def judge(self, before_ES: np.ndarray, now_ES: np.ndarray, goal_EG: np.ndarray, action_EA: np.ndarray) -> Outcome:
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

    def judge(self, before_ES: np.ndarray, now_ES: np.ndarray, goal_EG: np.ndarray, action_EA: np.ndarray) -> Outcome:
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

    def derived(self, data: mujoco.MjData) -> list[np.ndarray]:
        # The torso's position is the one that the last substep started from, as in Gymnasium.
        return [data.cfrc_ext[1:].reshape(-1), data.xpos[1, :1]]

    def observe(self, now_ES: np.ndarray, goal_EG: np.ndarray) -> np.ndarray:
        obs_EO = now_ES[:, 2:-1].copy()
        forces = obs_EO[:, self.init_qpos.size + self.init_qvel.size - 2 :]
        np.clip(forces, -1.0, 1.0, out=forces)
        return obs_EO

    def judge(self, before_ES: np.ndarray, now_ES: np.ndarray, goal_EG: np.ndarray, action_EA: np.ndarray) -> Outcome:
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

    def derived(self, data: mujoco.MjData) -> list[np.ndarray]:
        observed = [data.cinert[1:], data.cvel[1:], data.qfrc_actuator[6:], data.cfrc_ext[1:]]
        return [*(field.reshape(-1) for field in observed), data.xipos[:, 0]]

    def observe(self, now_ES: np.ndarray, goal_EG: np.ndarray) -> np.ndarray:
        return now_ES[:, 2 : -self._bodies].copy()

    def judge(self, before_ES: np.ndarray, now_ES: np.ndarray, goal_EG: np.ndarray, action_EA: np.ndarray) -> Outcome:
        centre_E, centre_before_E = (rows[:, -self._bodies :] @ self._mass_share for rows in (now_ES, before_ES))
        velocity_E = (centre_E - centre_before_E) / self.dt
        healthy_E = (now_ES[:, 2] > 1.0) & (now_ES[:, 2] < 2.0)
        forces = now_ES[:, -self._bodies - 6 * (self._bodies - 1) : -self._bodies]
        contact_E = np.minimum(5e-7 * square_sum(forces), 10.0)
        cost_E = self.control_weight * square_sum(action_EA.astype(np.float64)) + contact_E
        return Outcome(1.25 * velocity_E + 5.0 * healthy_E - cost_E, ~healthy_E)
