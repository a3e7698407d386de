"""Which steps of a batch of whole episodes an update looks at, gathered by offset without padding waste.

Letters: B trajectories of T_b steps, N steps together, K segments of one, R rows, S steps of a row, O, A.
Sampled: the sum over a trajectory's T steps is estimated without bias from K segments (ours; the paper sums them all).
Whole: every step once, in rows that follow each other; at most S - 1 places of each trajectory stay empty.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from algorithms.gac.window import Rows
from replay.trajectories import Trajectories


class Segments(NamedTuple):
    """Steps in rows, and what each stands for in the sum over its trajectory's steps."""

    obs_RSO: torch.Tensor
    action_RSA: torch.Tensor
    later_RSO: torch.Tensor  # observation ``ahead`` steps later; any where the episode ends before
    time_RS: torch.Tensor  # int64, steps since the episode's start
    weight_RS: torch.Tensor  # float32; 0 where there is no step
    ahead_weight_RS: torch.Tensor  # the same, 0 also where there is no later observation
    rows: Rows


def sampled(
    batch: Trajectories, uniform_BK: torch.Tensor, *, steps: int, obs_dim: int, action_dim: int, ahead: int
) -> Segments:
    """K segments of ``steps`` consecutive steps of each trajectory, stratified over its length.

    A segment begins anywhere from steps - 1 places before the start to the last step, so that every step is covered
    with the same probability; with ``steps`` of 1 the K single steps of a trajectory are one row.

    Args:
        uniform_BK: uniform in [0, 1).
    """
    length_B11 = batch.offset.diff()[:, None, None]
    count = uniform_BK.shape[1]
    places_B11 = length_B11 + steps - 1
    stratum_BK = (torch.arange(count, device=uniform_BK.device) + uniform_BK) / count
    begin_BK1 = (stratum_BK.unsqueeze(-1) * places_B11).long().clamp(max=places_B11 - 1) - (steps - 1)
    time_BKS = begin_BK1 + torch.arange(steps, device=uniform_BK.device)
    real_BKS = (time_BKS >= 0) & (time_BKS < length_B11)
    weight_BKS = real_BKS * (places_B11 / (count * steps))
    first_B11 = batch.offset[:-1, None, None]
    shape = (-1, count) if steps == 1 else (-1, steps)
    padding = None if steps == 1 else ~real_BKS.reshape(shape)
    return _gather(
        batch, first_B11, length_B11, time_BKS, weight_BKS, Rows(padding_RS=padding), shape, obs_dim, action_dim, ahead
    )


def whole(batch: Trajectories, *, size: int, obs_dim: int, action_dim: int, ahead: int) -> Segments:
    """Every step of every trajectory in rows of ``size``; their number N // size + B is known without looking at lengths."""
    length_B, plans = batch.offset.diff(), len(batch)
    rows_B = (length_B + size - 1) // size
    end_B = rows_B.cumsum(0)
    row_R = torch.arange(len(batch.rows_NF) // size + plans, device=end_B.device)
    plan_R = torch.searchsorted(end_B, row_R, right=True)
    used_R = plan_R < plans
    plan_R = plan_R.clamp(max=plans - 1)
    index_R = row_R - (end_B - rows_B)[plan_R]
    time_RS = index_R.unsqueeze(1) * size + torch.arange(size, device=end_B.device)
    length_R1 = length_B[plan_R].unsqueeze(1)
    real_RS = (time_RS < length_R1) & used_R.unsqueeze(1)
    rows = Rows(padding_RS=~real_RS, previous_R=torch.where((index_R > 0) & used_R, row_R - 1, -1), plan_R=plan_R)
    first_R1 = batch.offset[:-1][plan_R].unsqueeze(1)
    return _gather(
        batch, first_R1, length_R1, time_RS, real_RS.float(), rows, time_RS.shape, obs_dim, action_dim, ahead
    )


def _gather(
    batch: Trajectories,
    first: torch.Tensor,
    length: torch.Tensor,
    time: torch.Tensor,
    weight: torch.Tensor,
    rows: Rows,
    shape: tuple[int, ...],
    obs_dim: int,
    action_dim: int,
    ahead: int,
) -> Segments:
    last = length - 1
    steps = batch.rows_NF[first + torch.minimum(time.clamp(min=0), last)]
    later = batch.rows_NF[first + torch.minimum(time.clamp(min=0) + ahead, last)]
    return Segments(
        obs_RSO=steps[..., :obs_dim].reshape(*shape, obs_dim),
        action_RSA=steps[..., obs_dim : obs_dim + action_dim].reshape(*shape, action_dim),
        later_RSO=later[..., :obs_dim].reshape(*shape, obs_dim),
        time_RS=time.clamp(min=0).reshape(shape),
        weight_RS=weight.reshape(shape),
        ahead_weight_RS=(weight * (time + ahead < length)).reshape(shape),
        rows=rows,
    )


def per_trajectory(value_R: torch.Tensor, rows: Rows, trajectories: int) -> torch.Tensor:
    """Sums of the rows of each trajectory (B,)."""
    if rows.plan_R is None:
        return value_R.view(trajectories, -1).sum(1)
    return value_R.new_zeros(trajectories).index_add(0, rows.plan_R, value_R)
