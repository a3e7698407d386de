"""The three-mode toy: what a small budget covers, and what a large one drops."""

from __future__ import annotations

import pytest

from algorithms.softgac.toy import mode_shares, train_toy


@pytest.mark.parametrize("rho", [0.05, 0.14])
def test_a_small_budget_covers_all_three_modes(rho):
    """With seed 0: at .14 another seed can collapse to one mode (docs/softgac.md)."""
    assert min(mode_shares(train_toy(rho, updates=900))) > 0.06


def test_a_large_budget_drops_the_lowest_mode():
    assert mode_shares(train_toy(0.22, updates=900))[2] < 0.01
