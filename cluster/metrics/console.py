"""What a person sees while a run goes on: a live view on a terminal, plain lines everywhere else."""

from __future__ import annotations

import atexit
import collections
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console as Terminal
from rich.live import Live
from rich.text import Text

from cluster.errors import without_control
from cluster.metrics.catalogue import by_reason, restarts
from cluster.metrics.view import View, gathers
from cluster.metrics.wording import clock, count, in_words, number

__all__ = ["Console", "in_words"]

REFRESH_PER_S = 2.0


class Console:
    """Shows a run's metrics lines, events and summary on ``stream``.

    On a terminal: a panel that is redrawn in place, with the events scrolling by above it. Where ``stream`` is no
    terminal, TERM is dumb or CI is set: plain ASCII lines without control characters, one metrics line at most every
    ``plain_every_s`` seconds. A stream that goes away (a closed pipe, a hung-up terminal) ends the showing, never the
    run: ``lost`` then says why.

    Args:
        total_steps: the run's length in ``unit``.
        unit: env_steps or updates.
        before_s: how long the run has been going in earlier starts, s.
        stream: where to write; None for sys.stdout.
        title: the run in a few words, "SoftGAC on HalfCheetah-v5, seed 0".
        plain_every_s: least time between two plain metrics lines, s.
        live: True or False to choose the kind of output; None decides from ``stream`` and the environment.
    """

    def __init__(
        self,
        *,
        total_steps: int,
        stream: TextIO | None = None,
        title: str,
        unit: str = "env_steps",
        before_s: float = 0.0,
        plain_every_s: float = 5.0,
        live: bool | None = None,
    ) -> None:
        self.lost: str | None = None
        self._total_steps, self._unit, self._before_s = total_steps, unit, before_s
        self._stream = stream or sys.stdout
        self._title = title
        self._plain_every_s = plain_every_s
        self._line: dict[str, Any] = {}
        self._evaluations: collections.deque[tuple[float, float]] = collections.deque(maxlen=256)
        self._phase = ""
        self._learning_since: tuple[float, float] | None = (
            None  # time_s and progress of the first line with new updates
        )
        self._first_updates: float | None = None
        self._heard_at = time.monotonic()
        self._printed_at = -math.inf
        self._pending = False  # whether the newest line has not been printed
        self._live = self._start_live() if (_is_live(self._stream) if live is None else live) else None

    def update(self, line: Mapping[str, Any], phase: str = "") -> None:
        """Takes a metrics line (scalars; any key may be missing, its last value stays), and what a run in stages is at."""
        self._phase = phase
        self._line |= {key: value for key, value in line.items() if _showable(key, value)}
        self._heard_at = time.monotonic()
        self._note_evaluation()
        self._note_learning(line)
        self._pending = True
        if self._live is None and time.monotonic() - self._printed_at >= self._plain_every_s:
            self._print_line()

    def event(self, text: str) -> None:
        """Shows a line that stays: a worker was restarted, a checkpoint was written, a warning."""
        clean = without_control(text).rstrip().replace("\n", "\n           ")
        now_s = self._line.get("time_s", self._before_s) + time.monotonic() - self._heard_at  # a start has no lines yet
        self._write(f"[{clock(now_s)}] {clean}")

    def close(self, summary: Mapping[str, Any] | None = None) -> None:
        """Ends the showing; prints the last figures and ``summary`` (summary.json) in words."""
        if self._live is None and self._pending:
            self._print_line()
        self._stop_live()
        self._pending = False
        if summary:
            self._write(f"\n{in_words(summary)}")

    def __enter__(self) -> Console:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _note_evaluation(self) -> None:
        at, mean = self._line.get(f"eval_{self._unit}"), self._line.get("eval_return_mean")
        if at is None or mean is None:
            return
        if not self._evaluations or self._evaluations[-1][0] != at:
            self._evaluations.append((at, mean))

    def _note_learning(self, line: Mapping[str, Any]) -> None:
        """The run's pace is that of its learning: steps before the first update are faster by far."""
        updates = self._line.get("updates")
        if updates is None or "updates" not in line or self._learning_since is not None:
            return
        if self._first_updates is None:
            self._first_updates = updates
        if updates > self._first_updates:
            self._learning_since = self._line.get("time_s", 0.0), self._line.get(self._unit, 0)

    def _eta_s(self) -> float | None:
        """By the rate since the first update that was seen; None before."""
        if self._learning_since is None:
            return None
        since_s, done = self._learning_since
        now = self._line.get(self._unit, 0)
        seconds = self._line.get("time_s", 0.0) - since_s
        return (self._total_steps - now) * seconds / (now - done) if now > done and seconds > 0 else None

    # -- a terminal

    def _start_live(self) -> Live:
        terminal = _Terminal(file=self._stream, force_terminal=True, highlight=False)
        live = Live(console=terminal, get_renderable=self._view, refresh_per_second=REFRESH_PER_S, transient=False)
        live.start()
        atexit.register(live.stop)  # whatever ends the process, the cursor comes back
        return live

    def _stop_live(self) -> None:
        if self._live is None:
            return
        live, self._live = self._live, None
        atexit.unregister(live.stop)
        self._heard_at = time.monotonic()  # what stays on the screen must not end with "no news"
        self._guarded(live.stop)

    def _view(self) -> View:
        return View(
            title=self._title,
            line=dict(self._line),
            total_steps=self._total_steps,
            unit=self._unit,
            phase=self._phase,
            evaluations=tuple(self._evaluations),
            eta_s=self._eta_s(),
            silent_s=time.monotonic() - self._heard_at,
            ascii=not _speaks_unicode(self._stream),
        )

    # -- plain lines

    def _print_line(self) -> None:
        self._printed_at = time.monotonic()
        self._pending = False
        self._write(
            plain_line(
                self._line,
                self._total_steps,
                self._evaluations[-1] if self._evaluations else None,
                self._eta_s(),
                self._unit,
                self._phase,
            )
        )

    def _write(self, text: str) -> None:
        if self.lost is not None:
            return
        live = self._live
        if live is not None:
            self._guarded(lambda: live.console.print(Text(text)))
        else:
            self._guarded(lambda: print(_encodable(text, self._stream), file=self._stream, flush=True))

    def _guarded(self, act: Callable[[], object]) -> None:
        try:
            act()
        except (OSError, ValueError) as error:  # ValueError: the stream was closed
            self.lost = f"the output stream went away ({error}); the run goes on without being shown"


