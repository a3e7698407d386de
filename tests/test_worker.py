"""The worker on real environments, and on one that breaks when told to."""

from __future__ import annotations

import numpy as np
import pytest
from linear_policy import LinearPolicy

from replay.messages import CUT, Chunk
from replay.schema import RowLayout
from rollout_workers.actor import NoWeights
from rollout_workers.config import WorkerConfig
from rollout_workers.env import StepResult
from rollout_workers.envs import env_spec, make_batch_env
from rollout_workers.worker import RolloutWorker

PENDULUM = LinearPolicy(3, 1)


def make_worker(
    env_id: str = "Pendulum-v1",
    *,
    policy: LinearPolicy = PENDULUM,
    envs: int = 2,
    steps: int = 8,
    incarnation: int = 0,
    random_steps: int = 0,
    load: bool = True,
    fast: bool = True,
    **options: object,
) -> RolloutWorker:
    worker = RolloutWorker(
        config=WorkerConfig(envs_per_worker=envs, chunk_steps=steps, fast_envs=fast),
        env_id=env_id,
        policy=policy,
        worker=1,
        incarnation=incarnation,
        seed=7,
        random_steps=random_steps,
        **options,  # type: ignore[arg-type]
    )
    if load:
        worker.load_weights(policy.weights(0, generation=1, version=3))
    return worker


def assert_equal_chunks(a: Chunk, b: Chunk) -> None:
    for name in ("rows_ND", "episode_N", "step_N", "flag_N"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert (a.sequence, a.version) == (b.sequence, b.version)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("env_id", ["HalfCheetah-v5", "Hopper-v5"])
def test_rows_replay_step_for_step_in_the_environment(env_id: str, fast: bool) -> None:
    """Conservation of meaning: the stored actions, given to fresh environments, reproduce the stored rows."""
    spec = env_spec(env_id)
    policy = LinearPolicy(spec.obs_dim, spec.action_dim)
    worker = make_worker(env_id, policy=policy, envs=3, steps=40, fast=fast)
    chunk = worker.collect()
    columns = RowLayout(obs_dim=spec.obs_dim, action_dim=spec.action_dim).views(chunk.rows_ND.reshape(3, 40, -1))
    twin = make_worker(env_id, policy=policy, envs=3, steps=40, fast=fast)._env
    obs_EO = twin.reset()
    for t in range(40):
        np.testing.assert_array_equal(columns.obs[:, t], obs_EO)
        step = twin.step(np.ascontiguousarray(columns.action[:, t]))
        np.testing.assert_array_equal(columns.next_obs[:, t], step.next_obs_EO)
        np.testing.assert_array_equal(columns.reward[:, t], step.reward_E.astype(np.float32))
        np.testing.assert_array_equal(columns.discount[:, t], 1.0 - step.terminated_E)
        obs_EO = step.obs_EO
    assert np.abs(columns.action).max() <= 1.0


def test_the_policy_acts_on_the_observation_its_row_stores() -> None:
    worker = make_worker(envs=2, steps=4)
    rng_twin = make_worker(envs=2, steps=4)._rng
    noise_N = PENDULUM.sample_noise(rng_twin, 8)
    columns = RowLayout(obs_dim=3, action_dim=1).views(worker.collect().rows_ND)
    arrays = PENDULUM.weights(0).unpack()
    env_major_noise = noise_N.reshape(4, 2, 1).transpose(1, 0, 2).reshape(8, 1)
    expected = np.tanh(columns.obs @ arrays["w"] + arrays["b"] + env_major_noise)
    np.testing.assert_allclose(columns.action, expected, atol=1e-5)


def test_random_steps_come_first_and_end_inside_a_chunk() -> None:
    worker = make_worker(envs=2, steps=8, random_steps=21)
    first, second, third = (worker.collect() for _ in range(3))
    assert [c.stats["random_rows"] for c in (first, second, third)] == [16, 6, 0]
    assert worker.env_steps == 48
    actions = RowLayout(obs_dim=3, action_dim=1).views(first.rows_ND).action
    assert -1.0 <= actions.min() < -0.3 and 0.3 < actions.max() <= 1.0


def test_random_steps_need_no_weights_and_the_first_policy_step_does() -> None:
    worker = make_worker(envs=2, steps=8, random_steps=18, load=False)
    assert not worker.needs_weights
    chunk = worker.collect()
    assert (chunk.generation, chunk.version) == (0, 0)
    assert worker.needs_weights
    with pytest.raises(NoWeights):
        worker.collect()
    worker.load_weights(PENDULUM.weights(0, version=1))
    assert worker.collect().version == 1


def test_chunks_carry_the_version_that_acted_and_old_weights_are_ignored() -> None:
    worker = make_worker()
    assert (worker.collect().version, worker.policy_order) == (3, (1, 3))
    assert not worker.load_weights(PENDULUM.weights(0, generation=1, version=2))
    assert worker.load_weights(PENDULUM.weights(0, generation=2, version=0))
    chunk = worker.collect()
    assert (chunk.generation, chunk.version, chunk.sequence) == (2, 0, 1)


def test_one_seed_gives_one_stream_and_a_new_incarnation_another() -> None:
    assert_equal_chunks(make_worker().collect(), make_worker().collect())
    other = make_worker(incarnation=1).collect()
    assert not np.isin(make_worker().collect().rows_ND[:, 0], other.rows_ND[:, 0]).any()
    assert set(other.episode_N.tolist()).isdisjoint(make_worker().collect().episode_N.tolist())


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "Hopper-v5"])
def test_a_resumed_worker_goes_on_bit_for_bit(env_id: str) -> None:
    spec = env_spec(env_id)
    policy = LinearPolicy(spec.obs_dim, spec.action_dim)
    worker = make_worker(env_id, policy=policy, steps=25, random_steps=30)
    for _ in range(3):
        worker.collect()
    state = worker.state()
    assert all(isinstance(value, np.ndarray) and value.dtype != object for value in state.values())
    other = make_worker(
        env_id, policy=LinearPolicy(spec.obs_dim, spec.action_dim), steps=25, random_steps=30, load=False
    )
    other.load_state(state)
    for _ in range(3):
        assert_equal_chunks(worker.collect(), other.collect())
    assert other.env_steps == worker.env_steps


