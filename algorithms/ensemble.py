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
    layers = sum(key.startswith(name) and key.endswith(".weight") for key in p)
    h = x_RI.expand(len(p[f"{name}0.weight"]), *x_RI.shape)
    for l in range(layers):
        if f"{name}{l - 1}.scale" in p:
            h = F.layer_norm(h, h.shape[-1:]) * p[f"{name}{l - 1}.scale"] + p[f"{name}{l - 1}.shift"]
        h = torch.baddbmm(p[f"{name}{l}.bias"], activation(h) if l else h, p[f"{name}{l}.weight"])
    return h.squeeze(-1)
