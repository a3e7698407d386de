"""The categorical return distribution (C51): its support, the projection onto it, its mean.

Letters: B batch, N atoms, T the two critics. Source: Bellemare et al. 2017, and arXiv 2605.08733 for the targets.
"""

from __future__ import annotations

import torch


def support(v_min: float, v_max: float, atoms: int, device: torch.device) -> torch.Tensor:
    """Atoms y_N, evenly spaced from v_min to v_max, float32."""
    return torch.linspace(v_min, v_max, atoms, device=device)


def soft_target(
    reward_B: torch.Tensor, discount_B: torch.Tensor, cost_B: torch.Tensor, alpha: torch.Tensor, y_N: torch.Tensor
) -> torch.Tensor:
    """Where each next atom lands: t_BN = r + gamma (1 - terminated) (y_j - alpha C(s', path')).

    ``discount_B`` is gamma (1 - terminated); the cost is C for the bridge, log pi for a Gaussian. The cost stands
    inside the discount, so a terminal state has none.
    """
    value_BN = y_N - (alpha * cost_B).unsqueeze(-1)
    return torch.addcmul(reward_B.unsqueeze(-1), discount_B.unsqueeze(-1), value_BN)


def clipped_share(p_BN: torch.Tensor, target_BN: torch.Tensor, y_N: torch.Tensor) -> torch.Tensor:
    """The share of the mass p_BN whose place target_BN is outside the support: ``project`` moves it to the edge.

    A hundredth of an atom does not count: a target at the edge is rounded.
    """
    slack = 0.01 * (y_N[1] - y_N[0])
    outside_BN = (target_BN - target_BN.clamp(y_N[0], y_N[-1])).abs_() > slack
    return (p_BN * outside_BN).sum() / p_BN.shape[0]


def project(p_BN: torch.Tensor, target_BN: torch.Tensor, v_min: float, v_max: float) -> torch.Tensor:
    """Mass p_BN at places target_BN, split linearly between the two nearest atoms: m_BN. Places are clipped to [v_min, v_max].

    Dense on a GPU, where summing in any order at the same place would not repeat bit for bit.
    """
    place_BN = ((target_BN - v_min) * ((p_BN.shape[-1] - 1) / (v_max - v_min))).clamp_(0, p_BN.shape[-1] - 1)
    return _project_dense(p_BN, place_BN) if p_BN.is_cuda else _project_scatter(p_BN, place_BN)


def _project_scatter(p_BN: torch.Tensor, place_BN: torch.Tensor) -> torch.Tensor:
    # A NaN place has no atom: its NaN mass goes to any, so that the update's guard sees it.
    low_BN = place_BN.to(torch.int64).clamp_(0, p_BN.shape[-1] - 2)
    upper_BN = p_BN * (place_BN - low_BN)
    mass_BN = torch.zeros_like(p_BN).scatter_add_(-1, low_BN, p_BN - upper_BN)
    mass_BN[..., 1:].scatter_add_(-1, low_BN, upper_BN)
    return mass_BN


def _project_dense(p_BN: torch.Tensor, place_BN: torch.Tensor) -> torch.Tensor:
    atom_N = torch.arange(p_BN.shape[-1], device=p_BN.device, dtype=p_BN.dtype)
    weight_BNN = (1.0 - (place_BN.unsqueeze(-1) - atom_N).abs()).clamp_(min=0.0)
    return torch.bmm(p_BN.unsqueeze(-2), weight_BNN).squeeze(-2)


def mean(logits: torch.Tensor, y_N: torch.Tensor) -> torch.Tensor:
    """E[Z] of the distributions softmax(logits), (..., N) -> (...)."""
    return (torch.softmax(logits, -1) * y_N).sum(-1)
