"""A run's directory: who holds it, and who may look at it."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from cluster.checks import spec_of
from cluster.config import make_preset, override
from cluster.errors import RunError, UsageError
from cluster.run_dir import RunDirectory
from cluster.session import Session

CONFIG = override(make_preset("softgac", "cpu"), {"env": "InvertedPendulum-v5", "backend": "inline"})


def test_a_run_is_alive_while_it_is_held_and_for_everybody_who_may_read(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", CONFIG)
    (run.path / "run.lock").chmod(0o444)
    assert RunDirectory(run.path).owner() == os.getpid()
    with pytest.raises(UsageError, match="belongs to a living run"):
        RunDirectory(run.path).hold()
    run.release()
    assert RunDirectory(run.path).owner() is None


def test_commands_that_only_look_never_keep_a_run_from_starting(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path / "run", CONFIG).release()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            RunDirectory(tmp_path / "run").owner()

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        for _ in range(200):
            run = RunDirectory(tmp_path / "run")
            run.hold()
            run.release()
    finally:
        done.set()
        watcher.join(10)


def test_a_full_disk_does_not_hide_what_ended_a_run_nor_keep_its_fleet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory.create(tmp_path / "run", CONFIG)
    told: list[str] = []
    session = Session(run, spec_of(CONFIG, run), event=told.append)
    closed: list[bool] = []
    monkeypatch.setattr(session.fleet, "close", lambda: closed.append(True))

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run, "write_failure", full)
    with pytest.raises(RunError, match="the root cause"):
        try:
            raise RunError("the root cause")
        except RunError as error:
            session.__exit__(type(error), error, error.__traceback__)
            raise
    assert closed == [True] and "No space left" in told[-1]
    run.release()
