"""The trajectory generator p_beta(tau | z): a causal Transformer that reads a plan.

Letters: B plans, R rows (stretches of trajectories), S steps of a row, N = 2 S tokens (or S where the window is 1),
E environments, G plan tokens read, L layers, H heads, C width, X features of an observation, O, A. Source: [P] section on the generator; the
interleaved tokens, the window and the cross-attention are [LPT]; linear reading is [C].
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import nn

from algorithms.gac.config import GACConfig
from algorithms.gac.segments import Rows, ring_mask, window_mask

LEAST_ROW = 16  # steps of the rows that long trajectories are folded into


class Memory(NamedTuple):
    """What the generator reads of a plan, computed once a plan."""

    key_LBHGc: torch.Tensor  # L is 0 with linear reading
    value_LBHGc: torch.Tensor
    token_BGd: torch.Tensor  # with linear reading one token (G = 1): the plan's coordinates, then the promised return

    def put(self, index_K: torch.Tensor, other: Memory) -> None:
        """Overwrites the plans ``index_K`` (int64) by the K plans of ``other``, in place."""
        self.key_LBHGc[:, index_K] = other.key_LBHGc
        self.value_LBHGc[:, index_K] = other.value_LBHGc
        self.token_BGd[index_K] = other.token_BGd


class Generated(NamedTuple):
    """What the generator says of each step, from the states up to it and the actions before it."""

    action_BSA: torch.Tensor  # mean, in (-1, 1)
    next_obs_BSO: torch.Tensor  # mean displacement to the next observation, in data deviations


class Cache:
    """Keys and values of the last W + 1 steps of E episodes, as rings; a new episode (time 0) needs no clearing."""

    def __init__(self, config: GACConfig, envs: int, action_dim: int, like: torch.Tensor) -> None:
        slots = 2 * (config.window + 1) if config.window > 1 else 0
        shape = (config.layers, envs, slots, config.heads, config.width // config.heads)
        self.key_LEJHc, self.value_LEJHc = like.new_zeros(shape), like.new_zeros(shape)
        self.action_EA = like.new_zeros(envs, action_dim)  # observed, not yet a token


class Generator(nn.Module):
    """Teacher-forced over rows, or one step at a time with a cache; the two agree to rounding."""

    def __init__(self, config: GACConfig, features: int, obs_dim: int, action_dim: int) -> None:
        super().__init__()
        self.config, self.obs_dim, self.action_dim = config, obs_dim, action_dim
        width, heads, self.linear = config.width, config.heads, config.plan_reading == "linear"
        self.embed_obs = perceptron(features, width, width, 3 if self.linear else 2)
        self.embed_action = nn.Linear(action_dim, width) if config.window > 1 else None
        self.selfs = nn.ModuleList(
            SelfAttention(width, heads) for _ in range(config.layers if config.window > 1 else 0)
        )
        self.crosses = nn.ModuleList(
            CrossAttention(width, heads, config.token_width) for _ in range(0 if self.linear else config.layers)
        )
        self.feeds = nn.ModuleList(FeedForward(width) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width) if config.layers else nn.Identity()
        self.out = nn.Linear(width, action_dim + obs_dim)
        if self.linear:
            coordinates = (config.tokens - config.return_tokens) * config.token_width + 1
            self.slope = nn.Linear(width, (action_dim + obs_dim) * coordinates)

    def memory(self, token_BGd: torch.Tensor, promised_B: torch.Tensor | None) -> Memory:
        """Keys and values of every layer, from the tokens that the generator reads; with linear reading the plan as one
        token, the z-scored return ``promised_B`` last. It is read nowhere else, and None there."""
        if self.linear:
            assert promised_B is not None
            flat_BP = token_BGd.flatten(1)
            token_BGd = torch.cat([flat_BP / math.sqrt(flat_BP.shape[1]), promised_B.unsqueeze(1)], 1).unsqueeze(1)
            none = token_BGd.new_empty(0, len(token_BGd), self.config.heads, token_BGd.shape[1], 0)
            return Memory(none, none, token_BGd)
        pairs = [self._cross(layer).remember(token_BGd) for layer in range(len(self.crosses))]
        return Memory(torch.stack([key for key, _ in pairs]), torch.stack([value for _, value in pairs]), token_BGd)

    def forward(self, memory: Memory, obs_RSX: torch.Tensor, action_RSA: torch.Tensor, rows: Rows) -> Generated:
        """Teacher-forced.

        Args:
            memory: of B plans.
            obs_RSX: features of the observations.
            action_RSA: actions taken; a step's own is never seen by its outputs. Unused where the window is 1.
            rows: how the rows belong together. With ``previous_R`` a row has at least W - 1 steps.
        """
        if self.config.window == 1:
            x = self._layers(memory, F.silu(self.embed_obs(obs_RSX)), rows.plan_R, None)
            return self._read_out(x, memory, rows.plan_R)
        x = torch.stack([F.silu(self.embed_obs(obs_RSX)), self._embed_action(action_RSA)], 2).flatten(1, 2)
        mask = window_mask(obs_RSX.shape[1], self.config.window, rows, obs_RSX.device)
        x = self._layers(memory, x, rows.plan_R, mask, rows.previous_R)
        return self._read_out(x, memory, rows.plan_R)

    def fold(self, memory: Memory, obs_BSX: torch.Tensor, action_BSA: torch.Tensor, rows: Rows) -> Generated:
        """``forward`` of long rows, in linear time: they are cut into shorter ones that see the one before."""
        plans, steps = obs_BSX.shape[:2]
        size = max(self.config.window, LEAST_ROW)
        if self.config.window == 1 or steps <= 2 * size:
            return self(memory, obs_BSX, action_BSA, rows)
        count = -(-steps // size)
        spare = count * size - steps
        none = torch.zeros(plans, steps, dtype=torch.bool, device=obs_BSX.device)
        padding = none if rows.padding_RS is None else rows.padding_RS
        row = torch.arange(plans * count, device=obs_BSX.device)
        cut = Rows(
            padding_RS=F.pad(padding, (0, spare), value=True).view(-1, size),
            previous_R=torch.where(row % count > 0, row - 1, -1),
        )
        obs, action = (F.pad(x, (0, 0, 0, spare)).view(plans * count, size, -1) for x in (obs_BSX, action_BSA))
        made = self(memory, obs, action, cut)
        return Generated(*(part.view(plans, count * size, -1)[:, :steps] for part in made))

    def step(self, memory: Memory, cache: Cache, obs_EX: torch.Tensor, time_E: torch.Tensor) -> Generated:
        """The next step of E episodes, each at its own time: two tokens, the last action and this state.

        Args:
            time_E: int64, steps since each episode's start; grows by one with each call.
        """
        x = F.silu(self.embed_obs(obs_EX.unsqueeze(1)))
        if self.config.window == 1:
            return self._read_out(self._layers(memory, x, None, None), memory, None)
        ring = self.config.window + 1
        x = torch.cat([self._embed_action(cache.action_EA.unsqueeze(1)), x], 1)
        slot_E2 = torch.stack([2 * ((time_E - 1) % ring) + 1, 2 * (time_E % ring)], 1)
        env_E1 = torch.arange(len(time_E), device=time_E.device).unsqueeze(1)
        allowed = ring_mask(time_E, self.config.window)
        for layer, feed in enumerate(self.feeds):
            attention = self._self(layer)
            query, key, value = attention.project(x)
            keys, values = cache.key_LEJHc[layer], cache.value_LEJHc[layer]
            keys[env_E1, slot_E2], values[env_E1, slot_E2] = key.transpose(1, 2), value.transpose(1, 2)
            read = attend(query, keys.transpose(1, 2), values.transpose(1, 2), allowed)
            x = self._rest(layer, memory, x + attention.outward(join_heads(read)), None)
            x = feed(x)
        return self._read_out(x[:, 1:], memory, None)

    def _self(self, layer: int) -> SelfAttention:
        return cast(SelfAttention, self.selfs[layer])

    def _cross(self, layer: int) -> CrossAttention:
        return cast(CrossAttention, self.crosses[layer])

    def _layers(
        self,
        memory: Memory,
        x_RNC: torch.Tensor,
        plan_R: torch.Tensor | None,
        mask: torch.Tensor | None,
        previous_R: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The last layer's outputs, with attention (a ``mask``) those of the states only: nothing reads an action's."""
        for layer, feed in enumerate(self.feeds):
            if mask is not None:
                attention = self._self(layer)
                query, key, value = attention.project(x_RNC)
                if previous_R is not None:
                    at = previous_R.clamp(min=0)
                    key, value = torch.cat([key[at], key], 2), torch.cat([value[at], value], 2)
                if layer + 1 == len(self.feeds):
                    x_RNC, query, mask = x_RNC[:, 0::2], query[:, :, 0::2], mask[:, :, 0::2]
                x_RNC = x_RNC + attention.outward(join_heads(attend(query, key, value, mask)))
            x_RNC = feed(self._rest(layer, memory, x_RNC, plan_R))
        return x_RNC

    def _rest(self, layer: int, memory: Memory, x_RNC: torch.Tensor, plan_R: torch.Tensor | None) -> torch.Tensor:
        """The layer's cross-attention to the plan; rows of one plan are one query."""
        if self.linear:
            return x_RNC
        key, value = memory.key_LBHGc[layer], memory.value_LBHGc[layer]
        if plan_R is not None:
            key, value = key[plan_R], value[plan_R]
        x = x_RNC.reshape(len(key), -1, x_RNC.shape[-1])
        return self._cross(layer)(x, key, value).view(x_RNC.shape)

    def _embed_action(self, action_RSA: torch.Tensor) -> torch.Tensor:
        assert self.embed_action is not None
        return self.embed_action(action_RSA)

    def _read_out(self, x_RSC: torch.Tensor, memory: Memory, plan_R: torch.Tensor | None) -> Generated:
        x_RSC = self.norm(x_RSC)
        out = self.out(x_RSC)
        if self.linear:
            plan_RP = memory.token_BGd[_plan_of_rows(len(memory.token_BGd), x_RSC, plan_R), 0]
            slope = self.slope(x_RSC).unflatten(-1, (out.shape[-1], plan_RP.shape[-1]))
            out = out + (slope @ plan_RP[:, None, :, None]).squeeze(-1)
        action, ahead = out.split([self.action_dim, self.obs_dim], -1)
        return Generated(torch.tanh(action), ahead)


