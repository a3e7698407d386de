"""The actor: one contract over both kinds of policy, two engines of one function, and weights that only get newer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_policy import LinearPolicy
from numpy.random import SeedSequence
from remembering_policy import RememberingPolicy

from algorithms import ALGORITHMS
from algorithms.interface import AgentSpec, PlanRequest
from algorithms.weights import CorruptWeights, Weights
from replay.schema import EpisodeMetadata
from rollout_workers.actor import BEFORE_ANY_WEIGHTS, Actor, NonFiniteAction, NoWeights, plans, seeded_streams
from rollout_workers.env import StepResult
from rollout_workers.episodes import RunningEpisodes, metadata_stats

OBS_DIM, ACTION_DIM = 5, 3
BACKENDS = ["onnx", "torch"]
ENVS = 4
OBS_EO = np.arange(ENVS * OBS_DIM, dtype=np.float32).reshape(ENVS, OBS_DIM) / 8
NO_REWARD_E = np.zeros(ENVS, np.float32)
KINDS: dict[str, Callable[[], Actor]] = {
    "onnx": lambda: Actor(LinearPolicy(OBS_DIM, ACTION_DIM), backend="onnx"),
    "torch": lambda: Actor(LinearPolicy(OBS_DIM, ACTION_DIM), backend="torch"),
    "plans": lambda: Actor(RememberingPolicy(OBS_DIM, ACTION_DIM)),
}
of_every_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


def make_actor(backend: str = "onnx") -> Actor:
    return Actor(LinearPolicy(OBS_DIM, ACTION_DIM), backend=backend)


def given_weights(version: int, generation: int = 0) -> Weights:
    return LinearPolicy(OBS_DIM, ACTION_DIM).weights(
        seed=100 * generation + version, generation=generation, version=version
    )


def weights_of(actor: Actor, version: int, generation: int = 0) -> Weights:
    policy = actor.policy if actor.stateless is None else actor.stateless.inner
    weights: Weights = policy.weights(seed=100 * generation + version, generation=generation, version=version)  # type: ignore[attr-defined]
    return weights


def streams(count: int, seed: int = 0) -> np.random.Generator:
    return seeded_streams([SeedSequence([seed, e]) for e in range(count)])


def begun(make: Callable[[], Actor], envs: int = ENVS, version: int = 3) -> Actor:
    """An actor with weights and an episode in every environment."""
    actor = make()
    actor.load(weights_of(actor, version))
    actor.reset(envs)
    actor.begin(np.arange(envs), OBS_EO[:envs], streams(envs))
    return actor


@of_every_kind
def test_an_actor_needs_weights_before_it_begins_and_before_it_acts(make: Callable[[], Actor]) -> None:
    actor = make()
    actor.reset(ENVS)
    assert actor.order == BEFORE_ANY_WEIGHTS
    with pytest.raises(NoWeights, match="load the newest"):
        actor.begin(np.arange(ENVS), OBS_EO, streams(ENVS))
    with pytest.raises(NoWeights, match="load the newest"):
        actor.act(OBS_EO, NO_REWARD_E)


@of_every_kind
@settings(deadline=None, max_examples=30)
@given(orders=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=8))
def test_weights_never_go_backwards_whatever_the_order_of_arrival(
    make: Callable[[], Actor], orders: list[tuple[int, int]]
) -> None:
    actor, newest = make(), BEFORE_ANY_WEIGHTS
    for generation, version in orders:
        was_newer = actor.load(weights_of(actor, version, generation))
        assert was_newer == ((generation, version) > newest)
        newest = max(newest, (generation, version))
        assert actor.order == newest
    alone = make()
    alone.load(weights_of(alone, newest[1], newest[0]))
    for one in (actor, alone):
        one.reset(ENVS)
        one.begin(np.arange(ENVS), OBS_EO, streams(ENVS))
    np.testing.assert_array_equal(actor.act(OBS_EO, NO_REWARD_E), alone.act(OBS_EO, NO_REWARD_E))


@of_every_kind
def test_corrupt_weights_are_refused_and_the_old_ones_stay(make: Callable[[], Actor]) -> None:
    actor, twin = begun(make, version=1), begun(make, version=1)
    newer = weights_of(actor, 2)
    flipped = newer.flat.copy()
    flipped.view(np.uint8)[3] ^= 1
    for damaged in (dataclasses.replace(newer, flat=flipped), dataclasses.replace(newer, digest="0")):
        with pytest.raises(CorruptWeights, match="fetch them again"):
            actor.load(damaged)
    assert actor.order == (0, 1)
    np.testing.assert_array_equal(actor.act(OBS_EO, NO_REWARD_E), twin.act(OBS_EO, NO_REWARD_E))


@of_every_kind
def test_replace_takes_older_weights_for_evaluating_a_checkpoint(make: Callable[[], Actor]) -> None:
    actor = make()
    actor.load(weights_of(actor, 3))
    actor.replace(weights_of(actor, 1))
    assert actor.order == (0, 1)


@of_every_kind
def test_every_episode_that_begins_has_its_metadata(make: Callable[[], Actor]) -> None:
    actor = begun(make)
    metadata = actor.begin(np.arange(ENVS), OBS_EO, streams(ENVS))
    assert [one.episode for one in metadata] == [-1] * ENVS
    assert {one.mode for one in metadata} == ({""} if actor.stateless else {"recall"})


@of_every_kind
def test_an_environments_actions_do_not_depend_on_how_many_there_are(make: Callable[[], Actor]) -> None:
    together, alone = begun(make), begun(make, envs=1)
    for t in range(5):
        reward_E = np.full(ENVS, t, np.float32)
        actions = together.act(OBS_EO, reward_E)
        assert actions.dtype == np.float32 and actions.shape == (ENVS, ACTION_DIM)
        np.testing.assert_array_equal(actions[:1], alone.act(OBS_EO[:1], reward_E[:1]))


@of_every_kind
def test_actions_already_handed_out_do_not_change(make: Callable[[], Actor]) -> None:
    actor = begun(make)
    first = actor.act(OBS_EO, NO_REWARD_E)
    kept = first.copy()
    actor.act(OBS_EO[::-1].copy(), NO_REWARD_E)
    np.testing.assert_array_equal(first, kept)


def test_overwriting_a_message_after_loading_it_changes_nothing() -> None:
    actor, twin = make_actor("onnx"), begun(make_actor)
    weights = weights_of(actor, 3)
    actor.load(weights)
    weights.flat[:] = 0.0
    actor.reset(ENVS)
    actor.begin(np.arange(ENVS), OBS_EO, streams(ENVS))
    np.testing.assert_array_equal(actor.act(OBS_EO, NO_REWARD_E), twin.act(OBS_EO, NO_REWARD_E))


@of_every_kind
def test_a_non_finite_action_never_reaches_an_environment(make: Callable[[], Actor]) -> None:
    actor = begun(make)
    obs_EO = OBS_EO.copy()
    obs_EO[2] = np.nan
    with pytest.raises(NonFiniteAction, match=rf"environments \[2\] of {ENVS}"):
        actor.act(obs_EO, NO_REWARD_E)


@of_every_kind
def test_running_episodes_resume_bit_for_bit(make: Callable[[], Actor]) -> None:
    def running() -> tuple[Actor, RunningEpisodes]:
        actor = make()
        episodes = RunningEpisodes(actor, ENVS, [7], lambda env_K, metadata: None)
        actor.load(weights_of(actor, 3))
        return actor, episodes

    (actor, one), (other_actor, other) = running(), running()
    reward_E = np.arange(ENVS, dtype=np.float64)
    no_E = np.zeros(ENVS, bool)
    for ended in (no_E, reward_E == 1, no_E):
        actor.draw_noise(np.random.default_rng(3), 1)
        one.act(OBS_EO)
        one.note(StepResult(OBS_EO, OBS_EO, reward_E, ended, no_E, ~no_E), None)
    other.load_state(one.state())
    for each in (actor, other_actor):
        each.draw_noise(np.random.default_rng(4), 1)
    np.testing.assert_array_equal(other.act(OBS_EO), one.act(OBS_EO))
    assert other.planned.tolist() == one.planned.tolist() == ([] if actor.stateless else [0, 1, 2, 3])


# A Policy: engines and exploration.


def explore(actor: Actor, batch: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Observations, the noise drawn for them, and the actions."""
    obs_EO = np.random.default_rng(seed).standard_normal((batch, OBS_DIM), dtype=np.float32)
    actor.reset(batch)
    actor.draw_noise(np.random.default_rng(seed), 1)
    noise = LinearPolicy(OBS_DIM, ACTION_DIM).sample_noise(np.random.default_rng(seed), batch)
    return obs_EO, noise, actor.act(obs_EO, np.zeros(batch, np.float32))


