"""FLAC: a velocity field whose kinetic energy is the cost (arXiv 2602.12829).

    x_0 = clip(N(0, I), -1, 1);  a step of length h from t:  v = f(s, x + h/2 f(s, x, t), t + h/2),  x <- x + h v;  a = tanh(x_1)
    cost = sum over the steps of h/2 |v|^2;  the temperature descends log_alpha (.5 A - mean cost)

Letters: R rows, O, A. Without noise x_0 is 0; the released code has no such mode and draws x_0 to evaluate, too.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from algorithms.actor_critic import Rollout
from algorithms.interface import AgentSpec
from algorithms.losses import log_temperature_loss
from algorithms.rivals.config import FLACConfig, FlowRLConfig
from algorithms.rivals.sampler import Field, Rival, RivalPolicy, Sampler, Tensors


class FlowActor(Sampler):
    """The velocity field and its midpoint steps."""

    def __init__(self, config: FLACConfig | FlowRLConfig, spec: AgentSpec) -> None:
        super().__init__(config, spec)
        self.noise_shape, self.steps = (spec.action_dim,), config.flow_steps
        self.field = Field(config.actor_width, config.actor_layers, F.elu, norm=True)
        # Step k looks at its start and at its middle.
        self.time_S1 = torch.arange(2 * self.steps, device=self.device).unsqueeze(1) / (2.0 * self.steps)

    def initial(self, draw: torch.Generator) -> Tensors:
        """See Field.initial; the time is its own code."""
        return self.field.initial(self.obs_dim, self.action_dim, 1, draw)

    def fold(self, parameters: Tensors) -> Tensors:
        """See Field.fold."""
        return self.field.fold(parameters, self.time_S1)

    def walk(self, obs_RO: Any, noise_RA: Any, weights: Tensors) -> tuple[Any, list[Any]]:
        """x_1 (R, A) and the velocities (R, A) that led to it."""
        state, x, h = self.field.state(obs_RO, weights), torch.clamp(noise_RA, -1.0, 1.0), 1.0 / self.steps
        velocities = []
        for k in range(self.steps):
            middle = x + self.field(state, x, weights["times"][2 * k], weights) * (0.5 * h)
            v = self.field(state, middle, weights["times"][2 * k + 1], weights)
            x = x + v * h
            velocities.append(v)
        return x, velocities

    def act(self, obs_RO: Any, noise: Any, weights: Tensors) -> Any:
        """Actions (R, A)."""
        return torch.tanh(self.walk(obs_RO, noise, weights)[0])

    def rollout(self, obs_RO: torch.Tensor, noise: torch.Tensor, parameters: Tensors) -> Rollout:
        """Actions that cost nothing."""
        return self.unpaid(self.act(obs_RO, noise, self.fold(parameters)))


class FLACActor(FlowActor):
    """The flow with its kinetic energy as the cost."""

    temperature_loss = staticmethod(log_temperature_loss)

    def __init__(self, config: FLACConfig, spec: AgentSpec) -> None:
        super().__init__(config, spec)
        self.budget = config.target_energy * spec.action_dim
        self.budget_units = float(spec.action_dim)

    def rollout(self, obs_RO: torch.Tensor, noise: torch.Tensor, parameters: Tensors) -> Rollout:
        """Actions and their kinetic energies."""
        x_RA, velocities = self.walk(obs_RO, noise, self.fold(parameters))
        energy_R = sum((v.square().sum(-1) for v in velocities), torch.zeros_like(x_RA[:, 0])) * (0.5 / self.steps)
        return Rollout(torch.tanh(x_RA), energy_R, energy_R.new_zeros(()))


class FLAC(Rival):
    """FLAC's learner. The metric ``control_energy`` is its kinetic energy."""

    sampler = FLACActor


class FLACPolicy(RivalPolicy):
    """FLAC's acting side. ``noise`` is (B, A)."""

    sampler = FLACActor
