"""The layout of one stored transition: ONE packed float32 row, columns as views.

Letters: O observation dim, A action dim, D = 2 O + A + 2 row width.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple


class Columns(NamedTuple):
    """Views into packed rows of shape (..., D); numpy arrays or torch tensors alike."""

    obs: Any  # (..., O)
    action: Any  # (..., A), in [-1, 1]
    reward: Any  # (...)
    discount: Any  # (...), 1 - terminated; times gamma^(m-1) when m steps were summed
    next_obs: Any  # (..., O), the true last observation at an episode's end


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowLayout:
    """Where each column stands in a packed row [obs | action | reward | discount | next_obs]."""

    obs_dim: int
    action_dim: int

    @property
    def width(self) -> int:
        return 2 * self.obs_dim + self.action_dim + 2

    def views(self, rows: Any) -> Columns:
        """Columns of ``rows`` (..., D) float32, without a copy."""
        o, a = self.obs_dim, self.action_dim
        return Columns(
            obs=rows[..., :o],
            action=rows[..., o : o + a],
            reward=rows[..., o + a],
            discount=rows[..., o + a + 1],
            next_obs=rows[..., o + a + 2 :],
        )
