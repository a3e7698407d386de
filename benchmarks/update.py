"""Gradient steps per CPU-second of one core: ``python benchmarks/update.py [--preset cpu|paper]``.

Actor-critics: every update trains both critics on 256 rows; actor and temperature follow every second one. What learns from
whole episodes: every update is of 64 episodes of 300 steps; with ``--posterior fresh`` or ``stored`` GAC's counts its inner steps
beside it. "roofline" is the share of an update's time that its matrix products alone take: the same products as torch makes them,
of the same shapes and strides, in the same process. An actor-critic is compared with its twin that has no compiled passes, a call
of one after a call of the other. With --inductor (SoftGAC) a third agent has torch's passes, and then the bridge, too, by
torch.compile, which needs a C++ compiler; its start is what its first calls take, the compiler's processes included. Run with
OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from algorithms import ALGORITHMS, compiled, runtime
from algorithms.interface import AgentSpec
from replay.schema import DataSummary, Trajectories

EPISODES, STEPS, MAZE = (
    64,
    300,
    (4, 2),
)  # of a batch of whole episodes; observation and action dims of a point in a maze


def rate(agents: Sequence[Any], batches: Any, repeats: int) -> list[list[float]]:
    """Updates per CPU-second of each repeat, for each agent, by turns; after one call of each to warm up."""
    rates: list[list[float]] = [[] for _ in agents]
    for repeat in range(repeats + 1):
        for agent, mine in zip(agents, rates):
            start = time.process_time()
            agent.update(batches)
            if repeat:
                mine.append(len(batches) / (time.process_time() - start))
    return rates


class Products(TorchDispatchMode):
    """Records every matrix product inside the block, those of backward passes included."""

    NAMES = frozenset({"mm", "addmm", "bmm", "baddbmm"})

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []
        self._made: dict[tuple[Any, ...], torch.Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in self.NAMES:
            self.calls.append((func.overloadpacket.default, tuple(self._like(arg) for arg in args)))
        return func(*args, **(kwargs or {}))

    def _like(self, arg: Any) -> Any:
        """A tensor of noise with the layout of ``arg``, one for each layout; anything else as it is."""
        if not isinstance(arg, torch.Tensor):
            return arg
        layout = (tuple(arg.size()), arg.stride(), arg.dtype)
        if layout not in self._made:
            span = 1 + sum((size - 1) * stride for size, stride in zip(arg.size(), arg.stride(), strict=True))
            self._made[layout] = torch.randn(span, dtype=arg.dtype).as_strided(arg.size(), arg.stride())
        return self._made[layout]


def roofline(agents: Sequence[Any], batches: Any, repeats: int) -> list[float]:
    """CPU seconds of the matrix products of an update, divided by those of the whole update (medians), for each agent.

    The products are those of the last agent.
    """
    with Products() as products:
        agents[-1].update(batches)
    alone: list[float] = []
    whole: list[list[float]] = [[] for _ in agents]
    for _ in range(repeats):
        for agent, mine in zip(agents, whole):
            start = time.process_time()
            agent.update(batches)
            mine.append(time.process_time() - start)
        start = time.process_time()
        with torch.no_grad(), runtime.library(agents[-1].matmul):
            for func, args in products.calls:
                func(*args)
        alone.append(time.process_time() - start)
    return [statistics.median(alone) / statistics.median(mine) for mine in whole]


def made_up_episodes(posterior_floats: int) -> Trajectories:
    """Noise; its values do not change the work."""
    rows = 0.3 * torch.randn(EPISODES * STEPS, sum(MAZE) + 1)
    return Trajectories(
        rows_NF=rows,
        offset=torch.arange(EPISODES + 1) * STEPS,
        return_B=rows[:, -1].view(EPISODES, STEPS).sum(1),
        posterior_BP=torch.zeros(EPISODES, posterior_floats),
        visits_B=torch.zeros(EPISODES, dtype=torch.int32),
    )


def standard_summary() -> DataSummary:
    """Of data that is normalised already."""
    (obs, action), zeros = MAZE, [0.0] * 101
    return DataSummary(
        obs_mean_O=np.zeros(obs),
        obs_std_O=np.ones(obs),
        action_mean_A=np.zeros(action),
        action_std_A=np.ones(action),
        return_mean=0.0,
        return_std=5.0,
        return_min=-15.0,
        return_max=15.0,
        return_quantiles=tuple(zeros),
        max_length=STEPS,
        episodes=EPISODES,
        steps=EPISODES * STEPS,
    )


def critic_update_flop(config: Any, obs_dim: int, action_dim: int, batch: int) -> float:
    """Floating-point operations of the matrix products of one critic update (2 a multiply-add)."""
    width, layers = config.critic_width, config.critic_layers
    hidden = (layers - 1) * width * width
    first, last = (obs_dim + action_dim) * width, width * config.atoms
    forward = 2 * batch * (first + hidden + last)
    backward = 2 * batch * (first + 2 * hidden) + batch * 2 * last  # the first layer has no input gradient
    return 2.0 * 2 * (forward + backward)  # twin critics, 2 operations a multiply-add


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--preset",
        choices=("cpu", "linear", "paper"),
        default="cpu",
        help="linear: of gac alone",
    )
    parser.add_argument("--algorithm", choices=(*ALGORITHMS, "all"), default="all")
    parser.add_argument("--batch", type=int, default=256, help="rows of a batch, of an actor-critic")
    parser.add_argument("--obs", type=int, default=17, help="observation dim of an actor-critic (HalfCheetah: 17)")
    parser.add_argument("--action", type=int, default=6, help="action dim of an actor-critic (HalfCheetah: 6)")
    parser.add_argument("--posterior", choices=("amortised", "stored", "fresh"), help="of gac (default: the preset's)")
    parser.add_argument("--repeats", type=int, default=9, help="calls measured; the median is printed")
    parser.add_argument(
        "--updates", type=int, default=0, help="updates a call (default 64 or, of episodes, 10; paper: 2)"
    )
    parser.add_argument("--matmul", choices=("auto", "mkl", "onednn"), default="auto")
    parser.add_argument("--inductor", action="store_true", help="of softgac: also by torch.compile")
    args = parser.parse_args()
    torch.set_num_threads(1)
    names = list(ALGORITHMS) if args.algorithm == "all" else [args.algorithm]
    for name in names:
        if args.preset not in ALGORITHMS[name].presets:
            continue
        measure = on_episodes if ALGORITHMS[name].items == "episodes" else on_transitions
        rates, notes = measure(name, args)
        print(
            f"{name:10s} {args.preset:6s} {statistics.median(rates):8.2f} updates/CPU-s "
            f"(lowest {min(rates):.2f}, highest {max(rates):.2f}; {notes})",
            flush=True,
        )


def on_transitions(name: str, args: argparse.Namespace) -> tuple[list[float], str]:
    """Rates of an actor-critic, and what else is known of them."""
    config = dataclasses.replace(ALGORITHMS[name].presets[args.preset](), matmul=args.matmul)
    spec = AgentSpec(obs_dim=args.obs, action_dim=args.action)
    agent: Any = ALGORITHMS[name].make_agent(config, spec)
    with compiled.without():
        agents = [agent, ALGORITHMS[name].make_agent(config, spec)]
    rows = torch.randn(args.updates or (64 if args.preset == "cpu" else 2), args.batch, 2 * args.obs + args.action + 2)
    rows[..., args.obs + args.action + 1] = 1.0
    gflop = critic_update_flop(config, args.obs, args.action, args.batch) / 1e9
    rates, alone = rate(agents, rows, args.repeats)
    share, before = roofline(agents, rows[: 2 * config.actor_every], args.repeats)
    gain = statistics.median(rates) / statistics.median(alone)
    words = f"compiled passes {gain:.2f} times those of torch, whose roofline is {before:.2f}"
    if args.inductor and name == "softgac":
        words += inductor(agents[1], lambda: ALGORITHMS[name].make_agent(config, spec), rows, args.repeats)
    return rates, f"{gflop:.2f} GFLOP a critic update; roofline {share:.2f}; {words}; {agent.matmul}"


def inductor(eager: Any, make: Callable[[], Any], rows: torch.Tensor, repeats: int) -> str:
    """Rates of two agents with torch's passes by torch.compile, of the second one the bridge, too, over those of ``eager``."""
    words = ""
    for bridge_too in (False, True):
        with compiled.without():
            agent = make()
        for pass_ in ("forward", "backward", "head"):
            setattr(agent.critic.loops, pass_, torch.compile(getattr(agent.critic.loops, pass_), dynamic=False))
        if bridge_too:
            agent.bridge.rollout = torch.compile(agent.bridge.rollout, dynamic=False)
        began = cpu_s()
        agent.update(rows)
        start_s = cpu_s() - began
        mine, theirs = (statistics.median(found) for found in rate([agent, eager], rows, repeats))
        words += f"; torch.compile{' of the bridge, too' * bridge_too} {mine / theirs:.2f} times torch, start {start_s:.0f} CPU s"
    return words


def cpu_s() -> float:
    """CPU seconds of this process and of those that it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def on_episodes(name: str, args: argparse.Namespace) -> tuple[list[float], str]:
    """Rates of an algorithm that learns from whole episodes, and what else is known of them."""
    given: dict[str, Any] = {"matmul": args.matmul}
    if name == "gac" and args.posterior:
        given["posterior"] = args.posterior
    config = dataclasses.replace(ALGORITHMS[name].presets[args.preset](), **given)
    agent: Any = ALGORITHMS[name].make_agent(config, AgentSpec(obs_dim=MAZE[0], action_dim=MAZE[1]))
    agent.fit(standard_summary())
    count = args.updates or (2 if args.preset == "paper" else 10)
    batches = [made_up_episodes(config.posterior_floats) for _ in range(count)]
    (rates,) = rate([agent], batches, args.repeats)
    text = f"roofline {roofline([agent], batches[:2], args.repeats)[0]:.2f}; {agent.matmul}"
    if name == "gac" and config.posterior != "amortised":
        text = f"{config.inner_steps * statistics.median(rates):.1f} inner steps/CPU-s; {text}"
    return rates, text


if __name__ == "__main__":
    main()
