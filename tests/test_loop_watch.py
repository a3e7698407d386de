"""A driver whose loop is really blocked says where, with the stacks of all threads; one that starts, ends or just turns says nothing."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import live, start, train_words, wait_for

from algorithms.weights import Weights
from cluster.checks import spec_of
from cluster.config import make_preset, override
from cluster.run_dir import RunDirectory
from cluster.saving import Saved, look_at_disk
from cluster.session import Session

CONFIG = override(make_preset("softgac", "cpu"), {"env": "InvertedPendulum-v5", "evaluation.every_steps": "0"})
LIMIT_S = 0.4  # of a turn


class SlowFleet:
    """A fleet without parts: it takes its time to start and to end, and its turns take what ``turn`` takes."""

    def __init__(self, spec: Any, aggregator: Any, event: Any) -> None:
        self.spec, self.done, self.watch = spec, False, self
        self.turn = lambda: None

    def start(self) -> None:
        threading.Event().wait(3 * LIMIT_S)

    def advance(self, seconds: float, until: int) -> None:
        self.turn()

    def finish(self, limit_s: float | None = None) -> Saved:
        threading.Event().wait(3 * LIMIT_S)
        return look_at_disk(self.spec, "", {})

    def await_evaluations(self) -> None:
        threading.Event().wait(3 * LIMIT_S)

    def request_evaluation(self, episodes: int) -> None: ...

    def take_evaluations(self) -> list[Any]:
        return []

    def weights(self) -> Weights | None:
        return None

    def workers_in_words(self) -> str:
        return ""

    def check(self) -> None: ...

    def close(self) -> None: ...


def test_a_loop_that_is_blocked_is_found_and_said_once_with_all_stacks_and_nothing_else_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.session._make_fleet", SlowFleet)
    run, said, free = RunDirectory.create(tmp_path / "run", CONFIG), list[str](), threading.Event()

    def event(text: str) -> None:
        said.append(text)
        if "hangs" in text:
            free.set()

    def waits_for_a_lock_that_nobody_gives_back() -> None:
        assert free.wait(60), "nobody noticed"

    session = Session(run, spec_of(CONFIG, run), event=event)
    session._watch.limit_s = LIMIT_S
    with session:
        session.fleet.turn = lambda: threading.Event().wait(LIMIT_S / 4)  # type: ignore[attr-defined]
        for _ in range(12):
            session.advance()
        assert not said, "a start of three limits, and turns that come back"
        session.fleet.turn = waits_for_a_lock_that_nobody_gives_back  # type: ignore[attr-defined]
        session.advance()
        session.fleet.turn = lambda: None  # type: ignore[attr-defined]
        wait_for(lambda: session.advance() and len(said) > 1, "the end of it to be said")
        session.finish()
    hangs, again = (text for text in said if "the driver's loop" in text)
    assert f"a turn of it has taken more than {LIMIT_S:g} s" in hangs and f"in {run.dumps / 'driver.stacks'}" in hangs
    assert "waits_for_a_lock_that_nobody_gives_back (test_loop_watch.py:" in hangs, hangs
    stacks = (run.dumps / "driver.stacks").read_text()
    assert "waits_for_a_lock_that_nobody_gives_back" in stacks and "in advance" in stacks and "loop_watch.py" in stacks
    assert again.startswith("the driver's loop goes on again, after ")
    run.release()


DRIVER = f"""
import signal, sys, threading
from cluster import cli, loop_watch

loop_watch.LoopWatch.__init__.__defaults__ = ({5 * LIMIT_S},)

def stands_still(*_):
    threading.Event().wait({10 * LIMIT_S})

signal.signal(signal.SIGUSR1, stands_still)
sys.exit(cli.main(sys.argv[4:]))  # after the interpreter's own words
"""


@pytest.mark.cluster
def test_a_loop_on_ray_that_is_blocked_is_named_while_the_workers_go_on(tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    words = train_words(run, "InvertedPendulum-v5", "--backend", "ray", "--steps", "100000000", metrics__line_s=0.2)
    process = start(*words, log=log, before=[sys.executable, "-c", DRIVER])
    try:
        wait_for(lambda: live(run).get("env_steps", 0) > 200, "env steps", log=log)
        before = live(run)["env_steps"]
        process.send_signal(signal.SIGUSR1)
        wait_for(lambda: "WARNING: the driver's loop hangs" in log.read_text(), "the hanging loop to be named", log=log)
        wait_for(lambda: "the driver's loop goes on again" in log.read_text(), "the end of it", log=log)
        wait_for(lambda: live(run)["env_steps"] > before + 200, "env steps after it", log=log)
        process.terminate()
        assert process.wait(60) == 143, log.read_text()
    finally:
        process.kill()
    said = log.read_text()
    assert "stands_still (<string>:" in said and said.count("the driver's loop hangs") == 1, said
    assert "in stands_still" in (run / "dumps" / "driver.stacks").read_text()
