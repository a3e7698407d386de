"""What a run writes on a best-effort basis: metrics.jsonl, evaluations.jsonl, live.json, summary.json, TensorBoard events, curve.png,
and answers to other commands. A write that fails ends no run, is counted, and tears no line; one that hangs keeps nobody waiting.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from cluster.bounded import in_thread
from cluster.run_dir import RunDirectory

LINES = 4096  # of one file that wait in memory while it cannot be written
WAIT_S = 0.1  # for a write; one that takes longer goes on in its thread
LATE_S = 5.0  # after which a write hangs: what comes meanwhile counts as failed
END_S = 5.0  # for what still waits at the end of a run


@dataclasses.dataclass
class _Write:
    """Something to be written; whether it was, once that is known."""

    call: Callable[[], Any]
    again: bool
    done: Future[bool] = dataclasses.field(default_factory=Future)


class Reports:
    """Writes the reports of a run, one after the other, in a thread that lives while there are any.

    Args:
        failed: counts failed writes under "report".
        event: called in words when the writes of a file begin to fail or hang, and when they succeed again; also from the thread.
    """

    def __init__(self, run: RunDirectory, failed: dict[str, int], event: Callable[[str], None]) -> None:
        self.run, self.failed, self.event = run, failed, event
        self._lock = threading.Condition()
        self._due: dict[str, _Write] = {}  # by file: a newer version takes the place of one that waits
        self._again: dict[str, _Write] = {}  # that failed and are tried again
        self._under_way: tuple[str, float] | None = None  # what is being written, since when
        self._working = self._said = False  # whether there is a thread, and whether it was said that it hangs
        self._waiting: dict[str, deque[bytes]] = {}  # lines that are not written yet, by file
        self._lost: dict[str, int] = {}  # lines for which there was no room
        self._failing: dict[str, tuple[int, float]] = {}  # what cannot be written -> attempts, and since when

    @property
    def hangs_s(self) -> float:
        """For how long a write has been under way."""
        under_way = self._under_way
        return 0.0 if under_way is None else time.monotonic() - under_way[1]

    def line(self, name: str, record: dict[str, Any]) -> None:
        """Adds ``record`` to the .jsonl file ``name``: now, or with a later line once it can be written again."""
        text = json.dumps(record).encode()
        with self._lock:
            waiting = self._waiting.setdefault(name, deque())
            waiting.append(text)
            if len(waiting) > LINES:
                waiting.popleft()
                self._lost[name] = self._lost.get(name, 0) + 1
        self.write(name, lambda: self._write_waiting(name))

    def write(self, name: str, call: Callable[[], Any], again: bool = False) -> bool:
        """Lets the thread make ``call``, which writes the newest version of ``name``; whether it has succeeded within WAIT_S.

        Args:
            again: one that fails is tried again at every ``retry``.
        """
        write, late = _Write(call, again), self.hangs_s > WAIT_S
        with self._lock:
            self._again.pop(name, None)
            self._due[name] = write
            if not self._working:
                self._working = True
                in_thread(self._work)
        self._check_hanging()
        try:
            return write.done.result(0 if late else WAIT_S)
        except TimeoutError:
            return False

    def retry(self) -> None:
        """Tries again what failed and must not be left out."""
        for name, write in list(self._again.items()):
            self.write(name, write.call, again=True)

    def attempt(self, name: str, call: Callable[[], Any]) -> bool:
        """Whether ``call`` succeeded, made here and now; what it raises is counted, and said at the first of a row of failures."""
        try:
            call()
        except OSError as error:
            with self._lock:
                self.failed["report"] += 1
            count, since = self._failing.get(name, (0, time.monotonic()))
            self._failing[name] = count + 1, since
            if not count:
                self.event(
                    f"{self.run.path / name} cannot be written ({error}; {free_words(self.run.path)}): {_what_follows(name)}; free some space, or "
                    "make it writable"
                )
            return False
        if name in self._failing:
            count, since = self._failing.pop(name)
            lost = self._lost.pop(name, 0)
            self.event(
                f"{self.run.path / name} is written again, after {count:,} failed writes in {time.monotonic() - since:.0f} s"
                + (f"; {lost:,} of its lines are lost" if lost else "")
            )
        return True

    def flush(self, limit_s: float = END_S) -> None:
        """Waits until everything is written, or for ``limit_s``, less where a write hangs already; then says what is not."""
        limit_s = max(limit_s / 5, limit_s - self.hangs_s)
        with self._lock:
            if self._lock.wait_for(lambda: not self._working, limit_s):
                return
            left = [*([self._under_way[0]] if self._under_way else []), *self._due]
        self.event(
            f"WARNING: {', '.join(dict.fromkeys(left))} in {self.run.path} could not be written within {limit_s:g} s: the file system does not "
            "answer, and what was to be written there is lost"
        )

    def _work(self) -> None:
        while True:
            with self._lock:
                self._under_way = None
                if not self._due:
                    self._working = False
                    self._lock.notify_all()
                    return
                name = next(iter(self._due))
                write, self._under_way = self._due.pop(name), (name, time.monotonic())
            done = self.attempt(name, lambda call=write.call: _as_os_error(call))  # type: ignore[misc]
            with self._lock:
                if not done and write.again and name not in self._due:
                    self._again[name] = write
                said, self._said = self._said, False
            if said:
                self.event(f"{self.run.path / name} was written after {self.hangs_s:.0f} s; what waited is written now")
            write.done.set_result(done)

    def _check_hanging(self) -> None:
        """Counts a report that finds the one before it hanging, and says so once."""
        with self._lock:
            if self._under_way is None or self.hangs_s <= LATE_S:
                return
            self.failed["report"] += 1
            name, said, self._said = self._under_way[0], self._said, True
        if not said:
            self.event(
                f"WARNING: {self.run.path / name} has been under way to the disk for {self.hangs_s:.0f} s, expected less than {LATE_S:g} s: the "
                f"file system does not answer; the run goes on, up to {LINES:,} lines of a file wait in memory, and `drawbridge status` "
                "shows older figures"
            )

    def _write_waiting(self, name: str) -> None:
        waiting = self._waiting[name]
        while waiting:
            text = waiting[0]
            self.run.append_line(name, text)
            with self._lock:
                if waiting and waiting[0] is text:  # else it was the oldest of too many meanwhile
                    waiting.popleft()


def _what_follows(name: str) -> str:
    """What becomes of a report that cannot be written."""
    if name.endswith(".jsonl"):
        return f"the run goes on, up to {LINES:,} lines of the file wait in memory and are written when that is possible again"
    if name in ("summary.json", "curve.png"):
        return "it is left out, and what was saved of the run stays"
    return "the run goes on, and the next one is tried"


def _as_os_error(call: Callable[[], Any]) -> None:
    """Makes ``call``; whatever else it raises counts as a write that failed."""
    try:
        call()
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def free_words(path: Path) -> str:
    """How much is free on the file system of ``path``."""
    try:
        return f"{size_words(shutil.disk_usage(path).free)} free there"
    except OSError as error:
        return f"its file system does not answer: {error}"


def size_words(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / 2**20:,.1f} MiB" if count >= 2**17 else f"{count / 2**10:,.0f} KiB"


def free_bytes(run: RunDirectory) -> int | None:
    """Bytes free for a run; None if its file system does not say. RunError if the run's directory is gone."""
    run.check_there()
    with contextlib.suppress(OSError):
        return shutil.disk_usage(run.path).free
    return None
