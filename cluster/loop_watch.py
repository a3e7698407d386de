"""Whether the driver's loop comes back: what looks after the parts of a run must be looked after itself."""

from __future__ import annotations

import faulthandler
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from cluster.bounded import in_thread

LIMIT_S = 60.0  # of one turn; the longest in order is that of a run that halts, which is saved in it: about 30 s
LOOKS = 20  # in that time: a process that was stopped and goes on has had one of them, however long it was stopped
DUMP_S = 5.0  # for the stacks to be written
CALLS = 4  # that are named


class LoopWatch:
    """A thread that says once when a turn of the loop takes longer than ``limit_s``, and again when it is over.

    Enter it for each turn. The stacks of all threads of the process are then in ``path``.

    Args:
        event: called with what a person should know, from that thread.
    """

    def __init__(self, path: Path, event: Callable[[str], None], limit_s: float = LIMIT_S) -> None:
        self.path, self.event, self.limit_s = path, event, limit_s
        self._thread = threading.get_ident()  # of the loop
        self._turns = 0  # one more at the begin and at the end of each: odd while one is under way
        self._over = threading.Event()

    def start(self) -> None:
        """Begins to watch; the loop is of the thread that calls this."""
        self._thread = threading.get_ident()
        threading.Thread(target=self._watch, name="loop watch", daemon=True).start()

    def stop(self) -> None:
        self._over.set()

    def __enter__(self) -> None:
        self._turns += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._turns += 1

    def _watch(self) -> None:
        seen, looks, since = 0, 0, 0.0
        while not self._over.wait(self.limit_s / LOOKS):
            turns = self._turns
            if turns != seen or turns % 2 == 0:
                if looks >= LOOKS:
                    self.event(f"the driver's loop goes on again, after {time.monotonic() - since:.0f} s")
                seen, looks, since = turns, 0, time.monotonic()
                continue
            looks += 1
            if looks == LOOKS:
                self._say()

    def _say(self) -> None:
        place = where(self._thread)
        stacks = write_stacks(self.path, "the driver's loop hangs")
        self.event(
            f"WARNING: the driver's loop hangs: a turn of it has taken more than {self.limit_s:g} s, expected less than a second; it is in "
            f"{place}. The parts go on, but nobody looks after them, and no metrics records come; {stacks}; if it does not go on, end "
            "the process and resume the run"
        )


def write_stacks(path: Path, title: str) -> str:
    """Adds the stacks of all threads to ``path``, within DUMP_S; what became of that, in words."""
    try:
        in_thread(lambda: _dump(path, title)).result(DUMP_S)
    except OSError as error:  # TimeoutError, too
        return f"the stacks of all threads could not be written to {path} ({str(error) or 'no answer'})"
    return f"the stacks of all threads are in {path}"


def _dump(path: Path, title: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}: {title}\n")
        file.flush()
        faulthandler.dump_traceback(file, all_threads=True)


def where(thread: int) -> str:
    """The innermost calls that a thread is in, the last one last."""
    frame = sys._current_frames().get(thread)
    calls = traceback.extract_stack(frame)[-CALLS:] if frame is not None else []
    return ", ".join(f"{call.name} ({Path(call.filename).name}:{call.lineno})" for call in calls)