def expected(weights: Weights, obs_EO: np.ndarray, noise: np.ndarray) -> np.ndarray:
    arrays = weights.unpack()
    return np.tanh(obs_EO @ arrays["w"] + arrays["b"] + noise)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_engine_computes_the_policy_for_every_batch_size_and_version(backend: str) -> None:
    actor = make_actor(backend)
    for version, batch in enumerate([1, 8, 8, 3, 64, 1]):
        actor.load(given_weights(version))
        obs_EO, noise, action_EA = explore(actor, batch, seed=version)
        assert action_EA.dtype == np.float32
        np.testing.assert_allclose(action_EA, expected(given_weights(version), obs_EO, noise), atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_episodes_act_without_noise_but_in_the_environments_that_explore(backend: str) -> None:
    """The noise of an environment follows from its own stream, whoever else explores."""
    actor, quiet_EA = make_actor(backend), expected(given_weights(1), OBS_EO, np.float32(0))
    actor.load(given_weights(1))
    assert actor.stateless is not None
    seen = []
    for exploring in ([True] * 4, [False, True, False, True], [False] * 4, None):
        actor.stateless.exploring_E = None if exploring is None else np.array(exploring)
        actor.reset(ENVS)
        actor.begin(np.arange(ENVS), OBS_EO, streams(ENVS))
        seen.append(np.array([actor.act(OBS_EO, NO_REWARD_E) for _ in range(70)]))
    everybody, some, nobody, default = seen
    np.testing.assert_array_equal(some[:, 1::2], everybody[:, 1::2])
    np.testing.assert_array_equal(some[:, ::2], nobody[:, ::2])
    np.testing.assert_array_equal(nobody, default)
    np.testing.assert_allclose(nobody, np.broadcast_to(quiet_EA, nobody.shape), atol=1e-5)
    assert len(np.unique(everybody[:, 0, 0])) == 70


@pytest.mark.parametrize("preset", ["cpu", "paper"])
@pytest.mark.parametrize("algorithm", sorted(name for name, a in ALGORITHMS.items() if a.items == "transitions"))
def test_onnxruntime_and_torch_agree_on_every_algorithm(algorithm: str, preset: str) -> None:
    made = ALGORITHMS[algorithm]
    config = made.presets[preset]()
    agent = made.make_agent(config, AgentSpec(obs_dim=17, action_dim=6, seed=3))
    weights = Weights.pack(agent.policy_weights(), generation=0, version=0, env_steps=0, updates=0)
    onnx, torch = (Actor(made.make_policy(config, 17, 6), backend=backend) for backend in BACKENDS)
    assert onnx.stateless is not None and torch.stateless is not None
    rng = np.random.default_rng(0)
    for actor in (onnx, torch):
        actor.load(weights)
    for batch in (1, 2, 33):
        obs_EO = 3 * rng.standard_normal((batch, 17), dtype=np.float32)
        for noise in (onnx.stateless.inner.sample_noise(rng, batch), None):
            ours, theirs = onnx.stateless.act_on(obs_EO, noise), torch.stateless.act_on(obs_EO, noise)
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
            assert np.abs(ours).max() <= 1.0


def test_weights_of_another_policy_are_refused_by_name_and_the_old_ones_stay() -> None:
    actor = make_actor()
    actor.load(given_weights(1))
    with pytest.raises(ValueError, match=r"'w' has shape \(6, 3\), expected \(5, 3\)"):
        actor.load(LinearPolicy(OBS_DIM + 1, ACTION_DIM).weights(0, version=2))
    assert actor.order == (0, 1)
    explore(actor, 2, seed=0)


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="'auto', 'onnx' or 'torch'"):
        make_actor("tensorrt")


