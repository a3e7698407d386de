"""The decision transformer: its network against a plain one, what it is told, and that it does what is asked."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from imitation_data import batch_of, episode, summary_of, two_behaviours

from algorithms.imitation.agent import draw_segments
from algorithms.imitation.causal_transformer import Window, head_outputs, initial_parameters
from algorithms.imitation.config import TransformerConfig
from algorithms.imitation.decision_transformer import DecisionTransformer, DecisionTransformerPolicy
from algorithms.interface import AgentSpec, PlanRequest

SMALL = TransformerConfig(
    lr=3e-3, warmup=10, grad_clip=1.0, context=4, width=16, layers=2, dropout=0.0, max_steps=40, obs_fourier=0
)
Parameters = dict[str, torch.Tensor]


def predict(p: Parameters, window: Window, **settings: Any) -> torch.Tensor:
    return torch.tanh(head_outputs(p, window, **settings))


def plain_predict(p: Parameters, window: Window, layers: int, heads: int) -> torch.Tensor:
    """Token by token and head by head, every token through every block, as the paper's figure reads."""

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ p[f"{name}.weight"] + p[f"{name}.bias"]

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean()
        return centred / (centred.square().mean() + 1e-5).sqrt() * p[f"{name}.scale"] + p[f"{name}.shift"]

    actions = []
    for to_go_S, obs_SO, action_SA, time_S in zip(*window):
        tokens = []
        for s in range(len(to_go_S)):
            for name, value in (("to_go", to_go_S[s : s + 1]), ("state", obs_SO[s]), ("action", action_SA[s])):
                tokens.append(norm("embedded", linear(name, value) + p["time.weight"][time_S[s]]))
        for l in range(layers):
            seen = [norm(f"block{l}.seen", x) for x in tokens]
            mixed = []
            for t in range(len(tokens)):
                parts = []
                for h in range(heads):
                    q, k, v = zip(
                        *[[y.chunk(heads)[h] for y in linear(f"block{l}.qkv", x).chunk(3)] for x in seen[: t + 1]]
                    )
                    share = torch.stack([q[t] @ other / len(other) ** 0.5 for other in k]).softmax(0)
                    parts.append(sum(weight * value for weight, value in zip(share, v)))
                mixed.append(tokens[t] + linear(f"block{l}.mix", torch.cat(parts)))
            tokens = [
                x + linear(f"block{l}.fall", torch.relu(linear(f"block{l}.rise", norm(f"block{l}.mixed", x))))
                for x in mixed
            ]
        actions.append(torch.stack([torch.tanh(linear("head", norm("last", x))) for x in tokens[1::3]]))
    return torch.stack(actions)


def lively_parameters(layers: int = 2, width: int = 12, seed: int = 0) -> Parameters:
    """Not near zero, so that every part matters."""
    draw = torch.Generator().manual_seed(seed)
    initial = initial_parameters(3, 2, width=width, layers=layers, max_steps=50, draw=draw)
    return {name: tensor + 0.4 * torch.randn(tensor.shape, generator=draw) for name, tensor in initial.items()}


def window_of(draw: torch.Generator, batch: int, steps: int) -> Window:
    start = torch.randint(0, 40, (batch, 1), generator=draw)
    return Window(
        to_go_BS=torch.randn(batch, steps, generator=draw),
        obs_BSX=torch.randn(batch, steps, 3, generator=draw),
        action_BSA=torch.randn(batch, steps, 2, generator=draw),
        time_BS=start + torch.arange(steps),
    )


@pytest.mark.parametrize(("layers", "heads"), [(1, 1), (2, 3), (3, 1)])
def test_the_network_is_that_of_the_paper_with_every_token_through_every_block(layers: int, heads: int) -> None:
    parameters = lively_parameters(layers)
    window = window_of(torch.Generator().manual_seed(1), 2, 4)
    fast = predict(parameters, window, layers=layers, heads=heads, drop=None)
    torch.testing.assert_close(fast, plain_predict(parameters, window, layers, heads), rtol=1e-4, atol=1e-5)