def _plan_of_rows(plans: int, like_R: torch.Tensor, plan_R: torch.Tensor | None) -> torch.Tensor:
    """(R,) int64, the plan of each row: as given, or equally many rows for each plan in turn."""
    if plan_R is not None:
        return plan_R
    rows = len(like_R)
    return torch.arange(plans, device=like_R.device).repeat_interleave(rows // plans, output_size=rows)


def attend(
    query_BHNc: torch.Tensor, key_BHMc: torch.Tensor, value_BHMc: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Softmax attention (B, H, N, c); ``mask`` is bool, True where a query may look.

    On the CPU by plain products: with oneDNN (algorithms/runtime.py) torch's fused kernel is 15 times slower for
    sequences of tens of tokens, and with MKL no faster (measured forward and backward at 17 x 17 and 32 x 16).
    """
    if query_BHNc.is_cuda:
        return F.scaled_dot_product_attention(query_BHNc, key_BHMc, value_BHMc, attn_mask=mask)
    logits = (query_BHNc * query_BHNc.shape[-1] ** -0.5) @ key_BHMc.transpose(-1, -2)
    if mask is not None:
        logits = logits.masked_fill(~mask, -math.inf)
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

    def forward(self, x_BNC: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        query = split_heads(self.query(self.norm(x_BNC)), self.heads)
        read = attend(query, key, value)
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
