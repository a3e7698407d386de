"""curve.png while a run goes on: drawn by a process of its own.

A long run has 60 MiB of records. To read and to draw them takes seconds and more memory than the rest of a driver, which must
answer signals and look after the run's parts meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from cluster.own_code import search_path

FEW = 3  # evaluations
UNWRITABLE = 3  # exit code of a process that could not write
LAST_S = 5.0  # for the one that draws when the run ends


class BackgroundCurve:
    """Draws curve.png in run directory ``run_dir`` now and then, one at a time."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir, self._drawn = run_dir, 2 - FEW
        self._process: subprocess.Popen[str] | None = None

    def follow(self, evaluations: int) -> None:
        """Draws once there are two evaluations, and after every FEW more."""
        if evaluations >= self._drawn + FEW:
            self._drawn = evaluations
            with contextlib.suppress(OSError):  # no process can be started now: drawn with the next ones
                self.begin()

    def begin(self) -> None:
        """Draws what there is now, unless the picture before it is not done."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "cluster.pictures.curve", str(self.run_dir)],  # -P: whatever lies where it is started
                env={**os.environ, **search_path()},
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )  # fmt: skip

    @property
    def ended(self) -> bool:
        """Whether ``take`` tells what became of a picture."""
        return self._process is not None and self._process.poll() is not None

    def take(self) -> None:
        """Once it has ended: raises OSError when it could not be written, RuntimeError when it could not be drawn."""
        assert self._process is not None
        (words, _), code, self._process = self._process.communicate(), self._process.returncode, None
        if code == UNWRITABLE:
            raise OSError(words.strip())
        if code:
            raise RuntimeError(words.strip() or f"the process that drew it ended with {code}")

    def close(self) -> None:
        """Lets the last one end, or ends it."""
        if self._process is None:
            return
        try:
            self._process.communicate(timeout=LAST_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            (self.run_dir / f".curve.png.{self._process.pid}").unlink(missing_ok=True)
        self._process = None
