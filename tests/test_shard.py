"""What a shard stores, answers and hands out."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from shard_chunks import LAYOUT, held, make_chunk, make_shard

from replay.admission import Writers
from replay.config import ReplayConfig
from replay.limiter import Limiter
from replay.memory import transition_bytes
from replay.messages import CUT, TERMINATED, TRUNCATED, Block, Chunk, Wait
from replay.shard import Shard
from replay.transition_store import TransitionStore


def numbered(shard: Shard, count: int, rows: int = 4) -> None:
    for sequence in range(count):
        assert shard.append(make_chunk([(sequence, 0, rows, TERMINATED)], sequence=sequence)).status == "ok"


@settings(deadline=None, max_examples=80)
@given(
    deliveries=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(0, 12)), max_size=60),
    broken=st.sets(st.integers(0, 12), max_size=3),
    capacity=st.integers(6, 300),
)
def test_at_least_once_delivery_in_any_order_stores_each_row_once_and_loses_none(
    deliveries: list[tuple[int, int, int]], broken: set[int], capacity: int
) -> None:
    shard = make_shard(capacity)
    stored: set[tuple[int, int, int]] = set()
    counts: Counter[str] = Counter()
    expected = []
    for worker, incarnation, sequence in deliveries:
        chunk = make_chunk([(sequence, 0, 3, 0), (50, 3 * sequence, 2, 0)], worker=worker, incarnation=incarnation,
                           sequence=sequence)  # fmt: skip
        key = (worker, incarnation, sequence)
        if sequence in broken:
            chunk.rows_ND[1, 0] = np.nan
        status = shard.append(chunk).status
        assert status == ("rejected" if sequence in broken else "duplicate" if key in stored else "ok")
        counts[status] += 5
        if status == "ok":
            stored.add(key)
            expected.extend(chunk.rows_ND)
    stats = shard.stats()
    assert (stats.stored_rows, stats.duplicate_rows) == (counts["ok"], counts["duplicate"])
    assert stats.rejected_rows == ({"nonfinite": counts["rejected"]} if counts["rejected"] else {})
    assert stats.received_rows == 5 * len(deliveries) == sum(counts.values())
    assert held(shard).tolist() == [row.tolist() for row in expected[-capacity:]]


@settings(deadline=None, max_examples=100)
@given(sequences=st.lists(st.integers(0, 40), max_size=80), window=st.integers(1, 12))
def test_the_dedupe_window_never_calls_a_stored_sequence_new_nor_a_recent_new_one_anything_else(
    sequences: list[int], window: int
) -> None:
    writers, stored = Writers(window=window), set[int]()
    for sequence in sequences:
        status = writers.status(0, 0, sequence)
        recent = sequence > max(stored, default=-1) - window
        assert status == ("stale" if not recent else "duplicate" if sequence in stored else "new")
        if status == "new":
            writers.store(0, 0, sequence)
            stored.add(sequence)
        again = Writers(window=window)
        again.load_state(writers.state())
        assert again.state() == writers.state()


def test_the_writer_unreported_for_longest_is_forgotten_at_the_bound() -> None:
    writers = Writers(limit=2)
    for worker in (0, 1, 0, 2):
        writers.store(worker, 0, 5 if worker else len(writers))
    assert len(writers) == 2
    assert writers.status(1, 0, 5) == "new" and writers.status(2, 0, 5) == "duplicate"


def test_a_late_chunk_of_an_old_incarnation_is_stored_once() -> None:
    shard = make_shard()
    assert shard.append(make_chunk([(0, 0, 2, 0)], incarnation=1)).status == "ok"
    late = make_chunk([(0, 0, 2, 0)], incarnation=0, sequence=7)
    assert [shard.append(late).status for _ in range(2)] == ["ok", "duplicate"]


def broken_chunks() -> dict[str, Chunk]:
    good = make_chunk([(0, 0, 3, TERMINATED), (1, 4, 3, 0)])

    def with_rows(row: int, column: int, value: float) -> Chunk:
        rows = good.rows_ND.copy()
        rows[row, column] = value
        return dataclasses.replace(good, rows_ND=rows)

    return {
        "nonfinite": with_rows(2, 8, np.inf),
        "action": with_rows(1, 3, 1.001),
        "discount": with_rows(1, 6, 0.5),
        "flag": with_rows(1, 6, 0.0),
        "shape": dataclasses.replace(good, rows_ND=good.rows_ND[:, 1:]),
        "dtype": dataclasses.replace(good, rows_ND=good.rows_ND.astype(np.float64)),
        "identity": dataclasses.replace(good, worker=1),
        "step": dataclasses.replace(good, step_N=good.step_N[::-1].copy()),
        "too_large": make_chunk([(0, 0, 65, 0)]),
    }


@pytest.mark.parametrize("reason", sorted(broken_chunks()))
def test_a_malformed_chunk_is_rejected_whole_and_counted_by_reason(reason: str) -> None:
    shard = make_shard()
    chunk = broken_chunks()[reason]
    ack = shard.append(chunk)
    assert ack.status == "rejected" and ack.reason.startswith(f"{reason}: ")
    stats = shard.stats()
    assert (stats.size, stats.stored_rows) == (0, 0)
    assert stats.rejected_rows == {reason: len(chunk.rows_ND)} and stats.rejected_chunks == {reason: 1}
    assert shard.append(make_chunk([(0, 0, 3, TERMINATED)])).status == "ok"


@pytest.mark.parametrize(
    "runs",
    [
        [(0, 0, 2, 0), (1, 0, 1, 0), (0, 2, 2, 0)],  # one episode in two pieces
        [(0, 0, 2, TERMINATED), (0, 2, 2, 0)],  # rows after the end
        [(0, 0, 2, 0), (0, 3, 2, 0)],  # a step left out
        [(0, -1, 2, 0)],
    ],
)
def test_a_torn_chunk_is_rejected(runs: list[tuple[int, int, int, int]]) -> None:
    assert make_shard().append(make_chunk(runs)).reason.startswith("step: ")


@pytest.mark.parametrize("rows", [None, [[1.0]], np.zeros((0, LAYOUT.width), np.float32)])
def test_what_is_no_array_of_rows_is_rejected_and_not_raised(rows: object) -> None:
    chunk = dataclasses.replace(make_chunk([(0, 0, 1, 0)]), rows_ND=rows)
    assert make_shard().append(chunk).status == "rejected"


def test_the_shard_copies_so_a_reused_buffer_does_no_harm() -> None:
    shard, chunk = make_shard(), make_chunk([(3, 0, 4, 0)])
    shard.append(chunk)
    before = chunk.rows_ND.copy()
    chunk.rows_ND[:] = -1
    assert (held(shard) == before).all()


@settings(deadline=None, max_examples=40)
@given(sizes=st.lists(st.integers(1, 13), min_size=1, max_size=30), capacity=st.integers(13, 40))
def test_the_ring_holds_the_newest_rows_untorn_and_knows_how_often_each_slot_was_written(
    sizes: list[int], capacity: int
) -> None:
    shard, written, rows = make_shard(capacity), np.zeros(capacity, int), []
    for sequence, size in enumerate(sizes):
        chunk = make_chunk([(sequence, 0, size, 0)], sequence=sequence, version=sequence)
        for _ in range(size):
            written[len(rows) % capacity] += 1
            rows.append(chunk.rows_ND[len(rows) - sum(sizes[:sequence])])
        shard.append(chunk)
    assert (held(shard) == np.stack(rows[-capacity:])).all()
    table = shard.store
    assert (table.writes(np.arange(capacity)) == written).all()
    in_use = np.arange(table.size)
    assert (table.episode[in_use] == table.rows[in_use, 0]).all() and (
        table.step[in_use] == table.rows[in_use, 1]
    ).all()
    assert (table.version[in_use] == table.rows[in_use, 0]).all()
    after = table.successor(in_use)
    assert (table.rows[after[after >= 0], :2] == table.rows[in_use[after >= 0]][:, 7:9]).all()
    assert (after >= 0).sum() == sum(1 for s in range(-len(rows[-capacity:]), -1) if rows[s][0] == rows[s + 1][0])


def test_a_block_carries_the_rows_of_its_slots_and_their_identity() -> None:
    shard = make_shard(20)
    numbered(shard, 12)
    block = shard.sample(3, 8)
    assert isinstance(block, Block)
    assert block.rows_UBD.shape == (3, 8, LAYOUT.width) and block.rows_UBD.flags.c_contiguous
    assert block.rows_UBD.dtype == np.float32
    assert {a.dtype for a in (block.slot_UB, block.writes_UB, block.version_UB)} == {np.dtype(np.int64)}
    assert (block.rows_UBD == shard.store.rows[block.slot_UB]).all()
    assert (block.writes_UB == shard.store.writes(block.slot_UB)).all()
    assert (block.inserted, block.size, block.shard) == (48, 20, 0)


@pytest.mark.parametrize("appended", [300, 1_000, 1_030])
def test_a_batch_mixes_uniform_and_recent_rows_in_the_given_shares(appended: int) -> None:
    shard = make_shard(500, recent_rows=100, recent_fraction=0.2, seed=3)
    numbered(shard, appended // 10, 10)
    slot_UB = shard.sample(2_000, 25).slot_UB
    age_UB = (shard.store.inserted - 1 - slot_UB) % 500
    assert (slot_UB >= 0).all() and (slot_UB < shard.store.size).all()
    assert age_UB[:, 20:].max() < 100
    assert chisquare(np.bincount(age_UB[:, 20:].ravel(), minlength=100)).pvalue > 1e-3
    assert chisquare(np.bincount(age_UB[:, :20].ravel(), minlength=shard.store.size)).pvalue > 1e-3


def test_two_shards_of_one_seed_draw_alike_and_two_parts_of_one_table_do_not() -> None:
    same = [make_shard(seed=5), make_shard(seed=5)]
    half = TransitionStore(LAYOUT, ReplayConfig(capacity_rows=128, shards=2))
    other = Shard(half, Limiter(1, 1.0, 1e9), shard=1, seed=5, batch_size=1)
    for shard in (*same, other):
        numbered(shard, 5)
    a, b, c = (shard.sample(4, 16).slot_UB for shard in (*same, other))
    assert (a == b).all() and (a != c).any()


def test_whole_episodes_come_back_in_step_order_and_partial_ones_do_not() -> None:
    shard = make_shard(20)
    shard.append(make_chunk([(0, 0, 4, TERMINATED)], sequence=0))  # will lose its first rows
    shard.append(make_chunk([(1, 2, 3, TRUNCATED), (2, 0, 2, 0)], sequence=2))
    shard.append(make_chunk([(1, 0, 2, 0), (3, 0, 5, CUT)], sequence=1))
    shard.append(make_chunk([(2, 2, 6, TERMINATED)], sequence=3))
    episodes = {e.episode: e for e in shard.store.episodes()}
    assert {k: (len(e.rows_TD), e.flag) for k, e in episodes.items()} == {
        1: (5, TRUNCATED),
        2: (8, TERMINATED),
        3: (5, CUT),
    }
    for counter, episode in episodes.items():
        assert (episode.rows_TD[:, 0] == counter).all()
        assert episode.rows_TD[:, 1].tolist() == list(range(len(episode.rows_TD)))


def test_the_limiter_holds_both_sides_and_the_time_they_waited_is_counted() -> None:
    now = [0.0]
    store = TransitionStore(LAYOUT, ReplayConfig(capacity_rows=64))
    shard = Shard(store, Limiter(4, 2.0, 4), shard=0, seed=0, batch_size=1, clock=lambda: now[0])
    assert shard.sample(1, 4) == Wait(reason="min_size", retry_after_s=0.05)
    now[0] = 2.0
    numbered(shard, 2)
    waiting = make_chunk([(9, 0, 1, 0)], sequence=9)
    ack = shard.append(waiting)
    assert ack.status == "wait" and ack.retry_after_s > 0
    now[0] = 5.0
    assert isinstance(shard.sample(4, 4), Block)
    assert shard.append(waiting).status == "ok"
    assert isinstance(shard.sample(1, 2), Block)
    assert shard.sample(1, 4) == Wait(reason="samples_ahead", retry_after_s=0.005)
    now[0] = 6.0
    stats = shard.stats()
    assert (stats.insert_blocked_s, stats.sample_blocked_s) == (3.0, 6.0)
    assert (stats.received_rows, stats.stored_rows, shard.limiter.sampled) == (9, 9, 18)


def test_a_closed_shard_serves_the_rest_of_its_budget_and_then_is_exhausted() -> None:
    shard = make_shard(min_size=4, ratio=2.0)
    numbered(shard, 3)
    shard.close()
    assert isinstance(shard.sample(4, 4), Block)
    assert shard.sample(1, 4) == Wait(reason="exhausted", retry_after_s=0.0)
    assert shard.append(make_chunk([(9, 0, 1, 0)], sequence=9)).reason.startswith("closed: ")


def test_acks_carry_the_newest_policy_and_ages_at_insert_are_counted() -> None:
    shard = make_shard()
    shard.append(make_chunk([(0, 0, 2, 0)], generation=1, version=5))
    shard.sample(1, 1, newest=(1, 9))
    shard.observe_version(0, 99)  # of an earlier learner: not newer
    ack = shard.append(make_chunk([(1, 0, 17, 0)], sequence=1, generation=1, version=6))
    assert (ack.generation, ack.version) == (1, 9)
    shard.append(make_chunk([(2, 0, 1, 0)], sequence=2, generation=0, version=8))
    stats = shard.stats()
    assert {age: int(n) for age, n in enumerate(stats.age_rows) if n} == {0: 2, 3: 17, 64: 1}


def test_worker_reports_are_drained_once_and_last_seen_is_kept() -> None:
    shard = make_shard()
    chunk = make_chunk([(0, 0, 2, 0)], worker=3)
    shard.append(chunk)
    shard.append(chunk)
    assert [(r.worker, r.incarnation, r.stats) for r in shard.drain_stats()] == [(3, 0, {"steps": 2.0})]
    assert shard.drain_stats() == []
    assert list(shard.stats().last_seen_s) == [3]


def test_a_shard_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="it could never be sampled"):
        make_shard(10, batch_size=11)


def test_memory_is_bounded_by_what_the_configuration_says() -> None:
    config = ReplayConfig(capacity_rows=1_000, shards=2)
    shard = Shard(TransitionStore(LAYOUT, config), Limiter(1, 1.0, 1e9), shard=0, seed=0, batch_size=1)
    needed = transition_bytes(LAYOUT, config)
    assert 2 * shard.store.nbytes < needed < 2 * shard.store.nbytes + 2 * 5e6
    million = transition_bytes(LAYOUT, ReplayConfig())
    assert million == pytest.approx(1e6 * (4 * LAYOUT.width + 37), rel=1.5)
