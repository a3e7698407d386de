"""Complete episodes in one arena of rows: each a contiguous extent, the oldest overwritten as a whole.

Letters: R rows of the arena, F = O + A + 1 row width, M slots, T steps of an episode, P floats of a posterior.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from typing import Any

import numpy as np

from replay.schema import ReturnSummary, RowLayout

FREE, OFFLINE, ONLINE = -1, 0, 1  # ``origin`` of a slot
FIRST_SLOTS = 256  # slots made at once; doubled when they are full
ROWS_AN_EPISODE = 8  # a ring of R rows holds at most max(FIRST_SLOTS, R / 8) episodes: what bounds the slots' memory
NEAR = 0.1  # share of a stage's episodes, those with the lowest targets, by which the stage is judged: explore_reach adds to the others
SLOT_BYTES = 5 * 8 + 4 * 8 + 1 + 1 + 2 * 4 + 4 * 16  # of a slot's columns beside the posterior


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpisodeRecord:
    """What is known of a complete episode beside its rows."""

    episode: int  # id: of a dataset its index there, online as in ``Chunk.episode_N``
    ret: float  # undiscounted return, summed in float64
    flag: int = 0  # TERMINATED | TRUNCATED, 0 where a recording just stopped
    version: int = -1  # of the policy that began it; -1: from a dataset
    stage: int = 0  # online stage in which it was stored; 0: from a dataset
    mode: str = ""  # as in ``EpisodeMetadata``, of at most 16 characters
    target: float = float("nan")
    predicted: float = float("nan")
    variance: float = float("nan")


class Ring:
    """Where the episodes of one origin lie: arena rows base .. base + capacity, written in turn.

    An extent never wraps: what is left at the end of the ring when an episode does not fit there stays unused for one lap.
    """

    def __init__(self, base: int, capacity: int) -> None:
        self.base, self.capacity = base, capacity
        self.max_episodes = max(FIRST_SLOTS, capacity // ROWS_AN_EPISODE)
        self.head = 0  # relative to base: where the next episode goes
        self.order: deque[int] = deque()  # slots held, oldest first
        self.rows = 0  # held
        self.stored_rows = 0  # over its life
        self.stored_episodes = 0

    def fits(self, length: int) -> bool:
        """Whether ``length`` rows can be stored now without overwriting an episode. True only until the first lap is over."""
        return self.head + length <= self.capacity and self.stored_episodes == len(self.order) < self.max_episodes

    def state(self) -> dict[str, Any]:
        names = ("head", "rows", "stored_rows", "stored_episodes")
        return {name: getattr(self, name) for name in names} | {"order": list(self.order)}

    def load_state(self, state: dict[str, Any]) -> None:
        self.head, self.rows = int(state["head"]), int(state["rows"])
        self.stored_rows, self.stored_episodes = int(state["stored_rows"]), int(state["stored_episodes"])
        self.order = deque(int(slot) for slot in state["order"])


class Arena:
    """The episodes of one shard, by slot. A slot is reused when its episode was overwritten; its generation then grows by one.

    Args:
        layout: of the chunks; rows here are their first F = O + A + 1 columns, [obs | action | reward].
        offline_rows, online_rows: capacities of the two rings, >= 0.
        posterior_floats: P >= 0.

    Attributes:
        rows: (R, F) float32, both rings' rows: offline first.
        start, length, episode, version, generation: (M,) int64. ret, target, predicted, variance: (M,) float64. origin:
        (M,) int8. flag: (M,) uint8. stage, visits: (M,) int32. mode: (M,) str. posterior: (M, P) float32.
        changes: grows whenever an episode comes or goes.
    """

    columns = (
        "start", "length", "episode", "version", "writes", "ret", "target", "predicted", "variance", "origin", "flag",
        "stage", "visits", "mode", "posterior",
    )  # fmt: skip

    def __init__(self, layout: RowLayout, *, offline_rows: int, online_rows: int, posterior_floats: int) -> None:
        self.layout = layout
        self.width = layout.obs_dim + layout.action_dim + 1
        self.posterior_floats = posterior_floats
        self.rows = np.zeros((offline_rows + online_rows, self.width), np.float32)
        self.rings = (Ring(0, offline_rows), Ring(offline_rows, online_rows))
        self.changes = 0
        self._free: list[int] = []
        self._summary: tuple[tuple[int, float, int], ReturnSummary] | None = None
        self.start = self.length = self.episode = self.version = self.writes = np.zeros(0, np.int64)
        self.ret = self.target = self.predicted = self.variance = np.zeros(0, np.float64)
        self.origin, self.flag = np.full(0, FREE, np.int8), np.zeros(0, np.uint8)
        self.stage = self.visits = np.zeros(0, np.int32)
        self.mode, self.posterior = np.zeros(0, "U16"), np.zeros((0, posterior_floats), np.float32)

    @property
    def offline(self) -> Ring:
        return self.rings[OFFLINE]

    @property
    def online(self) -> Ring:
        return self.rings[ONLINE]

    @property
    def size(self) -> int:
        """Rows held, of both origins."""
        return self.offline.rows + self.online.rows

    @property
    def episodes(self) -> int:
        """Episodes held, of both origins."""
        return len(self.offline.order) + len(self.online.order)

    @property
    def nbytes(self) -> int:
        """Bytes of arena and columns, filled or not."""
        return int(self.rows.nbytes) + sum(int(getattr(self, name).nbytes) for name in self.columns)

    def held(self, origin: int) -> np.ndarray:
        """Slots of the episodes of one origin, ascending; int64."""
        return np.flatnonzero(self.origin == origin)

    def put(self, origin: int, rows_TF: np.ndarray, record: EpisodeRecord) -> tuple[int, list[int]]:
        """Stores a complete episode over the oldest ones of its ring.

        Args:
            origin: OFFLINE or ONLINE.
            rows_TF: (T, F) float32, 1 <= T <= the ring's capacity.

        Returns:
            Its slot, and the slots of the episodes that had to go. Their columns keep what they held until the next put.
        """
        ring, length = self.rings[origin], len(rows_TF)
        if not 1 <= length <= ring.capacity or rows_TF.shape[1] != self.width:
            raise ValueError(
                f"an episode of shape {rows_TF.shape} was to be stored, expected (1 to {ring.capacity}, {self.width}): it can "
                "never be held; raise the capacity of its ring"
            )
        gone = self._make_room(ring, length)
        slot = self._take_slot()
        first = ring.base + ring.head
        self.rows[first : first + length] = rows_TF
        self.start[slot], self.length[slot], self.origin[slot] = first, length, origin
        for field in dataclasses.fields(record):
            getattr(self, field.name)[slot] = getattr(record, field.name)
        self.writes[slot] += 1
        self.visits[slot] = 0
        self.posterior[slot] = 0
        self._free.extend(gone)
        ring.head += length
        ring.order.append(slot)
        ring.rows += length
        ring.stored_rows += length
        ring.stored_episodes += 1
        self.changes += 1
        return slot, gone

    def write_back(self, slots: np.ndarray, writes: np.ndarray, values_KP: np.ndarray) -> int:
        """Sets ``posterior`` where a slot still holds the episode of that generation; returns at how many of the K.

        Of an episode that comes more than once the last value stays, and each counts as a visit.
        """
        current = (self.writes[slots] == writes) & (self.origin[slots] != FREE)
        slots, values_KP = slots[current], values_KP[current]
        _, back = np.unique(slots[::-1], return_index=True)
        last = len(slots) - 1 - back
        self.posterior[slots[last]] = values_KP[last]
        np.add.at(self.visits, slots, 1)
        return len(slots)

    def returns(self, quantile: float, stage: int) -> ReturnSummary:
        """What is known of the returns held, while ``stage`` is the newest online stage."""
        key = (self.changes, quantile, stage)
        if self._summary is None or self._summary[0] != key:
            self._summary = key, self._summarise(quantile, stage)
        return self._summary[1]

    def arrays(self) -> dict[str, np.ndarray]:
        """Copies of all columns, modes as (M, 16) uint32, by name."""
        copies = {name: getattr(self, name).copy() for name in self.columns}
        copies["mode"] = copies["mode"].view(np.uint32).reshape(-1, 16)
        return copies

    def load_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        """Takes what ``arrays`` gave; the rows are the caller's to load."""
        for name in self.columns:
            setattr(self, name, arrays[name].copy())
        self.mode = arrays["mode"].copy().view("U16").reshape(-1)
        self.changes += 1

    def state(self) -> dict[str, Any]:
        """What is not in the columns; JSON-able."""
        return {"free": list(self._free), "rings": [ring.state() for ring in self.rings]}

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes what ``state`` gave; ``load_arrays`` the columns that belong to it."""
        self._free = [int(slot) for slot in state["free"]]
        for ring, ring_state in zip(self.rings, state["rings"]):
            ring.load_state(ring_state)
        self.changes += 1

    def _make_room(self, ring: Ring, length: int) -> list[int]:
        """Moves the ring's head to where ``length`` rows may be written; the slots whose episodes lay there."""
        gone = []
        if ring.head + length > ring.capacity:
            while ring.order and self._first(ring) >= ring.head:
                gone.append(self._drop_oldest(ring))
            ring.head = 0
        while ring.order and ring.head <= self._first(ring) < ring.head + length:
            gone.append(self._drop_oldest(ring))
        if len(ring.order) >= ring.max_episodes:
            gone.append(self._drop_oldest(ring))
        return gone

    def _first(self, ring: Ring) -> int:
        """First row of the ring's oldest episode, relative to its base."""
        return int(self.start[ring.order[0]]) - ring.base

    def _drop_oldest(self, ring: Ring) -> int:
        slot = ring.order.popleft()
        ring.rows -= int(self.length[slot])
        self.origin[slot] = FREE
        return slot

    def _take_slot(self) -> int:
        if not self._free:
            made = len(self.origin)
            self._grow(max(FIRST_SLOTS, made))
            self._free = list(range(len(self.origin) - 1, made - 1, -1))
        return self._free.pop()

    def _grow(self, more: int) -> None:
        for name in self.columns:
            column = getattr(self, name)
            fill = FREE if name == "origin" else column.dtype.type()
            setattr(self, name, np.concatenate([column, np.full((more, *column.shape[1:]), fill, column.dtype)]))

    def _summarise(self, quantile: float, stage: int) -> ReturnSummary:
        held, online = self.ret[self.origin != FREE], self.held(ONLINE)
        newest = online[self.stage[online] == self.stage[online].max(initial=-1)]
        asked = online[(self.stage[online] == stage) & ~np.isnan(self.target[online])]
        near = asked[self.target[asked] <= np.quantile(self.target[asked], NEAR)] if len(asked) else asked
        nan = float("nan")
        return ReturnSummary(
            quantile=float(np.quantile(held, quantile)) if len(held) else nan,
            best=float(held.max()) if len(held) else nan,
            stage=stage,
            stage_mean=float(self.ret[newest].mean()) if len(newest) else nan,
            stage_target=float(self.target[near].mean()) if len(near) else nan,
            stage_episodes=len(newest),
            episodes=len(held),
            stage_reached=float(self.ret[near].mean()) if len(near) else nan,
            stage_std=float(self.ret[newest].std()) if len(newest) else nan,
        )
