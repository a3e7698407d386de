"""Transformer blocks of GAC: attention with fused projections, and the feed-forward part.

Letters: B batch, N tokens, M memory tokens, H heads, C width.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn


def attend(
    query_BHNc: torch.Tensor, key_BHMc: torch.Tensor, value_BHMc: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Softmax attention (B, H, N, c); ``mask`` is bool (True: may look) or float32 (added to the logits).

    On the CPU by plain products: with oneDNN (algorithms/matmul.py) torch's fused kernel is 15 times slower for
    sequences of tens of tokens, and with MKL no faster (measured forward and backward at 17 x 17 and 32 x 16).
    """
    if query_BHNc.is_cuda:
        return F.scaled_dot_product_attention(query_BHNc, key_BHMc, value_BHMc, attn_mask=mask)
    logits = (query_BHNc * query_BHNc.shape[-1] ** -0.5) @ key_BHMc.transpose(-1, -2)
    if mask is not None:
        logits = logits + mask if mask.is_floating_point() else logits.masked_fill(~mask, -math.inf)
    return logits.softmax(-1) @ value_BHMc


class FeedForward(nn.Module):
    """x + W2 silu(W1 norm(x)), twice as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(F.silu(self.up(self.norm(x))))


class SelfAttention(nn.Module):
    """Pre-norm multi-head self-attention; queries, keys and values are one product."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(width)
        self.inward, self.outward = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def project(self, x_BNC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys, values, each (B, H, N, C/H)."""
        return tuple(split_heads(part, self.heads) for part in self.inward(self.norm(x_BNC)).chunk(3, -1))  # type: ignore[return-value]

    def forward(self, x_BNC: torch.Tensor) -> torch.Tensor:
        """x + attention of every token to every token (bidirectional)."""
        return x_BNC + self.outward(join_heads(attend(*self.project(x_BNC))))


class CrossAttention(nn.Module):
    """Pre-norm attention to a memory whose keys and values are computed once a plan."""

    def __init__(self, width: int, heads: int, memory_width: int) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(width)
        self.query, self.outward = nn.Linear(width, width), nn.Linear(width, width)
        self.inward = nn.Linear(memory_width, 2 * width)

    def remember(self, memory_BMC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values, each (B, H, M, C/H)."""
        key, value = self.inward(memory_BMC).chunk(2, -1)
        return split_heads(key, self.heads), split_heads(value, self.heads)

    def forward(
        self, x_BNC: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias_BHNM: torch.Tensor | None
    ) -> torch.Tensor:
        query = split_heads(self.query(self.norm(x_BNC)), self.heads)
        read = attend(query, key, value, bias_BHNM)
        return x_BNC + self.outward(join_heads(read))


class Encoder(nn.Module):
    """Bidirectional Transformer over (B, N, C)."""

    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(SelfAttention(width, heads), FeedForward(width)) for _ in range(layers)
        )

    def forward(self, x_BNC: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x_BNC = block(x_BNC)
        return x_BNC


def perceptron(inputs: int, width: int, outputs: int, layers: int) -> nn.Sequential:
    """An MLP of ``layers`` linear maps with Swish between them."""
    sizes = [inputs, *[width] * (layers - 1), outputs]
    maps = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    return nn.Sequential(*[part for linear in maps for part in (linear, nn.SiLU())][:-1])


def split_heads(x_BNC: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, N, C) to (B, H, N, C/H)."""
    return x_BNC.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x_BHNc: torch.Tensor) -> torch.Tensor:
    """(B, H, N, C/H) to (B, N, C)."""
    return x_BHNc.transpose(1, 2).flatten(2)
