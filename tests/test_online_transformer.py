"""The online decision transformer: its losses against slow twins, that it does what is asked, and how it gathers."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from imitation_data import batch_of, summary_of, two_behaviours

from algorithms.imitation.config import OnlineTransformerConfig
from algorithms.imitation.online_transformer import (
    OnlineDecisionTransformer,
    OnlineDecisionTransformerPolicy,
    atanh,
    log_density,
    split,
)
from algorithms.interface import AgentSpec, PlanRequest, PlanRequestError

SMALL = OnlineTransformerConfig(
    lr=3e-3, warmup=10, grad_clip=1.0, context=4, width=16, layers=2, heads=1, dropout=0.0, max_steps=40, obs_fourier=0
)


def fitted(config: OnlineTransformerConfig = SMALL) -> OnlineDecisionTransformer:
    agent = OnlineDecisionTransformer(config, AgentSpec(obs_dim=2, action_dim=1))
    agent.fit(summary_of(two_behaviours(32)))
    return agent


@pytest.fixture(scope="module")
def learned() -> tuple[OnlineDecisionTransformer, OnlineDecisionTransformerPolicy]:
    agent, episodes = fitted(), two_behaviours(32)
    agent.update([batch_of(episodes)] * 500)
    policy = OnlineDecisionTransformerPolicy(SMALL, 2, 1)
    policy.load_weights(agent.policy_weights())
    return agent, policy


def test_the_density_is_that_of_a_gaussian_behind_a_tanh() -> None:
    draw = torch.Generator().manual_seed(0)
    mean, raw = torch.randn(7, 3, generator=draw), 2 * torch.randn(7, 3, generator=draw)
    out_mean, log_std = split(torch.cat([mean, raw], -1))
    assert torch.equal(out_mean, mean)
    torch.testing.assert_close(log_std, -5 + 3.5 * (torch.tanh(raw) + 1))
    action = torch.tanh(torch.randn(7, 3, generator=draw))
    squashed = torch.distributions.TransformedDistribution(
        torch.distributions.Normal(mean, log_std.exp()), torch.distributions.TanhTransform()
    )
    expected = squashed.log_prob(action.double()).sum(-1)
    torch.testing.assert_close(log_density(atanh(action), mean, log_std), expected.float(), rtol=1e-4, atol=1e-4)
    assert torch.isfinite(log_density(atanh(torch.ones(1, 3)), mean[:1], log_std[:1])).all()


def test_the_losses_are_those_of_the_paper_one_step_at_a_time() -> None:
    agent, episodes = fitted(), two_behaviours(6)
    agent.update([batch_of(episodes)] * 5)
    batch, kept = batch_of(episodes), agent.generator.get_state()
    agent.generator.set_state(kept)
    out_GKA, action_GKA, weight_GK = agent.outputs(batch)
    noise = torch.randn(6, 1, 4, 1, generator=agent.generator)
    agent.generator.set_state(kept)
    loss = agent.losses(batch)
    alpha, cost, entropies = math.exp(float(agent.heat.named["log_alpha"].detach())), 0.0, []
    for g in range(6):
        for k in range(4):
            if not weight_GK[g, k]:
                continue
            mean, raw = (float(x) for x in out_GKA[g, k].detach())
            std = math.exp(-5 + 3.5 * (math.tanh(raw) + 1))

            def density(x: float, mean: float = mean, std: float = std) -> float:
                normal = math.exp(-0.5 * ((x - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))
                return math.log(normal / (1 - math.tanh(x) ** 2))

            entropies.append(-density(mean + std * float(noise[g, 0, k, 0])))
            cost += -density(math.atanh(float(action_GKA[g, k, 0]))) - alpha * entropies[-1]
    assert 6 < len(entropies) < 24  # some steps are padded
    assert float(loss.value.detach()) == pytest.approx(cost, rel=1e-3)
    assert float(loss.shared[1] / loss.shared[0]) == pytest.approx(sum(entropies) / len(entropies), rel=1e-3)


def test_the_temperature_falls_while_the_entropy_is_above_its_target_and_rises_below() -> None:
    for target, falls in ((-8.0, True), (8.0, False)):
        agent = fitted(dataclasses.replace(SMALL, target_entropy=target, alpha_lr=1e-2))
        before = float(agent.heat.named["log_alpha"].detach())
        metrics = agent.update([batch_of(two_behaviours(8))] * 3)
        moved = float(agent.heat.named["log_alpha"].detach()) - before
        assert moved == pytest.approx(-0.03 if falls else 0.03, abs=1e-3)  # Adam's first steps are lr each
        assert float(metrics["alpha"]) > 0 and float(metrics["nonfinite"]) == 0


def test_a_batch_that_is_not_finite_moves_neither_network_nor_temperature() -> None:
    agent, bad = fitted(), batch_of(two_behaviours(8))
    agent.update([batch_of(two_behaviours(8))] * 2)
    before = agent.state()
    bad.rows_NF[:, 2] = math.nan
    metrics = agent.update([bad])
    assert float(metrics["nonfinite"]) == 1
    after = agent.state()
    moved = {
        name for name in before if name not in ("generator", "updates") and not torch.equal(before[name], after[name])
    }
    assert moved == set()


def played(policy: OnlineDecisionTransformerPolicy, aim: PlanRequest, steps: int = 10) -> tuple[list[float], Any]:
    """Actions and metadata in the world that the data comes from: acting -.6 earns 1, else .05."""
    policy.aim = aim
    policy.reset(1)
    draw, reward, actions = np.random.default_rng(5), 0.0, []
    (metadata,) = policy.begin(np.array([0]), np.zeros((1, 2), np.float32), np.random.default_rng(2))
    for _ in range(steps):
        obs = (0.3 * draw.normal(size=(1, 2))).astype(np.float32)
        actions.append(float(policy.act(obs, np.array([reward], np.float32))[0, 0]))
        reward = 1.0 if actions[-1] < 0 else 0.05
    return actions, metadata


def test_asked_for_a_high_return_it_does_what_earned_it_and_for_a_low_one_the_other(learned: Any) -> None:
    _, policy = learned
    assert played(policy, PlanRequest(target_return=15.0))[0][0] == pytest.approx(-0.6, abs=0.2)
    assert played(policy, PlanRequest(target_return=0.7))[0][0] == pytest.approx(0.6, abs=0.2)


def test_exploring_asks_for_more_and_samples_and_an_evaluation_repeats_itself(learned: Any) -> None:
    _, policy = learned
    best = summary_of(two_behaviours(32)).return_max
    usual, metadata = played(policy, PlanRequest())
    assert metadata.target == pytest.approx(best) and metadata.mode == ""
    assert played(policy, PlanRequest())[0] == usual
    explored, metadata = played(policy, PlanRequest(mode="explore"))
    assert metadata.target == pytest.approx(2 * best) and metadata.mode == "explore"
    assert explored != usual and played(policy, PlanRequest(mode="explore"))[0] == explored
    assert played(policy, PlanRequest(mode="explore", target_return=-3.0))[1].target == 0.0  # above -3, not below
    with pytest.raises(PlanRequestError, match="mode kl, expected none"):
        played(policy, PlanRequest(mode="kl"))


def test_gathering_goes_on_bit_for_bit_from_a_state(learned: Any) -> None:
    agent, policy = learned
    obs = np.random.default_rng(1).normal(size=(6, 2, 2)).astype(np.float32)
    policy.aim = PlanRequest(mode="explore")
    policy.reset(2)
    policy.begin(np.arange(2), obs[0], np.random.default_rng(0))
    for t in range(3):
        policy.act(obs[t], np.zeros(2, np.float32))
    state = policy.state()
    rest = [policy.act(obs[t], np.zeros(2, np.float32)) for t in range(3, 6)]
    other = OnlineDecisionTransformerPolicy(SMALL, 2, 1)
    other.load_weights(agent.policy_weights())
    other.load_state(state)
    for t, action in zip(range(3, 6), rest):
        np.testing.assert_array_equal(other.act(obs[t], np.zeros(2, np.float32)), action)
    with pytest.raises(ValueError, match=r"seeds of float64 \(0,\)"):
        other.load_state({name: array for name, array in state.items() if name != "seed_E"})
