"""Implicit Q-learning: V regresses on an upper expectile of Q, Q on r + gamma V, the actor on actions by their advantage.

Source: Kostrikov et al. (2022), "Offline Reinforcement Learning with Implicit Q-Learning", arXiv 2110.06169. Ours: V and Q move at
the same time (theirs: V first), and the actor's step size does not fall.
"""

from __future__ import annotations

import math

import torch

from algorithms.ensemble import ensemble_parameters, ensemble_values
from algorithms.fourier import features
from algorithms.interface import AgentSpec
from algorithms.offline.agent import ValueAgent
from algorithms.offline.config import IQLConfig
from algorithms.offline.steps import IQL_LOG_STD, Steps, outputs
from algorithms.trainer import lecun_normal

MOST_WEIGHT = 100.0  # of an advantage [IQL]


class IQL(ValueAgent):
    """The learner of iql."""

    config: IQLConfig

    def __init__(self, config: IQLConfig, spec: AgentSpec) -> None:
        seen = features(config.obs_fourier, config.obs_fourier_dims, spec.obs_dim)
        draw = torch.Generator().manual_seed(spec.seed + 1)
        v = ensemble_parameters("v", 1, [seen, *[config.width] * config.layers, 1], lecun_normal, draw)
        super().__init__(config, spec, spec.action_dim, v, {"log_std": torch.zeros(spec.action_dim)})

    def critic_loss(self, steps: Steps, seen_RX: torch.Tensor, next_RX: torch.Tensor) -> torch.Tensor:
        """|expectile - 1(u < 0)| u^2, u = min_j Q_j' - V; and sum_j (Q_j - r - gamma V(s'))^2."""
        config, p = self.config, self.critic.named
        with torch.no_grad():
            least_R = self.q(self.slow, seen_RX, steps.action_RA).amin(0)
            next_R = ensemble_values("v", next_RX, p)[0]
            target_R = steps.reward_R + config.gamma * steps.going_R * next_R
        u_R = least_R - ensemble_values("v", seen_RX, p)[0]
        share_R = torch.where(u_R < 0, 1.0 - config.expectile, config.expectile)
        return share_R * u_R.square() + (self.q(p, seen_RX, steps.action_RA) - target_R).square().sum(0)

    def actor_loss(self, steps: Steps, seen_RX: torch.Tensor) -> tuple[torch.Tensor, None]:
        """- exp(temperature (min_j Q_j' - V)) log pi(a | s), the weight at most 100."""
        config = self.config
        with torch.no_grad():
            v_R = ensemble_values("v", seen_RX, self.frozen())[0]
            advantage_R = self.q(self.slow, seen_RX, steps.action_RA).amin(0) - v_R
            weight_R = (config.temperature * advantage_R).exp().clamp(max=MOST_WEIGHT)
        mean_RA = torch.tanh(outputs(self.policy.named, seen_RX, config.layers))
        log_std_A = self.policy.named["log_std"].clamp(*IQL_LOG_STD)
        away_RA = (steps.action_RA - mean_RA) * (-log_std_A).exp()
        log_pi_R = (-0.5 * away_RA.square() - log_std_A - 0.5 * math.log(2 * math.pi)).sum(-1)
        return -weight_R * log_pi_R, None
