"""Learners that share one update: R processes of B/R rows take the steps of one learner of B rows."""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from line_agent import LineAgent, small_agent
from test_learner import CONFIG, ready

from algorithms.interface import Collective, Solo
from learners.checkpoint import load_newest, prefixed, save
from learners.collective import CollectiveError, TorchCollective, share_state
from learners.feed import ReadyBatch
from learners.learner import PART, Learner
from replay.schema import RowLayout

RANKS, UPDATES = 2, 10


class MeanWithGrad(torch.autograd.Function):
    """The learners' mean, whose backward pass is the same reduction; see learners/collective.py."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, collective: Collective) -> torch.Tensor:
        ctx.collective = collective
        mean = tensor.detach().clone(memory_format=torch.contiguous_format)
        collective.mean_(mean)
        return mean

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        mean = gradients[0].clone(memory_format=torch.contiguous_format)
        ctx.collective.mean_(mean)
        return mean, None


def mean_with_grad(collective: Collective, tensor: torch.Tensor) -> torch.Tensor:
    """The mean of ``tensor`` over the learners; gradients flow to every learner's input."""
    return MeanWithGrad.apply(tensor, collective)


def normalised_net(collective: Collective, rows_BD: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor) -> torch.Tensor:
    """A loss through batch statistics that all rows share, and products of means, written for any collective."""
    hidden = rows_BD @ w1
    mean = mean_with_grad(collective, hidden.mean(0))
    square = mean_with_grad(collective, (hidden * hidden).mean(0))
    normal = (hidden - mean) / (square - mean * mean + 1e-3).sqrt()
    return ((normal.relu() @ w2).squeeze(1) - rows_BD[:, 0] * rows_BD[:, 1]).square().mean()


def train_net(collective: Collective, rows_UBD: torch.Tensor) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    w1 = torch.randn(6, 8, generator=draw).requires_grad_()
    w2 = torch.randn(8, 1, generator=draw).requires_grad_()
    for rows_BD in rows_UBD:
        gradients = torch.autograd.grad(normalised_net(collective, rows_BD, w1, w2), (w1, w2))
        flat = torch.cat([g.reshape(-1) for g in gradients])
        collective.mean_(flat)
        with torch.no_grad():
            w1 -= 0.1 * flat[: w1.numel()].view_as(w1)
            w2 -= 0.1 * flat[w1.numel() :].view_as(w2)
    return {"w1": w1.detach(), "w2": w2.detach()}


def rows(batch: int) -> torch.Tensor:
    return torch.randn(UPDATES, batch, 6, generator=torch.Generator().manual_seed(7))


def share(rows_UBD: torch.Tensor, collective: Collective) -> torch.Tensor:
    """This rank's rows of every batch."""
    return rows_UBD.chunk(collective.world_size, dim=1)[collective.rank].contiguous()


# What the ranks do in their processes, in this order; results travel as numpy arrays.


def _net(collective: TorchCollective, path: Path) -> dict[str, torch.Tensor]:
    return train_net(collective, share(rows(256), collective))


def _reductions(collective: TorchCollective, path: Path) -> dict[str, torch.Tensor]:
    strided = torch.arange(12.0).view(3, 4).t()[: 2 + 1] + collective.rank  # a view that is not contiguous
    collective.mean_(strided)
    poisoned = torch.tensor([1.0, float("nan") if collective.rank == 1 else 2.0])
    collective.mean_(poisoned)
    x = torch.tensor([1.0 + collective.rank], requires_grad=True)
    mean_with_grad(collective, x * x).backward(torch.tensor([float(collective.rank)]))
    mine = torch.full((2,), collective.rank, dtype=torch.uint8)
    collective.broadcast_(mine)
    assert x.grad is not None
    return {"strided": strided, "poisoned": poisoned, "grad": x.grad, "broadcast": mine}


def _learner(collective: TorchCollective, path: Path) -> dict[str, torch.Tensor]:
    agent = LineAgent(seed=collective.rank, collective=collective)
    agent.w += collective.rank  # ranks that begin apart
    published: list[Any] = []
    learner = Learner(agent, CONFIG, directory=path / "dumps", publish=published.append, collective=collective)
    for seed in range(4):
        whole = ready(seed)
        if seed == 2 and collective.rank == 1:
            whole.batches[1] = float("nan")  # on one rank only
        learner.step(ReadyBatch(block=whole.block, batches=share(whole.batches, collective), waited_s=0.0))
    report = learner.report()
    return {
        "w": agent.w,
        "generator": agent.generator.get_state(),
        "nonfinite": torch.tensor(report.nonfinite),
        "published": torch.tensor(len(published)),
    }


