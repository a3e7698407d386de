"""A shard of episodes against lists of arrays: any order of late, lost and doubled chunks, draws, write-backs, restarts."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from episode_parts import Kept, ListRing, P, episodes_of, free_shard, key_of, source, stored
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from shard_chunks import make_chunk

from replay import episode_assembly, manifest, snapshot
from replay.messages import CUT, TERMINATED, TRUNCATED, Chunk, EpisodeBlock
from replay.shard import Shard

ENVS, LATE, HELD_BACK = 3, 8, 3
ONLINE_ROWS, OFFLINE_ROWS, LONGEST = 50, 24, 12
LENGTHS = [5, 7, 6, 8, 5, 9]
SIZES = {"offline": LENGTHS, "offline_rows": OFFLINE_ROWS, "online_rows": ONLINE_ROWS, "refresh_episodes": 1}
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)  # a failure's steps are printed as they came


class Twin:
    """What the shard should hold: episodes as sets of steps until they are whole, then lists."""

    def __init__(self) -> None:
        self.arrived: dict[tuple[int, int], dict[int, np.ndarray]] = {}  # (worker, counter) -> step -> row
        self.last: dict[tuple[int, int], tuple[int, int]] = {}  # -> steps, flag; once its end arrived
        self.online, self.offline = ListRing(ONLINE_ROWS), ListRing(OFFLINE_ROWS)
        self.seen: set[tuple[int, int, int]] = set()
        self.kept_apart: dict[int, Kept] = {}  # episodes of the dataset that left, with what was inferred of them
        self.read = 0
        while self.offline.head + LENGTHS[self.read] <= OFFLINE_ROWS:
            self.read_on()

    def read_on(self) -> None:
        index = self.read % len(LENGTHS)
        for gone in self.offline.put((-1, index), next(e for e in _rows() if e[0] == index)[1]):
            self.kept_apart[gone.key[1]] = gone
        if index in self.kept_apart:
            before, now = self.kept_apart.pop(index), self.offline.kept[-1]
            now.posterior, now.visits = before.posterior, before.visits
        self.read += 1

    def take(self, chunk: Chunk) -> None:
        self.seen.add((chunk.worker, chunk.incarnation, chunk.sequence))
        touched: dict[tuple[int, int], None] = {}
        for row, episode, step, flag in zip(chunk.rows_ND, chunk.episode_N, chunk.step_N, chunk.flag_N):
            key = chunk.worker, int(episode) & 0xFFFFFFFF
            self.arrived.setdefault(key, {})[int(step)] = row[:6]
            touched[key] = None
            if flag:
                self.last[key] = int(step) + 1, int(flag)
        for key in touched:
            steps, flag = self.last.get(key, (0, 0))
            if steps and not flag & CUT and len(self.arrived[key]) == steps:
                self.online.put(key, np.stack([self.arrived[key][step] for step in range(steps)]))


def _rows() -> list[tuple[int, np.ndarray]]:
    episodes = [stored(index, length) for index, length in enumerate(LENGTHS)]
    return [
        (e.index, np.concatenate([e.obs_TO, e.action_TA, e.reward_T[:, None]], axis=1).astype(np.float32))
        for e in episodes
    ]


def new_shard(seed: int = 0) -> Shard:
    """A small ring, but room for every unfinished episode: test_episode_shard.py has what happens without."""
    shard = free_shard(**SIZES, seed=seed)
    shard.store.assembly.capacity = 10_000
    return shard


class Simulation(RuleBasedStateMachine):
    @initialize(seed=st.integers(0, 100))
    def begin(self, seed: int) -> None:
        self.shard = new_shard(seed)
        self.twin = Twin()
        self.folder = tempfile.TemporaryDirectory()
        self.incarnation, self.counter = [0, 0], [0, 0]
        self.restart_worker(0)
        self.restart_worker(1)
        self.sent: list[Chunk] = []
        self.blocks: list[tuple[EpisodeBlock, list[list[tuple[Kept, int]]]]] = []

    def restart_worker(self, worker: int) -> None:
        self.sequence = [*getattr(self, "sequence", [0, 0])]
        self.sequence[worker] = 0
        self.late: dict[int, list[Chunk]] = getattr(self, "late", {}) | {worker: []}
        self.envs: dict[int, list[list[int]]] = getattr(self, "envs", {}) | {worker: []}
        for _ in range(ENVS):
            self.envs[worker].append([self.counter[worker], 0])
            self.counter[worker] += 1

    @rule(worker=st.integers(0, 1), ends=st.lists(st.sampled_from([0, 0, 1, 2, 4]), min_size=ENVS, max_size=ENVS),
          steps=st.integers(1, 3), hold=st.booleans())  # fmt: skip
    def collect(self, worker: int, ends: list[int], steps: int, hold: bool) -> None:
        """Every environment makes some steps; at a flag the next episode begins in the same chunk."""
        assert {TERMINATED, TRUNCATED, CUT} == {1, 2, 4}
        runs = []
        for env, end in zip(self.envs[worker], ends):
            flag = end or (TRUNCATED if env[1] > LONGEST - 2 * steps else 0)
            runs.append((env[0], env[1], steps, flag))
            env[1] += steps
            if flag:
                env[:] = [self.counter[worker], 1]
                runs.append((env[0], 0, 1, 0))
                self.counter[worker] += 1
        chunk = make_chunk(runs, worker=worker, incarnation=self.incarnation[worker], sequence=self.sequence[worker])
        self.sequence[worker] += 1
        late = self.late[worker]
        late.append(chunk)
        if not hold:
            self.deliver(worker, -1)
        while late and chunk.sequence - late[0].sequence >= HELD_BACK:
            self.deliver(worker, 0)

    def deliver(self, worker: int, index: int) -> None:
        chunk = self.late[worker].pop(index)
        assert self.shard.append(chunk).status == "ok"
        self.twin.take(chunk)
        self.sent.append(chunk)

    @precondition(lambda self: any(self.late.values()))
    @rule(pick=st.integers(0, 100), lose=st.booleans())
    def deliver_late(self, pick: int, lose: bool) -> None:
        worker = max(self.late, key=lambda w: len(self.late[w]))
        index = pick % len(self.late[worker])
        if lose:
            self.late[worker].pop(index)
        else:
            self.deliver(worker, index)

    @precondition(lambda self: self.sent)
    @rule(pick=st.integers(0, 1_000))
    def deliver_again(self, pick: int) -> None:
        assert self.shard.append(self.sent[pick % len(self.sent)]).status == "duplicate"

    @rule(worker=st.integers(0, 1))
    def replace_worker(self, worker: int) -> None:
        self.incarnation[worker] += 1
        self.restart_worker(worker)

    @rule(batch=st.integers(1, 5))
    def draw(self, batch: int) -> None:
        block = self.shard.sample(2, batch)
        assert isinstance(block, EpisodeBlock)
        self.twin.read_on()
        self.twin.read_on()
        found = []
        for b, trajectories in enumerate(block.batches):
            row = []
            for i, rows in enumerate(episodes_of(trajectories)):
                key = key_of(rows)
                kept = (self.twin.offline if key[0] < 0 else self.twin.online).find(key)
                assert kept is not None and (rows == kept.rows).all()
                assert (trajectories.posterior_BP[i] == kept.posterior).all() and trajectories.visits_B[
                    i
                ] == kept.visits
                ret = stored(key[1], len(rows)).reward_T.sum() if key[0] < 0 else rows[:, -1].sum(dtype=np.float64)
                assert trajectories.return_B[i] == np.float32(ret)
                assert (block.version_UB[b, i] < 0) == (key[0] < 0)
                row.append((kept, kept.put))
            found.append(row)
        self.blocks.append((block, found))

    @precondition(lambda self: self.blocks)
    @rule(pick=st.integers(0, 1_000), value=st.floats(-1, 1, width=32))
    def write_back(self, pick: int, value: float) -> None:
        block, found = self.blocks[pick % len(self.blocks)]
        batch = len(found[0])
        values = np.float32(value) + np.arange(batch * P, dtype=np.float32).reshape(batch, P)
        written = self.shard.write_back(block.slot_UB[0], block.writes_UB[0], values)
        expected = 0
        for (kept, _), new in zip(found[0], values):
            ring = self.twin.offline if kept.key[0] < 0 else self.twin.online
            if any(kept is each for each in ring.kept):  # the same stay, not a later one of the same episode
                kept.posterior, kept.visits = new, kept.visits + 1
                expected += 1
        assert written == expected

    @rule()
    def crash(self) -> None:
        """The shard goes and comes back from a snapshot of this moment."""
        folder = Path(self.folder.name)
        seed = self.shard.rng
        snapshot.save(self.shard, folder)
        again = new_shard()
        assert snapshot.load(again, folder) is not None
        assert again.rng.bit_generator.state == seed.bit_generator.state
        self.shard = again

    @invariant()
    def holds_what_the_lists_hold(self) -> None:
        table, stats = self.shard.store.arena, self.shard.stats()
        for ring, twin in ((table.offline, self.twin.offline), (table.online, self.twin.online)):
            assert [key_of(table.rows[table.start[s] :]) for s in ring.order] == [each.key for each in twin.kept]
        assert stats.received_rows == stats.stored_rows + stats.duplicate_rows
        assert stats.stored_rows == stats.episode_rows + stats.open_rows + sum(stats.lost_rows.values())
        assert stats.episodes == len(self.twin.online.kept) + len(self.twin.offline.kept)
        assert stats.stored_episodes == self.twin.online.puts
        # A chunk held back or lost leaves holes for at most LATE chunks more.
        assert self.shard.store.assembly.episodes <= 2 * (ENVS + 2 * ENVS * (LATE + HELD_BACK))

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()


def test_a_shard_of_episodes_does_what_lists_of_arrays_would(monkeypatch: pytest.MonkeyPatch) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    monkeypatch.setattr(episode_assembly, "LATE", LATE)
    monkeypatch.setattr(manifest, "write_synced", lambda path, data: path.write_bytes(data))
    assert len(list(source(LENGTHS)())) == len(LENGTHS)
    run_state_machine_as_test(
        Simulation, settings=settings(deadline=None, max_examples=25, stateful_step_count=30, phases=PHASES)
    )
