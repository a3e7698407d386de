"""A learner as a Ray actor: fetches blocks from the shards, updates, publishes, checkpoints."""

from __future__ import annotations

import dataclasses
import math
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import GetTimeoutError

from cluster.actors import HELD, HOLD_S, TURN, here
from cluster.bounded import in_thread
from cluster.data_kind import kind_of
from cluster.errors import RunError
from cluster.graph import (
    GENERATIONS_A_START,
    RunSpec,
    checkpoint_writer,
    learner_device,
    make_learner,
    newest_checkpoint,
)
from cluster.remote import DIED, root
from cluster.run_dir import RunDirectory
from cluster.saving import Outcome, missing_checkpoint, timed
from cluster.usage import Usage, usage
from replay.messages import Block, Wait

if TYPE_CHECKING:
    import numpy as np

    from algorithms.weights import Weights
    from learners.checkpoint import Checkpoint
    from learners.collective import TorchCollective
    from learners.feed import Feed, ReadyBatch
    from learners.report import LearnerReport
    from replay.messages import EpisodeBlock

NOT_LATE = (
    HELD,
    TURN,
    "min_size",
    "gathering",
)  # a shard's reasons for having no block that say nothing against its workers
REPORT_S = 0.5
STOP_POLL_S = 0.5  # between two looks at whether the learner is to stop, while a shard does not answer
POLL_S = 0.2  # between two meetings of ranks of which one has no block
REPORTS = 256  # kept for the driver; of more the oldest are dropped


@dataclasses.dataclass(frozen=True, kw_only=True)
class StartInfo:
    """Where a learner begins."""

    updates: int
    version: int
    generation: int
    warnings: tuple[str, ...]  # checkpoints that were skipped


@dataclasses.dataclass(frozen=True, kw_only=True)
class News:
    """What a learner tells the driver."""

    reports: list[LearnerReport]  # counters, losses and time split since the last news, oldest first
    troubles: list[str]  # what a person should know of, since the last news
    busy_s: float  # since ``run`` last began or ended a block, a checkpoint or a look for a block
    updates: int  # made until now: reports are of up to REPORT_S ago
    version: int  # of the weights, now
    ready_blocks: int  # that wait for the learner
    usage: Usage


