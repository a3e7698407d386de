"""How experience is laid out: packed transitions, whole episodes one after the other, and statistics of both.

A stored transition is ONE packed float32 row, columns as views.

Letters: O observation dim, A action dim, D = 2 O + A + 2 row width; B episodes, N their steps together, T steps of one, P floats of a
stored posterior.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


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


class EpisodeMetadata(NamedTuple):
    """What an episode was begun with; a worker sends it once, with the chunk that has the episode's first row."""

    episode: int  # id, as in ``Chunk.episode_N``
    mode: str  # how its plan was inferred: prior, st, kl, max, explore; "" for a policy that makes none
    target: float  # return that was asked for; NaN where the mode asks for none
    predicted: float  # mean return that the model predicted for the plan; NaN where it predicts none
    variance: float  # of that prediction


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trajectories:
    """B whole episodes without padding; numpy arrays as a shard sends them, torch tensors on the learner's device.

    Episode b has the rows ``offset[b] : offset[b + 1]``, in step order from its first step.
    """

    rows_NF: Any  # (N, O + A + 1) float32: [obs | action in [-1, 1] | reward]
    offset: Any  # (B + 1,) int64, from 0 to N
    return_B: Any  # (B,) float32, undiscounted sum of the rewards
    posterior_BP: Any  # (B, P) float32: what the learner wrote back about each episode; P = 0 where it writes nothing
    visits_B: Any  # (B,) int32: how often it was written back; 0: posterior_BP[b] means nothing

    def __len__(self) -> int:
        return len(self.return_B)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReturnSummary:
    """What is known of the returns held, by a shard or by all: the exploration target is set by it."""

    quantile: float  # of the returns held, at ``DataConfig.target_quantile``; NaN when nothing is held
    best: float
    stage: int  # online stage, 0 before the first online episode was asked for
    stage_mean: float  # over the online episodes of the newest stage that has any; NaN when there are none
    stage_target: (
        float  # mean of the lowest targets of stage ``stage``, those about y+; NaN where nothing was asked for
    )
    stage_episodes: int
    episodes: int  # held
    stage_reached: float = math.nan  # mean return of the episodes with these targets
    stage_std: float = dataclasses.field(default=math.nan, repr=False)  # as stage_mean; see GAC.update_returns

    @classmethod
    def of(cls, *numbers: float) -> ReturnSummary:
        """From what ``dataclasses.astuple`` gave, as floats."""
        fields = dataclasses.fields(cls)
        named: dict[str, Any] = {f.name: int(x) if f.type == "int" else x for f, x in zip(fields, numbers)}
        return cls(**named)


def together(shards: Sequence[ReturnSummary]) -> ReturnSummary:
    """What S >= 1 shards know, as if one held all their episodes; the stage is the newest that all have gathered.

    But for ``quantile``, ``stage_target`` and ``stage_reached``, which are means of theirs by the episodes they hold or have
    gathered: episodes come to shards by chance.
    """
    held, gathered = [one.episodes for one in shards], [one.stage_episodes for one in shards]
    mean = _mean([one.stage_mean for one in shards], gathered)
    variance = _mean([one.stage_std**2 + (one.stage_mean - mean) ** 2 for one in shards], gathered)
    return ReturnSummary(
        quantile=_mean([one.quantile for one in shards], held),
        best=max((one.best for one in shards if not math.isnan(one.best)), default=math.nan),
        stage=min(one.stage for one in shards),
        stage_mean=mean,
        stage_std=math.sqrt(variance),
        stage_target=_mean([one.stage_target for one in shards], gathered),
        stage_reached=_mean([one.stage_reached for one in shards], gathered),
        stage_episodes=sum(gathered),
        episodes=sum(held),
    )


def _mean(values: Sequence[float], weights: Sequence[int]) -> float:
    """Weighted, of the values that are known; NaN where none is."""
    known = [(value, weight) for value, weight in zip(values, weights) if weight and not math.isnan(value)]
    return sum(value * weight for value, weight in known) / sum(weight for _, weight in known) if known else math.nan


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DataSummary:
    """Statistics of a dataset, from one pass over it: what models are normalised with."""

    obs_mean_O: np.ndarray  # float64
    obs_std_O: np.ndarray  # float64, at least 1e-3
    action_mean_A: np.ndarray  # float64, of actions in [-1, 1]
    action_std_A: np.ndarray
    return_mean: float
    return_std: float  # at least 1e-6
    return_min: float
    return_max: float
    return_quantiles: tuple[float, ...]  # 101: the 0th to the 100th percentile
    max_length: int  # steps of the longest episode
    episodes: int
    steps: int
