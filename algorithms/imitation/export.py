"""The cloned policy as an ONNX graph. Letters: B batch, O, A."""

from __future__ import annotations

import itertools

from algorithms.imitation.config import CloningConfig
from algorithms.onnx_graph import Graph


def cloned_model(config: CloningConfig, obs_dim: int, action_dim: int) -> bytes:
    """Inputs ``obs`` (B, O), ``obs_mean``, ``obs_std``, ``linear{l}.weight``, ``linear{l}.bias``; output ``action`` (B, A)."""
    graph = Graph()
    obs, mean, std = (
        graph.input("obs", ("B", obs_dim)),
        graph.input("obs_mean", (obs_dim,)),
        graph.input("obs_std", (obs_dim,)),
    )
    h = graph.node("Div", graph.node("Sub", obs, mean), std)
    sizes = [obs_dim, *[config.width] * config.layers, action_dim]
    for l, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        weight, bias = graph.input(f"linear{l}.weight", (fan_in, fan_out)), graph.input(f"linear{l}.bias", (fan_out,))
        h = graph.node("Gemm", h if l == 0 else graph.node("Relu", h), weight, bias)
    return graph.model(graph.node("Tanh", h), ("B", action_dim))