def train_agent(collective: Collective, rows_UBD: torch.Tensor) -> dict[str, torch.Tensor]:
    agent = small_agent("softgac", collective=collective)
    metrics = agent.update(rows_UBD)
    return {**agent.state(), "critic_loss": metrics["critic_loss"]}


def _agent(collective: TorchCollective, path: Path) -> dict[str, torch.Tensor]:
    return train_agent(collective, share(agent_rows(), collective))


def agent_rows() -> torch.Tensor:
    return ready(3, layout=RowLayout(obs_dim=5, action_dim=2), updates=UPDATES, batch=256).batches


def _shuffled(collective: TorchCollective, path: Path) -> dict[str, torch.Tensor]:
    """Two tensors of one size and one of another, in another order on each rank."""
    mine = {
        name: torch.full(shape, float(collective.rank + place)) for place, (name, shape) in enumerate(SHAPES.items())
    }
    return share_state(dict(reversed(mine.items())) if collective.rank else mine, collective)


def _unlike(collective: TorchCollective, path: Path) -> dict[str, torch.Tensor]:
    """States that cannot be shared: each rank's error, as bytes; the learners can still talk afterwards."""
    states = (
        {"a": torch.zeros(2), "b": torch.zeros(3)},
        {"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(1)} if collective.rank else {"a": torch.zeros(2), "b": torch.zeros(3)},
        {"a": torch.zeros(2, dtype=torch.float64) if collective.rank else torch.zeros(2)},
        {"a": torch.zeros(2, 3) if collective.rank else torch.zeros(3, 2)},
    )  # fmt: skip
    found = {}
    for number, state in enumerate(states):
        try:
            share_state(state, collective)
        except CollectiveError as error:
            found[str(number)] = torch.tensor(list(str(error).encode()), dtype=torch.uint8)
    return found


def _rolled_back(collective: TorchCollective, path: Path) -> dict[str, torch.Tensor]:
    """Learners of a real agent go back together to a checkpoint on the disk that rank 0 wrote, and learn on."""
    agent = small_agent("softgac", collective=collective, seed=collective.rank)
    config = dataclasses.replace(CONFIG, nonfinite_skips=4)
    learner = Learner(
        agent, config, directory=path / "dumps", publish=lambda weights: None, collective=collective,
        newest=lambda: load_newest(path / "checkpoints", {}),
    )  # fmt: skip
    layout = RowLayout(obs_dim=5, action_dim=2)
    for seed in range(4):
        whole = ready(seed, layout=layout)
        if seed == 2 and collective.rank == 1:
            whole.batches[:] = float("nan")
        learner.step(ReadyBatch(block=whole.block, batches=share(whole.batches, collective), waited_s=0.0))
        if seed == 0:
            kept = learner.state()
            if collective.rank == 0:
                save(path / "checkpoints", prefixed(PART, kept), {}, keep=2)
            collective.barrier()
        if seed == 2:
            back = learner.state()
            same = [name for name in kept if name.startswith("agent/") and torch.equal(kept[name], back[name])]
    named = {name: tensor for name, tensor in learner.state().items() if tensor.dim()}
    return named | {"rollbacks": torch.tensor(learner.rollbacks), "taken": torch.tensor(len(same))}


SHAPES = {"b": (4,), "a": (4,), "c": (2, 3)}
JOBS: dict[str, Callable[[TorchCollective, Path], dict[str, torch.Tensor]]] = {
    "net": _net,
    "reductions": _reductions,
    "learner": _learner,
    "agent": _agent,
    "shuffled": _shuffled,
    "unlike": _unlike,
    "rolled_back": _rolled_back,
}


def _absent(collective: TorchCollective, tried: Any) -> str:
    """Rank 1 does not come to the barrier while rank 0 waits there; gives rank 0's error."""
    if collective.rank == 1:
        tried.wait(60)
        return ""
    try:
        collective.barrier(timeout_s=1.0)
    except CollectiveError as error:
        return str(error)
    finally:
        tried.set()
    return "no error"


def _rank(rank: int, path: Path, tried: Any, results: Any) -> None:
    torch.set_num_threads(1)
    collective = TorchCollective(
        backend="gloo", rank=rank, world_size=RANKS, init_method=f"file://{path}/store", timeout_s=60.0
    )
    for name, job in JOBS.items():
        results.put((rank, name, {key: tensor.numpy() for key, tensor in job(collective, path).items()}))
        collective.barrier()
    results.put((rank, "absent", _absent(collective, tried)))
    collective.close()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What two real processes that met over gloo gave, by job and rank."""
    path = tmp_path_factory.mktemp("gloo")
    context = multiprocessing.get_context("spawn")
    results, tried = context.Queue(), context.Event()
    processes = [context.Process(target=_rank, args=(rank, path, tried, results)) for rank in range(RANKS)]
    for process in processes:
        process.start()
    got: dict[str, list[Any]] = {name: [None] * RANKS for name in (*JOBS, "absent")}
    for _ in range(RANKS * len(got)):
        rank, name, result = results.get(timeout=120)
        got[name][rank] = result
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    return got


def test_two_gloo_learners_of_128_rows_give_the_parameters_of_one_of_256(ranks: dict[str, list[Any]]) -> None:
    alone = train_net(Solo(), rows(256))
    begun = train_net(Solo(), rows(256)[:0])
    for got in ranks["net"]:
        for name, tensor in alone.items():
            np.testing.assert_allclose(got[name], tensor.numpy(), rtol=0, atol=1e-5)
            assert np.abs(got[name] - begun[name].numpy()).max() > 0.01


def test_two_softgac_learners_of_128_rows_give_the_parameters_of_one_of_256(ranks: dict[str, list[Any]]) -> None:
    alone = train_agent(Solo(), agent_rows())
    begun = small_agent("softgac").state()
    moved = 0
    for name, tensor in alone.items():
        for got in ranks["agent"]:
            np.testing.assert_allclose(got[name], tensor.detach().numpy(), rtol=1e-5, atol=3e-5, err_msg=name)
        moved += name in begun and not torch.equal(tensor, begun[name])
    assert moved > 20


def test_reductions_give_means_gradients_and_nan_to_every_rank(ranks: dict[str, list[Any]]) -> None:
    one, other = ranks["reductions"]
    assert np.array_equal(one["strided"], (torch.arange(12.0).view(3, 4).t()[:3] + 0.5).numpy())
    for got in (one, other):
        assert got["poisoned"][0] == 1.0 and np.isnan(got["poisoned"][1])
        assert got["broadcast"].tolist() == [0, 0]
    assert (one["grad"].item(), other["grad"].item()) == (2 * 1 * 0.5, 2 * 2 * 0.5)  # mean of the ranks' 0 and 1


def test_learners_begin_equal_stay_equal_skip_alike_and_only_rank_0_publishes(ranks: dict[str, list[Any]]) -> None:
    one, other = ranks["learner"]
    assert np.array_equal(one["w"], other["w"]) and np.isfinite(one["w"]).all()
    assert one["nonfinite"] == other["nonfinite"] == 1
    assert (one["published"], other["published"]) == (2, 0)
    assert np.array_equal(one["generator"], other["generator"])  # each draws its share of one noise


def test_a_state_whose_order_differs_from_process_to_process_is_shared_by_name(ranks: dict[str, list[Any]]) -> None:
    for got in ranks["shuffled"]:
        for place, (name, shape) in enumerate(SHAPES.items()):
            assert np.array_equal(got[name], np.full(shape, float(place))), name


def test_states_that_differ_are_an_error_on_every_learner_and_nothing_is_exchanged(ranks: dict[str, list[Any]]) -> None:
    for rank, got in enumerate(ranks["unlike"]):
        assert sorted(got) == ["1", "2", "3"], "the first is the same on both"
        for number in got:
            text = got[number].tobytes().decode()
            assert f"learner {rank} of 2 has" in text and "expected the same names, shapes and dtypes" in text
            assert "nothing was exchanged" in text and "same version of drawbridge" in text
    text = {number: error.tobytes().decode() for number, error in ranks["unlike"][1].items()}
    assert "c (1,) torch.float32" in text["1"] and "a (2,) torch.float64" in text["2"] and "a (2, 3)" in text["3"]


def test_two_learners_roll_back_to_one_checkpoint_and_stay_equal(ranks: dict[str, list[Any]]) -> None:
    one, other = ranks["rolled_back"]
    assert one["rollbacks"] == other["rollbacks"] == 1
    assert one["taken"] == other["taken"] > 20, "every tensor of the agent is the checkpoint's again"
    for name in one:
        assert np.array_equal(one[name], other[name]), name


def test_a_barrier_that_a_learner_never_reaches_ends_with_its_name(ranks: dict[str, list[Any]]) -> None:
    text = ranks["absent"][0]
    assert "learner 0 of 2 (gloo" in text and "a barrier failed" in text and "Ranks 1 failed" in text, text


def test_learners_that_do_not_meet_are_an_error_with_a_deadline(tmp_path: Path) -> None:
    with pytest.raises(CollectiveError, match=r"learner 0 of 2 .*meeting the others failed within its 0\.5 s"):
        TorchCollective(backend="gloo", rank=0, world_size=2, init_method=f"file://{tmp_path}/store", timeout_s=0.5)
