"""A dataset's transitions beside a shard's table: which rows they are, how they are mixed in, and what they are kept apart from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_chunks import LAYOUT, make_chunk

from replay import snapshot
from replay.config import DataConfig, ReplayConfig
from replay.dataset_stream import OfflineRows, episode_rows, n_step_rows
from replay.limiter import Limiter, feasible_tolerance
from replay.memory import transition_bytes
from replay.messages import TERMINATED, TRUNCATED, Block, Wait
from replay.shard import Shard
from replay.stored_episode import DatasetError, StoredEpisode
from replay.transition_store import TransitionStore, gather_n_step


def episode(index: int, steps: int = 7, terminated: bool = False, truncated: bool = False) -> StoredEpisode:
    """obs of step t is (1000 + index, t, -1): no row of ``make_chunk`` looks like it."""
    obs_NO = np.stack([np.full(steps + 1, 1000 + index), np.arange(steps + 1), np.full(steps + 1, -1)], axis=1)
    rng = np.random.default_rng(index)
    return StoredEpisode(
        index=index,
        obs_TO=obs_NO[:-1].astype(np.float32),
        action_TA=rng.uniform(-1, 1, (steps, 2)).astype(np.float32),
        reward_T=rng.standard_normal(steps),
        terminated=terminated,
        truncated=truncated,
        next_obs_O=obs_NO[-1].astype(np.float32),
    )


def listed(episodes: list[StoredEpisode]) -> np.ndarray:
    """The slow twin of reading: one transition after the other, as the definition has it."""
    rows = []
    for e in episodes:
        obs = [*e.obs_TO, e.next_obs_O]
        for t in range(len(e.reward_T)):
            ends = e.terminated and t == len(e.reward_T) - 1
            rows.append([*obs[t], *e.action_TA[t], np.float32(e.reward_T[t]), 0.0 if ends else 1.0, *obs[t + 1]])
    return np.array(rows, np.float32)


EPISODES = [episode(0, 5, terminated=True), episode(1, 9, truncated=True), episode(2, 2), episode(3, 7)]


def held(episodes: list[StoredEpisode], capacity: int = 1_000, seed: int = 0, shard: int = 0) -> OfflineRows:
    return OfflineRows(LAYOUT, iter(episodes), capacity, seed=seed, shard=shard)


def mixing_shard(
    fraction: float = 0.5, *, online: int = 40, capacity: int = 64, ratio: float = 1e6, pretrain: int = 0,
    min_size: int = 1, offline: OfflineRows | None = None, seed: int = 3, **options: float,
) -> Shard:  # fmt: skip
    config = ReplayConfig(capacity_rows=capacity, **options)  # type: ignore[arg-type]
    rows = held(EPISODES) if offline is None else offline
    store = TransitionStore(LAYOUT, config, gamma=0.9, data=DataConfig(offline_fraction=fraction), offline=rows)
    shard = Shard(store, Limiter(min_size, ratio, 1e12, pretrain), shard=0, seed=seed, batch_size=1)
    for sequence in range(online // 10):
        assert shard.append(make_chunk([(sequence, 0, 10, 0)], sequence=sequence, version=sequence)).status == "ok"
    return shard


def block_of(answer: Block | Wait) -> Block:
    assert isinstance(answer, Block), answer
    return answer


def test_rows_are_the_transitions_of_the_episodes_in_order_and_only_a_termination_ends_the_value() -> None:
    offline = held(EPISODES)
    assert np.array_equal(offline.rows, listed(EPISODES)) and len(offline) == offline.seen == 23
    discount = LAYOUT.views(offline.rows).discount
    assert np.flatnonzero(discount == 0).tolist() == [4], (
        "a time limit, or a recording that stops, is bootstrapped from"
    )
    assert (LAYOUT.views(offline.rows).next_obs[[4, 13, 15, 22], 1] == [5, 9, 2, 7]).all()
    assert offline.episodes == 4 and not offline.rows.flags.writeable


@settings(deadline=None, max_examples=60)
@given(steps=st.integers(2, 12), terminated=st.booleans(), n=st.integers(1, 6), gamma=st.floats(0.1, 1.0))
def test_returns_of_several_steps_are_those_that_a_table_of_the_same_rows_gives(
    steps: int, terminated: bool, n: int, gamma: float
) -> None:
    whole = episode(4, steps, terminated=terminated, truncated=not terminated)
    rows_TD = episode_rows(LAYOUT, whole)
    table = TransitionStore(LAYOUT, ReplayConfig(capacity_rows=16))
    chunk = make_chunk([(0, 0, steps, TERMINATED if terminated else TRUNCATED)])
    table.append(dataclasses.replace(chunk, rows_ND=rows_TD))
    expected = gather_n_step(table, np.arange(steps), n=n, gamma=gamma)
    np.testing.assert_allclose(n_step_rows(LAYOUT, rows_TD, n=n, gamma=gamma), expected, rtol=1e-6, atol=0)


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(2, 12), min_size=1, max_size=8), capacity=st.integers(1, 60), seed=st.integers(0, 99)
)
def test_of_more_rows_than_fit_those_are_kept_that_algorithm_r_keeps_one_row_at_a_time(
    lengths: list[int], capacity: int, seed: int
) -> None:
    episodes = [episode(i, steps) for i, steps in enumerate(lengths)]
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 2, 1])))
    slow: list[np.ndarray] = []
    for number, row in enumerate(listed(episodes)):
        if number < capacity:
            slow.append(row)
        elif (place := int(rng.random() * (number + 1.0))) < capacity:
            slow[place] = row
    offline = held(episodes, capacity, seed=seed, shard=2)
    assert np.array_equal(offline.rows, np.array(slow)) and offline.seen == sum(lengths)


def test_the_subset_is_uniform_over_all_rows_and_follows_from_the_seed() -> None:
    episodes = [episode(i, 10) for i in range(10)]
    count = np.zeros(100)
    for seed in range(400):
        obs = LAYOUT.views(held(episodes, 25, seed=seed).rows).obs
        count[((obs[:, 0] - 1000) * 10 + obs[:, 1]).astype(int)] += 1
    assert count.sum() == 400 * 25 and abs(count - 100).max() < 5 * math.sqrt(100 * 0.75)
    same, again, other = (held(episodes, 25, seed=seed) for seed in (1, 1, 2))
    assert same.digest == again.digest != other.digest


@settings(deadline=None, max_examples=80)
@given(fraction=st.floats(0, 1), batch=st.integers(1, 64), updates=st.integers(1, 3), recent=st.floats(0, 1))
def test_every_batch_has_exactly_the_stated_share_and_every_slot_names_its_row(
    fraction: float, batch: int, updates: int, recent: float
) -> None:
    shard = mixing_shard(fraction, online=90, recent_fraction=recent, recent_rows=7)
    block, share = block_of(shard.sample(updates, batch)), round(fraction * batch)
    assert shard.store.offline is not None
    offline = block.slot_UB < 0
    assert (offline == (np.arange(batch) < share)).all()
    for row, slot, writes, version in zip(
        block.rows_UBD.reshape(-1, LAYOUT.width), block.slot_UB.flat, block.writes_UB.flat, block.version_UB.flat
    ):
        if slot < 0:
            assert (row == shard.store.offline.rows[-1 - slot]).all() and (writes, version) == (0, -1)
        else:
            assert (row == shard.store.rows[slot]).all() and version == shard.store.version[slot]
            assert writes == shard.store.writes(np.array([slot]))[0] >= 1
    newest = round(recent * (batch - share))
    age_UR = (shard.store.inserted - 1 - block.slot_UB[:, batch - newest :]) % shard.store.capacity
    assert (age_UR < 7).all(), "the newest rows keep their share of the online part"
    assert {array.dtype for array in (block.slot_UB, block.writes_UB, block.version_UB)} == {np.dtype(np.int64)}
    assert block.rows_UBD.dtype == np.float32 and block.rows_UBD.flags.c_contiguous and block.rows_UBD.flags.owndata


def test_rows_of_the_dataset_are_drawn_uniformly() -> None:
    slots = block_of(mixing_shard(0.5).sample(460, 100)).slot_UB[:, :50]
    count = np.bincount(-1 - slots.ravel(), minlength=23)
    assert len(count) == 23 and abs(count - 1000).max() < 5 * math.sqrt(1000)


def test_without_a_share_the_draws_are_those_of_a_shard_without_a_dataset_bit_by_bit() -> None:
    mixed = mixing_shard(0.0)
    config = ReplayConfig(capacity_rows=64)
    alone = Shard(TransitionStore(LAYOUT, config), Limiter(1, 1e6, 1e12), shard=0, seed=3, batch_size=1)
    for sequence in range(4):
        alone.append(make_chunk([(sequence, 0, 10, 0)], sequence=sequence, version=sequence))
    for _ in range(3):
        one, other = block_of(mixed.sample(2, 16)), block_of(alone.sample(2, 16))
        for name in ("rows_UBD", "slot_UB", "writes_UB", "version_UB"):
            assert np.array_equal(getattr(one, name), getattr(other, name))
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([3, 0])))
    slow = [[int(u * 40) for u in row] for _ in range(3) for row in rng.random((2, 16))]
    assert block_of(other).slot_UB.tolist() == slow[-2:], "all forty rows held are among the newest"
    assert "offline" not in alone.state() and alone.state()["limiter"].keys() == Limiter(1, 1.0, 1.0).state().keys()


@pytest.mark.parametrize(("fraction", "share"), [(0.0, 0), (1.0, 20), (-1.0, round(20 * 23 / 63))])
def test_the_share_may_be_nothing_all_or_by_the_sizes_of_both(fraction: float, share: int) -> None:
    block = block_of(mixing_shard(fraction).sample(3, 20))
    assert (block.slot_UB < 0).sum(axis=1).tolist() == [share] * 3


def test_before_min_size_nothing_is_drawn_and_the_dataset_does_not_count_as_rows_stored() -> None:
    shard = mixing_shard(online=10, min_size=30)
    assert shard.sample(1, 4) == Wait(reason="min_size", retry_after_s=0.05)
    for sequence in (1, 2):
        shard.append(make_chunk([(sequence, 0, 10, 0)], sequence=sequence))
    block = block_of(shard.sample(1, 4))
    assert (block.inserted, block.size) == (30, 30)
    stats = shard.stats()
    assert (stats.stored_rows, stats.size, stats.capacity, stats.offline_episodes) == (30, 53, 87, 4)
    assert shard.limiter.sampled == 4


def test_a_number_of_updates_comes_before_the_first_row_and_is_free_of_the_ratio() -> None:
    shard = mixing_shard(0.5, online=0, pretrain=40, min_size=20, ratio=2.0)
    shard.limiter.tolerance = 10
    assert shard.append(make_chunk([(0, 0, 10, 0)])).status == "wait"
    for _ in range(2):
        block = block_of(shard.sample(2, 12))
        assert (block.slot_UB < 0).all() and (block.inserted, block.size) == (0, 0)
    assert shard.limiter.sampled == 48 and shard.limiter.credit == -40 - 8, "8 rows more than 40: these count"
    assert shard.sample(1, 12) == Wait(reason="min_size", retry_after_s=0.05)
    for sequence in range(2):
        assert shard.append(make_chunk([(sequence, 0, 10, 0)], sequence=sequence)).status == "ok"
    assert shard.limiter.credit == -8
    assert ((block_of(shard.sample(1, 12)).slot_UB < 0).sum(axis=1) == 6).all()


RATIOS = st.one_of(st.integers(1, 600).map(float), st.floats(0.01, 600.0))


@settings(deadline=None, max_examples=120)
@given(
    ratio=RATIOS, min_size=st.integers(1, 200), pretrain=st.integers(0, 20_000), chunk=st.integers(1, 64), block=st.integers(1, 5_000),
    moves=st.lists(st.booleans(), max_size=200),
)  # fmt: skip
def test_with_updates_before_the_first_row_the_ratio_stays_in_its_band_and_some_side_may_go_on(
    ratio: float, min_size: int, pretrain: int, chunk: int, block: int, moves: list[bool]
) -> None:
    tolerance = feasible_tolerance(chunk_rows=chunk, block_rows=block, samples_per_insert=ratio)
    limiter = Limiter(min_size, ratio, tolerance, pretrain)
    for inserting in moves:
        assert limiter.can_insert(chunk) or limiter.can_sample(block)
        if inserting and limiter.can_insert(chunk):
            limiter.insert(chunk)
        elif not inserting and limiter.can_sample(block):
            limiter.sample(block)
        assert limiter.inserted == 0 or limiter.sampled >= pretrain
        if limiter.inserted >= min_size:
            due = (limiter.inserted - min_size) * ratio
            assert abs(due - (limiter.sampled - pretrain)) <= max(tolerance * ratio, block) + 1e-3
    again = Limiter(min_size, ratio, tolerance, pretrain)
    again.load_state(limiter.state())
    assert (again.credit, again.pretraining) == (limiter.credit, limiter.pretraining)


def test_updates_that_a_lost_learner_had_made_before_the_first_row_are_owed_again() -> None:
    limiter = Limiter(10, 2.0, 100, pretrain=40)
    limiter.sample(40)
    limiter.insert(10)
    limiter.sampled = 25
    assert limiter.pretraining and not limiter.can_insert(1) and limiter.can_sample(15)
    limiter.close()
    assert not limiter.exhausted
    limiter.sample(15)
    assert limiter.exhausted and limiter.credit == 0


def test_a_limiter_that_waits_for_draws_from_no_dataset_is_refused() -> None:
    with pytest.raises(ValueError, match=r"drawn from nothing; set data.pretrain_updates to 0"):
        Shard(TransitionStore(LAYOUT, ReplayConfig()), Limiter(1, 1.0, 1.0, 5), shard=0, seed=0, batch_size=1)
    with pytest.raises(ValueError, match="pretrain >= 0"):
        Limiter(1, 1.0, 1.0, -1)


@pytest.mark.parametrize("n_step", [1, 3])
def test_a_restored_shard_draws_on_bit_by_bit_and_its_snapshot_has_no_row_of_the_dataset(
    tmp_path: Path, n_step: int
) -> None:
    def make() -> Shard:
        offline = OfflineRows(LAYOUT, iter(EPISODES), 15, n_step=n_step, gamma=0.9, seed=3)
        return mixing_shard(0.5, online=0, offline=offline, n_step=n_step)

    shard = make()
    for sequence in range(4):
        shard.append(make_chunk([(sequence, 0, 10, 0)], sequence=sequence))
    shard.sample(2, 8)
    info = snapshot.save(shard, tmp_path)
    restored = make()
    assert snapshot.load(restored, tmp_path) is not None
    for _ in range(3):
        one, other = block_of(shard.sample(2, 9)), block_of(restored.sample(2, 9))
        assert np.array_equal(one.rows_UBD, other.rows_UBD) and np.array_equal(one.slot_UB, other.slot_UB)
    assert info.bytes_written < 64 * (4 * LAYOUT.width + 37) + 8_192


def test_a_shard_whose_dataset_was_made_again_is_not_restored(tmp_path: Path) -> None:
    snapshot.save(mixing_shard(), tmp_path)
    with pytest.raises(
        snapshot.SnapshotError, match=r"gives 22 rows .*, expected the 23 rows .*made again.*restore the dataset"
    ):
        snapshot.load(mixing_shard(online=0, offline=held([episode(0, 4), *EPISODES[1:]])), tmp_path)


def test_the_memory_that_is_promised_counts_the_dataset() -> None:
    config = ReplayConfig(capacity_rows=5_000)
    assert transition_bytes(LAYOUT, config, 23) - transition_bytes(LAYOUT, config) == 23 * 4 * LAYOUT.width
    shard = mixing_shard()
    table = sum(getattr(shard.store, name).nbytes for name in shard.store.columns)
    assert shard.store.nbytes - table == held(EPISODES).nbytes == 23 * 4 * LAYOUT.width


def test_shards_share_the_dataset_between_them_without_a_row_twice() -> None:
    parts = [held(EPISODES[shard::2], shard=shard).rows for shard in range(2)]
    together = {row.tobytes() for part in parts for row in part}
    assert sum(map(len, parts)) == len(together) == 23
    assert together == {row.tobytes() for row in listed(EPISODES)}


def test_episodes_of_another_shape_none_at_all_and_rewards_beyond_float32_are_refused() -> None:
    def wide() -> Iterator[StoredEpisode]:
        yield episode(5)._replace(obs_TO=np.zeros((7, 4), np.float32))

    with pytest.raises(DatasetError, match=r"observations \(7, 4\).*expected \(7, 3\).*another environment"):
        OfflineRows(LAYOUT, wide(), 10)
    with pytest.raises(DatasetError, match=r"no episode to shard 1, expected at least one.*replay.shards"):
        held([], shard=1)
    with pytest.raises(DatasetError, match=r"float32 cannot hold.*scale its rewards"):
        held([episode(6)._replace(reward_T=np.full(7, 1e300))])
