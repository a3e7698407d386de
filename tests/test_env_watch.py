"""A call of an environment that hangs in an inline run is named, with all stacks, and ends within a bounded time: by itself, by a signal."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import pytest
from tiny_runs import command, read, start, train_inline, train_words, wait_for

from cluster.cli import main
from cluster.commands.status import status
from cluster.signals import Signals

DRIVER = """
import sys
from cluster import cli, env_watch

env_watch.ASKED_S = 1.5
sys.exit(cli.main(sys.argv[4:]))  # after the interpreter's own words
"""


def train(run: Path, env: str, *flags: str, log: Path, **settings: object) -> object:
    words = train_words(run, f"broken_envs:{env}", "--backend", "inline", "--steps", "2000", *flags, **settings)
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    return start(
        *words,
        log=log,
        env={"PYTHONPATH": paths, "FAULT_SWITCH": str(run.parent / "hangs")},
        before=[sys.executable, "-c", DRIVER],
    )


@pytest.mark.parametrize("env", ["Hangs-v0", "HangsForGood-v0"])
def test_a_step_that_hangs_ends_the_run_at_its_deadline_with_the_cause(tmp_path: Path, env: str) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    process = train(run, env, log=log, worker__step_timeout_s=2, evaluation__every_steps=0)
    try:
        assert process.wait(60) == 1, log.read_text()
    finally:
        process.kill()
    said = log.read_text()
    assert f"WARNING: step() of broken_envs:{env} has not returned for 1 s: the run stands still" in said, said
    assert "after 2 s (worker.step_timeout_s) it is given up" in said and "go_wrong (broken_envs.py:" in said
    assert "in go_wrong" in (run / "dumps" / "driver.stacks").read_text()
    error = read(run / "failure.json")["error"]
    assert f"step() of broken_envs:{env} has not returned for" in error and "(worker.step_timeout_s)" in error
    assert "nothing of it is on disk" in error and f"go on with `drawbridge resume {run}" in error
    assert said.strip().splitlines()[-1] == f"drawbridge: error: {error}"
    assert status(run)["state"] == "failed"


@pytest.mark.parametrize("env", ["Hangs-v0", "HangsForGood-v0"])
@pytest.mark.parametrize("sender", ["SIGTERM", "`drawbridge stop`"])
def test_a_signal_or_a_stop_during_a_step_that_hangs_ends_the_run_and_says_what_is_saved(
    tmp_path: Path, env: str, sender: str
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    process = train(run, env, log=log, worker__step_timeout_s=600, learner__checkpoint_s=0.01)
    try:
        wait_for((tmp_path / "hangs").exists, "the step that hangs", log=log)
        if sender == "SIGTERM":
            process.terminate()
        else:
            stopped = command("stop", str(run), "--timeout", "40")
            assert stopped.returncode == 1 and "so nothing was saved now" in stopped.stderr, stopped.stderr
        assert process.wait(30) == 143, log.read_text()
    finally:
        process.kill()
    last = log.read_text().strip().splitlines()[-1]
    assert (
        last.startswith(f"drawbridge: ended by {sender} at ") and "so nothing was saved now; on disk: the check" in last
    )
    assert last.endswith(read(run / "failure.json")["error"])
    assert status(run)["state"] == "interrupted"


def test_an_evaluation_that_hangs_is_abandoned_and_the_run_completes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    settings = {"evaluation__timeout_s": 1, "evaluation__every_steps": 0}
    assert train_inline(run, "broken_envs:HangsInEvaluations-v0", 160, **settings) == 0
    said = capsys.readouterr().out
    assert "an evaluation failed: reset() of broken_envs:HangsInEvaluations-v0 in an evaluation has not ret" in said
    assert "(evaluation.timeout_s)" in said and read(run / "summary.json")["exit"] == "completed"
    assert main(["resume", str(run), "--steps", "200", "--env", "broken_envs:HangsInEvaluations-v0"]) == 0


def test_an_environment_that_ends_the_process_is_named(tmp_path: Path) -> None:
    run, words = (
        tmp_path / "run",
        "expected broken_envs:Dies-v0 to return or to raise: it called os._exit or its native code",
    )
    paths = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
    }
    checked = command("check-env", "broken_envs:Dies-v0", env=paths)
    assert checked.returncode == 9 and words in checked.stderr, checked.stderr
    trained = command(*train_words(run, "broken_envs:Dies-v0", "--backend", "inline", "--steps", "2000"), env=paths)
    either = (
        "expected a summary: it was killed, as a machine does that runs out of memory, or broken_envs:Dies-v0 called"
    )
    assert trained.returncode == 9 and either in trained.stderr and f"drawbridge resume {run}" in trained.stderr
    assert status(run)["state"] == "lost"
    healthy = command("check-env", "broken_envs:Walk-v0", env=paths)
    assert healthy.returncode == 0 and not healthy.stderr, healthy.stderr


def test_a_signal_is_noticed_and_a_call_is_made_in_the_main_thread_while_it_waits() -> None:
    woken, seen = threading.Event(), []

    def other() -> None:
        seen.append(signals.noticed())
        signals.interrupt(woken.set)

    before = signal.getsignal(signal.SIGURG)
    with Signals() as signals:
        assert signals.noticed() is None
        signal.raise_signal(signal.SIGTERM)
        thread = threading.Thread(target=other)
        thread.start()
        assert woken.wait(30)
        thread.join()
    assert seen == [signal.SIGTERM] and signal.getsignal(signal.SIGURG) == before
    assert not signals.interrupt(woken.set), "left, it takes no signals"
