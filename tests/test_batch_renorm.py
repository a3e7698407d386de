"""Batch renormalisation and the joint pass against a slow numpy form and autograd."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from softgac_twin import RENORM, evaluate_autograd, joint_autograd, renorm_loop

from algorithms import batch_renorm
from algorithms.critic import TwinCritic, evaluate
from algorithms.interface import Solo


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def _critic(*, warmup: int = 0, layers: int = 2, form: str = "ioffe") -> TwinCritic:
    draw = torch.Generator().manual_seed(1)
    constants = dataclasses.replace(RENORM, warmup=warmup, form=form)
    critic = TwinCritic(5, 16, layers, 7, constants, draw, torch.device("cpu"))
    with torch.no_grad():  # away from the start, so that no factor is 1 or 0
        for tensor in critic.parameters.named.values():
            tensor.add_(0.3 * torch.randn(tensor.shape, generator=draw))
        for name, tensor in critic.statistics.items():
            tensor.add_(0.2 * torch.rand(tensor.shape, generator=draw) + 0.1 * ("mean" in name))
        critic.statistics["norm0.mean"][1] = critic.statistics["norm0.mean"][0]
    return critic


@pytest.mark.parametrize("form", ["ioffe", "crossq"])
@pytest.mark.parametrize("warm", [False, True])
def test_train_mode_equals_the_slow_form_with_both_clips_reached(warm, form):
    constants = dataclasses.replace(RENORM, form=form)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 4)) * [0.01, 1.0, 30.0, 1.0] + [0.0, 0.5, 0.0, 20.0]
    gamma, beta = rng.normal(size=4), rng.normal(size=4)
    mean, var = np.zeros(4), np.ones(4)
    slow, means, variances = renorm_loop(x, gamma, beta, mean, var, warm, constants)
    stacked = [torch.from_numpy(np.stack([a, a])) for a in (x, gamma, beta, mean, var)]
    fast, seen = batch_renorm.forward(*stacked, torch.tensor(warm), constants, Solo())
    np.testing.assert_allclose(fast[1], slow, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(seen.mean_TI[1], means)
    np.testing.assert_allclose(seen.var_TI[1], variances)
    if warm:
        assert seen.r_TI[0, 0] == pytest.approx(1 / 3) and seen.r_TI[0, 2] == 3.0
        assert form == "crossq" or seen.shift_TI[0, 3] == 5.0


# x = mean +- deviation, so var = deviation^2, with mean .5 and running statistics 0 and 1; eps 1e-3, r in [1/3, 3], d in [-5, 5].
# r = sqrt(1e-2 + 1e-3) / sqrt(1.001), clipped to 1/3; d = .5 / sqrt(1.001) = .49975.
@pytest.mark.parametrize(
    ("deviation", "ioffe", "crossq"),
    [
        # (.01 / sqrt(1.1e-3)) / 3 + .49975; (.01 + .49975 x .01 x 3) / sqrt(9e-4 + 1e-3)
        (0.01, 0.60025, 0.57337),
        (0.1, 0.81757, 0.82849),  # r = 1/3: (.1 / sqrt(.011)) / 3 + .49975; (.1 + .49975 x .1 x 3) / sqrt(.091)
        (1.0, 1.49925, 1.49900),  # r = 1: nearly equal
    ],
)
def test_the_two_forms_have_these_values(deviation, ioffe, crossq):
    x = torch.tensor([[0.5 + deviation], [0.5 - deviation]], dtype=torch.float64).expand(2, 2, 1)
    ones, zeros = torch.ones(2, 1, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)
    for form, value in (("ioffe", ioffe), ("crossq", crossq)):
        constants = dataclasses.replace(RENORM, form=form)
        y, _ = batch_renorm.forward(x, ones, zeros, zeros, ones, torch.tensor(True), constants, Solo())
        assert y[0, 0, 0].item() == pytest.approx(value, abs=5e-5)


@pytest.mark.parametrize("form", ["ioffe", "crossq"])
@pytest.mark.parametrize("warmup", [0, 10])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_joint_pass_and_its_gradient_equal_autograd(warmup, layers, form):
    critic = _critic(warmup=warmup, layers=layers, form=form)
    x = (torch.randn(24, 5) * 2 + 1) * torch.tensor([1.0, 0.03, 1.0, 0.1, 1.0])  # variances on both sides of eps
    critic.parameters.grad.fill_(torch.nan)  # what stood there before does not count
    joint = critic.joint(x, Solo())
    now, following = joint.logits_TMN.chunk(2, 1)
    weight = torch.randn_like(now)
    critic.backward(joint, weight, Solo())
    twin = {name: tensor.detach().clone().requires_grad_() for name, tensor in critic.parameters.named.items()}
    args = (twin, critic.statistics, critic.passes, critic.layers, critic.constants)
    slow_now, slow_following = joint_autograd(x, *args)
    (slow_now * weight).sum().backward()
    torch.testing.assert_close(now, slow_now, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(following, slow_following, rtol=1e-5, atol=1e-5)
    for name, tensor in critic.parameters.named.items():
        scale = float(twin[name].grad.abs().max())
        torch.testing.assert_close(tensor.grad, twin[name].grad, rtol=1e-5, atol=1e-5 * scale, msg=name)


def test_in_bfloat16_critics_and_their_gradients_differ_by_its_rounding_alone():
    exact, rough = _critic(), _critic()
    rough.bf16 = True
    x = torch.randn(64, 5)
    weight, seen = torch.randn(2, 32, 7), []
    for critic in (exact, rough):
        joint = critic.joint(x, Solo())
        critic.backward(joint, weight, Solo())
        seen.append((*joint.logits_TMN.chunk(2, 1), critic.parameters.gradient, evaluate(critic.frozen(), x)))
    for one, other in zip(*seen):
        error = ((one - other).norm() / one.norm()).item()
        assert 1e-4 < error < 0.05 and other.dtype == torch.float32


def test_the_second_half_shapes_the_gradient_only_through_the_shared_statistics():
    critic = _critic()
    x = torch.randn(24, 5)
    grads = []
    for rows in (x, torch.cat([x[:12], x[12:] * 3])):
        joint = critic.joint(rows, Solo())
        critic.backward(joint, 2 * joint.logits_TMN[:, :12], Solo())
        grads.append(critic.parameters.grad.clone())
    assert not torch.allclose(*grads)


def test_far_observations_keep_their_variance():
    critic = _critic()
    critic.statistics["norm0.mean"].fill_(1000.0)
    x = torch.randn(64, 5) * 0.1 + 1000.0
    batch = critic.joint(x, Solo()).batch
    variance = batch[batch.numel() // 2 :][:5]
    np.testing.assert_allclose(variance, x.double().var(0, correction=0), rtol=1e-3)


def test_running_statistics_move_by_their_decay_and_stay_where_kept():
    critic = _critic()
    before, batch = critic.running.clone(), torch.randn_like(critic.running)
    critic.commit(batch, torch.tensor(True))
    assert torch.equal(critic.running, before) and critic.passes == 0
    critic.commit(batch, torch.tensor(False))
    torch.testing.assert_close(critic.running, 0.99 * before + 0.01 * batch)
    assert critic.passes == 1


def test_the_folded_eval_mode_and_its_input_gradient_equal_the_unfolded_one():
    critic = _critic()
    x = torch.randn(9, 5, requires_grad=True)
    fast = evaluate(critic.frozen(), x)
    slow = evaluate_autograd(x, critic.parameters.named, critic.statistics, critic.layers, 1e-3)
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)
    weight = torch.randn_like(fast)
    grads = [torch.autograd.grad((out * weight).sum(), x)[0] for out in (fast, slow)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


def test_critics_start_lecun_normal_with_zero_bias():
    draw = torch.Generator().manual_seed(0)
    critic = TwinCritic(23, 256, 2, 101, RENORM, draw, torch.device("cpu"))
    weight = critic.parameters.named["linear1.weight"]
    assert weight.std().item() == pytest.approx(1 / 16, rel=0.01)
    assert weight.abs().max().item() <= 2 / 0.8796 / 16 + 1e-6
    assert critic.parameters.named["linear1.bias"].abs().max() == 0
