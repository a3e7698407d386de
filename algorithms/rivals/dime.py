"""DIME: a diffusion to the action, with a bound of its entropy as the cost (arXiv 2502.02316).

    x_0 ~ N(0, 2.5^2);  x_{k+1} = m_k(x_k) + sqrt(2 eta_k) z_k,   m_k(x) = x + eta_k (-x / 2.5^2 + f(s, x, k));   a = tanh(x_T)
    eta_k = dt_k / friction,   dt_k = softplus(p) (.999 cos^2(pi/2 (1.008 - (T - k)/T) / 1.008) + .001);   p, friction learned
    run cost = -sum_k [log N(x_k; x_{k+1} - eta_k x_{k+1} / 2.5^2, 2 eta_k) - log N(x_{k+1}; m_k(x_k), 2 eta_k)]
               -sum log(1 - tanh^2 x_T);   cost = log N(x_0; 0, 2.5^2) + run cost, a bound of log pi from above in the mean
    actor:     mean[ alpha cost - mean of both Q_j ];   gradients are clipped entry by entry to [-1, 1], Adam's beta1 is .5

The temperature holds the RUN cost at 4 A. The mean of log N(x_0) is known, so that is the cost at 4 A plus it. Letters: R rows,
O, A, H, T steps. Without noise x_0 is 0 and there are no z; the released code draws them to evaluate, too. Clipping and beta1 are
those of skypitcher/soft_gac_jax.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from algorithms.actor_critic import ActorBatch, ActorLoss, Optimiser, Rollout
from algorithms.interface import AgentSpec
from algorithms.losses import log_tanh_slope
from algorithms.rivals.config import DIMEConfig
from algorithms.rivals.sampler import Field, Rival, RivalPolicy, Sampler, Tensors
from algorithms.trainer import lecun_normal

FIRST_DT = 0.1
OUTPUT_LIMIT = 1e4


def cosine(steps: int, least: float = 1e-3, offset: float = 0.008) -> list[float]:
    """What scales the step's length, k = 0 .. T-1: from near 1 down to ``least``."""
    turns = ((1.0 + offset - (steps - k) / steps) / (1.0 + offset) for k in range(steps))
    return [(1.0 - least) * math.cos(math.pi / 2 * turn) ** 2 + least for turn in turns]


def inverse_softplus(y: float) -> float:
    """x with softplus(x) = y."""
    return math.log(math.expm1(y))


class DIMEActor(Sampler):
    """The diffusion and its cost."""

    optimiser = Optimiser(beta1=0.5, clip_value=1.0)

    def __init__(self, config: DIMEConfig, spec: AgentSpec) -> None:
        super().__init__(config, spec)
        self.steps, self.std, self.lengths = config.diffusion_steps, config.prior_std, cosine(config.diffusion_steps)
        self.noise_shape = (self.steps + 1, spec.action_dim)
        self.field = Field(
            config.actor_width, config.actor_layers, lambda h: F.gelu(h, approximate="tanh"), draw=lecun_normal
        )
        log_prior = -0.5 - 0.5 * math.log(2 * math.pi) - math.log(self.std)  # of a coordinate, in the mean
        self.budget = (config.target_cost + log_prior) * spec.action_dim
        self.budget_units = float(spec.action_dim)
        wave_H = torch.linspace(0.1, 100.0, config.actor_width, device=self.device)
        self.angle_TH = torch.arange(self.steps, device=self.device).unsqueeze(1) * wave_H

    def initial(self, draw: torch.Generator) -> Tensors:
        """See Field.initial; ``code{l}`` are the layers of the time's code, ``phase`` that of its sines and cosines, ``dt`` and ``friction``."""
        width = self.field.width
        code = {"phase": torch.zeros(width), "code0.weight": lecun_normal((2 * width, width), draw)}
        code |= {"code0.bias": torch.zeros(width), "code1.weight": lecun_normal((width, width), draw)}
        code |= {"code1.bias": torch.zeros(width), "dt": torch.tensor(inverse_softplus(FIRST_DT))}
        code["friction"] = torch.full((self.action_dim,), inverse_softplus(1.0))
        initial = code | self.field.initial(self.obs_dim, self.action_dim, width, draw)
        return initial | {"out.weight": torch.full_like(initial["out.weight"], 1e-8)}

    def fold(self, parameters: Tensors) -> Tensors:
        """See Field.fold, and ``eta`` (T, A)."""
        p = parameters
        angle_TH = self.angle_TH + p["phase"]
        angles_TX = torch.cat([angle_TH.sin(), angle_TH.cos()], -1)
        code_TH = F.gelu(torch.addmm(p["code0.bias"], angles_TX, p["code0.weight"]), approximate="tanh")
        code_TH = torch.addmm(p["code1.bias"], code_TH, p["code1.weight"])
        eta_A = F.softplus(p["dt"]) / F.softplus(p["friction"])
        return self.field.fold(p, code_TH) | {"eta": torch.stack([eta_A * length for length in self.lengths])}

    def walk(self, obs_RO: Any, noise: Any, weights: Tensors) -> list[Any]:
        """x_0 .. x_T, (R, A) each, from noise (R, T+1, A)."""
        state, path = self.field.state(obs_RO, weights), [noise[:, 0] * self.std]
        for k in range(self.steps):
            x, eta = path[-1], weights["eta"][k]
            f = torch.clamp(self.field(state, x, weights["times"][k], weights), -OUTPUT_LIMIT, OUTPUT_LIMIT)
            path.append(x + eta * (f - x * (1.0 / self.std**2)) + torch.sqrt(eta * 2.0) * noise[:, k + 1])
        return path

    def act(self, obs_RO: Any, noise: Any, weights: Tensors) -> Any:
        """Actions (R, A)."""
        return torch.tanh(self.walk(obs_RO, noise, weights)[-1])

    def rollout(self, obs_RO: torch.Tensor, noise: torch.Tensor, parameters: Tensors) -> Rollout:
        """Actions and their costs. The forward kernel is at z_k, whatever its mean; both kernels have one normaliser."""
        weights = self.fold(parameters)
        path = self.walk(obs_RO, noise, weights)
        cost_RA = -0.5 * noise[:, 0].square() - 0.5 * math.log(2 * math.pi) - math.log(self.std)
        for k in range(self.steps):
            eta = weights["eta"][k]
            back_RA = path[k] - path[k + 1] * (1.0 - eta / self.std**2)
            cost_RA = cost_RA + back_RA.square() / (4.0 * eta) - 0.5 * noise[:, k + 1].square()
        last = path[-1]
        cost_RA = cost_RA - log_tanh_slope(last)
        return Rollout(torch.tanh(last), cost_RA.sum(-1), torch.sqrt(2.0 * weights["eta"]).detach().mean())

    def loss(self, batch: ActorBatch, parameters: Tensors) -> ActorLoss:
        """mean[ alpha cost - mean of both Q_j ]."""
        action_RA, cost_R, sigma = self.rollout(batch.obs_RO, batch.noise, parameters)
        value = (batch.alpha * cost_R - batch.q(batch.obs_RO, action_RA).mean(0)).mean()
        return ActorLoss(value, cost_R.detach().mean(), sigma)


class DIME(Rival):
    """DIME's learner. The metric ``control_energy`` is its cost."""

    sampler = DIMEActor


class DIMEPolicy(RivalPolicy):
    """DIME's acting side. ``noise`` is (B, T+1, A)."""

    sampler = DIMEActor
