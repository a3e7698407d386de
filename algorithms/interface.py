"""What every algorithm offers to learners and rollout workers, and what it takes.

Letters: U updates of a block, B batch, O observation dim, A action dim, D packed row width.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch


class Collective(Protocol):
    """Learners that share one update. The losses do not know how many there are."""

    rank: int
    world_size: int

    def mean_(self, tensor: torch.Tensor) -> None:
        """Replaces ``tensor`` in place by its mean over the learners (no gradient)."""

    def mean_with_grad(self, tensor: torch.Tensor) -> torch.Tensor:
        """The mean of ``tensor`` over the learners; gradients flow to every learner's input."""


class Solo:
    """One learner: every reduction is the identity."""

    rank = 0
    world_size = 1

    def mean_(self, tensor: torch.Tensor) -> None:
        return None

    def mean_with_grad(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


class Agent(Protocol):
    """The learner's side of an algorithm: parameters, optimisers, update."""

    device: torch.device

    def update(self, rows_UBD: torch.Tensor) -> dict[str, torch.Tensor]:
        """U updates on U batches of packed float32 rows, on the agent's device.

        Never synchronises with the host. Returns 0-d tensors on the device: each metric's mean over the U updates
        (plus ``nonfinite``, the number of the updates with a non-finite loss or gradient norm, whose
        parameter steps were skipped).
        """

    def policy_weights(self) -> dict[str, torch.Tensor]:
        """What a Policy needs to act, by name, in a fixed order, float32."""

    def state(self) -> dict[str, torch.Tensor]:
        """Everything a bit-exact resume needs (parameters, optimisers, statistics, RNG, counters)."""

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Takes what ``state`` gave; a missing, surplus or misshapen entry is an error that names it."""


class Policy(Protocol):
    """The acting side of an algorithm, as a torch module and as an ONNX graph of the same function."""

    obs_dim: int
    action_dim: int
    noise_shape: tuple[int, ...]  # of one action: (K+1, A) for the bridge, (A,) for a Gaussian

    def sample_noise(self, rng: np.random.Generator, batch: int) -> np.ndarray:
        """Noise of ``batch`` exploring actions, float32 (B, *noise_shape)."""

    def act(self, obs_BO: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Actions (B, A) in [-1, 1]; all-zero noise gives the deterministic policy."""

    def load_weights(self, weights: dict[str, Any]) -> None:
        """Takes arrays or tensors by the names of ``Agent.policy_weights``."""

    def onnx_model(self) -> bytes:
        """A serialised ONNX model: inputs ``obs`` (B, O) and ``noise``, and one input for each weight under
        its name; output ``action``. Weights are graph inputs, so one session serves every version."""
