"""Plans reach the optimum of their objective where it is known, and depend on nobody else's."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from algorithms import progress
from algorithms.gac.config import GACConfig
from algorithms.gac.inference import Inferred, draw_noise, infer_plan, noise_draws
from algorithms.gac.losses import (
    TARGET_VARIANCE,
    kl_to_prior,
    mode_weights,
    objective,
    posterior_draw,
    target_log_likelihood,
)
from algorithms.gac.model import GACModel
from algorithms.gac.planning import MODES, PlanningConfig

N, D, OBS = 4, 3, 2
MEAN, STD = 20.0, 10.0


def bare(**given: Any) -> PlanningConfig:
    """The ascent alone, from q's mean 0: no candidates."""
    return PlanningConfig(infer_draws=0, **given)


class LinearWorld:
    """z = z_0, r(z) = <w, z>: every optimum is known. Head variance .25; returns are 20 +- 10."""

    def __init__(self, scale: float = 0.2, bend: float = 0.0, unit: float = 1.0, best: float = math.inf) -> None:
        self.unit, self.best = torch.tensor(unit), torch.tensor(best)
        self.w_nd = scale * torch.randn(N, D, generator=torch.Generator().manual_seed(0))
        self.bend = bend

    def plan(self, z0_Bnd: torch.Tensor, obs0_BO: torch.Tensor) -> torch.Tensor:
        return z0_Bnd + self.bend * torch.sin(z0_Bnd.flip(-1) + obs0_BO.sum(-1)[:, None, None])

    def predict_return(self, z_Bnd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean_B = (z_Bnd * self.w_nd).sum((-2, -1))
        return mean_B, torch.full_like(mean_B, math.log(0.25))

    def normalise_return(self, y: torch.Tensor) -> torch.Tensor:
        return (y - MEAN) / STD

    def best_known(self) -> torch.Tensor:
        return self.normalise_return(self.best)

    def return_unit(self) -> torch.Tensor:
        return self.unit

    def denormalise_return(self, mean_B: torch.Tensor, variance_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return MEAN + STD * mean_B, STD**2 * variance_B


def inferred(
    model: LinearWorld,
    mode: str,
    config: PlanningConfig,
    *,
    environments: int = 3,
    target: float | None = None,
    seed: int = 0,
) -> Inferred:
    streams = [np.random.default_rng([seed, k]) for k in range(environments)]
    noise = draw_noise(streams, noise_draws(mode_weights(config, mode)), N, D)
    obs_KO = torch.linspace(-1, 1, environments)[:, None].expand(-1, OBS)
    target_K = None if target is None else torch.full((environments,), target)
    return infer_plan(model, obs_KO, mode, target_K, config, noise)


@pytest.mark.parametrize(("mode", "target"), [("kl", None), ("st", 50.0), ("explore", 50.0)])
def test_plans_count_in_the_models_unit_of_returns(mode: str, target: float | None) -> None:
    """Twin: the same world where a return is divided by the unit before anybody sees it."""
    wide, narrow = LinearWorld(scale=0.6, unit=3.0), LinearWorld(scale=0.2)
    config = bare(infer_kl_weight=0.1, infer_steps=50)
    asked = None if target is None else MEAN + (target - MEAN) / 3.0
    found, twin = inferred(wide, mode, config, target=target), inferred(narrow, mode, config, target=asked)
    assert torch.allclose(found.mean_Knd, twin.mean_Knd, atol=1e-5)
    assert torch.allclose(found.predicted_K - MEAN, 3.0 * (twin.predicted_K - MEAN), atol=1e-3)


def test_every_step_of_a_search_shows_that_the_worker_gets_on(monkeypatch: pytest.MonkeyPatch) -> None:
    marks: list[None] = []
    monkeypatch.setattr(progress, "mark", lambda: marks.append(None))
    inferred(LinearWorld(), "kl", bare(infer_steps=50))
    assert len(marks) == 50


def test_kl_plans_reach_the_gradient_over_the_weight() -> None:
    model, config = LinearWorld(), bare(infer_kl_weight=0.5, infer_steps=400, infer_lr=0.05)
    plan = inferred(model, "kl", config)
    expected = model.w_nd / 0.5
    assert torch.allclose(plan.mean_Knd, expected.expand_as(plan.mean_Knd), atol=1e-3)
    assert torch.equal(plan.log_variance_Knd, torch.zeros_like(plan.log_variance_Knd))
    assert torch.allclose(plan.kl_K, 0.5 * expected.square().sum().expand(3), rtol=1e-3)
    assert torch.allclose(plan.predicted_K, (MEAN + STD * (expected * model.w_nd).sum()).expand(3), rtol=1e-3)
    assert torch.allclose(plan.variance_K, torch.full((3,), 25.0))


def test_st_plans_reach_the_closed_form_of_a_linear_gaussian() -> None:
    model, config = LinearWorld(), bare(infer_steps=3000, infer_lr=0.02)
    plan = inferred(model, "st", config, target=35.0)
    wanted, power = 1.5, float(model.w_nd.square().sum())
    expected = wanted * model.w_nd / (power + TARGET_VARIANCE)
    assert torch.allclose(plan.mean_Knd, expected.expand_as(plan.mean_Knd), atol=5e-3)
    assert torch.allclose(plan.predicted_K, torch.full((3,), 35.0), atol=0.5)


@pytest.mark.parametrize("mode", ["explore", "st"])
def test_the_variance_by_fresh_draws_is_the_posterior_diagonal_of_a_linear_gaussian(mode: str) -> None:
    model = LinearWorld()
    config = bare(infer_steps=1500, infer_lr=0.02, infer_fresh=True)
    found = inferred(model, mode, config, target=35.0, environments=8).log_variance_Knd.exp().mean(0)
    exact = 1 / (1 + model.w_nd.square() / TARGET_VARIANCE)
    assert torch.allclose(found, exact, rtol=0.35)


def test_max_climbs_without_end_by_its_step_size() -> None:
    model, config = LinearWorld(), bare(infer_max_steps=30, infer_lr=0.1)
    plan = inferred(model, "max", config)
    assert torch.allclose(plan.mean_Knd, (30 * 0.1 * model.w_nd.sign()).expand_as(plan.mean_Knd), rtol=1e-3)


def test_kl_and_max_climb_no_further_than_the_best_return_known() -> None:
    model = LinearWorld(best=35.0)
    config = bare(infer_kl_weight=0.01, infer_steps=600, infer_max_steps=600, infer_lr=0.05)
    best_K = torch.full((3,), 35.0)
    for mode in ("kl", "max"):
        assert torch.allclose(inferred(model, mode, config).predicted_K, best_K, atol=0.5)
        unknown = inferred(LinearWorld(), mode, config)  # promises go on beyond the data
        assert float(unknown.predicted_K.min()) > 100.0
    asked = inferred(model, "st", config, target=60.0)
    assert torch.allclose(asked.predicted_K, inferred(LinearWorld(), "st", config, target=60.0).predicted_K)


def test_prior_plans_are_the_draw_itself_and_search_nothing() -> None:
    model, config = LinearWorld(bend=0.3), bare()
    noise = draw_noise([np.random.default_rng(k) for k in range(3)], 1, N, D)
    plan = infer_plan(model, torch.zeros(3, OBS), "prior", None, config, noise)
    assert torch.equal(plan.z0_Knd, noise[0]) and torch.equal(plan.z_Knd, model.plan(noise[0], torch.zeros(3, OBS)))
    assert plan.trace.predicted_SK.shape == (1, 3) and not plan.kl_K.any()
    mean = infer_plan(model, torch.zeros(3, OBS), "prior", None, config, torch.zeros_like(noise))
    assert not mean.z0_Knd.any()


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("mode", ["st", "kl", "max", "explore"])
def test_every_plan_is_what_torchs_adam_finds_for_its_environment_alone(mode: str, fresh: bool) -> None:
    model = LinearWorld(bend=0.4)
    config = bare(infer_steps=40, infer_max_steps=40, infer_fresh=fresh)
    weights = mode_weights(config, mode)
    assert weights.fresh == (fresh or mode == "explore")
    eps = draw_noise([np.random.default_rng(k) for k in range(3)], noise_draws(weights), N, D)
    obs_KO, target_K = torch.randn(3, OBS, generator=torch.Generator().manual_seed(1)), torch.tensor([10.0, 30.0, 50.0])
    plan = infer_plan(model, obs_KO, mode, target_K, config, eps)
    for k in range(3):
        mean = torch.zeros(1, N, D, requires_grad=True)
        log_variance = torch.full((1, N, D), weights.log_variance, requires_grad=True)
        adam = torch.optim.Adam([mean, log_variance], lr=config.infer_lr, maximize=True)
        for step in range(40):
            draw = eps[step, k : k + 1] if weights.fresh else None
            z = model.plan(posterior_draw(mean, log_variance, draw), obs_KO[k : k + 1])
            r = model.predict_return(z)[0]
            if weights.targeted:
                y = (target_K[k : k + 1] - MEAN) / STD
                r = Normal(r, TARGET_VARIANCE**0.5).log_prob(y)
            q, p = Normal(mean, (0.5 * log_variance).exp()), Normal(torch.zeros(()), torch.ones(()))
            adam.zero_grad()
            (r - weights.kl * kl_divergence(q, p).sum()).sum().backward()
            adam.step()
        assert torch.allclose(plan.mean_Knd[k], mean[0].detach(), atol=1e-4)
        assert torch.allclose(plan.log_variance_Knd[k], log_variance[0].detach(), atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_a_plan_does_not_depend_on_how_many_are_made_beside_it(mode: str) -> None:
    model, config = LinearWorld(bend=0.4), PlanningConfig(infer_steps=50)
    alone = inferred(model, mode, config, environments=1, target=30.0)
    streams = [np.random.default_rng([0, k]) for k in range(9)]
    noise = draw_noise(streams, noise_draws(mode_weights(config, mode)), N, D)
    obs_KO = torch.linspace(-1, 1, 9)[:, None].expand(-1, OBS).clone()
    obs_KO[0] = -1.0
    among = infer_plan(model, obs_KO, mode, torch.full((9,), 30.0), config, noise)
    assert torch.allclose(alone.mean_Knd[0], among.mean_Knd[0], atol=1e-6)
    assert torch.allclose(alone.z_Knd[0], among.z_Knd[0], atol=1e-6)


def test_the_prediction_moves_monotonically_with_the_return_that_is_asked_for() -> None:
    model, config = LinearWorld(bend=0.3), bare(infer_steps=200)
    targets = torch.linspace(0.0, 40.0, 9)
    noise = torch.zeros(noise_draws(mode_weights(config, "st")), 9, N, D)
    plan = infer_plan(model, torch.zeros(9, OBS), "st", targets, config, noise)
    along_K = (plan.z_Knd * model.w_nd).sum((-2, -1))
    assert (plan.predicted_K.diff() > 0).all() and (along_K.diff() > 0).all()
    assert (plan.predicted_K - targets).abs().max() < 1.0


def test_the_trace_begins_at_the_prior_and_ends_at_the_plan() -> None:
    model, config = LinearWorld(bend=0.3), bare(infer_steps=25)
    plan = inferred(model, "kl", config)
    assert plan.trace.predicted_SK.shape == plan.trace.variance_SK.shape == plan.trace.kl_SK.shape == (26, 3)
    assert not plan.trace.kl_SK[0].any()
    assert torch.allclose(plan.trace.predicted_SK[-1], plan.predicted_K) and torch.allclose(
        plan.trace.kl_SK[-1], plan.kl_K
    )
    assert (plan.trace.predicted_SK[-1] > plan.trace.predicted_SK[0]).all()


@pytest.mark.parametrize("weight", [1.0, 0.1])
def test_the_steps_so_far_count_as_much_as_the_prior_whatever_a_nat_costs(weight: float) -> None:
    """Eq. 3 with log p(tau | z) = -|z - c|^2 / 2: q is the prior, times that, tilted by the return; known where r is linear."""
    model, config = LinearWorld(), bare(infer_kl_weight=weight, infer_steps=1_500, infer_lr=0.03, infer_fresh=True)
    c = torch.full((N, D), 0.8)
    noise = torch.randn(noise_draws(mode_weights(config, "kl")), 400, N, D, generator=torch.Generator().manual_seed(0))
    plan = infer_plan(
        model,
        torch.zeros(400, OBS),
        "kl",
        None,
        config,
        noise,
        likelihood=lambda z: -0.5 * (z - c).square().sum((-2, -1)),
    )
    assert torch.allclose(plan.mean_Knd.mean(0), (model.w_nd / weight + c) / 2, atol=0.03)
    assert torch.allclose(plan.log_variance_Knd.exp().mean(0), torch.tensor(0.5), atol=0.03)


def test_past_and_prior_have_one_weight_and_max_drops_the_prior_alone() -> None:
    term, kl, past = torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([-3.0])
    assert objective(term, kl, 0.5, past).item() == 1.0 - 0.5 * (2.0 + 3.0)
    assert objective(term, kl, 0.0, past).item() == 1.0 - 3.0
    assert objective(term, kl, 0.5).item() == 0.0


@settings(deadline=None, max_examples=50)
@given(st.floats(-3, 3), st.floats(-4, 2), st.floats(-3, 3), st.floats(0.01, 4))
def test_the_terms_are_those_of_torch_distributions(
    mean: float, log_variance: float, target: float, variance: float
) -> None:
    m, v = torch.full((2, N, D), mean), torch.full((2, N, D), log_variance)
    exact = kl_divergence(Normal(m, (0.5 * v).exp()), Normal(torch.zeros(()), torch.ones(()))).sum((-2, -1))
    assert torch.allclose(kl_to_prior(m, v), exact, rtol=1e-4, atol=1e-4)
    y, r = torch.tensor([target]), torch.tensor([mean])
    assert torch.allclose(
        target_log_likelihood(r, y, variance), Normal(r, variance**0.5).log_prob(y), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("mode", ["st", "explore"])
def test_a_mode_with_a_target_and_none_given_says_so(mode: str) -> None:
    with pytest.raises(ValueError, match="got no target return"):
        inferred(LinearWorld(), mode, bare())


def test_an_unknown_mode_and_a_misshapen_noise_are_refused() -> None:
    with pytest.raises(ValueError, match="expected one of prior, st, kl, max, explore"):
        inferred(LinearWorld(), "best", bare())
    with pytest.raises(ValueError, match="draws would be shared or missing"):
        infer_plan(LinearWorld(), torch.zeros(3, OBS), "kl", None, bare(), torch.zeros(1, 2, N, D))


def searching(model: GACModel, mode: str, config: GACConfig, environments: int = 3) -> Inferred:
    streams = [np.random.default_rng([5, k]) for k in range(environments)]
    noise = draw_noise(streams, noise_draws(mode_weights(config, mode)), config.tokens, config.token_width)
    obs_KO = torch.linspace(-1, 1, environments)[:, None].expand(-1, OBS)
    return infer_plan(model, obs_KO, mode, torch.full((environments,), 1.0), config, noise)


def test_the_search_starts_from_the_best_candidate_and_never_below_the_mean() -> None:
    torch.manual_seed(3)
    model = GACModel(GACConfig(tokens=5, token_width=3, infer_draws=12), OBS, 2).requires_grad_(False)
    for parameter in model.return_head.parameters():
        parameter.copy_(0.3 * torch.randn(parameter.shape))
    first = searching(model, "kl", model.config).trace.predicted_SK[0]
    zero = searching(model, "kl", dataclasses.replace(model.config, infer_draws=0)).trace.predicted_SK[0]
    assert (first > zero).all()
