"""What is not known yet, outside the process that does not know it.

Inside, NaN says so: every formula spoils with it. Weights and checkpoints refuse whatever is not finite, because a NaN in a
parameter must not travel; there a number that nothing measured can reach stands for it.
"""

from __future__ import annotations

import math

import torch

UNKNOWN = -3e38  # in float32's range, far beyond any return or error


def told(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of ``tensor`` (float) with UNKNOWN where it has NaN."""
    return torch.where(tensor.isnan(), UNKNOWN, tensor)


def understood(tensor: torch.Tensor) -> torch.Tensor:
    """The reverse of ``told``."""
    return torch.where(tensor < UNKNOWN / 2, math.nan, tensor)
