"""The loss of every imitator: how far the predicted action lies from the one in the data."""

from __future__ import annotations

import torch


def action_error(predicted_XA: torch.Tensor, action_XA: torch.Tensor, weight_X: torch.Tensor) -> torch.Tensor:
    """sum_x w_x (1/A) |a^_x - a_x|^2, X any leading shape: twice a unit Gaussian's negative log-likelihood, but for a
    constant, a coordinate. A SUM, to be divided by sum_x w_x over all learners, so that they weigh steps alike.

    Where the weight is 0 neither value nor gradient depends on the two actions, not even on a NaN among them.
    """
    difference_XA = torch.where(weight_X[..., None] > 0, predicted_XA - action_XA, 0.0)
    return (difference_XA.square().mean(-1) * weight_X).sum()
