"""What only a CUDA device can prove: each check is a function that returns what it saw, or raises Failed.

Letters: U updates, B batch, D packed row width. On the CPU the same checks run without a graph (see tests/test_gpu_check.py): the cycle
is then called instead of replayed, and reads of the host are refused where CUDA would wait for its device.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from algorithms import ALGORITHMS
from algorithms.actor_critic import UpdateNoise
from algorithms.interface import AgentSpec, Collective, Solo
from algorithms.weights import Weights
from learners.collective import TorchCollective
from learners.config import LearnerConfig
from learners.feed import Feed, ReadyBatch
from learners.graph import CapturedCycle
from learners.learner import Learner
from replay.messages import Block
from replay.schema import RowLayout

LAYOUT = RowLayout(obs_dim=17, action_dim=6)  # HalfCheetah's
BATCH = 256
METHODS = tuple(name for name, algorithm in ALGORITHMS.items() if algorithm.items == "transitions")
PRESETS = ("cpu", "paper")  # batch renormalisation, input norm and support differ
WARMUP = 2  # updates, so that the clips of batch renormalisation open within a check
CLOSE = 1e-3  # largest difference of a parameter, as a share of its tensor's largest entry


class Failed(AssertionError):
    """A check saw what it must not see."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is computed."""

    critic_width: int = 256
    actor_width: int = 64
    timed: dict[str, int] = dataclasses.field(default_factory=dict)  # fields whose updates are timed; else the paper's
    timed_updates: int = 400
    replays: int = 10_000
    blocks: int = 64  # that a feed copies beside a capture


class Bench:
    """Agents on one device, and rows to update them with."""

    def __init__(self, device: str, sizes: Sizes | None = None) -> None:
        self.device, self.sizes = torch.device(device), sizes or Sizes()
        self.cuda = self.device.type == "cuda"

    def agent(
        self,
        device: torch.device | str | None = None,
        collective: Collective | None = None,
        *,
        method: str = "softgac",
        preset: str = "cpu",
        **fields: Any,
    ) -> Any:
        """A preset of a method with narrow networks."""
        made, sizes = ALGORITHMS[method].presets[preset](), self.sizes
        actors = dict.fromkeys(("bridge_width", "actor_width", "behaviour_width"), sizes.actor_width)
        narrow = {"critic_width": sizes.critic_width, "train_samples": 4, "renorm_warmup": WARMUP} | actors
        own = {name: number for name, number in narrow.items() if hasattr(made, name)}
        config = dataclasses.replace(made, **(own | fields))
        spec = AgentSpec(
            obs_dim=LAYOUT.obs_dim,
            action_dim=LAYOUT.action_dim,
            device=device or self.device,
            seed=1,
            collective=collective or Solo(),
        )
        return ALGORITHMS[method].make_agent(config, spec)

    def forms(self) -> Iterator[tuple[str, Callable[..., Any]]]:
        """Every preset of every method: its name, and what makes its agent."""
        for method in METHODS:
            for preset in PRESETS:
                yield f"{method} {preset}", functools.partial(self.agent, method=method, preset=preset)

    def rows(self, updates: int, seed: int = 0) -> torch.Tensor:
        """Rows (U, B, D) on the device: rewards follow from the states, every tenth step ends an episode."""
        draw = torch.Generator().manual_seed(seed)
        rows = torch.randn(updates, BATCH, LAYOUT.width, generator=draw)
        columns = LAYOUT.views(rows)
        columns.reward.copy_(columns.obs[..., 0] - columns.action.square().sum(-1))
        columns.discount.copy_((torch.rand(columns.discount.shape, generator=draw) > 0.1).float())
        return rows.to(self.device)

    def ready(self, updates: int) -> ReadyBatch:
        """The same as a learner takes them."""
        rows_UBD, ids = self.rows(updates), np.zeros((updates, BATCH), np.int64)
        places = {"slot_UB": ids, "writes_UB": ids, "version_UB": ids}
        block = Block(rows_UBD=rows_UBD.cpu().numpy(), **places, shard=0, inserted=0, size=0)
        return ReadyBatch(block=block, batches=rows_UBD, waited_s=0.0)

    def cycles(self, agent: Any) -> CapturedCycle:
        """The agent's cycle as a graph; on the CPU as a call."""
        return CapturedCycle(agent, batch=BATCH, width=LAYOUT.width, capture=None if self.cuda else _called)

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)


