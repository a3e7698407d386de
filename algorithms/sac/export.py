"""The tanh-Gaussian as an ONNX graph. Letters: B batch, O, A."""

from __future__ import annotations

import itertools

import numpy as np

from algorithms.onnx_graph import Graph
from algorithms.sac.config import SACConfig


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
