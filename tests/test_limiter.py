"""The replay ratio, held in both directions, without ever blocking both."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.config import ReplayConfig
from replay.limiter import Limiter, apportioned, feasible_tolerance

RATIOS = st.one_of(st.integers(1, 600).map(float), st.floats(0.01, 600.0))


@settings(deadline=None, max_examples=150)
@given(
    ratio=RATIOS,
    min_size=st.integers(1, 200),
    largest_chunk=st.integers(1, 64),
    largest_block=st.integers(1, 5_000),
    moves=st.lists(st.tuples(st.booleans(), st.floats(0.01, 1.0)), max_size=300),
)
def test_the_ratio_stays_in_its_band_and_some_side_may_always_go_on(
    ratio: float, min_size: int, largest_chunk: int, largest_block: int, moves: list[tuple[bool, float]]
) -> None:
    tolerance = feasible_tolerance(chunk_rows=largest_chunk, block_rows=largest_block, samples_per_insert=ratio)
    limiter = Limiter(min_size, ratio, tolerance)
    for inserting, share in moves:
        chunk, block = math.ceil(share * largest_chunk), math.ceil(share * largest_block)
        assert limiter.can_insert(largest_chunk) or limiter.can_sample(largest_block)
        if inserting and limiter.can_insert(chunk):
            limiter.insert(chunk)
        elif not inserting and limiter.can_sample(block):
            limiter.sample(block)
        if limiter.inserted < min_size:
            assert limiter.sampled == 0
        else:
            due = (limiter.inserted - min_size) * ratio
            assert abs(due - limiter.sampled) <= tolerance * ratio + 1e-3


@pytest.mark.parametrize("eager", ["insert", "sample"])
def test_a_greedy_side_runs_ahead_by_the_tolerance_and_the_long_run_ratio_is_exact(eager: str) -> None:
    limiter = Limiter(100, 512.0, feasible_tolerance(chunk_rows=128, block_rows=4096, samples_per_insert=512.0))
    for _ in range(20_000):
        can_insert, can_sample = limiter.can_insert(128), limiter.can_sample(4096)
        if can_insert and (eager == "insert" or not can_sample):
            limiter.insert(128)
        else:
            assert can_sample
            limiter.sample(4096)
    assert limiter.sampled / (limiter.inserted - 100) == pytest.approx(512.0, rel=0.01)


def test_less_than_the_feasible_tolerance_can_block_both_sides() -> None:
    least = feasible_tolerance(chunk_rows=64, block_rows=64, samples_per_insert=1.0)
    limiter = Limiter(1, 1.0, least - 1)
    limiter.insert(1)
    assert not limiter.can_insert(64)
    assert not limiter.can_sample(64)
    assert Limiter(1, 1.0, least).can_insert(64)


def test_inserts_are_free_up_to_min_size_and_samples_wait_for_it() -> None:
    limiter = Limiter(1_000, 2.0, 10)
    for _ in range(10):
        assert not limiter.can_sample(1)
        assert limiter.can_insert(100)
        limiter.insert(100)
    assert limiter.credit == 0
    assert limiter.can_insert(10) and not limiter.can_insert(11)
    assert limiter.can_sample(20) and not limiter.can_sample(21)


def test_a_closed_limiter_lets_samples_finish_the_budget_and_no_more() -> None:
    limiter = Limiter(10, 4.0, 20)
    limiter.insert(30)
    limiter.close()
    assert not limiter.can_insert(1)
    for _ in range(8):
        assert limiter.can_sample(10) and not limiter.exhausted
        limiter.sample(10)
    assert not limiter.can_sample(1) and limiter.exhausted
    limiter.load_state(limiter.state())  # as a run that is resumed
    assert limiter.can_insert(1) and limiter.can_sample(1)


def test_closing_before_min_size_is_exhausted_at_once() -> None:
    limiter = Limiter(10, 4.0, 20)
    limiter.insert(5)
    limiter.close()
    assert limiter.exhausted and not limiter.can_sample(1)


def test_state_round_trips_and_another_ratio_starts_the_credit_anew() -> None:
    limiter = Limiter(10, 4.0, 20)
    limiter.insert(15)
    limiter.sample(7)
    same, other = Limiter(10, 4.0, 20), Limiter(10, 400.0, 20)
    same.load_state(limiter.state())
    other.load_state(limiter.state())
    assert same.state() == limiter.state() and same.credit == limiter.credit == 13
    assert (other.inserted, other.sampled, other.credit) == (15, 7, 0)
    assert other.can_insert(1) and other.can_sample(1)


@pytest.mark.parametrize("bad", [(0, 1.0, 1), (1, 0.0, 1), (1, math.inf, 1), (1, 1.0, 0)])
def test_a_limiter_that_could_never_work_is_refused(bad: tuple[int, float, float]) -> None:
    with pytest.raises(ValueError, match="nothing could ever be sampled"):
        Limiter(*bad)


def problems(config: ReplayConfig, batch_size: int = 256) -> str:
    return "\n".join(config.validate(batch_size=batch_size, updates_per_call=16, envs_per_worker=8, chunk_steps=16))


def test_default_settings_are_feasible() -> None:
    assert problems(ReplayConfig()) == ""


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"shards": 0}, "replay.shards is 0"),
        ({"recent_fraction": 1.5}, "replay.recent_fraction is 1.5"),
        ({"replay_ratio": 0.0}, "replay.replay_ratio is 0.0"),
        ({"n_step": 0}, "replay.n_step is 0"),
        ({"capacity_rows": 200, "min_size_rows": 100}, "a batch is larger than the buffer"),
        ({"capacity_rows": 1_000}, "training would never start"),
        ({"tolerance_rows": 5}, "expected 0 or at least 128"),
        ({"tolerance_rows": 200, "shards": 2}, "expected 0 or at least 256"),
    ],
)
def test_infeasible_settings_are_named_with_what_follows_and_what_to_do(change: dict[str, float], named: str) -> None:
    assert named in problems(ReplayConfig(**change))  # type: ignore[arg-type]


def test_the_least_tolerance_named_by_a_problem_is_accepted() -> None:
    assert problems(ReplayConfig(tolerance_rows=256, shards=2)) == ""
    limiter = ReplayConfig(shards=2).limiter(batch_size=256, chunk_rows=128, block_rows=4096)
    assert (limiter.min_size, limiter.samples_per_insert, limiter.tolerance) == (2_500, 512.0, 128)


@settings(deadline=None, max_examples=100)
@given(
    counts=st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**6)), min_size=1, max_size=8),
    total=st.integers(0, 10**9),
)
def test_samples_are_dealt_to_shards_so_that_they_add_up_and_none_has_less_than_none(
    counts: list[tuple[int, int]], total: int
) -> None:
    sampled, inserted = zip(*counts)
    after = [count + rows for count, rows in zip(sampled, apportioned(total, sampled, inserted))]
    assert sum(after) == total and min(after) >= 0
    if sum(sampled) == total:
        assert after == list(sampled)


def test_shards_with_more_rows_bear_more_of_what_is_missing() -> None:
    assert apportioned(100, [10, 30], [100, 200]) == [20, 40]
    assert apportioned(20, [10, 30], [100, 200]) == [-5, -15]
    assert apportioned(5, [0, 0], [0, 0]) == [2, 3]
