"""TD3+BC: TD3 whose actor also imitates, the two weighed by the size of its values.

Source: Fujimoto & Gu (2021), "A Minimalist Approach to Offline Reinforcement Learning", arXiv 2106.06860. Ours: online it goes on with
the same loss.
"""

from __future__ import annotations

import torch

from algorithms.interface import AgentSpec
from algorithms.offline.agent import ValueAgent
from algorithms.offline.config import TD3BCConfig
from algorithms.offline.steps import Steps, outputs


class TD3BC(ValueAgent):
    """The learner of td3-bc."""

    config: TD3BCConfig
    delayed = True

    def __init__(self, config: TD3BCConfig, spec: AgentSpec) -> None:
        super().__init__(config, spec, spec.action_dim)

    def critic_loss(self, steps: Steps, seen_RX: torch.Tensor, next_RX: torch.Tensor) -> torch.Tensor:
        """sum_j (Q_j - r - gamma min_k Q_k'(s', pi'(s') + clipped noise))^2."""
        config = self.config
        batch = len(seen_RX) // config.points
        noise_RA = self.normal(batch, config.points, self.action_dim).flatten(0, 1) * config.target_noise
        with torch.no_grad():
            mean_RA = torch.tanh(outputs(self.slow, next_RX, config.layers))
            next_RA = (mean_RA + noise_RA.clamp(-config.noise_clip, config.noise_clip)).clamp(-1.0, 1.0)
            least_R = self.q(self.slow, next_RX, next_RA).amin(0)
            target_R = steps.reward_R + config.gamma * steps.going_R * least_R
        return (self.q(self.critic.named, seen_RX, steps.action_RA) - target_R).square().sum(0)

    def actor_loss(self, steps: Steps, seen_RX: torch.Tensor) -> tuple[torch.Tensor, None]:
        """- alpha / mean |Q_1| Q_1(s, pi(s)) + (1/A) |pi(s) - a|^2; the mean is over all learners' steps."""
        action_RA = torch.tanh(outputs(self.policy.named, seen_RX, self.config.layers))
        q_R = self.q(self.frozen(), seen_RX, action_RA)[0]
        size = torch.stack([(q_R.detach().abs() * steps.weight_R).sum(), steps.weight_R.sum()])
        self.collective.mean_(size)
        share = self.config.alpha * size[1] / size[0].clamp_min(1e-6)
        return -share * q_R + (action_RA - steps.action_RA).square().mean(-1), None