def _called(agent: Any, rows_CBD: torch.Tensor) -> Callable[[], None]:
    return lambda: agent.step_cycle(rows_CBD)


def furthest(one: Any, other: Any) -> tuple[float, str]:
    """The largest difference of two agents' tensors, as a share of each tensor's largest entry, and its name."""
    found = (0.0, "nothing")
    for name, tensor in one.tensors().items():
        mine, its = tensor.detach().cpu().double(), other.tensors()[name].detach().cpu().double()
        found = max(found, (float((mine - its).abs().max() / its.abs().max().clamp_min(1e-3)), name))
    return found


def _require(good: bool, seen: str) -> str:
    if not good:
        raise Failed(seen)
    return seen


def same_as_cpu(bench: Bench) -> str:
    """Agents on the device and on the CPU, with the same state, rows and noise."""
    apart, rows = (0.0, "nothing"), bench.rows(4)
    for name, make in bench.forms():
        here, there = make(), make("cpu")
        there.load_state(here.state())  # takes the state of another kind of device, too
        for index, rows_BD in enumerate(rows):
            drawn = UpdateNoise(here.draw_noise(BATCH), here.draw_loss_noise(BATCH))
            here.update_with(rows_BD, drawn, with_actor=index % 2 == 1)
            there.update_with(rows_BD.cpu(), UpdateNoise(*(t.cpu() for t in drawn)), with_actor=index % 2 == 1)
        # Adam's first steps are lr x sign: an entry whose gradient is rounding alone may step either way.
        moved = [
            float(((tensor.cpu() - there.tensors()[part]).abs() > CLOSE).float().mean())
            for part, tensor in here.tensors().items()
            if "adam" not in part and tensor.numel() > 1
        ]
        apart = max(apart, (max(moved), name))
    return _require(
        apart[0] < 0.02,
        f"4 updates: at most {apart[0]:.2%} of a tensor's entries differ by more than {CLOSE:g} ({apart[1]})",
    )


def captured_as_eager(bench: Bench) -> str:
    """Updates of the graph and of the agent itself, from one state, after an odd number of updates."""
    apart, same, rows = (0.0, "nothing"), True, bench.rows(12)
    for form, make in bench.forms():
        eager, graph = make(), make()
        for agent in (eager, graph):
            agent.update(rows[:3])
        cycles = bench.cycles(graph)
        cycles.update(rows[3:8])
        cycles.update(rows[8:])
        eager.update(rows[3:8])
        eager.update(rows[8:])
        difference, name = furthest(eager, graph)
        apart = max(apart, (difference, f"{form}: {name}"))
        same = same and difference < CLOSE and graph.updates == eager.updates == 12
    return _require(same, f"12 updates resumed after 3: at most {apart[0]:.1e} apart ({apart[1]})")


def noise(bench: Bench) -> str:
    """Replays draw anew, and the same again from a loaded state."""
    agent, rows = bench.agent(), bench.rows(2)
    cycles, state = bench.cycles(agent), agent.state()
    metrics = []
    for _ in range(2):
        agent.load_state(state)
        metrics.append(float(cycles.update(rows)["critic_loss"]))
    advanced = agent.generator.get_state()
    agent.load_state(state)
    agent.generator.set_state(advanced)
    metrics.append(float(cycles.update(rows)["critic_loss"]))
    first, again, later = metrics
    return _require(
        first == again != later, f"loss {first:.6f}, {again:.6f} from the same state, {later:.6f} from later noise"
    )


