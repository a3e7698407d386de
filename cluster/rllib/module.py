"""The acting policy as an RLModule, for inference."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.torch import TorchRLModule

from algorithms import ALGORITHMS
from algorithms.interface import Policy
from cluster.config import RunConfig
from rollout_workers.actor import StatelessPolicy
from rollout_workers.env import ActionBox, close_or_warn, flatten_observations, observation_dim, without_exit
from rollout_workers.envs import make_env


class PolicyModule(TorchRLModule):
    """The acting policy as an RLModule for inference; everything of RLlib's module API that is used is here.

    ``forward_inference`` (noise-free) and ``forward_exploration`` take {"obs": (B, ...) arrays or tensors, or a Dict of
    them} and give "actions", float32 (B, A) in [-1, 1], and "actions_for_env", (B, *action_space.shape) in the
    environment's box. There is no forward_train: learners of this project train the policy.

    model_config: {"algorithm": name, "agent": the agent's settings as a dict, "seed": of the exploration noise}.
    """

    model_config: Any
    observation_space: Any
    action_space: Any

    @classmethod
    def of(cls, config: RunConfig) -> PolicyModule:
        """The module for a run's environment and agent, with weights of no use until ``set_state``."""
        env = make_env(config.env)
        try:
            settings = {"algorithm": config.algorithm, "agent": dataclasses.asdict(config.agent), "seed": config.seed}
            with without_exit(config.env):
                observation_space, action_space = env.observation_space, env.action_space
            return cls(
                observation_space=observation_space,
                action_space=action_space,
                inference_only=True,
                model_config=settings,
            )
        finally:
            close_or_warn(env, config.env)

    def setup(self) -> None:
        algorithm = ALGORITHMS[self.model_config["algorithm"]]
        agent = algorithm.config_class(**self.model_config["agent"])
        self.box = ActionBox(self.action_space, "the module")
        obs_dim = observation_dim(self.observation_space, "the module")
        policy = cast(Policy, algorithm.make_policy(agent, obs_dim, self.box.dim))
        self.policy = StatelessPolicy(policy, backend="torch")
        self.rng = np.random.default_rng(self.model_config.get("seed", 0))
        self.weights: dict[str, np.ndarray] = {}

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, np.ndarray]:
        """The policy's weights by name; empty before the first ``set_state``."""
        return dict(self.weights)

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes weights by name; ValueError names every one that is missing, surplus or misshapen."""
        self.policy.load_weights(state)
        self.weights = {name: np.array(value, np.float32) for name, value in state.items()}

    def _forward_inference(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, torch.Tensor]:
        return self._actions(self.policy.act_on(self._flat(batch)))

    def _forward_exploration(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, torch.Tensor]:
        obs_BO = self._flat(batch)
        return self._actions(self.policy.act_on(obs_BO, self.policy.inner.sample_noise(self.rng, len(obs_BO))))

    def _flat(self, batch: dict[str, Any]) -> np.ndarray:
        obs = batch[Columns.OBS]
        leaf = obs
        while isinstance(leaf, dict):
            leaf = next(iter(leaf.values()))
        return flatten_observations(obs, len(leaf))

    def _actions(self, action_BA: np.ndarray) -> dict[str, torch.Tensor]:
        return {
            Columns.ACTIONS: torch.from_numpy(action_BA.copy()),
            Columns.ACTIONS_FOR_ENV: torch.from_numpy(self.box.rescale(action_BA)),
        }
