"""Plans are carried through episodes: cached, ragged, resumable, and made again when they should be."""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import SeedSequence

from algorithms.gac.config import GACConfig, cpu
from algorithms.gac.inference import Inferred
from algorithms.gac.model import GACModel
from algorithms.gac.planner import Planner
from algorithms.gac.policy import GACPolicy
from algorithms.gac.segments import History
from algorithms.gac.target import prediction_error
from algorithms.interface import PlanRequest
from rollout_workers.actor import seeded_streams

O, A = 3, 2
SMALL: dict[str, Any] = {
    "tokens": 4, "token_width": 4, "width": 16, "heads": 2, "prior": "implicit", "prior_width": 16, "infer_steps": 4,
    "infer_max_steps": 4, "layers": 2, "next_state_weight": 1.0, "plan_reading": "attention", "infer_draws": 6,
}  # fmt: skip
ONE_STEP = GACConfig(**SMALL)
WINDOW = GACConfig(**SMALL, window=5)
LPT = GACConfig(**SMALL, window=5, return_tokens=2)
LINEAR = GACConfig(**(SMALL | {"layers": 0, "plan_reading": "linear"}))


def weights_of(config: GACConfig, *, target: float = 30.0, error: float = 1.0) -> dict[str, torch.Tensor]:
    """An untrained model's, of returns 20 +- 10 and episodes of 40 steps."""
    torch.manual_seed(0)
    model = GACModel(config, O, A)
    for name, value in (
        ("return_mean", 20.0),
        ("return_std", 10.0),
        ("return_low", 0.0),
        ("return_high", 40.0),
        ("data_high", 40.0),
    ):
        getattr(model, name).fill_(value)
    model.horizon.fill_(40.0)
    model.obs_mean_O.fill_(0.1)
    model.obs_std_O.fill_(0.5)
    model.explore_target.fill_(target)
    model.surprise.copy_(torch.linspace(0, error, 101))
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def policy_of(config: GACConfig, num_envs: int, **scales: float) -> GACPolicy:
    policy = GACPolicy(config, O, A)
    policy.load_weights(weights_of(config, **scales))
    policy.reset(num_envs)
    return policy


def walk(steps: int, num_envs: int, seed: int = 0) -> np.ndarray:
    """Observations (T, E, O) that move little by little."""
    return np.cumsum(0.1 * np.random.default_rng(seed).standard_normal((steps, num_envs, O)), 0).astype(np.float32)


def run(policy: GACPolicy, obs_TEO: np.ndarray) -> np.ndarray:
    return np.stack([policy.act(obs_EO, np.zeros(len(obs_EO), np.float32)).copy() for obs_EO in obs_TEO])


def rng(seed: int = 7) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("config", [ONE_STEP, WINDOW, LPT, LINEAR], ids=["one step", "window", "lpt", "linear"])
def test_cached_acting_is_the_generator_on_the_whole_episode(config: GACConfig) -> None:
    policy, obs_TEO = policy_of(config, 3), walk(40, 3)
    policy.begin(np.arange(3), obs_TEO[0], rng())
    acted_TEA = run(policy, obs_TEO)
    assert policy.inferred is not None
    with torch.no_grad():
        made = policy.model.generate(
            policy.model.memory(policy.inferred.z_Knd),
            torch.from_numpy(obs_TEO).transpose(0, 1),
            torch.from_numpy(acted_TEA).transpose(0, 1),
        )
    assert np.abs(made.action_BSA.transpose(0, 1).numpy() - acted_TEA).max() < 1e-5
    assert acted_TEA.dtype == np.float32 and np.abs(acted_TEA).max() <= 1


@pytest.mark.parametrize("mode", ["prior", "st", "kl", "max", "explore"])
@pytest.mark.parametrize("config", [ONE_STEP, WINDOW], ids=["one step", "window"])
def test_an_episode_does_not_depend_on_how_many_run_beside_it(config: GACConfig, mode: str) -> None:
    obs_TEO = walk(20, 17)
    many, one = policy_of(config, 17), policy_of(config, 1)
    many.aim = one.aim = PlanRequest(mode=mode)
    told_many = many.begin(np.arange(17), obs_TEO[0], rng())
    told_one = one.begin(np.arange(1), obs_TEO[0, :1], rng())
    assert told_many[0].predicted == pytest.approx(told_one[0].predicted, abs=1e-3)
    assert np.abs(run(many, obs_TEO)[:, :1] - run(one, obs_TEO[:, :1])).max() < 1e-5


