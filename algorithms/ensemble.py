"""Feedforward networks that are evaluated side by side, each with one output: critics and values.

Letters: E networks, R rows, I inputs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

Initial = Callable[[tuple[int, ...], torch.Generator], torch.Tensor]


def ensemble_parameters(
    name: str, networks: int, sizes: Sequence[int], initial: Initial, draw: torch.Generator, layer_norm: bool = False
) -> dict[str, torch.Tensor]:
    """``{name}{l}.weight`` (E, in, out) by ``initial`` and ``.bias`` (E, 1, out) zero; with ``layer_norm`` ``.scale``, ``.shift``."""
    named, last = {}, len(sizes) - 2
    for l, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        named[f"{name}{l}.weight"] = initial((networks, fan_in, fan_out), draw)
        named[f"{name}{l}.bias"] = torch.zeros(networks, 1, fan_out)
        if layer_norm and l < last:
            named[f"{name}{l}.scale"] = torch.ones(networks, 1, fan_out)
            named[f"{name}{l}.shift"] = torch.zeros(networks, 1, fan_out)
    return named


def ensemble_values(
    name: str,
    x_RI: torch.Tensor,
    p: dict[str, torch.Tensor],
    activation: Callable[[torch.Tensor], torch.Tensor] = torch.relu,
) -> torch.Tensor:
    """What each of the networks ``name`` gives each row, (E, R)."""
    h, last = linear(f"{name}0", x_RI.expand(len(p[f"{name}0.weight"]), *x_RI.shape), p), layers(name, p) - 1
    for l in range(1, last + 1):
        if f"{name}{l - 1}.scale" in p:
            h = normed(f"{name}{l - 1}", h, p)
        h = linear(f"{name}{l}", activation(h), p)
    return h.squeeze(-1)


def layers(name: str, p: dict[str, torch.Tensor]) -> int:
    """Linear layers of the networks ``name``."""
    return sum(key.startswith(name) and key.endswith(".weight") for key in p)


def linear(layer: str, h_ERI: torch.Tensor, p: dict[str, torch.Tensor]) -> torch.Tensor:
    """One layer of each network, (E, R, out)."""
    return torch.baddbmm(p[f"{layer}.bias"], h_ERI, p[f"{layer}.weight"])


def normed(layer: str, h_ERI: torch.Tensor, p: dict[str, torch.Tensor], eps: float = 1e-5) -> torch.Tensor:
    """Layer norm of what ``layer`` gave."""
    return F.layer_norm(h_ERI, h_ERI.shape[-1:], eps=eps) * p[f"{layer}.scale"] + p[f"{layer}.shift"]
