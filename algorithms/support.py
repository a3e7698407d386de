"""The critics' support: fixed, or fitted to the rewards as they are learned from.

Letters: B batch rows of this learner, N atoms. The paper fixes the support by task. The fitted one is ours. It keeps the atoms
in units u of a return z = centre + scale u and moves centre and scale, so neither the size of the rewards nor a constant added
to each of them changes what is learned. The temperature is in these units too.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from algorithms import c51
from algorithms.interface import Collective

EDGE = 400.0  # units: the atoms of a fitted support lie on [-400, 400]
LEAST_WIDTH = 1e-4  # of a fitted support, as a share of its largest return: float32 tells its atoms apart
ZERO_WIDTH = 1e-8  # of a fitted support whose returns are all 0


class Units(NamedTuple):
    """How atoms stand for returns, z = centre + scale u; the same on all learners."""

    ends: torch.Tensor  # (2,), the lowest and the highest return that the atoms hold
    centre: torch.Tensor  # 0-d
    scale: torch.Tensor  # 0-d
    fitted: bool  # otherwise units are returns

    def reward(self, reward_B: torch.Tensor, discount_B: torch.Tensor) -> torch.Tensor:
        """r' such that r' + d u is r + d z in units. The centre belongs to values: a terminal row (d = 0) loses all of it."""
        if not self.fitted:
            return reward_B
        return torch.addcmul(reward_B, 1.0 - discount_B, self.centre, value=-1.0) / self.scale

    def value(self, u: torch.Tensor) -> torch.Tensor:
        """The return that ``u`` units stand for."""
        return torch.addcmul(self.centre, self.scale, u) if self.fitted else u


class Support:
    """Atoms ``y_N`` on [v_min, v_max]: returns, or units where the support is fitted (v_min and v_max are None).

    A fitted support holds every return that the rewards seen so far allow. It only widens: replay keeps old rewards.
    """

    def __init__(self, v_min: float | None, v_max: float | None, atoms: int, device: torch.device) -> None:
        self.fitted = v_min is None or v_max is None
        self.v_min, self.v_max = (-EDGE, EDGE) if v_min is None or v_max is None else (v_min, v_max)
        self.y_N = c51.support(self.v_min, self.v_max, atoms, device)
        self.ends = torch.tensor([torch.inf, -torch.inf], device=device)
        self.low, self.high = self.ends.unbind()
        zero, one = torch.zeros((), device=device), torch.ones((), device=device)
        self._returns = Units(self.y_N[[0, -1]], zero, one, fitted=False)

    def units(self, reward_B: torch.Tensor, discount_B: torch.Tensor, collective: Collective) -> Units:
        """What the atoms stand for in an update on these rows; ``commit`` keeps it for the next ones.

        ``discount_B`` is gamma (1 - terminated), or gamma^n of n steps. A row moves a value z to r + d z; over and over it
        comes to r / (1 - d). So values between the least and the largest of these stay between them.
        """
        if not self.fitted:
            return self._returns
        bound_B = reward_B / (1.0 - discount_B)
        inf = torch.inf  # for what is not finite: the update on such a row is skipped, see trainer.py
        low, high = bound_B.nan_to_num(inf, inf, inf).amin(), bound_B.nan_to_num(-inf, -inf, -inf).amax()
        if collective.world_size > 1:  # each learner fills its own row, so the mean gathers them
            bounds = torch.zeros(collective.world_size, 2, device=low.device)
            bounds[collective.rank] = torch.stack([low, high]) * collective.world_size
            collective.mean_(bounds)
            low, high = bounds[:, 0].amin(), bounds[:, 1].amax()
        low, high = torch.minimum(self.low, low), torch.maximum(self.high, high)
        ends = torch.stack([low, high])
        least = torch.linalg.vector_norm(ends, torch.inf) * LEAST_WIDTH + ZERO_WIDTH
        return Units(ends, ends.mean(), torch.maximum(high - low, least) / (2 * EDGE), fitted=True)

    def commit(self, units: Units, keep: torch.Tensor) -> None:
        """Takes over ``units`` of an update; not where ``keep`` (0-d bool)."""
        if self.fitted:
            torch.where(keep, self.ends, units.ends, out=self.ends)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a resume needs, by name; nothing of a fixed support."""
        return {"low": self.low, "high": self.high} if self.fitted else {}
