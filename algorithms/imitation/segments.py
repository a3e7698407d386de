"""What is drawn from a batch of whole episodes: single steps, or windows of consecutive steps.

Letters: B episodes, N packed rows, P points of an episode, G segments of all episodes together, K steps of a window.
Episodes of a batch arrive drawn in proportion to their length, so a fixed number of draws from each weighs every
recorded step alike. Noise is passed in: uniform on [0, 1).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from replay.trajectories import Trajectories


class Points(NamedTuple):
    """Steps drawn one by one."""

    obs_BPO: torch.Tensor  # raw
    action_BPA: torch.Tensor


class Segments(NamedTuple):
    """Windows of K consecutive steps, padded at the end where the episode ends first."""

    to_go_GK: (
        torch.Tensor
    )  # float32, sum of the rewards from this step to the episode's end, in the environment's units
    obs_GKO: torch.Tensor  # raw
    action_GKA: torch.Tensor
    time_GK: torch.Tensor  # int64, step of the episode
    valid_GK: torch.Tensor  # bool, False where padded (with the episode's last row)


def draw_points(batch: Trajectories, noise_BP: torch.Tensor, obs_dim: int, action_dim: int) -> Points:
    """P steps of each episode, uniform over it, with replacement."""
    offset, length_B = batch.offset[:-1, None], batch.offset.diff()
    rows_BPF = batch.rows_NF[offset + _pick(noise_BP, length_B)]
    return Points(rows_BPF[..., :obs_dim], rows_BPF[..., obs_dim : obs_dim + action_dim])


def draw_segments(batch: Trajectories, noise_BP: torch.Tensor, context: int, obs_dim: int, action_dim: int) -> Segments:
    """P windows of each episode, G = B P; first steps are uniform over the episode (as Chen et al., 2021, draw them)."""
    length_B1 = batch.offset.diff()[:, None]
    start_G1 = _pick(noise_BP, length_B1[:, 0]).reshape(-1, 1)
    first_G1, length_G1 = (
        x_B1.expand(-1, noise_BP.shape[1]).reshape(-1, 1) for x_B1 in (batch.offset[:-1, None], length_B1)
    )
    step_GK = start_G1 + torch.arange(context, device=start_G1.device)
    time_GK = torch.minimum(step_GK, length_G1 - 1)
    row_GK = first_G1 + time_GK
    rows_GKF = batch.rows_NF[row_GK]
    # Rewards before each row, over the whole batch; float64, so that differences of long sums keep their digits.
    before_N = torch.nn.functional.pad(batch.rows_NF[:, obs_dim + action_dim].double().cumsum(0), (1, 0))
    to_go_GK = before_N[first_G1 + length_G1] - before_N[row_GK]
    return Segments(
        to_go_GK=to_go_GK.float(),
        obs_GKO=rows_GKF[..., :obs_dim],
        action_GKA=rows_GKF[..., obs_dim : obs_dim + action_dim],
        time_GK=time_GK,
        valid_GK=step_GK < length_G1,
    )


def _pick(noise_BP: torch.Tensor, length_B: torch.Tensor) -> torch.Tensor:
    """int64 steps in [0, length), clamped because noise next to 1 times a length rounds up to it."""
    return torch.minimum((noise_BP * length_B[:, None]).long(), length_B[:, None] - 1)
