"""Plans are of the stage that is gathered: what ran while a stage was learned from is ended, counted, and begun anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_policy import LinearPolicy
from remembering_policy import RememberingPolicy
from tagged_env import LAYOUT, TaggedEnv
from tiny_episodes import DATASET, finetune_words, make_dataset, train_words
from tiny_runs import read

from cluster.checks import spec_of
from cluster.cli import main
from cluster.graph import RunSpec, make_shard
from cluster.replay_client import Lost, ReplayClient
from cluster.run_dir import RunDirectory
from replay import snapshot
from replay.arena import ONLINE
from replay.config import DataConfig, ReplayConfig
from replay.dataset import open_dataset
from replay.episode_assembly import LATE
from replay.episode_store import EpisodeStore
from replay.limiter import StagedLimiter
from replay.messages import Ack, Chunk
from replay.shard import Shard
from rollout_workers.config import WorkerConfig
from rollout_workers.worker import RolloutWorker

ENVS = 3


def make_worker(policy: Any, seed: int = 0, steps: int = 4, env: str = "tagged") -> RolloutWorker:
    worker = RolloutWorker(
        config=WorkerConfig(envs_per_worker=ENVS, chunk_steps=steps, backend="torch"),
        env_id=env or "Pendulum-v1",
        policy=policy,
        worker=0,
        incarnation=0,
        seed=seed,
        random_steps=0,
        **({"make_env": lambda env_id, num_envs, env_seed, fast: TaggedEnv(num_envs, seed)} if env else {}),  # type: ignore[arg-type]
    )
    worker.load_weights(policy.weights(1))
    return worker


def linear_policy() -> LinearPolicy:
    policy = LinearPolicy(3, 1)
    policy.weights = RememberingPolicy(3, 1).weights  # type: ignore[attr-defined]
    return policy


def make_episode_shard() -> Shard:
    limiter = StagedLimiter(items_before=0, stages=1, episodes_per_stage=10**6)
    store = EpisodeStore(LAYOUT, ReplayConfig(capacity_rows=5_000), DataConfig(), posterior_floats=0)
    return Shard(store, limiter, shard=0, seed=0, batch_size=1)


@given(st.integers(0, 10_000), st.lists(st.booleans(), min_size=1, max_size=12))
@settings(deadline=None, max_examples=25)
def test_restarted_episodes_leave_no_row_uncounted_and_share_none_with_the_next(seed: int, anew: list[bool]) -> None:
    policy = RememberingPolicy(3, 1)
    worker, shard = make_worker(policy, seed), make_episode_shard()
    seen: set[int] = set()  # episodes
    running_E, unfinished, result, recorded = np.zeros(ENVS, np.int64), 0, 0.0, 0.0  # rows, by hand
    for again in [*anew, *[False] * (LATE + 1)]:
        if again:
            assert worker.restart_episodes() == (running_E > 0).sum()
            unfinished += int(running_E.sum())
            running_E[:] = 0
            policy.begun.clear()
        chunk = worker.collect()
        assert shard.append(chunk).status == "ok"
        if again:
            assert policy.begun[0][0] == list(range(ENVS)), "every environment has a new plan, in one batch"
            assert (chunk.step_N.reshape(ENVS, -1)[:, 0] == 0).all()
            assert not seen & set(chunk.episode_N.tolist())
        seen |= set(chunk.episode_N.tolist())
        result += chunk.stats.get("unfinished_rows", 0.0)
        recorded += chunk.stats["recorded_rows"]
        for flag_E in chunk.flag_N.reshape(ENVS, -1).T:
            running_E = np.where(flag_E > 0, 0, running_E + 1)
    stats = shard.stats()
    assert result == unfinished
    assert stats.lost_rows == ({"end_lost": unfinished} if unfinished else {})
    assert stats.stored_rows == stats.episode_rows + stats.open_rows + unfinished
    assert stats.stored_rows == recorded
    for slot in shard.store.arena.held(ONLINE):
        first, length = int(shard.store.arena.start[slot]), int(shard.store.arena.length[slot])
        rows = shard.store.arena.rows[first : first + length]
        assert len(set(rows[:, 0].tolist())) == 1, "a row of another episode"  # the tag of an episode


def test_plans_of_restarted_episodes_are_of_the_newest_weights_and_the_others_keep_theirs() -> None:
    policy = RememberingPolicy(3, 1)
    worker = make_worker(policy, steps=1)
    worker.collect()
    worker.load_weights(policy.weights(9, version=1))
    before = len(policy.begun)
    worker.restart_episodes()
    chunk = worker.collect()
    assert [bias for _, _, bias in policy.begun[before:]] == [9.0]
    assert chunk.version == 1 and len(chunk.metadata) == ENVS
    assert chunk.stats["unfinished_episodes"] == ENVS and chunk.stats["unfinished_rows"] == ENVS


def test_a_policy_without_plans_goes_on_bit_for_bit_when_asked_to_restart_episodes() -> None:
    one, other = make_worker(linear_policy()), make_worker(linear_policy())
    for _ in range(6):
        assert one.restart_episodes() == 0
        here, there = one.collect(), other.collect()
        for name in ("rows_ND", "episode_N", "step_N", "flag_N"):
            np.testing.assert_array_equal(getattr(here, name), getattr(there, name))
        assert "unfinished_rows" not in here.stats


def test_a_worker_that_restarted_episodes_is_resumed_bit_for_bit() -> None:
    worker, other = make_worker(RememberingPolicy(3, 1), env=""), make_worker(RememberingPolicy(3, 1), env="")
    worker.collect()
    worker.restart_episodes()
    other.load_state(worker.state())
    for _ in range(5):
        one, two = worker.collect(), other.collect()
        for name in ("rows_ND", "episode_N", "step_N"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_a_shard_that_awaits_a_policy_takes_rows_once_it_has_heard_of_one_or_when_its_time_is_over() -> None:
    now = [0.0]
    shard, worker = make_episode_shard(), make_worker(RememberingPolicy(3, 1))
    shard._clock = lambda: now[0]
    shard.observe_version(0, 3)
    shard.await_policy(10.0)
    chunk = worker.collect()
    assert [shard.append(chunk).status for _ in range(2)] == ["wait", "wait"]
    shard.observe_version(0, 3)
    assert shard.append(chunk).status == "wait"
    shard.observe_version(0, 4)
    assert shard.append(chunk).status == "ok" and shard.append(chunk).status == "duplicate"
    shard.await_policy(10.0)
    chunk, now[0] = worker.collect(), 9.9
    assert shard.append(chunk).status == "wait" and shard.stats().last_seen_s == {0: 9.9}
    now[0] = 10.0
    assert shard.append(chunk).status == "ok"


def drive(answers: list[Ack | None], newest: Callable[[], Any], policy: RememberingPolicy) -> list[int]:
    """The answers, None for a lost one, are given in turn; at which chunk plans were begun in the middle of an episode."""
    worker = make_worker(policy, steps=1)
    renewed: list[int] = []
    real = worker.restart_episodes
    left = list(answers)
    sent: list[Chunk] = []

    def restart_episodes() -> int:
        renewed.append(len(sent))
        return real()

    def answer(handle: int, timeout_s: float) -> Ack:
        ack = left.pop(0)
        if not left:
            client.stop()
        if ack is None:
            raise Lost("no answer")
        return ack

    worker.restart_episodes = restart_episodes  # type: ignore[method-assign]
    client = ReplayClient(worker, send=lambda chunk: sent.append(chunk) or len(sent), answer=answer, fetch=newest, max_unacked=1,
                      timeout_s=5.0, clock=lambda: 0.0, sleep=lambda s: None)  # fmt: skip
    assert client.run() == "stopped"
    return renewed


def ok(version: int, held: bool = False) -> Ack:
    return Ack(status="ok", generation=0, version=version, held=held)


WAIT = Ack(status="wait", generation=0, version=0)
SCRIPTS: dict[str, tuple[list[Ack | None], list[int]]] = {
    "newer weights while the shard takes rows: plans are kept": ([ok(0), ok(1), ok(2), ok(2)], []),
    "told to wait, and newer weights with the answer": ([ok(0), WAIT, ok(1), ok(1)], [3]),
    "held by the shard's own process, and newer weights with the answer": ([ok(0), ok(1, held=True), ok(1)], [2]),
    "told to wait, and the weights come later": ([WAIT, ok(0), ok(0), ok(1), ok(1)], [4]),
    "told to wait once, and weights come twice: the second time plans are kept": ([WAIT, ok(1), ok(2), ok(2)], [2]),
    "a lost answer is no stage": ([None, ok(1), ok(1)], []),
    "two stages": ([WAIT, ok(1), ok(1), WAIT, ok(2), ok(2)], [2, 5]),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_plans_are_made_anew_once_after_a_stage_of_learning(script: str) -> None:
    answers, expected = SCRIPTS[script]
    policy = RememberingPolicy(3, 1)
    asked: list[int] = []

    def newest() -> Any:
        asked.append(0)
        return policy.weights(len(asked), version=len(asked))

    renewed = drive(list(answers), newest, policy)
    assert renewed == expected


def test_in_one_process_each_stage_begins_with_plans_of_what_the_last_one_taught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_dataset(tmp_path / "data", monkeypatch)
    base, run = tmp_path / "base", tmp_path / "run"
    assert main(train_words("gac", base, "--steps", "10", "--backend", "inline")) == 0
    flags = ("--set", "worker.workers=3", "--set", "replay.shards=2")
    assert main(finetune_words(base, run, *flags, episodes=10, stages=3)) == 0
    spec = spec_of(RunDirectory.open(run).config(), RunDirectory.open(run))
    for index in range(2):
        shard = make_shard(spec, index)
        assert isinstance(shard, Shard)
        assert snapshot.load(shard, spec.shard_dir(index)) is not None
        online = shard.store.arena.held(ONLINE)
        stage, version = shard.store.arena.stage[online], shard.store.arena.version[online]
        newest = {k: int(version[stage == k].max()) for k in (1, 2, 3)}
        assert sorted(newest.values()) == list(newest.values()) and len(set(newest.values())) == 3
        assert sum(version[stage == 3] == newest[3]) >= 3, "of the quota of 5 at most the chunk in hand is older"
        stats = shard.stats()
        assert stats.stored_rows == stats.episode_rows + stats.open_rows + sum(stats.lost_rows.values())
    _exported_is_what_the_shards_hold(run, spec)
    rows = read(run / "summary.json")["rows"]
    assert rows["recorded"] == rows["stored"] + sum(rows["dropped"].values())


def _exported_is_what_the_shards_hold(run: Path, spec: RunSpec) -> None:
    """What ``dataset export`` wrote of a run in stages, against the shards' own extents."""
    assert main(["dataset", "export", str(run), "tiny/gathered-v0"]) == 0
    made, base = open_dataset("tiny/gathered-v0"), open_dataset(DATASET)
    assert (made.env_id, made.random_return, made.expert_return) == (
        base.env_id,
        base.random_return,
        base.expert_return,
    )
    held = []
    for index in range(spec.config.replay.shards):
        shard = make_shard(spec, index)
        assert isinstance(shard, Shard) and snapshot.load(shard, spec.shard_dir(index)) is not None
        table = shard.store.arena
        for slot in table.online.order:
            rows_TF = table.rows[table.start[slot] : table.start[slot] + table.length[slot]]
            held.append(((int(table.stage[slot]), int(table.version[slot])), rows_TF.copy(), float(table.ret[slot])))
    found = list(made.episodes())
    assert len(found) == len(held) >= 30
    by_first = {rows_TF[0].tobytes(): (age, rows_TF, ret) for age, rows_TF, ret in held}
    ages = []
    for episode in found:
        first_F = np.concatenate([episode.obs_TO[0], episode.action_TA[0], np.float32([episode.reward_T[0]])])
        age, rows_TF, ret = by_first[first_F.tobytes()]
        ages.append(age)
        np.testing.assert_array_equal(episode.obs_TO, rows_TF[:, :3])
        np.testing.assert_array_equal(episode.action_TA, rows_TF[:, 3:4])
        np.testing.assert_array_equal(episode.next_obs_O, rows_TF[-1, :3])
        assert episode.truncated and not episode.terminated
        assert episode.reward_T.sum() == pytest.approx(ret, abs=1e-6)
    assert ages == sorted(ages)
