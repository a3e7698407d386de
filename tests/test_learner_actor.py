"""The learner's actor as a plain object: what it waits for, and that all ranks begin alike."""

from __future__ import annotations

import math
import queue
import threading
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.config import make_preset
from cluster.errors import RunError
from cluster.graph import RunSpec
from cluster.learner_actor import LearnerActor
from cluster.learner_group import LearnerGroup
from cluster.metrics.aggregator import MetricsAggregator
from cluster.nodes import Nodes
from learners.checkpoint import Checkpoint
from learners.collective import TorchCollective
from learners.feed import FeedTimeout, ReadyBatch
from replay.messages import Wait


class Shard:
    """Answers from a list; the last one for ever."""

    def __init__(self, *reasons: str) -> None:
        self.reasons = list(reasons)
        self.sample = types.SimpleNamespace(remote=self._sample)

    def _sample(self, *arguments: Any) -> Wait:
        return Wait(reason=self.reasons.pop(0) if len(self.reasons) > 1 else self.reasons[0], retry_after_s=0.0)


class Silent:
    """A feed that has no block."""

    waited_s = 0.0

    def get(self, deadline_s: float) -> None:
        raise FeedTimeout("no block came")


class Slow:
    """A feed whose answers come when they are put into it."""

    waited_s = 0.0

    def __init__(self) -> None:
        self.answers: queue.Queue[ReadyBatch | None] = queue.Queue()
        self.asked = 0

    def get(self, deadline_s: float) -> ReadyBatch | None:
        self.asked += 1
        try:
            return self.answers.get(timeout=deadline_s)
        except queue.Empty:
            self.waited_s += deadline_s
            raise FeedTimeout("no block came") from None


class Meeting:
    """What two ranks share that run as threads; nobody may wait in it for longer than ``limit_s``."""

    means = TorchCollective.means

    def __init__(self, limit_s: float) -> None:
        self.barrier, self.sum, self.lock = (
            threading.Barrier(2, timeout=limit_s),
            torch.zeros(2, dtype=torch.float64),
            threading.Lock(),
        )

    def mean_(self, tensor: torch.Tensor) -> None:
        with self.lock:
            self.sum += tensor
        self.barrier.wait()
        tensor.copy_(self.sum / 2)
        if self.barrier.wait() == 0:
            self.sum.zero_()
        self.barrier.wait()


class Others:
    """A collective of this rank and others, of which each found a checkpoint of so many updates."""

    means = TorchCollective.means

    def __init__(self, *found: float) -> None:
        self.found = found

    def mean_(self, tensor: torch.Tensor) -> None:
        tensor.copy_((tensor + sum(self.found)) / (1 + len(self.found)))


def actor(path: Path, *shards: Shard, algorithm: str = "softgac") -> LearnerActor:
    spec = RunSpec(config=make_preset(algorithm, "cpu"), obs_dim=3, action_dim=1, run_dir=path)
    made = LearnerActor(spec, 1, 0, list(shards), None)
    # What the ranks agree on lies on the CPU: on the device of the learner nothing could be read without waiting for it.
    device = torch.device("meta")
    made.learner = types.SimpleNamespace(generation=0, version=0, device=device, flush=lambda: None)  # type: ignore[assignment]
    return made


def checkpoint(path: Path, updates: int) -> Checkpoint:
    return Checkpoint(tensors={}, meta={"updates": updates}, path=path / "checkpoint-00000001", warnings=())