@pytest.mark.parametrize("config", [ONE_STEP, WINDOW], ids=["one step", "window"])
def test_episodes_that_begin_at_different_steps_go_as_if_each_were_alone(config: GACConfig) -> None:
    obs_TEO, begins = walk(30, 3), {0: [0, 1, 2], 4: [1], 11: [0, 2], 12: [1], 13: [1]}
    policy = policy_of(config, 3)
    acted_TEA = np.zeros((30, 3, A), np.float32)
    for t in range(30):
        if t in begins:
            env_K = np.array(begins[t])
            policy.begin(env_K, obs_TEO[t, env_K], seeded_streams([SeedSequence([int(env), t]) for env in env_K]))
        acted_TEA[t] = policy.act(obs_TEO[t], np.zeros(3, np.float32))
    for env in range(3):
        starts = [t for t, envs in begins.items() if env in envs]
        for start, end in zip(starts, [*starts[1:], 30]):
            alone = policy_of(config, 1)
            alone.begin(np.array([0]), obs_TEO[start, [env]], seeded_streams([SeedSequence([env, start])]))
            assert np.abs(run(alone, obs_TEO[start:end, [env]])[:, 0] - acted_TEA[start:end, env]).max() < 1e-5


@pytest.mark.parametrize("replan", ["none", "scheduled", "prediction-error"])
@pytest.mark.parametrize("source", ["here", "start"])
@pytest.mark.parametrize("mode", ["prior", "explore"])
def test_a_saved_policy_goes_on_bit_by_bit(replan: str, source: str, mode: str) -> None:
    config = dataclasses.replace(WINDOW, replan=replan, replan_from=source, replan_every=6)
    obs_TEO, policy = walk(40, 2), policy_of(config, 2, error=0.5)
    policy.aim = PlanRequest(mode=mode)
    policy.begin(np.arange(2), obs_TEO[0], rng())
    run(policy, obs_TEO[:15])
    other = policy_of(config, 5, error=0.5)
    other.load_state(policy.state())
    assert np.array_equal(run(policy, obs_TEO[15:]), run(other, obs_TEO[15:]))
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(policy.state().values(), other.state().values()))


def test_a_state_of_other_settings_is_refused_by_name() -> None:
    state = policy_of(WINDOW, 2).state()
    with pytest.raises(ValueError, match=r"cache\.key has shape"):
        policy_of(ONE_STEP, 2).load_state(state)
    del state["seed"]
    with pytest.raises(ValueError, match="seed is missing"):
        policy_of(WINDOW, 2).load_state(state)


def test_newer_weights_leave_running_plans_alone_and_serve_the_next() -> None:
    policy, obs_TEO = policy_of(ONE_STEP, 2), walk(4, 2)
    policy.begin(np.arange(2), obs_TEO[0], rng())
    before = policy.state()
    policy.load_weights({name: tensor + 0.1 for name, tensor in weights_of(ONE_STEP).items()})
    assert all(np.array_equal(before[name], value, equal_nan=True) for name, value in policy.state().items())
    policy.begin(np.array([1]), obs_TEO[1, 1:], rng())
    after = policy.state()
    assert np.array_equal(after["memory.token_BGd"][0], before["memory.token_BGd"][0])
    assert not np.array_equal(after["memory.token_BGd"][1], before["memory.token_BGd"][1])


@pytest.mark.parametrize(
    ("config", "wanted"), [(ONE_STEP, 40.0), (LINEAR, 60.0)]
)  # the best return; twice as far above the mean
def test_stamps_say_the_mode_the_target_and_what_was_predicted(config: GACConfig, wanted: float) -> None:
    policy, obs_EO = policy_of(config, 2), walk(1, 2)[0]
    asked = {"prior": math.nan, "kl": math.nan, "max": math.nan, "st": wanted}
    for mode, target in asked.items():
        policy.aim = PlanRequest(mode=mode)
        for stamp in policy.begin(np.arange(2), obs_EO, rng()):
            assert (stamp.episode, stamp.mode) == (-1, mode)
            assert stamp.target == target or (math.isnan(stamp.target) and math.isnan(target))
            assert math.isfinite(stamp.predicted) and stamp.variance > 0
    policy.aim = PlanRequest()
    assert policy.begin(np.array([1]), obs_EO[:1], rng())[0].mode == config.infer_mode


