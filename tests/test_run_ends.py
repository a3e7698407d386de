"""However a run ends, its directory has the curve of what it learned, and says in plain text why it ended."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from broken_envs import Walk
from tiny_runs import lines, live, read, start, train_inline, train_words, wait_for

from cluster.cli import main
from cluster.commands.status import status, status_in_words
from cluster.history import read_run
from cluster.pictures.report import write_report


class Ends(Walk):
    """After 96 steps of an environment something happens to the run."""

    happens: Callable[[], Any]

    def go_wrong(self) -> None:
        Ends.happens()


def in_colour() -> None:
    raise RuntimeError("\x1b[31mthe simulator\x1b[0m lost its licence")


gym.register("run-ends/Ends-v0", Ends, max_episode_steps=50)


@pytest.mark.parametrize(
    ("happens", "code", "outcome"),
    [(in_colour, 1, "failure.json"), (lambda: os.kill(os.getpid(), signal.SIGTERM), 143, "summary.json")],
    ids=["failure", "SIGTERM"],
)
def test_a_run_that_ends_early_has_its_curve_and_plain_words(
    tmp_path: Path, happens: Callable[[], Any], code: int, outcome: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Ends.happens, run = happens, tmp_path / "run"
    assert train_inline(run, "run-ends/Ends-v0", 20_000, "--workers", "1", "--envs-per-worker", "1") == code
    assert (run / "curve.png").stat().st_size > 1_000 and (run / outcome).exists()
    result = capsys.readouterr()
    if outcome == "failure.json":
        failure = read(run / "failure.json")
        assert (
            "(the simulator lost its licence), expected" in failure["error"]
            and "\x1b" not in failure["traceback"] + result.err
        )
    else:
        assert "error" not in result.err.splitlines()[-1] and not (run / "failure.json").exists(), result.err
        assert result.err.splitlines()[-1] == f"drawbridge: {read(run / outcome)['why']}"
    state, how = ("failed", "failed") if code == 1 else ("interrupted", "ended ")
    assert main(["list", str(run)]) == 0 and f"  {state}  " in capsys.readouterr().out.splitlines()[1]
    assert main(["status", str(run)]) == 0
    words = capsys.readouterr().out
    assert words.splitlines()[0].endswith(state) and f"\n  {how}" in words
    assert read_run(run).state == state
    write_report([run], tmp_path / "report.html")
    assert ("run failed:</b>" in (tmp_path / "report.html").read_text()) == (code == 1)


def test_a_start_that_is_interrupted_says_what_is_kept_and_gives_one_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, again = tmp_path / "run", ["resume", str(tmp_path / "run"), "--steps", "256"]

    def said(new: bool) -> str:
        """By the command, and by ``status`` after it: the same."""
        with monkeypatch.context() as patch:
            patch.setattr("cluster.inline.make_evaluator", lambda *_: os.kill(os.getpid(), signal.SIGINT))
            assert (train_inline(run, "InvertedPendulum-v5", 128) if new else main(again)) == 130
        last = capsys.readouterr().err.splitlines()[-1].removeprefix("drawbridge: ")
        assert main(["status", str(run)]) == 0
        words = capsys.readouterr().out
        assert f"  ended      {last}" in words and words.count("drawbridge resume") == 1, words
        assert "same command" not in words
        return last

    new = said(new=True)
    assert "had not begun to learn" in new and new.endswith(f"start it with `drawbridge resume {run}`")
    assert main(["resume", str(run)]) == 0 and live(run)["env_steps"] == 128
    resumed = said(new=False)
    assert "this resume had not begun, what the run has learned is kept" in resumed and "it had not" not in resumed
    assert main(["resume", str(run)]) == 0 and live(run)["env_steps"] == 256


def test_a_run_that_is_killed_while_a_stop_waits_for_it_is_called_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    process = start(*train_words(run, "InvertedPendulum-v5", "--backend", "inline", "--steps", "1000000"), log=log)
    try:
        wait_for(lambda: live(run).get("env_steps", 0) > 0, "env steps", log=log)
        process.send_signal(signal.SIGSTOP)
        kill = threading.Timer(1.0, process.kill)
        kill.start()
        assert main(["stop", str(run)]) == 1
        kill.join()
    finally:
        process.kill()
        process.wait(30)
    said = capsys.readouterr().err
    assert f"{run} ended without a word" in said and f"drawbridge resume {run}" in said and "damaged" not in said
    assert main(["status", str(run)]) == 0
    words = capsys.readouterr().out
    assert "\n  lost       its process is gone; these are its last figures, " in words and "/s" not in words, words
    assert "workers" not in words
    assert main(["resume", str(run), "--steps", str(live(run)["env_steps"] + 128)]) == 0


def test_a_run_whose_directory_vanishes_ends_with_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    Ends.happens = lambda: shutil.rmtree(run, ignore_errors=True)
    assert train_inline(run, "run-ends/Ends-v0", 20_000, "--workers", "1", metrics__line_s=0) == 1
    result = capsys.readouterr().err
    assert (
        f"run directory {run} is gone, expected it to stay until the run's end" in result and "Traceback" not in result
    )
    assert not run.exists()


@pytest.mark.parametrize("backend", ["inline", pytest.param("ray", marks=pytest.mark.cluster)])
def test_records_go_on_while_the_last_evaluation_runs_and_name_it(backend: str, tmp_path: Path) -> None:
    run, settings = (
        tmp_path / "run",
        {"evaluation__every_steps": 0, "evaluation__final_episodes": 1, "metrics__line_s": 0.2},
    )
    words = train_words(run, "broken_envs:Slow-v0", "--backend", backend, "--steps", "80", "--workers", "1", **settings)
    process = start(*words, log=tmp_path / "log")
    try:
        waits = "waits for the last evaluation, at most 600 s (evaluation.timeout_s)"
        wait_for(lambda: live(run).get("phase") == waits, "the evaluation to be named", log=tmp_path / "log")
        assert f"  now        {waits}" in status_in_words(status(run))
        assert process.wait(120) == 0, (tmp_path / "log").read_text()
    finally:
        process.kill()
    assert not live(run)["phase"]
    (evaluation,) = lines(run / "evaluations.jsonl")
    began_s = evaluation["time_s"] - evaluation["wall_s"]
    meanwhile = [line for line in lines(run / "metrics.jsonl") if began_s < line["time_s"] < evaluation["time_s"]]
    assert evaluation["wall_s"] > 2 and len(meanwhile) >= 5, (evaluation["wall_s"], len(meanwhile))


def test_a_run_too_short_for_an_update_says_so_at_its_start_and_in_its_summary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_inline(tmp_path / "short", "Pendulum-v1", 40) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "WARNING: the run makes 40 env steps and its first update follows 64 (replay.min_size_rows)" in said
    assert "It trained nothing: the first update follows 64 env steps (replay.min_size_rows); give --steps more" in said
    assert train_inline(tmp_path / "longer", "Pendulum-v1", 72) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "WARNING: the run makes" not in said and "trained nothing" not in said
    assert "updates for each env step after the first 64. Its time went" in said