def beside_a_feed(bench: Bench) -> str:
    """A graph is captured while the feed's thread pins and copies blocks; every block arrives whole."""
    blocks = [np.full((2, BATCH, LAYOUT.width), index, np.float32) for index in range(bench.sizes.blocks)]

    def answers() -> Iterator[Block]:
        for rows_UBD in blocks:
            slots = np.zeros((2, BATCH), np.int64)
            yield Block(
                rows_UBD=rows_UBD, slot_UB=slots, writes_UB=slots, version_UB=slots, shard=0, inserted=0, size=0
            )

    supply = answers()
    feed = Feed(lambda: next(supply, None), depth=4, device=bench.device, deadline_s=60.0)
    try:
        cycles = bench.cycles(bench.agent())
        whole = 0
        while (ready := feed.get()) is not None:
            cycles.update(bench.rows(2))
            whole += int((ready.batches == float(whole)).all())
    finally:
        feed.stop()
    return _require(whole == len(blocks), f"{whole} of {len(blocks)} blocks arrived whole")


class HostReads(TorchDispatchMode):
    """Raises RuntimeError at an operation for whose result a host would wait."""

    names = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in self.names:
            raise RuntimeError(f"{func} reads from the device")
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def no_wait(bench: Bench, who: str) -> Iterator[None]:
    """Fails whatever waits for the device."""
    try:
        if bench.cuda:
            torch.cuda.set_sync_debug_mode("error")
        with contextlib.nullcontext() if bench.cuda else HostReads():
            yield
    except RuntimeError as error:
        raise Failed(f"{who}: the host waited for the device: {error}") from error
    finally:
        if bench.cuda:
            torch.cuda.set_sync_debug_mode("default")


def never_waits(bench: Bench) -> str:
    """Updates, eager and replayed, while CUDA refuses whatever waits for the device."""
    forms, rows = dict(bench.forms()), bench.rows(4)
    for form, make in forms.items():
        agent = make()
        cycles = bench.cycles(agent)
        with no_wait(bench, form):
            agent.update(rows)
            cycles.update(rows)
    return f"8 updates of each of {len(forms)} presets, no wait"


def learner_never_waits(bench: Bench) -> str:
    """Steps of a learner of every method that publishes after each, while CUDA refuses whatever waits for the device."""
    config, seen = LearnerConfig(batch_size=BATCH, updates_per_call=4, publish_updates=4), []
    for method in METHODS:
        ready, published = bench.ready(4), list[Weights]()
        with tempfile.TemporaryDirectory() as folder:
            learner = Learner(bench.agent(method=method), config, directory=Path(folder), publish=published.append)
            learner.step(ready)  # captures
            with no_wait(bench, method):
                for _ in range(3):
                    learner.step(ready)
        seen.append(len(published))
    late = 1 if bench.cuda else 0
    return _require(set(seen) == {4 - late}, f"3 steps of each of {len(METHODS)} methods, no wait; {seen} publications")


def nan_row(bench: Bench) -> str:
    """A NaN in a row of one update, inside the graph: that update is skipped and counted, the next ones go on."""
    agent, rows = bench.agent(), bench.rows(4)
    cycles = bench.cycles(agent)
    LAYOUT.views(rows[0]).reward[5] = torch.nan
    skipped = float(cycles.update(rows)["nonfinite"])
    broken = [name for name, tensor in agent.tensors().items() if tensor.isnan().any()]
    return _require(skipped == 1.0 and not broken, f"{skipped:g} of 4 updates skipped, NaN in {broken or 'no tensor'}")


def memory(bench: Bench) -> str:
    """Memory on the device before and after many replays."""
    agent, rows = bench.agent(), bench.rows(2)
    cycles = bench.cycles(agent)
    used = []
    for replays in (10, bench.sizes.replays):
        for _ in range(replays):
            cycles.update(rows)
        bench.wait()
        used.append(torch.cuda.memory_reserved(bench.device) if bench.cuda else 0)
    return _require(used[0] == used[1], f"{used[0]:,} bytes, after {bench.sizes.replays:,} replays {used[1]:,}")


