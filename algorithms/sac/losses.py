"""The equation that is SAC's own: the log-density of a tanh-Gaussian action.

Letters: R rows, A action dim. Source: Haarnoja et al., "Soft Actor-Critic" (2018), appendix C. The other losses are
shared with SoftGAC and stand in algorithms/losses.py.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def log_prob(pre_tanh_RA: torch.Tensor, log_std_RA: torch.Tensor, noise_RA: torch.Tensor) -> torch.Tensor:
    """log pi(tanh x | s) per row for x = mean + std * noise: sum_A log N(noise; 0, 1) - log std - log (1 - tanh^2 x).

    log (1 - tanh^2 x) is computed as 2 (log 2 - x - softplus(-2x)), which stays finite.
    """
    gaussian_RA = -0.5 * noise_RA.square() - log_std_RA - 0.5 * math.log(2 * math.pi)
    squash_RA = 2.0 * (math.log(2.0) - pre_tanh_RA - F.softplus(-2.0 * pre_tanh_RA))
    return (gaussian_RA - squash_RA).sum(-1)
