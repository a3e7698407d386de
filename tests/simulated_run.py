"""A whole run in one process: real workers, replay clients, shards, learner and files; a seeded order, a faulty network, crashes.

One ``step`` lets one part act: a worker goes on to its next wait, the network delivers one message, the learner takes one
block, a snapshot or a checkpoint is written a piece further, the driver reads counters, or something breaks. What every
chunk became is kept beside the run, so that the run's own counters and tables can be held against it.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
from simulated_learner import LearnerSide, damage
from simulated_parts import (
    BATCH,
    CHUNK_ROWS,
    LATE_S,
    REPLAY,
    STALL_STEPS,
    TICK_S,
    TIMEOUT_S,
    UPDATES,
    WORKER,
    Call,
    Faults,
    Key,
    Slot,
    WireWorker,
)
from tagged_env import LAYOUT, TaggedEnv, assert_whole
from turns import Turn

from algorithms.weights import Weights
from cluster.metrics.aggregator import MetricsAggregator
from cluster.replay_client import RUN_COMPLETE, Lost, ReplayClient
from replay import snapshot
from replay.config import ReplayConfig
from replay.limiter import Limiter
from replay.messages import Ack, Chunk
from replay.shard import Shard
from replay.snapshot import SnapshotInfo
from replay.transition_store import TransitionStore


class SimulatedRun:
    """See the module. ``rows``: each shard's quota."""

    def __init__(
        self,
        seed: int,
        directory: Path,
        faults: Faults,
        *,
        rows: int = 480,
        algorithm: str = "line",
        replay: ReplayConfig = REPLAY,
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.seed, self.directory, self.faults, self.rows, self.config = seed, directory, faults, rows, replay
        self.fired: Counter[str] = Counter()
        self.now_s, self.steps, self.progress_step = 0.0, 0, 0
        self.net: list[tuple[str, Call, Ack | None]] = []
        # What became of each chunk: its rows, and where it is.
        self.chunks: dict[Key, Chunk] = {}
        self.stored: list[list[Key]] = [[] for _ in range(replay.shards)]  # in the order of the table
        self.rejected: dict[Key, str] = {}  # by a shard
        self.refused: set[Key] = set()  # of them those whose replay client knows
        self.lost_with_shard: set[Key] = set()
        self.in_hand: dict[tuple[int, int], set[Key]] = {}  # unsettled when that incarnation died
        self.workers: dict[tuple[int, int], WireWorker] = {}  # every incarnation that ever was
        self.reported: Counter[tuple[int, int]] = Counter()  # rows that the driver knows each of them to have recorded
        self.aggregator = MetricsAggregator(min_size_rows=replay.min_size_rows, replay_ratio=replay.replay_ratio)
        self.shards = [self.new_shard(index) for index in range(replay.shards)]
        for shard in self.shards:
            self.aggregator.add_shard(shard.stats(), shard.drain_stats())
        self.aggregator.settle_restart()
        self.savings: dict[int, snapshot.Saving] = {}
        self.snapshots: list[list[SnapshotInfo]] = [[] for _ in self.shards]  # the good ones kept, oldest first
        self.astray: dict[int, int] = {}  # shard -> step since which its credit is out of its band, after a crash
        self.learners = LearnerSide(self, algorithm)
        self.learners.start()
        self.slots = [self.new_slot(index, 0) for index in range(WORKER.workers)]

    @property
    def tolerance_rows(self) -> float:
        """Rows sampled by which all shards together may be ahead."""
        return sum(shard.limiter.tolerance * shard.limiter.samples_per_insert for shard in self.shards)

    def chance(self, what: str, probability: float) -> bool:
        hit = bool(self.rng.random() < probability)
        self.fired[what] += hit
        return hit

    # --- parts ----------------------------------------------------------------------------------------------------

    def new_shard(self, index: int) -> Shard:
        limiter = self.config.limiter(batch_size=BATCH, chunk_rows=CHUNK_ROWS, block_rows=UPDATES * BATCH)
        store = TransitionStore(LAYOUT, self.config)
        return Shard(store, limiter, shard=index, seed=self.seed, batch_size=BATCH, clock=lambda: self.now_s)

    def new_slot(self, index: int, incarnation: int) -> Slot:
        faults = self.faults

        def make_env(_: str, envs: int, seed: int, __: bool) -> TaggedEnv:
            return TaggedEnv(envs, seed, faults=faults.nonfinite, raises=faults.raising, fired=self.fired)

        worker = WireWorker(
            self,
            config=WORKER,
            env_id="tagged",
            policy=self.learners.make_policy(),
            worker=index,
            incarnation=incarnation,
            seed=self.seed,
            random_steps=WORKER.random_steps,
            make_env=make_env,
        )
        self.workers[index, incarnation] = worker
        client = ReplayClient(
            worker,
            send=lambda chunk: self.send(index, chunk),
            answer=lambda call, timeout_s: self.answer(index, call, timeout_s),
            fetch=lambda: self.fetch(index),
            max_unacked=WORKER.max_unacked,
            timeout_s=TIMEOUT_S,
            clock=lambda: self.now_s,
            sleep=lambda seconds: self.sleep(index, seconds),
        )
        return Slot(incarnation, Turn(client.run), worker, client)

    def note(self, chunk: Chunk) -> Chunk:
        key = (chunk.worker, chunk.incarnation, chunk.sequence)
        assert key not in self.chunks
        self.chunks[key] = chunk
        return chunk

    # --- the wire, as a replay client sees it ---------------------------------------------------------------------------

    def send(self, index: int, chunk: Chunk) -> Call:
        call = Call(chunk, index % self.config.shards)
        self.sleep(index, 0.0)
        if self.chance("message lost", self.faults.lost):
            call.broken_s = self.soon()
            return call
        copies = 2 if self.chance("message twice", self.faults.twice) else 1
        self.net += [("append", call, None)] * copies
        if self.chance("message late", self.faults.late):
            call.broken_s = self.soon()
            call.due_s = self.now_s + float(self.rng.uniform(0.0, LATE_S))
        return call

    def answer(self, index: int, call: Call, timeout_s: float) -> Ack:
        deadline_s = self.now_s + timeout_s
        self.slots[index].turn.wait(lambda: call.ack is not None or self.now_s >= min(call.broken_s, deadline_s))
        if call.ack is None:
            self.fired["answer missed"] += 1
            raise Lost(f"shard {call.shard}")
        return call.ack

    def fetch(self, index: int) -> Weights | None:
        self.sleep(index, 0.0)
        if self.chance("weights lost", self.faults.bad_weights):
            raise Lost("the store")
        newest = self.learners.store
        if newest is not None and self.chance("weights old", self.faults.bad_weights):
            return self.learners.before[0]
        if newest is not None and self.chance("weights damaged", self.faults.bad_weights):
            flat = newest.flat.copy()
            flat.view(np.uint8)[self.rng.integers(flat.nbytes)] ^= 64
            return dataclasses.replace(newest, flat=flat)
        return newest

    def sleep(self, index: int, seconds: float) -> None:
        until_s = self.now_s + seconds
        self.slots[index].turn.wait(lambda: self.now_s >= until_s)

    def soon(self) -> float:
        return self.now_s + float(self.rng.uniform(0.0, 0.5))

    # --- the order ------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """One part acts."""
        self.steps += 1
        self.now_s += TICK_S
        actions = (
            self.resume_worker,
            self.deliver,
            self.learners.act,
            self.save_shard,
            self.tell_driver,
            self.break_part,
        )
        actions[self.rng.choice(len(actions), p=(0.4, 0.39, 0.12, 0.04, 0.02, 0.03))]()
        self.check_step()

    def resume_worker(self) -> None:
        ready = [index for index, slot in enumerate(self.slots) if slot.turn.ready]
        if not ready:
            return
        index = int(self.rng.choice(ready))
        slot = self.slots[index]
        slot.turn.resume()
        assert slot.worker.policy_order >= slot.order, "a worker went back to an older policy"
        slot.order = slot.worker.policy_order
        if slot.turn.error is not None:
            if "licence" not in str(slot.turn.error):
                raise slot.turn.error
            self.end_writer(index, killed=False)
            self.restart_worker(index)

    def deliver(self) -> None:
        due = [at for at, (_, call, _) in enumerate(self.net) if call.due_s <= self.now_s]
        if not due:
            return
        at = int(self.rng.choice(due))
        self.fired["message overtook"] += at > 0
        kind, call, ack = self.net.pop(at)
        if kind == "answer":
            call.ack = call.ack or ack
            return
        ack = self.append(call)
        if self.chance("answer lost", self.faults.lost):
            call.broken_s = min(call.broken_s, self.soon())
        else:
            self.net.append(("answer", call, ack))

    def append(self, call: Call) -> Ack:
        """What the shard's actor does with a chunk."""
        shard, chunk = self.shards[call.shard], call.chunk
        key = (chunk.worker, chunk.incarnation, chunk.sequence)
        known = shard.writers.status(*key) == "duplicate"
        if shard.store.inserted >= self.rows and not known:
            self.rejected.setdefault(key, RUN_COMPLETE)  # a late copy of one that was refused keeps its reason
            return Ack(status="rejected", generation=shard.newest[0], version=shard.newest[1], reason=RUN_COMPLETE)
        ack = shard.append(chunk)
        self.fired[f"told {ack.status}"] += 1
        if ack.status == "ok":
            assert not any(key in stored for stored in self.stored), "a chunk was stored twice"
            assert key not in self.rejected
            self.stored[call.shard].append(key)
            self.lost_with_shard.discard(key)
            self.progress_step = self.steps
        elif ack.status == "rejected":
            assert key not in self.stored[call.shard]
            self.rejected[key] = ack.reason.split(":")[0]
        return ack

    def save_shard(self) -> None:
        index = int(self.rng.integers(len(self.shards)))
        if index not in self.savings:
            self.savings[index] = snapshot.Saving(self.shards[index], self.shard_dir(index))
            return  # appends may come before its first file is written
        info = self.savings[index].step()
        if info is not None:
            del self.savings[index]
            self.snapshots[index] = [*self.snapshots[index], info][-self.config.snapshots_kept :]
            self.fired["snapshot"] += 1

    def tell_driver(self) -> None:
        for shard in self.shards:
            stats, reports = shard.stats(), shard.drain_stats()
            if self.chance("counters untold", self.faults.untold):
                continue
            self.aggregator.add_shard(stats, reports)
            for each in stats.written:
                writer = each.worker, each.incarnation
                self.reported[writer] = max(self.reported[writer], each.totals.recorded)
        self.learners.tell(self.aggregator)
        record = self.aggregator.line()
        assert record["updates_per_s"] >= 0 and record["env_steps_per_s"] >= 0, record
        dropped = sum(self.aggregator.dropped_rows().values())
        assert self.aggregator.recorded == self.aggregator.env_steps + dropped, self.aggregator.summary()["rows"]
        assert self.aggregator.recorded + self.aggregator.ledger.in_flight <= self.made, "a row is counted twice"

    @property
    def made(self) -> int:
        """Env steps that the environments of all workers ever made, by their own count."""
        return sum(worker._env.made for worker in self.workers.values())  # type: ignore[attr-defined]

    def end_writer(self, index: int, *, killed: bool) -> None:
        """The driver takes a worker's last counters; of one that was killed there are none."""
        writer, totals = (index, self.slots[index].incarnation), None
        if not killed and not self.chance("last counters untold", self.faults.untold):
            totals = self.workers[writer].totals()
            self.reported[writer] = totals.recorded
        self.aggregator.end_writer(
            *writer, totals, "worker_lost" if killed or self.slots[index].turn.error else "stopped"
        )

    # --- what breaks ----------------------------------------------------------------------------------------------

    def break_part(self) -> None:
        if self.chance("worker crashed", self.faults.worker):
            self.restart_worker(int(self.rng.integers(len(self.slots))))
        if self.chance("shard crashed", self.faults.shard):
            self.restart_shard(int(self.rng.integers(len(self.shards))))
        if self.chance("learner crashed", self.faults.learner):
            self.learners.crash()
        if self.learners.may_poison and self.chance("parameters poisoned", self.faults.poison):
            self.learners.poison()

    def restart_worker(self, index: int) -> None:
        """What was on the way may still arrive; the rest is gone."""
        slot = self.slots[index]
        slot.turn.kill()
        if slot.turn.error is None and slot.client.complete:
            return
        settled = {key for stored in self.stored for key in stored} | self.rejected.keys() | self.lost_with_shard
        own = {key for key in self.chunks if key[:2] == (index, slot.incarnation)}
        self.in_hand[index, slot.incarnation] = own - settled
        assert len(own - settled) <= WORKER.max_unacked + 1, "a worker lost more than a chunk and two messages"
        if slot.turn.error is None:
            self.fired["worker killed"] += 1
            self.end_writer(index, killed=True)
        self.slots[index] = self.new_slot(index, slot.incarnation + 1)
        self.fired["incarnation"] += 1

    def restart_shard(self, index: int) -> None:
        """The shard is its newest good snapshot again; calls to it break, or reach the new one."""
        kept = self.snapshots[index]
        self.savings.pop(index, None)
        if len(kept) > 1 and self.chance("snapshot rotten", self.faults.rotten):
            damage(kept.pop().path)
        self.shards[index] = self.new_shard(index)
        found = snapshot.load(self.shards[index], self.shard_dir(index))
        assert (found.inserted if found else 0) == (kept[-1].inserted if kept else 0), (
            "a shard lost more than one interval"
        )
        rows = np.cumsum([len(self.chunks[key].rows_ND) for key in self.stored[index]])
        held = int(np.searchsorted(rows, self.shards[index].store.inserted, side="right"))
        self.lost_with_shard |= set(self.stored[index][held:])
        self.fired["rows lost with a shard"] += len(self.stored[index]) - held
        del self.stored[index][held:]
        self.check_table(index)
        for _, call, _ in self.net:
            if call.shard == index:
                call.broken_s = min(call.broken_s, self.soon())
        self.net = [m for m in self.net if m[1].shard != index or (m[0] == "append" and self.rng.random() < 0.5)]
        for slot in self.slots:
            for _, call in slot.client.pending:
                if call.shard == index:
                    call.broken_s = min(call.broken_s, self.soon())
        self.learners.align()

    def shard_dir(self, index: int) -> Path:
        return self.directory / f"shard-{index}"

    # --- what must hold -------------------------------------------------------------------------------------------

    def check_step(self) -> None:
        """After every step: the limiters' bands, progress."""
        for index, shard in enumerate(self.shards):
            if index in self.astray and shard.limiter.inserted < shard.limiter.min_size:
                self.astray[index] = self.steps  # a crash took it back into its warm-up, with its debt
            elif self.in_band(shard.limiter):
                self.astray.pop(index, None)
            else:
                assert index in self.astray, f"shard {index}: credit {shard.limiter.credit} left its band"
                assert self.steps - self.astray[index] < STALL_STEPS, f"shard {index} does not come back into its band"
        assert self.steps - self.progress_step < STALL_STEPS, f"nothing moved for {STALL_STEPS} steps: {self.where()}"

    def in_band(self, limiter: Limiter) -> bool:
        bound = limiter.tolerance * limiter.samples_per_insert + 1e-6
        return limiter.credit <= bound and (limiter.credit >= -bound or limiter.inserted < limiter.min_size)

    def disturbed(self, index: int) -> None:
        """A crash may put a shard's credit out of its band."""
        limiter = self.shards[index].limiter
        if not self.in_band(limiter) or limiter.credit < -limiter.tolerance * limiter.samples_per_insert:
            self.astray.setdefault(index, self.steps)
            self.fired["credit left its band"] += 1

    def check_table(self, index: int) -> None:
        """A shard holds exactly what was stored in it: whole rows, each once, linked to those that follow them."""
        table, keys = self.shards[index].store, self.stored[index]
        empty = np.empty((0, LAYOUT.width), np.float32)
        rows = np.concatenate([empty, *(self.chunks[key].rows_ND for key in keys)])
        assert table.inserted == len(rows) and table.size == min(table.inserted, table.capacity)
        slots = np.arange(table.inserted - table.size, table.inserted) % table.capacity
        np.testing.assert_array_equal(table.rows[slots], rows[len(rows) - table.size :])
        assert np.isfinite(table.rows).all()
        ids = set(zip(table.episode[slots].tolist(), table.step[slots].tolist()))
        assert len(ids) == table.size, "a step of an episode is stored twice"
        columns = LAYOUT.views(table.rows)
        assert_whole(LAYOUT.views(table.rows[slots]))
        after = table.successor(slots)
        followed, following = slots[after >= 0], after[after >= 0]
        np.testing.assert_array_equal(columns.obs[following], columns.next_obs[followed])

    def where(self) -> str:
        limiters = [(s.limiter.inserted, s.limiter.sampled, s.limiter.credit) for s in self.shards]
        waiting = [(slot.turn.ready, len(slot.client.pending), slot.order) for slot in self.slots]
        return f"shards {limiters}, workers {waiting}, {len(self.net)} messages, updates {self.learners.updates}"

    def run(self) -> None:
        """Under the faults until a shard has three quarters of its rows, so that debts to the limiter can be paid; then to the end."""
        while all(shard.store.inserted < 0.75 * self.rows for shard in self.shards):
            self.step()
        self.faults = Faults()
        for slot in self.slots:
            slot.worker._env._faults = slot.worker._env._raises = 0.0  # type: ignore[attr-defined]
        while not all(slot.turn.ended for slot in self.slots):
            self.step()
        for shard in self.shards:
            shard.close()
        self.astray.update(dict.fromkeys(range(len(self.shards)), self.steps))
        while not self.learners.ended:
            self.step()
        for index in range(len(self.slots)):
            self.end_writer(index, killed=False)
        self.tell_driver()

    def close(self) -> None:
        for slot in self.slots:
            slot.turn.kill()
