"""The dataset's part of one shard: all of it in memory where it fits, else a window that moves over it.

Letters: T steps, O observation dim, A action dim, P floats of a posterior.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from replay.arena import OFFLINE, Arena, EpisodeRecord
from replay.chunk import TERMINATED, TRUNCATED

if TYPE_CHECKING:
    from replay.stored_episode import StoredEpisode

Source = Callable[[], "Iterator[StoredEpisode]"]  # all episodes of this shard anew, in the same order at each call


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
        rows_TF = _rows(episode, table)
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
            rows_TF, start = _rows(episode, table), int(table.start[slot])
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


def _rows(episode: StoredEpisode, table: Arena) -> np.ndarray:
    """[obs | action | reward], (T, F) float32."""
    steps, layout = len(episode.reward_T), table.layout
    expected = (steps, layout.obs_dim), (steps, layout.action_dim)
    if (episode.obs_TO.shape, episode.action_TA.shape) != expected:
        raise ValueError(
            f"episode {episode.index} of the dataset has observations {episode.obs_TO.shape} and actions {episode.action_TA.shape}, "
            f"expected {expected[0]} and {expected[1]}: it is of another environment; give the run's own dataset"
        )
    rows_TF = np.empty((steps, table.width), np.float32)
    rows_TF[:, : layout.obs_dim] = episode.obs_TO
    rows_TF[:, layout.obs_dim : -1] = episode.action_TA
    rows_TF[:, -1] = episode.reward_T
    return rows_TF


def _record(episode: StoredEpisode) -> EpisodeRecord:
    flag = TERMINATED * bool(episode.terminated) | TRUNCATED * bool(episode.truncated)
    return EpisodeRecord(episode=episode.index, ret=float(np.sum(episode.reward_T, dtype=np.float64)), flag=flag)
