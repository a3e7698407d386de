"""GAC's learner: exact resume, one learner or two, faults that are counted, alarms that sound, one episode by heart."""

from __future__ import annotations

import dataclasses
import math
import threading
from typing import Any

import pytest
import torch
from gac_batches import OBS, SHAPES, Pair, episodes, halves, made, small, summary
from test_learner import HostReads

from algorithms import ALGORITHMS
from algorithms.gac.agent import GAC, METRICS
from algorithms.interface import AgentSpec
from replay.schema import ReturnSummary

EVERY = pytest.mark.parametrize("name", sorted(SHAPES))
RETURNS = ReturnSummary(
    quantile=3.0, best=5.0, stage=0, stage_mean=math.nan, stage_target=math.nan, stage_episodes=0, episodes=9
)


def batches(config: Any, seed: int, count: int = 2) -> list[Any]:
    return [episodes(seed * 10 + i, posterior_floats=config.posterior_floats) for i in range(count)]


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[name].nan_to_num(7.0), right[name].nan_to_num(7.0)) for name in left
    )


@EVERY
def test_n_then_resume_then_n_updates_equal_two_n_bit_for_bit(name: str) -> None:
    config = small(**SHAPES[name])
    whole, half = (made(config, episodes(0)) for _ in range(2))
    resumed = GAC(config, AgentSpec(obs_dim=3, action_dim=2, seed=5))  # another seed, and no statistics of its own
    for seed in range(4):
        whole.update_returns(RETURNS)
        seen = whole.update(batches(config, seed))
    for agent, seeds in ((half, range(2)), (resumed, range(2, 4))):
        if agent is resumed:
            resumed.load_state({k: v.clone() for k, v in half.state().items()})
        for seed in seeds:
            agent.update_returns(RETURNS)
            again = agent.update(batches(config, seed))
    assert same(resumed.state(), whole.state()) and same(again, seen)
    assert seen.keys() == {*METRICS, "nonfinite"} and all(v.shape == () for v in seen.values())
    assert all(math.isfinite(v.item()) for v in seen.values())


