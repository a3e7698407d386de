"""Fourier features of observations: sines and cosines of their leading coordinates, from a period of 8 units down. Ours."""

from __future__ import annotations

import math

import torch


def waved_dims(obs_waves: int, obs_wave_dims: int, obs_dim: int) -> int:
    """How many of ``obs_dim`` coordinates have Fourier features; ``obs_wave_dims`` 0: all."""
    return min(obs_wave_dims or obs_dim, obs_dim) if obs_waves else 0


def octaves(obs_waves: int, device: torch.device | None = None) -> torch.Tensor:
    """Angular frequencies (obs_waves,), float32: pi / 4 2^i."""
    return math.pi / 4 * 2.0 ** torch.arange(obs_waves, device=device)


def append_waves(scored: torch.Tensor, obs: torch.Tensor, waved: int, octave: torch.Tensor) -> torch.Tensor:
    """(..., O + 2 W len(octave)): z-scores (..., O), then the Fourier features of the first W = ``waved`` raw coordinates."""
    if not waved:
        return scored
    angle = (obs[..., :waved, None] * octave).flatten(-2)
    return torch.cat([scored, angle.sin(), angle.cos()], -1)
