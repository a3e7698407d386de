"""The terms of GAC's evidence lower bound, each one function.

    ELBO_i = E_q[ log p_beta(tau_i | z) + log p_gamma(y_i | z) ] - sum_j max(lambda, KL_j( q_i || N(0, I) ))

Letters: B trajectories, R rows, S steps, n tokens, d width, O, A. Source: arXiv 2512.21527 [P], Algorithm 1; z is one
draw from q, by noise that the caller passes in. All in nats.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from algorithms.gac.planning import PlanningConfig

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


def free_bits(kl_Bnd: torch.Tensor, least: float) -> torch.Tensor:
    """sum_j max(lambda, KL_j) (B,), j over tokens [P: tokens or dimensions]; KL below lambda has no gradient."""
    return kl_Bnd.sum(-1).clamp(min=least).sum(1)


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


TARGET_VARIANCE = 0.01  # of y+ about r(z), in the model's unit of returns: a learned one explains y+ away (ours)
TARGET_KL_WEIGHT = 1.0  # of KL(q || prior) where a return is asked for [P]
EXPLORING_LOG_VARIANCE = -3.0  # of an exploring q when its ascent begins (ours)


class Weights(NamedTuple):
    """What tells one mode from another."""

    kl: float  # w
    targeted: bool  # the term is log p(y+ | z); else the predicted return itself
    steps: int  # of the ascent
    fresh: bool  # E_q is taken at a fresh draw each step [P]; else at q's mean (ours)
    sample: bool  # a draw from q is acted by [P]; else its mean (ours)
    log_variance: float  # of q at the start
    candidates: int  # draws from the prior among which the ascent's start is looked for; 0: it starts at the mean


def mode_weights(config: PlanningConfig, mode: str) -> Weights:
    """The weights of ``mode``. Raises ValueError on a name that is none."""
    c = config
    if mode == "prior":
        return Weights(0.0, False, 0, False, True, 0.0, 0)
    if mode == "st":
        return Weights(TARGET_KL_WEIGHT, True, c.infer_steps, c.infer_fresh, False, 0.0, c.infer_draws)
    if mode == "kl":
        return Weights(c.infer_kl_weight, False, c.infer_steps, c.infer_fresh, False, 0.0, c.infer_draws)
    if mode == "max":
        return Weights(0.0, False, c.infer_max_steps, c.infer_fresh, False, 0.0, c.infer_draws)
    if mode == "explore":
        return Weights(TARGET_KL_WEIGHT, True, c.infer_steps, True, True, EXPLORING_LOG_VARIANCE, c.infer_draws)
    raise ValueError(
        f"mode is {mode!r}, expected one of prior, st, kl, max, explore: no plan can be made; name one of them"
    )


def posterior_draw(mean: torch.Tensor, log_variance: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
    """z_0 = mu + sigma eps, all (K, n, d); no noise gives the mean."""
    return mean if noise is None else mean + torch.exp(0.5 * log_variance) * noise


def kl_to_prior(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """KL( N(mu, diag sigma^2) || N(0, I) ) (K,) in nats: 1/2 sum( mu^2 + sigma^2 - 1 - log sigma^2 )."""
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum((-2, -1))


def target_log_likelihood(predicted_K: torch.Tensor, target_K: torch.Tensor, variance: float) -> torch.Tensor:
    """log N(y+; r(z), variance) (K,), everything in the same unit of returns.

    The variance is fixed (ours): with the head's own, the ascent raises the variance and leaves r(z) where it is.
    """
    return -0.5 * ((target_K - predicted_K).square() / variance + math.log(2 * math.pi * variance))


def objective(
    term_K: torch.Tensor, kl_K: torch.Tensor, kl_weight: float, past_K: torch.Tensor | None = None
) -> torch.Tensor:
    """J (K,): what is climbed, each environment its own.

    With ``past_K``, log p_beta(tau_<=t | z) of the steps so far, q is held to what prior and past allow together (Eq. 3 [P]):
    they have one weight, whatever the term's unit. Mode max drops the prior alone.
    """
    if past_K is None:
        return term_K - kl_weight * kl_K
    return term_K - kl_weight * kl_K + (kl_weight or 1.0) * past_K
