"""Statistics of episodes in one streaming pass.

Letters: T steps, X dim of what is counted.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from replay.stored_episode import StoredEpisode
from replay.trajectories import DataSummary

LEAST_STD = 1e-3  # of observations and actions: a constant coordinate is not blown up
LEAST_RETURN_STD = 1e-6


class Moments:
    """Mean and variance of rows that come in batches, in float64 (Chan et al. 1979: no sum of squares that cancels)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean_X: np.ndarray = np.zeros(())
        self._squares_X: np.ndarray = np.zeros(())

    def add(self, rows_TX: np.ndarray) -> None:
        """Takes T >= 1 more rows."""
        rows_TX = rows_TX.astype(np.float64)
        count, mean_X = len(rows_TX), rows_TX.mean(axis=0)
        delta_X, total = mean_X - self.mean_X, self.count + count
        self._squares_X = self._squares_X + ((rows_TX - mean_X) ** 2).sum(axis=0)
        self._squares_X = self._squares_X + delta_X**2 * (self.count * count / total)
        self.mean_X = self.mean_X + delta_X * (count / total)
        self.count = total

    def std(self, least: float) -> np.ndarray:
        """Of the rows so far (divided by their number), at least ``least``."""
        return np.maximum(np.sqrt(self._squares_X / self.count), least)


def summarise(episodes: Iterable[StoredEpisode]) -> DataSummary:
    """Statistics of at least one episode. Observations are those that an action answered: the last one is not counted."""
    obs, action = Moments(), Moments()
    returns, lengths = [], []
    for episode in episodes:
        obs.add(episode.obs_TO)
        action.add(episode.action_TA)
        returns.append(float(episode.reward_T.sum()))
        lengths.append(len(episode.reward_T))
    return_N = np.array(returns)
    return DataSummary(
        obs_mean_O=obs.mean_X,
        obs_std_O=obs.std(LEAST_STD),
        action_mean_A=action.mean_X,
        action_std_A=action.std(LEAST_STD),
        return_mean=float(return_N.mean()),
        return_std=max(float(return_N.std()), LEAST_RETURN_STD),
        return_min=float(return_N.min()),
        return_max=float(return_N.max()),
        return_quantiles=tuple(np.percentile(return_N, np.arange(101)).tolist()),
        max_length=max(lengths),
        episodes=len(lengths),
        steps=sum(lengths),
    )
