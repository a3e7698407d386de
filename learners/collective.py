"""Learners that share one update: reductions over torch.distributed.

Each of R learners computes the loss of its own B/R rows. With L_r the loss of rank r, what is minimised is the mean

    L = 1/R sum_r L_r                    so   dL/dtheta = mean_r dL_r/dtheta   (``mean_`` on the flat gradient)

A statistic that all rows share, y = 1/R sum_r x_r (the moments of batch renormalisation), enters every L_r. Rank j's part of dL/dtheta is

    dL/dx_j = 1/R sum_r dL_r/dy dy/dx_j = 1/R (1/R sum_r dL_r/dy)

and as ``mean_`` brings the outer 1/R, the gradient that rank j hands down to x_j is mean_r dL_r/dy: the backward pass
is the same reduction as the forward pass. R learners of B/R rows then take the step of one learner of B rows.

A NaN on one rank reaches every rank through the sum, so all ranks skip the same non-finite updates.
"""

from __future__ import annotations

import datetime
import socket
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import torch
import torch.distributed as dist

from algorithms.interface import Collective


class CollectiveError(RuntimeError):
    """A reduction failed or timed out; the learners no longer agree and must be restarted together."""


class TorchCollective:
    """``interface.Collective`` over gloo (CPU) or NCCL (CUDA); one a process, as torch's default group is.

    Args:
        backend: "gloo", or "nccl" for tensors on CUDA beside gloo for those on the CPU.
        rank: of this learner, in [0, world_size).
        world_size: number of learners.
        init_method: where rank 0's store listens or the file that all share: "tcp://host:port", "file:///path".
        timeout_s: deadline of the meeting, of every reduction and of every barrier.
        device: where ``barrier`` and NCCL run; the reductions take tensors that lie there. A reduction of a tensor on the CPU does
            not wait for the device.
        listener: rank 0's socket, bound to the host and port of ``init_method`` and taken over; without one, torch's store
            listens on every interface.

    Raises:
        CollectiveError: the learners did not all meet in time; or, later, a reduction failed. On NCCL a reduction
            runs behind the host, and one that misses its deadline ends the process (torch's watchdog) with an error. One in a
            CUDA graph has no deadline of its own: the learners meet on the CPU before each block, where a lost one is noticed, and
            the driver replaces one that stays busy.
    """

    def __init__(
        self,
        *,
        backend: str,
        rank: int,
        world_size: int,
        init_method: str,
        timeout_s: float = 60.0,
        device: torch.device | str = "cpu",
        listener: socket.socket | None = None,
    ) -> None:
        self.rank, self.world_size, self.timeout_s = rank, world_size, timeout_s
        self.backend, self.device = backend, torch.device(device)
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())
        self._where = f"learner {rank} of {world_size} ({backend}, {init_method})"
        self._guarded(
            "meeting the others",
            lambda: dist.init_process_group(
                "cpu:gloo,cuda:nccl" if backend == "nccl" else backend,
                **self._place(init_method, listener),
                rank=rank,
                world_size=world_size,
                timeout=datetime.timedelta(seconds=timeout_s),
                device_id=self.device if backend == "nccl" else None,
            ),
        )

    def _place(self, init_method: str, listener: socket.socket | None) -> dict[str, Any]:
        """Where the learners meet, as ``init_process_group`` takes it."""
        place = urlsplit(init_method)
        if place.scheme != "tcp":
            return {"init_method": init_method}
        stores: Any = dist  # TCPStore has no type
        store = stores.TCPStore(
            place.hostname or "",
            place.port or 0,
            self.world_size,
            self.rank == 0,
            datetime.timedelta(seconds=self.timeout_s),
            multi_tenant=True,
            master_listen_fd=listener.detach() if listener is not None else None,
        )
        return {"store": store}

    def mean_(self, tensor: torch.Tensor) -> None:
        """Replaces ``tensor`` in place by its mean over the learners (no gradient)."""
        contiguous = tensor.detach().contiguous()
        self._guarded("a reduction", lambda: dist.all_reduce(contiguous))
        contiguous.div_(self.world_size)
        if contiguous.data_ptr() != tensor.data_ptr():
            with torch.no_grad():
                tensor.copy_(contiguous)

    def means(self, *numbers: float) -> list[float]:
        """Of each number its mean over the learners, in float64 on the CPU: nobody waits for a device."""
        shared = torch.tensor(numbers, dtype=torch.float64)
        self.mean_(shared)
        return shared.tolist()

    def broadcast_(self, tensor: torch.Tensor) -> None:
        """Replaces ``tensor`` in place by rank 0's."""
        there = tensor.detach().to(self.device).contiguous()
        self._guarded("a broadcast from learner 0", lambda: dist.broadcast(there, src=0))
        if there.data_ptr() != tensor.data_ptr():
            with torch.no_grad():
                tensor.copy_(there)

    def barrier(self, timeout_s: float | None = None) -> None:
        """Returns when every learner has come here; on gloo, rank 0's error names who did not (NCCL knows no names)."""
        if self.backend == "gloo":
            timeout = datetime.timedelta(seconds=self.timeout_s if timeout_s is None else timeout_s)
            self._guarded("a barrier", lambda: dist.monitored_barrier(timeout=timeout, wait_all_ranks=True))
        else:
            self._guarded("a barrier", lambda: dist.barrier(device_ids=[self.device.index]))

    def close(self) -> None:
        """Leaves the group; call it once, after the last reduction."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def _guarded(self, what: str, act: Callable[[], Any]) -> None:
        try:
            act()
        except (RuntimeError, ValueError) as error:  # torch's DistError is a RuntimeError
            raise CollectiveError(
                f"{self._where}: {what} failed within its {self.timeout_s:g} s: {error}. The learners no longer agree, "
                "so this one stops; all of them must be restarted from the newest checkpoint"
            ) from error


def share_state(state: Mapping[str, torch.Tensor], collective: Collective) -> dict[str, torch.Tensor]:
    """Rank 0's state on every rank, so that all begin equal; with one learner, a copy of ``state``.

    The tensors travel in the order of their names: the order of a dict read from a safetensors file is random in each process.

    Args:
        state: this rank's, with the same names, shapes and dtypes on every rank.
        collective: all its ranks must call this.

    Raises:
        CollectiveError: on every rank, when the ranks' names, shapes or dtypes differ; nothing was exchanged.
    """
    shared = {name: tensor.clone() for name, tensor in state.items()}
    if isinstance(collective, TorchCollective):
        _check_alike(shared, collective)
        for name in sorted(shared):
            collective.broadcast_(shared[name])
    return shared


def _check_alike(state: Mapping[str, torch.Tensor], collective: TorchCollective) -> None:
    """Compares the table of names, shapes and dtypes with rank 0's; on a difference every rank raises CollectiveError."""
    mine = [f"{name} {tuple(state[name].shape)} {state[name].dtype}" for name in sorted(state)]
    text = "\n".join(mine).encode()
    size = torch.tensor(len(text))
    collective.broadcast_(size)
    first = torch.frombuffer(bytearray(text.ljust(int(size))[: int(size)]), dtype=torch.uint8)
    collective.broadcast_(first)
    differing = sorted(set(mine) ^ set(first.numpy().tobytes().decode().split("\n")))
    alike = torch.tensor(float(not differing), device=collective.device)
    collective.mean_(alike)
    if alike.item() == 1.0:
        return
    seen = ", ".join(differing[:4]) if differing else "another learner's tensors"
    raise CollectiveError(
        f"the state of learner {collective.rank} of {collective.world_size} has {len(mine)} tensors, and the learners differ in "
        f"{len(differing) or 'some'} of them ({seen}); expected the same names, shapes and dtypes on every learner: nothing was "
        "exchanged and all learners stop; give every node the same version of drawbridge and the same run directory"
    )
