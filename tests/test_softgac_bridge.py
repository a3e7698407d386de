"""The bridge, its control energy and its reference process against the figures of the paper."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from softgac_twin import bridge_autograd

from algorithms import ALGORITHMS
from algorithms.interface import AgentSpec
from algorithms.softgac import acting, bridge
from algorithms.softgac.config import cpu
from algorithms.softgac.losses import control_energy, reference_endpoint


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def _parameters(obs=5, action=3, steps=6, width=16, jitter=0.3):
    draw = torch.Generator().manual_seed(3)
    made = bridge.initial_parameters(obs, action, steps=steps, width=width, draw=draw)
    return {name: (t + jitter * torch.randn(t.shape, generator=draw)).requires_grad_() for name, t in made.items()}


@pytest.mark.parametrize(
    ("obs", "action", "width", "count"), [(67, 21, 512, 409_884), (223, 38, 256, 525_828), (51, 19, 512, 342_060)]
)
def test_parameter_counts_are_the_published_ones(obs, action, width, count):
    made = bridge.initial_parameters(obs, action, steps=6, width=width, draw=torch.Generator())
    assert sum(tensor.numel() for tensor in made.values()) == count


@pytest.mark.parametrize("layer_norm", [True, False])
def test_path_energy_and_gradient_equal_the_step_by_step_form(layer_norm):
    parameters, obs = _parameters(), torch.randn(11, 5)
    noise = bridge.draw_noise(11, 6, 3, "logistic", torch.Generator().manual_seed(0))
    z, u, sigma = bridge.bridge_path(obs, noise, parameters, layer_norm)
    action, energy = torch.tanh(z[-1]), control_energy(z[:-1], u, sigma)
    slow_action, slow_energy = bridge_autograd(obs, noise, parameters, layer_norm)
    torch.testing.assert_close(action, slow_action, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(energy, slow_energy, rtol=1e-5, atol=1e-5)
    weight = torch.randn_like(action)
    fast, slow = (
        torch.autograd.grad((a * weight).sum() + 0.1 * c.sum(), list(parameters.values()))
        for a, c in ((action, energy), (slow_action, slow_energy))
    )
    for name, one, two in zip(parameters, fast, slow):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5 * float(two.abs().max()), msg=name)


@pytest.mark.parametrize(
    ("z", "u", "sigma", "nats"),
    [(0, 0, 1, 0.0), (1, 0, 1, 0.09667), (0, 0, 0.5, 0.31815), (0.7, -2 * math.tanh(0.7), 1, 0.0)],
)
def test_control_energy_has_the_published_values(z, u, sigma, nats):
    """One step's summand at K = 6: five further steps follow the reference and add nothing."""
    zs, us, sigmas = torch.zeros(6, 1, 1), torch.zeros(6, 1, 1), torch.ones(6, 1, 1)
    zs[0], us[0], sigmas[0] = z, u, sigma
    assert control_energy(zs, us, sigmas).item() == pytest.approx(nats, abs=1e-5)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 10))
def test_control_energy_is_never_negative_and_zero_on_the_reference(seed, scale):
    draw = torch.Generator().manual_seed(seed)
    z, u = scale * torch.randn(2, 6, 4, 3, generator=draw)
    sigma = scale * torch.rand(6, 4, 3, generator=draw) + 1e-3
    assert control_energy(z, u, sigma).min() >= -1e-4
    on_reference = control_energy(z, -2 * torch.tanh(z), torch.ones_like(z))
    assert on_reference.abs().max() < 1e-4


def test_sigma_is_one_at_the_start_and_the_energy_about_15_hundredths_a_step_and_coordinate():
    parameters = bridge.initial_parameters(67, 21, steps=6, width=512, draw=torch.Generator().manual_seed(0))
    noise = bridge.draw_noise(2048, 6, 21, "logistic", torch.Generator().manual_seed(1))
    z, u, sigma = bridge.bridge_path(torch.randn(2048, 67), noise, parameters)
    assert (sigma - 1).abs().max() < 1e-6
    assert control_energy(z[:-1], u, sigma).mean().item() / (6 * 21) == pytest.approx(0.15, abs=0.02)


