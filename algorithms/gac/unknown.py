"""Values that are not known yet, in weights and checkpoints.

In memory an unknown value is NaN, which no formula can use by mistake. Weights and checkpoints refuse NaN, because a NaN in a
parameter must not spread; there UNKNOWN stands for it.
"""

from __future__ import annotations

import math

import torch

UNKNOWN = -3e38  # in float32's range, far beyond any return or error


def encode_nan(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of ``tensor`` (float) with UNKNOWN where it has NaN."""
    return torch.where(tensor.isnan(), UNKNOWN, tensor)


def decode_nan(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of ``tensor`` (float) with NaN where it has UNKNOWN."""
    return torch.where(tensor < UNKNOWN / 2, math.nan, tensor)