def plain_line(
    line: Mapping[str, Any],
    total_steps: int,
    evaluation: tuple[float, float] | None,
    eta_s: float | None,
    unit: str = "env_steps",
    phase: str = "",
) -> str:
    """One metrics line in ASCII: time, progress, stage, rates, ratio, return; faults only where there are any."""
    steps, noun = line.get(unit, 0), unit.removeprefix("env_")
    share = min(1.0, steps / max(1, total_steps))
    parts = [f"[{clock(line.get('time_s', 0.0))}] {100 * share:3.0f} %  {number(int(steps))} {noun}"]
    parts += [phase] if phase else []
    for key, noun in (("env_steps_per_s", "steps/s"), ("updates_per_s", "updates/s")):
        if key in line and (key != "env_steps_per_s" or gathers(line, unit)):
            parts.append(f"{number(float(line[key]))} {noun}")
    for key, noun in (("replay_ratio", "ratio"), ("return_mean", "return")):
        if key in line:
            parts.append(f"{noun} {number(float(line[key]))}")
    if "return_mean" not in line and "reward_mean" in line:
        parts.append(f"reward {number(float(line['reward_mean']))} a step")
    if evaluation is not None:
        parts.append(f"evaluation {number(float(evaluation[1]))} at {number(int(evaluation[0]))}")
        if "eval_normalised" in line:
            parts[-1] += f" (normalised {number(float(line['eval_normalised']))})"
    dropped = sum(by_reason(line, "rows_dropped_").values())
    if pending := int(line.get("workers_pending", 0)):
        parts.append(f"{number(pending)} of {number(int(line.get('workers', 0)) + pending)} workers are starting")
    faults = {f"{part} restart": n for part, n in restarts(line).items()} | {"dropped row": dropped}
    parts += [count(n, noun) for noun, n in faults.items() if n]
    if steps < total_steps:
        parts.append(f"ETA {clock(eta_s)}")
    return "  ".join(parts)


class _Terminal(Terminal):
    """A rich console that reports a broken pipe instead of ending the process."""

    def on_broken_pipe(self) -> None:
        raise


def _showable(key: str, value: Any) -> bool:
    """Numbers; losses even when they are not finite, for that is news."""
    return isinstance(value, (int, float)) and (math.isfinite(value) or key.startswith("loss_"))


def _is_live(stream: TextIO) -> bool:
    if os.environ.get("TERM", "dumb") == "dumb" or os.environ.get("CI", "").lower() not in ("", "0", "false"):
        return False
    return stream.isatty()


def _speaks_unicode(stream: TextIO) -> bool:
    return (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "").startswith("utf")


def _encodable(text: str, stream: TextIO) -> str:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)
