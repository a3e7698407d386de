"""What behaviour depends on is measured right on models where it is known, and what is wrong is said in words."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
import torch
from gac_batches import ACTION, OBS, SHAPES, episodes, made, small

from algorithms.gac.agent import GAC
from algorithms.gac.bound import Posterior, return_share
from algorithms.gac.diagnosis import REDRAWS, VARIANTS, PartialPlan, contents, explained, posteriors, redrawn
from algorithms.gac.policy import GACPolicy
from algorithms.interface import PlanRequest
from cluster.diagnosis import reading
from cluster.metrics.alarms import ALARMS, alarms
from replay.schema import Trajectories

LENGTHS = (20,) * 24


def planted(coordinates: float, promise: float) -> tuple[GAC, Trajectories, Posterior]:
    """A model whose actions move with the plan and with its promise by these factors, episodes that are its own, and their plans."""
    batch = episodes(0, LENGTHS)
    agent = made(small(**SHAPES["linear"]), batch)
    model, q = (
        agent.model,
        Posterior(*torch.randn(2, len(LENGTHS), 4, 3, generator=torch.Generator().manual_seed(3)).unbind(0)),
    )
    with torch.no_grad():
        slope = model.generator.slope.weight.view(ACTION + OBS, -1, model.config.width)
        slope[:, :-1] *= coordinates
        slope[:, -1] *= promise
        model.generator.slope.bias.zero_()
        z_Bnd = model.plan(q.mean_Bnd, batch.rows_NF[batch.offset[:-1], :OBS])
        memory, rows = model.memory(z_Bnd), batch.rows_NF.view(len(LENGTHS), LENGTHS[0], -1).clone()
        rows[..., OBS : OBS + ACTION] = model.generate(memory, rows[..., :OBS], rows[..., OBS:-1]).action_BSA
    return agent, dataclasses.replace(batch, rows_NF=rows.flatten(0, 1)), q


@pytest.mark.parametrize(
    ("coordinates", "promise", "above_state"),
    [(0.0, 0.0, (False, False)), (0.0, 60.0, (True, False)), (20.0, 0.0, (None, True)), (20.0, 60.0, (True, True))],
    ids=["neither", "promise", "plan", "both"],
)
def test_actions_are_explained_by_what_moves_them(
    coordinates: float, promise: float, above_state: tuple[bool | None, bool]
) -> None:
    agent, batch, q = planted(coordinates, promise)
    found = explained(agent.model, batch, q)
    assert found.own == pytest.approx(1.0, abs=1e-5)  # its own actions, without noise
    for share, expected in zip((found.promise - found.others, found.own - found.promise), above_state):
        if expected is not None:
            assert share > 0.05 if expected else abs(share) < 0.01


def test_plans_of_the_prior_rebuild_actions_as_far_as_they_move_them() -> None:
    agent, batch, q = planted(20.0, 0.0)
    found = explained(agent.model, batch, q)
    model, noise = agent.model, torch.Generator().manual_seed(0)
    states = batch.rows_NF.view(len(LENGTHS), LENGTHS[0], -1)
    action = states[..., OBS : OBS + ACTION]
    made = []
    with torch.no_grad():
        for _ in range(REDRAWS):  # by hand: every draw acts out whole episodes
            z = model.plan(torch.randn(len(LENGTHS), 4, 3, generator=noise), states[:, 0, :OBS])
            made.append(model.generate(model.memory(z), states[..., :OBS], states[..., OBS:-1]).action_BSA)
    total = (action - action.mean((0, 1))).square().sum()
    missed = [((action - one).square().sum() / total).item() for one in made]
    assert found.prior == pytest.approx(1 - np.mean(missed), abs=1e-4)
    assert found.spread == pytest.approx((torch.stack(made).var(0).sum() / total).item(), rel=1e-4)
    agent, batch, q = planted(0.0, 0.0)  # no plan moves anything: all rebuild all
    assert explained(agent.model, batch, q) == pytest.approx((1.0, 1.0, 1.0, 1.0, 0.0), abs=1e-5)


@pytest.mark.parametrize("name", ["linear", "point"])
def test_a_redrawn_plan_promises_the_same_and_is_another(name: str) -> None:
    model = made(small(**SHAPES[name]), episodes(0)).model
    obs, draw = torch.randn(9, OBS), torch.Generator().manual_seed(0)
    z, eps = (torch.randn(9, 4, 3, generator=draw) for _ in range(2))
    z = model.plan(z, obs).detach()
    again = redrawn(model, z, obs, eps)
    torch.testing.assert_close(model.predict_return(again)[0], model.predict_return(z)[0], atol=2e-3, rtol=0)
    assert (again - z).abs().mean() > 0.3


@pytest.mark.parametrize("prior", ["standard", "explicit", "implicit"])
def test_each_variant_acts_by_its_part_of_the_searched_plans(prior: str) -> None:
    shape = SHAPES["linear"] | {"prior": prior}
    agent, seen = made(small(**shape, infer_steps=3, infer_draws=2), episodes(0)), {}
    weights = {name: tensor.numpy() for name, tensor in agent.policy_weights().items()}
    for variant in (*VARIANTS, ""):
        config = agent.config
        policy = PartialPlan(config, OBS, ACTION, variant) if variant else GACPolicy(config, OBS, ACTION)
        policy.load_weights(weights)
        policy.aim = PlanRequest(mode="kl")
        policy.reset(5)
        policy.begin(np.arange(5), np.eye(5, OBS, dtype=np.float32), np.random.default_rng(0))
        seen[variant] = torch.from_numpy(policy.state()["memory.token_BGd"][:, 0])
    plan, promise = (slice(None), slice(None, -1)), (slice(None), -1)
    assert torch.equal(seen["searched"], seen[""])
    assert seen["hidden"][plan].count_nonzero() == 0 and torch.equal(seen["hidden"][promise], seen[""][promise])
    torch.testing.assert_close(seen["redrawn"][promise], seen[""][promise], atol=2e-3, rtol=0)
    assert (seen["redrawn"][plan] - seen[""][plan]).abs().min() > 0
    torch.testing.assert_close(seen["one"][plan], seen[""][plan].mean(0).expand(5, -1), atol=1e-5, rtol=1e-5)


def test_a_plan_that_copies_the_return_is_told_from_one_that_says_something_else() -> None:
    y, draw = torch.linspace(-2, 2, 40), torch.Generator().manual_seed(0)
    mean, kl = 0.05 * torch.randn(40, 1, 3, generator=draw), torch.full((40, 1, 3), 0.001)
    mean[:, 0, 0], kl[:, 0, 0] = -3.0 * y, 2.0
    assert return_share(mean, kl, y).item() > 0.99
    mean[:, 0, 1], kl[:, 0, 1] = torch.randn(40, generator=draw), 2.0
    assert 0.4 < return_share(mean, kl, y).item() < 0.6
    assert return_share(mean, kl, torch.ones(40)).item() == 0.0


@pytest.mark.parametrize("form", ["amortised", "fresh", "stored"])
def test_posteriors_of_every_form_are_read_by_dimension_and_by_their_return(form: str) -> None:
    batch = episodes(0, LENGTHS)
    agent = made(small(**(SHAPES["linear"] | {"posterior": form, "lr": 0.01})), batch)
    given = dataclasses.replace(batch, posterior_BP=torch.zeros(len(LENGTHS), agent.config.posterior_floats))
    agent.update([given] * 30)
    found = contents(agent.model, batch, posteriors(agent, batch))
    assert 0 < found.active_dims <= found.dims == 12 and found.kl_token > 0
    assert found.return_correlation > 0.5 and 0 <= found.return_share <= 1


def test_plans_that_say_little_but_the_return_are_no_alarm_early_in_a_run() -> None:
    record = {"loss_plan_return": 0.99, "updates": 700}
    assert not alarms(record, 1_000)
    assert alarms(record, 900).keys() == alarms(record).keys() == {"plan_return"}


def diagnosed(shares: dict[str, float], updates: int) -> str:
    """The sentences on a run that plans a return and nothing else."""
    scores = {name: {"normalised_mean": 1.0, "return_mean": 1.0} for name in (*VARIANTS, "prior")}
    plan = {"return_share": 0.99, "collapsed": 0.0, "kl_token": 1.0}
    found = {"scores": scores, "explained": shares, "plan": plan, "updates": updates, "planned_updates": 1_000}
    return " ".join(reading(found))


@pytest.mark.parametrize(("updates", "sounds"), [(100, False), (900, True)])
def test_a_diagnosis_sounds_alarms_where_the_run_does(updates: int, sounds: bool) -> None:
    said = diagnosed({"own": 0.5, "promise": 0.4, "state_return": 0.45}, updates)
    assert ("99 % of what plans say is the return" in said) == sounds


@pytest.mark.parametrize(
    ("promise", "state_return", "said"),
    [
        (0.40, 0.45, ("the plan carries behaviour", "plans tell 0.0500 that these do not")),
        (0.495, 0.55, ("the plan carries next to no behaviour", "plans tell no more than these do")),
    ],
)
def test_a_diagnosis_says_what_plans_tell_beyond_state_and_return(
    promise: float, state_return: float, said: tuple[str, str]
) -> None:
    sentences = diagnosed({"own": 0.5, "promise": promise, "state_return": state_return}, 100)
    assert said[0] in sentences and said[1] in sentences


@pytest.mark.parametrize(
    ("record", "names", "said"),
    [
        ({"loss_collapse": 0.0, "loss_plan_return": 0.5, "eval_promise": 60.0, "eval_promise_limit": 100.0}, [], ""),
        ({"loss_collapse": 0.3, "loss_plan_return": 0.99}, ["collapse"], "the posterior has collapsed.*agent.free_bits"),
        ({"loss_collapse": 0.0, "loss_plan_return": 0.99}, ["plan_return"], "99 % of what plans say is the return.*rvs"),
        ({"loss_collapse": 1.0, "loss_kl_token": 0.48}, ["collapse"], "100 % of.*say 0.48 nats a token on average.*may steer little"),
        ({"loss_collapse": 0.02, "loss_kl_token": 1.48}, ["collapse"], r"in 2.0 % of the newest updates: plans say 1.48 nats a token on average"),
        ({"eval_promise": 450.0, "eval_promise_limit": 250.0}, ["promise"], "promise a return of 450 .* at most 250: .*infer_steps"),
        ({"eval_promise": 90.0, "eval_promise_limit": 70.0, "eval_return_mean": 20.0}, ["promise"], "or above the 20.0 that they keep"),
        ({"loss_explore_spread": 0.31, "loss_explore_collapse": 0.0}, [], ""),
        ({"loss_explore_spread": 0.012, "loss_explore_collapse": 1.0}, ["exploration"], "all alike.* by 1.2 % .* than 5.0 %.*explore_action_std"),
        ({"loss_clipped_mass": 0.5}, ["clipping"], "50 % of the critics' target mass"),
    ],
)  # fmt: skip
def test_an_alarm_is_a_sentence_with_its_remedy(record: dict[str, Any], names: list[str], said: str) -> None:
    found = alarms(record)
    assert list(found) == names and set(names) <= set(ALARMS)
    if said:
        assert re.search(said, found[names[0]])
