"""Non-finite updates: skipped, dumped, rolled back, and in the end a halt that names the first cause."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.numpy
import torch
from line_agent import LineAgent
from test_learner import ready

from algorithms.interface import Solo
from algorithms.weights import Weights
from learners.checkpoint import Checkpoint, load_newest, prefixed, save
from learners.config import LearnerConfig
from learners.feed import ReadyBatch
from learners.guard import DUMPS, Halt
from learners.learner import PART, Learner

CONFIG = LearnerConfig(batch_size=8, updates_per_call=4, publish_updates=8, nonfinite_skips=6, rollbacks=2)


def poisoned(seed: int, updates: int = 4) -> ReadyBatch:
    """A block whose first ``updates`` batches hold a NaN reward."""
    good = ready(seed)
    good.block.rows_UBD[:updates, 0, 4] = float("nan")
    return good


class Run:
    """A learner with a checkpoint directory, as a run has it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.published: list[Weights] = []
        newest: Callable[[], Checkpoint | None] = lambda: load_newest(path / "checkpoints", {})  # noqa: E731
        self.agent = LineAgent()
        self.learner = Learner(
            self.agent, CONFIG, directory=path / "dumps", publish=self.published.append, newest=newest
        )

    def save(self) -> None:
        save(self.path / "checkpoints", prefixed(PART, self.learner.state()), {}, keep=2)

    def dumps(self) -> list[Path]:
        return sorted((self.path / "dumps").glob("*.safetensors"))


def test_a_nonfinite_update_is_skipped_counted_and_its_block_dumped(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.learner.step(ready(0))
    bad = poisoned(1, updates=1)
    run.learner.step(bad)
    assert bool(run.agent.w.isfinite().all())
    report = run.learner.report()
    assert (report.nonfinite, report.metrics["nonfinite"], report.rollbacks) == (1, 1, 0)
    (dump,) = run.dumps()
    arrays = safetensors.numpy.load_file(dump)
    assert arrays["rows_UBD"].tobytes() == bad.block.rows_UBD.tobytes() and "version_UB" in arrays
    facts = json.loads(dump.with_suffix(".json").read_text())
    assert facts["nonfinite_rows"] == 1 and facts["updates"] == 8 and facts["metrics"]["loss"] == "nan"


def test_at_most_three_blocks_are_dumped(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for seed in range(6):
        run.learner.step(poisoned(seed, updates=1))
        run.learner.step(ready(seed))
    assert run.learner.report().nonfinite == 6 and len(run.dumps()) == DUMPS == 3


def test_a_dump_that_fails_does_not_end_the_training(tmp_path: Path) -> None:
    (tmp_path / "dumps").write_text("a file where the directory should be")
    run = Run(tmp_path)
    run.learner.step(poisoned(0, updates=1))
    assert run.learner.report().nonfinite == 1


def test_a_clean_block_ends_the_count_towards_a_rollback(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for seed in range(5):
        run.learner.step(poisoned(seed, updates=4))
        run.learner.step(ready(seed))
    assert run.learner.rollbacks == 0


def test_after_too_many_in_a_row_the_newest_valid_checkpoint_comes_back_and_versions_go_on(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for seed in range(3):
        run.learner.step(ready(seed))
    run.save()
    saved = run.agent.w.clone()
    run.learner.step(ready(9))
    assert not torch.equal(run.agent.w, saved)
    version = run.learner.version
    run.learner.step(poisoned(4))
    assert run.learner.rollbacks == 0
    run.learner.step(poisoned(5))
    assert run.learner.rollbacks == 1 and torch.equal(run.agent.w, saved)
    assert run.learner.updates == 24 and run.learner.version >= version
    run.learner.step(ready(6))
    orders = [w.order for w in run.published]
    assert orders == sorted(set(orders))


def test_rollbacks_without_progress_halt_with_the_first_cause(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.save()
    with pytest.raises(Halt) as caught:
        for seed in range(100):
            run.learner.step(poisoned(seed))
    assert run.learner.rollbacks == 2 and run.learner.updates == 24
    text = str(caught.value)
    assert "First cause: 4 of the updates 1 to 4" in text and "loss nan" in text and "nonfinite-0000000004" in text


def test_progress_between_rollbacks_forgives_them(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.save()
    for _ in range(5):
        run.learner.step(poisoned(0))
        run.learner.step(poisoned(1))
        for seed in range(2):
            run.learner.step(ready(seed))
        run.save()
        for seed in range(2, 6):
            run.learner.step(ready(seed))
    assert run.learner.rollbacks == 5


def test_without_any_checkpoint_a_rollback_is_a_halt(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.learner.step(poisoned(0))
    with pytest.raises(Halt, match="no checkpoint yet"):
        run.learner.step(poisoned(1))


def test_weights_that_are_not_finite_are_never_published(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.learner.step(ready(0))
    run.save()
    good = run.agent.w.clone()
    run.agent.w[1] = float("inf")
    run.learner.publish()
    assert run.learner.rollbacks == 1 and torch.equal(torch.from_numpy(run.published[-1].unpack()["w"]), good)


def test_a_state_that_is_not_finite_never_becomes_a_checkpoint(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.learner.step(ready(0))
    run.save()
    good = run.agent.w.clone()
    run.agent.w[0] = float("nan")
    run.save()
    newest = load_newest(tmp_path / "checkpoints", {})
    assert newest is not None and torch.equal(newest.part(PART)["agent/w"], good) and run.learner.rollbacks == 1


def test_one_block_late_as_on_cuda_the_guard_comes_to_the_same_decisions(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.learner._blocks_late = 1
    run.learner.step(ready(0))
    run.save()
    good = run.agent.w.clone()
    for seed in range(2):
        run.learner.step(poisoned(seed))
    assert run.learner.rollbacks == 0 and run.learner.report().nonfinite == 4
    run.learner.step(ready(1))
    assert run.learner.rollbacks == 1 and torch.equal(run.agent.w, good)
    assert len(run.dumps()) == 2


def test_one_of_several_learners_halts_on_a_poisoned_state_instead_of_rolling_back_alone(tmp_path: Path) -> None:
    class Pair(Solo):
        world_size = 2

    learner = Learner(LineAgent(), CONFIG, directory=tmp_path, publish=lambda weights: None, collective=Pair())
    assert isinstance(learner.agent, LineAgent)
    learner.agent.w[0] = float("nan")
    with pytest.raises(Halt, match="First cause: w held a NaN at update 0"):
        learner.state()
