"""CQL and Cal-QL: SAC whose critics are pushed down on sampled actions and up on the data's.

Source: Kumar et al. (2020), arXiv 2006.04779, variant CQL(H) with importance weights; Nakamoto et al. (2023), arXiv 2303.05479, whose
Cal-QL counts a value of the policy's actions as at least the return to go. Targets have no entropy term, as in both codes.
"""

from __future__ import annotations

import math

import torch

from algorithms.interface import AgentSpec
from algorithms.losses import log_temperature_loss, temperature_loss
from algorithms.offline.agent import ValueAgent
from algorithms.offline.config import CQLConfig, SoftConfig
from algorithms.offline.steps import Steps, squashed

FIRST_LOG_STD = -1.0  # [CORL]


class SoftAgent(ValueAgent):
    """The tanh-Gaussian actor with a temperature that cql, cal-ql and rlpd share."""

    config: SoftConfig
    heat = staticmethod(temperature_loss)

    def __init__(self, config: SoftConfig, spec: AgentSpec) -> None:
        log_alpha = torch.full((), math.log(max(config.alpha_init, 1e-12)))
        super().__init__(config, spec, 2 * spec.action_dim, None, {"log_alpha": log_alpha})

    def sample(self, p: dict[str, torch.Tensor], seen_RX: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """An action of each step (R, A) and its log pi (R,)."""
        points = self.config.points
        noise_RA = self.normal(len(seen_RX) // points, points, self.action_dim).flatten(0, 1)
        return squashed(p, seen_RX, noise_RA, self.config.layers)

    def value(self, q_ER: torch.Tensor) -> torch.Tensor:
        """What the actor climbs (R,): the least critic."""
        return q_ER.amin(0)

    def actor_loss(self, steps: Steps, seen_RX: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """alpha log pi - value(s, pi(s)); and the temperature's alpha (-H - log pi), of CQL log_alpha (-H - log pi)."""
        log_alpha = self.policy.named["log_alpha"]
        action_RA, log_pi_R = self.sample(self.policy.named, seen_RX)
        value_R = self.value(self.q(self.frozen(), seen_RX, action_RA))
        budget = -self.config.target_entropy * self.action_dim
        return log_alpha.detach().exp() * log_pi_R - value_R, self.heat(log_alpha, budget, log_pi_R.detach())


class CQL(SoftAgent):
    """The learner of cql and, calibrated, of cal-ql."""

    config: CQLConfig
    heat = staticmethod(log_temperature_loss)

    def __init__(self, config: CQLConfig, spec: AgentSpec) -> None:
        super().__init__(config, spec)
        with torch.no_grad():  # the first deviation is 1/e
            self.policy.named[f"pi{config.layers}.bias"][spec.action_dim :] = FIRST_LOG_STD

    def critic_loss(self, steps: Steps, seen_RX: torch.Tensor, next_RX: torch.Tensor) -> torch.Tensor:
        """sum_j (Q_j - r - gamma min_k Q_k'(s', a'))^2 + pessimism (logsumexp_a (Q_j(s, a) - log mu(a)) - Q_j)."""
        config, p = self.config, self.critic.named
        with torch.no_grad():
            next_RA, _ = self.sample(self.policy.named, next_RX)
            least_R = self.q(self.slow, next_RX, next_RA).amin(0)
            target_R = steps.reward_R + config.gamma * steps.going_R * least_R
        q_ER = self.q(p, seen_RX, steps.action_RA)
        away_ER = self._sampled(steps, seen_RX, next_RX).logsumexp(0) - q_ER
        return ((q_ER - target_R).square() + config.pessimism * away_ER).sum(0)

    def _sampled(self, steps: Steps, seen_RX: torch.Tensor, next_RX: torch.Tensor) -> torch.Tensor:
        """Q - log mu of random actions, of the policy's here, and of its actions of the next state taken here, (3 n, E, R)."""
        config, rows = self.config, len(seen_RX)
        batch, found = rows // config.points, []
        for _ in range(config.actions):
            random_RA = 2.0 * self.uniform(batch, config.points, self.action_dim).flatten(0, 1) - 1.0
            with torch.no_grad():
                made = [self.sample(self.policy.named, x_RX) for x_RX in (seen_RX, next_RX)]
            here_RA = torch.cat([random_RA, *(action_RA for action_RA, _ in made)])
            q_3ER = self.q(self.critic.named, seen_RX.repeat(3, 1), here_RA).unflatten(1, (3, rows)).transpose(0, 1)
            if config.calibrated:
                assert steps.to_go_R is not None
                q_3ER = torch.cat([q_3ER[:1], torch.maximum(q_3ER[1:], steps.to_go_R)])
            uniform_R = torch.full((rows,), self.action_dim * math.log(0.5), device=self.device)
            found.append(q_3ER - torch.stack([uniform_R, *(log_pi_R for _, log_pi_R in made)])[:, None])
        return torch.cat(found)
