"""A policy small enough to check by hand: action = tanh(obs w + b + noise)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper

from algorithms.weights import Weights


class LinearPolicy:
    def __init__(self, obs_dim: int, action_dim: int) -> None:
        self.obs_dim, self.action_dim, self.noise_shape = obs_dim, action_dim, (action_dim,)

    def sample_noise(self, rng: np.random.Generator, batch: int) -> np.ndarray:
        return rng.standard_normal((batch, *self.noise_shape), dtype=np.float32)

    def act(self, obs_BO: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return torch.tanh(obs_BO @ self.w_OA + self.b_A + noise)

    def load_weights(self, weights: dict[str, Any]) -> None:
        self.w_OA, self.b_A = torch.as_tensor(weights["w"]), torch.as_tensor(weights["b"])

    def onnx_model(self) -> bytes:
        def value(name: str, *shape: int | str) -> Any:
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

        o, a = self.obs_dim, self.action_dim
        nodes = [
            helper.make_node("Gemm", ["obs", "w", "b"], ["mean"]),
            helper.make_node("Add", ["mean", "noise"], ["sum"]),
            helper.make_node("Tanh", ["sum"], ["action"]),
        ]
        inputs = [value("obs", "B", o), value("noise", "B", a), value("w", o, a), value("b", a)]
        graph = helper.make_graph(nodes, "linear", inputs, [value("action", "B", a)])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
        model.ir_version = 9
        return model.SerializeToString()

    def weights(self, seed: int, *, generation: int = 0, version: int = 0, scale: float = 0.3) -> Weights:
        rng = np.random.default_rng(seed)
        w_OA = scale * rng.standard_normal((self.obs_dim, self.action_dim))
        tensors = {"w": w_OA, "b": scale * rng.standard_normal(self.action_dim)}
        return Weights.pack(
            tensors, generation=generation, version=version, env_steps=10 * version, updates=20 * version
        )
