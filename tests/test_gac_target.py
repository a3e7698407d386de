"""The exploration target follows what was reached; a target outside the data is settled by name."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms.gac.config import ALIKE
from algorithms.gac.planning import PlanningConfig
from algorithms.gac.target import (
    LARGEST_GAIN,
    LEAST_EPISODES,
    LEAST_GAIN,
    Target,
    exploration,
    first_target,
    next_target,
    settle_target,
)
from replay.schema import ReturnSummary

NOTHING = ReturnSummary(
    quantile=math.nan, best=math.nan, stage=0, stage_mean=math.nan, stage_target=math.nan, stage_episodes=0, episodes=0
)
OFFLINE = dataclasses.replace(NOTHING, quantile=50.0, best=60.0)
CONFIG = PlanningConfig()


def after_stage(stage: int, mean: float, target: float, quantile: float = 50.0) -> ReturnSummary:
    return ReturnSummary(
        quantile=quantile,
        best=90.0,
        stage=stage,
        stage_mean=mean,
        stage_target=target,
        stage_reached=mean,
        stage_episodes=100,
        episodes=1_000,
    )


def test_nothing_is_asked_for_before_a_return_is_known() -> None:
    assert math.isnan(next_target(CONFIG, NOTHING, first_target(CONFIG), uncertainty=4.0).value)


def test_the_first_target_is_the_quantile_and_one_standard_error() -> None:
    assert next_target(CONFIG, OFFLINE, first_target(CONFIG), uncertainty=4.0).value == 54.0


def test_an_unknown_error_adds_no_delta() -> None:
    assert next_target(CONFIG, OFFLINE, first_target(CONFIG), uncertainty=math.nan).value == 50.0


def test_a_reached_target_widens_the_step_and_a_missed_one_narrows_it() -> None:
    before = Target(54.0, 1.0, 0)
    reached = next_target(CONFIG, after_stage(1, mean=55.0, target=54.0), before, uncertainty=4.0)
    near = next_target(CONFIG, after_stage(1, mean=52.0, target=54.0), before, uncertainty=4.0)
    missed = next_target(CONFIG, after_stage(1, mean=10.0, target=54.0), before, uncertainty=4.0)
    assert (reached.gain, near.gain, missed.gain) == (1.5, 1.0, 0.5)
    assert (reached.value, near.value, missed.value) == (61.0, 56.0, 52.0)


def test_a_stage_is_judged_once_however_often_it_is_heard_of() -> None:
    summary, target = after_stage(1, mean=55.0, target=54.0), Target(54.0, 1.0, 0)
    once = next_target(CONFIG, summary, target, uncertainty=4.0)
    assert next_target(CONFIG, summary, once, uncertainty=4.0) == once


def test_no_less_is_asked_for_than_the_newest_stage_had() -> None:
    assert next_target(CONFIG, after_stage(1, 84.0, 30.0), Target(30.0, 1.0, 0), uncertainty=4.0).value >= 84.0


def test_a_fixed_target_stays_what_the_offline_data_made_it() -> None:
    config = PlanningConfig(explore_target="fixed")
    first = next_target(config, OFFLINE, first_target(config), uncertainty=4.0)
    later = next_target(config, after_stage(1, 80.0, 54.0, quantile=85.0), first, uncertainty=4.0)
    assert (first.value, later.value) == (54.0, 54.0)


def test_a_target_given_by_the_user_is_the_target() -> None:
    config = PlanningConfig(explore_return=120.0)
    assert next_target(config, OFFLINE, first_target(config), uncertainty=4.0).value == 120.0
    assert (
        next_target(config, OFFLINE, Target(54.0, 1.0, 0), uncertainty=4.0).value == 120.0
    )  # a run without it went before


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3), st.floats(0, 100)), max_size=20))
def test_delta_stays_in_its_bounds_whatever_the_stages_bring(stages: list[tuple[float, float, float]]) -> None:
    target = first_target(CONFIG)
    for k, (mean, quantile, error) in enumerate(stages, start=1):
        asked = target.value if math.isfinite(target.value) else 0.0
        target = next_target(CONFIG, after_stage(k, mean, asked, quantile), target, uncertainty=error)
        level = max(mean, quantile)
        assert LEAST_GAIN <= target.gain <= LARGEST_GAIN
        assert level <= target.value <= level + LARGEST_GAIN * error + 1e-9


@pytest.mark.parametrize("target", [-300.0, 300.0])
def test_a_target_outside_the_data_is_warned_of_and_taken(target: float) -> None:
    kept, message = settle_target(target, 0.0, 100.0)
    assert kept == target and "outside the returns 0 to 100" in message and "ask for -10 to 110" in message


def test_a_target_inside_the_data_and_one_before_training_pass_in_silence() -> None:
    assert settle_target(50.0, 0.0, 100.0) == (50.0, "") == settle_target(50.0, math.nan, math.nan)


@pytest.mark.parametrize("target", [math.nan, math.inf, -1e308, 1.1e9])
def test_a_target_that_no_return_has_is_refused(target: float) -> None:
    with pytest.raises(ValueError, match=r"expected a number from -1e\+09 to 1e\+09"):
        settle_target(target, 0.0, 100.0)


def test_settings_that_cannot_work_are_named_with_their_remedy() -> None:
    assert PlanningConfig().validate() == []
    bad = PlanningConfig(infer_mode="best", infer_lr=0.0, explore_gain=9.0, replan_every=0)
    found = "\n".join(bad.validate())
    for name in ("infer_mode", "infer_lr", "explore_gain", "replan_every"):
        assert name in found


DATA_STD = torch.tensor(20.0)
LOST = dataclasses.replace(after_stage(2, mean=40.0, target=54.0), stage_std=0.9 * ALIKE * 20.0)  # the best known: 90


@pytest.mark.parametrize(
    ("changed", "collapsed"),
    [
        ({}, 1.0),
        ({"stage_std": 1.1 * ALIKE * 20.0}, 0.0),
        ({"stage_reached": 55.0}, 0.0),  # what was asked for
        ({"stage_mean": 89.5}, 0.0),  # as good as the best known
        ({"stage_episodes": LEAST_EPISODES - 1}, 0.0),
        ({"stage_std": math.nan}, 0.0),  # of a checkpoint that does not know it
    ],
)
def test_exploration_has_collapsed_where_a_stage_is_all_alike_and_reaches_neither_its_target_nor_the_best(
    changed: dict[str, float], collapsed: float
) -> None:
    stage = dataclasses.replace(LOST, **changed)
    found = exploration(stage, DATA_STD)
    assert found["explore_collapse"].item() == collapsed
    assert found["explore_spread"].item() == pytest.approx(stage.stage_std / 20.0, nan_ok=True)


def test_nothing_is_said_of_exploration_before_a_stage_is_over_or_where_nothing_was_asked_for() -> None:
    for changed in ({"stage": 0}, {"stage_target": math.nan, "stage_reached": math.nan}):
        assert exploration(dataclasses.replace(LOST, **changed), DATA_STD) == {}


def test_a_summary_of_an_older_checkpoint_has_no_deviation_and_no_summary_shows_it_in_its_words() -> None:
    """Its words are what an agent knows it by: one that moves no target must not look new to an older run."""
    older = ReturnSummary.of(*dataclasses.astuple(LOST)[:-1])
    assert math.isnan(older.stage_std) and repr(older) == repr(LOST)
