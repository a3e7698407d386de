"""RLPD: SAC with many normalised critics, on batches of which half is the dataset's; it has no offline part.

Source: Ball et al. (2023), "Efficient Online Reinforcement Learning with Offline Data", arXiv 2302.02948. Ours: it gathers and learns
in the stages of GAC (theirs: 20 critic updates an env step), so that all have the same episodes.
"""

from __future__ import annotations

import torch

from algorithms.offline.config import RLPDConfig
from algorithms.offline.cql import SoftAgent
from algorithms.offline.steps import Steps


class RLPD(SoftAgent):
    """The learner of rlpd."""

    config: RLPDConfig

    def value(self, q_ER: torch.Tensor) -> torch.Tensor:
        """What the actor climbs (R,): the critics' mean."""
        return q_ER.mean(0)

    def critic_loss(self, steps: Steps, seen_RX: torch.Tensor, next_RX: torch.Tensor) -> torch.Tensor:
        """sum_j (Q_j - r - gamma (min_k Q_k'(s', a') - alpha log pi(a')))^2 / E, k over critics that are drawn anew."""
        config = self.config
        # The same draw for every learner: one target is of one subset.
        drawn = torch.rand(config.critics, generator=self.generator, device=self.device).argsort()[: config.least_of]
        with torch.no_grad():
            next_RA, log_pi_R = self.sample(self.policy.named, next_RX)
            least_R = self.q(self.slow, next_RX, next_RA)[drawn].amin(0)
            soft_R = least_R - self.policy.named["log_alpha"].exp() * log_pi_R
            target_R = steps.reward_R + config.gamma * steps.going_R * soft_R
        return (self.q(self.critic.named, seen_RX, steps.action_RA) - target_R).square().mean(0)
