"""SAC with SoftGAC's critics: the Gaussian as an actor, its learner and its policy.

Letters: B batch, R rows, O, A. Source: Haarnoja et al. (2018); critics and schedule of arXiv 2605.08733. The control is
ours: the paper's own is CrossQ-SAC, algorithms/sac/crossq.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from algorithms.actor_critic import Actor, ActorCritic, Rollout
from algorithms.interface import AgentSpec
from algorithms.losses import log_prob
from algorithms.sac.config import SACConfig
from algorithms.sac.gaussian import gaussian, initial_parameters
from algorithms.weights import load_weights


class GaussianActor(Actor):
    """The tanh-Gaussian with log pi as cost: held at -target entropy."""

    def __init__(self, config: SACConfig, action_dim: int) -> None:
        self.config, self.action_dim = config, action_dim
        self.budget = -config.target_entropy * action_dim
        self.budget_units = float(action_dim)

    def rollout(self, obs_RO: torch.Tensor, noise: torch.Tensor, parameters: dict[str, torch.Tensor]) -> Rollout:
        """One action a row from noise (R, A)."""
        mean_RA, log_std_RA = gaussian(obs_RO, parameters, self.config.log_std_min, self.config.log_std_max)
        std_RA = log_std_RA.exp()
        x_RA = torch.addcmul(mean_RA, std_RA, noise)
        return Rollout(torch.tanh(x_RA), log_prob(x_RA, log_std_RA, noise), std_RA.detach().mean())

    def draw_noise(self, rows: int, generator: torch.Generator, particles: int) -> torch.Tensor:
        """Noise (rows, A), standard normal."""
        return torch.randn(rows * particles, self.action_dim, generator=generator, device=generator.device)


class SAC(ActorCritic):
    """SAC's learner; the contract is algorithms.interface.Agent. The metric ``control_energy`` is its mean log pi.

    Raises ValueError with every problem of ``config`` at once.
    """

    def __init__(self, config: SACConfig, spec: AgentSpec) -> None:
        config.check()
        draw = torch.Generator().manual_seed(spec.seed)
        parameters = initial_parameters(
            spec.obs_dim, spec.action_dim, layers=config.actor_layers, width=config.actor_width, draw=draw
        )
        super().__init__(config, spec, GaussianActor(config, spec.action_dim), parameters, draw)

    def policy_weights(self) -> dict[str, torch.Tensor]:
        """``linear{l}.weight``, ``linear{l}.bias``; views, float32."""
        return {name: tensor.detach() for name, tensor in self.policy.named.items()}


class SACPolicy:
    """The tanh-Gaussian for acting; the contract is algorithms.interface.Policy. ``noise`` is (B, A)."""

    def __init__(self, config: SACConfig, obs_dim: int, action_dim: int) -> None:
        config.check()
        self.config, self.obs_dim, self.action_dim = config, obs_dim, action_dim
        self.noise_shape: tuple[int, ...] = (action_dim,)
        draw = torch.Generator().manual_seed(0)
        self._weights = initial_parameters(
            obs_dim, action_dim, layers=config.actor_layers, width=config.actor_width, draw=draw
        )

    def sample_noise(self, rng: np.random.Generator, batch: int) -> np.ndarray:
        """Exploration noise, float32 (batch, A), standard normal."""
        return rng.standard_normal((batch, self.action_dim), dtype=np.float32)

    def act(self, obs_BO: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Actions (B, A) in [-1, 1]; all-zero noise is the deterministic policy, tanh(mean)."""
        mean_BA, log_std_BA = gaussian(obs_BO, self._weights, self.config.log_std_min, self.config.log_std_max)
        return torch.tanh(torch.addcmul(mean_BA, log_std_BA.exp(), noise))

    def load_weights(self, weights: dict[str, Any]) -> None:
        """Copies arrays or tensors named as in ``policy_weights``; raises ValueError on names or shapes that differ."""
        load_weights(self._weights, weights)

    def onnx_model(self) -> bytes:
        """The serialised graph of ``act``; see algorithms/sac/gaussian.py."""
        from algorithms.sac.gaussian import gaussian_model  # onnx is slow to import, and learners never need it

        return gaussian_model(self.config, self.obs_dim, self.action_dim)
