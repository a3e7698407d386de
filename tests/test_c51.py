"""The return distribution against a slow loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from softgac_twin import project_loop

from algorithms import c51

V_MIN, V_MAX, ATOMS = -3.0, 5.0, 11


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), shift=st.floats(-12, 12), stretch=st.sampled_from([0.0, 0.3, 0.99, 1.0]))
def test_projection_equals_the_slow_loop_keeps_mass_and_the_mean_of_inner_targets(seed, shift, stretch):
    draw = torch.Generator().manual_seed(seed)
    p = torch.softmax(torch.randn(4, ATOMS, generator=draw) * 3, -1)
    y = c51.support(V_MIN, V_MAX, ATOMS, torch.device("cpu"))
    target = (stretch * y + shift + torch.randn(4, 1, generator=draw)).clamp(V_MIN, V_MAX)
    mass = c51.project(p, target, V_MIN, V_MAX)
    np.testing.assert_allclose(mass, project_loop(p.numpy(), target.numpy(), V_MIN, V_MAX), atol=2e-6)
    np.testing.assert_allclose(mass.sum(-1), 1.0, atol=1e-6)
    np.testing.assert_allclose((mass * y).sum(-1), (p * target).sum(-1), atol=1e-5)


def test_the_dense_projection_of_gpus_equals_the_scattered_one():
    p = torch.softmax(torch.randn(8, ATOMS), -1)
    place = torch.rand(8, ATOMS) * (ATOMS - 1)
    place[0], place[1] = 0.0, ATOMS - 1
    torch.testing.assert_close(c51._project_dense(p, place), c51._project_scatter(p, place))


def test_projecting_the_average_is_the_average_of_two_projections():
    p = torch.softmax(torch.randn(2, 8, ATOMS), -1)
    target = (torch.randn(8, ATOMS) * 4).clamp(V_MIN, V_MAX)
    both = [c51.project(one, target, V_MIN, V_MAX) for one in p]
    torch.testing.assert_close(c51.project(p.mean(0), target, V_MIN, V_MAX), (both[0] + both[1]) / 2)


def test_the_cost_stands_inside_the_discount_and_a_terminal_state_has_none():
    y = c51.support(-100.0, 100.0, 3, torch.device("cpu"))
    reward, cost, alpha = torch.tensor([1.0, 1.0]), torch.tensor([7.0, 7.0]), torch.tensor(0.1)
    target = c51.soft_target(reward, torch.tensor([0.99, 0.0]), cost, alpha, y)
    assert target[0].tolist() == pytest.approx([1 + 0.99 * (-100 - 0.7), 1 - 0.99 * 0.7, 1 + 0.99 * 99.3])
    assert target[1].tolist() == [1.0, 1.0, 1.0]


def test_targets_outside_the_support_are_clipped_to_it_and_their_mass_is_counted():
    y = c51.support(-1.0, 1.0, 3, torch.device("cpu"))
    p = torch.tensor([[0.2, 0.3, 0.5], [0.2, 0.3, 0.5]])
    target = c51.soft_target(torch.tensor([0.7, 0.0]), torch.tensor([0.9, 0.9]), torch.zeros(2), torch.tensor(0.0), y)
    mass = c51.project(p, target, -1.0, 1.0)
    assert target[0].tolist() == pytest.approx([-0.2, 0.7, 1.6])
    assert mass[0].tolist() == pytest.approx([0.04, 0.16 + 0.09, 0.21 + 0.5])
    assert c51.clipped_share(p, target, y).item() == pytest.approx(0.25)  # half of the first row, none of the second


def test_the_mean_of_uniform_logits_is_the_middle_of_the_support():
    y = c51.support(-1600.0, 1600.0, 101, torch.device("cpu"))
    assert c51.mean(torch.zeros(2, 101), y).tolist() == pytest.approx([0.0, 0.0], abs=1e-3)
