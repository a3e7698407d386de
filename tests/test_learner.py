"""The learner: blocks in, guarded updates, versioned weights out, exact resume."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from line_agent import LAYOUT, LineAgent
from torch.utils._python_dispatch import TorchDispatchMode

from algorithms.weights import Weights
from learners.checkpoint import load_newest, prefixed, save
from learners.config import LearnerConfig
from learners.feed import ReadyBatch
from learners.graph import CapturedCycle
from learners.learner import PART, Learner
from replay.messages import Block, EpisodeBlock
from replay.schema import ReturnSummary, RowLayout

CONFIG = LearnerConfig(batch_size=8, updates_per_call=4, publish_updates=8)


def ready(seed: int, layout: RowLayout = LAYOUT, updates: int = 4, batch: int = 8, shard: int = 0) -> ReadyBatch:
    """A block of U batches drawn from a seeded source, as a shard would send it."""
    rng = np.random.default_rng(seed)
    rows_UBD = rng.standard_normal((updates, batch, layout.width)).astype(np.float32)
    columns = layout.views(rows_UBD)
    np.tanh(columns.action, out=columns.action)
    columns.discount[...] = 1.0
    ids = np.zeros((updates, batch), np.int64)
    block = Block(
        rows_UBD=rows_UBD,
        slot_UB=ids,
        writes_UB=ids,
        version_UB=ids,
        shard=shard,
        inserted=100 * (seed + 1),
        size=100,
    )
    return ReadyBatch(block=block, batches=torch.from_numpy(rows_UBD), waited_s=0.0)


def make(tmp_path: Path, **kwargs: Any) -> tuple[Learner, list[Weights]]:
    published: list[Weights] = []
    learner = Learner(LineAgent(), CONFIG, directory=tmp_path / "dumps", publish=published.append, **kwargs)
    return learner, published


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], but: tuple[str, ...] = ()) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one if k not in but)


def test_a_learner_makes_the_updates_that_a_bare_loop_makes(tmp_path: Path) -> None:
    learner, _ = make(tmp_path)
    bare = LineAgent()
    for seed in range(5):
        learner.step(ready(seed))
        bare.update(ready(seed).batches)
    assert learner.updates == 20 and same(learner.agent.state(), bare.state())


def test_weights_are_published_every_publish_updates_and_say_what_they_are(tmp_path: Path) -> None:
    learner, published = make(tmp_path, generation=3)
    learner.publish()
    for seed in range(4):
        learner.step(ready(seed, shard=seed % 2))
    assert [w.order for w in published] == [(3, 1), (3, 2), (3, 3)]
    assert [w.updates for w in published] == [0, 8, 16]
    assert [w.env_steps for w in published] == [0, 100 + 200, 300 + 400]
    assert isinstance(learner.agent, LineAgent)
    assert np.array_equal(published[-1].unpack()["w"], learner.agent.w.numpy())
    assert not published[0].unpack()["w"].any()  # a copy of the moment, not a view of the parameters


def test_the_report_has_means_over_its_blocks_and_shares_of_wall_time_that_add_up(tmp_path: Path) -> None:
    learner, _ = make(tmp_path)
    bare = LineAgent()
    losses = []
    for seed in range(3):
        learner.step(ready(seed))
        losses.append(bare.update(ready(seed).batches)["loss"].item())
    report = learner.report()
    assert report.metrics["loss"] == pytest.approx(np.mean(losses), rel=1e-6) and report.metrics["nonfinite"] == 0
    assert report.updates == 12 and report.updates_per_s > 0
    assert set(report.time) == {"data_wait", "update", "publish", "other"}
    assert sum(report.time.values()) == pytest.approx(1.0)
    assert learner.report().metrics == {}


def test_n_then_resume_then_n_updates_equal_two_n_bit_for_bit(tmp_path: Path) -> None:
    whole, _ = make(tmp_path)
    for seed in range(7):
        whole.step(ready(seed))
    half, _ = make(tmp_path)
    for seed in range(3):
        half.step(ready(seed))
    save(tmp_path / "checkpoints", prefixed(PART, half.state()), {}, keep=1)
    loaded = load_newest(tmp_path / "checkpoints", {})
    assert loaded is not None
    resumed, published = make(tmp_path)
    resumed.load_state(loaded.part(PART))
    for seed in range(3, 7):
        resumed.step(ready(seed))
    assert same(resumed.state(), whole.state(), but=("generation",))
    assert (resumed.generation, whole.generation) == (1, 0) and resumed.env_steps == whole.env_steps
    assert [w.order for w in published] == [(1, 2), (1, 3)]  # versions go on, in a newer generation


def test_state_is_a_copy_that_later_updates_leave_alone(tmp_path: Path) -> None:
    learner, _ = make(tmp_path)
    learner.step(ready(0))
    state = learner.state()
    before = {name: tensor.clone() for name, tensor in state.items()}
    learner.step(ready(1))
    assert same(state, before)


class HearingAgent(LineAgent):
    """Learns nothing from episodes and keeps what it was told of their returns."""

    received: ReturnSummary

    def update_returns(self, returns: ReturnSummary) -> None:
        self.received = returns

    def update(self, batches: Any) -> dict[str, torch.Tensor]:
        return self.read_metrics()

    def posteriors(self) -> list[torch.Tensor]:
        return []


def episodes_of(shard: int, best: float) -> ReadyBatch:
    returns = ReturnSummary(
        quantile=best, best=best, stage=1, stage_mean=best, stage_target=math.nan, stage_episodes=1, episodes=1
    )
    ids = np.zeros((1, 1), np.int64)
    block = EpisodeBlock(
        batches=(), slot_UB=ids, writes_UB=ids, version_UB=ids, shard=shard, inserted=9, returns=returns
    )
    return ReadyBatch(block=block, batches=(), waited_s=0.0)


def test_an_agent_hears_of_all_shards_together_and_so_it_does_after_a_resume(tmp_path: Path) -> None:
    def hearing() -> tuple[Learner, HearingAgent]:
        agent = HearingAgent()
        return Learner(agent, CONFIG, directory=tmp_path / "dumps", publish=lambda weights: None, shards=2), agent

    learner, agent = hearing()
    for shard, best, stage in ((1, 8.0, 0), (0, 2.0, 1), (1, 4.0, 1)):
        learner.step(episodes_of(shard, best))
        assert agent.received.stage == stage  # that every shard has gathered
    assert (agent.received.best, agent.received.stage_mean, agent.received.episodes) == (4.0, 3.0, 2)
    resumed, again = hearing()
    resumed.load_state(learner.state())
    resumed.step(episodes_of(0, 2.0))
    assert repr(again.received) == repr(agent.received)


def test_a_state_without_its_counters_is_refused_naming_them(tmp_path: Path) -> None:
    learner, _ = make(tmp_path)
    state = learner.state()
    del state["version"]
    with pytest.raises(ValueError, match="without version"):
        learner.load_state(state)


class HostReads(TorchDispatchMode):
    """Counts the operations by which a host would wait for the device."""

    names = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(name in str(func) for name in self.names):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_no_update_reads_anything_back_on_the_host(tmp_path: Path) -> None:
    learner, _ = make(tmp_path)
    with HostReads() as reads:
        learner.step(ready(0, updates=4))
    assert reads.seen == []
    with HostReads() as reads:
        assert torch.ones(2).sum().item() == 2
    assert reads.seen != []  # the mode does see what it looks for


def test_one_block_late_as_on_cuda_the_same_weights_are_published(tmp_path: Path) -> None:
    result: list[list[Weights]] = [[], []]
    for late, published in enumerate(result):
        config = LearnerConfig(batch_size=8, updates_per_call=4, publish_updates=4)
        learner = Learner(LineAgent(), config, directory=tmp_path, publish=published.append)
        learner._blocks_late = late
        for seed in range(3):
            learner.step(ready(seed))
        assert len(published) == 3 - late and learner.published_updates == learner.updates
        learner.flush()
        learner.flush()  # there is nothing left
    now, later = result
    assert [(w.version, w.updates, w.env_steps) for w in later] == [(w.version, w.updates, w.env_steps) for w in now]
    assert [w.digest for w in later] == [w.digest for w in now] and len({w.digest for w in now}) == 3


def test_a_graph_replays_whole_cycles_and_leaves_the_rest_to_the_agent() -> None:
    """The cycle's own function stands for the graph: what is replayed, and when, is the same."""
    replayed, agents = [], [LineAgent(), LineAgent()]
    rows = torch.randn(3 + 5 + 4, 8, LAYOUT.width, generator=torch.Generator().manual_seed(0))

    def capture(agent: Any, rows_CBD: torch.Tensor) -> Callable[[], None]:
        agent.step_cycle(rows_CBD)  # what a warm-up leaves behind does not count
        return lambda: replayed.append(agent.step_cycle(rows_CBD))

    for agent in agents:
        agent.update(rows[:3])  # in the middle of a cycle, as a resumed run may be
    graph = CapturedCycle(agents[0], batch=8, width=LAYOUT.width, capture=capture)
    for block in (rows[3:8], rows[8:]):
        seen, expected = graph.update(block), agents[1].update(block)
        assert torch.equal(seen["loss"], expected["loss"])
    assert torch.equal(agents[0].w, agents[1].w) and agents[0].updates == 12
    assert len(replayed) == 4


