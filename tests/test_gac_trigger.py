"""A large prediction error replans on a teleport; ordinary ones do not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms.gac.planning import PlanningConfig
from algorithms.gac.target import MARGIN, REST, Trigger, band_edge, prediction_error

E, O, STEPS = 16, 4, 500
NOISE = 0.1


def calibrated(error_N: np.ndarray) -> np.ndarray:
    return np.percentile(error_N, np.arange(101)).astype(np.float32)


def walk(trigger: Trigger, *, seed: int, teleport: int = -1) -> list[tuple[int, int]]:
    """Environments that move by what was predicted and noise; (step, environment) of every new plan."""
    rng = np.random.default_rng(seed)
    obs_EO, fired = np.zeros((E, O), np.float32), []
    for step in range(STEPS):
        if step == teleport:
            obs_EO = obs_EO + 3.0
        now = trigger.fired(obs_EO)
        fired += [(step, int(env)) for env in now]
        trigger.begin(now)
        drift_O = 0.05 * np.sin(step / 20 + np.arange(O), dtype=np.float32)
        trigger.step(obs_EO + drift_O)
        obs_EO = obs_EO + drift_O + NOISE * rng.standard_normal((E, O), dtype=np.float32)
    return fired


def error_trigger() -> Trigger:
    """Calibrated on the noise of ``walk``."""
    trigger = Trigger(PlanningConfig(replan="prediction-error"), E, O)
    error_NO = NOISE * np.random.default_rng(0).standard_normal((E * STEPS, O), dtype=np.float32)
    trigger.edge = band_edge(calibrated(prediction_error(error_NO, np.ones(O, np.float32))))
    return trigger


def test_a_teleport_is_acted_on_in_every_environment_at_once() -> None:
    fired = walk(error_trigger(), seed=1, teleport=250)
    assert {env for step, env in fired if step == 250} == set(range(E))


def test_calibrated_noise_gives_less_than_one_false_alarm_in_a_thousand_steps() -> None:
    alarms = sum(len(walk(error_trigger(), seed=seed)) for seed in (2, 3, 4))
    assert alarms <= 3 * E * STEPS / 1000


def test_an_error_is_not_acted_on_soon_after_a_plan_of_each_environment() -> None:
    trigger, fired = error_trigger(), []
    for step in range(REST + 5):
        if step == 4:
            trigger.begin(np.array([3]))
        fired.append(trigger.fired(np.full((E, O), 9.0, np.float32)).tolist())
        trigger.step(np.zeros((E, O), np.float32))
    others = [env for env in range(E) if env != 3]
    assert fired == [[]] * REST + [others] * 4 + [list(range(E))]


def test_a_schedule_replans_every_so_many_steps_of_each_environment() -> None:
    trigger = Trigger(PlanningConfig(replan="scheduled", replan_every=5), 2, O)
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
    trigger = Trigger(PlanningConfig(), E, O)
    trigger.edge = 0.0
    for _ in range(3):
        assert len(trigger.fired(np.full((E, O), 9.0, np.float32))) == 0
        trigger.step(np.zeros((E, O), np.float32))


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 100))
def test_at_most_a_hundredth_of_calibration_errors_is_outside_the_band(seed: int, scale: float) -> None:
    error_N = scale * np.random.default_rng(seed).gamma(2.0, size=500).astype(np.float32)
    # an error on the edge is within, whatever float32 makes of it
    edge = band_edge(calibrated(error_N)) / MARGIN * (1 + 1e-6)
    assert (error_N > edge).mean() <= 0.01 + 1e-9


def test_an_uncalibrated_model_knows_no_large_error() -> None:
    with pytest.raises(ValueError, match="calibrated model"):
        band_edge(np.full(101, np.nan, np.float32))
