"""SoftGAC's bridge in C (loops.c), for float32 on the CPU; its twin in torch is bridge.py, which has the letters.

Importing this imports no torch: a worker acts on arrays, only a learner calls with tensors.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from algorithms import compiled
from algorithms.compiled import function
from algorithms.softgac.config import VARIANCE_FLOOR
from algorithms.softgac.weights import STEP_PARAMETERS
from algorithms.weights import load_weights

if TYPE_CHECKING:
    import torch


class _Bridge(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_long) for name in ("R", "K", "O", "A", "H")),
        ("layer_norm", ctypes.c_int),
        ("floor", ctypes.c_float),
        *((f"p{i}", ctypes.c_void_p) for i in range(8)),
    )


class CompiledBridge:
    """The whole path of R rows in one call, and its gradient in another.

    ``parameters``: the eight of STEP_PARAMETERS, (K, ...), contiguous.
    """

    def __init__(self, library: ctypes.CDLL, layer_norm: bool) -> None:
        self._settings = layer_norm, VARIANCE_FLOOR
        self._forward = function(library.bridge_forward, _Bridge, *[ctypes.c_void_p] * 7)
        self._backward = function(library.bridge_backward, _Bridge, _Bridge, *[ctypes.c_void_p] * 7)

    def forward(
        self, obs_RO: torch.Tensor, noise_RKA: torch.Tensor, parameters: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Actions (R, A), control energy (R,), the mean sigma (0-d), and the path (K+1, R, A)."""
        rows, ends, action_dim = noise_RKA.shape
        given, work = self._given(rows, obs_RO, parameters)
        z_KRA = obs_RO.new_empty(ends, rows, action_dim)
        action_RA, cost_R, sigma = obs_RO.new_empty(rows, action_dim), obs_RO.new_empty(rows), obs_RO.new_empty(())
        made = (tensor.data_ptr() for tensor in (work, z_KRA, action_RA, cost_R, sigma))
        self._forward(given, obs_RO.data_ptr(), noise_RKA.data_ptr(), *made)
        return action_RA, cost_R, sigma, z_KRA

    def backward(
        self, seen: Sequence[torch.Tensor], parameters: Sequence[torch.Tensor], *grads: torch.Tensor
    ) -> list[torch.Tensor]:
        """The parameters' gradients, from ``grads`` by action and cost; ``seen``: obs, noise, path and action."""
        obs_RO, noise_RKA, z_KRA, action_RA = seen
        rows = len(obs_RO)
        given, work = self._given(rows, obs_RO, parameters)
        made = [tensor.new_zeros(tensor.shape) for tensor in parameters]
        inputs = (tensor.data_ptr() for tensor in (obs_RO, noise_RKA, work, z_KRA, action_RA, *grads))
        self._backward(given, self._given(rows, obs_RO, made)[0], *inputs)
        return made

    def bind(self, obs_RO: np.ndarray, noise_RKA: np.ndarray, parameters: Sequence[np.ndarray]) -> Bound:
        """``forward`` on these arrays, float32 and contiguous, again and again."""
        rows, ends, action_dim = noise_RKA.shape
        given, work = self._argument(rows, obs_RO.shape[1], parameters[2].shape, [a.ctypes.data for a in parameters])
        made = [np.empty(shape, np.float32) for shape in (work, (ends, rows, action_dim), (rows, action_dim), rows, ())]
        return Bound(self._forward, given, [obs_RO, noise_RKA, *made], parameters)

    def _given(
        self, rows: int, obs_RO: torch.Tensor, parameters: Sequence[torch.Tensor]
    ) -> tuple[_Bridge, torch.Tensor]:
        addresses = [tensor.data_ptr() for tensor in parameters]
        given, work = self._argument(rows, obs_RO.shape[1], parameters[2].shape, addresses)
        return given, obs_RO.new_empty(work)

    def _argument(
        self, rows: int, obs_dim: int, hidden: Sequence[int], addresses: Sequence[int]
    ) -> tuple[_Bridge, int]:
        """The argument of loops.c, and how many floats its work takes; ``hidden``: the shape of hidden.weight."""
        steps, inputs, width = hidden
        action_dim = inputs - obs_dim
        work = 4 * (3 * inputs + 4 * width + 8 * action_dim) + width * (inputs + 2 * action_dim) + rows * action_dim
        return _Bridge(rows, steps, obs_dim, action_dim, width, *self._settings, *addresses), work


class Bound:
    """A call of the bridge on memory that stays; see ``CompiledBridge.bind``."""

    def __init__(
        self, forward: Callable[..., None], given: _Bridge, arrays: list[np.ndarray], parameters: Sequence[np.ndarray]
    ) -> None:
        self._forward, self._given, self._kept = forward, given, (arrays, parameters)  # what the pointers lead to
        self._pointers = [ctypes.c_void_p(array.ctypes.data) for array in arrays]
        self.action_RA = arrays[4]

    def run(self) -> None:
        """Writes into ``action_RA``."""
        self._forward(self._given, *self._pointers)


class CompiledActing:
    """The bridge for a worker: bound once for each version of the weights and each number of rows.

    Args:
        weights: the policy's own, which ``replace`` overwrites; with ``obs.mean`` and ``obs.var`` they standardise observations.
        eps: added to that variance.
    """

    def __init__(self, bridge: CompiledBridge, weights: dict[str, np.ndarray], eps: float) -> None:
        self._bridge, self._weights, self._eps = bridge, weights, eps
        self._rows = -1

    def replace(self, arrays: dict[str, np.ndarray]) -> None:
        """Copies the weights that the next calls use; raises ValueError on names or shapes that differ."""
        load_weights(self._weights, arrays)
        steps = range(sum(name.endswith(STEP_PARAMETERS[0]) for name in arrays))
        self._parameters = [np.stack([self._weights[f"bridge.{k}.{name}"] for k in steps]) for name in STEP_PARAMETERS]
        self._standard: tuple[np.ndarray, np.ndarray] | None = None
        if "obs.mean" in arrays:
            inverse_O = 1 / np.sqrt(self._weights["obs.var"] + np.float32(self._eps))
            self._standard = self._weights["obs.mean"], inverse_O
        self._rows = -1

    def act(self, obs_EO: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """A fresh float32 (E, A); a row's rounding does not depend on the others."""
        if len(obs_EO) != self._rows:
            self._obs_EO, self._noise = np.empty(obs_EO.shape, np.float32), np.empty(noise.shape, np.float32)
            self._bound = self._bridge.bind(self._obs_EO, self._noise, self._parameters)
            self._rows = len(obs_EO)
        if self._standard is None:
            self._obs_EO[:] = obs_EO
        else:
            np.subtract(obs_EO, self._standard[0], out=self._obs_EO)
            self._obs_EO *= self._standard[1]
        self._noise[:] = noise
        self._bound.run()
        return self._bound.action_RA.copy()


def choose_bridge(layer_norm: bool, device: str = "cpu") -> CompiledBridge | None:
    """The bridge in C where ``device`` (its type) and this machine have it."""
    library = compiled.library() if device == "cpu" else None
    return None if library is None else CompiledBridge(library, layer_norm)