def test_a_graph_needs_cuda() -> None:
    with pytest.raises(ValueError, match="cuda_graph=false"):
        CapturedCycle(LineAgent(), batch=8, width=LAYOUT.width)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_captured_updates_equal_the_eager_ones(tmp_path: Path) -> None:
    learners = []
    for graph in (True, False):
        config = LearnerConfig(batch_size=8, updates_per_call=4, cuda_graph=graph)
        learner = Learner(LineAgent(device="cuda"), config, directory=tmp_path, publish=lambda weights: None)
        for seed in range(5):
            host = ready(seed)
            learner.step(ReadyBatch(block=host.block, batches=host.batches.cuda(), waited_s=0.0))
        learners.append(learner)
    captured, eager = (learner.agent.state() for learner in learners)
    assert torch.allclose(captured["w"], eager["w"], rtol=1e-5) and captured["updates"] == eager["updates"]
    assert learners[0].report().metrics["loss"] == pytest.approx(learners[1].report().metrics["loss"], rel=1e-4)


def test_problems_name_the_field_the_value_and_the_fix() -> None:
    assert LearnerConfig().validate() == []
    found = LearnerConfig(batch_size=255, learners=2, publish_updates=0, device="tpu").validate()
    assert len(found) == 3
    assert any("batch_size 255" in p and "256 or 254" in p for p in found)
    assert any(p.startswith("publish_updates is 0, expected at least 1") for p in found)
    assert any("device is 'tpu', expected one of cpu, cuda, auto" in p for p in found)
