"""The learner with the real agents, small: exact resume through a checkpoint, no look at the device, the CUDA graph."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from line_agent import small_agent
from test_learner import HostReads, ready, same

from algorithms import ALGORITHMS
from learners.checkpoint import load_newest, prefixed, save
from learners.config import LearnerConfig
from learners.feed import ReadyBatch
from learners.learner import PART, Learner
from replay.schema import RowLayout

LAYOUT = RowLayout(obs_dim=5, action_dim=2)
CONFIG = LearnerConfig(batch_size=16, updates_per_call=4, publish_updates=8)
AGENTS = pytest.mark.parametrize("name", [n for n, a in ALGORITHMS.items() if a.items == "transitions"])


def block(seed: int, updates: int = 4) -> ReadyBatch:
    return ready(seed, layout=LAYOUT, updates=updates, batch=16)


def make(name: str, path: Path) -> Learner:
    return Learner(small_agent(name), CONFIG, directory=path / "dumps", publish=lambda weights: None)


@AGENTS
@pytest.mark.parametrize("updates", [4, 3])
def test_n_then_resume_then_n_updates_equal_two_n_bit_for_bit(tmp_path: Path, name: str, updates: int) -> None:
    whole, half, resumed = (make(name, tmp_path) for _ in range(3))
    for seed in range(6):
        whole.step(block(seed, updates))
    for seed in range(3):
        half.step(block(seed, updates))
    save(tmp_path / "checkpoints", prefixed(PART, half.state()), {"algorithm": name}, keep=1)
    loaded = load_newest(tmp_path / "checkpoints", {"algorithm": name})
    assert loaded is not None
    resumed.load_state(loaded.part(PART))
    for seed in range(3, 6):
        resumed.step(block(seed, updates))
    assert same(resumed.state(), whole.state(), but=("generation",))
    assert whole.report().metrics.keys() >= {"critic_loss", "actor_loss", "alpha", "nonfinite"}


@AGENTS
def test_no_update_reads_anything_back_on_the_host(tmp_path: Path, name: str) -> None:
    learner = make(name, tmp_path)
    learner.step(block(0))
    learner.publish()
    with HostReads() as reads:
        learner.step(block(1))
    assert reads.seen == []


@AGENTS
def test_a_nan_in_a_batch_leaves_the_agent_finite_and_is_counted(tmp_path: Path, name: str) -> None:
    learner = make(name, tmp_path)
    bad = block(0)
    bad.block.rows_UBD[2, 5, 0] = float("nan")
    learner.step(bad)
    assert learner.report().nonfinite == 1 and len(list((tmp_path / "dumps").glob("*.json"))) == 1
    assert all(bool(tensor.isfinite().all()) for tensor in learner.state().values())


@AGENTS
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_captured_updates_equal_eager_ones_and_a_rollback_reaches_the_graph(tmp_path: Path, name: str) -> None:
    states = []
    for graph in (True, False):
        config = dataclasses.replace(CONFIG, cuda_graph=graph)
        agent = small_agent(name, device="cuda")
        learner = Learner(agent, config, directory=tmp_path, publish=lambda weights: None)
        start = learner.state()
        for again in range(2):
            if again:
                learner.load_state(start)
            for seed in range(5):
                host = block(seed)
                learner.step(ReadyBatch(block=host.block, batches=host.batches.cuda(), waited_s=0.0))
            states.append(learner.state())
            assert learner.report().metrics.keys() >= {"critic_loss", "actor_loss", "alpha", "nonfinite"}
    for state in states[1:]:
        for key in states[0]:
            if key != "generation":
                torch.testing.assert_close(state[key], states[0][key], rtol=1e-4, atol=1e-5, msg=lambda m, k=key: k + m)
