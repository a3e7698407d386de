"""The actor: two engines of one function, and weights that only get newer."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_policy import LinearPolicy

from algorithms import ALGORITHMS
from algorithms.interface import AgentSpec
from algorithms.weights import CorruptWeights, Weights
from rollout_workers.acting import BEFORE_ANY_WEIGHTS, Actor, NonFiniteAction, NoWeights

OBS_DIM, ACTION_DIM = 5, 3
BACKENDS = ["onnx", "torch"]


def make_actor(backend: str = "onnx") -> Actor:
    return Actor(LinearPolicy(OBS_DIM, ACTION_DIM), backend=backend)


def given_weights(version: int, epoch: int = 0) -> Weights:
    return LinearPolicy(OBS_DIM, ACTION_DIM).weights(seed=100 * epoch + version, epoch=epoch, version=version)


def random_inputs(batch: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return (
        rng.standard_normal((batch, OBS_DIM), dtype=np.float32),
        rng.standard_normal((batch, ACTION_DIM), dtype=np.float32),
    )


def expected(weights: Weights, obs_EO: np.ndarray, noise: np.ndarray) -> np.ndarray:
    arrays = weights.unpack()
    return np.tanh(obs_EO @ arrays["w"] + arrays["b"] + noise)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_engine_computes_the_policy_for_every_batch_size_and_version(backend: str) -> None:
    actor = make_actor(backend)
    for version, batch in enumerate([1, 8, 8, 3, 64, 1]):
        actor.load(given_weights(version))
        obs_EO, noise = random_inputs(batch, seed=version)
        action_EA = actor.act(obs_EO, noise)
        assert action_EA.dtype == np.float32
        np.testing.assert_allclose(action_EA, expected(given_weights(version), obs_EO, noise), atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_actions_already_handed_out_do_not_change(backend: str) -> None:
    actor = make_actor(backend)
    actor.load(given_weights(0))
    first = actor.act(*random_inputs(4, seed=1))
    kept = first.copy()
    actor.act(*random_inputs(4, seed=2))
    np.testing.assert_array_equal(first, kept)


def test_overwriting_a_message_after_loading_it_changes_nothing() -> None:
    actor, weights = make_actor("onnx"), given_weights(0)
    actor.load(weights)
    before = actor.act(*random_inputs(4))
    weights.flat[:] = 0.0
    np.testing.assert_array_equal(actor.act(*random_inputs(4)), before)


@pytest.mark.parametrize("preset", ["cpu", "paper"])
@pytest.mark.parametrize("algorithm", sorted(name for name, a in ALGORITHMS.items() if a.items == "transitions"))
def test_onnxruntime_and_torch_agree_on_every_algorithm(algorithm: str, preset: str) -> None:
    made = ALGORITHMS[algorithm]
    config = made.presets[preset]()
    agent = made.make_agent(config, AgentSpec(obs_dim=17, action_dim=6, seed=3))
    weights = Weights.pack(agent.policy_weights(), epoch=0, version=0, env_steps=0, updates=0)
    onnx, torch = (Actor(made.make_policy(config, 17, 6), backend=backend) for backend in BACKENDS)
    rng = np.random.default_rng(0)
    for actor in (onnx, torch):
        actor.load(weights)
    for batch in (1, 2, 33):
        obs_EO = 3 * rng.standard_normal((batch, 17), dtype=np.float32)
        for noise in (onnx.policy.sample_noise(rng, batch), onnx.no_noise(batch)):
            ours, theirs = onnx.act(obs_EO, noise), torch.act(obs_EO, noise)
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
            assert np.abs(ours).max() <= 1.0


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=8))
def test_weights_never_go_backwards_whatever_the_order_of_arrival(orders: list[tuple[int, int]]) -> None:
    actor, newest = make_actor("torch"), BEFORE_ANY_WEIGHTS
    for epoch, version in orders:
        was_newer = actor.load(given_weights(version, epoch))
        assert was_newer == ((epoch, version) > newest)
        newest = max(newest, (epoch, version))
        assert actor.order == newest
    obs_EO, noise = random_inputs(2)
    np.testing.assert_allclose(
        actor.act(obs_EO, noise), expected(given_weights(newest[1], newest[0]), obs_EO, noise), atol=1e-5
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_corrupt_weights_are_refused_and_the_old_ones_stay(backend: str) -> None:
    actor = make_actor(backend)
    actor.load(given_weights(1))
    before = actor.act(*random_inputs(2))
    newer = given_weights(2)
    flipped = newer.flat.copy()
    flipped.view(np.uint8)[3] ^= 1
    with pytest.raises(CorruptWeights, match="fetch them again"):
        actor.load(dataclasses.replace(newer, flat=flipped))
    assert actor.order == (0, 1)
    np.testing.assert_array_equal(actor.act(*random_inputs(2)), before)


def test_weights_of_another_policy_are_refused_by_name_and_the_old_ones_stay() -> None:
    actor = make_actor()
    actor.load(given_weights(1))
    with pytest.raises(ValueError, match=r"'w' has shape \(6, 3\), expected \(5, 3\)"):
        actor.load(LinearPolicy(OBS_DIM + 1, ACTION_DIM).weights(0, version=2))
    assert actor.order == (0, 1)
    actor.act(*random_inputs(2))


def test_replace_takes_older_weights_for_evaluating_a_checkpoint() -> None:
    actor = make_actor()
    actor.load(given_weights(3))
    actor.replace(given_weights(1))
    assert actor.order == (0, 1)


def test_acting_before_the_first_weights_says_what_to_do() -> None:
    with pytest.raises(NoWeights, match="load the newest"):
        make_actor().act(*random_inputs(1))


def test_a_non_finite_action_never_reaches_an_environment() -> None:
    actor = make_actor()
    actor.load(given_weights(0))
    obs_EO, noise = random_inputs(4)
    noise[2] = np.nan
    with pytest.raises(NonFiniteAction, match=r"environments \[2\] of 4"):
        actor.act(obs_EO, noise)


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="'auto', 'onnx' or 'torch'"):
        make_actor("tensorrt")


def test_auto_takes_onnxruntime_where_it_is_installed() -> None:
    assert make_actor("auto").backend == "onnx"


def test_published_weights_are_one_copy_of_the_tensors_and_their_names_are_views_of_it() -> None:
    grown = torch.arange(12.0, requires_grad=True)
    tensors = {
        "w": grown[:6].view(2, 3),
        "strided": grown[6:].view(3, 2).t(),
        "scalar": grown[4],
        "array": np.full(2, 7),
    }
    weights = Weights.pack(tensors, epoch=1, version=2, env_steps=3, updates=4)
    seen = weights.unpack()
    assert weights.manifest == (("w", (2, 3), 0), ("strided", (2, 3), 6), ("scalar", (), 12), ("array", (2,), 13))
    assert all(np.shares_memory(array, weights.flat) for array in seen.values()) and weights.flat.dtype == np.float32
    for name, value in tensors.items():
        np.testing.assert_array_equal(seen[name], value.detach().numpy() if isinstance(value, torch.Tensor) else value)
    with torch.no_grad():
        grown.zero_()
    assert weights.unpack()["w"].sum() == 15.0  # a copy of the moment


def test_a_policy_takes_read_only_arrays_and_warns_of_nothing(recwarn: pytest.WarningsRecorder) -> None:
    """As Ray hands them out."""
    policy = ALGORITHMS["sac"].make_policy(ALGORITHMS["sac"].presets["cpu"](), 3, 1)
    agent = ALGORITHMS["sac"].make_agent(ALGORITHMS["sac"].presets["cpu"](), AgentSpec(obs_dim=3, action_dim=1, seed=5))
    weights = Weights.pack(agent.policy_weights(), epoch=0, version=0, env_steps=0, updates=0)
    weights.flat.flags.writeable = False
    policy.load_weights(weights.unpack())
    obs, noise = torch.ones(1, 3), torch.zeros(1, 1)
    arrays = {name: torch.from_numpy(value.copy()) for name, value in weights.unpack().items()}
    before = policy.act(obs, noise)
    policy.load_weights(arrays)
    assert torch.equal(policy.act(obs, noise), before) and not recwarn.list
