"""The one objective that every plan climbs, and its terms.

    J(q) = E_q[ term(z) + w_tau log p_beta(tau_<=t | z) ] - w KL( q(z_0) || N(0, I) ),    q = N(mu, diag sigma^2)

Exploitation, exploration and replanning differ in the term and the weights alone ("Generative Actor Critic", arXiv
2512.21527, inference; replanning is its Eq. 3). Letters: K environments, n tokens of width d.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from algorithms.gac.planning import PlanningConfig


class Weights(NamedTuple):
    """What tells one mode from another."""

    kl: float  # w
    targeted: bool  # the term is log p(y+ | z); else the predicted return itself
    steps: int  # of the ascent
    noise: str  # mean, reused, fresh: where E_q is taken
    log_variance: float  # of q at the start
    sample: bool  # act by a draw from q, not by its mean
    candidates: int  # draws from the prior among which the ascent's start is looked for; 0: it starts at the mean


def mode_weights(config: PlanningConfig, mode: str) -> Weights:
    """The weights of ``mode``. Raises ValueError on a name that is none."""
    c = config
    candidates = 0 if c.infer_start == "mean" else c.infer_beam * c.infer_branches
    ascent = (c.infer_noise, c.infer_log_variance, c.infer_sample, candidates)
    if mode == "prior":
        return Weights(0.0, False, 0, "mean", 0.0, True, 0)
    if mode == "st":
        return Weights(c.infer_target_kl_weight, True, c.infer_steps, *ascent)
    if mode == "kl":
        return Weights(c.infer_kl_weight, False, c.infer_steps, *ascent)
    if mode == "max":
        return Weights(0.0, False, c.infer_max_steps, *ascent)
    if mode == "explore":
        exploring = (c.explore_noise, c.explore_log_variance, c.explore_sample, candidates)
        return Weights(c.infer_target_kl_weight, True, c.infer_steps, *exploring)
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
    """log N(y+; r(z), variance) (K,), everything in normalised returns.

    The variance is fixed (ours): with the head's own, the ascent raises the variance and leaves r(z) where it is.
    """
    return -0.5 * ((target_K - predicted_K).square() / variance + math.log(2 * math.pi * variance))


def cautious(predicted_HK: torch.Tensor, caution: float) -> torch.Tensor:
    """Mean over H return heads less ``caution`` standard deviations between them, (K,): what the search believes (ours)."""
    if len(predicted_HK) == 1 or not caution:
        return predicted_HK.mean(0)
    return predicted_HK.mean(0) - caution * (predicted_HK.var(0) + 1e-12).sqrt()


def within_ball(mean_Knd: torch.Tensor, radius: float) -> torch.Tensor:
    """q's mean with every token drawn back to at most ``radius`` sqrt(d), where draws from the prior are (ours)."""
    limit = radius * mean_Knd.shape[-1] ** 0.5
    return mean_Knd * (limit / mean_Knd.norm(dim=-1, keepdim=True).clamp(min=limit))


def objective(term_K: torch.Tensor, kl_K: torch.Tensor, kl_weight: float) -> torch.Tensor:
    """J (K,): what is climbed, each environment its own."""
    return term_K - kl_weight * kl_K
