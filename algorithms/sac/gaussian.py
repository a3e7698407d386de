"""The tanh-Gaussian actor: a plain network to mean and log standard deviation, and the network as an ONNX graph.

Letters: R rows, B batch, O observation dim, A action dim, H width. a = tanh(mean + std * noise), noise ~ N(0, I). Its
log-density and its losses are shared: algorithms/losses.py.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch

from algorithms.onnx_graph import Graph
from algorithms.sac.config import SACConfig
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


def gaussian_model(config: SACConfig, obs_dim: int, action_dim: int) -> bytes:
    """Inputs ``obs`` (B, O), ``noise`` (B, A), ``linear{l}.weight``, ``linear{l}.bias``; output ``action`` (B, A)."""
    graph = Graph()
    h = graph.input("obs", ("B", obs_dim))
    noise = graph.input("noise", ("B", action_dim))
    sizes = [obs_dim, *[config.actor_width] * config.actor_layers, 2 * action_dim]
    for l, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        weight = graph.input(f"linear{l}.weight", (fan_in, fan_out))
        bias = graph.input(f"linear{l}.bias", (fan_out,))
        h = graph.node("Gemm", h if l == 0 else graph.node("Relu", h), weight, bias)
    halves = graph.constant(np.array([action_dim, action_dim]))
    mean, log_std = graph.nodes("Split", h, halves, outputs=2, axis=1)
    log_std = graph.node("Clip", log_std, graph.scalar(config.log_std_min), graph.scalar(config.log_std_max))
    kick = graph.node("Mul", graph.node("Exp", log_std), noise)
    return graph.model(graph.node("Tanh", graph.node("Add", mean, kick)), ("B", action_dim))
