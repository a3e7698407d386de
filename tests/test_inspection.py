"""Commands that look at a run from elsewhere: another machine than the one that trained it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from tiny_runs import train_inline

from cluster.checks import spec_of
from cluster.commands.evaluation import evaluate, newest_weights
from cluster.commands.status import status
from cluster.run_dir import RunDirectory
from learners import checkpoint


def test_a_run_that_was_trained_on_a_gpu_and_needed_more_memory_is_evaluated_here(tmp_path: Path) -> None:
    assert train_inline(tmp_path / "run", "InvertedPendulum-v5", 150) == 0
    run = RunDirectory.open(tmp_path / "run")
    expected = newest_weights(spec_of(run.config(), run))

    found = checkpoint.load_newest(run.checkpoints, {})
    assert found is not None
    gpus = torch.zeros(16, dtype=torch.uint8)  # a CUDA generator's state
    checkpoint.save(run.checkpoints, found.tensors | {"learner/agent/generator": gpus}, found.meta, keep=3)
    config = run.config()
    learner = dataclasses.replace(config.learner, device="cuda")
    replay = dataclasses.replace(config.replay, capacity_rows=10**12)
    run.write_config(dataclasses.replace(config, learner=learner, replay=replay))

    seen = newest_weights(spec_of(run.config(), run))
    assert np.array_equal(seen.flat, expected.flat) and seen.updates == expected.updates > 0
    assert evaluate(run.path, 1, 0, None)["episodes"] == 1
    assert status(run.path)["state"] == "ended"
