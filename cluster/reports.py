"""What a run reports, written as well as it can be: no failed write of it ends the run, is silent, or tears a line.

Reports are metrics.jsonl, evaluations.jsonl, live.json, summary.json, TensorBoard events, curve.png and the answers to other
commands. Checkpoints and snapshots are not: save_watch.py has those.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.run_dir import RunDirectory

LINES = 4096  # of one file that wait in memory while it cannot be written


class Reports:
    """Writes the reports of a run.

    Args:
        failed: counts failed writes under "report".
        event: called in words when the writes of a file begin to fail, and when they succeed again.
    """

    def __init__(self, run: RunDirectory, failed: dict[str, int], event: Callable[[str], None]) -> None:
        self.run, self.failed, self.event = run, failed, event
        self._waiting: dict[str, deque[bytes]] = {}  # lines that are not written yet, by file
        self._lost: dict[str, int] = {}  # lines for which there was no room
        self._failing: dict[str, tuple[int, float]] = {}  # what cannot be written -> attempts, and since when
        self._answer: Callable[[], None] | None = None  # that is not written yet

    def line(self, name: str, record: dict[str, Any]) -> None:
        """Adds ``record`` to the .jsonl file ``name``: now, or with a later line once it can be written again."""
        waiting = self._waiting.setdefault(name, deque())
        waiting.append(json.dumps(record).encode())
        if len(waiting) > LINES:
            waiting.popleft()
            self._lost[name] = self._lost.get(name, 0) + 1
        self.attempt(name, lambda: self._write_waiting(name))

    def answer(self, write: Callable[[], None]) -> None:
        """Writes an answer to another command: now, or when ``retry`` is called."""
        self._answer = write
        self.retry()

    def retry(self) -> None:
        """Tries the answer again that could not be written."""
        if self._answer is not None and self.attempt("control/answer.json", self._answer):
            self._answer = None

    def attempt(self, name: str, write: Callable[[], Any]) -> bool:
        """Whether ``write`` succeeded; an OSError is counted, and said at the first of a row of failures."""
        try:
            write()
        except OSError as error:
            self.failed["report"] += 1
            count, since = self._failing.get(name, (0, time.monotonic()))
            self._failing[name] = count + 1, since
            if not count:
                self.event(
                    f"{self.run.path / name} cannot be written ({error}; {free_words(self.run.path)}): the run goes on, up to {LINES:,} "
                    "lines of a file wait in memory and are written when that is possible again; free some space, or make it writable"
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

    def _write_waiting(self, name: str) -> None:
        waiting = self._waiting[name]
        while waiting:
            self.run.append_line(name, waiting[0])
            waiting.popleft()


def free_words(path: Path) -> str:
    """How much is free on the file system of ``path``."""
    try:
        return f"{size_words(shutil.disk_usage(path).free)} free there"
    except OSError as error:
        return f"its file system does not answer: {error}"


def size_words(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / 2**20:,.1f} MiB" if count >= 2**17 else f"{count / 2**10:,.0f} KiB"
