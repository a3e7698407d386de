"""One cycle of updates as a CUDA graph: no Python and no launch overhead between its kernels.

Letters: U updates of a block, C updates of a cycle (critic steps up to the actor's), B batch, D packed row width.

The captured function copies nothing from the host: rows come from a static buffer, noise from the agent's generator,
which is registered with the graph so that every replay draws anew, and metrics add up on the device.
"""

from __future__ import annotations

from typing import Protocol

import torch

WARM_UP_CYCLES = 3  # library handles, lazy workspaces and the allocator's pools settle in the first ones


class CyclicAgent(Protocol):
    """What capture needs of an agent beyond ``interface.Agent``."""

    cycle: int
    updates: int  # made so far; a host counter, which no graph can move on
    generator: torch.Generator  # on the agent's device; all noise comes from it

    def step_cycle(self, rows_CBD: torch.Tensor) -> None:
        """``cycle`` updates by tensor operations alone; metrics add up on the device, ``updates`` stays."""

    def read_metrics(self) -> dict[str, torch.Tensor]:
        """What added up since the last call, as ``Agent.update`` returns it."""

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
        self._agent = agent
        self._rows_CBD = torch.zeros(agent.cycle, batch, width, device=device)
        before = {name: tensor.clone() for name, tensor in agent.state().items()}
        _warm_up(agent, self._rows_CBD)
        self._graph = torch.cuda.CUDAGraph()
        self._graph.register_generator_state(agent.generator)
        # Records; runs nothing. thread_local: the feed's thread may pin and allocate memory meanwhile.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            agent.step_cycle(self._rows_CBD)
        agent.load_state(before)
        agent.read_metrics()  # throws the warm-up's away

    def update(self, rows_UBD: torch.Tensor) -> dict[str, torch.Tensor]:
        """U updates, as ``Agent.update`` makes them; U must be a multiple of the agent's cycle and B, D as captured."""
        check_cycles(rows_UBD.shape[0], self._agent.updates, self._agent.cycle)
        if rows_UBD.shape[1:] != self._rows_CBD.shape[1:]:
            raise ValueError(
                f"batches of shape {tuple(rows_UBD.shape[1:])} came to a graph captured for "
                f"{tuple(self._rows_CBD.shape[1:])}: none was used; batch size and layout are fixed for a run"
            )
        for rows_CBD in rows_UBD.split(self._agent.cycle):
            self._rows_CBD.copy_(rows_CBD, non_blocking=True)
            self._graph.replay()
            self._agent.updates += self._agent.cycle
        return self._agent.read_metrics()


def check_cycles(block: int, made: int, cycle: int) -> None:
    """Raises ValueError when ``block`` updates after ``made`` ones are no whole cycles: a graph makes nothing else."""
    if block % cycle or made % cycle:
        raise ValueError(
            f"a block of {block} updates came after {made} updates, and a graph makes {cycle} at a time: expected "
            f"whole cycles, nothing was updated; set updates_per_call to a multiple of {cycle}, or cuda_graph=false"
        )


def _warm_up(agent: CyclicAgent, rows_CBD: torch.Tensor) -> None:
    """Runs the cycle outside the graph on a side stream, as capture demands."""
    side, here = torch.cuda.Stream(rows_CBD.device), torch.cuda.current_stream(rows_CBD.device)
    side.wait_stream(here)
    with torch.cuda.stream(side):
        for _ in range(WARM_UP_CYCLES):
            agent.step_cycle(rows_CBD)
    here.wait_stream(side)
    torch.cuda.synchronize(rows_CBD.device)