class LearnerActor:
    """Rank ``rank`` of the learners. ``run`` works until the shards say that nothing more is coming."""

    def __init__(self, spec: RunSpec, rank: int, generation: int, shards: list[Any], store: Any) -> None:
        self.spec, self.rank, self.generation = spec, rank, generation
        self.config = spec.config
        self.shards, self.store = shards, store
        self.collective: TorchCollective | None = None
        self.feed: Feed | None = None  # while ``run`` runs
        self.listener: socket.socket | None = None  # of the rank where the others meet
        self.stopping = threading.Event()
        # Whoever holds it may use the learner: ``run`` for a block, ``save`` for a checkpoint.
        self.turn = threading.Lock()
        self.asked = threading.Event()  # ``save`` wants the turn
        self.excused = -math.inf  # when a shard last had no block for one of the reasons NOT_LATE
        self.kept: deque[LearnerReport] = deque(maxlen=REPORTS)
        self.outcomes: deque[Outcome] = deque(maxlen=REPORTS)  # of checkpoints
        self.saving: Future[None] = Future()  # of the checkpoint that a thread writes
        self.saving.set_result(None)
        self.troubles: deque[str] = deque(maxlen=REPORTS)  # what a person should know of
        self.reported = -1  # updates in the newest report
        self.moved = time.monotonic()  # when ``run`` last began or ended something
        self.newest: Weights | None = None  # what was published last

    def meeting(self) -> tuple[str, str]:
        """Where the ranks meet: a port of this node's address, on which this rank listens from now on; "" of one learner. And the node."""
        if self.config.learner.learners == 1:
            return "", here()
        host = ray.util.get_node_ip_address()
        self.listener = socket.create_server((host, 0))
        return f"tcp://{host}:{self.listener.getsockname()[1]}", here()

    def begin(self, meeting: str) -> StartInfo:
        """Meets the other ranks and takes the newest valid checkpoint, if there is one: the same on every rank."""
        from learners.collective import TorchCollective
        from learners.learner import PART

        config = self.config
        if config.learner.learners > 1:
            device = learner_device(config)
            self.collective = TorchCollective(
                backend="nccl" if device == "cuda" else "gloo",
                rank=self.rank,
                world_size=config.learner.learners,
                init_method=meeting,
                timeout_s=config.ray.call_timeout_s,
                device=device,
                listener=self.listener,
            )
        self.learner = make_learner(self.spec, self.generation, self._publish, self.collective, self._write_back)
        found = newest_checkpoint(self.spec)
        self._agree_on(found)
        if found is not None:
            self.learner.load_state(found.part(PART))
        elif self.generation % GENERATIONS_A_START and (problem := missing_checkpoint(RunDirectory(self.spec.run_dir))):
            raise RunError(f"the learner was restarted: {problem}, so the run ends here")
        elif self.rank == 0:
            self.outcomes.append(self._save())
        warnings = found.warnings if found else ()
        learner = self.learner
        self.fetched = self.learner.updates * self.spec.rank_batch
        return StartInfo(
            updates=learner.updates, version=learner.version, generation=learner.generation, warnings=warnings
        )

    def run(self) -> int:
        """Learns until every shard is exhausted or ``stop`` is called; returns the number of updates made."""
        from learners.feed import Feed

        learner, config = self.learner, self.config
        deadline_s = config.worker.step_timeout_s + config.ray.start_timeout_s
        self.feed = feed = Feed(
            self._fetcher(),
            depth=config.learner.prefetch_blocks,
            device=str(learner.device),
            deadline_s=deadline_s,
            source="the replay shards",
        )
        self.moved = time.monotonic()
        learner.publish()
        saved = reported = time.monotonic()
        try:
            while True:
                ready = self._next(feed, deadline_s)
                if ready is None:
                    break
                while self.asked.is_set():
                    time.sleep(0.001)
                with self.turn:
                    learner.step(ready)
                    now = time.monotonic()
                    if now - reported >= REPORT_S:
                        self._report()
                        reported = now
                if self.rank == 0 and now - saved >= config.learner.checkpoint_s and self.saving.done():
                    self.moved = time.monotonic()
                    self._save_beside()
                    saved = now
        finally:
            self.stopping.set()  # the feed's thread asks the shards until then
            feed.stop()
        learner.publish()
        if self.rank == 0:
            self._save_or_tell()
            self._await_store()
        with self.turn:
            self._report()
        return learner.updates

    def _save_beside(self) -> None:
        """Begins a checkpoint of now, which a thread writes: learning goes on meanwhile, also where it cannot be written (a full disk)."""
        self.saving.result()  # of the one before
        with self.turn:
            write = self._writer()
        self.saving = in_thread(lambda: self.outcomes.append(timed(write)))

    def _save_or_tell(self) -> None:
        """The last checkpoint; where it cannot be written, the driver is told."""
        with self.turn:
            self.outcomes.append(timed(self._write))

    def stop(self) -> None:
        """Lets ``run`` finish the block in hand, write a checkpoint and return."""
        self.stopping.set()

    def save(self) -> Outcome:
        """Writes a checkpoint now, between two blocks."""
        limit = self.config.ray.call_timeout_s
        self.asked.set()
        try:
            if not self.turn.acquire(timeout=limit):
                raise RunError(
                    f"the learner was busy with one block for {limit:.0f} s, so no checkpoint was written; the newest one on disk stays; "
                    "lower learner.updates_per_call or raise ray.call_timeout_s"
                )
            try:
                return self._save()
            finally:
                self.turn.release()
        finally:
            self.asked.clear()

    def fetched_rows(self) -> int:
        """Rows that this rank had from the shards, those of the checkpoint it began with included."""
        return self.fetched

    def news(self) -> News:
        """What happened since the last call, and how far the learner is. The newest report of an idle learner is in it."""
        if self.turn.acquire(blocking=False):
            try:
                if self.learner.updates != self.reported:
                    self._report()
            finally:
                self.turn.release()
        return News(
            reports=[self.kept.popleft() for _ in range(len(self.kept))],
            troubles=[self.troubles.popleft() for _ in range(len(self.troubles))],
            busy_s=time.monotonic() - self.moved,
            updates=self.learner.updates,
            version=self.learner.version,
            ready_blocks=self.feed.ready if self.feed is not None else 0,
            usage=usage(),
        )

    def save_outcomes(self) -> list[Outcome]:
        """Of the checkpoints since the last call, ``save`` aside."""
        return [self.outcomes.popleft() for _ in range(len(self.outcomes))]

    def publish_again(self) -> None:
        """Gives the store what was published last, because it was restarted and is empty."""
        if self.newest is not None:
            self.sent = self.store.publish.remote(self.newest)

    def _report(self) -> None:
        self.kept.append(self.learner.report())
        self.reported = self.learner.updates

    def _next(self, feed: Feed, deadline_s: float) -> ReadyBatch | None:
        """The next block, once every rank has one; None at the end of any rank's. Neither a run that the driver holds nor a
        long warm-up or gathering is late: workers that hang meanwhile are the driver's to find.

        A rank that waits for its block meets the others all the same, every POLL_S: blocks do not come evenly, and one
        that has the last of a stage would wait for the others in a reduction, whose deadline is shorter than a gathering.
        What the stage taught and was not published yet is published then: workers gather the next one with it.
        """
        from learners.feed import FeedTimeout

        began, waited_s, ready, ended = time.monotonic(), feed.waited_s, None, False
        while True:
            self.moved = time.monotonic()
            try:
                if ready is None:
                    ready = feed.get(POLL_S)
                    ended = ready is None
            except FeedTimeout as late:
                waited = time.monotonic() - max(self.excused, began)
                if waited > deadline_s:
                    raise FeedTimeout(f"no block came for {waited:.0f} s; of the last wait: {late}") from None
            everybody, anybody_ended = self._meet(ready is not None, ended or self.stopping.is_set())
            if anybody_ended:
                return None
            if everybody and ready is not None:
                return dataclasses.replace(ready, waited_s=feed.waited_s - waited_s)
            with self.turn:
                self.learner.flush()  # no block comes for a while
            if kind_of(self.config).acts_on_versions and self.learner.updates > self.learner.published_updates:
                with self.turn:
                    self.learner.publish()

    def _meet(self, ready: bool, ended: bool) -> tuple[bool, bool]:
        """Whether every rank has a block, and whether any is at its end: all of them make an update, or none does."""
        if self.collective is None:
            return ready, ended
        share_ready, share_ended = self.collective.means(ready, ended)
        return share_ready == 1.0, share_ended > 0.0

    def _agree_on(self, found: Checkpoint | None) -> None:
        """Waits until every rank has looked for checkpoints, before rank 0 writes the first; RunError unless all found the
        same: ranks that go on from different ones would wait for each other in vain."""
        if self.collective is None:
            return
        mine = -1.0 if found is None else float(found.meta["updates"])
        if self.collective.means(mine) != [mine]:
            seen = "no checkpoint" if found is None else f"{found.path.name} of {mine:.0f} updates"
            raise RunError(
                f"learner {self.rank} found {seen} in {self.spec.run_dir} and another learner something else, expected the same: "
                "they do not see the same files, and none was started; put the run directory on storage that every node sees"
            )

    def _save(self) -> Outcome:
        """A checkpoint; OSError where it cannot be written."""
        began = time.monotonic()
        size = self._write()
        return Outcome(seconds=time.monotonic() - began, bytes=size)

    def _write(self) -> int:
        self.saving.result()
        return self._writer()()

    def _writer(self) -> Callable[[], int]:
        return checkpoint_writer(self.spec, self.learner, self.learner.env_steps)

    def _fetcher(self) -> Any:
        """A function that gives the next block, or None when every shard is exhausted; shards are asked in turn."""
        turn = [self.rank]

        def fetch() -> Block | EpisodeBlock | Wait | None:
            exhausted = 0
            while exhausted < len(self.shards) and not self.stopping.is_set():
                shard = self.shards[turn[0] % len(self.shards)]
                turn[0] += 1
                answer = self._ask(shard)
                if not isinstance(answer, Wait):
                    self.fetched += answer.slot_UB.size
                    return answer
                if answer.reason in NOT_LATE:
                    self.excused = time.monotonic()
                exhausted = exhausted + 1 if answer.reason == "exhausted" else 0
            return None

        return fetch

    def _ask(self, shard: Any) -> Block | EpisodeBlock | Wait:
        """Asks one shard. While it is dead or silent this waits: the driver finds that out and has Ray restart it, which takes
        no longer than the limit here. That says nothing against the workers, nor does it last beyond ``stop``."""
        config = self.config
        limit_s = 2 * config.ray.call_timeout_s + config.ray.start_timeout_s
        hold_s = HOLD_S if len(self.shards) == 1 else HOLD_S / 20  # another shard may have a block while this one waits
        began, ref = time.monotonic(), None
        while not self.stopping.is_set():
            order = self.learner.generation, self.learner.version
            if ref is None:
                ref = shard.sample.remote(
                    config.learner.updates_per_call, self.spec.rank_batch, *order, hold_s, self.rank
                )
            try:
                return ray.get(ref, timeout=hold_s + STOP_POLL_S)
            except GetTimeoutError:
                seen = "did not answer"
            except DIED as error:
                seen, ref = f"was gone ({root(error)})", None
                time.sleep(STOP_POLL_S)
            self.excused = time.monotonic()
            if self.excused - began > limit_s:
                raise RunError(
                    f"replay shard {self.shards.index(shard)} {seen} for {limit_s:.0f} s, expected an answer, or a restart by Ray "
                    "in that time (2 ray.call_timeout_s + ray.start_timeout_s): this learner has no blocks and stops; look at "
                    "the shard's log, or raise ray.call_timeout_s if it is merely slow"
                )
        return Wait(reason="stopping", retry_after_s=0.0)

    def _await_store(self) -> None:
        """Waits until the store has the last policy; one that died or hangs is the driver's to restart and to fill again."""
        try:
            ray.get(self.sent, timeout=self.config.ray.call_timeout_s)
        except (*DIED, GetTimeoutError) as error:
            self.troubles.append(f"the store of weights did not take the last policy: {root(error)}")

    def _write_back(self, block: EpisodeBlock, values: list[np.ndarray]) -> None:
        """Tells the shard and does not wait: what is lost on the way is inferred again."""
        for slot_B, writes_B, value_BP in zip(block.slot_UB, block.writes_UB, values):
            self.shards[block.shard].write_back.remote(slot_B, writes_B, value_BP)

    def _publish(self, weights: Weights) -> None:
        self.newest, self.sent = weights, self.store.publish.remote(weights)
        if kind_of(self.config).acts_on_versions:
            for shard in self.shards:
                shard.observe_version.remote(*weights.order)
