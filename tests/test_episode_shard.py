"""What a shard of whole episodes stores, answers and hands out."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from episode_parts import P, free_shard, key_of, keys_of, make_shard, source, stored
from shard_chunks import LAYOUT, make_chunk, reward_of

from replay import episode_assembly
from replay.config import DataConfig, ReplayConfig
from replay.episode_store import EpisodeStore
from replay.limiter import StagedLimiter
from replay.memory import episode_bytes
from replay.messages import CUT, TERMINATED, TRUNCATED, Chunk, EpisodeBlock, Wait
from replay.schema import EpisodeMetadata
from replay.shard import Shard

NAN = float("nan")


def with_metadata(chunk: Chunk, *metadata: tuple[int, str, float, float, float]) -> Chunk:
    first = chunk.worker << 48 | chunk.incarnation << 32
    return dataclasses.replace(
        chunk, metadata=tuple(EpisodeMetadata(first | counter, *rest) for counter, *rest in metadata)
    )


def block_of(answer: EpisodeBlock | Wait) -> EpisodeBlock:
    assert isinstance(answer, EpisodeBlock), answer
    return answer


def conserved(shard: Shard) -> None:
    stats = shard.stats()
    assert stats.received_rows == stats.stored_rows + stats.duplicate_rows + sum(stats.rejected_rows.values())
    assert stats.stored_rows == stats.episode_rows + stats.open_rows + sum(stats.lost_rows.values())


def test_an_episode_is_stored_when_its_flag_comes_with_the_metadata_of_its_first_row() -> None:
    shard = make_shard()
    first = with_metadata(make_chunk([(0, 0, 5, 0), (1, 0, 5, 0)], version=3), (0, "explore", 7.0, 6.5, 0.25))
    assert shard.append(first).status == "ok"
    assert shard.stats().open_rows == 10 and shard.stats().episodes == 0
    second = make_chunk([(0, 5, 2, TRUNCATED), (2, 0, 3, 0), (1, 5, 5, 0)], sequence=1, version=4)
    assert shard.append(second).status == "ok"
    block = block_of(shard.sample(2, 3))
    assert {key for batch in keys_of(block) for key in batch} == {(0, 0)}
    rows = block.batches[0].rows_NF[:7]
    expected = np.concatenate([first.rows_ND[:5, :6], second.rows_ND[:2, :6]])
    assert (rows == expected).all() and (rows[:, 1] == np.arange(7)).all()
    assert block.batches[0].return_B[0] == np.float32(reward_of(0, np.arange(7)).sum(dtype=np.float64))
    table, slot = shard.store.arena, int(block.slot_UB[0, 0])
    assert (table.mode[slot], table.target[slot], table.predicted[slot], table.variance[slot]) == (
        "explore", 7.0, 6.5, 0.25)  # fmt: skip
    assert (block.version_UB == 3).all() and table.flag[slot] == TRUNCATED and table.stage[slot] == 1
    returns = block.returns
    assert (block.inserted, returns.episodes, returns.stage_episodes, returns.stage_target) == (20, 1, 1, 7.0)
    conserved(shard)


def test_batches_of_a_block_are_packed_without_padding_and_have_their_shapes_and_types() -> None:
    shard = make_shard(offline=[3, 5, 9])
    shard.append(make_chunk([(0, 0, 4, TERMINATED)]))
    block = block_of(shard.sample(3, 5))
    assert len(block.batches) == 3 and block.slot_UB.shape == block.writes_UB.shape == block.version_UB.shape == (
        3,
        5,
    )
    for batch in block.batches:
        assert len(batch) == 5 and batch.offset.dtype == np.int64 and batch.offset.shape == (6,)
        assert batch.rows_NF.dtype == np.float32 and batch.rows_NF.shape == (batch.offset[-1], 6)
        assert (batch.return_B.dtype, batch.posterior_BP.dtype, batch.visits_B.dtype) == (
            np.float32,
            np.float32,
            np.int32,
        )
        assert batch.posterior_BP.shape == (5, P)
    assert set(np.unique(block.version_UB)) == {-1, 0}


@pytest.mark.parametrize(("fraction", "share"), [(0.0, 0), (0.25, 2), (0.5, 4), (1.0, 8)])
def test_each_batch_has_its_share_of_the_dataset(fraction: float, share: int) -> None:
    shard = make_shard(offline=[3, 5, 9], offline_fraction=fraction)
    assert isinstance(shard.sample(1, 8), Wait)
    shard.append(make_chunk([(0, 0, 4, TERMINATED)]))
    block = block_of(shard.sample(6, 8))
    assert ((block.version_UB < 0).sum(axis=1) == share).all()


def test_all_comes_from_one_side_while_the_other_has_nothing() -> None:
    offline = free_shard(offline=[3, 5], offline_fraction=0.0)
    assert (block_of(offline.sample(2, 8)).version_UB == -1).all()
    online = free_shard(offline_fraction=1.0)
    online.append(make_chunk([(0, 0, 4, TERMINATED)]))
    assert (block_of(online.sample(2, 8)).version_UB == 0).all()


def test_as_one_pool_dataset_and_online_episodes_are_drawn_by_their_lengths_alone() -> None:
    shard = free_shard(offline=[10, 20], offline_fraction=-1.0)
    shard.append(make_chunk([(0, 0, 70, TERMINATED)]))
    block = block_of(shard.sample(40, 50))
    assert (block.version_UB == 0).mean() == pytest.approx(0.7, abs=0.05)


def test_draws_depend_on_the_seed_and_the_shard_alone() -> None:
    def drawn(seed: int, index: int) -> list[int]:
        shard = free_shard(offline=[4] * 50, seed=seed, shard=index, shards=2)
        return block_of(shard.sample(2, 8)).slot_UB.ravel().tolist()

    assert drawn(1, 0) == drawn(1, 0)
    assert drawn(1, 0) != drawn(1, 1) and drawn(1, 0) != drawn(2, 0)


def test_what_is_written_back_comes_with_the_episode_and_not_with_the_next_one_in_its_place() -> None:
    shard = free_shard(online_rows=10)
    shard.append(make_chunk([(0, 0, 6, TERMINATED)]))
    block = block_of(shard.sample(1, 2))
    value = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    assert shard.write_back(block.slot_UB[0], block.writes_UB[0], value) == 2
    again = block_of(shard.sample(1, 2)).batches[0]
    assert again.posterior_BP.tolist() == [[4, 5, 6]] * 2 and again.visits_B.tolist() == [2, 2]
    for counter in range(1, 300):
        shard.append(make_chunk([(counter, 0, 6, TERMINATED)], sequence=counter))
    assert shard.write_back(block.slot_UB[0], block.writes_UB[0], value) == 0
    fresh = block_of(shard.sample(1, 2)).batches[0]
    assert (fresh.posterior_BP == 0).all() and (fresh.visits_B == 0).all()


@pytest.mark.parametrize(
    ("slots", "writes", "values"),
    [([0], [1], [[0.0, 0.0]]), ([0, 1], [1], [[0.0] * P]), ([-1], [1], [[0.0] * P]), ([9_999], [1], [[0.0] * P]),
     ([0], [1], [[NAN] * P])],
)  # fmt: skip
def test_a_write_back_that_does_not_fit_is_refused_whole(slots: list, writes: list, values: list) -> None:
    shard = make_shard(offline=[4])
    with pytest.raises(ValueError, match="nothing was written"):
        shard.write_back(np.array(slots), np.array(writes), np.array(values))


def test_repeats_malformed_and_late_chunks_are_answered_like_those_of_transitions() -> None:
    shard = free_shard(online_rows=50)
    chunk = make_chunk([(0, 0, 5, TERMINATED)])
    assert [shard.append(chunk).status for _ in range(2)] == ["ok", "duplicate"]
    broken = make_chunk([(1, 0, 5, 0)], sequence=1)
    broken.rows_ND[2, 0] = np.nan
    assert shard.append(broken).reason.startswith("nonfinite")
    bad_metadata = with_metadata(
        make_chunk([(1, 0, 5, 0)], sequence=1), (1, "a mode of far too many letters", NAN, NAN, NAN)
    )
    assert shard.append(bad_metadata).reason.startswith("metadata")
    assert shard.append(make_chunk([(1, 0, 5, 0)], sequence=2_000)).status == "ok"
    assert shard.append(make_chunk([(2, 0, 5, 0)], sequence=3)).reason.startswith("stale")
    shard.close()
    assert shard.append(make_chunk([(2, 0, 5, 0)], sequence=2_001)).reason.startswith("closed")
    stats = shard.stats()
    assert (stats.stored_rows, stats.duplicate_rows, stats.rejected_chunks) == (
        10, 5, {"nonfinite": 1, "metadata": 1, "stale": 1, "closed": 1})  # fmt: skip
    conserved(shard)


def test_gathering_and_learning_take_turns_and_end_exhausted() -> None:
    shard = make_shard(offline=[4, 4], before=8, stages=2, episodes=2, items=4)
    end = [(0, 0, 3, TERMINATED), (1, 0, 3, TERMINATED), (2, 0, 3, TERMINATED)]
    assert shard.append(make_chunk(end)).status == "wait"
    for _ in range(2):
        assert isinstance(shard.sample(1, 4), EpisodeBlock)
    waiting = shard.sample(1, 4)
    assert isinstance(waiting, Wait) and waiting.reason == "min_size"
    assert shard.append(make_chunk(end)).status == "ok"  # three of two: taken whole
    assert shard.append(make_chunk([(3, 0, 3, 0)], sequence=1)).status == "wait"
    block = block_of(shard.sample(1, 4))  # the last of stage 1 is of stage 1, although it opens the next
    assert (block.returns.stage, block.returns.stage_episodes) == (1, 3)
    assert shard.append(make_chunk([(3, 0, 3, TERMINATED)], sequence=1)).status == "ok"
    assert shard.limiter.gathered
    assert shard.append(make_chunk([(4, 0, 3, 0)], sequence=2)).reason.startswith("closed")
    block = block_of(shard.sample(1, 4))
    assert (block.returns.stage, block.returns.stage_episodes) == (2, 1)
    done = shard.sample(1, 4)
    assert isinstance(done, Wait) and done.reason == "exhausted"
    shard.align(-4)
    assert isinstance(shard.sample(1, 4), EpisodeBlock)


def test_episodes_that_can_never_be_whole_are_dropped_by_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(episode_assembly, "LATE", 4)
    shard = free_shard(online_rows=60)
    runs = [
        [
            (0, 3, 2, 0),
            (1, 0, 2, 0),
            (2, 0, 2, 0),
            (3, 0, 2, 0),
            (4, 0, 20, 0),
        ],  # 0: start lost, 3: never heard of again
        [(0, 5, 2, 0), (1, 2, 2, CUT), (2, 5, 2, 0), (4, 20, 20, 0)],  # 1: cut, 2: gap
        [(0, 7, 2, 0), (2, 7, 2, 0), (4, 40, 21, 0)],  # 4: too long
        [(0, 9, 2, 0), (2, 9, 2, TERMINATED), (4, 61, 3, TERMINATED), (5, 0, 3, TERMINATED)],
        [(6, 0, 2, 0)],
        [(6, 2, 2, 0)],
        [(6, 4, 2, 0)],
    ]
    for sequence, run in enumerate(runs):
        assert shard.append(make_chunk(run, sequence=sequence)).status == "ok"
        conserved(shard)
    assert shard.stats().lost_rows == {"start_lost": 8, "cut": 4, "gap": 8, "end_lost": 2, "too_long": 64}
    assert shard.append(make_chunk([(0, 0, 1, 0)], incarnation=1)).status == "ok"
    stats = shard.stats()
    assert stats.lost_rows["replaced"] == 6 and (stats.open_rows, shard.store.assembly.episodes, stats.episodes) == (
        1,
        1,
        1,
    )
    conserved(shard)


def test_an_episode_with_a_step_twice_or_rows_after_its_end_is_dropped() -> None:
    shard = free_shard()
    shard.append(make_chunk([(0, 0, 5, 0), (1, 0, 5, TERMINATED)]))
    shard.append(make_chunk([(0, 3, 5, TERMINATED), (2, 4, 2, 0)], sequence=1))
    shard.append(make_chunk([(2, 0, 4, TERMINATED)], sequence=2))
    assert shard.stats().lost_rows == {"inconsistent": 16} and shard.stats().episodes == 1
    conserved(shard)


def test_unfinished_episodes_have_no_more_rows_than_the_ring() -> None:
    shard = free_shard(online_rows=50)
    for worker in range(4):
        shard.append(make_chunk([(0, 0, 14 + worker, 0)], worker=worker))
        assert shard.stats().open_rows <= 50
    assert shard.stats().lost_rows == {"crowded": 17}
    conserved(shard)


def test_a_dataset_larger_than_memory_streams_through_it_and_keeps_what_was_inferred() -> None:
    lengths = [5, 7, 6, 8, 5, 9, 6, 7, 5, 8]
    shard = free_shard(offline=lengths, offline_rows=20, refresh_episodes=1)
    seen, posterior = set(), {}
    for turn in range(60):
        block = block_of(shard.sample(1, 6))
        held = {int(shard.store.arena.episode[slot]) for slot in shard.store.arena.offline.order}
        assert shard.store.arena.size <= 20
        keys, batch = keys_of(block)[0], block.batches[0]
        for (_, index), rows, value, visits in zip(
            keys, np.split(batch.rows_NF, batch.offset[1:-1]), batch.posterior_BP, batch.visits_B
        ):
            assert index in held and len(rows) == lengths[index]
            assert (rows[:, -1] == stored(index, lengths[index]).reward_T.astype(np.float32)).all()
            expected = posterior.get(index, (0, 0))
            assert (value == expected[0]).all() and visits == expected[1]
        seen |= {index for _, index in keys}
        values = np.stack([np.full(P, turn * 100 + index, np.float32) for _, index in keys])
        assert shard.write_back(block.slot_UB[0], block.writes_UB[0], values) == 6
        for (_, index), value in zip(keys, values):
            posterior[index] = value, posterior.get(index, (0, 0))[1] + 1
    assert seen == set(range(10))


def test_a_dataset_that_fits_is_read_once() -> None:
    reads = itertools.count()

    def counting() -> object:
        next(reads)
        return source([4, 5])()

    store = EpisodeStore(LAYOUT, ReplayConfig(), DataConfig(), gathers=False, posterior_floats=0, offline=counting)  # type: ignore[arg-type]
    shard = Shard(store, StagedLimiter(items_before=100), shard=0, seed=0, batch_size=2)
    while isinstance(answer := shard.sample(2), EpisodeBlock):
        assert answer.batches[0].posterior_BP.shape == (2, 0)
    assert next(reads) == 1 and answer.reason == "exhausted" and shard.limiter.sampled == 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offline": []}, "gave no episode to this shard"),
        ({"offline": [4, 30], "offline_rows": 20, "before": 1, "sample": True}, "raise data.offline_capacity_rows"),
        ({"offline": [30], "offline_rows": 20}, "raise data.offline_capacity_rows"),
        ({"before": 10}, "it would wait for ever"),
        ({"shard": 1}, "expected a shard index below their number"),
        ({"online_rows": 0}, "room for an episode"),
    ],
)
def test_a_shard_that_could_never_work_says_what_to_do(change: dict, message: str) -> None:
    sample = change.pop("sample", False)
    with pytest.raises(ValueError, match=message):
        shard = make_shard(**change)
        if sample:
            shard.sample(1)


def test_episodes_of_another_environment_are_refused() -> None:
    wrong = stored(0, 4)._replace(obs_TO=np.zeros((4, 2), np.float32))
    with pytest.raises(ValueError, match="of another environment"):
        EpisodeStore(LAYOUT, ReplayConfig(), DataConfig(), posterior_floats=0, offline=lambda: iter([wrong]))


def test_memory_is_bounded_by_what_the_configuration_says() -> None:
    shard = free_shard(offline=[2] * 1_500, offline_rows=2_000, online_rows=2_000, refresh_episodes=50)
    for sequence in range(60):
        shard.append(make_chunk([(sequence * 20 + i, 0, 2, TERMINATED) for i in range(20)], sequence=sequence))
        shard.sample(1)
    data, config = DataConfig(offline_capacity_rows=2_000), ReplayConfig(capacity_rows=2_000)
    assert shard.store.nbytes < episode_bytes(LAYOUT, config, data, P)


def test_key_of_tells_dataset_from_worker() -> None:
    assert key_of(np.array([[-3.0, 0, 0]])) == (-1, 2)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"offline_fraction": 1.2}, "offline_fraction is 1.2"),
        ({"offline_fraction": -0.5}, "offline_fraction is -0.5"),
        ({"sampling": "best"}, "sampling is 'best'"),
        ({"return_temperature": 0.0}, "return_temperature is 0.0"),
        ({"target_quantile": 90.0}, "target_quantile is 90.0"),
        ({"offline_capacity_rows": 0}, "offline_capacity_rows is 0"),
        ({"refresh_episodes": 0}, "refresh_episodes is 0"),
    ],
)
def test_settings_with_which_nothing_could_be_drawn_are_named(change: dict, named: str) -> None:
    assert DataConfig().validate() == [] and DataConfig(offline_fraction=-1).validate() == []
    assert named in "\n".join(DataConfig(**change).validate())


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_chunks_in_any_order_give_the_episode_in_step_order(order: tuple[int, ...]) -> None:
    parts = [
        with_metadata(make_chunk([(0, 0, 3, 0)], version=5), (0, "kl", NAN, 2.0, 1.0)),
        make_chunk([(0, 3, 4, 0)], sequence=1, version=6),
        make_chunk([(0, 7, 2, TERMINATED)], sequence=2, version=7),
    ]
    shard = free_shard()
    for number, part in enumerate(order):
        assert shard.stats().episodes == 0, number
        assert shard.append(parts[part]).status == "ok"
    block = block_of(shard.sample(1, 1))
    assert (block.batches[0].rows_NF == np.concatenate([part.rows_ND[:, :6] for part in parts])).all()
    assert block.version_UB.tolist() == [[5]] and shard.store.arena.mode[block.slot_UB[0, 0]] == "kl"
    conserved(shard)
