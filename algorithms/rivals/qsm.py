"""QSM: a denoiser whose prediction is matched to the critics' gradient, so that it climbs Q (arXiv 2312.11752).

    actor:    mean over rows and coordinates of (e(s, x_k, k) + 50 dQ/da(s, x_k))^2,   Q the mean of both critics,
              x_k = sqrt(abar_k) a + sqrt(1 - abar_k) eps,  a of the replay
    sampler:  x <- clip((x - beta_k / sqrt(1 - abar_k) e) / sqrt(1 - beta_k) + sqrt(beta_k) z), k = T-1 .. 0, no z at 0
    target:   next actions have noise of standard deviation .1, clipped

Letters: R rows, O, A, T steps. Without noise the path starts at 0 and has no z; the released code draws both to evaluate, too.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from algorithms.actor_critic import ActorBatch, ActorLoss, Rollout
from algorithms.interface import AgentSpec
from algorithms.rivals.config import QSMConfig
from algorithms.rivals.denoiser import Denoiser, vp_schedule
from algorithms.rivals.sampler import Rival, RivalPolicy, Tensors


class QSMActor(Denoiser):
    """The denoiser with QSM's loss."""

    code_size, second_layer = 64, False

    def __init__(self, config: QSMConfig, spec: AgentSpec) -> None:
        super().__init__(config, spec, vp_schedule(config.diffusion_steps))
        self.noise_shape = (self.steps, spec.action_dim)

    def act(self, obs_RO: Any, noise: Any, weights: Tensors) -> Any:
        """Actions (R, A) from x_T = noise[:, 0] and the steps' z."""
        state, x = self.field.state(obs_RO, weights), noise[:, 0]
        for done, k in enumerate(reversed(range(self.steps)), start=1):
            beta, kept = self.betas[k], self.kept[k]
            e = self.field(state, x, weights["times"][k], weights)
            x = (x - e * (beta / math.sqrt(1.0 - kept))) * (1.0 / math.sqrt(1.0 - beta))
            x = torch.clamp(x + noise[:, done] * math.sqrt(beta) if k else x, -1.0, 1.0)
        return x

    def draw_noise(self, rows: int, generator: torch.Generator, particles: int) -> torch.Tensor:
        """Noise (rows * particles, T + 1, A): the last slice is the target's."""
        shape = (rows * particles, self.steps + 1, self.action_dim)
        return torch.randn(shape, generator=generator, device=generator.device)

    def rollout(self, obs_RO: torch.Tensor, noise: torch.Tensor, parameters: Tensors) -> Rollout:
        """Next actions, with the target's noise."""
        action_RA = self.act(obs_RO, noise, self.fold(parameters))
        return self.unpaid((action_RA + self.config.target_noise * noise[:, -1]).clamp(-1.0, 1.0))

    def draw_loss_noise(self, rows: int, generator: torch.Generator) -> torch.Tensor:
        """(rows, 1 + A): a uniform number, which draws k, and eps."""
        uniform = torch.rand(rows, 1, generator=generator, device=generator.device)
        return torch.cat([uniform, torch.randn(rows, self.action_dim, generator=generator, device=generator.device)], 1)

    def loss(self, batch: ActorBatch, parameters: Tensors) -> ActorLoss:
        """The squared distance of the prediction from -50 dQ/da at noised actions of the replay."""
        weights, step_RT = self.fold(parameters), self.at(batch.noise[:, 0])
        x_RA = self.noised(batch.action_BA, batch.noise[:, 1:], step_RT).requires_grad_()
        (slope_RA,) = torch.autograd.grad(batch.q(batch.obs_RO, x_RA).mean(0).sum(), x_RA)
        state = self.field.state(batch.obs_RO, weights)
        e_RA = self.field(state, x_RA.detach(), step_RT @ weights["times"], weights)
        value = (e_RA + self.config.q_scale * slope_RA).square().mean()
        return ActorLoss(value, value.new_zeros(()), value.new_zeros(()))


class QSM(Rival):
    """QSM's learner."""

    sampler = QSMActor


class QSMPolicy(RivalPolicy):
    """QSM's acting side. ``noise`` is (B, T, A)."""

    sampler = QSMActor
