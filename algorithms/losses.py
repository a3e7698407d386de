"""The losses, each one equation, with everything random passed in.

Letters: B batch, N atoms, T the two critics. Source: arXiv 2605.08733. ``cost`` is what a policy pays for one
action: the control energy of its path for the bridge, log pi(a|s) for a Gaussian.
Source of the log-density: Haarnoja et al., "Soft Actor-Critic" (2018), appendix C.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def critic_loss(
    log_p_TBN: torch.Tensor, target_BN: torch.Tensor, entropy_weight: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """sum_j mean_B [ -sum_i m_i log p_ji + w sum_i p_ji log p_ji ] over both critics j, with its gradient written out.

    Args:
        log_p_TBN: log-probabilities of each critic at (s, a).
        target_BN: m, the average of the two projected next distributions; no gradient. Both critics regress on it.
        entropy_weight: w, 0.005 in the paper; draws the critics away from early certainty.

    Returns:
        the loss (0-d); its gradient by the logits, (T, B, N): g - p sum_i g_i with g = (w p (log p + 1) - m) / B; p, (T, B, N);
        and the mean entropy (0-d).
    """
    p_TBN, (critics, rows) = log_p_TBN.exp(), log_p_TBN.shape[:2]
    weight_TBN = torch.sub(target_BN, p_TBN, alpha=entropy_weight)
    loss = weight_TBN.flatten().dot(log_p_TBN.flatten()) / -rows
    negative_entropy_TBN = p_TBN * log_p_TBN
    g_TBN = weight_TBN.sub_(negative_entropy_TBN, alpha=entropy_weight).div_(-rows)
    grad_TBN = torch.ops.aten._log_softmax_backward_data(g_TBN, log_p_TBN, -1, log_p_TBN.dtype)
    return loss, grad_TBN, p_TBN, negative_entropy_TBN.sum() / (-critics * rows)


def actor_loss(alpha: torch.Tensor, cost_B: torch.Tensor, q_TB: torch.Tensor) -> torch.Tensor:
    """mean[ alpha cost - min_j E[Z_j](s, a) ]; alpha carries no gradient, the critics are frozen."""
    return (alpha * cost_B - q_TB.amin(0)).mean()


def temperature_loss(log_alpha: torch.Tensor, budget: float, mean_cost: torch.Tensor) -> torch.Tensor:
    """alpha (budget - mean cost), alpha = exp(log_alpha): alpha falls while the cost is below its budget."""
    return log_alpha.exp() * (budget - mean_cost)


def log_temperature_loss(log_alpha: torch.Tensor, budget: float, mean_cost: torch.Tensor) -> torch.Tensor:
    """log_alpha (budget - mean cost): the same zero, but the step does not shrink with alpha (CrossQ-SAC, FLAC)."""
    return log_alpha * (budget - mean_cost)


def log_tanh_slope(x: torch.Tensor) -> torch.Tensor:
    """log (1 - tanh^2 x), as 2 (log 2 - x - softplus(-2x)), which stays finite."""
    return 2.0 * (math.log(2.0) - x - F.softplus(-2.0 * x))


def log_prob(pre_tanh_RA: torch.Tensor, log_std_RA: torch.Tensor, noise_RA: torch.Tensor) -> torch.Tensor:
    """log pi(tanh x | s) per row for x = mean + std * noise: sum_A log N(noise; 0, 1) - log std - log (1 - tanh^2 x)."""
    gaussian_RA = -0.5 * noise_RA.square() - log_std_RA - 0.5 * math.log(2 * math.pi)
    return (gaussian_RA - log_tanh_slope(pre_tanh_RA)).sum(-1)
