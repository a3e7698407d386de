"""What of recorded actions needs no plan: a regression on the state, and one on state and return.

Letters: N rows, B rows of a batch, X features, A.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from algorithms.gac.generator import FeedForward, perceptron
from algorithms.gac.model import GACModel
from replay.stored_episode import StoredEpisode

WIDTH, BATCH, RATE = 64, 512, 2e-3
UPDATES, PASSES = 1_000, 50  # at most so many updates, and so often over the rows


class WithoutPlan(NamedTuple):
    """Shares of the recorded actions' variance that regressions explain."""

    state: float  # told the state alone, as the generator sees it
    state_return: float  # and the episode's return


def explained_without_plan(
    model: GACModel, judged: Sequence[StoredEpisode], others: Sequence[StoredEpisode]
) -> WithoutPlan:
    """Of the at least two episodes ``judged``, by regressions that have not seen them.

    They learn from ``others``. Where these are fewer than ``judged``, each half of ``judged`` is explained by what has learned from
    the other half, too.
    """
    parts = [(others, judged)]
    if len(others) < len(judged):
        even, odd = judged[::2], judged[1::2]
        parts = [([*others, *even], odd), ([*others, *odd], even)]
    rows = [(_rows(model, learned), _rows(model, part)) for learned, part in parts]
    action_NA = torch.cat([of_judged for _, (_, of_judged) in rows])
    total = (action_NA - action_NA.mean(0)).square().sum()

    def share(columns: slice) -> float:
        made = [regression(seen[:, columns], action)(other[:, columns]) for (seen, action), (other, _) in rows]
        return float(1.0 - (action_NA - torch.cat(made)).square().sum() / total)

    return WithoutPlan(state=share(slice(-1)), state_return=share(slice(None)))


def regression(
    seen_NX: torch.Tensor, action_NA: torch.Tensor, *, updates: int = UPDATES, batch: int = BATCH
) -> nn.Module:
    """Least squares, as deep as the generator of preset ``cpu``: features (..., X) -> actions (..., A) in [-1, 1]."""
    updates = min(updates, 1 + PASSES * len(seen_NX) // batch)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        inward, outward = perceptron(seen_NX.shape[1], WIDTH, WIDTH, 2), nn.Linear(WIDTH, action_NA.shape[1])
        network = nn.Sequential(inward, FeedForward(WIDTH), FeedForward(WIDTH), outward, nn.Tanh())
        adam = torch.optim.Adam(network.parameters(), lr=RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, updates)
        for _ in range(updates):
            at_B = torch.randint(len(seen_NX), (batch,))
            adam.zero_grad()
            (network(seen_NX[at_B]) - action_NA[at_B]).square().mean().backward()
            adam.step()
            schedule.step()
    return network.requires_grad_(False)


def _rows(model: GACModel, episodes: Sequence[StoredEpisode]) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of the states and, as the last column, the return of each one's episode (N, X + 1); the actions (N, A)."""
    obs_NO = np.concatenate([one.obs_TO for one in episodes], dtype=np.float32)
    action_NA = np.concatenate([one.action_TA for one in episodes], dtype=np.float32)
    return_N = np.concatenate([np.full(len(one.reward_T), one.reward_T.sum(), np.float32) for one in episodes])
    seen_NX = model.featurise(torch.from_numpy(obs_NO)).detach()
    return_N1 = model.normalise_return(torch.from_numpy(return_N))[:, None]
    return torch.cat([seen_NX, return_N1], 1), torch.from_numpy(action_NA)
