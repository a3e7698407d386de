"""Named tensors into those that an agent or a policy has, in place: whether they fit, and what to say when they do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch


def shape_of(value: Any) -> str:
    """Of an array or a tensor."""
    return str(tuple(value.shape))


def misfits(
    own: Mapping[str, Any], given: Mapping[str, Any], verb: str = "has shape", describe: Callable[[Any], str] = shape_of
) -> list[str]:
    """Every entry of ``given`` that is missing, surplus, or described otherwise than ``own``'s, in words."""
    problems = [f"{name} is missing" for name in own if name not in given]
    problems += [f"{name} is not known" for name in given if name not in own]
    pairs = [(name, describe(given[name]), describe(own[name])) for name in own if name in given]
    return problems + [f"{name} {verb} {seen}, expected {mine}" for name, seen, mine in pairs if seen != mine]


def check_state(own: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> None:
    """Raises ValueError naming every entry of ``state`` that is missing, surplus, or of another shape or dtype than ``own``'s."""
    if problems := misfits(own, state, "is", lambda tensor: f"{tensor.dtype} {tuple(tensor.shape)}"):
        raise ValueError(
            f"this state does not fit the agent, which is unchanged: {'; '.join(problems)}. Build the agent with the "
            "configuration, dimensions and device kind that the state was made with"
        )


def load_weights(own: dict[str, torch.Tensor], given: Mapping[str, Any]) -> None:
    """Copies ``given`` (arrays or tensors) into the tensors of ``own``, on the CPU.

    Raises ValueError naming every missing, surplus or misshapen entry; ``own`` is then unchanged.
    """
    if problems := misfits(own, given):
        raise ValueError(
            f"these weights do not fit the policy, which keeps the ones it has: {'; '.join(problems)}. Build the policy "
            "with the configuration and dimensions of the learner that made the weights"
        )
    for name, tensor in own.items():
        value = given[name]
        if isinstance(value, torch.Tensor):
            tensor.copy_(value)
        else:
            np.copyto(tensor.numpy(), value)
