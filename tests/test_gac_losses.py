"""GAC's bound: closed forms, the gathering of steps, and the whole sum against a loop that anyone can read."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from gac_batches import ACTION, LENGTHS, OBS, SHAPES, episodes, made, small
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from algorithms.gac import losses
from algorithms.gac.bound import COLLAPSE_NATS, Posterior, active_share, collapsed, least_nats, lower_bound
from algorithms.gac.config import GACConfig
from algorithms.gac.segments import per_trajectory, sampled, whole

DIMS: dict[str, Any] = {"obs_dim": OBS, "action_dim": ACTION}


def test_log_densities_and_divergences_are_those_of_torch_distributions() -> None:
    x, mean, log_variance = torch.randn(3, 4, 5).double().unbind(0)
    law = Normal(mean, (0.5 * log_variance).exp())
    torch.testing.assert_close(losses.gaussian_log_prob(x, mean, log_variance), law.log_prob(x))
    standard = Normal(torch.zeros_like(mean), torch.ones_like(mean))
    torch.testing.assert_close(losses.kl_standard(mean, log_variance), kl_divergence(law, standard))


def test_free_bits_are_a_floor_for_each_token_without_gradient_below() -> None:
    kl = torch.tensor([[[0.1, 0.2], [3.0, 0.05]]], requires_grad=True)
    assert losses.free_bits(kl, 1.0).item() == pytest.approx(1.0 + 3.05)
    losses.free_bits(kl, 1.0).sum().backward()
    assert kl.grad is not None and kl.grad[0].tolist() == [[0.0, 0.0], [1.0, 1.0]]
    assert losses.free_bits(kl, 0.0).item() == pytest.approx(kl.sum().item())


def test_the_weights_of_the_terms_are_the_formulas() -> None:
    a, s, y, kl = (torch.tensor([float(i)]) for i in (1, 2, 3, 4))
    assert losses.elbo(a, s, y, kl).item() == 1 + 2 + 3 - 4
    assert losses.elbo(a, s, y, kl, next_state_weight=0.5, kl_weight=2.0).item() == 1 + 1 + 3 - 8


def test_collapse_is_a_mean_token_below_the_level_and_active_dimensions_are_counted_over_the_batch() -> None:
    kl = torch.zeros(2, 3, 2)
    for nats, alarm in ((0.12, 1.0), (0.18, 0.0)):  # .04 and .06 a token
        kl[:, 0, 0] = nats
        assert active_share(kl).item() == pytest.approx(1 / 6) and collapsed(kl, COLLAPSE_NATS).item() == alarm


def test_late_in_training_what_is_free_does_not_count_as_said() -> None:
    free, priced = (GACConfig(free_bits=bits, updates=100) for bits in (0.5, 0.0))
    numbers = (0, 74, 75, 99, 100, 101)  # the last on the dataset is 99, the first of the stages after it 100
    found = [least_nats(free, number, in_stages=False) for number in numbers]
    assert found == [0.05, 0.05, 0.5, 0.5, 0.05, 0.05]
    assert {least_nats(free, number, in_stages=True) for number in numbers} == {0.05}
    assert least_nats(priced, 99, in_stages=False) == 0.05


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(1, 20))
def test_whole_trajectories_are_gathered_once_each_in_order_with_little_padding(lengths: list[int], size: int) -> None:
    batch = episodes(0, tuple(lengths))
    seen = whole(batch, size=size, **DIMS)
    rows, found = seen.rows, []
    assert rows.plan_R is not None and rows.previous_R is not None and rows.padding_RS is not None
    for r in range(len(seen.time_RS)):
        for s in range(size):
            if not rows.padding_RS[r, s]:
                b, t = int(rows.plan_R[r]), int(seen.time_RS[r, s])
                at = int(batch.offset[b]) + t
                found.append(at)
                assert torch.equal(seen.obs_RSO[r, s], batch.rows_NF[at, :OBS])
                assert torch.equal(seen.action_RSA[r, s], batch.rows_NF[at, OBS : OBS + ACTION])
                assert seen.weight_RS[r, s] == 1 and seen.ahead_weight_RS[r, s] == float(t + 1 < lengths[b])
                if t + 1 < lengths[b]:
                    assert torch.equal(seen.later_RSO[r, s], batch.rows_NF[at + 1, :OBS])
                if s == 0 and t > 0:
                    before = int(rows.previous_R[r])
                    assert rows.plan_R[before] == b and seen.time_RS[before, -1] == t - 1
            else:
                assert seen.weight_RS[r, s] == 0 and seen.ahead_weight_RS[r, s] == 0
    assert found == list(range(sum(lengths)))
    assert seen.time_RS.numel() <= sum(lengths) + size * len(lengths)


@pytest.mark.parametrize(("steps", "count"), [(1, 5), (4, 3), (30, 2)])
def test_sampled_steps_are_the_episodes_own_and_their_weights_make_the_sum_unbiased(steps: int, count: int) -> None:
    batch, total, draws = episodes(1), torch.zeros(len(LENGTHS)), 4000
    generator, wanted = torch.Generator().manual_seed(0), torch.zeros(len(LENGTHS))
    wanted = torch.tensor([sum(math.cos(t) + 2 for t in range(length)) for length in LENGTHS])
    for draw in range(draws // 50):
        uniform = torch.rand(len(LENGTHS), count, generator=generator)
        seen = sampled(batch, uniform, steps=steps, **DIMS)
        value = ((seen.time_RS.cos() + 2) * seen.weight_RS).sum(1)
        total += per_trajectory(value, seen.rows, len(LENGTHS))
        if draw:
            continue
        plan = torch.arange(len(seen.time_RS)) // (len(seen.time_RS) // len(LENGTHS))
        at = batch.offset[:-1][plan].unsqueeze(1) + seen.time_RS
        real = seen.weight_RS > 0
        assert torch.equal(seen.obs_RSO[real], batch.rows_NF[at[real], :OBS])
        assert bool((seen.time_RS[real] < batch.offset.diff()[plan].unsqueeze(1).expand_as(real)[real]).all())
    torch.testing.assert_close(total / (draws // 50), wanted, rtol=0.15, atol=0.0)


def _obvious_elbo(agent: Any, batch: Any, posterior: Posterior, eps: torch.Tensor, b: int) -> float:
    """One trajectory, all its steps, one at a time."""
    model, config, total = agent.model, agent.config, 0.0
    rows = batch.rows_NF[batch.offset[b] : batch.offset[b + 1]]
    obs, action = rows[:, :OBS], rows[:, OBS : OBS + ACTION]
    mean, log_variance = posterior.mean_Bnd[b], posterior.log_variance_Bnd[b]
    z = model.plan((mean + (log_variance / 2).exp() * eps[b])[None], obs[:1])
    made = model.generate(model.memory(z), obs[None], action[None])
    action_std, next_std = ((0.5 * v).exp() for v in (model.action_log_variance(), model.next_log_variance()))
    for t in range(len(rows)):
        total += Normal(made.action_BSA[0, t], action_std).log_prob(action[t]).sum().item()
        if t + 1 < len(rows):
            moved = (obs[t + 1] - obs[t]) / model.obs_std_O
            law = Normal(made.next_obs_BSO[0, t], next_std)
            total += config.next_state_weight * law.log_prob(moved).sum().item()
    y = (batch.return_B[b] - model.return_mean) / model.return_std
    promised, spread = model.predict_return(z)
    total += Normal(promised, (spread / 2).exp()).log_prob(y).item()
    kl = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum(-1)
    return total - sum(max(config.free_bits, float(nats)) for nats in kl)


@pytest.mark.parametrize("name", [name for name, fields in SHAPES.items() if not fields.get("points", 1)])
def test_the_bound_of_whole_trajectories_is_the_sum_of_an_obvious_loop(name: str) -> None:
    batch = episodes(2)
    agent = made(small(**SHAPES[name]), batch)
    eps, mean, log_variance = torch.randn(3, len(batch), 4, 3).unbind(0)
    posterior = Posterior(mean, log_variance - 1)
    noise = agent._draw(len(batch))
    with torch.no_grad():
        seen = lower_bound(agent.model, batch, agent.gather_segments(batch, noise.place_BK), posterior, eps)
        wanted = [_obvious_elbo(agent, batch, posterior, eps, b) for b in range(len(batch))]
    torch.testing.assert_close(seen.elbo_B, torch.tensor(wanted), rtol=1e-4, atol=1e-3)
