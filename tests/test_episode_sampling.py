"""Episodes are drawn as often as their weights say and packed as plain concatenation would."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from replay.episode_store import draw, draw_weights, pack
from replay.store import offline_share


@settings(deadline=None, max_examples=100)
@given(extents=st.lists(st.tuples(st.integers(0, 80), st.integers(1, 20)), min_size=1, max_size=12))
def test_packing_is_the_concatenation_of_slices(extents: list[tuple[int, int]]) -> None:
    rows = np.random.default_rng(0).random((100, 3), np.float32)
    start, length = (np.array(column, np.int64) for column in zip(*extents))
    packed, offset = pack(rows, start, length)
    assert (packed == np.concatenate([rows[s : s + n] for s, n in extents])).all()
    assert packed.dtype == np.float32 and packed.flags.owndata
    assert offset.tolist() == [0, *np.cumsum([n for _, n in extents])]


@pytest.mark.parametrize("sampling", ["length", "uniform", "return"])
def test_episodes_are_drawn_in_proportion_to_their_weights(sampling: str) -> None:
    length = np.array([10, 20, 30, 40])
    returns = np.array([4.0, 3.0, 2.0, 1.0])
    z = (returns - 2.5) / returns.std()
    expected = {"length": length, "uniform": np.ones(4), "return": length * np.exp(z / 2)}[sampling]
    weight = draw_weights(sampling, length, returns, 2.0)
    assert np.allclose(weight / weight.sum(), expected / expected.sum())
    index = draw(np.random.default_rng(1).random((50, 400)), np.cumsum(weight))
    counts = np.bincount(index.ravel(), minlength=4)
    assert chisquare(counts, expected / expected.sum() * counts.sum()).pvalue > 1e-3


def test_weights_stay_usable_where_returns_are_equal_or_temperatures_extreme() -> None:
    length = np.array([5, 5, 5])
    assert draw_weights("return", length, np.full(3, 7.0), 1.0).tolist() == [5.0, 5.0, 5.0]
    weight = draw_weights("return", length, np.array([-1e9, 0.0, 1e9]), 1e-6)
    assert np.isfinite(weight).all() and (weight > 0).all() and weight.argmax() == 2
    with pytest.raises(ValueError, match=r"set data\.sampling"):
        draw_weights("best", length, np.zeros(3), 1.0)


@settings(deadline=None, max_examples=100)
@given(weights=st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=20), u=st.floats(0, 1, exclude_max=True))
def test_a_draw_is_the_first_episode_whose_running_sum_exceeds_it(weights: list[float], u: float) -> None:
    cumulative = np.cumsum(weights)
    slow = next((i for i, c in enumerate(cumulative) if u * cumulative[-1] < c), len(weights) - 1)
    assert draw(np.array([u]), cumulative).tolist() == [slow]
    assert draw(np.array([1.0]), cumulative).tolist() == [len(weights) - 1]


def test_the_dataset_has_its_share_unless_a_side_is_empty_or_both_are_one_pool() -> None:
    assert offline_share(0.5, 10, offline=3, online=3) == 5
    assert offline_share(0.26, 10, offline=3, online=3) == 3
    assert offline_share(0.5, 10, offline=0, online=3) == 0
    assert offline_share(0.0, 10, offline=3, online=0) == 10
    assert offline_share(-1, 10, offline=0, online=3) == 0
    assert offline_share(-1, 10, offline=3, online=3) is None
