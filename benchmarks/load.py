"""A load generator for the parts that serve workers: two processes play all of them, as their replay clients would.

The shard and the store are the real ones, with a count of their CPU time; ``benchmarks/scale.py`` measures with them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil

from cluster.actors import ShardActor, StoreActor, here
from cluster.graph import RunSpec
from cluster.remote import make_actor
from replay.limiter import Limiter
from replay.messages import Chunk, RowTotals
from replay.schema import RowLayout

LAYOUT = RowLayout(obs_dim=17, action_dim=6)
ENVS, STEPS = 4, 4  # of a chunk of preset cpu
BATCH, UPDATES = 256, 16  # of a block
PARAMETERS = 75_000  # of a policy: float32, as preset cpu publishes for HalfCheetah-v5
PROCESSES = 2


class Shard(ShardActor):
    """The real shard, with a limiter that never holds anybody back."""

    def __init__(self, spec: RunSpec, index: int) -> None:
        super().__init__(spec, index, None)
        self.shard.limiter = Limiter(BATCH, 1.0, 1e18)

    async def cpu(self) -> float:
        return spent_cpu_s()


class Store(StoreActor):
    """The real store."""

    def cpu(self) -> float:
        return spent_cpu_s()


class Crowd:
    """Plays workers ``first``, ``first`` + PROCESSES, ... of ``count``, as a rollout worker's replay client does."""

    def __init__(self, first: int, count: int, shards: list[Any], store: Any = None, steps: int = STEPS) -> None:
        self.mine, self.shards, self.store, self.steps = list(range(first, count, PROCESSES)), shards, store, steps
        self.sequence = dict.fromkeys(self.mine, 0)
        rng = np.random.default_rng(first)
        self.rows_ND = rng.uniform(-1, 1, (ENVS * steps, LAYOUT.width)).astype(np.float32)
        LAYOUT.views(self.rows_ND).discount[:] = 1

    def chunk(self, worker: int) -> Chunk:
        sequence = self.sequence[worker]
        self.sequence[worker] += 1
        size = ENVS * self.steps
        counter_N = np.repeat(np.arange(ENVS, dtype=np.int64), self.steps)
        step_N = np.tile(np.arange(self.steps, dtype=np.int32), ENVS) + np.int32(sequence * self.steps)
        rows = size * (sequence + 1)
        return Chunk(
            worker=worker, incarnation=0, sequence=sequence, generation=0, version=0, rows_ND=self.rows_ND,
            episode_N=counter_N | worker << 48, step_N=step_N, flag_N=np.zeros(len(step_N), np.uint8),
            stats={"recorded_rows": float(size), "env_s": 0.01, "act_s": 0.01, "record_s": 0.001},
            totals=RowTotals(recorded=rows, acknowledged=rows - size),
        )  # fmt: skip

    async def append(self, seconds: float, max_unacked: int = 2, every_s: float = 0.0) -> int:
        """Sends chunks for ``seconds``, each worker at most ``max_unacked`` at a time, and then none for ``every_s``; how many were
        stored."""
        end = time.monotonic() + seconds

        async def work(worker: int) -> int:
            stored = 0
            while time.monotonic() < end:
                acks = await asyncio.gather(
                    *(
                        self.shards[worker % len(self.shards)].append.remote(self.chunk(worker))
                        for _ in range(max_unacked)
                    )
                )
                assert all(ack.status == "ok" for ack in acks), acks
                stored += len(acks)
                await asyncio.sleep(every_s)
            return stored

        return sum(await asyncio.gather(*(work(worker) for worker in self.mine)))

    async def fetch(self) -> int:
        """Every worker fetches the newest weights once; bytes."""

        async def work() -> int:
            refs = await self.store.fetch.remote()
            return int((await refs[0]).flat.nbytes)

        return sum(await asyncio.gather(*(work() for _ in self.mine)))

    async def forever(self, shard: Any, store: Any) -> None:
        """A call that does not return, as a worker's ``run``; all workers send to the one shard of the run."""
        self.shards, self.store = [shard], store
        await asyncio.Event().wait()

    async def place(self) -> str:
        """On which node this is; there is an answer once the process is up."""
        return here()

    async def last_words(self) -> RowTotals:
        return RowTotals()

    async def idle_s(self) -> float:
        return 0.0


class Call:
    """What an actor's method looks like to the driver."""

    def __init__(self, remote: Callable[..., Any]) -> None:
        self.remote = remote


class StandIn:
    """A rollout worker's actor, as the driver sees it: it has no process of its own, a process of a Crowd answers."""

    def __init__(self, crowd: Any) -> None:
        self.run, self.place = Call(crowd.forever.remote), Call(crowd.place.remote)
        self.last_words, self.idle_s = Call(crowd.last_words.remote), Call(crowd.idle_s.remote)


class StandIns:
    """In place of the workers' actor class: starts no process for a worker, but one for every PROCESSES-th part of them."""

    def __init__(self, count: int) -> None:
        self.count, self.crowd = count, dict[int, Any]()

    def remote(self, spec: RunSpec, index: int, *_: Any) -> StandIn:
        part = index % PROCESSES
        if part not in self.crowd:
            actor = make_actor(Crowd, num_cpus=0, max_concurrency=4 * self.count + 20)
            self.crowd[part] = actor.remote(part, self.count, [])
        return StandIn(self.crowd[part])


def spent_cpu_s(process: psutil.Process | None = None) -> float:
    """CPU time of a process, of this one by default."""
    times = (process or psutil.Process()).cpu_times()
    return float(times.user + times.system)


def turns(session: Any, until: Callable[[], bool], seconds: float) -> tuple[float, float, float]:
    """Lets the driver work until ``until`` or for ``seconds``; its CPU time, its longest turn's wall time and the wall time, in s."""
    cpu_s, began, longest_s = time.process_time(), time.monotonic(), 0.0
    while not until() and time.monotonic() < began + seconds:
        at = time.monotonic()
        session.advance()
        longest_s = max(longest_s, time.monotonic() - at)
    return time.process_time() - cpu_s, longest_s, time.monotonic() - began
