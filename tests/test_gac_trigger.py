"""Surprise replans on a teleport and leaves the ordinary alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms.gac.planning import PlanningConfig
from algorithms.gac.target import Trigger, band_edge, surprise

E, O, STEPS = 16, 4, 500
NOISE = 0.1


def calibrated(error_N: np.ndarray) -> np.ndarray:
    return np.percentile(error_N, np.arange(101)).astype(np.float32)


def walk(trigger: Trigger, horizon: int, *, seed: int, teleport: int = -1) -> list[tuple[int, int]]:
    """Environments that move by what was predicted and noise; (step, environment) of every new plan."""
    rng = np.random.default_rng(seed)
    obs_EO, fired = np.zeros((E, O), np.float32), []
    coming = [np.zeros((E, O), np.float32)] * horizon
    for step in range(STEPS):
        if step == teleport:
            obs_EO = obs_EO + 3.0
        now = trigger.fired(obs_EO)
        fired += [(step, int(env)) for env in now]
        trigger.begin(now)
        drift_EO = 0.05 * np.sin(step / 20 + np.arange(O), dtype=np.float32)
        coming = [*coming[1:], drift_EO]
        trigger.step(obs_EO + horizon * drift_EO)
        obs_EO = obs_EO + drift_EO + NOISE * rng.standard_normal((E, O), dtype=np.float32) / np.float32(horizon**0.5)
    return fired


def errors_of(horizon: int, seed: int) -> np.ndarray:
    """The errors of the same walk, for calibration: the slow way, from the whole path."""
    rng = np.random.default_rng(seed)
    path = [np.zeros((E, O), np.float32)]
    drift = [0.05 * np.sin(step / 20 + np.arange(O), dtype=np.float32) for step in range(STEPS)]
    for step in range(STEPS):
        noise = NOISE * rng.standard_normal((E, O), dtype=np.float32) / np.float32(horizon**0.5)
        path.append(path[-1] + drift[step] + noise)
    return np.concatenate(
        [
            surprise(path[t] + horizon * drift[t] - path[t + horizon], np.ones(O, np.float32))
            for t in range(STEPS - horizon)
        ]
    )


def surprise_trigger(horizon: int, signal: str = "jump") -> Trigger:
    config = PlanningConfig(replan="surprise", replan_signal=signal)
    trigger = Trigger(config, E, O, horizon)
    trigger.edge = band_edge(config, calibrated(errors_of(horizon, seed=0)))
    return trigger


@pytest.mark.parametrize("signal", ["jump", "level"])
@pytest.mark.parametrize("horizon", [1, 16])
def test_a_teleport_is_acted_on_in_every_environment_at_once(horizon: int, signal: str) -> None:
    fired = walk(surprise_trigger(horizon, signal), horizon, seed=1, teleport=250)
    assert {env for step, env in fired if step == 250} == set(range(E))


@pytest.mark.parametrize("signal", ["jump", "level"])
@pytest.mark.parametrize("horizon", [1, 16])
def test_calibrated_noise_gives_less_than_one_false_alarm_in_a_thousand_steps(horizon: int, signal: str) -> None:
    alarms = sum(len(walk(surprise_trigger(horizon, signal), horizon, seed=seed)) for seed in (2, 3, 4))
    assert alarms <= 3 * E * STEPS / 1000


def test_nothing_is_judged_before_a_prediction_has_come_due() -> None:
    trigger = surprise_trigger(16, "level")
    for _ in range(16):
        assert len(trigger.fired(np.full((E, O), 9.0, np.float32))) == 0
        trigger.step(np.zeros((E, O), np.float32))
    assert len(trigger.fired(np.full((E, O), 9.0, np.float32))) == E


def test_a_plan_that_is_followed_badly_is_a_level_but_no_jump() -> None:
    level, jump = surprise_trigger(16, "level"), surprise_trigger(16, "jump")
    fired = {"level": 0, "jump": 0}
    for step in range(100):
        obs_EO = np.full((E, O), 0.02 * step, np.float32)  # it stays behind where it is expected, more and more
        for name, trigger in (("level", level), ("jump", jump)):
            fired[name] += len(trigger.fired(obs_EO))
            trigger.step(obs_EO + 0.05 * step)
    assert fired["level"] > 0 and fired["jump"] == 0


def test_patience_asks_for_steps_in_a_row() -> None:
    trigger = Trigger(PlanningConfig(replan="surprise", replan_patience=2, replan_rest=0), 1, 1, 1)
    trigger.edge = 1.0
    fired = []
    for seen in (0.0, 5.0, 0.0, 5.0, 5.0):
        fired.append(len(trigger.fired(np.array([[seen]], np.float32))))
        trigger.step(np.zeros((1, 1), np.float32))
    assert fired == [0, 0, 0, 0, 1]


def test_environments_are_watched_each_from_its_own_plan_on() -> None:
    trigger = surprise_trigger(4)
    for step in range(6):
        if step == 4:
            trigger.begin(np.array([3]))
        assert 3 not in trigger.fired(np.full((E, O), 9.0, np.float32))
        trigger.step(np.zeros((E, O), np.float32))


def test_a_schedule_replans_every_so_many_steps_of_each_environment() -> None:
    trigger = Trigger(PlanningConfig(replan="scheduled", replan_every=5), 2, O, 1)
    seen = []
    for step in range(13):
        if step == 3:
            trigger.begin(np.array([1]))
        now = trigger.fired(np.zeros((2, O), np.float32))
        trigger.begin(now)
        seen += [(step, int(env)) for env in now]
        trigger.step(None)
    assert seen == [(5, 0), (8, 1), (10, 0)]


def test_none_never_replans() -> None:
    trigger = Trigger(PlanningConfig(), E, O, 1)
    trigger.edge = 0.0
    for _ in range(3):
        assert len(trigger.fired(np.full((E, O), 9.0, np.float32))) == 0
        trigger.step(np.zeros((E, O), np.float32))


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 100))
def test_at_most_the_named_share_of_calibration_errors_is_outside_the_band(seed: int, scale: float) -> None:
    error_N = scale * np.random.default_rng(seed).gamma(2.0, size=500).astype(np.float32)
    edge = band_edge(PlanningConfig(replan_quantile=95, replan_margin=1.0), calibrated(error_N))
    assert (error_N > edge).mean() <= 0.05 + 1e-9


def test_an_uncalibrated_model_cannot_be_surprised() -> None:
    with pytest.raises(ValueError, match="calibrated model"):
        band_edge(PlanningConfig(replan="surprise"), np.full(101, np.nan, np.float32))
