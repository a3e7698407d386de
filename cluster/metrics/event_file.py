"""TensorBoard events, written by the caller itself: SummaryWriter's thread dies at the first failed write, and the next call raises."""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from replay.manifest import append_whole

POINTS = 1000  # that TensorBoard keeps of a curve: events are no closer together than a run's time over this
GROUPED = ("loss_", "learner_", "eval_", "rows_", "alarm_")


class EventFile:
    """One file of events in ``directory``, made by the first write.

    Args:
        unit: key of a metrics line that is the step of its values.
    """

    def __init__(self, directory: Path, unit: str) -> None:
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        self._path, self._unit = directory / name, unit
        self._began = self._last = time.monotonic()

    def write(self, line: Mapping[str, Any]) -> None:
        """Adds the numbers of a metrics line, unless the last ones are so recent that TensorBoard would show no difference.

        Raises:
            OSError: nothing of it was written, as far as it can be taken back.
        """
        now = time.monotonic()
        if now - self._last < (now - self._began) / POINTS:
            return
        values = [
            Summary.Value(tag=_tag(name), simple_value=float(value))
            for name, value in line.items()
            if name not in (self._unit, "time_s") and isinstance(value, (int, float))
        ]
        event = Event(wall_time=time.time(), step=int(line.get(self._unit, 0)), summary=Summary(value=values))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        first = Event(wall_time=time.time(), file_version="brain.Event:2")
        append_whole(self._path, lambda last: (b"" if last else _record(first)) + _record(event))
        self._last = now


def _record(event: Event) -> bytes:
    buffer = io.BytesIO()
    RecordWriter(buffer).write(event.SerializeToString())
    return buffer.getvalue()


def _tag(name: str) -> str:
    return name.replace("_", "/", 1) if name.startswith(GROUPED) else name
