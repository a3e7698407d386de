"""The network of the decision transformers: causal attention over returns to go, states and actions, as plain functions.

Letters: B windows, S steps, T = 3 S - 1 tokens (the last action is not read), Q queries, W width, X features of a state, A.
Source: Chen et al. (2021), "Decision Transformer: Reinforcement Learning via Sequence Modeling".
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

Parameters = dict[str, torch.Tensor]
Drop = Callable[[torch.Tensor], torch.Tensor]  # dropout with its randomness inside; None for none


class Window(NamedTuple):
    """What the network sees: S steps, normalised; entries after a window's last step are seen by no earlier one."""

    to_go_BS: torch.Tensor  # over the return scale
    obs_BSX: torch.Tensor  # features: z-scored, with Fourier features of the leading coordinates
    action_BSA: torch.Tensor  # in [-1, 1]; the last one is not read
    time_BS: torch.Tensor  # int64, in [0, max_steps)


def initial_parameters(
    features: int, action_dim: int, *, width: int, layers: int, max_steps: int, draw: torch.Generator, outputs: int = 0
) -> Parameters:
    """Weights (in, out) normal of std .02 and biases zero, as GPT-2; layer norms are the identity."""
    shapes = {"to_go": (1, width), "state": (features, width), "action": (action_dim, width)}
    for l in range(layers):
        shapes |= {f"block{l}.qkv": (width, 3 * width), f"block{l}.mix": (width, width)}
        shapes |= {f"block{l}.rise": (width, 4 * width), f"block{l}.fall": (4 * width, width)}
    shapes["head"] = (width, outputs or action_dim)
    norms = ["embedded", *[f"block{l}.{of}" for l in range(layers) for of in ("seen", "mixed")], "last"]
    initial = {"time.weight": torch.randn(max_steps, width, generator=draw) * 0.02}
    for name, shape in shapes.items():
        initial[f"{name}.weight"] = torch.randn(shape, generator=draw) * 0.02
        initial[f"{name}.bias"] = torch.zeros(shape[1])
    for name in norms:
        initial[f"{name}.scale"], initial[f"{name}.shift"] = torch.ones(width), torch.zeros(width)
    return initial


def head_outputs(parameters: Parameters, window: Window, *, layers: int, heads: int, drop: Drop | None) -> torch.Tensor:
    """What the last layer gives for each step (B, S, outputs), from the steps up to it and their actions before it."""
    x_BTW = _embed(parameters, window)
    if drop:
        x_BTW = drop(x_BTW)
    for l in range(layers):
        x_BTW = _block(parameters, f"block{l}", x_BTW, heads=heads, only_states=l == layers - 1, drop=drop)
    return _linear(parameters, "head", _norm(parameters, "last", x_BTW))


def _embed(p: Parameters, window: Window) -> torch.Tensor:
    time_BSW = F.embedding(window.time_BS, p["time.weight"])
    tokens = (
        torch.addcmul(p["to_go.bias"], window.to_go_BS[..., None], p["to_go.weight"][0]) + time_BSW,
        _linear(p, "state", window.obs_BSX) + time_BSW,
        _linear(p, "action", window.action_BSA) + time_BSW,
    )
    return _norm(p, "embedded", torch.stack(tokens, 2).flatten(1, 2)[:, :-1])


def _block(
    p: Parameters, name: str, x_BTW: torch.Tensor, *, heads: int, only_states: bool, drop: Drop | None
) -> torch.Tensor:
    """One pre-norm block; with ``only_states`` for the state tokens alone: (B, S, W)."""
    seen_BTW = _norm(p, f"{name}.seen", x_BTW)
    attended, x = _attention(p, name, seen_BTW, heads, only_states, drop), x_BTW[:, 1::3] if only_states else x_BTW
    mixed = _linear(p, f"{name}.mix", attended)
    x = x + (drop(mixed) if drop else mixed)
    ready = _linear(p, f"{name}.fall", torch.relu(_linear(p, f"{name}.rise", _norm(p, f"{name}.mixed", x))))
    return x + (drop(ready) if drop else ready)


def _attention(
    p: Parameters, name: str, x_BTW: torch.Tensor, heads: int, only_states: bool, drop: Drop | None
) -> torch.Tensor:
    """Causal attention; queries are all tokens (Q = T), or the states' (Q = S)."""
    tokens, width = x_BTW.shape[1:]
    weight, bias = p[f"{name}.qkv.weight"], p[f"{name}.qkv.bias"]
    if only_states:
        q_BQW = _product(x_BTW[:, 1::3], weight[:, :width], bias[:width])
        k_BTW, v_BTW = _product(x_BTW, weight[:, width:], bias[width:]).chunk(2, -1)
    else:
        q_BQW, k_BTW, v_BTW = _product(x_BTW, weight, bias).chunk(3, -1)
    # Written out: with so few tokens a core makes an update in 20 ms where the library's fused attention takes 55, whose
    # dropout would also draw from a generator that no checkpoint holds.
    q, k, v = (y.unflatten(-1, (heads, -1)).transpose(1, 2).flatten(0, 1) for y in (q_BQW, k_BTW, v_BTW))
    mask_QT = _causal(tokens, only_states, x_BTW.device)
    share = torch.baddbmm(mask_QT, q, k.mT, alpha=q.shape[-1] ** -0.5).softmax(-1)
    out = torch.bmm(drop(share) if drop else share, v)
    return out.unflatten(0, (-1, heads)).transpose(1, 2).flatten(2)


@functools.lru_cache(maxsize=128)
def _causal(tokens: int, only_states: bool, device: torch.device) -> torch.Tensor:
    """(Q, T): 0 where a query may look, -inf where it may not."""
    with torch.inference_mode(False):  # one made while acting may be needed in training
        mask_TT = torch.full((tokens, tokens), -torch.inf, device=device).triu(1)
        return mask_TT[1::3] if only_states else mask_TT


def _norm(p: Parameters, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], p[f"{name}.scale"], p[f"{name}.shift"])


def _linear(p: Parameters, name: str, x: torch.Tensor) -> torch.Tensor:
    return _product(x, p[f"{name}.weight"], p[f"{name}.bias"])


def _product(x: torch.Tensor, weight_IO: torch.Tensor, bias_O: torch.Tensor) -> torch.Tensor:
    return torch.addmm(bias_O, x.flatten(0, -2), weight_IO).unflatten(0, x.shape[:-1])