@pytest.mark.parametrize(
    ("config", "high", "best", "unit"),  # the dataset: 20 +- 10, 40 at best; then what was gathered, and what follows
    [
        (ONE_STEP, 40.0, 2.0, 2.0),
        (ONE_STEP, 75.0, 5.5, 5.5),
        (ONE_STEP, 25.0, 0.5, 1.5),
        (LINEAR, 40.0, math.inf, 1.5),
        (LINEAR, 75.0, 5.5, 1.5),
    ],
)
def test_promises_end_and_are_counted_where_the_reading_ends(
    config: GACConfig, high: float, best: float, unit: float
) -> None:
    model = policy_of(config, 1).model
    model.return_high.fill_(high)
    model.return_spread.fill_(1.5)
    assert float(model.best_known()) == pytest.approx(best)
    assert float(model.return_unit()) == pytest.approx(unit)


def test_a_promise_is_believed_up_to_what_is_known_and_what_is_kept() -> None:
    policy = policy_of(ONE_STEP, 1)  # 20 on average, 40 at best
    assert policy.promise_limit(100.0) == 70.0 and policy.promise_limit(45.0) == 55.0
    policy.model.return_high.fill_(20.0)
    assert policy.promise_limit(45.0) is None


def test_without_a_target_st_asks_for_the_best_return_gathered_once_it_is_above_what_the_data_suggest() -> None:
    for gathered, expected in ((40.0, 60.0), (55.0, 60.0), (75.0, 75.0)):  # the dataset: 20 on average, 40 at best
        policy = policy_of(LINEAR, 1)
        policy.load_weights(weights_of(LINEAR) | {"return_high": torch.tensor(gathered)})
        policy.aim = PlanRequest(mode="st")
        assert policy.begin(np.arange(1), walk(1, 1)[0], rng())[0].target == expected


def test_exploring_actions_are_the_generators_with_noise_of_each_episodes_own_deviation() -> None:
    calm, noisy = (dataclasses.replace(ONE_STEP, explore_action_std=std) for std in (0.0, 0.05))
    obs_EO, acted = np.zeros((8, O), np.float32), {}
    for config in (calm, noisy):
        for mode in ("explore", "kl"):
            policy = policy_of(config, 8)
            policy.aim = PlanRequest(mode=mode)
            policy.begin(np.arange(8), obs_EO, rng())
            acted[config is noisy, mode] = run(policy, np.stack([obs_EO] * 200))
    assert np.array_equal(acted[True, "kl"], acted[False, "kl"])
    deviation_E = (acted[True, "explore"] - acted[False, "explore"]).std((0, 2))
    assert deviation_E.max() < 0.06 and len(set(deviation_E.round(4))) == 8 and deviation_E.min() > 0
    assert np.abs((acted[True, "explore"] - acted[False, "explore"]).mean(0)).max() < 0.02  # white: it averages out


