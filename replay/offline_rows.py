"""A dataset's transitions beside one shard's table: read once, never written again.

Letters: T steps of an episode, M rows held, D row width, C most rows held, U updates of a block, K dataset rows of a batch.

Rows are what workers would have sent: actions in [-1, 1], rewards as recorded, discount 1 - terminated, so that a time limit or
the end of a recording is bootstrapped from, and next_obs the true last observation at an episode's end. Where returns of several
steps are asked for they are made here, once, as ``replay.n_step`` makes them at each draw.

**Their slots are negative.** Row i (from 0) of a shard's dataset rows has the slot -1 - i, generation 0 and policy version -1 in
a block. A slot of the table is never negative, and generations of written ones begin at 1, so neither can be taken for the other.
They are the run's own copy and not part of its snapshots: who resumes reads them again and compares their digest.

Mixing a dataset into every batch is RLPD's (arXiv 2302.02948, section 4.1, share 1/2); where the dataset's rows do not fit, a
uniform subset of them is ours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from replay.rows import RowLayout
from replay.stored_episode import DatasetError

if TYPE_CHECKING:
    from replay.stored_episode import StoredEpisode

VERSION = -1  # of the policy that acted: none of the run's
_STREAM = 1  # third word of the seed of the subset; the shard's own stream has two


class OfflineRows:
    """The transitions of a shard's part of a dataset.

    Args:
        layout: of the run's rows.
        episodes: this shard's (i, i + S, ... for shard i of S), read once, in their order.
        capacity: C >= 1. Of more rows a uniform subset of C is kept, by Vitter's algorithm R: which depends on the episodes and
            ``seed``, and on nothing else.
        n_step, gamma: of the returns.
        seed: of the run. shard: its index.

    Attributes:
        rows: (M, D) float32, read-only.
        seen: rows of all the episodes; more than M where not all are held.
        episodes: how many there were.

    Raises:
        DatasetError: no episode at all, one of another shape, or a reward beyond float32.
    """

    def __init__(
        self,
        layout: RowLayout,
        episodes: Iterable[StoredEpisode],
        capacity: int,
        *,
        n_step: int = 1,
        gamma: float = 0.99,
        seed: int = 0,
        shard: int = 0,
    ) -> None:
        self.capacity, self.seen, self.episodes = capacity, 0, 0
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, shard, _STREAM])))
        held_CD = np.empty((capacity, layout.width), np.float32)  # pages that are never written take no memory
        for episode in episodes:
            self._keep(held_CD, n_step_rows(layout, episode_rows(layout, episode), n=n_step, gamma=gamma), rng)
            self.episodes += 1
        if not self.seen:
            raise DatasetError(
                f"the dataset gave no episode to shard {shard}, expected at least one: there is nothing to mix in; give a dataset "
                "with at least as many sound episodes as replay.shards (`drawbridge dataset show` counts the refused ones)"
            )
        self.rows = held_CD[: len(self)]
        self.rows.flags.writeable = False
        self.digest = hashlib.blake2b(self.rows.data, digest_size=16).hexdigest()

    def __len__(self) -> int:
        return min(self.seen, self.capacity)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows held."""
        return int(self.rows.nbytes)

    def draw(self, uniform_UK: np.ndarray) -> np.ndarray:
        """Slots (U, K) int64, all negative: for each of ``uniform_UK`` in [0, 1) a row, uniform over those held."""
        return -1 - (uniform_UK * float(len(self))).astype(np.int64)

    def take(self, slots: np.ndarray) -> np.ndarray:
        """The rows (..., D) of negative ``slots`` (...); fresh."""
        return self.rows.take(-1 - slots, axis=0)

    def state(self) -> dict[str, Any]:
        """What tells these rows from others; JSON-able."""
        return {"rows": len(self), "digest": self.digest}

    def check_state(self, state: dict[str, Any]) -> None:
        """DatasetError unless ``state`` is of the same rows."""
        if state != self.state():
            raise DatasetError(
                f"the dataset gives {len(self)} rows with digest {self.digest}, expected the {state['rows']} rows with digest "
                f"{state['digest']} that the run had: it was made again, or its settings changed, and the run would not go on as "
                "if it had never stopped; restore the dataset, or begin a new run from this one with `drawbridge finetune`"
            )

    def _keep(self, held_CD: np.ndarray, rows_TD: np.ndarray, rng: np.random.Generator) -> None:
        """Algorithm R for all rows of an episode: row number t replaces a uniform one of the first t + 1 places, if it is below C."""
        first, room = self.seen, max(0, min(self.capacity - self.seen, len(rows_TD)))
        held_CD[first : first + room] = rows_TD[:room]
        self.seen += len(rows_TD)
        number_N = np.arange(first + room, self.seen)
        place_N = (rng.random(len(number_N)) * (number_N + 1.0)).astype(np.int64)
        kept_N = place_N < self.capacity
        held_CD[place_N[kept_N]] = rows_TD[room:][kept_N]  # of equal places the last one stays, as one after the other


def episode_rows(layout: RowLayout, episode: StoredEpisode) -> np.ndarray:
    """The packed rows (T, D) float32 of a whole episode, one step each.

    Raises:
        DatasetError: it is of another layout, or a value is not finite as float32.
    """
    steps = len(episode.reward_T)
    expected = (steps, layout.obs_dim), (steps, layout.action_dim), (layout.obs_dim,)
    if (episode.obs_TO.shape, episode.action_TA.shape, episode.next_obs_O.shape) != expected:
        raise DatasetError(
            f"episode {episode.index} of the dataset has observations {episode.obs_TO.shape} and actions {episode.action_TA.shape}, "
            f"expected {expected[0]} and {expected[1]}: it is of another environment; give a dataset of the run's own"
        )
    rows_TD = np.empty((steps, layout.width), np.float32)
    columns = layout.views(rows_TD)
    columns.obs[:] = episode.obs_TO
    columns.action[:] = episode.action_TA
    with np.errstate(over="ignore"):
        columns.reward[:] = episode.reward_T
    columns.discount[:] = 1.0
    columns.discount[-1] = 0.0 if episode.terminated else 1.0
    columns.next_obs[:-1] = episode.obs_TO[1:]
    columns.next_obs[-1] = episode.next_obs_O
    if not np.isfinite(rows_TD).all():
        raise DatasetError(
            f"episode {episode.index} of the dataset has a value that float32 cannot hold, expected finite ones: one such row "
            "would spoil the weights; leave the episode out, or scale its rewards"
        )
    return rows_TD


def n_step_rows(layout: RowLayout, rows_TD: np.ndarray, *, n: int, gamma: float) -> np.ndarray:
    """The rows (T, D) of up to ``n`` steps from each of a whole episode's one-step rows; see ``replay.n_step`` for the law."""
    if n == 1:
        return rows_TD
    steps, one, summed_TD = len(rows_TD), layout.views(rows_TD), rows_TD.copy()
    reward_T = one.reward.astype(np.float64)
    for k in range(1, min(n, steps)):
        reward_T[:-k] += gamma**k * one.reward[k:]
    last_T = np.minimum(np.arange(steps) + n - 1, steps - 1)
    columns = layout.views(summed_TD)
    columns.reward[:] = reward_T
    columns.discount[:] = gamma ** (last_T - np.arange(steps)) * one.discount[last_T]
    columns.next_obs[:] = one.next_obs[last_T]
    return summed_TD
