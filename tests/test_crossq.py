"""CrossQ-SAC's actor against the plain form of its equations: statistics of the batch and running ones, loss, temperature."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from softgac_twin import evaluate_autograd, renorm_autograd

from algorithms import ALGORITHMS
from algorithms.interface import AgentSpec
from algorithms.sac.crossq import CrossQSAC

OBS, ACTION, BATCH = 5, 3, 32
SMALL = {"critic_width": 32, "atoms": 21, "v_min": -20.0, "v_max": 20.0, "actor_width": 16}


def make(**fields: object) -> CrossQSAC:
    config = dataclasses.replace(ALGORITHMS["crossq-sac"].presets["cpu"](), **(SMALL | fields))
    agent = CrossQSAC(config, AgentSpec(obs_dim=OBS, action_dim=ACTION))
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():  # away from the start, so that no factor is 1 or 0
        for tensor in agent.policy.named.values():
            tensor.add_(0.3 * torch.randn(tensor.shape, generator=draw))
        for name, tensor in agent.gaussian.statistics.items():
            tensor.add_(0.5 * torch.rand(tensor.shape, generator=draw) + 0.3 * ("mean" in name))
    return agent


def rows() -> torch.Tensor:
    rows = torch.randn(1, BATCH, 2 * OBS + ACTION + 2, generator=torch.Generator().manual_seed(2))
    rows[..., :OBS] *= torch.tensor([0.01, 1.0, 30.0, 1.0, 3.0])  # both clips of r are reached
    rows[..., OBS + ACTION + 1] = 1.0
    return rows


def plain(agent: CrossQSAC, obs: torch.Tensor, noise: torch.Tensor, p: dict[str, torch.Tensor], train: bool):  # type: ignore[no-untyped-def]
    """Actions and log pi by the equations, with the statistics of each layer's input."""
    x, seen, warm = obs, {}, bool(agent.gaussian.passes >= agent.config.renorm_warmup)
    for l in range(3):
        x = torch.relu(x) if l else x
        scale, bias = p[f"norm{l}.scale"], p[f"norm{l}.bias"]
        mean, var = (agent.gaussian.statistics[f"norm{l}.{kind}"].clone() for kind in ("mean", "var"))
        seen |= {f"norm{l}.mean": x.mean(0).detach(), f"norm{l}.var": x.var(0, unbiased=False).detach()}
        if train:
            x = renorm_autograd(x, scale, bias, mean, var, warm, agent.critic.constants)
        else:
            x = scale * (x - mean) / torch.sqrt(var + agent.config.renorm_eps) + bias
        x = x @ p[f"linear{l}.weight"] + p[f"linear{l}.bias"]
    mean, raw = x.chunk(2, -1)
    log_std = -20 + 11 * (torch.tanh(raw) + 1)
    x = mean + log_std.exp() * noise
    log_normal = (
        -0.5 * noise**2 - 0.5 * math.log(2 * math.pi) - log_std
    ).double()  # of x: its distance to the mean rounds
    log_pi = log_normal - torch.log(1 - torch.tanh(x.double()) ** 2)
    return torch.tanh(x), log_pi.sum(-1).float(), seen


@pytest.mark.parametrize(("warmup", "form"), [(0, "ioffe"), (0, "crossq"), (100, "crossq")])
def test_one_update_of_the_actor_equals_the_equations_written_out(warmup: int, form: str) -> None:
    agent = make(renorm_warmup=warmup, renorm_form=form, actor_every=1, alpha_init=0.3)
    batch = rows()
    p = {name: tensor.detach().clone().requires_grad_() for name, tensor in agent.policy.named.items()}
    before = {name: tensor.clone() for name, tensor in agent.gaussian.statistics.items()}
    noise = 0.3 * torch.randn(BATCH, ACTION, generator=torch.Generator().manual_seed(3))
    columns = agent.layout.views(batch[0])
    action, log_pi, seen = plain(agent, columns.obs, noise, p, train=True)
    critic = {name: tensor.detach() for name, tensor in agent.critic.parameters.named.items()}
    logits = evaluate_autograd(
        torch.cat([columns.obs, action], -1), critic, agent.critic.statistics, 3, agent.config.renorm_eps
    )
    q = (logits.softmax(-1) * agent.y_N).sum(-1).amin(0)
    loss = (0.3 * log_pi - q).mean()
    loss.backward()
    agent._actor_step(columns, noise, torch.zeros(()))
    metrics = agent.read_metrics()
    torch.testing.assert_close(metrics["actor_loss"], loss.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(metrics["control_energy"], log_pi.detach().mean(), rtol=1e-4, atol=1e-3)
    for name, tensor in agent.policy.named.items():
        largest = float(p[name].grad.abs().max())
        torch.testing.assert_close(tensor.grad, p[name].grad, rtol=1e-3, atol=1e-4 * largest, msg=name)
    # The temperature descends log_alpha (A - mean log pi): its gradient knows no alpha.
    slope = agent.log_alpha.grad
    assert slope is not None and float(slope) == pytest.approx(ACTION - log_pi.mean().item(), rel=1e-4)
    for name, running in agent.gaussian.statistics.items():
        torch.testing.assert_close(running, 0.99 * before[name] + 0.01 * seen[name], rtol=1e-4, atol=1e-4, msg=name)
    assert agent.gaussian.passes == 1


def test_it_acts_by_running_statistics_and_starts_with_a_tiny_standard_deviation() -> None:
    agent = make()
    obs, noise = torch.randn(6, OBS), torch.randn(6, ACTION)
    named = {name: tensor.detach() for name, tensor in agent.policy.named.items()}
    expected, _, _ = plain(agent, obs, noise, named, train=False)
    policy = ALGORITHMS["crossq-sac"].make_policy(agent.config, OBS, ACTION)
    policy.load_weights(agent.policy_weights())
    torch.testing.assert_close(policy.act(obs, noise), expected, rtol=1e-4, atol=1e-5)  # type: ignore[union-attr, arg-type, call-arg]
    fresh = CrossQSAC(agent.config, AgentSpec(obs_dim=OBS, action_dim=ACTION))
    std = fresh.gaussian.rollout(torch.zeros(1, OBS), torch.zeros(1, ACTION), fresh.policy.named).sigma_mean
    assert float(std) == pytest.approx(math.exp(-9.0), rel=1e-4)


def test_a_skipped_step_leaves_the_running_statistics() -> None:
    agent, bad = make(actor_every=1), rows()
    bad[:, 3, 0] = float("nan")
    before = agent.state()
    agent.update(bad)
    assert all(torch.equal(agent.state()[name], before[name]) for name in before if name.startswith("actor."))
