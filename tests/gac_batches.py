"""Small ragged batches, a small configuration and a collective of two learners in one thread each, for GAC's tests."""

from __future__ import annotations

import threading
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from algorithms.gac.agent import GAC
from algorithms.gac.config import GACConfig
from algorithms.interface import AgentSpec, Solo
from replay.schema import DataSummary, Trajectories

OBS, ACTION = 3, 2
LENGTHS = (7, 1, 40, 23)
SMALL: dict[str, Any] = {
    "tokens": 4,
    "token_width": 3,
    "prior": "implicit",
    "obs_fourier": 0,
    "plan_reading": "attention",
    "prior_width": 8,
    "posterior_width": 8,
    "layers": 2,
    "heads": 2,
    "width": 8,
    "return_layers": 3,
    "kl_weight": 1.0,
    "next_state_weight": 1.0,
    "points": 6,
    "inner_steps": 3,
    "updates": 50,
}
SHAPES: dict[str, dict[str, Any]] = {
    "point": {},
    "following": {"return_memory": 0.9, "return_variance": 0.05},
    "linear": {
        "plan_reading": "linear",
        "layers": 0,
        "prior": "explicit",
        "obs_fourier": 2,
        "obs_fourier_dims": 1,
        "return_layers": 1,
    },
    "linear window": {
        "plan_reading": "linear",
        "window": 4,
        "points": 12,
        "return_tokens": 2,
        "posterior": "stored",
    },
    "window": {"window": 4, "points": 12},
    "whole": {"window": 5, "points": 0},
    "paper-like": {
        "window": 4,
        "points": 0,
        "return_tokens": 2,
        "return_variance": 0.0,
        "action_std": 1.0,
        "posterior": "fresh",
    },
    "stored": {"posterior": "stored", "prior": "explicit"},
    "standard": {"prior": "standard", "free_bits": 0.5, "points": 0},
}


def small(**fields: Any) -> GACConfig:
    """A configuration that computes in a millisecond."""
    return GACConfig(**(SMALL | fields))


def episodes(seed: int, lengths: tuple[int, ...] = LENGTHS, posterior_floats: int = 0) -> Trajectories:
    """Episodes of a damped walk whose action is its push; the return is a sum of rewards of order 1."""
    rng = np.random.default_rng(seed)
    parts = []
    for length in lengths:
        action = rng.uniform(-0.9, 0.9, (length, ACTION))
        obs = np.cumsum(rng.normal(size=(length, OBS)), 0)
        parts.append(np.concatenate([obs, action, rng.normal(size=(length, 1))], 1))
    rows = torch.from_numpy(np.concatenate(parts).astype(np.float32))
    offset = torch.tensor([0, *np.cumsum(lengths)])
    returns = torch.stack([rows[a:b, -1].sum() for a, b in pairwise(offset.tolist())])
    return Trajectories(
        rows_NF=rows,
        offset=offset,
        return_B=returns,
        posterior_BP=torch.zeros(len(lengths), posterior_floats),
        visits_B=torch.zeros(len(lengths), dtype=torch.int32),
    )


def halves(batch: Trajectories) -> tuple[Trajectories, Trajectories]:
    """The two halves of a batch of an even number of episodes."""
    count = len(batch) // 2
    cut = batch.offset[count]
    first = (slice(None, cut), slice(None, count))
    second = (slice(cut, None), slice(count, None))
    offsets = (batch.offset[: count + 1], batch.offset[count:] - cut)
    made = [
        Trajectories(
            rows_NF=batch.rows_NF[rows],
            offset=offset,
            return_B=batch.return_B[mine],
            posterior_BP=batch.posterior_BP[mine],
            visits_B=batch.visits_B[mine],
        )
        for (rows, mine), offset in zip((first, second), offsets)
    ]
    return made[0], made[1]


def summary(batch: Trajectories) -> DataSummary:
    """Of the batch itself."""
    obs = batch.rows_NF[:, :OBS].double().numpy()
    y = batch.return_B.double().numpy()
    return DataSummary(
        obs_mean_O=obs.mean(0),
        obs_std_O=obs.std(0) + 1e-3,
        action_mean_A=np.zeros(ACTION),
        action_std_A=np.ones(ACTION),
        return_mean=float(y.mean()),
        return_std=float(y.std() + 1e-6),
        return_min=float(y.min()),
        return_max=float(y.max()),
        return_quantiles=tuple(np.percentile(y, range(101)).tolist()),
        max_length=int(batch.offset.diff().max()),
        episodes=len(batch),
        steps=len(batch.rows_NF),
    )


def made(config: GACConfig, batch: Trajectories, seed: int = 0, collective: Any = None) -> GAC:
    """An agent that knows the batch's statistics."""
    agent = GAC(config, AgentSpec(obs_dim=OBS, action_dim=ACTION, seed=seed, collective=collective or Solo()))
    agent.fit(summary(batch))
    return agent


class Pair:
    """A collective of two learners in two threads of one process; a mean waits at most 20 s for the other."""

    world_size = 2

    def __init__(self, rank: int, meeting: threading.Barrier, table: list[torch.Tensor]) -> None:
        self.rank, self._meeting, self._table = rank, meeting, table

    @classmethod
    def two(cls) -> tuple[Pair, Pair]:
        """Both ends."""
        meeting, table = threading.Barrier(2, timeout=20.0), [torch.zeros(0), torch.zeros(0)]
        return cls(0, meeting, table), cls(1, meeting, table)

    def mean_(self, tensor: torch.Tensor) -> None:
        self._table[self.rank] = tensor.clone()
        self._meeting.wait()
        tensor.copy_((self._table[0] + self._table[1]) / 2)
        self._meeting.wait()
