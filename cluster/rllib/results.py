"""A session's newest weights, evaluations and metrics records, under RLlib's keys."""

from __future__ import annotations

import math
import time
from collections import deque
from typing import Any

import numpy as np

from algorithms.weights import Weights
from cluster.errors import RunError
from cluster.session import Session
from rollout_workers.evaluator import Evaluation


def evaluated(session: Session) -> Evaluation:
    """One evaluation of the newest policy, waited for."""
    newest(session)
    limit_s = session.config.evaluation.timeout_s + session.config.ray.start_timeout_s
    deadline, before = time.monotonic() + limit_s, len(session.evaluations)
    session.fleet.request_evaluation(session.config.evaluation.episodes)
    while len(session.evaluations) == before:
        session.advance()
        if time.monotonic() > deadline:
            raise RunError(
                f"no evaluation ended within {limit_s:.0f} s; raise evaluation.timeout_s or lower evaluation_duration"
            )
    return session.evaluations[-1]


def newest(session: Session) -> Weights:
    """The newest published policy; a learner that has just started publishes its first within seconds."""
    limit_s = session.config.ray.start_timeout_s
    deadline = time.monotonic() + limit_s
    while (weights := session.fleet.weights()) is None:
        session.advance()
        if time.monotonic() > deadline:
            raise RunError(f"the learner published no policy within {limit_s:.0f} s, expected one at its start")
    return weights


def episode_results(evaluation: Evaluation) -> dict[str, Any]:
    returns, lengths = evaluation.returns, evaluation.lengths
    return {
        "episode_return_mean": evaluation.return_mean,
        "episode_return_min": min(returns),
        "episode_return_max": max(returns),
        "episode_len_mean": float(np.mean(lengths)),
        "episode_len_min": min(lengths),
        "episode_len_max": max(lengths),
        "num_episodes": len(returns),
        "num_env_steps_sampled": sum(lengths),
        "episode_returns": returns,
        "weights_seq_no": evaluation.version,
    }


def windowed(lines: deque[dict[str, Any]]) -> dict[str, float]:
    """Over the newest episodes; nan before the first one has ended."""
    count = sum(line["episodes"] for line in lines)
    if not count:
        return dict.fromkeys(
            ("episode_return_mean", "episode_return_min", "episode_return_max", "episode_len_mean"), math.nan
        )
    return {
        "episode_return_mean": sum(line["return_mean"] * line["episodes"] for line in lines) / count,
        "episode_return_min": min(line["return_min"] for line in lines),
        "episode_return_max": max(line["return_max"] for line in lines),
        "episode_len_mean": sum(line["length_mean"] * line["episodes"] for line in lines) / count,
    }