def test_auto_takes_onnxruntime_where_it_is_installed() -> None:
    actor = make_actor("auto")
    assert actor.stateless is not None and actor.stateless.backend == "onnx"


# An EpisodePolicy: streams, who begins, what is recorded.


def loaded(policy: RememberingPolicy, envs: int = ENVS) -> Actor:
    actor = Actor(policy)
    actor.reset(envs)
    actor.load(policy.weights(1, version=3))
    return actor


@given(st.lists(st.integers(0, 2**32), min_size=1, max_size=5), st.integers(0, 4))
@settings(deadline=None, max_examples=30)
def test_a_stream_follows_from_its_own_seed_whatever_is_spawned_alongside(seeds: list[int], which: int) -> None:
    which %= len(seeds)
    rng, alone = seeded_streams([SeedSequence(s) for s in seeds]), seeded_streams([SeedSequence(seeds[which])])
    for _ in range(2):  # spawning again gives new streams, and the same for everybody
        assert rng.spawn(len(seeds))[which].random() == alone.spawn(1)[0].random()
    first, second = seeded_streams([SeedSequence(7)]), seeded_streams([SeedSequence(7)])
    assert first.spawn(1)[0].random() != second.bit_generator.spawn(1)[0] and first.spawn(1) != second.spawn(1)


