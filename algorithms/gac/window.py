"""Who sees whom: the causal window over interleaved (s_t, a_t) tokens [LPT], in rows and in a ring.

Letters: R rows, S steps of a row, N = 2 S tokens, E environments, W window, J = 2 (W + 1) slots of a ring.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F


class Rows(NamedTuple):
    """How the rows of a batch belong together. None: every step is real, row r stands alone and reads plan r B // R."""

    padding_RS: torch.Tensor | None = None  # bool, True where there is no step
    previous_R: torch.Tensor | None = None  # int64, the row that ends where this one begins; -1: none
    plan_R: torch.Tensor | None = None  # int64, which plan each row reads
    alone_RS: torch.Tensor | None = None  # bool, True where a step sees no other (history dropout)


def window_mask(steps: int, window: int, rows: Rows, device: torch.device) -> torch.Tensor:
    """True where a token of a row may look: (R or 1, 1, N, N), or (R, 1, N, 2 N) with the previous row's keys first.

    A token sees itself and earlier ones of the last W steps, its own included; a step that is alone only its own.
    """
    query, key = torch.arange(2 * steps, device=device).unsqueeze(1), torch.arange(2 * steps, device=device)
    mask = ((key <= query) & (query // 2 - key // 2 < window)).unsqueeze(0)
    same = query // 2 == key // 2
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
        same, own = F.pad(same, (2 * steps, 0)), F.pad(own, (2 * steps, 0))
    if rows.alone_RS is not None:
        mask = mask & (same | ~rows.alone_RS.repeat_interleave(2, 1).unsqueeze(2))
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
