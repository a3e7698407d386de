"""Gathering and learning in turn, by counts alone, never both blocked before the end."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.limiter import StagedLimiter


@settings(deadline=None, max_examples=200)
@given(
    before=st.integers(0, 60),
    stages=st.integers(0, 5),
    per_stage=st.integers(1, 20),
    items=st.integers(1, 60),
    moves=st.lists(st.tuples(st.booleans(), st.integers(0, 12), st.integers(1, 40)), max_size=200),
    crash=st.integers(0, 400),
)
def test_one_side_may_always_go_on_until_everything_is_gathered_and_drawn(
    before: int, stages: int, per_stage: int, items: int, moves: list[tuple[bool, int, int]], crash: int
) -> None:
    if before + stages == 0:
        return
    limiter = StagedLimiter(items_before=before, stages=stages, episodes_per_stage=per_stage, items_per_stage=items)
    moves = moves + [(turn % 2 == 0, 1, 3) for turn in range(600)]
    for number, (inserting, episodes, block) in enumerate(moves):
        if number == crash:  # updates are lost and owed again, and the shard comes back from a snapshot
            limiter.sampled //= 2
            again = StagedLimiter(
                items_before=before, stages=stages, episodes_per_stage=per_stage, items_per_stage=items
            )
            again.load_state(limiter.state())
            limiter = again
        assert limiter.can_insert() or limiter.can_sample() or limiter.exhausted
        assert not (limiter.exhausted and (limiter.can_insert() or limiter.can_sample()))
        if inserting and limiter.can_insert():
            assert limiter.sampled >= before + (limiter.opened - 1) * items
            assert limiter.inserted < limiter.opened * per_stage
            limiter.insert(10, episodes)
        elif not inserting and limiter.can_sample(block):
            assert limiter.sampled < before + items * (limiter.inserted // per_stage)
            limiter.sample(block)
    if limiter.exhausted:
        assert limiter.inserted >= stages * per_stage and limiter.sampled >= before + stages * items
    assert limiter.sampled < before + stages * items + 40  # at most one block beyond


def test_a_run_without_stages_draws_its_updates_and_is_exhausted() -> None:
    limiter = StagedLimiter(items_before=100)
    drawn = 0
    while limiter.can_sample(30):
        limiter.sample(30)
        drawn += 30
    assert drawn == 120 and limiter.exhausted and limiter.gathered and not limiter.can_insert()


def test_stages_follow_one_another_and_what_comes_too_much_counts_for_the_next() -> None:
    limiter = StagedLimiter(items_before=20, stages=2, episodes_per_stage=5, items_per_stage=10)
    assert limiter.can_sample() and not limiter.can_insert() and limiter.stage == 0
    limiter.sample(24)  # a block across the bound
    assert limiter.can_insert() and not limiter.can_sample() and limiter.stage == 1
    limiter.insert(300, 4)
    assert limiter.can_insert() and not limiter.can_sample()
    limiter.insert(300, 4)  # four environments end together: eight of five
    assert not limiter.can_insert() and limiter.can_sample() and limiter.credit == 6
    limiter.sample(6)
    assert limiter.stage == 2 and limiter.can_insert() and not limiter.can_sample()
    limiter.insert(100, 2)
    assert limiter.gathered and not limiter.exhausted and limiter.can_sample()
    limiter.sample(10)
    assert limiter.exhausted


def test_without_updates_before_them_gathering_begins_at_once() -> None:
    limiter = StagedLimiter(items_before=0, stages=1, episodes_per_stage=2, items_per_stage=4)
    assert limiter.can_insert() and not limiter.can_sample() and limiter.min_size == 2


def test_a_closed_limiter_draws_what_complete_stages_allow_and_no_more() -> None:
    limiter = StagedLimiter(items_before=0, stages=3, episodes_per_stage=2, items_per_stage=4)
    limiter.insert(10, 3)
    limiter.close()
    assert not limiter.can_insert() and limiter.can_sample()
    limiter.sample(4)
    assert limiter.exhausted
    limiter.load_state(limiter.state())  # as a run that is resumed
    assert limiter.can_insert() and not limiter.exhausted


def test_a_ceiling_of_rows_holds_inserts_back() -> None:
    limiter = StagedLimiter(items_before=0, stages=1, episodes_per_stage=100)
    limiter.ceiling = 500
    limiter.insert(499, 2)
    assert limiter.can_insert() and not limiter.held
    limiter.insert(20, 0)
    assert limiter.held and not limiter.can_insert()
    limiter.ceiling = 1_000
    assert limiter.can_insert()


@pytest.mark.parametrize(
    "bad", [{"items_before": 0}, {"items_before": -1}, {"items_before": 1, "episodes_per_stage": 0}]
)
def test_stages_in_which_nothing_could_be_learned_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="nothing would ever be learned"):
        StagedLimiter(**bad)