@pytest.mark.parametrize(("kl", "st", "better"), [(120.0, 60.0, 120.0), (50.0, 220.0, 220.0), (-9.0, 10.0, 20.0)])
@pytest.mark.parametrize("reach", [0.0, 1.0, 6.0])
def test_exploring_plans_ask_from_their_target_to_as_far_as_they_reach_above_the_better_of_two_promises(
    kl: float, st: float, better: float, reach: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, obs_KO, plain = (
        policy_of(dataclasses.replace(ONE_STEP, explore_reach=reach), 3),
        walk(1, 3)[0],
        Planner._infer,
    )

    def promising(self: Planner, mode: str, *given: Any) -> Inferred:
        made = plain(self, mode, *given)
        return made._replace(predicted_K=torch.full((3,), {"kl": kl, "st": st}.get(mode, 0.0)))

    monkeypatch.setattr(Planner, "_infer", promising)
    asked = []
    for seed in range(60):
        streams = seeded_streams(SeedSequence(seed).spawn(3))
        asked += policy.planner.plan("explore", torch.full((3,), 20.0), torch.from_numpy(obs_KO), streams.spawn(3))[
            1
        ].tolist()
    furthest = reach * (better - 20.0)
    gaps = np.array(asked) - 20.0
    assert 0 <= gaps.min() <= 0.05 * furthest and 0.95 * furthest <= gaps.max() <= furthest + 1e-3
    assert np.median(gaps) == pytest.approx((((1 + reach) ** 0.5 - 1) * (better - 20.0)), abs=0.12 * furthest + 1e-3)


def test_a_mode_that_needs_a_target_and_has_none_says_what_to_do() -> None:
    obs_EO = walk(1, 1)[0]
    unknown = policy_of(ONE_STEP, 1, target=math.nan)
    unknown.aim = PlanRequest(mode="explore")
    with pytest.raises(ValueError, match="needs a target return and none was given"):
        unknown.begin(np.arange(1), obs_EO, rng())


def test_a_target_outside_the_data_is_warned_of_once() -> None:
    obs_EO, far = walk(1, 1)[0], PlanRequest(mode="st", target_return=400.0)
    policy = policy_of(ONE_STEP, 1)
    policy.aim = far
    with pytest.warns(UserWarning, match="outside the returns 0 to 40"):
        assert policy.begin(np.arange(1), obs_EO, rng())[0].target == 400.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        policy.begin(np.arange(1), obs_EO, rng())


def test_observations_of_another_number_of_environments_are_refused() -> None:
    with pytest.raises(ValueError, match="observations of 3 environments, expected 2"):
        policy_of(ONE_STEP, 2).act(np.zeros((3, O), np.float32), np.zeros(3, np.float32))


def test_a_schedule_from_here_is_the_same_as_beginning_anew() -> None:
    plain = dataclasses.replace(WINDOW, infer_draws=0)
    config = dataclasses.replace(plain, replan="scheduled", replan_every=6)
    obs_TEO, policy, alone = walk(12, 2), policy_of(config, 2), policy_of(plain, 2)
    policy.begin(np.arange(2), obs_TEO[0], rng())
    acted_TEA = run(policy, obs_TEO)
    for start in (0, 6):
        alone.begin(np.arange(2), obs_TEO[start], rng())
        assert np.array_equal(run(alone, obs_TEO[start : start + 6]), acted_TEA[start : start + 6])


def test_the_prediction_error_is_the_models_own_and_replans_the_pushed_environment_alone() -> None:
    config = dataclasses.replace(ONE_STEP, replan="prediction-error")
    policy, obs_TEO = policy_of(config, 2, error=20.0), walk(16, 2)
    obs_TEO[12:, 1] += 9.0
    policy.begin(np.arange(2), obs_TEO[0], rng())
    for t in range(16):
        if 0 < t <= 12:
            seen_EO = policy._normalised(obs_TEO[t])
            due_EO = policy.state()["trigger.expected"]
            error_E = prediction_error(due_EO - seen_EO, policy._trigger.precision_O)
            ahead_EO = torch.from_numpy(due_EO - policy._normalised(obs_TEO[t - 1]))
            twin = policy.model.prediction_errors(
                ahead_EO, torch.from_numpy(obs_TEO[t - 1]), torch.from_numpy(obs_TEO[t])
            )
            assert np.allclose(error_E, twin.numpy(), rtol=1e-3)
        policy.act(obs_TEO[t], np.zeros(2, np.float32))
        assert policy.state()["plans"].tolist() == [1, 1 if t < 12 else 2]


def test_replanning_from_the_start_explains_what_happened_better_than_the_old_plan() -> None:
    config = dataclasses.replace(
        WINDOW,
        replan="scheduled",
        replan_from="start",
        replan_every=20,
        infer_steps=40,
        infer_lr=0.03,
    )
    policy, obs_TEO = policy_of(config, 2), walk(21, 2)
    policy.begin(np.arange(2), obs_TEO[0], rng())
    old = policy.state()["memory.token_BGd"]
    acted_TEA = run(policy, obs_TEO)
    new = policy.state()["memory.token_BGd"]

    def explained(z_Bnd: np.ndarray) -> torch.Tensor:
        return policy.model.log_prob_trajectory(
            torch.from_numpy(z_Bnd),
            torch.from_numpy(obs_TEO[:20]).transpose(0, 1),
            torch.from_numpy(acted_TEA[:20]).transpose(0, 1),
        )

    assert (explained(new) > explained(old)).all()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 1), min_size=1, max_size=30), st.integers(1, 9))
def test_the_newest_steps_are_the_end_of_the_episode_so_far(restarts: list[int], steps: int) -> None:
    history, time_E = History(2, steps, 1, 1), np.zeros(2, np.int64)
    result: list[list[float]] = [[], []]
    for step, restart in enumerate(restarts):
        if restart:
            time_E[1], result[1] = 0, []
        value_E1 = np.array([[step], [100 + step]], np.float32)
        history.append(time_E, value_E1, -value_E1)
        result[0].append(step)
        result[1].append(100 + step)
        time_E += 1
    found = history.newest(np.array([1, 0]), time_E[[1, 0]])
    for k, env in enumerate((1, 0)):
        real = ~found.padding_KH[k]
        assert found.obs_KHO[k, real, 0].tolist() == result[env][-steps:]
        assert found.action_KHA[k, real, 0].tolist() == [-x for x in result[env][-steps:]]


def test_the_cpu_preset_acts() -> None:
    policy, obs_EO = policy_of(dataclasses.replace(cpu(), infer_steps=5), 4), walk(1, 4)[0]
    policy.begin(np.arange(4), obs_EO, rng())
    assert policy.act(obs_EO, np.zeros(4, np.float32)).shape == (4, A)
