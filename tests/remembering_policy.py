"""A policy that carries an episode's first observation, a draw, its steps and its reward: small enough to check by hand.

action = tanh(obs w + 0.5 first_obs w + draw + 0.01 steps + 0.1 reward so far), each environment by itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from algorithms.interface import PlanRequest
from algorithms.weights import Weights
from replay.schema import EpisodeMetadata


class RememberingPolicy:
    """``begun``: (environments, first observations, weights' bias) of every begin, in order."""

    def __init__(self, obs_dim: int, action_dim: int, *, aim: PlanRequest | None = None, predicts: bool = True) -> None:
        self.obs_dim, self.action_dim = obs_dim, action_dim
        self.aim = PlanRequest(mode="recall") if aim is None else aim
        self.predicts = predicts
        self.begun: list[tuple[list[int], np.ndarray, float]] = []

    def load_weights(self, weights: dict[str, Any]) -> None:
        self.w_OA, self.bias = np.asarray(weights["w"]), float(weights["b"][0])

    def reset(self, num_envs: int) -> None:
        self.first_EO = np.zeros((num_envs, self.obs_dim), np.float32)
        self.plan_EA = np.full((num_envs, self.action_dim), np.nan, np.float32)  # nobody acts before a begin
        self.steps_E = np.zeros(num_envs, np.int64)
        self.total_E = np.zeros(num_envs, np.float32)

    def begin(self, env_K: np.ndarray, obs_KO: np.ndarray, rng: np.random.Generator) -> list[EpisodeMetadata]:
        self.begun.append((env_K.tolist(), obs_KO.copy(), self.bias))
        for e, obs_O, stream in zip(env_K, obs_KO, rng.spawn(len(env_K)), strict=True):
            self.first_EO[e] = obs_O
            self.plan_EA[e] = self.bias + stream.standard_normal(self.action_dim)
            self.steps_E[e], self.total_E[e] = 0, 0.0
        target = np.nan if self.aim.target_return is None else self.aim.target_return
        return [
            EpisodeMetadata(-1, self.aim.mode, target, float(obs_O.sum()) if self.predicts else np.nan, 4.0)
            for obs_O in obs_KO
        ]

    def act(self, obs_EO: np.ndarray, reward_E: np.ndarray) -> np.ndarray:
        assert reward_E.dtype == obs_EO.dtype == np.float32
        self.total_E += reward_E
        sums = [(obs_O + 0.5 * first_O) @ self.w_OA for obs_O, first_O in zip(obs_EO, self.first_EO)]
        drive_EA = np.array(sums) + self.plan_EA + (0.01 * self.steps_E + 0.1 * self.total_E)[:, None]
        self.steps_E += 1
        return np.tanh(drive_EA).astype(np.float32)

    def state(self) -> dict[str, np.ndarray]:
        return {name: getattr(self, name).copy() for name in ("first_EO", "plan_EA", "steps_E", "total_E")}

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        for name, value in state.items():
            setattr(self, name, value.copy())

    def weights(self, seed: int, *, generation: int = 0, version: int = 0) -> Weights:
        rng = np.random.default_rng(seed)
        tensors = {"w": 0.3 * rng.standard_normal((self.obs_dim, self.action_dim)), "b": np.array([float(seed)])}
        return Weights.pack(
            tensors, generation=generation, version=version, env_steps=10 * version, updates=20 * version
        )