@EVERY
def test_two_learners_of_half_a_batch_are_one_learner_of_all_of_it(name: str) -> None:
    fields = SHAPES[name] | {"clip": 100.0}
    config = small(**fields)
    one, ends = made(config, episodes(0)), Pair.two()
    two = [made(config, episodes(0), collective=end) for end in ends]
    given = batches(config, 1, count=3)
    metrics = one.update(given)
    seen: list[dict[str, torch.Tensor]] = [{}, {}]

    def learn(rank: int) -> None:
        seen[rank] = two[rank].update([halves(batch)[rank] for batch in given])

    threads = [threading.Thread(target=learn, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert torch.equal(two[0].parameters.value, two[1].parameters.value)
    torch.testing.assert_close(two[0].adam.m, one.adam.m, atol=1e-5, rtol=1e-4)
    # Keys' biases have no gradient but rounding, which Adam makes a step of; they change no output either.
    felt = one.adam.v.sqrt() > 1e-6
    torch.testing.assert_close(two[0].parameters.value[felt], one.parameters.value[felt], atol=1e-5, rtol=0)
    assert felt.float().mean() > 0.5
    assert (seen[0]["elbo"] + seen[1]["elbo"]).item() / 2 == pytest.approx(metrics["elbo"].item(), rel=1e-4)


@pytest.mark.parametrize("name", ["point", "paper-like", "stored", "window"])
def test_a_batch_that_is_not_finite_changes_no_parameter_and_is_counted(name: str) -> None:
    config = small(**SHAPES[name])
    agent = made(config, episodes(0))
    agent.update(batches(config, 0))
    before, bad = agent.state(), episodes(3, posterior_floats=config.posterior_floats)
    bad.rows_NF[0, 0] = math.nan  # the first observation, which every plan needs
    metrics = agent.update([bad])
    assert metrics["nonfinite"].item() == 1 and math.isnan(metrics["elbo"].item())
    after = agent.state()
    changed = [k for k in before if not torch.equal(before[k].nan_to_num(7.0), after[k].nan_to_num(7.0))]
    assert set(changed) <= {"generator", "updates", "model.surprise"}
    good = agent.update([episodes(4, posterior_floats=config.posterior_floats)])
    assert good["nonfinite"].item() == 0 and math.isfinite(good["elbo"].item())
    assert all(bool(posterior.isfinite().all()) for posterior in agent.posteriors())


def test_one_trajectory_is_learned_by_heart_actions_and_return() -> None:
    config = small(
        width=32,
        layers=1,
        points=0,
        lr=2e-2,
        lr_end=0.0,
        updates=400,
        next_state_weight=0.0,
        prior="standard",
        clip=5.0,
    )
    length = 60
    one = episodes(11, (length,))
    steps = torch.linspace(0, 4, length)
    one.rows_NF[:, :OBS] = torch.stack([steps.sin(), steps.cos(), steps / 4], 1)
    one.rows_NF[:, OBS:-1] = 0.8 * torch.stack([(2 * steps).sin(), (3 * steps).cos()], 1)
    result = dataclasses.replace(summary(one), return_mean=30.0, return_std=10.0)
    one = dataclasses.replace(one, return_B=torch.tensor([42.0]))
    agent = GAC(config, AgentSpec(obs_dim=OBS, action_dim=2))
    agent.fit(result)
    for _ in range(4):
        metrics = agent.update([one] * 100)
    assert agent.encoder is not None
    with torch.inference_mode():
        model, obs, action = agent.model, one.rows_NF[None, :, :OBS], one.rows_NF[None, :, OBS:-1]
        z = model.plan(agent.encoder(one, model).mean_Bnd, obs[:, 0])
        made = model.generate(model.memory(z), obs, action)
        mean, _ = model.denormalise_return(*model.predict_return(z))
    assert (made.action_BSA - action).square().mean().item() < 1e-3
    assert abs(mean.item() - 42.0) < 0.42
    assert metrics["action_mse"].item() < 1e-2 and metrics["kl_total"].item() > 0


def test_the_collapse_alarm_sounds_when_the_kl_is_crushed_and_free_bits_hold_it_off_until_late() -> None:
    given = [episodes(0)] * 60
    found = []
    for bits, updates in ((0.0, 1_000), (1.0, 1_000), (1.0, 65)):
        agent = made(small(kl_weight=300.0, lr=0.02, free_bits=bits, updates=updates), given[0])
        agent.update(given)
        found.append(agent.update(given[:5]))
    crushed, held, late = found
    assert crushed["collapse"].item() == 1.0 and crushed["kl_token"].item() < 0.05
    assert held["collapse"].item() == 0.0 and 0.2 < held["kl_token"].item() < 1.0
    assert late["collapse"].item() == 1.0 and 0.2 < late["kl_token"].item() < 1.0


def test_what_is_free_counts_until_the_last_update_on_the_dataset_and_never_in_stages() -> None:
    given = [episodes(0)]
    agent = made(small(kl_weight=300.0, lr=0.02, free_bits=1.0, updates=65), given[0])
    agent.update(given * 64)
    assert agent.update(given)["collapse"].item() == 1.0, "the last on the dataset"
    agent.start_finetuning()
    assert agent.update(given)["collapse"].item() == 0.0, "the first of the stages"
    within = made(
        small(kl_weight=300.0, lr=0.02, free_bits=1.0, updates=65), given[0]
    )  # a schedule that has stages in it
    within.update(given * 60)
    within.update_returns(dataclasses.replace(RETURNS, stage=0))
    assert within.update(given)["collapse"].item() == 1.0, "before the first stage"
    within.update_returns(dataclasses.replace(RETURNS, stage=1))
    assert within.update(given)["collapse"].item() == 0.0


def test_no_update_reads_anything_back_on_the_host_once_the_returns_stand_still() -> None:
    config = small(posterior="stored", window=3, points=9)
    agent, given = made(config, episodes(0)), batches(config, 0)
    agent.update_returns(RETURNS)
    agent.update(given)
    with HostReads() as reads:
        agent.update_returns(dataclasses.replace(RETURNS))
        agent.update(given)
    assert reads.seen == []


def test_the_target_follows_the_returns_and_the_predictors_error_and_travels_with_the_weights() -> None:
    agent = made(small(), episodes(0))
    assert agent.policy_weights()["explore_target"].item() < -1e38  # unknown
    agent.update_returns(RETURNS)
    assert agent.policy_weights()["explore_target"].item() == 3.0  # the quantile: no error is known yet
    agent.update([episodes(0)])
    agent.update_returns(dataclasses.replace(RETURNS, quantile=4.0))
    wanted = 4.0 + agent.config.explore_gain * agent.return_error.item()
    assert agent.policy_weights()["explore_target"].item() == pytest.approx(wanted)


def test_error_percentiles_are_of_the_standardised_displacement_error() -> None:
    agent = made(small(points=0), episodes(0))
    agent.update([episodes(0)])
    percentiles = agent.policy_weights()["surprise"]
    assert percentiles.shape == (101,) and bool((percentiles.diff() >= 0).all()) and percentiles[50] > 0.05


def test_the_learning_rate_warms_up_and_falls_to_its_end() -> None:
    agent = made(small(updates=100, warmup=0.1, lr=1e-2, lr_end=0.1), episodes(0))
    rates = [agent.learning_rate(u) for u in range(150)]
    assert rates[0] == pytest.approx(1e-3) and max(rates) == rates[9] and rates[9] == pytest.approx(1e-2, rel=0.05)
    assert rates[100] == pytest.approx(1e-3) == rates[149]


def test_after_the_schedule_each_cycle_of_the_step_size_has_its_own_warm_up() -> None:
    agent = made(small(updates=100, warmup=0.1, lr=1e-2, lr_end=0.1, cycle=50), episodes(0))
    alone = made(small(updates=50, warmup=0.1, lr=1e-2, lr_end=0.1), episodes(0))
    cycle = [alone.learning_rate(u) for u in range(50)]
    assert [agent.learning_rate(u) for u in range(100, 200)] == pytest.approx(cycle + cycle)
    assert agent.learning_rate(99) == pytest.approx(1e-3, rel=0.01)


def test_the_spread_follows_the_returns_of_the_batches_and_widens_the_return_heads_variance() -> None:
    still, moving = (made(small(return_variance=0.05, return_memory=m), episodes(0)) for m in (0.0, 0.5))
    wide = episodes(0)
    scored = (
        6.0 * (wide.return_B - wide.return_B.mean()) / wide.return_B.std(correction=0) + 8.0
    )  # as far out as a better policy's
    wide = dataclasses.replace(wide, return_B=scored * moving.model.return_std + moving.model.return_mean)
    for _ in range(20):
        still.update([wide])
        moving.update([wide])
    assert float(still.model.return_spread) == 1.0
    assert float(moving.policy_weights()["return_spread"]) == pytest.approx(6.0, rel=1e-3)
    z_Bnd = torch.zeros(1, moving.config.tokens, moving.config.token_width)
    assert float(moving.model.predict_return(z_Bnd)[1].exp()) == pytest.approx(0.05 * 36.0, rel=1e-2)
    assert float(still.model.predict_return(z_Bnd)[1].exp()) == pytest.approx(0.05, rel=1e-4)


def test_a_state_that_does_not_fit_is_refused_by_name_and_nothing_changes() -> None:
    agent, other = made(small(), episodes(0)), made(small(tokens=5), episodes(0))
    before = agent.state()
    with pytest.raises(ValueError, match=r"model.prior.place_nC is torch.float32 \(5, 8\), expected .*\(4, 8\)"):
        agent.load_state(other.state())
    with pytest.raises(ValueError, match="updates is missing; more is not known"):
        agent.load_state({k: v for k, v in before.items() if k != "updates"} | {"more": torch.zeros(1)})
    assert same(agent.state(), before)


def test_a_seed_decides_everything_and_no_other_generator_is_touched() -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first, second = made(small(), episodes(0), seed=1), made(small(), episodes(0), seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert same(first.state(), second.state()) and not same(first.state(), made(small(), episodes(0), seed=2).state())


def test_the_registry_has_the_algorithms_of_episodes_with_agents_and_policies_that_fit() -> None:
    assert {n: a.items for n, a in ALGORITHMS.items()} == {
        **dict.fromkeys(("softgac", "sac", "crossq-sac", "dime", "flac", "flowrl", "qsm", "qvpo"), "transitions"),
        **dict.fromkeys(
            ("gac", "bc", "percent-bc", "rvs", "dt", "odt", "iql", "td3-bc", "cql", "cal-ql", "rlpd"), "episodes"
        ),
    }
    config = ALGORITHMS["gac"].presets["cpu"]()
    agent: Any = ALGORITHMS["gac"].make_agent(config, AgentSpec(obs_dim=4, action_dim=2))
    policy = ALGORITHMS["gac"].make_policy(config, 4, 2)
    policy.load_weights({name: tensor.numpy() for name, tensor in agent.policy_weights().items()})


def test_a_return_that_the_user_asks_for_counts_at_once_in_a_run_that_goes_on_from_another() -> None:
    base, after = made(small(), episodes(0)), made(small(explore_return=120.0), episodes(0))
    base.update_returns(RETURNS)
    after.load_state(base.state())
    after.start_finetuning()
    assert float(base.policy_weights()["explore_target"]) != 120.0 == float(after.policy_weights()["explore_target"])
    after.update_returns(RETURNS)
    assert float(after.policy_weights()["explore_target"]) == 120.0


def test_going_online_begins_the_cycles_and_counts_the_stages_anew_after_however_many_updates() -> None:
    agent = made(small(updates=100, warmup=0.1, lr=1e-2, lr_end=0.1, cycle=50), episodes(0))
    agent.update_returns(dataclasses.replace(RETURNS, stage=3, stage_reached=1.0, stage_target=9.0, stage_episodes=4))
    agent.updates, gain = 137, agent.target.gain
    agent.start_finetuning()
    assert agent.learning_rate(agent.updates) == agent.learning_rate(100)
    agent.update_returns(dataclasses.replace(RETURNS, stage=1, stage_reached=1.0, stage_target=9.0, stage_episodes=4))
    assert agent.target.gain < gain and agent.target.stage == 1


def test_what_is_said_of_exploration_is_of_the_newest_stage_and_the_same_after_a_resume_without_a_read() -> None:
    agent, resumed = (made(small(), episodes(0)) for _ in range(2))
    deviation = float(agent.model.return_std)
    stage = dataclasses.replace(
        RETURNS, stage=2, stage_target=9.0, stage_reached=1.0, stage_mean=1.0, stage_episodes=40
    )
    stage = dataclasses.replace(stage, best=1.0 + deviation, stage_std=0.01 * deviation)
    agent.update_returns(stage)
    seen = agent.update(batches(agent.config, 0))
    assert seen["explore_spread"].item() == pytest.approx(0.01) and seen["explore_collapse"].item() == 1.0
    resumed.load_state(agent.state())
    with HostReads() as reads:
        resumed.update_returns(dataclasses.replace(stage))
        again = resumed.update(batches(agent.config, 1))
    assert reads.seen == []
    assert all(torch.equal(again[name], seen[name]) for name in ("explore_spread", "explore_collapse"))


def test_what_was_gathered_raises_the_highest_return_known_and_nothing_lowers_it() -> None:
    agent = made(small(), episodes(0))
    high = float(agent.model.return_high)
    for best, expected in ((math.nan, high), (high - 1.0, high), (high + 5.0, high + 5.0), (high + 1.0, high + 5.0)):
        agent.update_returns(dataclasses.replace(RETURNS, best=best))
        assert float(agent.model.return_high) == pytest.approx(expected)
    assert float(agent.policy_weights()["return_high"]) == pytest.approx(high + 5.0)
