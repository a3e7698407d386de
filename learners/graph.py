"""One cycle of updates as a CUDA graph: no Python and no launch overhead between its kernels.

Letters: U updates of a block, C updates of a cycle (critic steps up to the actor's), B batch, D packed row width.

The captured function copies nothing from the host: rows come from a static buffer, noise from the agent's generator,
which is registered with the graph so that every replay draws anew, and metrics add up on the device.
"""

from __future__ import annotations

from collections.abc import Callable
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

    def advance(self, rows_UBD: torch.Tensor) -> None:
        """U updates, counted in ``updates``, whose metrics add up as those of ``step_cycle`` do."""

    def read_metrics(self) -> dict[str, torch.Tensor]:
        """What added up since the last call, as ``Agent.update`` returns it."""

    def state(self) -> dict[str, torch.Tensor]: ...

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Writes into the tensors that the agent has: a graph holds their addresses."""


class CapturedCycle:
    """``agent.step_cycle`` on batches of one shape, captured once and replayed.

    Capturing leaves the agent's parameters, statistics and noise as they were.

    Updates that make no whole cycle, as the first after a resume in the middle of one, are made without the graph.

    Args:
        agent: on a CUDA device.
        batch: B, rows of one update on this learner.
        width: D, floats of one packed row.
        capture: gives what replays ``step_cycle`` on the buffer that it takes.
    """

    def __init__(
        self,
        agent: CyclicAgent,
        *,
        batch: int,
        width: int,
        capture: Callable[[CyclicAgent, torch.Tensor], Callable[[], None]] | None = None,
    ) -> None:
        self._agent = agent
        self._rows_CBD = torch.zeros(agent.cycle, batch, width, device=agent.generator.device)
        before = {name: tensor.clone() for name, tensor in agent.state().items()}
        self._replay = (capture or captured)(agent, self._rows_CBD)
        agent.load_state(before)
        agent.read_metrics()  # throws the warm-up's away

    def update(self, rows_UBD: torch.Tensor) -> dict[str, torch.Tensor]:
        """U updates, as ``Agent.update`` makes them; B and D as captured."""
        agent, cycle = self._agent, self._agent.cycle
        if rows_UBD.shape[1:] != self._rows_CBD.shape[1:]:
            raise ValueError(
                f"batches of shape {tuple(rows_UBD.shape[1:])} came to a graph captured for "
                f"{tuple(self._rows_CBD.shape[1:])}: none was used; batch size and layout are fixed for a run"
            )
        first = min(-agent.updates % cycle, len(rows_UBD))
        whole = (len(rows_UBD) - first) // cycle * cycle
        begun_UBD, whole_UBD, rest_UBD = rows_UBD.split([first, whole, len(rows_UBD) - first - whole])
        agent.advance(begun_UBD)
        for rows_CBD in whole_UBD.split(cycle):
            if len(rows_CBD):  # an empty tensor splits into itself
                self._rows_CBD.copy_(rows_CBD, non_blocking=True)
                self._replay()
                agent.updates += cycle
        agent.advance(rest_UBD)
        return agent.read_metrics()


def captured(agent: CyclicAgent, rows_CBD: torch.Tensor) -> Callable[[], None]:
    """``agent.step_cycle(rows_CBD)`` as a CUDA graph; ValueError where there is no CUDA."""
    if rows_CBD.device.type != "cuda":
        raise ValueError(
            f"a graph of updates needs an agent on CUDA, this one is on {rows_CBD.device}: set cuda_graph=false"
        )
    _warm_up(agent, rows_CBD)
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(agent.generator)
    # Records; runs nothing. thread_local: the feed's thread may pin and allocate memory meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        agent.step_cycle(rows_CBD)
    return graph.replay


def _warm_up(agent: CyclicAgent, rows_CBD: torch.Tensor) -> None:
    """Runs the cycle outside the graph on a side stream, as capture demands."""
    side, here = torch.cuda.Stream(rows_CBD.device), torch.cuda.current_stream(rows_CBD.device)
    side.wait_stream(here)
    with torch.cuda.stream(side):
        for _ in range(WARM_UP_CYCLES):
            agent.step_cycle(rows_CBD)
    here.wait_stream(side)
    torch.cuda.synchronize(rows_CBD.device)
