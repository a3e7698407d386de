"""The learner's actor as a plain object: what it waits for, and that all ranks begin alike."""

from __future__ import annotations

import math
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.config import make_preset
from cluster.errors import RunError
from cluster.graph import Plan
from cluster.learner_actor import LearnerActor
from learners.checkpoint import Checkpoint
from learners.feed import FeedTimeout
from replay.chunk import Wait


class Shard:
    """Answers from a list; the last one for ever."""

    def __init__(self, *reasons: str) -> None:
        self.reasons = list(reasons)
        self.sample = types.SimpleNamespace(remote=self._sample)

    def _sample(self, *arguments: Any) -> Wait:
        return Wait(reason=self.reasons.pop(0) if len(self.reasons) > 1 else self.reasons[0], retry_after_s=0.0)


class Silent:
    """A feed that has no block."""

    def get(self) -> None:
        raise FeedTimeout("no block came")


class Others:
    """A collective of this rank and others, of which each found a checkpoint of so many updates."""

    def __init__(self, *found: float) -> None:
        self.found = found

    def mean_(self, tensor: torch.Tensor) -> None:
        tensor.copy_((tensor + sum(self.found)) / (1 + len(self.found)))


def actor(path: Path, *shards: Shard) -> LearnerActor:
    plan = Plan(config=make_preset("softgac", "cpu"), obs_dim=3, action_dim=1, run_dir=path)
    made = LearnerActor(plan, 1, 0, list(shards), None)
    made.learner = types.SimpleNamespace(epoch=0, version=0, device=torch.device("cpu"))  # type: ignore[assignment]
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
            learner._next(Silent(), 60.0)  # type: ignore[arg-type]


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