def test_a_wrong_number_of_streams_is_refused() -> None:
    with pytest.raises(ValueError, match="2 streams were spawned, expected 3"):
        seeded_streams([SeedSequence(s) for s in range(3)]).spawn(2)


def test_a_policy_that_plans_is_told_from_one_that_does_not() -> None:
    assert plans(RememberingPolicy(3, 1)) and not plans(LinearPolicy(3, 1))


def test_an_environment_where_nothing_was_begun_is_named() -> None:
    actor = loaded(RememberingPolicy(3, 1))
    actor.begin(np.array([0, 2, 3]), OBS_EO[[0, 2, 3], :3], streams(3))
    with pytest.raises(NonFiniteAction, match=r"environments \[1\] of 4"):
        actor.act(OBS_EO[:, :3], NO_REWARD_E)


def test_a_policy_that_forgets_an_episodes_metadata_is_refused() -> None:
    policy = RememberingPolicy(3, 1)
    begin = policy.begin
    policy.begin = lambda *given: begin(*given)[1:]  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="1 EpisodeMetadata for 2 episodes"):
        loaded(policy).begin(np.arange(2), OBS_EO[:2, :3], streams(2))


def step_of(obs_EO: np.ndarray, ended_E: np.ndarray, valid_E: np.ndarray, reward_E: np.ndarray) -> StepResult:
    return StepResult(obs_EO, obs_EO, reward_E, ended_E, np.zeros_like(ended_E), valid_E)


events = st.lists(st.lists(st.sampled_from(["go", "go", "end", "refused", "invalid"]), min_size=3, max_size=3))


