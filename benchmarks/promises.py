"""Predicted returns against achieved ones: over episodes, over the returns asked for, over online stages.

Letters: E episodes, S shards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from algorithms.gac.target import Target, first_target, next_target
from benchmarks.gac import TEST
from benchmarks.markdown import over_seeds, table
from benchmarks.trained import Trained, by_data
from cluster.graph import make_shard
from cluster.pictures.calibration import rank_correlation
from replay import snapshot
from replay.episode_store import EpisodeStore

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)  # of the best return in the data
MODES = ("st", "kl", "max")


def calibration(runs: Sequence[Trained]) -> str:
    """Mean promised, mean achieved and Spearman's rank correlation over the starts outside the goal, by mode."""
    rows = []
    for data, group in by_data(runs).items():
        for mode in MODES:
            promised, achieved, ranked, error = zip(*(_kept(run, mode) for run in group))
            rows.append(
                [data, mode, *(over_seeds(cell) for cell in (promised, achieved, error)), over_seeds(ranked, 2)]
            )
    return table(["", "", "predicted", "achieved", "mean error", "rank correlation"], rows)


def _kept(run: Trained, mode: str) -> tuple[float, float, float, float]:
    made = run.run(run.policy(mode), mode, TEST)
    outside_E = ~np.array(made.starts_in_goal, bool)
    promised_E, achieved_E = run.scores(made.predicted)[outside_E], run.scores(made.returns)[outside_E]
    ranked = rank_correlation(promised_E, achieved_E)
    nan = float("nan")
    error = float(np.abs(promised_E - achieved_E).mean())
    return float(promised_E.mean()), float(achieved_E.mean()), nan if ranked is None else ranked, error


def sweep(runs: Sequence[Trained]) -> str:
    """What st achieves for what it is asked: targets from nothing to twice the best return of the data."""
    rows = []
    for data, group in by_data(runs).items():
        found = np.array([[_asked(run, share) for share in SHARES] for run in group])  # (runs, shares, 3)
        for i, share in enumerate(SHARES):
            cells = [over_seeds([float(value) for value in found[:, i, part]]) for part in range(3)]
            rows.append([data, f"{share:g}", *cells])
        ranked = [rank_correlation(one[:, 0], one[:, 2]) for one in found]
        rows.append([data, "rank correlation", "", "", over_seeds(ranked, 2)])
    return table(["", "share of the best", "asked", "predicted", "achieved"], rows)


def _asked(run: Trained, share: float) -> tuple[float, float, float]:
    target = share * run.dataset.summary().return_max
    made = run.run(run.policy("st"), "st", (TEST[0], TEST[1] // 2), target=target)
    means = (run.scores(values).mean() for values in ([target], made.predicted, made.returns))
    asked, promised, achieved = (float(mean) for mean in means)
    return asked, promised, achieved


class Stage(NamedTuple):
    """The episodes of one online stage; scores."""

    asked: float
    predicted: float
    achieved: float
    correlation: float


def stages(run: Trained) -> list[Stage]:
    """What was asked for, predicted and achieved in every stage, from the episodes that the run's shards hold."""
    columns = []
    for index in range(run.spec.config.replay.shards):
        shard = make_shard(run.spec, index)
        assert isinstance(shard.store, EpisodeStore)
        if snapshot.load(shard, run.spec.shard_dir(index)) is None:
            continue
        held, slots = shard.store.arena, np.array(shard.store.arena.online.order, np.int64)
        columns.append(np.stack([held.stage[slots], held.target[slots], held.predicted[slots], held.ret[slots]]))
    stage_E, target_E, predicted_E, return_E = np.concatenate(columns, 1)
    return [
        _stage(run, *(part_E[stage_E == k] for part_E in (target_E, predicted_E, return_E))) for k in np.unique(stage_E)
    ]


def _stage(run: Trained, target_E: np.ndarray, predicted_E: np.ndarray, return_E: np.ndarray) -> Stage:
    ranked = rank_correlation(predicted_E, return_E)
    asked, promised, achieved = (float(run.scores(part_E).mean()) for part_E in (target_E, predicted_E, return_E))
    return Stage(asked, promised, achieved, float("nan") if ranked is None else ranked)


def online_stages(runs: Sequence[Trained]) -> str:
    """By how the target moved: asked, predicted and achieved in each stage, and delta_y as the run ended with it."""
    rows = []
    for data, group in by_data(runs).items():
        for name in sorted({run.record["plan"] for run in group}):
            chosen = [run for run in group if run.record["plan"] == name]
            found = [stages(run) for run in chosen]
            for k in range(max(map(len, found))):
                reached = [one[k] for one in found if len(one) > k]
                cells = [over_seeds([stage[part] for stage in reached]) for part in range(3)]
                rows.append(
                    [data, name, str(k + 1), *cells, over_seeds([stage.correlation for stage in reached], 2), ""]
                )
            rows[-1][-1] = over_seeds([last_gain(run) for run in chosen], 2)
    return table(["", "target", "stage", "asked", "predicted", "achieved", "rank correlation", "last gain"], rows)


def last_gain(run: Trained) -> float:
    """delta_y over the predictor's standard error after the last stage."""
    from algorithms.gac.target import decode_nan
    from cluster.graph import newest_checkpoint
    from learners.learner import PART

    found = newest_checkpoint(run.spec)
    assert found is not None
    state = found.part(PART)
    return float(decode_nan(torch.as_tensor(state["agent/target"]))[1])


def target_walk(returns: Sequence[float], uncertainty: float) -> str:
    """The moving target on a made-up course: each stage achieves what it was asked, up to the ability of that stage.

    Args:
        returns: ability of each stage: what it achieves at most, in scores.
        uncertainty: the predictor's standard error, scores.
    """
    from algorithms.gac.planning import PlanningConfig
    from replay.schema import ReturnSummary

    rows, nan = [], float("nan")
    config = PlanningConfig()
    target: Target = first_target(config)
    summary = ReturnSummary(
        quantile=returns[0] / 2,
        best=returns[0],
        stage=0,
        stage_mean=nan,
        stage_target=nan,
        stage_episodes=0,
        episodes=0,
    )
    held = summary.quantile
    for stage, ability in enumerate(returns, 1):
        target = next_target(config, summary, target, uncertainty=uncertainty)
        achieved = min(target.value, ability)
        rows.append([str(stage), f"{ability:g}", f"{target.value:.1f}", f"{achieved:.1f}", f"{target.gain:.2f}"])
        held = max(held, achieved)
        summary = dataclasses.replace(
            summary,
            quantile=held,
            best=held,
            stage=stage,
            stage_mean=achieved,
            stage_target=target.value,
            stage_reached=achieved,
            stage_episodes=100,
        )
    return table(["stage", "ability", "asked", "achieved", "gain"], rows)
