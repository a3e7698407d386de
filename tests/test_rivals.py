"""FLAC, FlowRL, QSM, QVPO and DIME against slow, plain forms: one row at a time, on the joined input, in float64."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm

from algorithms import ALGORITHMS
from algorithms.actor_critic import ActorBatch
from algorithms.interface import AgentSpec
from algorithms.rivals.flowrl import behaviour_loss, behaviour_q, behaviour_v

OBS, ACTION, ROWS = 3, 2, 6
TINY: dict[str, Any] = {"critic_width": 16, "actor_width": 8, "atoms": 11, "v_min": -20.0, "v_max": 20.0}
OWN: dict[str, dict[str, Any]] = {
    "flac": {"flow_steps": 2},
    "flowrl": {"behaviour_width": 8, "behaviour_layers": 2},
    "qsm": {"diffusion_steps": 4, "q_scale": 0.7},
    "qvpo": {"diffusion_steps": 4, "train_samples": 3, "uniform_actions": 2, "candidates": 3, "entropy_updates": 10},
    "dime": {"diffusion_steps": 4},
}
NAMES = tuple(OWN)
CENTRE = (0.3, -0.4)  # of the two quadratic Q's below


def make(name: str, own: Mapping[str, Any] = {}) -> Any:
    """An agent, tiny but for ``own``, whose parameters are far from their start, so that no factor is 0 or 1."""
    algorithm = ALGORITHMS[name]
    config = dataclasses.replace(algorithm.presets["cpu"](), **(TINY | OWN[name] | own))
    agent: Any = algorithm.make_agent(config, AgentSpec(obs_dim=OBS, action_dim=ACTION, seed=2))
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in agent.policy.named.values():
            tensor.add_(0.3 * torch.randn(tensor.shape, generator=draw))
    return agent


def named(agent: Any) -> dict[str, np.ndarray]:
    return {name: tensor.detach().double().numpy() for name, tensor in agent.policy.named.items()}


def quadratic(obs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    """Two Q's (2, R) of which the second is larger where actions are."""
    return torch.stack([-scale * (action - c).square().sum(-1) for c, scale in zip(CENTRE, (3.0, 0.5))])


def quadratic_row(action: np.ndarray) -> list[float]:
    return [-scale * float(((action - c) ** 2).sum()) for c, scale in zip(CENTRE, (3.0, 0.5))]


def batch(agent: Any, alpha: float = 0.3) -> ActorBatch:
    draw = torch.Generator().manual_seed(3)
    obs, action = torch.randn(ROWS, OBS, generator=draw), torch.rand(ROWS, ACTION, generator=draw) * 2 - 1
    return ActorBatch(obs, action, agent.draw_loss_noise(ROWS), torch.tensor(alpha), quadratic)


def numpy(*tensors: torch.Tensor) -> list[np.ndarray]:
    return [tensor.detach().double().numpy() for tensor in tensors]


def mish(x: np.ndarray) -> np.ndarray:
    return np.asarray(x * np.tanh(np.log1p(np.exp(x))))


def gelu(x: np.ndarray) -> np.ndarray:
    return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


def layer_norm_elu(p: dict[str, np.ndarray], l: int, x: np.ndarray) -> np.ndarray:
    x = (x - x.mean()) / math.sqrt(x.var() + 1e-6) * p[f"norm{l}.scale"] + p[f"norm{l}.bias"]
    return np.where(x > 0, x, np.expm1(x))


def network(p: dict[str, np.ndarray], s: np.ndarray, x: np.ndarray, code: np.ndarray, act: Callable[..., Any]) -> Any:
    """The network on the joined input (state, x, code)."""
    first = np.concatenate([p["obs.weight"], p["action.weight"], p["time.weight"]])
    h, l = act(0, np.concatenate([s, x, code]) @ first + p["in.bias"]), 1
    while f"hidden{l}.weight" in p:
        h, l = act(l, h @ p[f"hidden{l}.weight"] + p[f"hidden{l}.bias"]), l + 1
    return h @ p["out.weight"] + p["out.bias"]