@pytest.mark.parametrize(("reason", "late"), [("min_size", False), ("held", False), ("samples_ahead", True)])
def test_a_warm_up_or_a_held_run_is_not_late_however_long_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str, late: bool
) -> None:
    monkeypatch.setattr("ray.get", lambda answer, timeout: answer)
    learner = actor(tmp_path, Shard(reason, "exhausted"))
    assert learner._fetcher()() is None
    assert (learner.excused == -math.inf) == late
    if late:
        with pytest.raises(FeedTimeout):
            learner._next(Silent(), 0.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(("mine", "others"), [(None, (-1.0, -1.0)), (640, (640.0, 640.0))])
def test_ranks_that_found_the_same_begin(tmp_path: Path, mine: int | None, others: tuple[float, ...]) -> None:
    learner = actor(tmp_path)
    learner.collective = Others(*others)  # type: ignore[assignment]
    learner._agree_on(None if mine is None else checkpoint(tmp_path, mine))


@pytest.mark.parametrize(("mine", "others"), [(None, (640.0,)), (640, (-1.0,)), (640, (640.0, 320.0))])
def test_a_rank_that_sees_other_files_than_the_others_is_told_so(
    tmp_path: Path, mine: int | None, others: tuple[float, ...]
) -> None:
    learner = actor(tmp_path)
    learner.collective = Others(*others)  # type: ignore[assignment]
    with pytest.raises(RunError, match="storage that every node sees"):
        learner._agree_on(None if mine is None else checkpoint(tmp_path, mine))


def test_a_rank_with_a_block_meets_one_that_waits_for_long_in_time_and_both_update_and_end_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.learner_actor.POLL_S", 0.02)
    meeting, feeds, got = Meeting(limit_s=5.0), (Slow(), Slow()), ([], [])  # type: ignore[var-annotated]
    learners = [actor(tmp_path), actor(tmp_path)]

    def work(rank: int) -> None:
        learners[rank].collective = meeting  # type: ignore[assignment]
        while (ready := learners[rank]._next(feeds[rank], 60.0)) is not None:  # type: ignore[arg-type]
            got[rank].append(ready)
        got[rank].append(None)

    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    block = ReadyBatch(block=None, batches=(), waited_s=0.0)  # type: ignore[arg-type]
    feeds[0].answers.put(block)
    while feeds[1].asked < 10:  # rank 1 was asked for its block again and again, and rank 0 waited in no reduction
        threads[1].join(0.01)
    assert got == ([], [])
    feeds[1].answers.put(block)
    feeds[0].answers.put(block)  # it has one more than the other
    feeds[1].answers.put(None)
    for thread in threads:
        thread.join(20)
    assert [len(each) for each in got] == [2, 2] and got[0][1] is got[1][1] is None
    assert got[1][0].waited_s > 0.1 and got[0][0].waited_s < 0.1


class Twice:
    """A feed that has no block at first, then one."""

    waited_s = 0.0

    def __init__(self, misses: int) -> None:
        self.misses = misses

    def get(self, deadline_s: float) -> ReadyBatch:
        self.misses -= 1
        if self.misses >= 0:
            raise FeedTimeout("no block came")
        return ReadyBatch(block=None, batches=(), waited_s=0.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(("algorithm", "published"), [("gac", [130]), ("softgac", [])])
def test_what_a_stage_taught_is_published_once_while_the_next_one_is_gathered(
    tmp_path: Path, algorithm: str, published: list[int]
) -> None:
    learner = actor(tmp_path, algorithm=algorithm)
    result: list[int] = []

    def publish() -> None:
        result.append(learner.learner.updates)
        learner.learner.published_updates = learner.learner.updates

    parts = {"updates": 130, "published_updates": 100, "publish": publish, "flush": lambda: None}
    learner.learner = types.SimpleNamespace(**parts)  # type: ignore[assignment]
    assert learner._next(Twice(misses=3), 60.0) is not None  # type: ignore[arg-type]
    assert result == published
    assert learner._next(Twice(misses=0), 60.0) is not None  # type: ignore[arg-type]
    assert result == published, "a block that is there is not waited for"


def test_the_driver_knows_the_updates_of_a_learner_that_is_busy_with_a_block_and_made_others_since_its_last_report(
    tmp_path: Path,
) -> None:
    learner = actor(tmp_path)
    learner.learner = types.SimpleNamespace(updates=965, version=3)  # type: ignore[assignment]
    learner.kept.append(
        types.SimpleNamespace(
            updates=965, generation=0, version=3, metrics={}, time={}, wall_s=1.0, rollbacks=0, nonfinite=0
        )
    )  # type: ignore[arg-type]
    learner.learner.updates, learner.learner.version = 1_000, 4
    aggregator = MetricsAggregator(min_size_rows=64, replay_ratio=1.0)
    group = LearnerGroup(learner.spec, aggregator, print, Nodes(), None, [], None)  # type: ignore[arg-type]
    group._starts = 1
    with learner.turn:
        group._take(learner.news())
    assert (aggregator.updates, aggregator.version, aggregator.generation) == (1_000, 4, 0)


@pytest.mark.parametrize(("busy_s", "replaced"), [(170, False), (190, True)])
def test_a_learner_that_answers_but_is_busy_with_one_block_for_too_long_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busy_s: int, replaced: bool
) -> None:
    learner, events = actor(tmp_path), []  # type: ignore[var-annotated]
    learner.learner = types.SimpleNamespace(updates=5, version=1)  # type: ignore[assignment]
    learner.moved -= busy_s
    with learner.turn:  # as while it makes a block or writes a checkpoint
        news = learner.news()
    aggregator = MetricsAggregator(min_size_rows=64, replay_ratio=1.0)
    group = LearnerGroup(learner.spec, aggregator, events.append, Nodes(), None, [], None)  # type: ignore[arg-type]
    group.pulses, group.runs = [types.SimpleNamespace(answer=lambda: news, silent_s=0.0)], [object()]  # type: ignore[list-item]
    started: list[str] = []
    monkeypatch.setattr(group, "_start", lambda: started.append("all ranks"))
    group.watch()  # ray.start_timeout_s + ray.call_timeout_s are 180 s
    assert bool(started) == bool(events) == replaced
    if replaced:
        assert "learner 0 hangs: it has been busy with one block or one checkpoint for 190 s" in events[0]
