"""The tanh-Gaussian actor: a plain network to mean and log standard deviation.

Letters: R rows, O observation dim, A action dim, H width. a = tanh(mean + std * noise), noise ~ N(0, I).
"""

from __future__ import annotations

import itertools

import torch

from algorithms.trainer import lecun_normal


def initial_parameters(
    obs_dim: int, action_dim: int, *, layers: int, width: int, draw: torch.Generator
) -> dict[str, torch.Tensor]:
    """``linear{l}.weight`` (in, out) LeCun-normal, ``linear{l}.bias`` (out,) zero; the last gives 2A."""
    sizes = [obs_dim, *[width] * layers, 2 * action_dim]
    initial: dict[str, torch.Tensor] = {}
    for l, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        initial[f"linear{l}.weight"] = lecun_normal((fan_in, fan_out), draw)
        initial[f"linear{l}.bias"] = torch.zeros(fan_out)
    return initial


def gaussian(
    obs_RO: torch.Tensor, parameters: dict[str, torch.Tensor], log_std_min: float, log_std_max: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (R, A) and log standard deviation (R, A), the latter clipped to its bounds."""
    h, layers = obs_RO, len(parameters) // 2
    for l in range(layers):
        h = torch.addmm(parameters[f"linear{l}.bias"], h, parameters[f"linear{l}.weight"])
        h = torch.relu(h) if l < layers - 1 else h
    mean_RA, log_std_RA = h.chunk(2, -1)
    return mean_RA, log_std_RA.clamp(log_std_min, log_std_max)
