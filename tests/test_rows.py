"""The packed row."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.schema import RowLayout


@settings(deadline=None, max_examples=25)
@given(obs_dim=st.integers(1, 9), action_dim=st.integers(1, 5), batch=st.integers(0, 4))
def test_columns_are_views_that_cover_the_row_once(obs_dim: int, action_dim: int, batch: int) -> None:
    layout = RowLayout(obs_dim=obs_dim, action_dim=action_dim)
    rows_UBD = np.zeros((2, batch, layout.width), np.float32)
    columns = layout.views(rows_UBD)
    for column in columns:
        assert np.shares_memory(column, rows_UBD) or batch == 0
        column += 1
    assert (rows_UBD == 1).all()
    assert columns.obs.shape == columns.next_obs.shape == (2, batch, obs_dim)
    assert columns.action.shape == (2, batch, action_dim)
    assert columns.reward.shape == columns.discount.shape == (2, batch)


def test_torch_rows_have_the_same_columns_as_numpy_rows() -> None:
    layout = RowLayout(obs_dim=3, action_dim=2)
    rows_BD = np.arange(20, dtype=np.float32).reshape(2, 10)
    for ours, theirs in zip(layout.views(rows_BD), layout.views(torch.from_numpy(rows_BD))):
        assert (ours == theirs.numpy()).all()
