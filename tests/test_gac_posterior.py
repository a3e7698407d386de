"""Local posteriors: each form finds what it should, and the networks stay as they are."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from gac_batches import ACTION, LENGTHS, OBS, episodes, made, small
from torch.distributions import Normal

from algorithms.gac.bound import OBSERVED, Posterior, cosine, fresh, refine, stored
from algorithms.gac.losses import kl_standard
from algorithms.trainer import FlatAdam

SHAPE = (4, 3)  # tokens, width


def test_the_inner_loop_climbs_to_the_known_optimum_of_a_gaussian_bound() -> None:
    """E_q log N(x; z, v) - KL has its optimum at mean x / (1 + v), variance v / (1 + v)."""
    config, x, v = small(inner_steps=600), torch.randn(5, *SHAPE), 0.25

    def bound(q: Posterior) -> torch.Tensor:
        expected = Normal(q.mean_Bnd, v**0.5).log_prob(x) - 0.5 * q.log_variance_Bnd.exp() / v
        return (expected - kl_standard(*q)).sum((1, 2))

    found = refine(config, fresh(config, 5, x), bound)
    torch.testing.assert_close(found.mean_Bnd, x / (1 + v), atol=2e-3, rtol=0)
    torch.testing.assert_close(found.log_variance_Bnd.exp(), torch.full_like(x, v / (1 + v)), atol=2e-3, rtol=0)


def test_a_trajectory_whose_search_is_not_finite_keeps_its_start_and_harms_no_other() -> None:
    config, start = small(inner_steps=4), Posterior(torch.zeros(2, *SHAPE), torch.zeros(2, *SHAPE))

    def bound(q: Posterior) -> torch.Tensor:
        return -(q.mean_Bnd - 1).square().sum((1, 2)) * torch.tensor([float("nan"), 1.0])

    found = refine(config, start, bound)
    assert torch.equal(found.mean_Bnd[0], start.mean_Bnd[0]) and bool((found.mean_Bnd[1] > 0.5).all())


def test_fresh_posteriors_raise_the_bound_and_leave_the_networks_gradient_alone() -> None:
    batch = episodes(0)
    agent = made(small(posterior="fresh", inner_steps=16), batch)
    noise = agent._draw(len(batch))
    segments = agent.gather_segments(batch, noise.place_BK)
    from algorithms.gac.bound import lower_bound

    start = fresh(agent.config, len(batch), batch.return_B)
    found = agent._infer(batch, segments, noise)
    before, after = (lower_bound(agent.model, batch, segments, q, noise.eps_Bnd).elbo_B for q in (start, found))
    assert bool((after > before).all())
    assert agent.parameters.grad.count_nonzero() == 0 and not found.mean_Bnd.requires_grad


def test_a_stored_posterior_is_begun_from_where_it_was_written_back() -> None:
    config = small(posterior="stored")
    batch = episodes(0, posterior_floats=config.posterior_floats)
    assert config.posterior_floats == 2 * 4 * 3 and small().posterior_floats == 0
    q = Posterior(*torch.randn(2, len(LENGTHS), *SHAPE).unbind(0))
    visits = torch.tensor([1, 0, 3, 1], dtype=torch.int32)
    kept = q.packed()
    kept[3, 0] = float("nan")
    start = stored(config, dataclasses.replace(batch, posterior_BP=kept, visits_B=visits))
    new = fresh(config, len(LENGTHS), q.mean_Bnd)
    for b, own in enumerate((q, new, q, new)):  # never visited, or damaged: fresh
        assert torch.equal(start.mean_Bnd[b], own.mean_Bnd[b])
        assert torch.equal(start.log_variance_Bnd[b], own.log_variance_Bnd[b])


def test_stored_posteriors_are_given_back_for_each_batch_of_the_last_update() -> None:
    config = small(posterior="stored", inner_steps=5)
    batch = episodes(0, posterior_floats=config.posterior_floats)
    agent = made(config, batch)
    agent.update([batch, batch])
    first, second = agent.posteriors()
    assert first.shape == (len(LENGTHS), config.posterior_floats) and not torch.equal(first, second)
    agent.update([dataclasses.replace(batch, posterior_BP=second, visits_B=torch.ones(4, dtype=torch.int32))])
    (third,) = agent.posteriors()
    assert (third - second).abs().mean() < second.abs().mean()  # goes on from there
    assert made(small(), episodes(0)).posteriors() == []


@pytest.mark.parametrize("with_return", [True, False])
def test_the_encoder_sees_steps_spread_over_the_longest_episode_and_nothing_after_the_end(with_return: bool) -> None:
    batch = episodes(0)
    agent = made(small(posterior_return=with_return), batch)
    assert agent.encoder is not None
    seen = agent.encoder.observed(batch, agent.model)
    assert seen.shape == (len(LENGTHS), OBSERVED, OBS + ACTION + 1)
    times = [int((k + 0.5) / OBSERVED * 40) for k in range(OBSERVED)]  # the longest has 40
    for b, length in enumerate(LENGTHS):
        for k, t in enumerate(times):
            if t >= length:
                assert seen[b, k].count_nonzero() == 0
                continue
            row = batch.rows_NF[batch.offset[b] + t]
            torch.testing.assert_close(seen[b, k, :OBS], agent.model.normalise_obs(row[:OBS]))
            assert seen[b, k, OBS:].tolist() == [*row[OBS:-1].tolist(), 1.0]
    q = agent.encoder(batch, agent.model)
    other = agent.encoder(dataclasses.replace(batch, return_B=batch.return_B + 1), agent.model)
    assert torch.equal(q.mean_Bnd, other.mean_Bnd) != with_return


def test_adamw_is_torchs_and_a_skipped_step_is_none() -> None:
    value = torch.randn(20)
    theirs = torch.nn.Parameter(value.clone())
    reference = torch.optim.AdamW([theirs], lr=0.02, weight_decay=0.1)
    grad = torch.zeros(20)
    ours = FlatAdam(value, grad, lr=0.02, weight_decay=0.1)
    for _ in range(5):
        grad.normal_()
        theirs.grad = grad.clone()
        reference.step()
        ours.step(torch.zeros(()))
        torch.testing.assert_close(value, theirs.data)
    kept = value.clone()
    ours.step(torch.ones(()))
    assert torch.equal(value, kept) and ours.count.item() == 5


def test_the_cosine_ends_where_it_is_told_and_stays() -> None:
    assert cosine(0.0, 0.1) == 1.0
    assert cosine(1.0, 0.1) == pytest.approx(0.1) == cosine(7.0, 0.1)
