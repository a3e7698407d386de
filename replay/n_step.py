"""Returns of several steps, gathered from a table by following each episode's links.

    r^(m) = sum_{k<m} gamma^k r_{t+k},   discount^(m) = gamma^(m-1) (1 - terminated_{t+m-1}),   next_obs^(m) =
    next_obs_{t+m-1}

so that r^(m) + gamma discount^(m) V(next_obs^(m)) is the m-step target: the learner multiplies by gamma as for one
step. m is n, or less where the episode ends or its next row is not held. A truncated end bootstraps from its true last
observation; a terminated one does not.
"""

from __future__ import annotations

import numpy as np

from replay.table import Table


def gather_n_step(table: Table, slot_M: np.ndarray, *, n: int, gamma: float) -> np.ndarray:
    """Packed rows (M, D) float32 of up to ``n`` steps from each of ``slot_M`` (M,) int64 on."""
    o, a = table.layout.obs_dim, table.layout.action_dim
    reward, discount, next_obs = o + a, o + a + 1, slice(o + a + 2, None)
    row_MD = np.take(table.rows, slot_M, axis=0)
    return_M = row_MD[:, reward].astype(np.float64)
    last_M = slot_M.copy()
    scale_M = np.ones(len(slot_M))
    walking = np.arange(len(slot_M))
    for k in range(1, n):
        after = table.successor(last_M[walking])
        walking, after = walking[after >= 0], after[after >= 0]
        if walking.size == 0:
            break
        return_M[walking] += gamma**k * table.rows[after, reward]
        scale_M[walking] = gamma**k
        last_M[walking] = after
    row_MD[:, reward] = return_M
    row_MD[:, discount] = scale_M * table.rows[last_M, discount]
    row_MD[:, next_obs] = table.rows[last_M, next_obs]
    return row_MD
