"""Episodes lie in one piece, the oldest go first and as a whole, and a recycled slot takes nothing meant for another."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from episode_parts import WIDTH, ListRing, P
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_chunks import LAYOUT

from replay import arena
from replay.arena import OFFLINE, ONLINE, Arena, EpisodeRecord
from replay.schema import together


def new_table(offline_rows: int = 0, online_rows: int = 40) -> Arena:
    return Arena(LAYOUT, offline_rows=offline_rows, online_rows=online_rows, posterior_floats=P)


def rows_of(key: int, length: int) -> np.ndarray:
    return np.full((length, WIDTH), key, np.float32) + np.arange(length, dtype=np.float32)[:, None] / 64


@settings(deadline=None, max_examples=150)
@given(
    capacities=st.tuples(st.integers(12, 50), st.integers(12, 50)),
    puts=st.lists(st.tuples(st.sampled_from([OFFLINE, ONLINE]), st.integers(1, 12)), max_size=80),
)
def test_both_rings_hold_what_a_list_of_arrays_would(capacities: tuple[int, int], puts: list[tuple[int, int]]) -> None:
    table = new_table(*capacities)
    twins = [ListRing(capacity) for capacity in capacities]
    seen: dict[int, int] = {}
    for number, (origin, length) in enumerate(puts):
        rows = rows_of(number, length)
        slot, gone = table.put(origin, rows, EpisodeRecord(episode=number, ret=float(number)))
        expected = twins[origin].put((0, number), rows)
        assert [int(table.episode[g]) for g in gone] == [each.key[1] for each in expected]
        assert table.writes[slot] == seen.get(slot, 0) + 1
        seen[slot] = int(table.writes[slot])
        for side, twin in enumerate(twins):
            held = {int(table.episode[s]): s for s in table.held(side)}
            assert sorted(held) == sorted(each.key[1] for each in twin.kept)
            assert [int(table.episode[s]) for s in table.rings[side].order] == [each.key[1] for each in twin.kept]
            for each in twin.kept:
                start = int(table.start[held[each.key[1]]])
                assert start == each.start + table.rings[side].base
                assert (table.rows[start : start + len(each.rows)] == each.rows).all()
        assert table.size == sum(len(each.rows) for twin in twins for each in twin.kept)


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_a_value_is_written_back_only_where_the_episode_still_is(data: st.DataObject) -> None:
    table, expected = new_table(online_rows=30), {}
    handed: list[tuple[int, int, int]] = []  # slot, generation, episode
    for number in range(data.draw(st.integers(1, 25))):
        slot, gone = table.put(
            ONLINE, rows_of(number, data.draw(st.integers(1, 9))), EpisodeRecord(episode=number, ret=0.0)
        )
        for old in gone:
            expected.pop(int(table.episode[old]) if old != slot else -1, None)
        held = {int(table.episode[s]) for s in table.held(ONLINE)}
        expected = {episode: value for episode, value in expected.items() if episode in held} | {
            number: (np.zeros(P), 0)
        }
        handed.append((slot, int(table.writes[slot]), number))
        chosen = data.draw(st.lists(st.sampled_from(handed), max_size=6))
        values = np.arange(len(chosen) * P, dtype=np.float32).reshape(-1, P) + number
        written = table.write_back(
            np.array([c[0] for c in chosen], np.int64), np.array([c[1] for c in chosen], np.int64), values
        )
        assert written == sum(episode in held for _, _, episode in chosen)
        for (_, _, episode), value in zip(chosen, values):
            if episode in held:
                expected[episode] = value, expected[episode][1] + 1
    for slot in table.held(ONLINE):
        value, visits = expected[int(table.episode[slot])]
        assert (table.posterior[slot] == value).all() and table.visits[slot] == visits


def test_many_short_episodes_are_bounded_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena, "FIRST_SLOTS", 4)
    table = new_table(online_rows=80)
    for number in range(100):
        table.put(ONLINE, rows_of(number, 1), EpisodeRecord(episode=number, ret=0.0))
    assert len(table.online.order) == 10 and len(table.origin) <= 16
    assert sorted(table.episode[table.held(ONLINE)]) == list(range(90, 100))


def test_an_episode_that_can_never_be_held_is_refused() -> None:
    table = new_table(online_rows=5)
    with pytest.raises(ValueError, match="can never be held; raise the capacity"):
        table.put(ONLINE, rows_of(0, 6), EpisodeRecord(episode=0, ret=0.0))
    with pytest.raises(ValueError, match="can never be held"):
        table.put(OFFLINE, rows_of(0, 1), EpisodeRecord(episode=0, ret=0.0))


def test_the_summary_tells_of_all_returns_and_of_the_newest_stage_that_has_episodes() -> None:
    table = new_table(offline_rows=40)
    empty = table.returns(0.9, 0)
    assert np.isnan(
        [empty.quantile, empty.best, empty.stage_mean, empty.stage_target, empty.stage_reached, empty.stage_std]
    ).all()
    for number, ret in enumerate([1.0, 2.0, 3.0]):
        table.put(OFFLINE, rows_of(number, 2), EpisodeRecord(episode=number, ret=ret))
    for number, (stage, ret, target) in enumerate([(1, 9.0, 5.0), (2, 4.0, float("nan")), (2, 6.0, 8.0)]):
        table.put(ONLINE, rows_of(number, 2), EpisodeRecord(episode=number, ret=ret, stage=stage, target=target))
    summary = table.returns(0.5, 2)
    assert (summary.quantile, summary.best, summary.stage) == (3.5, 9.0, 2)
    assert (summary.stage_mean, summary.stage_target, summary.stage_reached, summary.stage_episodes) == (5, 8, 6, 2)
    assert summary.stage_std == 1.0
    later = table.returns(0.5, 3)  # a stage without an episode of its own has nothing to be judged by
    assert later.stage_mean == 5.0 and np.isnan([later.stage_target, later.stage_reached]).all()


def test_a_stage_is_summarised_by_the_tenth_of_its_episodes_with_the_lowest_targets() -> None:
    table = new_table(online_rows=100)
    for number, (target, ret) in enumerate([(50.0, 48.0), (50.0, 40.0), *[(300.0, 1.0)] * 18]):
        table.put(ONLINE, rows_of(number, 2), EpisodeRecord(episode=number, ret=ret, stage=1, target=target))
    summary = table.returns(0.5, 1)
    assert (summary.stage_target, summary.stage_reached) == (50.0, 44.0) and summary.stage_mean == pytest.approx(5.3)


@settings(deadline=None, max_examples=100)
@given(
    episodes=st.lists(st.tuples(st.integers(0, 2), st.integers(-9, 9), st.integers(-9, 9)), min_size=1, max_size=30),
    asked=st.booleans(),
)
def test_what_shards_know_together_is_what_one_that_held_all_would(
    episodes: list[tuple[int, int, int]], asked: bool
) -> None:
    shards, whole = [new_table(200, 200) for _ in range(3)], new_table(200, 200)
    for number, (shard, ret, target) in enumerate(episodes):
        mark = EpisodeRecord(episode=number, ret=float(ret), stage=1, target=float(target) if asked else float("nan"))
        for table in (shards[shard], whole):
            table.put(OFFLINE if number % 3 else ONLINE, rows_of(number, 1), mark)
    theirs, expected = [table.returns(0.5, 1) for table in shards], whole.returns(0.5, 1)
    found = together(theirs)
    for name, count in (
        ("quantile", "episodes"),
        ("stage_target", "stage_episodes"),
        ("stage_reached", "stage_episodes"),
    ):
        known = [getattr(one, name) for one in theirs if getattr(one, count) and not np.isnan(getattr(one, name))]
        assert (
            np.isnan(getattr(found, name))
            if not known
            else min(known) - 1e-9 <= getattr(found, name) <= max(known) + 1e-9
        )
        found = dataclasses.replace(found, **{name: getattr(expected, name)})
    assert dataclasses.asdict(found) == pytest.approx(dataclasses.asdict(expected), nan_ok=True)


def test_shards_are_together_in_the_stage_that_all_have_gathered() -> None:
    table = new_table(40, 40)
    table.put(ONLINE, rows_of(0, 1), EpisodeRecord(episode=0, ret=1.0, stage=1))
    assert together([table.returns(0.5, 2), table.returns(0.5, 1)]).stage == 1
