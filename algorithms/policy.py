"""Weights into a policy, by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def load_by_name(own: dict[str, torch.Tensor], given: dict[str, Any]) -> None:
    """Copies ``given`` (arrays or tensors) into the tensors of ``own``, in place.

    Raises ValueError naming every missing, surplus or misshapen entry; ``own`` is then unchanged.
    """
    problems = [f"{name} is missing" for name in own if name not in given]
    problems += [f"{name} is not known" for name in given if name not in own]
    problems += [
        f"{name} has shape {tuple(given[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in given and tuple(given[name].shape) != tuple(tensor.shape)
    ]
    if problems:
        raise ValueError(
            "these weights do not fit the policy, which keeps the ones it has: "
            + "; ".join(problems)
            + ". Build the policy "
            "with the configuration and dimensions of the learner that made the weights"
        )
    for name, tensor in own.items():
        value = given[name]
        tensor.copy_(value if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value, np.float32)))