def speed(bench: Bench, precision: str) -> str:
    """Microseconds an update of SoftGAC's preset paper, and the critics' loss at four points of the way."""
    paper = ALGORITHMS["softgac"].presets["paper"]()
    wide = {name: getattr(paper, name) for name in ("critic_width", "bridge_width")} | bench.sizes.timed
    agent = bench.agent(preset="paper", precision=precision, **wide)
    cycles, rows, losses = bench.cycles(agent), bench.rows(16), []
    cycles.update(rows)
    bench.wait()
    quarter = max(1, bench.sizes.timed_updates // 4 // len(rows))
    took = 0.0
    for _ in range(4):
        began = time.monotonic()
        for _ in range(quarter):
            metrics = cycles.update(rows)
        bench.wait()
        took += time.monotonic() - began
        losses.append(float(metrics["critic_loss"]))
    curve = ", ".join(f"{loss:.3f}" for loss in losses)
    return _require(
        bool(np.isfinite(losses).all()), f"{took / (4 * quarter * len(rows)) * 1e6:,.0f} us an update; loss {curve}"
    )


def two_learners(bench: Bench) -> str:
    """Two learners of half a batch each, on a device each, against one of the whole batch; no update waits for the device."""
    if bench.cuda and torch.cuda.device_count() < 2:
        return "one device here: not checked"
    alone, rows = bench.agent(), bench.rows(4)
    alone.update(rows)
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_rank, (folder, bench.cuda, bench.sizes, rows.cpu()), nprocs=2)  # type: ignore[attr-defined]
        first, second = (load_file(Path(folder) / f"{rank}.safetensors") for rank in (0, 1))
    if unequal := [name for name, tensor in first.items() if not torch.equal(tensor, second[name])]:
        raise Failed(f"the two learners differ in {', '.join(unequal[:3])}")
    one = alone.critic.statistics["norm0.var"].cpu()
    apart = float((first["critic.norm0.var"] - one).abs().max())
    return _require(apart < CLOSE, f"4 updates: equal to each other, statistics {apart:.1e} from those of one learner")


def _rank(rank: int, folder: str, cuda: bool, sizes: Sizes, rows: torch.Tensor) -> None:
    """One of the two learners; leaves its state in ``folder``."""
    torch.set_num_threads(1)
    device = f"cuda:{rank}" if cuda else "cpu"
    if cuda:
        torch.cuda.set_device(rank)
    collective = TorchCollective(
        backend="nccl" if cuda else "gloo",
        rank=rank,
        world_size=2,
        init_method=f"file://{folder}/meeting",
        device=device,
    )
    bench, half = Bench(device, sizes), BATCH // 2
    agent = bench.agent(collective=collective)
    cycles = CapturedCycle(agent, batch=half, width=LAYOUT.width, capture=None if cuda else _called)
    mine = rows[:, rank * half : (rank + 1) * half].contiguous().to(device)
    with no_wait(bench, f"learner {rank} of 2") if cuda else contextlib.nullcontext():  # gloo's reductions do read
        cycles.update(mine)
    state = {name: tensor.detach().cpu().clone() for name, tensor in agent.tensors().items()}
    save_file(state, Path(folder) / f"{rank}.safetensors")
    collective.close()


CHECKS: dict[str, Callable[[Bench], str]] = {
    "agent on the CPU and on the device": same_as_cpu,
    "captured against eager, odd resume": captured_as_eager,
    "noise of replays and of a loaded state": noise,
    "capture beside a pinning feed": beside_a_feed,
    "no wait for the device": never_waits,
    "no wait in a learner that publishes": learner_never_waits,
    "a NaN row inside the graph": nan_row,
    "two learners on two devices": two_learners,
    "memory over many replays": memory,
    "speed in float32": lambda bench: speed(bench, "float32"),
    "speed in tf32": lambda bench: speed(bench, "tf32"),
    "speed in bf16": lambda bench: speed(bench, "bf16"),
}
