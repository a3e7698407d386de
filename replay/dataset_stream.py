"""A dataset's part of one shard: its transitions, read once, or its episodes, of which a window moves over those that do not fit.

Letters: T steps of an episode, M rows held, D row width, C most rows held, U updates of a block, K dataset rows of a batch, O
observation dim, A action dim, P floats of a posterior.

Rows are what workers would have sent: actions in [-1, 1], rewards as recorded, discount 1 - terminated, so that a time limit or
the end of a recording is bootstrapped from, and next_obs the true last observation at an episode's end. Where returns of several
steps are asked for they are made here, once, as ``transition_store.gather_n_step`` makes them at each draw.

**Slots of transitions are negative.** Row i (from 0) of a shard's dataset rows has the slot -1 - i, generation 0 and policy version
-1 in a block. An online row's slot is never negative, and generations of written ones begin at 1, so neither can be taken for the
other. They are the run's own copy and not part of its snapshots: who resumes reads them again and compares their digest.

Mixing a dataset into every batch is RLPD's (arXiv 2302.02948, section 4.1, share 1/2); where the dataset's rows do not fit, a
uniform subset of them is ours.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from replay.arena import OFFLINE, Arena, EpisodeRecord
from replay.messages import TERMINATED, TRUNCATED
from replay.schema import RowLayout
from replay.stored_episode import DatasetError

if TYPE_CHECKING:
    from replay.stored_episode import StoredEpisode

Source = Callable[[], "Iterator[StoredEpisode]"]  # all episodes of this shard anew, in the same order at each call
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


class EpisodeStream:
    """Fills the offline ring of a table from ``source`` and keeps it moving.

    When not all episodes fit, ``refresh`` reads on, in laps over the data, and overwrites the oldest held: at any time the ring has the
    episodes read last. What was written back about an episode that left is kept by its index in the dataset and is there again
    when it comes back, for as many episodes as take the memory of the ring (the one that left first is forgotten first).

    Raises:
        ValueError: no episode at all, one of another shape, or one longer than the ring.
    """

    def __init__(self, table: Arena, source: Source) -> None:
        self.table, self._source = table, source
        self._next = self._read(0)
        self._position = 0  # episodes of this lap that are in the ring or have been
        self._left: OrderedDict[int, tuple[np.ndarray, int]] = OrderedDict()  # index -> posterior and visits
        self._limit = table.offline.capacity * table.width // max(1, table.posterior_floats)
        self._ahead: StoredEpisode | None = None  # read, and too long for what is free
        while (episode := next(self._next, None)) is not None:
            if not table.offline.fits(len(episode.reward_T)):
                self._ahead = episode
                break
            self._put(episode)
        self.moves = self._ahead is not None
        if not table.offline.order and not self.moves:
            raise ValueError(
                "a dataset gave no episode to this shard, expected at least one: there is nothing to learn from; give a dataset "
                "with at least as many sound episodes as replay.shards"
            )
        if self._ahead is not None and not table.offline.order:
            self._put(self._ahead)  # too long for an empty ring: says so

    def refresh(self, episodes: int) -> None:
        """Reads ``episodes`` more over the oldest ones, where not all are held."""
        for _ in range(episodes if self.moves else 0):
            self._put(self._following())

    def state(self) -> dict[str, Any]:
        """Where the reading stands; JSON-able."""
        return {"position": self._position, "left": [[index, visits] for index, (_, visits) in self._left.items()]}

    def left_behind(self) -> np.ndarray:
        """(L, P) float32: what is kept of the episodes that left, in the order of ``state``."""
        empty = np.zeros((0, self.table.posterior_floats), np.float32)
        return np.stack([value_P for value_P, _ in self._left.values()]) if self._left else empty

    def load_state(self, state: dict[str, Any], left_LP: np.ndarray) -> None:
        """Takes what ``state`` and ``left_behind`` gave, after the table took its columns: reads the rows that those tell of.

        Raises:
            ValueError: the source does not give the episodes that were there.
        """
        self._left = OrderedDict((index, (value_P, visits)) for (index, visits), value_P in zip(state["left"], left_LP))
        self._ahead = None
        self._fetch_held()
        self._position = int(state["position"])
        self._next = self._read(self._position)

    def _following(self) -> StoredEpisode:
        episode, self._ahead = self._ahead or next(self._next, None), None
        if episode is None:
            self._position, self._next = 0, self._read(0)
            episode = next(self._next, None)
        if episode is None:
            raise ValueError(
                "a dataset that had episodes gives none any more: nothing can be read on; restore its files"
            )
        return episode

    def _put(self, episode: StoredEpisode) -> None:
        table, posterior = self.table, self.table.posterior_floats > 0
        rows_TF = episode_rows(table.layout, episode)[:, : table.width]
        ring = table.offline
        if len(rows_TF) > ring.capacity:
            raise ValueError(
                f"episode {episode.index} of the dataset has {len(rows_TF)} steps, the shard holds {ring.capacity} of them: it "
                "could never be drawn; raise data.offline_capacity_rows"
            )
        slot, gone = table.put(OFFLINE, rows_TF, _record(episode))
        self._position += 1
        for old in gone if posterior else ():
            if table.visits[old]:
                self._left[int(table.episode[old])] = table.posterior[old].copy(), int(table.visits[old])
        while len(self._left) > self._limit:
            self._left.popitem(last=False)
        if episode.index in self._left:
            table.posterior[slot], table.visits[slot] = self._left.pop(episode.index)

    def _read(self, position: int) -> Iterator[StoredEpisode]:
        return islice(self._source(), position, None)

    def _fetch_held(self) -> None:
        """Reads the rows of the episodes that the table's columns tell of into their places."""
        table = self.table
        wanted = {int(table.episode[slot]): slot for slot in table.offline.order}
        for episode in self._source() if wanted else ():
            slot = wanted.pop(episode.index, None)
            if slot is None:
                continue
            rows_TF, start = episode_rows(table.layout, episode)[:, : table.width], int(table.start[slot])
            if len(rows_TF) != table.length[slot] or _record(episode).ret != table.ret[slot]:
                wanted[episode.index] = slot
                break
            table.rows[start : start + len(rows_TF)] = rows_TF
            if not wanted:
                break
        if wanted:
            raise ValueError(
                f"episodes {sorted(wanted)[:5]} are missing in the dataset or are others than before: what is known of them would "
                "be taken for another's; restore the dataset, or start a new run"
            )


def _record(episode: StoredEpisode) -> EpisodeRecord:
    flag = TERMINATED * bool(episode.terminated) | TRUNCATED * bool(episode.truncated)
    return EpisodeRecord(episode=episode.index, ret=float(np.sum(episode.reward_T, dtype=np.float64)), flag=flag)