def flow_row(p: dict[str, np.ndarray], s: np.ndarray, noise: np.ndarray, steps: int) -> tuple[np.ndarray, float]:
    """x_1 and the kinetic energy."""

    def v(x: np.ndarray, t: float) -> np.ndarray:
        return np.asarray(network(p, s, x, np.array([t]), lambda l, h: layer_norm_elu(p, l, h)))

    x, energy, dt = np.clip(noise, -1, 1), 0.0, 1 / steps
    for k in range(steps):
        middle = v(x + v(x, k * dt) * dt / 2, k * dt + dt / 2)
        x, energy = x + middle * dt, energy + 0.5 * float((middle**2).sum()) * dt
    return x, energy


def sinusoid(k: int, size: int) -> np.ndarray:
    angle = [k * math.exp(-math.log(10_000) * i / (size // 2)) for i in range(size // 2)]
    return np.array([*map(math.sin, angle), *map(math.cos, angle)])


def predict(p: dict[str, np.ndarray], s: np.ndarray, x: np.ndarray, k: int, size: int) -> np.ndarray:
    """QSM's (64) or QVPO's (32) denoiser."""
    code = mish(sinusoid(k, size) @ p["code0.weight"] + p["code0.bias"])
    code = code @ p["code1.weight"] + p["code1.bias"] if size == 32 else code
    return np.asarray(network(p, s, x, code, lambda l, h: mish(h)))


def vp(k: int, steps: int) -> float:
    return 1 - math.exp(-0.1 / steps - 0.5 * 9.9 * (2 * (k + 1) - 1) / steps**2)


def cosine_beta(k: int, steps: int) -> float:
    kept = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in (k, k + 1)]
    return min(1 - kept[1] / kept[0], 0.999)


def kept(beta: Callable[[int, int], float], k: int, steps: int) -> float:
    return math.prod(1 - beta(i, steps) for i in range(k + 1))


def qsm_row(p: dict[str, np.ndarray], s: np.ndarray, noise: np.ndarray, steps: int) -> np.ndarray:
    x = noise[0]
    for k in range(steps - 1, -1, -1):
        beta = vp(k, steps)
        x = (x - beta / math.sqrt(1 - kept(vp, k, steps)) * predict(p, s, x, k, 64)) / math.sqrt(1 - beta)
        x = np.clip(x + (math.sqrt(beta) * noise[steps - k] if k > 0 else 0), -1, 1)
    return x


def qvpo_row(p: dict[str, np.ndarray], s: np.ndarray, noise: np.ndarray, steps: int) -> np.ndarray:
    x = noise[0]
    for k in range(steps - 1, -1, -1):
        beta, now = cosine_beta(k, steps), kept(cosine_beta, k, steps)
        before = now / (1 - beta)
        first = np.clip((x - math.sqrt(1 - now) * predict(p, s, x, k, 32)) / math.sqrt(now), -1, 1)
        mean = (beta * math.sqrt(before) * first + (1 - before) * math.sqrt(1 - beta) * x) / (1 - now)
        variance = beta * (1 - before) / (1 - now)
        x = np.clip(mean + (math.sqrt(variance) * noise[steps - k] if k > 0 else 0), -1, 1)
    return x


def dime_row(p: dict[str, np.ndarray], s: np.ndarray, noise: np.ndarray, steps: int) -> tuple[np.ndarray, float, float]:
    """tanh x_T, the run cost and log N(x_0)."""
    waves = np.linspace(0.1, 100, len(p["phase"]))
    x, log_ratio = 2.5 * noise[0], 0.0
    log_prior = float(norm.logpdf(x, 0, 2.5).sum())
    for k in range(steps):
        angle = k * waves + p["phase"]
        code = gelu(np.concatenate([np.sin(angle), np.cos(angle)]) @ p["code0.weight"] + p["code0.bias"])
        code = code @ p["code1.weight"] + p["code1.bias"]
        length = 0.999 * math.cos(math.pi / 2 * (1.008 - (steps - k) / steps) / 1.008) ** 2 + 0.001
        eta = np.log1p(np.exp(p["dt"])) * length / np.log1p(np.exp(p["friction"]))
        scale = np.sqrt(2 * eta)
        mean = x + eta * (-x / 2.5**2 + network(p, s, x, code, lambda l, h: gelu(h)))
        following = mean + scale * noise[k + 1]
        back = following + eta * (-following / 2.5**2)
        log_ratio += float((norm.logpdf(x, back, scale) - norm.logpdf(following, mean, scale)).sum())
        x = following
    return np.tanh(x), -log_ratio - float(np.log(1 - np.tanh(x) ** 2).sum()), log_prior


def act_row(name: str, agent: Any, p: dict[str, np.ndarray], s: np.ndarray, noise: np.ndarray) -> np.ndarray:
    steps = getattr(agent.config, "diffusion_steps", 0)
    if name in ("flac", "flowrl"):
        return np.tanh(flow_row(p, s, noise, agent.config.flow_steps)[0])
    return (
        {"qsm": qsm_row, "qvpo": qvpo_row}[name](p, s, noise, steps)
        if name != "dime"
        else dime_row(p, s, noise, steps)[0]
    )


@pytest.mark.parametrize("name", NAMES)
def test_it_acts_as_the_plain_form_does_one_row_at_a_time(name: str) -> None:
    agent = make(name)
    policy: Any = ALGORITHMS[name].make_policy(agent.config, OBS, ACTION)
    policy.load_weights(agent.policy_weights())
    obs = batch(agent).obs_RO
    noise = torch.from_numpy(policy.sample_noise(np.random.default_rng(0), ROWS))
    expected = []
    for s, z in zip(*numpy(obs, noise)):
        if name != "qvpo":
            expected.append(act_row(name, agent, named(agent), s, z))
            continue
        found = [act_row(name, agent, named(agent), s, one) for one in z]
        x = torch.tensor(np.concatenate([np.tile(s, (3, 1)), found], 1)).float()
        q = critics(agent, x).amin(0)
        expected.append(found[int(q.argmax())])
    np.testing.assert_allclose(policy.act(obs, noise).numpy(), np.array(expected), atol=1e-5)


def critics(agent: Any, x_RI: torch.Tensor) -> torch.Tensor:
    """E[Z_j] (2, R) by running statistics."""
    from softgac_twin import evaluate_autograd

    p = {name: tensor.detach() for name, tensor in agent.critic.parameters.named.items()}
    logits = evaluate_autograd(x_RI, p, agent.critic.statistics, 3, agent.config.renorm_eps)
    return (logits.softmax(-1) * agent.y_N).sum(-1)


def test_flac_pays_its_kinetic_energy() -> None:
    agent = make("flac")
    given = batch(agent)
    rows = [flow_row(named(agent), s, z, 2) for s, z in zip(*numpy(given.obs_RO, given.noise))]
    rollout = agent.actor.rollout(given.obs_RO, given.noise, agent.policy.named)
    np.testing.assert_allclose(rollout.cost_R.detach(), [energy for _, energy in rows], rtol=1e-5)
    expected = np.mean([0.3 * energy - min(quadratic_row(np.tanh(x))) for x, energy in rows])
    loss = agent.actor.loss(given, agent.policy.named)
    assert loss.value.item() == pytest.approx(expected, rel=1e-5) and agent.actor.budget == 0.5 * ACTION
    (slope,) = torch.autograd.grad(
        agent.actor.temperature_loss(agent.log_alpha, agent.actor.budget, loss.cost), agent.log_alpha
    )
    assert slope.item() == pytest.approx(0.5 * ACTION - np.mean([energy for _, energy in rows]), rel=1e-5)


def test_flowrl_is_drawn_to_the_replays_actions_by_what_they_are_better() -> None:
    agent = make("flowrl")
    given, p = batch(agent), named(agent)
    buffer = behaviour_q(torch.cat([given.obs_RO, given.action_BA], -1), agent.behaviour.named)
    gains, losses, errors = [], [], []
    for s, a, (z, start, t), b in zip(*numpy(given.obs_RO, given.action_BA, given.noise, buffer.amin(0))):
        q = min(quadratic_row(np.tanh(flow_row(p, s, z, 1)[0])))
        x_0, time = np.clip(start, -1, 1), t[0]
        code = np.array([time])
        v = network(p, s, time * a + (1 - time) * x_0, code, lambda l, h: layer_norm_elu(p, l, h))
        gains.append(max(0.0, b - q))
        losses.append(-q)
        errors.append(((v - (a - x_0)) ** 2).mean())
    c, gain = agent.config, np.array(gains)
    w = np.clip(c.match_weight * np.exp(gain - gain.mean()), c.match_least, c.match_most)
    assert len(set(w)) > 2 and (c.match_weight, c.match_least, c.match_most) == (0.8, 0.008, 8.0)
    loss = agent.actor.loss(given, agent.policy.named).value.item()
    assert loss == pytest.approx(float((np.array(losses) + w * np.array(errors)).mean()), rel=1e-4)


def test_flowrls_replay_critic_and_value_follow_their_equations() -> None:
    agent, draw = make("flowrl"), torch.Generator().manual_seed(4)
    q, target, v, slow = (torch.randn(*shape, generator=draw) for shape in ((2, ROWS), (ROWS,), (ROWS,), (ROWS,)))
    expected = 0.0
    for i in range(ROWS):
        d = float(slow[i] - v[i])
        expected += (0.9 if d > 0 else 0.1) * d**2 / ROWS + sum(
            float(q[j, i] - target[i]) ** 2 for j in range(2)
        ) / ROWS
    assert behaviour_loss(q, target, v, slow, 0.9).item() == pytest.approx(expected, rel=1e-5)
    for tensor in agent.behaviour.named.values():  # so that no norm is the plain one, and no bias 0
        tensor.detach().add_(0.3 * torch.randn(tensor.shape, generator=draw))
    p, x = numpy_of(agent.behaviour.named), torch.randn(ROWS, OBS + ACTION, generator=draw)

    def layer(name: str, j: int, h: np.ndarray) -> np.ndarray:
        return np.asarray(h @ p[f"{name}.weight"][j] + p[f"{name}.bias"][j, 0])

    def normed(name: str, j: int, h: np.ndarray) -> np.ndarray:
        h = (h - h.mean()) / math.sqrt(h.var() + 1e-6)
        return np.asarray(h * p[f"{name}.scale"][j, 0] + p[f"{name}.shift"][j, 0])

    for j, i in ((0, 0), (1, 5)):  # two hidden layers: the critic has one linear layer more than the value
        h = layer("q0", j, x[i].double().numpy())
        h = layer("q1", j, normed("q0", j, h))
        h = layer("q2", j, gelu(normed("q1", j, h)))
        h = layer("q3", j, normed("q2", j, h))
        assert behaviour_q(x, agent.behaviour.named)[j, i].item() == pytest.approx(h.item(), rel=1e-4, abs=1e-5)
        h = layer("v0", 0, x[i, :OBS].double().numpy())
        h = layer("v1", 0, normed("v0", 0, gelu(h)))
        h = layer("v2", 0, normed("v1", 0, gelu(h)))
        assert behaviour_v(x[:, :OBS], agent.behaviour.named)[i].item() == pytest.approx(h.item(), rel=1e-4, abs=1e-5)
    rows = torch.randn(2, 8, 2 * OBS + ACTION + 2, generator=draw)
    before = {name: tensor.clone() for name, tensor in agent.slow.items()}
    agent.update(rows)
    for name, tensor in agent.slow.items():
        torch.testing.assert_close(tensor, 0.05 * before[name] + 0.95 * agent.behaviour.named[name].detach())


def test_flowrls_replay_critic_does_not_feed_on_its_own_errors() -> None:
    # Without the norms its largest value is above 200 after 300 of these updates, and above 1,000 after 450.
    own = {"behaviour_width": 64, "behaviour_layers": 3, "critic_lr": 3e-3}
    agent, draw = make("flowrl", own), torch.Generator().manual_seed(2)
    rows = torch.randn(1, 256, 2 * OBS + ACTION + 2, generator=draw)
    columns = agent.layout.views(rows[0])
    columns.reward.zero_()  # so that every return is 0
    columns.discount.fill_(1.0)
    for _ in range(450):
        agent.update(rows[:, torch.randperm(256, generator=draw)[:64]])
    assert behaviour_q(torch.cat([columns.obs, columns.action], -1), agent.behaviour.named).abs().max().item() < 20.0


def numpy_of(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.detach().double().numpy() for name, tensor in tensors.items()}


def test_qsm_matches_the_critics_slope_at_noised_actions_and_adds_noise_to_next_ones() -> None:
    agent = make("qsm")
    given, p, errors = batch(agent), named(agent), []
    for s, a, z in zip(*numpy(given.obs_RO, given.action_BA, given.noise)):
        k = int(z[0] * 4)
        now = kept(vp, k, 4)
        x = math.sqrt(now) * a + math.sqrt(1 - now) * z[1:]
        slope = np.mean([-2 * scale * (x - c) for c, scale in zip(CENTRE, (3.0, 0.5))], 0)
        errors.append(((predict(p, s, x, k, 64) - -0.7 * slope) ** 2).mean())
    loss = agent.actor.loss(given, agent.policy.named).value.item()
    assert loss == pytest.approx(np.mean(errors), rel=1e-4)
    noise = agent.draw_noise(ROWS)
    found = agent.actor.rollout(given.obs_RO, noise, agent.policy.named).action_RA.detach()
    for s, z, action in zip(*numpy(given.obs_RO, noise, found)):
        np.testing.assert_allclose(action, np.clip(qsm_row(p, s, z, 4) + 0.1 * z[-1], -1, 1), atol=1e-5)


@pytest.mark.parametrize(("updates", "uniform_weight"), [(0, 0.02), (4, 0.0128), (10, 0.002), (1e9, 0.002)])  # of 10
def test_qvpo_learns_its_best_sample_by_its_advantage_and_uniform_actions_beside_it(
    updates: float, uniform_weight: float
) -> None:
    agent = make("qvpo")
    agent.critic_adam.count.fill_(updates)
    given, p, errors = batch(agent), named(agent), []
    for s, z in zip(*numpy(given.obs_RO, given.noise)):
        noise, eps, uniform, steps = np.split(z, np.cumsum([3 * 4 * 2, 3 * 2, 2 * 2]))
        samples = [qvpo_row(p, s, one, 4) for one in noise.reshape(3, 4, 2)]
        q = [min(quadratic_row(sample)) for sample in samples]
        w = max(q) - np.mean(q)
        actions = [samples[int(np.argmax(q))], *(2 * uniform.reshape(2, 2) - 1)]
        for action, e, u, weight in zip(actions, eps.reshape(3, 2), steps, (w, uniform_weight * w, uniform_weight * w)):
            k = int(u * 4)
            now = kept(cosine_beta, k, 4)
            x = math.sqrt(now) * action + math.sqrt(1 - now) * e
            errors.append(weight * ((predict(p, s, x, k, 32) - e) ** 2).mean())
    loss = agent.actor.loss(given, agent.policy.named).value.item()
    assert loss == pytest.approx(np.mean(errors), rel=1e-4)


def test_qvpos_next_actions_are_the_best_of_a_slow_copy() -> None:
    agent = make("qvpo")
    slow = numpy_of(agent.slow)  # made before the parameters were moved
    next_obs, noise = torch.randn(ROWS, OBS, generator=torch.Generator().manual_seed(5)), agent.draw_noise(ROWS)
    expected = []
    for s, z in zip(*numpy(next_obs, noise)):
        found = [qvpo_row(slow, s, one, 4) for one in z]
        q = critics(agent, torch.tensor(np.concatenate([np.tile(s, (3, 1)), found], 1)).float()).amin(0)
        expected.append(found[int(q.argmax())])
    np.testing.assert_allclose(agent._follow(next_obs, noise).action_RA, np.array(expected), atol=1e-5)
    agent.update(torch.randn(1, 8, 2 * OBS + ACTION + 2))
    for name, tensor in agent.slow.items():
        before, actor = torch.from_numpy(slow[name]).float(), agent.policy.named[name].detach()
        torch.testing.assert_close(tensor, before + 0.005 * (actor - before))


def test_dime_pays_a_bound_of_its_entropy_and_descends_the_mean_of_both_critics() -> None:
    agent = make("dime")
    given, p = batch(agent), named(agent)
    rows = [dime_row(p, s, z, 4) for s, z in zip(*numpy(given.obs_RO, given.noise))]
    costs = [run + prior for _, run, prior in rows]
    rollout = agent.actor.rollout(given.obs_RO, given.noise, agent.policy.named)
    np.testing.assert_allclose(rollout.cost_R.detach(), costs, rtol=1e-4, atol=1e-4)
    expected = np.mean([0.3 * cost - np.mean(quadratic_row(row[0])) for cost, row in zip(costs, rows)])
    assert agent.actor.loss(given, agent.policy.named).value.item() == pytest.approx(expected, rel=1e-4)
    # Held at 4 A is the run cost: the whole cost at that and the mean of log N(x_0).
    draws = norm.logpdf(2.5 * np.random.default_rng(0).normal(size=(200_000, ACTION)), 0, 2.5).sum(-1)
    assert agent.actor.budget == pytest.approx(4 * ACTION + draws.mean(), abs=0.02)


def test_dimes_cost_is_at_least_minus_the_entropy_of_the_action() -> None:
    """With a network that is 0, a path starts and stays in its prior: the action's entropy is that of tanh of N(0, 2.5^2)."""
    agent = make("dime")
    with torch.no_grad():
        for name in ("out.weight", "out.bias"):
            agent.policy.named[name].zero_()
        cost = agent.actor.rollout(torch.zeros(20_000, OBS), agent.draw_noise(20_000), agent.policy.named).cost_R
    x = np.random.default_rng(0).normal(size=200_000) * 2.5
    entropy = -norm.logpdf(x, 0, 2.5).mean() + np.log(1 - np.tanh(x) ** 2).mean()
    assert -0.1 < cost.mean().item() + ACTION * entropy < 0.2


@pytest.mark.parametrize("name", NAMES)
def test_preset_paper_has_the_papers_critics_and_cpu_those_of_softgac(name: str) -> None:
    presets, softgac = ALGORITHMS[name].presets, ALGORITHMS["softgac"].presets
    critic = ("critic_width", "critic_layers", "atoms", "v_min", "v_max", "gamma", "critic_lr", "critic_beta1")
    critic += ("critic_entropy", "actor_every", "actor_lr", "renorm_form", "renorm_decay", "renorm_warmup")
    for preset in ("cpu", "paper"):
        ours, theirs = presets[preset](), softgac[preset]()
        assert [getattr(ours, field) for field in critic] == [getattr(theirs, field) for field in critic]
    assert presets["paper"]() == ALGORITHMS[name].config_class() and presets["cpu"]().actor_width == 128
