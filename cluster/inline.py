"""The graph in one process: the same parts, called in a fixed order. Two runs with one seed are bit-identical.

One turn: the next worker collects a chunk, its shard stores it, the learner makes every block of updates that the
limiter allows, the workers take weights that are newer. A checkpoint holds all of it exactly, so N steps,
resume and N more equal 2N steps.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from algorithms.weights import Weights
from cluster.data_kind import kind_of
from cluster.env_watch import EnvWatch
from cluster.errors import SAME_FAILURE, RunError, UsageError
from cluster.graph import (
    GENERATIONS_A_START,
    INCARNATIONS_A_START,
    RunSpec,
    checkpoint_writer,
    make_evaluator,
    make_learner,
    make_shard,
    make_worker,
    newest_checkpoint,
    random_steps_left,
)
from cluster.metrics.aggregator import MetricsAggregator
from cluster.saving import Saved, SaveWatch, look_at_disk, timed
from learners import checkpoint
from learners.feed import DirectFeed
from learners.learner import PART
from replay import snapshot
from replay.limiter import apportioned
from replay.messages import EpisodeBlock, Wait
from replay.shard import Shard
from rollout_workers.evaluator import BrokenEpisodes, Evaluation, EvaluationTimeout
from rollout_workers.worker import RolloutWorker

_COUNTERS = "fleet"


class InlineFleet:
    """All parts in this process. See ``session.Fleet`` for the face that it shares with RayFleet."""

    def __init__(self, spec: RunSpec, aggregator: MetricsAggregator, event: Callable[[str], None]) -> None:
        self.spec, self.aggregator, self.event = spec, aggregator, event
        self.done = False
        self.watch = SaveWatch(spec, aggregator, event)
        self.env_watch = EnvWatch(spec, event)
        self.meanwhile: Callable[[], None] = lambda: None
        self.turn = self.asked = 0
        self._evaluations: list[Evaluation] = []
        self._timeouts = 0  # evaluations in a row that took too long

    def start(self) -> None:
        """Builds the parts; goes on from the newest checkpoint when there is one."""
        spec, config, watched = self.spec, self.spec.config, self.env_watch.make
        self.env_watch.start()
        self.newest: Weights | None = None
        self.shards: list[Shard] = [make_shard(spec, index) for index in range(config.replay.shards)]
        self.learner = make_learner(spec, spec.start * GENERATIONS_A_START, self._publish, write_back=self._write_back)
        self.feed = DirectFeed(self._fetch, device=str(self.learner.device))
        found = newest_checkpoint(spec)
        exact = self._restore(found)
        self.incarnation = self._kept_incarnation(found) if exact else spec.start * INCARNATIONS_A_START
        random_steps = random_steps_left(config, 0 if exact else self._env_steps())
        self.workers = [
            make_worker(spec, i, self.incarnation, random_steps, watched)
            for i in range(kind_of(config).workers(config))
        ]
        self.evaluator = make_evaluator(spec, watched)
        if found is not None and exact:
            for index, worker in enumerate(self.workers):
                self._say_cut(index, self._load_worker(index, worker, found))
        self.aggregator.workers = self.aggregator.workers_wanted = len(self.workers)
        self.aggregator.worker_nodes = dict.fromkeys(range(len(self.workers)), platform.node())
        self.aggregator.workers_started += len(self.workers)
        if not exact:
            self.learner.publish()
            self._deal_weights()
        self._report()
        self.aggregator.settle_restart()
        self.env_watch.started()

    def advance(self, seconds: float, until: int) -> None:
        """Takes turns for about ``seconds``, or until the run has made ``until`` (in its unit) or all of its own."""
        deadline = time.monotonic() + seconds
        while not self.done and self._progress() < until and time.monotonic() < deadline:
            self._take_turn()
        self._report()

    def weights(self) -> Weights:
        """The policy as it is now, published or not."""
        return self.learner.weights()

    def request_evaluation(self, episodes: int) -> None:
        """Evaluates the policy as it is now. One that fails is reported; SAME_FAILURE in a row that took too long end the run.

        Without one finished episode there is no result, but the run goes on: training leaves out what is not finite, too.
        """
        try:
            with self.env_watch.evaluation():
                self._evaluations.append(self.evaluator.evaluate(self.weights(), episodes, meanwhile=self.meanwhile))
            self._timeouts = 0
        except BrokenEpisodes as error:
            self._timeouts = 0
            self.event(f"an evaluation has no result: {error}")
        except EvaluationTimeout as error:
            self._timeouts += 1
            if self._timeouts == SAME_FAILURE:
                raise
            self.event(f"an evaluation failed: {error}")

    def take_evaluations(self) -> list[Evaluation]:
        """Evaluations finished since the last call."""
        taken, self._evaluations = self._evaluations, []
        return taken

    def scale(self, workers: int) -> str:
        raise UsageError(
            f"cannot scale to {workers} workers: this run has --backend inline, one process with a fixed order; nothing was "
            "changed; runs with --backend ray can be scaled"
        )

    def workers_in_words(self) -> str:
        return f"{self.aggregator.workers} run"

    def hold_at(self, env_steps: int) -> None:
        """Does nothing: in one process only ``advance`` works, and its caller says where to stop."""

    def save(self) -> Saved:
        """Writes the shards' snapshots, then a checkpoint of everything else that belongs to exactly them."""
        snapshots: dict[int, str] = {}
        for index, shard in enumerate(self.shards):
            outcome = timed(lambda shard=shard, index=index: snapshot.save(shard, self.spec.shard_dir(index)).bytes)  # type: ignore[misc]
            if outcome.problem:
                snapshots[index] = outcome.problem
            self.watch.snapshot(index, outcome)
        outcome = timed(self._save_checkpoint)
        self.watch.checkpoint(outcome)
        return look_at_disk(self.spec, outcome.problem, snapshots)

    def finish(self, limit_s: float | None = None) -> Saved:
        """Nothing is on its way in one process, so what is left is to save."""
        return self.save()

    def await_evaluations(self) -> None:
        """Each was made when it was asked for."""

    def close(self) -> None:
        for worker in getattr(self, "workers", []):
            worker.close()
        self.env_watch.stop()

    def _load_worker(self, index: int, worker: RolloutWorker, found: checkpoint.Checkpoint) -> dict[int, str]:
        """What ``RolloutWorker.load_state`` gives; RunError where the checkpoint has no state that fits the worker."""
        try:
            return worker.load_state({name: t.numpy() for name, t in found.part(f"worker-{index}").items()})
        except (ValueError, KeyError) as error:
            settings = self.spec.config.worker
            raise RunError(
                f"{found.path} has no state that fits worker {index} ({type(error).__name__}: {error}), expected workers as the run was made "
                f"with; config.json has worker.workers {settings.workers}, worker.envs_per_worker {settings.envs_per_worker}, "
                f"worker.chunk_steps {settings.chunk_steps}, worker.fast_envs {str(settings.fast_envs).lower()}: the run cannot go on; "
                "put these back to what they were, and resume it"
            ) from error

    def _say_cut(self, index: int, ended: dict[int, str]) -> None:
        """Counts the episodes of worker ``index`` that could not be replayed, and says why."""
        if not ended:
            return
        self.aggregator.episodes_cut["not_replayed"] += len(ended)
        of, (first, why) = self.spec.config.worker.envs_per_worker, min(ended.items())
        self.event(
            f"worker {index}: {len(ended)} of {of} running episodes were cut, because replaying their actions did not lead to the "
            f"saved observations (environment {first}: {why}), so this run is not bit for bit as if it had never stopped; no transition "
            "joins the two; exact are resumes of environments that follow from their seed and actions alone, up to 100,000 steps an episode"
        )

    def _save_checkpoint(self) -> int:
        parts: dict[str, Any] = {}
        for index, worker in enumerate(self.workers):
            parts |= checkpoint.prefixed(f"worker-{index}", worker.state())
        counters = np.array([self.turn, self.asked, *(shard.store.inserted for shard in self.shards)], np.int64)
        parts |= checkpoint.prefixed(
            _COUNTERS, {"counters": counters, "incarnation": np.array(self.incarnation, np.int64)}
        )
        return checkpoint_writer(self.spec, self.learner, self._env_steps(), parts)()

    def _take_turn(self) -> None:
        config = self.spec.config
        if not self.workers:
            self.done = not self._learn() or self._progress() >= config.steps
            return
        if any(shard.limiter.pretraining for shard in self.shards):
            self._learn()
            self._deal_weights()
            return
        stages = self._stages()
        if config.unit == "updates" and self._learn():  # a stage: as long as it may, a block at a turn
            self._end_turn(stages)
            return
        index = self.turn % len(self.workers)
        worker, shard = self.workers[index], self.shards[index % len(self.shards)]
        chunk = worker.collect()
        while (ack := shard.append(chunk)).status == "wait":
            if not self._learn():
                raise RunError(
                    "neither inserting nor sampling may go on: the replay ratio's tolerance is too small; raise replay.tolerance_rows"
                )
        if ack.status == "rejected":
            worker.note_rejected(chunk, ack.reason)
        else:
            worker.note_stored(chunk)
        while config.unit == "env_steps" and self._learn():
            pass
        self.turn += 1
        self._end_turn(stages)

    def _stages(self) -> list[int]:
        """The stage that each shard gathers, 0 in a run without stages."""
        return [shard.limiter.stage for shard in self.shards]

    def _end_turn(self, before: list[int]) -> None:
        """Workers of shards that have opened another stage begin it with what was learned of the last one."""
        opened_S = [old != new for old, new in zip(before, self._stages())]
        if any(opened_S):
            self.learner.publish()
        self._deal_weights()
        for index, worker in enumerate(self.workers):
            if opened_S[index % len(self.shards)]:
                worker.restart_episodes()
        self.done = self._progress() >= self.spec.config.steps

    def _learn(self) -> bool:
        """One block of updates, if the limiter of some shard allows it."""
        ready = self.feed.poll()
        if ready is None:
            return False
        self.learner.step(ready)
        return True

    def _fetch(self) -> Any:
        config = self.spec.config.learner
        for _ in self.shards:
            shard = self.shards[self.asked % len(self.shards)]
            self.asked += 1
            answer = shard.sample(
                config.updates_per_call, config.batch_size, (self.learner.generation, self.learner.version)
            )
            if not isinstance(answer, Wait):
                break
        return answer

    def _write_back(self, block: EpisodeBlock, values: list[np.ndarray]) -> None:
        shard = self.shards[block.shard]
        for slot_B, writes_B, value_BP in zip(block.slot_UB, block.writes_UB, values):
            shard.write_back(slot_B, writes_B, value_BP)

    def _publish(self, weights: Weights) -> None:
        self.newest = weights

    def _deal_weights(self) -> None:
        self.learner.flush()
        for worker in self.workers:
            if self.newest is not None and worker.policy_order < self.newest.order:
                worker.load_weights(self.newest)

    def _progress(self) -> int:
        return self.learner.updates if self.spec.config.unit == "updates" else self._env_steps()

    def _env_steps(self) -> int:
        return sum(shard.store.inserted for shard in self.shards)

    def _report(self) -> None:
        for shard in self.shards:
            self.aggregator.add_shard(shard.stats(), shard.drain_stats())
        self.aggregator.add_learner(self.learner.report())

    def _kept_incarnation(self, found: checkpoint.Checkpoint | None) -> int:
        """Who the workers of a checkpoint were, whose running episodes go on: later ones only where a start was not exact."""
        kept = found.part(_COUNTERS) if found is not None else {}
        return int(kept.get("incarnation", 0))

    def _restore(self, found: checkpoint.Checkpoint | None) -> bool:
        """Learner and shards; whether the checkpoint and the snapshots are of one moment, so that all is as it was."""
        loaded = self._load_shards()
        if found is None:
            if loaded:
                self._settle()
            return False
        for warning in found.warnings:
            self.event(f"checkpoint skipped: {warning}")
        self.learner.load_state(found.part(PART))
        counters = found.part(_COUNTERS)
        if counters:
            self.turn, self.asked, *inserted = counters["counters"].tolist()
            # before the first row the count of rows drawn alone tells moments apart
            drawn = sum(shard.limiter.sampled for shard in self.shards)
            if (
                inserted == [shard.store.inserted for shard in self.shards]
                and drawn == self.learner.updates * self.spec.config.learner.batch_size
            ):
                return True
        self._settle()
        return False

    def _load_shards(self) -> bool:
        """The newest snapshot of each shard; whether any has one."""
        found = False
        for index, shard in enumerate(self.shards):
            try:
                info = snapshot.load(shard, self.spec.shard_dir(index))
            except snapshot.SnapshotError as error:
                raise RunError(str(error)) from error
            found = found or info is not None
            for warning in info.warnings if info else ():
                self.event(f"snapshot skipped: {warning}")
        return found

    def _settle(self) -> None:
        """Tells the shards what a learner that is not of their moment really had of them."""
        self.event(
            "checkpoint and snapshots are not of one moment: the run goes on, but not bit for bit as if it had never stopped"
        )
        limiters = [shard.limiter for shard in self.shards]
        total = self.learner.updates * self.spec.config.learner.batch_size
        missing = apportioned(
            total, [limiter.sampled for limiter in limiters], [limiter.inserted for limiter in limiters]
        )
        for shard, rows in zip(self.shards, missing):
            shard.align(rows)
