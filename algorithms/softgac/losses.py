"""The equations that are SoftGAC's own: the reference process and the control energy.

Letters: K bridge steps, B rows, A action dim; h = 1/K. Source: arXiv 2605.08733. The other losses are shared with SAC
and stand in algorithms/losses.py.
"""

from __future__ import annotations

import math

import torch

from algorithms.softgac.config import VARIANCE_FLOOR


def control_energy(z_KBA: torch.Tensor, u_KBA: torch.Tensor, sigma_KBA: torch.Tensor) -> torch.Tensor:
    """C_B = 1/2 sum_k sum_i [ sigma^2 + (h/2) (u + 2 tanh z)^2 - 1 - log sigma^2 ], in nats.

    The relative entropy between the bridge's path law and the reference's, which share z_0 and the diffusion 2h: a sum
    of Gaussian KLs. Never negative; zero iff the bridge follows the reference. It bounds KL(pi || uniform) from above.

    Args:
        z_KBA: positions z_0 .. z_{K-1} where drift and scale were evaluated.
        u_KBA: drifts.
        sigma_KBA: scales, positive.
    """
    h = 1.0 / z_KBA.shape[0]
    variance_KBA = sigma_KBA.square() + VARIANCE_FLOOR
    drift_KBA = (u_KBA + 2.0 * torch.tanh(z_KBA)).square()
    return (
        0.5 * (variance_KBA + (0.5 * h) * drift_KBA - torch.log(variance_KBA)).sum((0, 2))
        - 0.5 * z_KBA.shape[0] * z_KBA.shape[2]
    )


def reference_endpoint(noise_KBA: torch.Tensor) -> torch.Tensor:
    """z_K of the reference: z_{k+1} = z_k - 2h tanh(z_k) + sqrt(2h) eps_k, from noise (K+1, B, A) whose slice 0 is z_0.

    Euler-Maruyama of the Langevin diffusion whose stationary law has a uniform tanh-image.
    """
    h = 1.0 / (noise_KBA.shape[0] - 1)
    z = noise_KBA[0]
    for eps in noise_KBA[1:]:
        z = z - 2 * h * torch.tanh(z) + math.sqrt(2 * h) * eps
    return z


def energy_budget(rho: float, steps: int, action_dim: int) -> float:
    """rho K A, what the control energy is held at: it grows with K, so an ablation over K changes it too."""
    return rho * steps * action_dim