@given(events, st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_batches_of_begins_equal_one_policy_for_each_environment(script: list[list[str]], seed: int) -> None:
    """Fast: one policy, one begin a step. Slow: a policy of its own for each environment, begun by itself."""
    rng, seen = np.random.default_rng(seed), []
    actor = loaded(RememberingPolicy(3, 2), envs=3)
    running = RunningEpisodes(actor, 3, [7, seed], lambda env_K, metadata: seen.append((env_K.tolist(), len(metadata))))
    slow = [RememberingPolicy(3, 2) for _ in range(3)]
    begun_E, begin_E, reward_E, expected = np.zeros(3, int), np.ones(3, bool), np.zeros(3), []
    for policy in slow:
        loaded(policy, envs=1)
    for kinds in [*script, ["go"] * 3]:
        obs_EO = rng.standard_normal((3, 3)).astype(np.float32)
        if begin_E.any():
            expected.append((np.flatnonzero(begin_E).tolist(), int(begin_E.sum())))
        for e in np.flatnonzero(begin_E):
            stream = seeded_streams([SeedSequence([7, seed], spawn_key=(2, int(e), int(begun_E[e])))])
            slow[e].begin(np.array([0]), obs_EO[e : e + 1], stream)
            begun_E[e] += 1
        actions = [slow[e].act(obs_EO[e : e + 1], reward_E[e : e + 1].astype(np.float32))[0] for e in range(3)]
        np.testing.assert_array_equal(running.act(obs_EO), actions)
        reward_E, kind_E = rng.standard_normal(3), np.array(kinds)
        refused = np.flatnonzero(kind_E == "refused")
        reward_E[refused] = np.nan
        running.note(step_of(obs_EO, kind_E == "end", kind_E != "invalid", reward_E), refused if len(refused) else None)
        begin_E = kind_E != "go"
        reward_E = np.where(begin_E, 0.0, reward_E)
    assert seen == expected
    assert running.take_stats([])["plan_s"] > 0.0 == running.take_stats([])["plan_s"]


def test_a_state_of_another_number_of_environments_is_refused() -> None:
    running = RunningEpisodes(loaded(RememberingPolicy(3, 1)), 4, [0], lambda env_K, metadata: None)
    other = RunningEpisodes(loaded(RememberingPolicy(3, 1)), 2, [0], lambda env_K, metadata: None)
    with pytest.raises(ValueError, match=r"'begin_E' has shape \(4,\), expected \(2,\)"):
        other.load_state(running.state())
    with pytest.raises(ValueError, match="has shape absent"):
        other.load_state({})


def test_stats_of_metadata_leave_out_what_was_not_requested_or_predicted() -> None:
    metadata = [
        EpisodeMetadata(0, "st", 5.0, 4.0, 1.0),
        EpisodeMetadata(1, "st", 7.0, np.nan, np.nan),
        EpisodeMetadata(2, "prior", np.nan, 1.0, 2.0),
    ]
    stats = metadata_stats(metadata)
    assert (stats["planned_episodes"], stats["target_episodes"], stats["target_sum"]) == (3, 2, 12)
    assert (stats["predicted_episodes"], stats["predicted_sum"], stats["predicted_variance_sum"]) == (2, 5, 3)
    assert set(metadata_stats([]).values()) == {0.0}


def test_an_aim_set_later_counts_from_the_next_begin_on() -> None:
    actor = loaded(RememberingPolicy(3, 1))
    actor.policy.aim = PlanRequest(mode="st", target_return=12.0)
    (one,) = actor.begin(np.array([2]), OBS_EO[2:3, :3], streams(1))
    assert (one.mode, one.target) == ("st", 12.0)


def test_published_weights_are_one_copy_of_the_tensors_and_their_names_are_views_of_it() -> None:
    grown = torch.arange(12.0, requires_grad=True)
    tensors = {
        "w": grown[:6].view(2, 3),
        "strided": grown[6:].view(3, 2).t(),
        "scalar": grown[4],
        "array": np.full(2, 7),
    }
    weights = Weights.pack(tensors, generation=1, version=2, env_steps=3, updates=4)
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
    weights = Weights.pack(agent.policy_weights(), generation=0, version=0, env_steps=0, updates=0)
    weights.flat.flags.writeable = False
    policy.load_weights(weights.unpack())
    obs, noise = torch.ones(1, 3), torch.zeros(1, 1)
    arrays = {name: torch.from_numpy(value.copy()) for name, value in weights.unpack().items()}
    before = policy.act(obs, noise)
    policy.load_weights(arrays)
    assert torch.equal(policy.act(obs, noise), before) and not recwarn.list
