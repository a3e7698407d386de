"""A policy that is written once, as a torch function; its ONNX graph is traced from that function (see onnx_graph.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from algorithms.weights import load_weights


class TracedPolicy:
    """The acting side of an algorithm whose noise is standard normal; the contract is algorithms.interface.Policy.

    Args:
        act: (obs (B, O), noise (B, *noise_shape), weights) -> actions (B, A) in [-1, 1]; of zero noise the deterministic policy.
        weights: tensors of the names and shapes of the agent's ``policy_weights``.
    """

    def __init__(
        self,
        act: Callable[..., torch.Tensor],
        obs_dim: int,
        action_dim: int,
        noise_shape: tuple[int, ...],
        weights: dict[str, torch.Tensor],
    ) -> None:
        self._act, self.obs_dim, self.action_dim, self.noise_shape = act, obs_dim, action_dim, noise_shape
        self._weights = {name: tensor.detach().clone() for name, tensor in weights.items()}

    def sample_noise(self, rng: np.random.Generator, batch: int) -> np.ndarray:
        """Exploration noise, float32 (batch, *noise_shape), standard normal."""
        return rng.standard_normal((batch, *self.noise_shape), dtype=np.float32)

    def act(self, obs_BO: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Actions (B, A) in [-1, 1]; all-zero noise is the deterministic policy."""
        return self._act(obs_BO, noise, self._weights)

    def load_weights(self, weights: dict[str, Any]) -> None:
        """Copies arrays or tensors named as in ``policy_weights``; raises ValueError on names or shapes that differ."""
        load_weights(self._weights, weights)

    def onnx_model(self) -> bytes:
        """The serialised graph of ``act``."""
        from algorithms.onnx_graph import traced  # onnx is slow to import, and learners never need it

        return traced(self._act, self.obs_dim, self.noise_shape, self.action_dim, self._weights)
