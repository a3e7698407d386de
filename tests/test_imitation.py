"""What every imitator's learner promises, and the return-conditioned regression."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from imitation_data import batch_of, episode, halves, summary_of, two_behaviours
from test_learner import HostReads

from algorithms import ALGORITHMS
from algorithms.imitation.agent import draw_points
from algorithms.imitation.cloning import BehaviourCloning, PercentCloning, action_error
from algorithms.imitation.config import (
    CloningConfig,
    ConditionedConfig,
    ImitationConfig,
    OnlineTransformerConfig,
    TransformerConfig,
    cloning_cpu,
    cloning_paper,
    conditioned_cpu,
    conditioned_paper,
    online_transformer_cpu,
    online_transformer_paper,
    percent_cloning_cpu,
    percent_cloning_paper,
    transformer_cpu,
    transformer_paper,
)
from algorithms.imitation.decision_transformer import DecisionTransformer
from algorithms.imitation.online_transformer import OnlineDecisionTransformer
from algorithms.imitation.rvs import ReturnConditioned, ReturnConditionedPolicy
from algorithms.interface import AgentSpec, Collective, PlanRequest, PlanRequestError

SMALL = CloningConfig(width=16, points=4, lr=1e-2, obs_fourier=4)
SMALL_CONDITIONED = ConditionedConfig(width=16, layers=2, points=4, lr=1e-2, obs_fourier=3, obs_fourier_dims=1)
SIZES: dict[str, Any] = {
    "lr": 1e-3,
    "warmup": 3,
    "context": 4,
    "width": 8,
    "layers": 2,
    "dropout": 0.1,
    "max_steps": 40,
    "obs_fourier": 4,
}
SMALL_TRANSFORMER = TransformerConfig(**SIZES)
SMALL_ONLINE = OnlineTransformerConfig(**SIZES, heads=1)


def spec(**given: Any) -> AgentSpec:
    """Of the agents of these tests: 2 observations, 1 action."""
    return AgentSpec(obs_dim=2, action_dim=1, **given)


MAKERS: dict[str, Callable[..., Any]] = {
    "bc": lambda **extra: BehaviourCloning(SMALL, spec(**extra)),
    "percent-bc": lambda **extra: PercentCloning(dataclasses.replace(SMALL, percent=20), spec(**extra)),
    "rvs": lambda **extra: ReturnConditioned(SMALL_CONDITIONED, spec(**extra)),
    "dt": lambda **extra: DecisionTransformer(SMALL_TRANSFORMER, spec(**extra)),
    "odt": lambda **extra: OnlineDecisionTransformer(SMALL_ONLINE, spec(**extra)),
}
BUILT: dict[type, Callable[..., Any]] = {
    CloningConfig: BehaviourCloning,
    ConditionedConfig: ReturnConditioned,
    TransformerConfig: DecisionTransformer,
}
LEARNERS = pytest.mark.parametrize("name", MAKERS)


def fitted(name: str, **extra: Any) -> Any:
    agent = MAKERS[name](**extra)
    agent.fit(summary_of(two_behaviours(20)))
    return agent


@settings(deadline=None, max_examples=40)
@given(lengths=st.lists(st.integers(1, 7), min_size=1, max_size=5), points=st.integers(1, 5), seed=st.integers(0, 99))
def test_points_are_rows_of_their_own_episode(lengths: list[int], points: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    episodes = [episode(draw.normal(size=(t, 2)), draw.normal(size=(t, 1)), draw.normal(size=t)) for t in lengths]
    noise_BP = torch.from_numpy(draw.random((len(lengths), points), dtype=np.float32))
    noise_BP[0, 0] = float(np.nextafter(np.float32(1), np.float32(0)))
    drawn = draw_points(batch_of(episodes), noise_BP, 2, 1)
    for b, own in enumerate(episodes):
        for p in range(points):
            t = min(int(float(noise_BP[b, p]) * len(own.reward_T)), len(own.reward_T) - 1)
            np.testing.assert_array_equal(drawn.obs_BPO[b, p], own.obs_TO[t])
            np.testing.assert_array_equal(drawn.action_BPA[b, p], own.action_TA[t])


def test_the_error_is_the_weighted_sum_of_squares_a_coordinate() -> None:
    predicted, action = torch.tensor([[0.5, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 0.0], [0.0, float("nan")]])
    predicted.requires_grad_()
    error = action_error(predicted, action, torch.tensor([2.0, 0.0]))
    error.backward()
    assert error.item() == pytest.approx(2 * 0.25 / 2)
    assert predicted.grad is not None and predicted.grad.tolist() == [[1.0, 0.0], [0.0, 0.0]]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], but: tuple[str, ...] = ()) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one if name not in but)


@LEARNERS
def test_n_then_resume_then_n_updates_equal_two_n_bit_for_bit(name: str) -> None:
    batches = [batch_of(two_behaviours(8, seed=s)) for s in range(6)]
    whole, half, resumed = fitted(name), fitted(name), MAKERS[name](seed=9)
    whole.update(batches)
    half.update(batches[:3])
    resumed.load_state(half.state())
    resumed.update(batches[3:])
    assert same(resumed.state(), whole.state())
    assert not same(half.state(), whole.state(), but=("generator", "updates"))


@LEARNERS
def test_a_state_that_does_not_fit_is_refused_by_entry_and_changes_nothing(name: str) -> None:
    agent = fitted(name)
    before, damaged = agent.state(), agent.state()
    damaged["adam.m"] = damaged["adam.m"][:-1]
    damaged["unknown"] = damaged.pop("adam.v")
    with pytest.raises(ValueError, match=r"adam\.v is missing; unknown is not known; adam\.m is torch\.float32"):
        agent.load_state(damaged)
    assert same(agent.state(), before)


@LEARNERS
def test_a_nan_in_a_batch_leaves_the_agent_as_it_was_and_is_counted(name: str) -> None:
    episodes = two_behaviours(8)
    bad = [dataclasses.replace(e, action_TA=e.action_TA * np.nan) for e in episodes]
    agent = fitted(name)
    agent.update([batch_of(episodes)])
    before = agent.state()
    assert float(agent.update([batch_of(bad)])["nonfinite"]) == 1
    assert same(agent.state(), before, but=("generator", "updates"))
    metrics = agent.update([batch_of(episodes), batch_of(bad), batch_of(episodes)])
    assert float(metrics["nonfinite"]) == 1
    assert all(bool(metrics[metric].isfinite()) for metric in metrics), metrics


@LEARNERS
def test_no_update_reads_anything_back_on_the_host(name: str) -> None:
    agent, batches = fitted(name), [batch_of(two_behaviours(8))] * 2
    agent.update(batches)
    with HostReads() as reads:
        agent.update(batches)
    assert reads.seen == []


class Pair:
    """Two learners in two threads that mean their gradients at a barrier."""

    world_size = 2

    def __init__(self, rank: int, barrier: threading.Barrier, slots: list[torch.Tensor | None]) -> None:
        self.rank, self.barrier, self.slots = rank, barrier, slots

    def mean_(self, tensor: torch.Tensor) -> None:
        self.slots[self.rank] = tensor.clone()
        self.barrier.wait(30)
        one, other = self.slots
        assert one is not None and other is not None
        tensor.copy_((one + other) / 2)
        self.barrier.wait(30)


@LEARNERS
def test_two_learners_of_half_a_batch_take_the_steps_of_one_of_the_whole(name: str) -> None:
    batches = [batch_of(two_behaviours(8, seed=s)) for s in range(4)]
    alone = fitted(name)
    alone_metrics = alone.update(batches)
    barrier, slots = threading.Barrier(2), [None, None]
    results: dict[int, tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]] = {}

    def run(rank: int) -> None:
        collective: Collective = Pair(rank, barrier, slots)
        agent = fitted(name, collective=collective)
        metrics = agent.update([halves(batch)[rank] for batch in batches])
        results[rank] = (agent.state(), metrics)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results.keys() == {0, 1} and same(results[0][0], results[1][0])
    for key, tensor in alone.state().items():
        torch.testing.assert_close(results[0][0][key], tensor, rtol=1e-5, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")
    for key, value in alone_metrics.items():
        torch.testing.assert_close(results[1][1][key], value, rtol=1e-4, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")


def test_warm_up_clipping_and_decay_take_the_steps_of_torchs_adamw() -> None:
    config = CloningConfig(
        width=8, layers=1, points=1, lr=1e-2, weight_decay=0.1, warmup=4, grad_clip=0.05, obs_fourier=0
    )
    episodes = [episode(np.full((1, 2), b), np.full((1, 1), b / 4), np.ones(1)) for b in (1.0, 2.0, 3.0)]
    agent, batch = BehaviourCloning(config, spec()), batch_of(episodes)
    agent.fit(summary_of(episodes))
    twin = {name: tensor.detach().clone().requires_grad_() for name, tensor in agent.parameters.named.items()}
    adamw = torch.optim.AdamW(twin.values(), lr=config.lr, weight_decay=config.weight_decay)
    obs = (batch.rows_NF[:, :2] - agent.data["obs_mean"]) / agent.data["obs_std"]
    for k in range(1, 8):
        hidden = torch.relu(obs @ twin["linear0.weight"] + twin["linear0.bias"])
        loss = (
            (torch.tanh(hidden @ twin["linear1.weight"] + twin["linear1.bias"]) - batch.rows_NF[:, 2:3]).square().mean()
        )
        adamw.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(twin.values(), config.grad_clip)
        adamw.param_groups[0]["lr"] = config.lr * min(1.0, k / 4)
        adamw.step()
        metrics = agent.update([batch])
        assert float(metrics["grad_norm"]) == pytest.approx(float(norm), rel=1e-4)
        assert float(metrics["learning_rate"]) == pytest.approx(adamw.param_groups[0]["lr"])
    for name, tensor in agent.parameters.named.items():
        torch.testing.assert_close(tensor, twin[name], rtol=1e-4, atol=1e-6)


@LEARNERS
def test_misuse_is_named(name: str) -> None:
    agent, episodes = MAKERS[name](), two_behaviours(4)
    with pytest.raises(RuntimeError, match="update came before fit"):
        agent.update([batch_of(episodes)])
    with pytest.raises(ValueError, match=r"shape \(3,\), expected \(2,\)"):
        agent.fit(dataclasses.replace(summary_of(episodes), obs_mean_O=np.zeros(3), obs_std_O=np.ones(3)))
    agent.fit(summary_of(episodes))
    wide = batch_of(episodes)
    with pytest.raises(ValueError, match="rows of 5 floats, expected 4"):
        agent.update([dataclasses.replace(wide, rows_NF=torch.zeros(len(wide.rows_NF), 5))])


@pytest.mark.parametrize(
    "preset",
    [
        conditioned_cpu,
        conditioned_paper,
        cloning_cpu,
        cloning_paper,
        percent_cloning_cpu,
        percent_cloning_paper,
        transformer_cpu,
        transformer_paper,
        online_transformer_cpu,
        online_transformer_paper,
    ],
)
def test_every_preset_is_without_a_problem(preset: Callable[[], ImitationConfig]) -> None:
    assert preset().validate() == []


@pytest.mark.parametrize(("preset", "octaves"), [("cpu", 4), ("paper", 0)])
def test_all_that_learn_from_episodes_see_the_same_inputs_with_a_preset(preset: str, octaves: int) -> None:
    learners = {name: each.presets[preset]() for name, each in ALGORITHMS.items() if each.items == "episodes"}
    seen = {name: (config.obs_fourier, config.obs_fourier_dims) for name, config in learners.items()}
    assert len(seen) == 11 and seen == dict.fromkeys(seen, (octaves, 2))


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (CloningConfig(lr=0.0), "lr"),
        (CloningConfig(percent=0), "percent"),
        (CloningConfig(points=0), "points"),
        (CloningConfig(layers=0), "layers"),
        (CloningConfig(warmup=-1), "warmup"),
        (CloningConfig(weight_decay=float("nan")), "weight_decay"),
        (CloningConfig(grad_clip=0.0), "grad_clip"),
        (CloningConfig(matmul="blas"), "matmul"),
        (ConditionedConfig(obs_fourier=65), "obs_fourier"),
        (ConditionedConfig(points=0), "points"),
        (TransformerConfig(width=128, heads=3), "width"),
        (TransformerConfig(dropout=1.0), "dropout"),
        (TransformerConfig(context=0), "context"),
        (TransformerConfig(target_percentile=101), "target_percentile"),
    ],
)
def test_a_setting_that_cannot_work_is_named_before_anything_is_built(config: Any, field: str) -> None:
    assert [problem.split()[0] for problem in config.validate()] == [field]
    with pytest.raises(ValueError, match=f"cannot work:\n- {field} is"):
        BUILT[type(config)](config, spec())


def by_hand(weights: dict[str, torch.Tensor], obs_O: list[float], y: float) -> float:
    """One action of SMALL_CONDITIONED, one product at a time."""
    scored = [(obs_O[i] - float(weights["obs_mean"][i])) / float(weights["obs_std"][i]) for i in range(2)]
    angles = [obs_O[0] * math.pi / 4 * 2**k for k in range(3)]
    x = [*scored, *map(math.sin, angles), *map(math.cos, angles)]
    for l in range(3):
        weight, bias = weights[f"linear{l}.weight"].tolist(), weights[f"linear{l}.bias"].tolist()
        x = [bias[o] + sum(x[i] * weight[i][o] for i in range(len(x))) for o in range(len(bias))]
        x = x if l == 2 else [value / (1 + math.exp(-value)) for value in x]
    f, g = x
    return math.tanh(f + g * (y - float(weights["return_mean"])) / float(weights["return_std"]))


def test_the_regression_is_tanh_of_f_and_g_times_the_return_in_training_and_in_acting() -> None:
    agent, episodes = fitted("rvs"), two_behaviours(6)
    agent.update([batch_of(episodes)] * 3)
    weights = {name: tensor.clone() for name, tensor in agent.policy_weights().items()}
    policy = ReturnConditionedPolicy(SMALL_CONDITIONED, 2, 1)
    policy.load_weights(weights)
    policy.reset(2)
    obs_EO = np.array([[0.2, -0.1], [0.7, 0.4]], np.float32)
    for target in (None, 5.0):
        policy.aim = PlanRequest(target_return=target)
        asked = policy.begin(np.arange(2), obs_EO, np.random.default_rng(0))[1].target
        expected = [by_hand(weights, obs_O.tolist(), asked) for obs_O in obs_EO]
        assert policy.act(obs_EO, np.zeros(2, np.float32))[:, 0].tolist() == pytest.approx(expected, abs=1e-5)
    one = batch_of(episodes[:1])  # at a batch of one episode the error is the mean over the drawn points
    noise_BP = torch.rand(1, 4, generator=torch.Generator().manual_seed(0))
    agent.uniform, agent.normal = lambda *shape: noise_BP, lambda rows: torch.full((rows,), 0.7)
    noisy = float(one.return_B[0]) + 0.45 * 0.7 * float(weights["return_std"])
    drawn = draw_points(one, noise_BP, 2, 1)
    errors = [
        (by_hand(weights, obs.tolist(), noisy) - float(action)) ** 2
        for obs, action in zip(drawn.obs_BPO[0], drawn.action_BPA[0, :, 0])
    ]
    assert agent.losses(one).value.item() == pytest.approx(sum(errors), rel=1e-4)


def test_the_step_size_of_the_regression_falls_by_a_cosine_to_its_end_and_stays_there() -> None:
    agent = ReturnConditioned(dataclasses.replace(SMALL_CONDITIONED, updates=4), spec())
    agent.fit(summary_of(two_behaviours(4)))
    batch, seen = batch_of(two_behaviours(4)), []
    for k in range(1, 7):
        seen.append(float(agent.update([batch])["learning_rate"]))
        assert seen[-1] == pytest.approx(1e-2 * (0.05 + 0.95 * (1 + math.cos(math.pi * min(1, k / 4))) / 2))
    assert seen[-1] == pytest.approx(5e-4)


def test_the_regression_does_what_those_did_who_returned_what_is_asked_for() -> None:
    """A quarter of the episodes act -.6 and return 10 to 20; the others act +.6 and return at most 1."""
    episodes, config = (
        two_behaviours(40),
        dataclasses.replace(SMALL_CONDITIONED, obs_fourier=0, updates=300, return_noise=0.0),
    )
    agent = ReturnConditioned(config, spec())
    agent.fit(summary_of(episodes))
    agent.update([batch_of(episodes)] * 300)
    policy = ReturnConditionedPolicy(config, 2, 1)
    policy.load_weights(agent.policy_weights())
    policy.reset(1)
    answers = []
    for target in (0.5, 15.0):
        policy.aim = PlanRequest(target_return=target)
        policy.begin(np.arange(1), np.zeros((1, 2), np.float32), np.random.default_rng(0))
        answers.append(float(policy.act(np.array([[0.2, 0.0]], np.float32), np.zeros(1, np.float32))[0, 0]))
    assert answers == pytest.approx([0.6, -0.6], abs=0.15)


def test_a_return_that_cannot_be_asked_for_and_an_episode_that_has_not_begun_are_named() -> None:
    policy, obs_KO, rng = ReturnConditionedPolicy(SMALL_CONDITIONED, 2, 1), np.zeros((1, 2), np.float32), None
    for aim in (PlanRequest(mode="kl"), PlanRequest(target_return=math.inf)):
        policy.aim = aim
        with pytest.raises(PlanRequestError, match=r"expected none: it makes no plans|expected a number from"):
            policy.begin(np.zeros(0, np.int64), obs_KO, rng)  # type: ignore[arg-type]
    policy.reset(2)
    with pytest.raises(RuntimeError, match=r"of which \[0, 1\] have not begun"):
        policy.act(np.zeros((2, 2), np.float32), np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="expected 'asked'"):
        policy.load_state({"step": np.zeros(1)})