def test_the_reference_ends_almost_uniform():
    noise = bridge.draw_noise(1_000_000, 6, 1, "logistic", torch.Generator().manual_seed(0))
    end = reference_endpoint(noise.transpose(0, 1))
    image = torch.tanh(end)
    counts = torch.histc(image, 20, -1, 1) / image.numel()
    assert end.var().item() == pytest.approx(0.926, abs=0.005)
    assert image.square().mean().item() == pytest.approx(0.362, abs=0.002)
    assert (counts * torch.log(counts * 20)).sum().item() == pytest.approx(0.0044, abs=0.0004)


@pytest.mark.parametrize("law", ["logistic", "gaussian"])
def test_both_samplers_of_the_base_law_have_variance_pi_squared_over_twelve(law):
    drawn = bridge.draw_noise(200_000, 2, 1, law, torch.Generator().manual_seed(0)).numpy()
    sampled = acting.sample_noise(np.random.default_rng(0), 200_000, 2, 1, law)
    for noise in (drawn, sampled):
        assert noise.dtype == np.float32 and noise.shape == (200_000, 3, 1) and np.isfinite(noise).all()
        assert noise[:, 0].var() == pytest.approx(math.pi**2 / 12, rel=0.02)
        assert noise[:, 1:].var() == pytest.approx(1.0, rel=0.02)


def test_zero_noise_is_the_deterministic_path_from_zero():
    config = dataclasses.replace(cpu(), input_norm="layer_norm")
    policy = ALGORITHMS["softgac"].make_policy(config, 5, 3)
    obs, noise = torch.randn(4, 5), torch.zeros(4, 7, 3)
    agent = ALGORITHMS["softgac"].make_agent(config, AgentSpec(obs_dim=5, action_dim=3, seed=4))
    policy.load_weights(agent.policy_weights())
    slow, _ = bridge_autograd(obs, noise, agent.policy.named)
    torch.testing.assert_close(policy.act(obs, noise), slow.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm", ["layer_norm", "running", ""])
def test_the_onnx_graph_acts_like_torch_at_every_batch_size(norm):
    algorithm = ALGORITHMS["softgac" if norm else "sac"]
    config = algorithm.presets["cpu"]()
    config = dataclasses.replace(config, input_norm=norm) if norm else config
    policy = algorithm.make_policy(config, 17, 6)
    agent = algorithm.make_agent(config, AgentSpec(obs_dim=17, action_dim=6, seed=5))
    agent.update(torch.randn(4, 32, 42))  # so that no parameter is still 0 or 1
    policy.load_weights({key: value.numpy() for key, value in agent.policy_weights().items()})
    session = onnxruntime.InferenceSession(policy.onnx_model(), providers=["CPUExecutionProvider"])
    weights = {key: value.numpy() for key, value in agent.policy_weights().items()}
    assert {entry.name for entry in session.get_inputs()} == {"obs", "noise", *weights}
    for batch in (1, 16, 64):
        obs = np.random.default_rng(batch).normal(size=(batch, 17)).astype(np.float32)
        noise = policy.sample_noise(np.random.default_rng(1), batch)
        assert noise.shape == (batch, *policy.noise_shape)
        (action,) = session.run(["action"], {"obs": obs, "noise": noise, **weights})
        with torch.inference_mode():
            expected = policy.act(torch.from_numpy(obs), torch.from_numpy(noise)).numpy()
        np.testing.assert_allclose(action, expected, atol=1e-5)
        assert np.abs(action).max() <= 1


def test_weights_of_another_shape_are_refused_by_name_and_change_nothing():
    policy = ALGORITHMS["softgac"].make_policy(cpu(), 5, 3)
    other = ALGORITHMS["softgac"].make_agent(
        dataclasses.replace(cpu(), bridge_width=32), AgentSpec(obs_dim=5, action_dim=3)
    )
    with pytest.raises(ValueError, match=r"bridge\.0\.hidden\.weight has shape \(8, 32\), expected \(8, 64\)"):
        policy.load_weights(other.policy_weights())
