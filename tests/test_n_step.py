"""Returns of several steps against a loop written from their definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_chunks import LAYOUT, make_chunk, make_shard, reward_of

from replay.messages import CUT, TERMINATED, TRUNCATED, Chunk
from replay.shard import Shard
from replay.transition_store import gather_n_step

GAMMA = 0.9


def slow_row(shard: Shard, slot: int, n: int) -> np.ndarray:
    """The row of up to ``n`` steps, found by searching the whole table for each next step."""
    table = shard.store
    where = {(int(table.episode[s]), int(table.step[s])): s for s in range(table.size)}
    row, total, m = table.rows[slot].copy(), 0.0, 0
    while True:
        total += GAMMA**m * table.rows[slot, 5]
        m += 1
        row[6:] = table.rows[slot, 6:]
        row[6] *= GAMMA ** (m - 1)
        after = where.get((int(table.episode[slot]), int(table.step[slot]) + 1))
        if m == n or table.flag[slot] or after is None:
            row[5] = total
            return row
        slot = after


def episode_chunks(lengths: list[int], flags: list[int], width: int, order: np.random.Generator) -> list[Chunk]:
    """Episodes of these lengths cut into runs of ``width``, all of one turn in a chunk; the chunks are shuffled."""
    runs = []
    for counter, (length, flag) in enumerate(zip(lengths, flags)):
        pieces = [
            (counter, s, min(width, length - s), flag if s + width >= length else 0) for s in range(0, length, width)
        ]
        runs.append(pieces)
    chunks = []
    for sequence in range(max(len(pieces) for pieces in runs)):
        present = [pieces[sequence] for pieces in runs if sequence < len(pieces)]
        chunks.append(make_chunk(present, sequence=sequence))
    return [chunks[i] for i in order.permutation(len(chunks))]


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    flags=st.lists(st.sampled_from([0, TERMINATED, TRUNCATED, CUT, TERMINATED | TRUNCATED]), min_size=4, max_size=4),
    width=st.integers(1, 5),
    n=st.integers(1, 6),
    capacity=st.integers(20, 50),
    seed=st.integers(0, 9),
)
def test_it_equals_the_definition_at_every_row_whatever_the_order_of_arrival(
    lengths: list[int], flags: list[int], width: int, n: int, capacity: int, seed: int
) -> None:
    shard = make_shard(capacity)
    for chunk in episode_chunks(lengths, flags, width, np.random.default_rng(seed)):
        assert shard.append(chunk).status == "ok"
    slot_M = np.arange(shard.store.size)
    fast = gather_n_step(shard.store, slot_M, n=n, gamma=GAMMA)
    slow = np.stack([slow_row(shard, slot, n) for slot in slot_M])
    np.testing.assert_allclose(fast, slow, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("flag", "discount"), [(TERMINATED, 0.0), (TRUNCATED, GAMMA), (CUT, GAMMA)])
def test_a_terminated_end_stops_the_bootstrap_and_a_truncated_one_does_not(flag: int, discount: float) -> None:
    shard = make_shard()
    shard.append(make_chunk([(0, 0, 2, flag), (1, 0, 4, 0)]))
    row = LAYOUT.views(gather_n_step(shard.store, np.array([0]), n=5, gamma=GAMMA)[0])
    assert row.discount == pytest.approx(discount)
    assert row.reward == pytest.approx(float(reward_of(0, 0) + GAMMA * reward_of(0, 1)))
    assert row.next_obs.tolist() == [0, 2, 0]


def test_a_row_whose_successor_was_overwritten_is_summed_no_further() -> None:
    shard = make_shard(8)
    shard.append(make_chunk([(0, 2, 2, 0)], sequence=1))  # arrives first, is overwritten first
    shard.append(make_chunk([(0, 0, 2, 0)], sequence=0))
    assert LAYOUT.views(gather_n_step(shard.store, np.array([3]), n=3, gamma=GAMMA)).next_obs[0, 1] == 4
    shard.append(make_chunk([(9, 0, 6, 0)], sequence=2))
    assert LAYOUT.views(gather_n_step(shard.store, np.array([3]), n=3, gamma=GAMMA)).next_obs[0, 1] == 2


def test_sampling_with_n_steps_serves_such_rows_and_leaves_the_table_as_it_was() -> None:
    shard = make_shard(n_step=3, gamma=GAMMA)
    shard.append(make_chunk([(0, 0, 6, TERMINATED), (1, 0, 6, TRUNCATED)]))
    before = shard.store.rows.copy()
    block = shard.sample(2, 32)
    slow = np.stack([slow_row(shard, int(slot), 3) for slot in block.slot_UB.ravel()])
    np.testing.assert_allclose(block.rows_UBD.reshape(-1, LAYOUT.width), slow, rtol=1e-6, atol=1e-6)
    assert (shard.store.rows == before).all()
