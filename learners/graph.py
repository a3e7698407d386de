"""One cycle of updates as a CUDA graph: no Python and no launch overhead between its kernels.

Letters: C updates of a cycle (critic steps up to and including the actor's), B batch, D packed row width.

The captured function copies nothing from the host: rows come from a static buffer, noise from the agent's generator,
which is registered with the graph so that every replay draws anew, and metrics are added up in a static buffer.
"""

from __future__ import annotations

from typing import Protocol

import torch

WARM_UP_CYCLES = 3  # library handles, lazy workspaces and the allocator's pools settle in the first ones


class CyclicAgent(Protocol):
    """What capture needs of an agent beyond ``interface.Agent``."""

    cycle: int
    generator: torch.Generator

    def step_cycle(self, rows_CBD: torch.Tensor) -> dict[str, torch.Tensor]:
        """``cycle`` updates by tensor operations alone; each metric's mean over them, ``nonfinite`` their count."""

    def state(self) -> dict[str, torch.Tensor]: ...

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Writes into the tensors that the agent has: a graph holds their addresses."""


class CapturedCycle:
    """``agent.step_cycle`` on batches of one shape, captured once and replayed.

    Capturing leaves the agent's parameters, statistics and noise as they were.

    Args:
        agent: on a CUDA device.
        batch: B, rows of one update on this learner.
        width: D, floats of one packed row.
    """

    def __init__(self, agent: CyclicAgent, *, batch: int, width: int) -> None:
        device = agent.generator.device
        if device.type != "cuda":
            raise ValueError(
                f"a graph of updates needs an agent on CUDA, this one is on {device}: set cuda_graph=false"
            )
        self._agent, self._cycle = agent, agent.cycle
        self._rows_CBD = torch.zeros(agent.cycle, batch, width, device=device)
        before = {name: tensor.clone() for name, tensor in agent.state().items()}
        self._names = self._warm_up(device)
        self._totals = torch.zeros(len(self._names), device=device)
        self._graph = torch.cuda.CUDAGraph()
        self._graph.register_generator_state(agent.generator)
        with torch.cuda.graph(self._graph):  # records; runs nothing
            self._totals += _stacked(agent.step_cycle(self._rows_CBD), self._names)
        agent.load_state(before)

    def update(self, rows_UBD: torch.Tensor) -> dict[str, torch.Tensor]:
        """U updates, as ``Agent.update`` makes them; U must be a multiple of the agent's cycle and B, D as captured."""
        cycles = check_cycles(rows_UBD.shape[0], self._cycle)
        if rows_UBD.shape[1:] != self._rows_CBD.shape[1:]:
            raise ValueError(
                f"batches of shape {tuple(rows_UBD.shape[1:])} came to a graph captured for "
                f"{tuple(self._rows_CBD.shape[1:])}: none was used; batch size and layout are fixed for a run"
            )
        self._totals.zero_()
        for at in range(cycles):
            self._rows_CBD.copy_(rows_UBD[at * self._cycle : (at + 1) * self._cycle], non_blocking=True)
            self._graph.replay()
        return means(self._totals.clone(), self._names, cycles)

    def _warm_up(self, device: torch.device) -> tuple[str, ...]:
        """Runs the cycle outside the graph on a side stream, as capture demands; gives the metrics' names."""
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_CYCLES):
                metrics = self._agent.step_cycle(self._rows_CBD)
        torch.cuda.current_stream(device).wait_stream(side)
        torch.cuda.synchronize(device)
        return tuple(metrics)


def check_cycles(updates: int, cycle: int) -> int:
    """How many cycles ``updates`` updates are; ValueError when they are no whole number of cycles."""
    if updates % cycle:
        raise ValueError(
            f"a block of {updates} updates came to an agent whose graph has {cycle}: a graph makes whole cycles only; "
            f"set updates_per_call to a multiple of {cycle}, or cuda_graph=false"
        )
    return updates // cycle


def means(totals: torch.Tensor, names: tuple[str, ...], cycles: int) -> dict[str, torch.Tensor]:
    """Metrics of a block from their sums over its cycles: means, but the count for ``nonfinite``."""
    return {name: totals[i] if name == "nonfinite" else totals[i] / cycles for i, name in enumerate(names)}


def _stacked(metrics: dict[str, torch.Tensor], names: tuple[str, ...]) -> torch.Tensor:
    return torch.stack([metrics[name].float() for name in names])
