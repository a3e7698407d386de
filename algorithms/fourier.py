"""Fourier features of observations: sines and cosines of their leading coordinates, from a period of 8 units down. Ours."""

from __future__ import annotations

import functools
import math

import torch


def fourier_dims(obs_fourier: int, obs_fourier_dims: int, obs_dim: int) -> int:
    """How many of ``obs_dim`` coordinates have Fourier features; ``obs_fourier_dims`` 0: all."""
    return min(obs_fourier_dims or obs_dim, obs_dim) if obs_fourier else 0


def octaves(obs_fourier: int, device: torch.device | None = None) -> torch.Tensor:
    """Angular frequencies (obs_fourier,), float32: pi / 4 2^i."""
    return math.pi / 4 * 2.0 ** torch.arange(obs_fourier, device=device)


def features(obs_fourier: int, obs_fourier_dims: int, obs_dim: int) -> int:
    """How many features an observation of ``obs_dim`` coordinates has: z-scores, sines, cosines."""
    return obs_dim + 2 * obs_fourier * fourier_dims(obs_fourier, obs_fourier_dims, obs_dim)


def featurise(
    obs_RO: torch.Tensor, data: dict[str, torch.Tensor], obs_fourier: int, obs_fourier_dims: int, obs_dim: int
) -> torch.Tensor:
    """``append_fourier`` of raw observations with ``data``'s ``obs_mean`` and ``obs_std``, by operations that a graph can hold."""
    scored_RO = (obs_RO - data["obs_mean"]) / data["obs_std"]
    if not (leading := fourier_dims(obs_fourier, obs_fourier_dims, obs_dim)):
        return scored_RO
    device = obs_RO.device if isinstance(obs_RO, torch.Tensor) else torch.device("cpu")
    angle_RX = obs_RO[:, :leading] @ _spread(leading, obs_fourier, device)
    return torch.cat([scored_RO, torch.sin(angle_RX), torch.cos(angle_RX)], 1)


@functools.cache
def _spread(leading: int, obs_fourier: int, device: torch.device) -> torch.Tensor:
    """(W, W len(octave)): each coordinate by each frequency; the product is exact, the rest is 0."""
    with torch.inference_mode(False):  # learners take it too
        return torch.kron(torch.eye(leading), octaves(obs_fourier).unsqueeze(0)).to(device)


def append_fourier(scored: torch.Tensor, obs: torch.Tensor, leading: int, octave: torch.Tensor) -> torch.Tensor:
    """(..., O + 2 W len(octave)): z-scores (..., O), then the Fourier features of the first W = ``leading`` raw coordinates."""
    if not leading:
        return scored
    angle = (obs[..., :leading, None] * octave).flatten(-2)
    return torch.cat([scored, angle.sin(), angle.cos()], -1)
