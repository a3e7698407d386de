"""A run's directory: who holds it, and who may look at it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tiny_runs import lines, live, start, train_inline, train_words, wait_for

import cluster.run_dir
from cluster.checks import spec_of, uneven_shards
from cluster.commands.listing import table_of
from cluster.commands.status import status, status_in_words
from cluster.config import make_preset, override
from cluster.errors import RunError, UsageError
from cluster.history import read_run
from cluster.metrics.event_file import EventFile
from cluster.metrics.thinning import thin_out
from cluster.own_code import twice_words
from cluster.pictures.background import BackgroundCurve
from cluster.run_dir import RunDirectory
from cluster.session import Session
from cluster.signals import Signals

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


def test_status_says_what_a_start_is_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory.create(tmp_path / "run", CONFIG)
    session = Session(run, spec_of(CONFIG, run))
    seen: list[str] = []

    def start() -> None:
        session.fleet.event("1 of 2 replay shards up")
        seen.append(status_in_words(status(run.path)))
        session.fleet.close()
        raise RunError("no more is needed")

    monkeypatch.setattr(session.fleet, "start", start)
    with pytest.raises(RunError, match="no more is needed"), session:
        pass
    assert "starting (process" in seen[0] and "  now        1 of 2 replay shards up" in seen[0]
    assert "  now " not in status_in_words(status(run.path))
    run.release()


def test_status_names_restarts_and_dropped_rows_that_there_are_and_no_others(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", CONFIG)
    aggregator = Session(run, spec_of(CONFIG, run)).aggregator
    run.write_live(aggregator.line(), "running")
    words = status_in_words(status(run.path))
    assert "\n  restarts" not in words and "\n  dropped" not in words
    for part, reason in (("worker", "died"), ("worker", "hung"), ("store", "died"), ("evaluator", "raised")):
        aggregator.count_restart(part, reason, "")  # type: ignore[arg-type]
    aggregator.ledger.resume_from({"worker_lost": 1_200, "restart": 34, "stopped": 0})
    run.write_live(aggregator.line(), "running")
    words = status_in_words(status(run.path))
    assert "\n  restarts   worker 2, store 1, evaluator 1\n" in words
    assert "\n  dropped    1,234 rows: worker_lost 1,200, restart 34" in words
    run.release()


def test_status_says_what_plans_ask_for_predict_and_reach_while_they_are_made(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", make_preset("gac", "cpu"))
    made = {"env_steps": 10, "plan_target_mean": 222.07, "plan_predicted_mean": 219.38}
    for line, end in ((made | {"return_mean": 190.0}, ", episodes reach 190.0\n"), (made, "\n")):
        run.write_live(line, "running")
        words = status_in_words(status(run.path)) + "\n"
        assert f"\n  plans      ask for 222.1, predict 219.4{end}" in words
    run.write_live({"env_steps": 10}, "running")
    assert "\n  plans" not in status_in_words(status(run.path))
    run.release()


def test_status_of_a_stopped_process_says_how_old_its_figures_are_until_it_goes_on(tmp_path: Path) -> None:
    settings = {"metrics__line_s": 0.5, "evaluation__every_steps": 0}
    words = train_words(tmp_path / "run", "Pendulum-v1", "--backend", "inline", "--steps", "100000000", **settings)
    process = start(*words, log=tmp_path / "log")
    try:
        wait_for(lambda: live(tmp_path / "run").get("env_steps", 0) > 100, "steps", log=tmp_path / "log")
        found = status(tmp_path / "run")
        assert not found["silent"] and "silent" not in status_in_words(found)
        process.send_signal(signal.SIGSTOP)
        found = wait_for(lambda: (seen := status(tmp_path / "run"))["silent"] and seen, "it to count as silent")
        print(f"silent for {found['silent_s']} s when it was said")
        assert 6.5 < found["silent_s"] < 12
        said = status_in_words(found).splitlines()
        assert said[0].endswith(f"running (process {process.pid})")
        assert re.match(r"  silent     these figures are \d+ s old, and one record is due every 0\.5 s", said[1])
        assert f"process {process.pid} was stopped or hangs, or it cannot write there (" in said[1]
        assert "  running, silent  " in table_of(tmp_path)[1]
        process.send_signal(signal.SIGCONT)
        wait_for(lambda: not status(tmp_path / "run")["silent"], "it to go on", log=tmp_path / "log")
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait(30)


def test_a_run_whose_directory_vanishes_ends_with_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, beat = tmp_path / "run", Session.advance

    def vanish(session: Session) -> bool:
        shutil.rmtree(path, ignore_errors=True)
        return beat(session)

    monkeypatch.setattr(Session, "advance", vanish)
    assert train_inline(path, "Pendulum-v1", 1_000_000, metrics__line_s=0.01) == 1
    result = capsys.readouterr().err
    assert f"run directory {path} is gone" in result and "Traceback" not in result and not path.exists()


def test_the_curve_is_drawn_every_few_evaluations_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def draw(*_: Any) -> None:
        seen.append(len(lines(tmp_path / "run" / "evaluations.jsonl")))

    monkeypatch.setattr("cluster.pictures.curve.draw_curve", draw)
    monkeypatch.setattr("cluster.pictures.background.BackgroundCurve.begin", draw)
    assert train_inline(tmp_path / "run", "Pendulum-v1", 400, evaluation__every_steps=80) == 0
    made = len(lines(tmp_path / "run" / "evaluations.jsonl"))
    assert made >= 6 and seen == [*range(2, made, 3), made]


def test_a_curve_is_drawn_beside_the_run_and_says_why_it_was_not(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train_inline(run, "Pendulum-v1", 128) == 0
    (run / "curve.png").unlink()
    curve = BackgroundCurve(run)

    def drawn() -> None:
        curve.begin()
        curve.begin()  # one at a time
        wait_for(lambda: curve.ended, "the picture")
        curve.take()
        assert not curve.ended

    drawn()
    assert (run / "curve.png").stat().st_size > 1_000
    (run / "curve.png").unlink()
    (run / "curve.png").mkdir()
    with pytest.raises(OSError, match="directory"):
        drawn()
    (run / "curve.png").rmdir()
    shutil.move(run, tmp_path / "elsewhere")
    with pytest.raises(RuntimeError, match=r"NotARun: .* is nothing, expected a run directory"):
        drawn()
    shutil.move(tmp_path / "elsewhere", run)
    curve.begin()
    curve.close()
    assert (run / "curve.png").exists() and not list(run.glob(".curve*"))


def test_a_full_disk_does_not_hide_what_ended_a_run_nor_keep_its_fleet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory.create(tmp_path / "run", CONFIG)
    result: list[str] = []
    session = Session(run, spec_of(CONFIG, run), event=result.append)
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
    assert closed == [True] and "No space left" in result[-1]
    run.release()


def test_metrics_records_never_take_more_room_than_that_and_those_that_stay_are_whole_and_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.run_dir, "MOST_BYTES", 4_000)
    run = RunDirectory.create(tmp_path / "run", CONFIG)
    for step in range(1_000):
        line = {"env_steps": step, "updates": step, "time_s": step / 2, "env_s": 0.25} | (
            {"episodes": 1} if step % 3 else {}
        )
        run.append("metrics.jsonl", line)
        assert (run.path / "metrics.jsonl").stat().st_size <= 4_000
    run.release()
    records = read_run(run.path).metrics
    kept = [int(line["env_steps"]) for line in records]
    assert kept[0] == 0 and kept[-20:] == list(range(980, 1_000)) and kept == sorted(set(kept)) and len(kept) > 25
    assert sum(line.get("episodes", 0) for line in records) == sum(step % 3 > 0 for step in range(1_000))
    assert sum(line["env_s"] for line in records) == 250.0, "what the records that went had counted"


def test_a_damaged_record_keeps_no_other_from_being_thinned_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"env_s": 1}\n{"env_s": 2}\n{"env_\n[3]\n{"env_s": 4}\n' + '{"env_s": 8}\n' * 5)
    thin_out(path)
    assert path.read_text() == '{"env_s": 1}\n{"env_\n{"env_s": 4}\n' + '{"env_s": 8}\n' * 5


def test_events_are_no_closer_together_than_tensorboard_can_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 2 * 86_400, 2))
    monkeypatch.setattr("cluster.metrics.event_file.time.monotonic", lambda: float(next(clock)))
    events = EventFile(tmp_path, "env_steps")
    for step in range(20_000):  # 11 hours, a record every 2 s
        events.write({"env_steps": step, "loss_actor": 1.0})
    (path,) = tmp_path.iterdir()
    written = sum(bool(event.summary.value) for event in EventFileLoader(str(path)).Load())
    assert 1_000 < written < 5_000


def test_an_uneven_number_of_workers_is_said_with_what_it_costs() -> None:
    assert uneven_shards(4, 2) == uneven_shards(0, 2) == uneven_shards(7, 1) == ""
    result = uneven_shards(5, 2)
    assert "3 write to each of 1 of them and 2 to each of the others" in result and "25% longer" in result
    assert "use 4 or 6 workers" in result


def test_what_is_proposed_for_a_directory_that_is_taken_works(tmp_path: Path) -> None:
    config = override(CONFIG, {"env": "mine:Mine-v0"})
    (tmp_path / "file").touch()
    for name, env in (("one", "mine:Mine-v0"), ("seeds/seed-1", "mine:Mine-v0"), ("other", "Pendulum-v1")):
        run = RunDirectory(tmp_path / name)
        run.path.mkdir(parents=True)
        run.write_config(override(config, {"env": env}))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").touch()
    for name, proposed in (
        ("one", f"`drawbridge resume {tmp_path}/one --env mine:Mine-v0`, or choose another --run-dir"),
        ("seeds", f"`drawbridge resume {tmp_path}/seeds --env mine:Mine-v0`, or choose another --run-dir"),
        ("other", f"`drawbridge resume {tmp_path}/other`, or choose another --run-dir"),
        ("thesis", "nothing in it was touched; choose another --run-dir"),
        ("file", "is a file, expected a new directory; it was not touched; choose another --run-dir"),
    ):
        with pytest.raises(UsageError) as refused:
            RunDirectory.create(tmp_path / name, config)
        assert str(refused.value).endswith(proposed)


def test_a_second_ctrl_c_says_how_to_go_on_with_this_run(tmp_path: Path) -> None:
    words = f"status {tmp_path}` and go on with `drawbridge resume {tmp_path} --env m:I-v0`"
    with (
        pytest.raises(KeyboardInterrupt, match=words),
        Signals(twice_words(tmp_path, override(CONFIG, {"env": "m:I-v0"}))),
    ):
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