def test_a_state_of_another_program_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no \['env_steps', 'rng'\]"):
        make_worker().load_state({})


def test_a_policy_of_other_dimensions_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(4, 2\), Pendulum-v1 has \(3, 1\)"):
        make_worker(policy=LinearPolicy(4, 2), load=False)


def test_a_policy_can_be_given_as_what_makes_it() -> None:
    chunk = RolloutWorker(
        config=WorkerConfig(envs_per_worker=1, chunk_steps=2),
        env_id="Pendulum-v1",
        policy=lambda: LinearPolicy(3, 1),
        worker=0,
        incarnation=0,
        seed=0,
        random_steps=2,
    ).collect()
    assert len(chunk.rows_ND) == 2


class BreakingEnv:
    """Real Pendulums whose ``broken`` (environment, step) give NaN, until they are reset."""

    def __init__(self, env_id: str, num_envs: int, seed: int, fast: bool) -> None:
        self.env = make_batch_env(env_id, num_envs, seed, fast)
        self.broken, self.cuts, self.t = {(1, 3), (0, 8)}, [], 0

    def __getattr__(self, name: str) -> object:
        return getattr(self.env, name)

    def step(self, actions_EA: np.ndarray) -> StepResult:
        step = self.env.step(actions_EA)
        for e, t in self.broken:
            if t == self.t:
                obs_EO = step.next_obs_EO.copy()
                obs_EO[e] = np.nan
                step = step._replace(obs_EO=obs_EO, next_obs_EO=obs_EO)
        self.t += 1
        return step

    def force_reset(self, env_indices: list[int]) -> np.ndarray:
        self.cuts.append((self.t - 1, env_indices))
        return self.env.force_reset(env_indices)


def test_nan_ends_an_episode_is_counted_and_never_stored() -> None:
    worker = make_worker(make_env=BreakingEnv)
    first, second = worker.collect(), worker.collect()
    assert worker._env.cuts == [(3, [1]), (8, [0])]
    assert len(first.rows_ND) == len(second.rows_ND) == 15
    for chunk in (first, second):
        assert np.isfinite(chunk.rows_ND).all()
        assert chunk.stats["recorded_rows"] == 16 == len(chunk.rows_ND) + chunk.stats["dropped_nonfinite_observation"]
    assert first.step_N.tolist() == [*range(8), 0, 1, 2, 0, 1, 2, 3]
    assert np.flatnonzero(first.flag_N == CUT).tolist() == [10]
    assert second.step_N[:8].tolist() == [*range(7), 4]
    assert len(set(second.episode_N.tolist()) & set(first.episode_N.tolist())) == 1


class BrokenEnv(BreakingEnv):
    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.broken = {(e, t) for e in range(2) for t in range(self.bad_steps)}


@pytest.mark.parametrize("bad_steps", [8, 19])
def test_chunks_without_a_row_are_not_sent_and_their_counts_are_not_lost(bad_steps: int) -> None:
    worker = make_worker(make_env=type("Broken", (BrokenEnv,), {"bad_steps": bad_steps}))
    stats, rows = worker.collect().stats, (bad_steps // 8 + 1) * 16
    assert (stats["recorded_rows"], stats["dropped_nonfinite_observation"]) == (rows, 2 * bad_steps)
    assert worker.env_steps == rows


def test_an_environment_that_gives_nothing_but_nan_stops_the_worker() -> None:
    worker = make_worker(make_env=type("Broken", (BrokenEnv,), {"bad_steps": 1_000}))
    with pytest.raises(
        FloatingPointError,
        match=r"every row of 10 chunks was refused \([\d,]+ env steps: [\d,]+ [a-z_]+\), expected finite",
    ):
        worker.collect()


def test_waiting_and_rejections_are_told_with_the_next_chunk_once() -> None:
    """What a refused chunk would have told is told by the next one."""
    worker = make_worker()
    worker.note_wait(0.5)
    worker.note_wait(0.25)
    refused = worker.collect()
    assert refused.stats["push_wait_s"] == 0.75
    worker.note_rejected(refused, "malformed")
    result, after = worker.collect().stats, worker.collect().stats
    assert (result["push_wait_s"], result["dropped_malformed"], result["recorded_rows"]) == (0.75, 16, 32)
    assert (after["push_wait_s"], after.get("dropped_malformed", 0), after["recorded_rows"]) == (0, 0, 16)
    assert all(result[name] > 0 for name in ("env_s", "act_s", "record_s"))
