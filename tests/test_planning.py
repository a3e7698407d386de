"""Plans of episodes: streams, who begins, what is told."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_policy import LinearPolicy
from numpy.random import SeedSequence
from remembering_policy import RememberingPolicy

from algorithms.interface import PlanRequest
from algorithms.weights import CorruptWeights, Weights
from replay.trajectories import EpisodeMetadata
from rollout_workers.acting import NonFiniteAction, NoWeights
from rollout_workers.env import StepResult
from rollout_workers.planning import PlanActor, RunningPlans, plans, seeded_streams, stamp_stats

OBS_EO = np.arange(12, dtype=np.float32).reshape(4, 3) / 8


def loaded(policy: RememberingPolicy, envs: int = 4) -> PlanActor:
    actor = PlanActor(policy)
    actor.reset(envs)
    actor.load(policy.weights(1, version=3))
    return actor


@given(st.lists(st.integers(0, 2**32), min_size=1, max_size=5), st.integers(0, 4))
@settings(deadline=None, max_examples=30)
def test_a_stream_follows_from_its_own_seed_whatever_is_spawned_beside_it(seeds: list[int], which: int) -> None:
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


def test_an_actor_needs_weights_takes_newer_ones_only_and_refuses_damaged_ones() -> None:
    policy = RememberingPolicy(3, 1)
    actor = PlanActor(policy)
    actor.reset(4)
    for ask in (
        lambda: actor.begin(np.arange(4), OBS_EO, [SeedSequence(0)] * 4),
        lambda: actor.act(OBS_EO, np.zeros(4, np.float32)),
    ):
        with pytest.raises(NoWeights):
            ask()
    assert actor.load(policy.weights(1, version=3)) and not actor.load(policy.weights(2, version=2))
    assert (actor.order, policy.bias) == ((0, 3), 1.0)
    good = policy.weights(5, version=9)
    with pytest.raises(CorruptWeights):
        actor.load(Weights(**{**vars(good), "digest": "0"}))
    assert (actor.order, policy.bias) == ((0, 3), 1.0)
    actor.replace(policy.weights(2, version=2))
    assert (actor.order, policy.bias) == ((0, 2), 2.0)


def test_actions_that_are_not_finite_name_the_environments() -> None:
    actor = loaded(RememberingPolicy(3, 1))
    actor.begin(np.array([0, 2, 3]), OBS_EO[[0, 2, 3]], [SeedSequence(0)] * 3)
    with pytest.raises(NonFiniteAction, match=r"environments \[1\] of 4"):
        actor.act(OBS_EO, np.zeros(4, np.float32))


def test_a_policy_that_forgets_a_stamp_is_refused() -> None:
    policy = RememberingPolicy(3, 1)
    begin = policy.begin
    policy.begin = lambda *given: begin(*given)[1:]  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="1 stamps for 2 episodes"):
        loaded(policy).begin(np.arange(2), OBS_EO[:2], [SeedSequence(0), SeedSequence(1)])


def step_of(obs_EO: np.ndarray, ended_E: np.ndarray, valid_E: np.ndarray, reward_E: np.ndarray) -> StepResult:
    return StepResult(obs_EO, obs_EO, reward_E, ended_E, np.zeros_like(ended_E), valid_E)


events = st.lists(st.lists(st.sampled_from(["go", "go", "end", "refused", "invalid"]), min_size=3, max_size=3))


@given(events, st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_batches_of_begins_equal_one_policy_for_each_environment(script: list[list[str]], seed: int) -> None:
    """Fast: one policy, one begin a step. Slow: a policy of its own for each environment, begun by itself."""
    rng, told = np.random.default_rng(seed), []
    actor = loaded(RememberingPolicy(3, 2), envs=3)
    running = RunningPlans(actor, 3, [7, seed], lambda env_K, stamps: told.append((env_K.tolist(), len(stamps))))
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
    assert told == expected
    assert running.take_seconds() > 0.0 == running.take_seconds()


def test_a_state_of_another_number_of_environments_is_refused() -> None:
    running = RunningPlans(loaded(RememberingPolicy(3, 1)), 4, [0], lambda env_K, stamps: None)
    other = RunningPlans(loaded(RememberingPolicy(3, 1)), 2, [0], lambda env_K, stamps: None)
    with pytest.raises(ValueError, match=r"'begin_E' has shape \(4,\), expected \(2,\)"):
        other.load_state(running.state())
    with pytest.raises(ValueError, match="has shape absent"):
        other.load_state({})


def test_stats_of_stamps_leave_out_what_was_not_asked_or_predicted() -> None:
    stamps = [
        EpisodeMetadata(0, "st", 5.0, 4.0, 1.0),
        EpisodeMetadata(1, "st", 7.0, np.nan, np.nan),
        EpisodeMetadata(2, "prior", np.nan, 1.0, 2.0),
    ]
    stats = stamp_stats(stamps)
    assert (stats["planned_episodes"], stats["target_episodes"], stats["target_sum"]) == (3, 2, 12)
    assert (stats["predicted_episodes"], stats["predicted_sum"], stats["predicted_variance_sum"]) == (2, 5, 3)
    assert set(stamp_stats([]).values()) == {0.0}


def test_an_aim_set_later_counts_from_the_next_begin_on() -> None:
    actor = loaded(RememberingPolicy(3, 1))
    actor.policy.aim = PlanRequest(mode="st", target_return=12.0)
    (stamp,) = actor.begin(np.array([2]), OBS_EO[2:3], [SeedSequence(0)])
    assert (stamp.mode, stamp.target) == ("st", 12.0)
