"""Which steps of a batch of whole episodes an update looks at, gathered by offset without padding waste.

Letters: B trajectories of T_b steps, N steps together, K segments of one, R rows, S steps of a row, O, A.
Sampled: the sum over a trajectory's T steps is estimated without bias from K segments (ours; the paper sums them all).
Whole: every step once, in rows that follow each other; at most S - 1 places of each trajectory stay empty.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from replay.schema import Trajectories


class Segments(NamedTuple):
    """Steps in rows, and what each stands for in the sum over its trajectory's steps."""

    obs_RSO: torch.Tensor
    action_RSA: torch.Tensor
    later_RSO: torch.Tensor  # the next observation; any where the episode ends before
    time_RS: torch.Tensor  # int64, steps since the episode's start
    weight_RS: torch.Tensor  # float32; 0 where there is no step
    ahead_weight_RS: torch.Tensor  # the same, 0 also where there is no later observation
    rows: Rows


def sampled(batch: Trajectories, uniform_BK: torch.Tensor, *, steps: int, obs_dim: int, action_dim: int) -> Segments:
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
        batch, first_B11, length_B11, time_BKS, weight_BKS, Rows(padding_RS=padding), shape, obs_dim, action_dim
    )


def whole(batch: Trajectories, *, size: int, obs_dim: int, action_dim: int) -> Segments:
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
    return _gather(batch, first_R1, length_R1, time_RS, real_RS.float(), rows, time_RS.shape, obs_dim, action_dim)


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
) -> Segments:
    last = length - 1
    steps = batch.rows_NF[first + torch.minimum(time.clamp(min=0), last)]
    later = batch.rows_NF[first + torch.minimum(time.clamp(min=0) + 1, last)]
    return Segments(
        obs_RSO=steps[..., :obs_dim].reshape(*shape, obs_dim),
        action_RSA=steps[..., obs_dim : obs_dim + action_dim].reshape(*shape, action_dim),
        later_RSO=later[..., :obs_dim].reshape(*shape, obs_dim),
        time_RS=time.clamp(min=0).reshape(shape),
        weight_RS=weight.reshape(shape),
        ahead_weight_RS=(weight * (time + 1 < length)).reshape(shape),
        rows=rows,
    )


def per_trajectory(value_R: torch.Tensor, rows: Rows, trajectories: int) -> torch.Tensor:
    """Sums of the rows of each trajectory (B,)."""
    if rows.plan_R is None:
        return value_R.view(trajectories, -1).sum(1)
    return value_R.new_zeros(trajectories).index_add(0, rows.plan_R, value_R)


class Rows(NamedTuple):
    """How the rows of a batch belong together. None: every step is real, row r stands alone and reads plan r B // R."""

    padding_RS: torch.Tensor | None = None  # bool, True where there is no step
    previous_R: torch.Tensor | None = None  # int64, the row that ends where this one begins; -1: none
    plan_R: torch.Tensor | None = None  # int64, which plan each row reads


def window_mask(steps: int, window: int, rows: Rows, device: torch.device) -> torch.Tensor:
    """True where a token of a row may look: (R or 1, 1, N, N), or (R, 1, N, 2 N) with the previous row's keys first.

    A token sees itself and earlier ones of the last W steps, its own included.
    """
    query, key = torch.arange(2 * steps, device=device).unsqueeze(1), torch.arange(2 * steps, device=device)
    mask = ((key <= query) & (query // 2 - key // 2 < window)).unsqueeze(0)
    own = query == key
    real_RN = None if rows.padding_RS is None else ~rows.padding_RS.repeat_interleave(2, 1)
    if real_RN is not None:
        mask = mask & real_RN.unsqueeze(1)
    if rows.previous_R is not None:
        there = (rows.previous_R >= 0)[:, None, None]
        if real_RN is not None:
            there = there & real_RN[rows.previous_R.clamp(min=0)].unsqueeze(1)
        before = (query // 2 - (key // 2 - steps) < window) & there
        mask = torch.cat([before, mask.expand(len(before), -1, -1)], 2)
        own = F.pad(own, (2 * steps, 0))
    return (mask | own).unsqueeze(1)


def ring_mask(time_E: torch.Tensor, window: int) -> torch.Tensor:
    """(E, 1, 2, J): what the last action and this state may look at in rings of W + 1 steps.

    The slots of step s are 2 (s mod (W + 1)) and the next, so a ring's newest step is known from the time alone, and
    what an earlier episode left there is never seen.
    """
    ring = window + 1
    age_EJ = (time_E.unsqueeze(1) - torch.arange(ring, device=time_E.device)) % ring
    there_EJ = age_EJ <= time_E.unsqueeze(1)
    past_EJ = there_EJ & (age_EJ >= 1)
    by_action = torch.stack([past_EJ | (age_EJ == 1)] * 2, -1)  # at time 0 nothing is there; its output is never read
    by_state = torch.stack([there_EJ & (age_EJ < window), past_EJ & (age_EJ < window)], -1)
    return torch.stack([by_action.flatten(1), by_state.flatten(1)], 1).unsqueeze(1)


class Steps(NamedTuple):
    """Consecutive steps of K episodes from the front, padding behind them."""

    obs_KHO: torch.Tensor  # float32, raw
    action_KHA: torch.Tensor  # float32
    padding_KH: torch.Tensor  # bool, True where there is no step


class History:
    """The last H steps of E episodes, as a ring by each episode's own time; H = 0 keeps nothing."""

    def __init__(self, num_envs: int, steps: int, obs_dim: int, action_dim: int) -> None:
        self.steps = steps
        self.obs_EHO = np.zeros((num_envs, steps, obs_dim), np.float32)
        self.action_EHA = np.zeros((num_envs, steps, action_dim), np.float32)
        self._env_E = np.arange(num_envs)

    def append(self, time_E: np.ndarray, obs_EO: np.ndarray, action_EA: np.ndarray) -> None:
        """Takes the step at ``time_E`` (int64) of every episode."""
        slot_E = time_E % self.steps
        self.obs_EHO[self._env_E, slot_E] = obs_EO
        self.action_EHA[self._env_E, slot_E] = action_EA

    def newest(self, env_K: np.ndarray, time_K: np.ndarray) -> Steps:
        """The min(H, time) steps before ``time_K`` of the episodes in ``env_K``."""
        first_K1 = np.maximum(time_K - self.steps, 0)[:, None]
        time_KH = first_K1 + np.arange(self.steps)
        at = (env_K[:, None], time_KH % self.steps)
        padding_KH = time_KH >= time_K[:, None]
        return Steps(*map(torch.from_numpy, (self.obs_EHO[at], self.action_EHA[at], padding_KH)))
