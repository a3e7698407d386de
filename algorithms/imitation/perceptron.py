"""The cloned policy: a ReLU perceptron with a tanh at its end.

Letters: R rows, O observation dim, A action dim.
"""

from __future__ import annotations

import itertools

import torch

from algorithms.flat import lecun_normal


def initial_parameters(
    obs_dim: int, action_dim: int, *, layers: int, width: int, draw: torch.Generator
) -> dict[str, torch.Tensor]:
    """``linear{l}.weight`` (in, out) LeCun-normal and ``linear{l}.bias`` (out,) zero, for each hidden layer and the last."""
    initial: dict[str, torch.Tensor] = {}
    for l, (fan_in, fan_out) in enumerate(itertools.pairwise([obs_dim, *[width] * layers, action_dim])):
        initial[f"linear{l}.weight"] = lecun_normal((fan_in, fan_out), draw)
        initial[f"linear{l}.bias"] = torch.zeros(fan_out)
    return initial


def predict(parameters: dict[str, torch.Tensor], obs_RO: torch.Tensor, layers: int) -> torch.Tensor:
    """Actions (R, A) in [-1, 1] for normalised observations (R, O)."""
    h = obs_RO
    for l in range(layers + 1):
        h = torch.addmm(parameters[f"linear{l}.bias"], h, parameters[f"linear{l}.weight"])
        h = torch.relu(h) if l < layers else torch.tanh(h)
    return h
