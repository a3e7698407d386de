"""Episodes whose right imitation is known, as the learners are given them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from replay.schema import DataSummary, Trajectories


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recorded:
    """One whole episode."""

    obs_TO: np.ndarray  # float32
    action_TA: np.ndarray  # float32
    reward_T: np.ndarray  # float32


def episode(obs_TO: np.ndarray, action_TA: np.ndarray, reward_T: np.ndarray) -> Recorded:
    return Recorded(
        obs_TO=obs_TO.astype(np.float32), action_TA=action_TA.astype(np.float32), reward_T=reward_T.astype(np.float32)
    )


def two_behaviours(count: int, *, seed: int = 0) -> list[Recorded]:
    """A quarter acts -.6 and earns 1 a step, the others act +.6 and earn .05; observations say nothing of it.

    Lengths are 10 to 20 steps; observations (2,) are noise.
    """
    draw, episodes = np.random.default_rng(seed), []
    for i in range(count):
        steps, good = int(draw.integers(10, 21)), i % 4 == 0
        action = np.full((steps, 1), -0.6 if good else 0.6)
        reward = np.full(steps, 1.0 if good else 0.05)
        episodes.append(episode(0.3 * draw.normal(size=(steps, 2)), action, reward))
    return episodes


def batch_of(episodes: Sequence[Recorded]) -> Trajectories:
    rows = [np.concatenate([e.obs_TO, e.action_TA, e.reward_T[:, None]], 1) for e in episodes]
    lengths = [len(e.reward_T) for e in episodes]
    return Trajectories(
        rows_NF=torch.from_numpy(np.concatenate(rows)),
        offset=torch.from_numpy(np.cumsum([0, *lengths])),
        return_B=torch.tensor([float(e.reward_T.sum(dtype=np.float64)) for e in episodes]),
        posterior_BP=torch.zeros(len(episodes), 0),
        visits_B=torch.zeros(len(episodes), dtype=torch.int32),
    )


def halves(batch: Trajectories) -> tuple[Trajectories, Trajectories]:
    """The first and the second half of the episodes."""
    middle = len(batch) // 2
    row = int(batch.offset[middle])
    parts = ((slice(0, middle), slice(0, row), 0), (slice(middle, None), slice(row, None), row))
    one, other = (
        Trajectories(
            rows_NF=batch.rows_NF[rows],
            offset=batch.offset[b.start : (b.stop + 1 if b.stop else None)] - begin,
            return_B=batch.return_B[b],
            posterior_BP=batch.posterior_BP[b],
            visits_B=batch.visits_B[b],
        )
        for b, rows, begin in parts
    )
    return one, other


def summary_of(episodes: Sequence[Recorded]) -> DataSummary:
    obs = np.concatenate([e.obs_TO for e in episodes]).astype(np.float64)
    action = np.concatenate([e.action_TA for e in episodes]).astype(np.float64)
    returns = np.array([e.reward_T.sum(dtype=np.float64) for e in episodes])
    return DataSummary(
        obs_mean_O=obs.mean(0),
        obs_std_O=obs.std(0).clip(1e-3),
        action_mean_A=action.mean(0),
        action_std_A=action.std(0),
        return_mean=float(returns.mean()),
        return_std=float(returns.std().clip(1e-6)),
        return_min=float(returns.min()),
        return_max=float(returns.max()),
        return_quantiles=tuple(float(q) for q in np.percentile(returns, range(101))),
        max_length=max(len(e.reward_T) for e in episodes),
        episodes=len(episodes),
        steps=len(obs),
    )
