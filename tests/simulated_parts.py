"""The parts of a simulated run: its settings, what may go wrong, workers whose chunks are noted, calls on their way."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from tagged_env import LAYOUT
from turns import Turn

from cluster.replay_client import ReplayClient
from replay.config import ReplayConfig
from replay.messages import Ack, Chunk
from rollout_workers.config import WorkerConfig
from rollout_workers.worker import RolloutWorker

if TYPE_CHECKING:
    from simulated_run import SimulatedRun

Key = tuple[int, int, int]  # worker, incarnation, sequence
WORKER = WorkerConfig(workers=3, envs_per_worker=2, chunk_steps=4, random_steps=16, max_unacked=2, backend="torch")
CHUNK_ROWS = WORKER.envs_per_worker * WORKER.chunk_steps
REPLAY = ReplayConfig(shards=2, capacity_rows=2_048, min_size_rows=64, replay_ratio=1.0, recent_rows=64)
BATCH, UPDATES = 8, 2  # rows of an update, updates of a block
TICK_S = 0.01  # of simulated time a step
TIMEOUT_S = 60.0
LATE_S = 12.0  # by which a message may come after others
STALL_STEPS = 4_000  # steps without a stored chunk or an update that count as a stall


@dataclasses.dataclass(frozen=True, kw_only=True)
class Faults:
    """Probabilities: of a message, of a chunk, of an env step, or of a step of the simulation."""

    lost: float = 0.0  # messages and answers
    late: float = 0.0  # delivered after the sender gave them up
    twice: float = 0.0
    malformed: float = 0.0  # chunks
    nonfinite: float = 0.0  # env steps
    raising: float = 0.0
    bad_weights: float = 0.0  # fetched: damaged, or not answered
    worker: float = 0.0  # crashes, each step
    shard: float = 0.0
    learner: float = 0.0
    poison: float = 0.0  # NaN in the learner's parameters
    untold: float = 0.0  # a shard's counters, and a worker's last ones, do not reach the driver
    rotten: float = 0.0  # of a crash: the newest snapshot or checkpoint is damaged too


class WireWorker(RolloutWorker):
    """A worker whose chunks are noted, and are malformed at times."""

    def __init__(self, run: SimulatedRun, **options: Any) -> None:
        super().__init__(**options)
        self.run = run

    def collect(self) -> Chunk:
        chunk = self.run.note(super().collect())
        if self.run.chance("malformed", self.run.faults.malformed):
            return malformed(chunk, self.run.rng)
        return chunk

    def note_rejected(self, chunk: Chunk, reason: str) -> None:
        super().note_rejected(chunk, reason)
        self.run.refused.add((chunk.worker, chunk.incarnation, chunk.sequence))


def malformed(chunk: Chunk, rng: np.random.Generator) -> Chunk:
    """A copy that is wrong in one of six ways."""
    rows_ND = chunk.rows_ND.copy()
    kind = int(rng.integers(6))
    if kind == 0:
        rows_ND[0, 0] = np.nan
    elif kind == 1:
        LAYOUT.views(rows_ND).action[:] = 1.5
    elif kind == 2:
        LAYOUT.views(rows_ND).discount[:] = 0.5
    changed: dict[str, Any] = [
        {"rows_ND": rows_ND},
        {"rows_ND": rows_ND},
        {"rows_ND": rows_ND},
        {"rows_ND": rows_ND[:, :-1]},
        {"episode_N": chunk.episode_N + (1 << 32)},
        {"step_N": chunk.step_N - 1_000},
    ][kind]
    return dataclasses.replace(chunk, **changed)


@dataclasses.dataclass(eq=False)
class Call:
    """An append on its way: what the replay client waits on."""

    chunk: Chunk
    shard: int
    ack: Ack | None = None
    due_s: float = 0.0  # not delivered before
    broken_s: float = math.inf  # when its sender learns that no answer will come


@dataclasses.dataclass
class Slot:
    """One worker slot."""

    incarnation: int
    turn: Turn
    worker: WireWorker
    client: ReplayClient
    order: tuple[int, int] = (-1, -1)  # newest policy seen in it
