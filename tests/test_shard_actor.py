"""A shard whose workers are ahead of its learner: who is woken by a sample, and that nobody is forgotten; and its snapshots."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from shard_chunks import LAYOUT, make_chunk, make_shard

from cluster.actors import ShardActor
from cluster.config import make_preset
from cluster.graph import RunSpec
from replay import snapshot
from replay.messages import Ack, Block, Wait

WORKERS, ROWS = 200, 4  # of a chunk, and of a block
SLOW_S = 3.0  # of a disk; what is asked of the shard meanwhile takes milliseconds


@pytest.fixture
def actor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ShardActor:
    monkeypatch.setattr("cluster.actors.HOLD_S", 60.0)
    monkeypatch.setattr("cluster.actors.make_shard", lambda spec, index: make_shard(4_096, tolerance=2 * ROWS))
    spec = RunSpec(config=make_preset("softgac", "cpu"), obs_dim=LAYOUT.obs_dim, action_dim=2, run_dir=tmp_path)
    return ShardActor(spec, 0, None)


def tried(actor: ShardActor, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The workers whose chunks were offered to the shard, in order."""
    seen, append = list[int](), actor.shard.append

    def offered(chunk: Any) -> Ack:
        seen.append(chunk.worker)
        return append(chunk)

    monkeypatch.setattr(actor.shard, "append", offered)
    return seen


async def waiting(actor: ShardActor) -> list[asyncio.Task[Ack]]:
    """A call of each worker; all but the first few wait for room."""
    chunks = [make_chunk([(0, 0, ROWS, 0)], worker=worker) for worker in range(WORKERS)]
    calls = [asyncio.create_task(actor.append(chunk)) for chunk in chunks]
    await settled()
    assert actor.inside["append"] == sum(not call.done() for call in calls) > WORKERS - 5
    return calls


async def settled() -> None:
    for _ in range(10 * WORKERS):  # whoever was woken has had its turn
        await asyncio.sleep(0)


def test_a_sample_wakes_no_more_appends_than_find_room_and_one(
    actor: ShardActor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        calls, seen = await waiting(actor), tried(actor, monkeypatch)
        for _ in range(WORKERS):
            before = sum(call.done() for call in calls)
            seen.clear()
            assert not isinstance(await actor.sample(1, ROWS, 0, 0, 1.0), Wait)
            await settled()
            stored = sum(call.done() for call in calls) - before
            assert len(seen) <= stored + 1, seen
        assert [call.result().status for call in calls] == ["ok"] * WORKERS

    asyncio.run(run())


def test_whoever_gives_up_in_the_moment_that_it_is_woken_wakes_the_next(
    actor: ShardActor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        calls = await waiting(actor)
        monkeypatch.setattr("cluster.actors.HOLD_S", 0.05)  # of those that come from now on
        late = asyncio.create_task(actor.append(make_chunk([(1, 0, ROWS, 0)], worker=WORKERS)))
        assert (await late).status == "wait"
        while not all(call.done() for call in calls):
            assert not isinstance(await actor.sample(1, ROWS, 0, 0, 1.0), Wait)
            await settled()
        assert {call.result().status for call in calls} == {"ok"}

    asyncio.run(run())


@pytest.mark.parametrize("end", ["seal", "full"])
def test_the_end_is_told_to_all_that_wait(actor: ShardActor, end: str) -> None:
    async def run() -> None:
        calls = await waiting(actor)
        if end == "seal":
            await actor.seal()
        else:
            actor.quota_rows = actor.shard.store.inserted + ROWS
            assert not isinstance(await actor.sample(1, ROWS, 0, 0, 1.0), Wait)
        done = await asyncio.wait_for(asyncio.gather(*calls), 30)
        reasons = [ack.reason for ack in done if ack.status == "rejected"]
        assert set(reasons) == {"stopped" if end == "seal" else "run_complete"} and len(reasons) > WORKERS - 10

    asyncio.run(run())


def test_each_rank_has_as_many_blocks_of_a_shard_as_the_other_and_both_are_told_of_its_end(actor: ShardActor) -> None:
    async def run() -> None:
        actor.drawn = [0, 0]
        await actor.append(make_chunk([(0, 0, 2 * ROWS, 0)]))
        assert not isinstance(await actor.sample(1, ROWS, 1, 0, 0.0, 0), Wait)
        assert await actor.sample(1, ROWS, 1, 0, 0.0, 0) == Wait(reason="turn", retry_after_s=0.0)
        late = asyncio.create_task(actor.sample(1, 1, 1, 0, 60.0, 0))
        assert not isinstance(await actor.sample(1, 1, 1, 0, 60.0, 1), Wait)
        assert not isinstance(await late, Wait), "its turn has come"
        await actor.close()
        while not isinstance(answer := await actor.sample(1, 1, 1, 0, 0.0, 1), Wait):
            await actor.sample(1, 1, 1, 0, 0.0, 0)
        assert answer.reason == "exhausted"
        assert [(await actor.sample(1, 1, 1, 0, 0.0, rank)) for rank in (0, 1)] == [
            Wait(reason="exhausted", retry_after_s=0.0)
        ] * 2
        await actor.sample(1, 1, 2, 0, 0.0, 0)
        assert actor.drawn == [0, 0], "learners that were restarted begin at the same count"

    asyncio.run(run())


class SlowDisk:
    """Every fsync waits until ``free`` is set, for SLOW_S at most."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free, self.stuck = threading.Event(), threading.Event()
        self._fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self._wait)

    def _wait(self, descriptor: int) -> None:
        self.stuck.set()
        self.free.wait(SLOW_S)
        self._fsync(descriptor)


async def asked(actor: ShardActor, sequence: int) -> float:
    """Seconds that an append, a sample and a look at the counters take together."""
    began = time.monotonic()
    assert (await actor.append(make_chunk([(0, ROWS * sequence, ROWS, 0)], sequence=sequence))).status == "ok"
    assert isinstance(await actor.sample(1, ROWS, 0, 0, 1.0), Block)
    assert (await actor.stats())["stats"].stored_rows == ROWS * (sequence + 1)
    return time.monotonic() - began


def test_a_shard_answers_while_its_disk_is_slow_and_the_snapshot_is_of_when_it_began(
    actor: ShardActor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.actors.here", lambda: "")  # outside of an actor there is no node

    async def run() -> float:
        await asked(actor, 0)
        disk = SlowDisk(monkeypatch)
        save = asyncio.create_task(actor.save())
        while not disk.stuck.is_set():
            await asyncio.sleep(0.01)
        state = actor.shard.state()
        lag_s = max([await asked(actor, sequence) for sequence in range(1, 20)])
        assert not save.done() and actor.shard.state() != state
        disk.free.set()
        assert (await save).bytes > 0
        again = make_shard(4_096, tolerance=2 * ROWS)
        found = snapshot.load(again, actor.directory)
        assert found is not None and again.state() == state
        return lag_s

    lag_s = asyncio.run(run())
    print(f"longest wait for three answers while the disk was stuck: {lag_s:.3f} s")
    assert lag_s < 0.2
