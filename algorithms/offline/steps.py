"""Steps drawn from whole episodes, and actors; what all value-learning rivals compute with.

Letters: B episodes, P steps of each, R = B P, N packed rows, X features, O, A, W width.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
import torch.nn.functional as F

from algorithms.losses import log_prob
from algorithms.trainer import lecun_normal
from replay.schema import Trajectories

LOG_STD = (-20.0, 2.0)  # bounds of the log standard deviations of actors with a tanh [CQL, RLPD]
IQL_LOG_STD = (-5.0, 2.0)  # [IQL]


class Steps(NamedTuple):
    """Steps with their successors, R rows."""

    obs_RO: torch.Tensor  # raw
    action_RA: torch.Tensor
    reward_R: torch.Tensor
    next_RO: torch.Tensor  # raw; where the episode ends the step's own observation
    going_R: torch.Tensor  # 1, or 0 where the episode ended: nothing follows
    weight_R: torch.Tensor  # 1, or 0 for a last step that the time limit cut off: what followed is not recorded
    to_go_R: torch.Tensor | None  # discounted rewards from here to the end of the episode, where asked for


def draw_steps(
    batch: Trajectories,
    noise_BP: torch.Tensor,
    obs_dim: int,
    action_dim: int,
    longest: torch.Tensor,
    gamma: float | None,
) -> Steps:
    """P steps of each episode, uniform over it, with replacement.

    Whole episodes do not say why they end: one that is shorter than ``longest``, the longest of the data, is taken to have ended
    itself, any other to have been cut off by the time limit. ``gamma``: of the returns to go; None: they are not asked for.
    """
    length_B1 = batch.offset.diff()[:, None]
    step_BP = torch.minimum((noise_BP * length_B1).long(), length_B1 - 1)
    row_R, last_BP = (batch.offset[:-1, None] + step_BP).flatten(), step_BP == length_B1 - 1
    ended_R, last_R = (last_BP & (length_B1 < longest)).flatten(), last_BP.flatten()
    rows_RF, inputs = batch.rows_NF[row_R], obs_dim + action_dim
    return Steps(
        obs_RO=rows_RF[:, :obs_dim],
        action_RA=rows_RF[:, obs_dim:inputs],
        reward_R=rows_RF[:, inputs],
        next_RO=batch.rows_NF[row_R + ~last_R, :obs_dim],
        going_R=(~ended_R).float(),
        weight_R=(~last_R | ended_R).float(),
        to_go_R=None if gamma is None else returns_to_go(batch.rows_NF[:, inputs], batch.offset, gamma)[row_R],
    )


def returns_to_go(reward_N: torch.Tensor, offset: torch.Tensor, gamma: float) -> torch.Tensor:
    """sum_k gamma^k r_{t+k} to each episode's end (N,), in log2 N passes: after pass i each sum has 2^i terms."""
    rows = len(reward_N)
    row_N = torch.arange(rows, device=reward_N.device)
    end_N = offset[torch.searchsorted(offset, row_N, right=True)]  # the episode's row after its last
    total_N, shift = reward_N, 1
    while shift < rows:
        later_N = F.pad(total_N[shift:], (0, shift))
        total_N = total_N + gamma**shift * torch.where(row_N + shift < end_N, later_N, 0.0)
        shift *= 2
    return total_N


def actor_parameters(
    inputs: int, outputs: int, width: int, layers: int, draw: torch.Generator
) -> dict[str, torch.Tensor]:
    """``pi{l}.weight`` (in, out) LeCun-normal and ``pi{l}.bias`` (out,) zero."""
    sizes, named = [inputs, *[width] * layers, outputs], {}
    for l, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        named[f"pi{l}.weight"], named[f"pi{l}.bias"] = lecun_normal((fan_in, fan_out), draw), torch.zeros(fan_out)
    return named


def outputs(p: dict[str, torch.Tensor], x_RX: torch.Tensor, layers: int) -> torch.Tensor:
    """The actor's last layer (R, out); a graph can hold it."""
    for l in range(layers + 1):
        x_RX = torch.addmm(p[f"pi{l}.bias"], x_RX, p[f"pi{l}.weight"])
        x_RX = torch.relu(x_RX) if l < layers else x_RX
    return x_RX


def squashed(
    p: dict[str, torch.Tensor], x_RX: torch.Tensor, noise_RA: torch.Tensor, layers: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Actions (R, A) of a tanh-Gaussian and log pi (R,) of each."""
    mean_RA, log_std_RA = outputs(p, x_RX, layers).chunk(2, -1)
    log_std_RA = log_std_RA.clamp(*LOG_STD)
    x_RA = mean_RA + log_std_RA.exp() * noise_RA
    return torch.tanh(x_RA), log_prob(x_RA, log_std_RA, noise_RA)
