"""SoftGAC's bridge for acting. Where it is compiled, no torch is imported: that is a second and 180 MiB in every worker.

Letters: B rows, K bridge steps, O, A.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from algorithms.softgac.compiled_bridge import CompiledActing, choose_bridge
from algorithms.softgac.config import BASE_STD, EDGE, SoftGACConfig
from algorithms.softgac.weights import OBS_STATISTICS, STEP_PARAMETERS, policy_shapes
from algorithms.weights import load_weights

if TYPE_CHECKING:
    import torch


def sample_noise(rng: np.random.Generator, rows: int, steps: int, action_dim: int, law: str) -> np.ndarray:
    """``bridge.draw_noise`` in numpy, for workers: float32 (rows, K+1, A)."""
    noise = rng.standard_normal((rows, steps + 1, action_dim), dtype=np.float32)
    if law == "gaussian":
        noise[:, 0] *= BASE_STD
    else:
        noise[:, 0] = np.arctanh(rng.random((rows, action_dim), dtype=np.float32) * (2 * EDGE) - EDGE)
    return noise


class SoftGACPolicy:
    """The bridge for acting; the contract is algorithms.interface.Policy. ``noise`` is (B, K+1, A).

    Its weights are zeros until they are loaded, and its action is zero.
    """

    def __init__(self, config: SoftGACConfig, obs_dim: int, action_dim: int) -> None:
        config.check()
        self.config, self.obs_dim, self.action_dim = config, obs_dim, action_dim
        self.noise_shape: tuple[int, ...] = (config.bridge_steps + 1, action_dim)
        shapes = policy_shapes(config, obs_dim, action_dim)
        self._weights = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}

    def sample_noise(self, rng: np.random.Generator, batch: int) -> np.ndarray:
        """Exploration noise, float32 (batch, K+1, A); slice 0 follows the base law."""
        return sample_noise(rng, batch, self.config.bridge_steps, self.action_dim, self.config.base_law)

    def act(self, obs_BO: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Actions (B, A) in [-1, 1]; all-zero noise is the deterministic policy (z_0 = 0, every eps 0)."""
        import torch

        from algorithms.softgac import bridge

        weights, config = {name: torch.from_numpy(array) for name, array in self._weights.items()}, self.config
        if config.input_norm == "running":
            mean_O, var_O = (weights[name] for name in OBS_STATISTICS)
            obs_BO = bridge.standardised(obs_BO, mean_O, var_O, config.renorm_eps)
        steps = [[weights[f"bridge.{k}.{name}"] for name in STEP_PARAMETERS] for k in range(config.bridge_steps)]
        return bridge.bridge_action(obs_BO, noise, steps, config.input_norm == "layer_norm")

    def load_weights(self, weights: dict[str, Any]) -> None:
        """Copies arrays or tensors named as in ``policy_weights``; raises ValueError on names or shapes that differ."""
        load_weights(self._weights, weights)

    def compiled(self) -> CompiledActing | None:
        """``act`` in C, where this machine has it."""
        fast = choose_bridge(self.config.input_norm == "layer_norm")
        return None if fast is None else CompiledActing(fast, self._weights, self.config.renorm_eps)

    def onnx_model(self) -> bytes:
        """The serialised graph of ``act``; see algorithms/softgac/bridge.py."""
        from algorithms.softgac.bridge import bridge_model

        return bridge_model(self.config, self.obs_dim, self.action_dim)
