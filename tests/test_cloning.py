"""Behaviour cloning, of all episodes and of the best: its loss against a slow twin, its threshold and its policy."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from imitation_data import Recorded, batch_of, episode, summary_of, two_behaviours
from test_imitation import SMALL, fitted, same, spec

from algorithms.imitation.cloning import BehaviourCloning, CloningPolicy, PercentCloning
from algorithms.imitation.config import CloningConfig, PercentCloningConfig
from algorithms.interface import AgentSpec, PlanRequest


def slow_error(
    agent: BehaviourCloning, episodes: list[Recorded], noise_BP: torch.Tensor, percent: float
) -> tuple[float, int]:
    """The summed error of a batch that is all of the dataset, one number at a time, and how many points it is of."""
    config, returns = agent.config, [math.fsum(float(r) for r in e.reward_T) for e in episodes]
    ranked, place = sorted(returns), (1 - percent / 100) * (len(returns) - 1)
    low = int(place)
    threshold = ranked[low] + (place - low) * (ranked[min(low + 1, len(ranked) - 1)] - ranked[low])
    rows = [[float(x) for x in row] for e in episodes for row in e.obs_TO]
    mean = [math.fsum(column) / len(rows) for column in zip(*rows)]
    std = [math.sqrt(math.fsum((x - m) ** 2 for x in column) / len(rows)) for column, m in zip(zip(*rows), mean)]
    layers = [
        (agent.parameters.named[f"linear{l}.weight"].tolist(), agent.parameters.named[f"linear{l}.bias"].tolist())
        for l in range(config.layers + 1)
    ]
    total, counted = 0.0, 0
    for b, own in enumerate(episodes):
        if returns[b] < threshold - 1e-9:
            continue
        for p in range(config.points):
            t = int(float(noise_BP[b, p]) * len(own.reward_T))
            obs = [float(x) for x in own.obs_TO[t]]
            angles = [x * math.pi / 4 * 2**k for x in obs[: config.obs_fourier_dims] for k in range(config.obs_fourier)]
            x = [(o - m) / s for o, m, s in zip(obs, mean, std)] + [f(a) for f in (math.sin, math.cos) for a in angles]
            for l, (weight, bias) in enumerate(layers):
                x = [bias[j] + math.fsum(x[i] * weight[i][j] for i in range(len(x))) for j in range(len(bias))]
                x = [math.tanh(v) if l == config.layers else max(v, 0.0) for v in x]
            action = [float(a) for a in own.action_TA[t]]
            total += math.fsum((one - other) ** 2 for one, other in zip(x, action)) / len(action)
            counted += 1
    return total, counted


@pytest.mark.parametrize(("agent_class", "percent", "imitated"), [(BehaviourCloning, 100, 12), (PercentCloning, 30, 4)])
def test_the_whole_loss_is_that_of_a_slow_twin(
    agent_class: type[BehaviourCloning], percent: float, imitated: int
) -> None:
    draw = np.random.default_rng(0)
    lengths = draw.integers(1, 8, 12).tolist()
    episodes = [episode(draw.normal(size=(t, 3)), draw.uniform(-1, 1, (t, 2)), draw.normal(size=t)) for t in lengths]
    config = dataclasses.replace(SMALL, width=6, points=5, percent=percent, obs_fourier=2)
    agent, batch = agent_class(config, AgentSpec(obs_dim=3, action_dim=2)), batch_of(episodes)
    agent.fit(summary_of(episodes))
    agent.update([batch] * 5)  # away from where it starts
    kept = agent.generator.get_state()
    noise_BP = torch.rand(12, 5, generator=agent.generator)
    agent.generator.set_state(kept)
    loss = agent.losses(batch)
    total, counted = slow_error(agent, episodes, noise_BP, percent)
    assert counted == imitated * 5
    assert float(loss.value.detach()) == pytest.approx(total, rel=1e-4) and float(loss.weight) == counted
    assert float(loss.shared[0]) == pytest.approx(imitated / 12)
    agent.generator.set_state(kept)
    metrics = agent.update([batch])
    assert float(metrics["action_mse"]) == pytest.approx(total / counted, rel=1e-4)


def trained(config: CloningConfig, updates: int = 300) -> CloningPolicy:
    episodes = two_behaviours(40)
    agent = BehaviourCloning(config, spec())
    agent.fit(summary_of(episodes))
    agent.update([batch_of(episodes)] * updates)
    policy = CloningPolicy(config, 2, 1)
    policy.load_weights(agent.policy_weights())
    policy.reset(1)
    return policy


def answer(policy: CloningPolicy) -> float:
    return float(policy.act(np.array([[0.2, 0.0]], np.float32), np.zeros(1, np.float32))[0, 0])


def test_cloning_does_the_average_and_cloning_of_the_best_half_does_what_the_better_did() -> None:
    """A quarter of the episodes act -.6 and return 20 times as much as the others, which act +.6."""
    assert answer(trained(SMALL)) == pytest.approx(0.75 * 0.6 - 0.25 * 0.6, abs=0.1)
    assert answer(trained(dataclasses.replace(SMALL, percent=20))) == pytest.approx(-0.6, abs=0.05)


def test_the_threshold_lets_the_best_share_pass_and_all_that_tie_with_it() -> None:
    returns = [0.1 * i for i in range(100)]
    episodes = [episode(np.zeros((3, 2)), np.zeros((3, 1)), np.array([r, 0, 0])) for r in returns]
    for percent, expected in ((10, 10), (33, 33), (100, 100)):
        agent = PercentCloning(PercentCloningConfig(percent=percent, width=8), spec())
        agent.fit(summary_of(episodes))
        assert float(agent.update([batch_of(episodes)])["imitated"]) == pytest.approx(expected / 100)
    ties = [episode(np.zeros((3, 2)), np.zeros((3, 1)), np.array([r, 0, 0])) for r in [0.3] * 50 + [0.1] * 50]
    agent = PercentCloning(PercentCloningConfig(percent=10, width=8), spec())
    agent.fit(summary_of(ties))
    assert float(agent.update([batch_of(ties)])["imitated"]) == 0.5


def test_episodes_under_the_threshold_leave_no_trace_not_even_a_nan_of_theirs() -> None:
    episodes, config = two_behaviours(12), dataclasses.replace(SMALL, percent=20)
    spoiled = [
        e if float(e.reward_T.sum()) > 5 else dataclasses.replace(e, action_TA=e.action_TA * np.nan) for e in episodes
    ]
    states = []
    for given_episodes in (episodes, spoiled):
        agent = PercentCloning(config, spec())
        agent.fit(summary_of(episodes))
        metrics = agent.update([batch_of(given_episodes)] * 3)
        assert float(metrics["nonfinite"]) == 0
        states.append(agent.state())
    assert same(*states)


def test_a_batch_without_an_episode_to_imitate_changes_nothing_and_is_no_fault() -> None:
    agent, episodes = fitted("percent-bc"), two_behaviours(20)
    agent.update([batch_of(episodes)] * 3)
    before = agent.state()
    metrics = agent.update([batch_of([e for e in episodes if float(e.reward_T.sum()) < 5])])
    after = agent.state()
    assert float(metrics["nonfinite"]) == 0 and bool(metrics["action_mse"].isnan())
    assert same(before, after, but=("generator", "updates"))


def test_a_cloned_policy_cannot_be_asked_for_anything() -> None:
    policy = CloningPolicy(SMALL, 2, 1)
    env_K, obs_KO, rng = np.arange(2), np.zeros((2, 2), np.float32), np.random.default_rng(0)
    stamps = policy.begin(env_K, obs_KO, rng)
    assert [stamp.mode for stamp in stamps] == ["", ""] and all(np.isnan(stamp.target) for stamp in stamps)
    policy.aim = PlanRequest(target_return=3.0)
    with pytest.raises(ValueError, match="can aim at nothing"):
        policy.begin(env_K, obs_KO, rng)
    with pytest.raises(ValueError, match="another policy's"):
        policy.load_state({"step": np.zeros(1)})


def test_a_policy_that_is_cloned_sees_the_features_of_the_regression_in_torch_and_in_its_graph() -> None:
    import onnxruntime

    agent = BehaviourCloning(SMALL, spec())
    agent.fit(summary_of(two_behaviours(6)))
    policy, weights = CloningPolicy(SMALL, 2, 1), agent.policy_weights()
    policy.load_weights(weights)
    obs_BO = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    scored = (obs_BO - weights["obs_mean"]) / weights["obs_std"]
    angle = torch.stack([obs_BO[:, i] * math.pi / 4 * 2**k for i in range(2) for k in range(4)], 1)
    x = torch.cat([scored, angle.sin(), angle.cos()], 1)
    for l in range(3):
        x = x @ weights[f"linear{l}.weight"] + weights[f"linear{l}.bias"]
        x = x.tanh() if l == 2 else x.relu()
    torch.testing.assert_close(policy.act_on(obs_BO), x)
    session = onnxruntime.InferenceSession(policy.onnx_model(), providers=["CPUExecutionProvider"])
    used = {entry.name for entry in session.get_inputs()}
    given = {name: tensor.numpy() for name, tensor in weights.items() if name in used}
    (action,) = session.run(["action"], given | {"obs": obs_BO.numpy()})
    np.testing.assert_allclose(action, x.numpy(), atol=1e-6)