def test_an_action_depends_on_what_came_before_it_and_on_nothing_after() -> None:
    parameters, draw = lively_parameters(), torch.Generator().manual_seed(1)
    one, other = window_of(draw, 1, 5), window_of(draw, 1, 5)
    for s in range(5):
        mixed = Window(*[torch.cat([a[:, : s + 1], b[:, s + 1 :]], 1) for a, b in zip(one, other)])
        mixed.action_BSA[:, s] = other.action_BSA[:, s]  # not even on the action that it stands for
        whole, seen = (predict(parameters, w, layers=2, heads=1, drop=None)[:, s] for w in (one, mixed))
        torch.testing.assert_close(seen, whole)
        assert s == 4 or not torch.allclose(
            *(predict(parameters, w, layers=2, heads=1, drop=None)[:, 4] for w in (one, mixed))
        )


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    context=st.integers(1, 6),
    segments=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_windows_stay_in_their_episode_and_carry_the_rewards_that_are_still_to_come(
    lengths: list[int], context: int, segments: int, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    episodes = [episode(draw.normal(size=(t, 2)), draw.normal(size=(t, 1)), draw.normal(size=t)) for t in lengths]
    noise_BP = torch.from_numpy(draw.random((len(lengths), segments), dtype=np.float32))
    drawn = draw_segments(batch_of(episodes), noise_BP, context, 2, 1)
    assert drawn.valid_GK.shape == (len(lengths) * segments, context)
    for g in range(len(lengths) * segments):
        own = episodes[g // segments]
        start = min(int(float(noise_BP[g // segments, g % segments]) * len(own.reward_T)), len(own.reward_T) - 1)
        for k in range(context):
            t = start + k
            assert bool(drawn.valid_GK[g, k]) == (t < len(own.reward_T))
            t = min(t, len(own.reward_T) - 1)
            assert int(drawn.time_GK[g, k]) == t
            assert float(drawn.to_go_GK[g, k]) == pytest.approx(float(own.reward_T[t:].sum(dtype=np.float64)), abs=1e-5)
            np.testing.assert_array_equal(drawn.obs_GKO[g, k], own.obs_TO[t])
            np.testing.assert_array_equal(drawn.action_GKA[g, k], own.action_TA[t])


def learned(updates: int = 150) -> DecisionTransformerPolicy:
    episodes = two_behaviours(32)
    agent = DecisionTransformer(SMALL, AgentSpec(obs_dim=2, action_dim=1))
    agent.fit(summary_of(episodes))
    agent.update([batch_of(episodes)] * updates)
    policy = DecisionTransformerPolicy(SMALL, 2, 1)
    policy.load_weights(agent.policy_weights())
    return policy


@pytest.fixture(scope="module")
def policy() -> DecisionTransformerPolicy:
    return learned()


def played(policy: DecisionTransformerPolicy, target: float | None, steps: int = 10) -> tuple[float, float]:
    """The first action and the return in the world that the data comes from: acting -.6 earns 1, else .05."""
    policy.aim = PlanRequest(target_return=target)
    policy.reset(1)
    draw, total, first, reward = np.random.default_rng(5), 0.0, 0.0, 0.0
    policy.begin(np.array([0]), np.zeros((1, 2), np.float32), draw)
    for step in range(steps):
        obs = (0.3 * draw.normal(size=(1, 2))).astype(np.float32)
        action = float(policy.act(obs, np.array([reward], np.float32))[0, 0])
        reward = 1.0 if action < 0 else 0.05
        first, total = (action if step == 0 else first), total + reward
    return first, total


def test_asked_for_a_high_return_it_does_what_earned_it_and_for_a_low_one_the_other(
    policy: DecisionTransformerPolicy,
) -> None:
    first, total = played(policy, 15.0)
    assert first == pytest.approx(-0.6, abs=0.15) and total == 10
    first, total = played(policy, 0.7)
    assert first == pytest.approx(0.6, abs=0.15) and total == pytest.approx(0.5)


def test_without_a_target_it_asks_for_the_best_of_the_data_and_the_stamp_says_so(
    policy: DecisionTransformerPolicy,
) -> None:
    best = summary_of(two_behaviours(32)).return_max
    policy.aim = PlanRequest()
    policy.reset(2)
    stamps = policy.begin(np.arange(2), np.zeros((2, 2), np.float32), np.random.default_rng(0))
    assert [stamp.target for stamp in stamps] == [best, best] and stamps[0].mode == "" and stamps[0].episode == -1
    assert played(policy, None)[1] == 10


class PlainPolicy:
    """One environment: keeps everything, and cuts its window anew at each step."""

    def __init__(self, weights: Parameters, asked: float) -> None:
        self.weights, self.asked = weights, asked
        self.obs: list[np.ndarray] = []
        self.rewards: list[float] = []
        self.actions: list[np.ndarray] = []

    def act(self, obs_O: np.ndarray, reward: float) -> np.ndarray:
        self.obs.append(obs_O)
        self.rewards.append(reward)
        first = max(0, len(self.obs) - SMALL.context)
        times = range(first, len(self.obs))
        weights = self.weights
        to_go = [self.asked - sum(self.rewards[1 : t + 1]) for t in times]
        obs = (torch.from_numpy(np.stack(self.obs[first:])) - weights["obs_mean"]) / weights["obs_std"]
        window = Window(
            to_go_BS=(torch.tensor(to_go, dtype=torch.float32) / weights["return_scale"])[None],
            obs_BSX=obs[None],
            action_BSA=torch.from_numpy(np.stack([*self.actions[first:], np.zeros(1, np.float32)]))[None],
            time_BS=torch.tensor(times)[None].clamp_max(SMALL.max_steps - 1),
        )
        action_A = predict(weights, window, layers=2, heads=1, drop=None)[0, -1].numpy()
        self.actions.append(action_A)
        return action_A


def lively_policy() -> tuple[DecisionTransformerPolicy, Parameters]:
    draw, policy = torch.Generator().manual_seed(3), DecisionTransformerPolicy(SMALL, 2, 1)
    weights = {
        name: tensor + 0.3 * torch.randn(tensor.shape, generator=draw) for name, tensor in policy._weights.items()
    }
    weights["obs_std"], weights["return_scale"] = torch.tensor([0.5, 2.0]), torch.tensor(7.0)
    policy.load_weights(weights)
    return policy, weights


def test_ragged_episodes_side_by_side_act_as_each_would_alone_also_past_the_contexts_edge() -> None:
    policy, weights = lively_policy()
    draw, rng = np.random.default_rng(0), np.random.default_rng(0)
    policy.reset(3)
    twins: dict[int, PlainPolicy] = {}
    for step in range(50):  # past max_steps too
        begun = np.array([e for e in range(3) if step == 0 or (e < 2 and step % (5 + 8 * e) == 0)], np.int64)
        policy.aim = PlanRequest(target_return=float(step))
        obs, reward = draw.normal(size=(3, 2)).astype(np.float32), draw.normal(size=3).astype(np.float32)
        if len(begun):
            policy.begin(begun, obs[begun], rng)
        twins |= {int(e): PlainPolicy(weights, float(step)) for e in begun}
        reward[begun] = 0.0
        action = policy.act(obs, reward)
        assert action.shape == (3, 1) and action.dtype == np.float32
        expected = np.stack([twins[e].act(obs[e], float(reward[e])) for e in range(3)])
        np.testing.assert_allclose(action, expected, rtol=0, atol=2e-6)


def test_acting_goes_on_bit_for_bit_from_a_state() -> None:
    policy, weights = lively_policy()
    draw = np.random.default_rng(0)
    obs, reward = draw.normal(size=(20, 2, 2)).astype(np.float32), draw.normal(size=(20, 2)).astype(np.float32)
    policy.reset(2)
    policy.begin(np.arange(2), obs[0], draw)
    for t in range(9):
        if t == 5:
            policy.begin(np.array([1]), obs[t, 1:], draw)
        policy.act(obs[t], reward[t])
    state = policy.state()
    rest = [policy.act(obs[t], reward[t]) for t in range(9, 20)]
    other = DecisionTransformerPolicy(SMALL, 2, 1)
    other.load_weights(weights)
    other.load_state(state)
    for t, action in zip(range(9, 20), rest):
        np.testing.assert_array_equal(other.act(obs[t], reward[t]), action)
    with pytest.raises(ValueError, match="episodes cannot go on from it"):
        other.load_state({**state, "obs_EKO": state["obs_EKO"][:, 1:]})
    with pytest.raises(ValueError, match="episodes cannot go on from it"):
        other.load_state({})


def test_a_nan_that_ended_an_episode_does_not_reach_the_next_one() -> None:
    policy, _ = lively_policy()
    policy.reset(1)
    for value in (0.5, np.nan, 0.5):
        policy.begin(np.array([0]), np.zeros((1, 2), np.float32), np.random.default_rng(0))
        actions = [policy.act(np.full((1, 2), value, np.float32), np.zeros(1, np.float32)) for _ in range(6)]
        assert np.isfinite(actions).all() == np.isfinite(value)


def test_what_cannot_be_asked_for_or_acted_on_is_named() -> None:
    policy, _ = lively_policy()
    obs, rng = np.zeros((2, 2), np.float32), np.random.default_rng(0)
    policy.reset(2)
    for aim, text in (
        (PlanRequest(mode="kl"), "mode kl, expected none"),
        (PlanRequest(target_return=float("nan")), "expected a number from"),
    ):
        policy.aim = aim
        with pytest.raises(ValueError, match=text):
            policy.begin(np.arange(2), obs, rng)
    policy.aim = PlanRequest()
    policy.begin(np.array([0]), obs[:1], rng)
    with pytest.raises(RuntimeError, match=r"of which \[1\] have not begun"):
        policy.act(obs, np.zeros(2, np.float32))
    with pytest.raises(RuntimeError, match="3 observations for 2 environments"):
        policy.act(np.zeros((3, 2), np.float32), np.zeros(3, np.float32))
    agent = DecisionTransformer(dataclasses.replace(SMALL, max_steps=5), AgentSpec(obs_dim=2, action_dim=1))
    with pytest.raises(ValueError, match="set max_steps=20"):
        agent.fit(dataclasses.replace(summary_of(two_behaviours(4)), max_length=20))


def test_dropout_drops_its_share_and_leaves_the_mean() -> None:
    agent = DecisionTransformer(dataclasses.replace(SMALL, dropout=0.25), AgentSpec(obs_dim=2, action_dim=1))
    x = agent._drop(torch.ones(100, 100))
    assert float((x == 0).float().mean()) == pytest.approx(0.25, abs=0.02)
    assert float(x.mean()) == pytest.approx(1.0, abs=0.02)


def test_of_summed_rewards_the_policy_learns_and_asks_by_the_sum_alone() -> None:
    config, data = dataclasses.replace(SMALL, rewards="sum"), two_behaviours(6)
    agent = DecisionTransformer(config, AgentSpec(obs_dim=2, action_dim=1))
    agent.fit(summary_of(data))
    seen: list[torch.Tensor] = []
    agent.outputs = lambda batch: seen.append(batch.rows_NF[:, -1]) or DecisionTransformer.outputs(agent, batch)  # type: ignore[func-returns-value, method-assign]
    batch = batch_of(data)
    agent.update([batch])
    expected = torch.zeros_like(seen[0])
    expected[batch.offset[1:] - 1] = batch.return_B
    assert torch.equal(seen[0], expected)
    policy = DecisionTransformerPolicy(config, 2, 1)
    policy.aim = PlanRequest(target_return=5.0)
    policy.reset(1)
    policy.begin(np.array([0]), np.zeros((1, 2), np.float32), np.random.default_rng(0))
    for reward in (0.0, 3.0, 3.0):
        policy.act(np.zeros((1, 2), np.float32), np.array([reward], np.float32))
    assert policy.state()["to_go_EK"][0, :3].tolist() == [5.0, 5.0, 5.0]
