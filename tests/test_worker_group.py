"""Rollout workers as the driver sees them, without Ray: who is blamed for silence."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cluster.config import make_preset, override
from cluster.errors import RunError
from cluster.graph import RunSpec
from cluster.metrics.aggregator import MetricsAggregator
from cluster.nodes import Nodes
from cluster.worker_group import Member, WorkerGroup


@pytest.mark.parametrize("full", [False, True])
def test_a_worker_that_hangs_ends_a_run_without_restarts_unless_its_shard_has_all_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    config = override(make_preset("softgac", "cpu"), {"worker.restart_budget": "0", "worker.step_timeout_s": "5"})
    spec = RunSpec(config=config, obs_dim=3, action_dim=1, run_dir=tmp_path)
    events: list[str] = []
    aggregator = MetricsAggregator(min_size_rows=64, replay_ratio=1.0)
    group = WorkerGroup(spec, aggregator, events.append, Nodes(), [None, None], None, 0.0)
    monkeypatch.setattr(group, "_end", lambda members, reason: None)
    now = time.monotonic()
    for index, silent_s in enumerate((0.0, 60.0)):  # worker 1, of shard 1, hangs
        group._members[index] = Member(
            actor=None, run=index, incarnation=0, up=None, asked=now - 100, began=now - 90, rows=1.0
        )
        group._last_report[index] = now - silent_s
    group.note({1} if full else set(), set())
    if full:
        group.watch()
        assert not events and [member.finished for member in group._members.values()] == [False, False]
        group._members[0].finished = True
        assert group.finished, "the run waits for the worker that hangs"
    else:
        with pytest.raises(RunError, match=r"worker 1 of .* was silent for 60 s"):
            group.watch()
