"""The terms of GAC's evidence lower bound, each one function.

    ELBO_i = E_q[ log p_beta(tau_i | z) + log p_gamma(y_i | z) ] - sum_j max(lambda, KL_j( q_i || N(0, I) ))

Letters: B trajectories, R rows, S steps, n tokens, d width, O, A. Source: arXiv 2512.21527 [P], Algorithm 1; z is one
draw from q, by noise that the caller passes in. All in nats.
"""

from __future__ import annotations

import math

import torch

LOG_TWO_PI = math.log(2 * math.pi)


def gaussian_log_prob(x: torch.Tensor, mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """log N(x; mean, exp(log_variance)), element by element."""
    return -0.5 * ((x - mean).square() * (-log_variance).exp() + log_variance + LOG_TWO_PI)


def step_log_prob(
    x_RSX: torch.Tensor, mean_RSX: torch.Tensor, log_variance_X: torch.Tensor, weight_RS: torch.Tensor
) -> torch.Tensor:
    """sum_s w_s log N(x_s; mean_s, exp(log_variance)) (R,), summed over coordinates: actions, or displacements.

    ``weight_RS`` is 0 where there is no step, and what each sampled step stands for elsewhere.
    """
    return (gaussian_log_prob(x_RSX, mean_RSX, log_variance_X).sum(-1) * weight_RS).sum(1)


def kl_standard(mean_Bnd: torch.Tensor, log_variance_Bnd: torch.Tensor) -> torch.Tensor:
    """KL( N(mean, exp(log_variance)) || N(0, 1) ) of every dimension (B, n, d), never negative."""
    return 0.5 * (mean_Bnd.square() + log_variance_Bnd.exp() - 1.0 - log_variance_Bnd)


def kl_gaussian(
    mean: torch.Tensor, log_variance: torch.Tensor, prior_mean: torch.Tensor, prior_log_variance: torch.Tensor
) -> torch.Tensor:
    """KL( N(mean, exp(log_variance)) || N(prior_mean, exp(prior_log_variance)) ), element by element."""
    ratio, square = log_variance - prior_log_variance, (mean - prior_mean).square() * (-prior_log_variance).exp()
    return 0.5 * (ratio.exp() + square - 1.0 - ratio)


def free_bits(kl_Bnd: torch.Tensor, least: float, per: str) -> torch.Tensor:
    """sum_j max(lambda, KL_j) (B,), j over tokens or over dimensions [P]; KL below lambda has no gradient."""
    kl_Bj = kl_Bnd.sum(-1) if per == "token" else kl_Bnd.flatten(1)
    return kl_Bj.clamp(min=least).sum(1)


def elbo(
    action_B: torch.Tensor,
    next_state_B: torch.Tensor,
    return_B: torch.Tensor,
    kl_B: torch.Tensor,
    *,
    next_state_weight: float = 1.0,
    kl_weight: float = 1.0,
) -> torch.Tensor:
    """log p(a) + w log p(s') + log p(y) - beta KL (B,); the bound itself where both weights are 1."""
    return action_B + next_state_weight * next_state_B + return_B - kl_weight * kl_B
