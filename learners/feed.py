"""The learner's supply: blocks of batches that are on the device before they are asked for.

Letters: U updates of a block, B batch, D packed row width (of transitions; of whole episodes see replay/schema.py).

    thread       waits for                                unblocked by
    feed         room among ``depth`` ready blocks        the learner's get; stop
    feed         the source's answer (``fetch``)          the source; it must have a deadline of its own
    feed         retry_after_s of a Wait                  time; stop
    learner      a ready block, at most ``deadline_s``    the feed; its error; the end of the stream
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from replay.messages import Block, EpisodeBlock, Wait
from replay.schema import Trajectories

AnyBlock = Block | EpisodeBlock
Fetch = Callable[[], "AnyBlock | Wait | None"]  # None: the stream has ended


class FeedTimeout(TimeoutError):
    """No block came within the deadline; the message says whom the learner waited for and in what state it was."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadyBatch:
    """A block that is ready for use."""

    block: AnyBlock
    batches: (
        Any  # rows (U, B, D) float32 of a Block, or the U Trajectories of an EpisodeBlock, as tensors on the learner's
    )
    # device; on the CPU they share the block's memory: never write them
    waited_s: float  # how long ``get`` waited for it


class Feed:
    """A thread that keeps ``depth`` blocks ready.

    On CUDA a block is copied through pinned memory on a stream of its own, so that the copy of the next blocks runs
    beside the update on this one. A failure of ``fetch`` is raised by the next ``get``, after the blocks before it.

    Args:
        fetch: asks the source for a block; called by one thread. Waits are repeated after their retry_after_s.
        depth: blocks kept ready, at least 1 (policy of the bound: the feed blocks).
        device: where the learner computes.
        deadline_s: how long ``get`` waits by default.
        source: who ``fetch`` asks, for messages.
    """

    def __init__(
        self, fetch: Fetch, *, depth: int, device: torch.device | str, deadline_s: float, source: str = "replay"
    ) -> None:
        if depth < 1:
            raise ValueError(
                f"a feed of {depth} blocks was asked for, expected at least 1: it could never hand one out"
            )
        self.waited_s = 0.0
        self._fetch, self._depth, self._deadline_s, self._source = fetch, depth, deadline_s, source
        self._copy = _Copy(torch.device(device))
        self._ready: deque[tuple[AnyBlock, _OnDevice]] = deque()
        self._change = threading.Condition()
        self._stopping = False
        self._ended = False
        self._error: BaseException | None = None
        self._state = "starting"
        self._since = time.monotonic()
        self._last: float | None = None  # when the source last gave a block
        self._waits = 0  # answers "wait" since then
        self._thread = threading.Thread(target=self._run, name=f"feed from {source}", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> int:
        """Blocks that are ready now."""
        return len(self._ready)

    def get(self, deadline_s: float | None = None) -> ReadyBatch | None:
        """The next block, or None once the stream has ended. Raises FeedTimeout, and whatever ``fetch`` raised."""
        limit_s = self._deadline_s if deadline_s is None else deadline_s
        began = time.monotonic()
        with self._change:
            came = self._change.wait_for(lambda: self._ready or self._ended or self._error, limit_s)
            waited_s = time.monotonic() - began
            self.waited_s += waited_s
            if not came:
                raise FeedTimeout(self._late(waited_s))
            if self._ready:
                block, batches = self._ready.popleft()
                self._change.notify_all()
                return ReadyBatch(block=block, batches=batches.use(), waited_s=waited_s)
            if self._error is not None:
                raise self._error
            return None

    def stop(self, deadline_s: float = 10.0) -> None:
        """Ends the thread and lets go of the blocks; raises FeedTimeout when the thread does not end in time."""
        with self._change:
            self._stopping = self._ended = True
            self._ready.clear()
            self._change.notify_all()
        self._thread.join(deadline_s)
        if self._thread.is_alive():
            raise FeedTimeout(f"the feed did not stop within {deadline_s:g} s: {self._describe()}")

    def _run(self) -> None:
        try:
            while self._room():
                self._enter(f"waiting for an answer of {self._source}")
                answer = self._fetch()
                if answer is None:
                    break
                if isinstance(answer, Wait):
                    self._waits += 1
                    self._enter(f"waiting, as asked by {self._source} ({answer.reason})")
                    self._pause(answer.retry_after_s)
                    continue
                self._waits, self._last = 0, time.monotonic()
                self._enter("copying a block to the device")
                batches = self._copy(answer)
                with self._change:
                    if not self._stopping:
                        self._ready.append((answer, batches))
                    self._change.notify_all()
        except BaseException as error:
            self._error = error
        with self._change:
            self._ended = True
            self._change.notify_all()

    def _room(self) -> bool:
        """Waits for room among the ready blocks; False when stopping."""
        with self._change:
            if len(self._ready) >= self._depth:
                self._enter("full")
            self._change.wait_for(lambda: self._stopping or len(self._ready) < self._depth)
            return not self._stopping

    def _pause(self, seconds: float) -> None:
        with self._change:
            self._change.wait_for(lambda: self._stopping, seconds)

    def _enter(self, state: str) -> None:
        self._state, self._since = state, time.monotonic()

    def _late(self, waited_s: float) -> str:
        return (
            f"the learner waited {waited_s:.1f} s for a block of {self._source} and got none: {self._describe()}. "
            "No update was made in that time. Look at the source's log; if workers are merely slow, raise the deadline "
            "or lower the replay ratio"
        )

    def _describe(self) -> str:
        now = time.monotonic()
        last = "no block has come yet" if self._last is None else f"the last block came {now - self._last:.1f} s ago"
        waits = f" (asked to wait {self._waits} times since)" if self._waits else ""
        return f"the feed has been {self._state} for {now - self._since:.1f} s; {last}{waits}"


class DirectFeed:
    """A feed without a thread: ``get`` asks the source itself, so that one process runs in a fixed order.

    As nothing else can happen while it waits, a Wait is a FeedTimeout at once; ``poll`` gives None instead.
    """

    def __init__(self, fetch: Fetch, *, device: torch.device | str, source: str = "replay") -> None:
        self.waited_s = 0.0
        self.ended = False
        self._fetch, self._source = fetch, source
        self._copy = _Copy(torch.device(device))

    def poll(self) -> ReadyBatch | None:
        """The next block, or None when the source has none now (see ``ended``)."""
        answer = self._ask()
        return answer if isinstance(answer, ReadyBatch) else None

    def get(self, deadline_s: float | None = None) -> ReadyBatch | None:
        """The next block, or None once the stream has ended. Raises FeedTimeout when the source says Wait."""
        answer = self._ask()
        if isinstance(answer, Wait):
            raise FeedTimeout(
                f"{self._source} has no block now ({answer.reason}) and runs in the learner's own thread, so waiting "
                "cannot help: step the workers first"
            )
        return answer

    def stop(self, deadline_s: float = 10.0) -> None:
        """Nothing runs, so nothing is left to end but the stream."""
        self.ended = True

    def _ask(self) -> ReadyBatch | Wait | None:
        if self.ended:
            return None
        began = time.monotonic()
        answer = self._fetch()
        if answer is None:
            self.ended = True
        if answer is None or isinstance(answer, Wait):
            return answer
        batches = self._copy(answer).use()
        waited_s = time.monotonic() - began
        self.waited_s += waited_s
        return ReadyBatch(block=answer, batches=batches, waited_s=waited_s)


class _OnDevice:
    """A block's batches on the device, perhaps still on their way there."""

    def __init__(self, batches: Any, arrived: Any = None) -> None:
        self._batches, self._arrived = batches, arrived

    def use(self) -> Any:
        """For work that is queued from here on by the calling thread: the device waits for the copy, the host never."""
        if self._arrived is not None:
            _each(self._batches, self._claim)
        return self._batches

    def _claim(self, tensor: torch.Tensor) -> torch.Tensor:
        stream = torch.cuda.current_stream(tensor.device)
        stream.wait_event(self._arrived)
        tensor.record_stream(stream)
        return tensor


class _Copy:
    """Host arrays to device tensors: views on the CPU, asynchronous pinned copies on a side stream on CUDA."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, block: AnyBlock) -> _OnDevice:
        arrays = block.rows_UBD if isinstance(block, Block) else block.batches
        host = _each(arrays, lambda array: torch.from_numpy(_writable_view(array)))
        if self._stream is None:
            return _OnDevice(_each(host, lambda tensor: tensor.to(self._device)))
        with torch.cuda.stream(self._stream):
            batches = _each(host, lambda tensor: tensor.pin_memory().to(self._device, non_blocking=True))
            arrived = torch.cuda.Event()
            arrived.record(self._stream)
        return _OnDevice(batches, arrived)


def _each(batches: Any, change: Callable[[Any], Any]) -> Any:
    """``change`` applied to every array of a block's batches, their structure kept."""
    if isinstance(batches, Trajectories):
        return Trajectories(**{name: change(array) for name, array in vars(batches).items()})
    if isinstance(batches, (tuple, list)):
        return tuple(_each(batch, change) for batch in batches)
    return change(batches)


class _View:
    """The memory of a read-only array under numpy's array protocol, without the read-only mark."""

    def __init__(self, array: np.ndarray) -> None:
        self._owner = array  # keeps the memory alive
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}


def _writable_view(array: np.ndarray) -> np.ndarray:
    """``array`` itself, or a view that torch takes without a copy and without its warning about read-only memory.

    Arrays that Ray hands out lie in shared memory and are read-only. The learner never writes to its rows.
    """
    array = np.ascontiguousarray(array)
    return array if array.flags.writeable else np.asarray(_View(array))
