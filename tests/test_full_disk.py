"""Runs on a real file system that fills up: they go on, count and say it, and end by one rule where it stays full."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray_runs import RayRun, ray_run
from small_disk import FaultyFolder, SmallDisk, read_only, small_disk
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tiny_runs import command, lines, live, read, start, train_inline, train_words, wait_for

from cluster.cli import main
from cluster.config import make_preset
from cluster.graph import RunSpec
from cluster.metrics.aggregator import MetricsAggregator
from cluster.reports import LINES, Reports
from cluster.run_dir import RESERVE_BYTES, RunDirectory
from cluster.saving import CHECKPOINTS_FAILED, SaveWatch, timed

PENDULUM = "InvertedPendulum-v5"
GRACE_S = 25.0  # between SIGTERM and a scheduler's SIGKILL


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk") as mounted:
        yield mounted


def scraped(port: int) -> dict[str, float]:
    """What the run's endpoint says: env steps, updates, age of the newest snapshot, and failed writes by what failed."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        samples = [line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if not line.startswith("#")]
    found = {name.split('what="')[1].split('"')[0]: float(value) for name, value in samples if "failed_writes" in name}
    found["snapshot_age_s"] = float(
        next(value for name, value in samples if "save_age_seconds" in name and "snapshot" in name)
    )
    for count in ("env_steps", "updates"):
        found[count] = float(next(value for name, value in samples if f"drawbridge_{count}_total" in name))
    return found


def balanced(rows: dict[str, Any]) -> bool:
    return bool(rows["recorded"] == rows["stored"] + sum(rows["dropped"].values()))


def test_an_inline_run_goes_on_while_its_disk_is_full_counts_it_and_completes(disk: SmallDisk, tmp_path: Path) -> None:
    run, log = disk.path / "run", tmp_path / "log"
    often = {"metrics__line_s": 0.2, "metrics__port": 0, "metrics__tensorboard": "true", "learner__checkpoint_s": 2}
    words = train_words(
        run, PENDULUM, "--backend", "inline", "--steps", "100000000", evaluation__every_steps=0, **often
    )
    process = start(*words, log=log)
    try:
        wait_for(lambda: live(run).get("written_checkpoints", 0) > 0, "a checkpoint", log=log)
        port = live(run)["metrics_port"]
        seen = scraped(port)
        assert seen["checkpoint"] == seen["snapshot"] == seen["report"] == 0

        def failing() -> bool:
            seen = scraped(port)
            return seen["checkpoint"] >= 1 and seen["snapshot"] >= 1 and seen["report"] >= 3

        wait_for(disk.kept_full(failing), "failed writes of every kind", log=log)
        steps = scraped(port)["env_steps"]
        wait_for(disk.kept_full(lambda: scraped(port)["env_steps"] > steps), "env steps on a full disk", log=log)
        result = log.read_text()
        for part in (
            f"{run}/live.json cannot be written ([Errno 28] No space left on device",
            f"{run}/metrics.jsonl cannot be written",
            f"{run}/events cannot be written",
            f"the checkpoint could not be written to {run}/checkpoints (OSError: [Errno 28] No space left on device",
            f"the snapshot of shard 0 could not be written to {run}/replay/shard-0",
            "free there, the last one takes ",
        ):
            assert part in result, (part, result)
        assert result.count("live.json cannot be written") == 1
        disk.free()
        wait_for(lambda: "the checkpoint is written again" in log.read_text(), "a checkpoint", log=log)
        wait_for(lambda: live(run).get("failed_reports", 0) >= 3, "live.json", log=log)
        for part in ("metrics.jsonl is written again, after ", "the snapshot of shard 0 is written again"):
            assert part in log.read_text()
        process.terminate()
        assert process.wait(60) == 143, log.read_text()
    finally:
        process.kill()
    assert "Traceback" not in log.read_text() and "saved: the checkpoint" in log.read_text().splitlines()[-1]
    kept = lines(run / "metrics.jsonl")  # every line is JSON
    assert [line["time_s"] for line in kept] == sorted(line["time_s"] for line in kept)
    assert [line for line in kept if 0 < line["failed_reports"] < kept[-1]["failed_reports"]], "lines of the full disk"
    (events,) = (run / "events").iterdir()
    assert len(list(EventFileLoader(str(events)).Load())) > 10  # raises for a torn record
    resumed = command("resume", str(run), "--steps", str(kept[-1]["env_steps"] + 200))
    assert resumed.returncode == 0, resumed.stderr
    assert balanced(read(run / "summary.json")["rows"]) and lines(run / "metrics.jsonl")[-1]["failed_reports"] >= 3


def test_a_run_whose_disk_stays_full_ends_by_the_rule_with_a_clear_last_line_and_failure_json(
    disk: SmallDisk, tmp_path: Path
) -> None:
    run, log = disk.path / "run", tmp_path / "log"
    often = {"metrics__line_s": 0.2, "learner__checkpoint_s": 0.05, "evaluation__every_steps": 0}
    process = start(*train_words(run, PENDULUM, "--backend", "inline", "--steps", "100000000", **often), log=log)
    try:
        wait_for(lambda: any((run / "checkpoints").glob("checkpoint-*")), "a checkpoint", log=log)
        wait_for(disk.kept_full(lambda: process.poll() is not None), "the end", log=log)
    finally:
        process.kill()
    result = log.read_text()
    assert process.returncode == 1 and "Traceback" not in result, result
    last = result.strip().splitlines()[-1]
    for part in (
        f"drawbridge: error: {CHECKPOINTS_FAILED} checkpoints one after the other could not be written to {run}/checkpoints",
        "No space left on device",
        "MiB free there" if " MiB free there" in last else "KiB free there",
        "the last one takes ",
        "nothing that the run learns would last, so it ends",
        f"drawbridge resume {run}",
    ):
        assert part in last, last
    assert "WARNING: 3 one after the other: the checkpoint could not be written" in result
    assert f"{CHECKPOINTS_FAILED - 3} more end the run" in result
    failure = read(run / "failure.json")
    assert "checkpoints one after the other" in failure["error"] and "RunError" in failure["traceback"]
    assert not (run / "control" / "reserve").exists()  # it became failure.json
    status = command("status", str(run))
    assert ", failed" in status.stdout and status.returncode == 0
    disk.free()
    assert main(["resume", str(run), "--steps", str(live(run)["env_steps"] + 64)]) == 0
    assert (run / "control" / "reserve").stat().st_size == RESERVE_BYTES


def test_a_start_on_a_full_disk_is_refused_and_the_same_command_starts_once_there_is_room(
    disk: SmallDisk, capsys: pytest.CaptureFixture[str]
) -> None:
    disk.fill()
    assert train_inline(disk.path / "run", PENDULUM, 128) == 2
    result = capsys.readouterr().err
    for part in (
        f"run directory {disk.path / 'run'} cannot be written",
        "No space left",
        "nothing was started",
        "free some",
    ):
        assert part in result
    assert "Traceback" not in result
    disk.free()
    assert train_inline(disk.path / "run", PENDULUM, 128) == 0


def test_a_line_that_did_not_fit_is_taken_back_and_comes_whole_later(disk: SmallDisk) -> None:
    run, result = RunDirectory(disk.path), []
    reports = Reports(run, failed := {"report": 0}, result.append)
    reports.line("metrics.jsonl", {"first": 1})
    disk.fill()
    long = {"second": "x" * 100_000}
    reports.line("metrics.jsonl", long)
    reports.line("metrics.jsonl", {"third": 3})
    assert failed["report"] == 2 and len(result) == 1
    assert (run.path / "metrics.jsonl").read_text() == '{"first": 1}\n'
    disk.free()
    reports.line("metrics.jsonl", {"fourth": 4})
    assert lines(run.path / "metrics.jsonl") == [{"first": 1}, long, {"third": 3}, {"fourth": 4}]
    assert "written again, after 2 failed writes" in result[-1]


def test_a_disk_that_is_read_only_for_a_while_costs_no_line(disk: SmallDisk) -> None:
    run, result = RunDirectory(disk.path), []
    reports = Reports(run, failed := {"report": 0}, result.append)
    reports.line("metrics.jsonl", {"first": 1})
    disk.read_only(True)
    reports.line("metrics.jsonl", {"second": 2})
    assert not reports.write("live.json", lambda: run.write_live({}, "running"))
    assert timed(lambda: (disk.path / "new").write_bytes(b"x")).problem.endswith(
        f"Read-only file system: '{disk.path}/new'"
    )
    assert failed["report"] == 2 and "Read-only file system" in result[0]
    disk.read_only(False)
    reports.line("metrics.jsonl", {"third": 3})
    assert lines(run.path / "metrics.jsonl") == [{"first": 1}, {"second": 2}, {"third": 3}]


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.EDQUOT])
def test_whatever_error_the_storage_gives_a_save_that_fails_is_counted_and_the_next_one_is_complete(
    number: int, tmp_path: Path
) -> None:
    spec = RunSpec(config=make_preset("softgac", "cpu"), obs_dim=3, action_dim=1, run_dir=tmp_path)
    aggregator, result = MetricsAggregator(min_size_rows=64, replay_ratio=1.0), []

    def fails() -> int:
        raise OSError(number, os.strerror(number))

    watch = SaveWatch(spec, aggregator, result.append)
    watch.checkpoint(timed(fails))
    watch.snapshot(0, timed(fails))
    assert aggregator.failed == {"checkpoint": 1, "snapshot": 1, "report": 0}
    assert len(result) == 2 and all(os.strerror(number) in text for text in result)
    watch.checkpoint(timed(lambda: 7))
    assert aggregator.written["checkpoint"] == 1 and aggregator.line()["checkpoint_bytes"] == 7
    assert "the checkpoint is written again" in result[-1]


def test_lines_that_wait_are_bounded_and_those_lost_are_said(tmp_path: Path) -> None:
    run, result = RunDirectory(tmp_path / "gone"), []
    reports = Reports(run, failed := {"report": 0}, result.append)
    for number in range(LINES + 5):
        reports.line("metrics.jsonl", {"number": number})
    run.path.mkdir()
    reports.line("metrics.jsonl", {"number": -1})
    reports.flush(60.0)
    kept = [line["number"] for line in lines(run.path / "metrics.jsonl")]
    assert kept == [*range(6, LINES + 5), -1] and 0 < failed["report"] <= LINES + 5
    assert "6 of its lines are lost" in result[-1]


def test_a_write_that_hangs_keeps_nobody_waiting_is_said_once_and_loses_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.reports.LATE_S", 0.3)
    run, result = RunDirectory(tmp_path), []
    reports = Reports(run, failed := {"report": 0}, result.append)
    free, stuck = threading.Event(), threading.Event()

    def hangs() -> None:
        stuck.set()
        assert free.wait(60)

    assert not reports.write("live.json", hangs) and stuck.is_set()
    wait_for(lambda: reports.hangs_s > 0.3, "a write that hangs")
    began = time.monotonic()
    for number in range(100):
        reports.line("metrics.jsonl", {"number": number})
        assert not reports.write("live.json", lambda: run.write_live({"newest": True}, "running"))
    assert time.monotonic() - began < 1 and failed["report"] == 200, "whoever finds a write hanging does not wait"
    assert len(result) == 1 and f"WARNING: {tmp_path}/live.json has been under way" in result[0], result
    assert not (tmp_path / "metrics.jsonl").exists()
    reports.flush(0.01)
    assert "live.json, metrics.jsonl in " in result[1] and "could not be written within 0.002 s" in result[1], result
    free.set()
    reports.flush()
    assert read(tmp_path / "live.json")["newest"] is True
    assert [line["number"] for line in lines(tmp_path / "metrics.jsonl")] == [*range(100)]
    assert "what waited is written now" in result[2] and len(result) == 3, result
    assert reports.write("live.json", lambda: run.write_live({}, "running"))


def test_a_run_goes_on_and_ends_on_sigterm_with_a_checkpoint_while_its_live_json_hangs(tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    folder = FaultyFolder(run, tmp_path, run / ".live.json")
    often = {"metrics__line_s": 0.2, "metrics__port": 0, "evaluation__every_steps": 0, "learner__checkpoint_s": 3_600}
    words = train_words(run, PENDULUM, "--backend", "inline", "--steps", "100000000", **often)
    process = start(*words, log=log, env=folder.variables)
    try:
        wait_for(lambda: live(run).get("env_steps", 0) > 0, "env steps", log=log)
        port = live(run)["metrics_port"]
        with folder.stuck():
            wait_for(lambda: scraped(port)["report"] >= 2, "a live.json that hangs", log=log)
            steps = scraped(port)["env_steps"]
            wait_for(lambda: scraped(port)["env_steps"] > steps, "env steps meanwhile", log=log)
            began = time.monotonic()
            process.terminate()
            assert process.wait(60) == 143, log.read_text()
            end_s = time.monotonic() - began
    finally:
        process.kill()
    said = log.read_text()
    print(f"the run ended {end_s:.1f} s after SIGTERM")
    assert said.count("live.json has been under way to the disk for") == 1 and "Traceback" not in said, said
    assert "live.json" in said.split("WARNING: ")[2] and "could not be written within" in said, said
    assert "saved: the checkpoint of update" in said.splitlines()[-1] and end_s < GRACE_S, said
    assert "summary.json" in said.split("WARNING: ")[2] and "ended by SIGTERM" in read(run / "failure.json")["error"]


def test_half_a_line_of_another_writer_does_not_join_the_next_one(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"whole": 1}\n{"half": ')
    RunDirectory(tmp_path).append("metrics.jsonl", {"next": 2})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"whole": 1}\n{"half": \n{"next": 2}\n'


@pytest.mark.parametrize("size", [100, 10 * RESERVE_BYTES])
def test_failure_json_is_written_on_a_full_disk_whatever_its_size(disk: SmallDisk, size: int) -> None:
    run = RunDirectory(disk.path)
    run.hold()
    disk.fill()
    with pytest.raises(OSError, match="No space left"):
        (disk.path / "other").write_bytes(bytes(1 << 13))
    run.write_failure("the root cause", "\U0001f4be" * size + "the last line")
    written = json.loads((disk.path / "failure.json").read_bytes())
    assert written["error"] == "the root cause" and written["traceback"].endswith("the last line")
    run.release()


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> FaultyFolder:
    """The run directory of ``on_ray``, for its processes."""
    folder = tmp_path_factory.mktemp("full")
    run = folder / "disk" / "run"
    return FaultyFolder(run, folder, run / ".live.json", run / "replay", run / "checkpoints")


@pytest.fixture(scope="module")
def on_ray(export: FaultyFolder) -> Iterator[tuple[RayRun, SmallDisk]]:
    """A run on Ray without an end, on a small disk; the tests below go on with it in turn."""
    often = {"metrics__port": 0, "learner__checkpoint_s": 2, "replay__snapshot_s": 1, "evaluation__every_steps": 0}
    with small_disk(export.folder.parent, "48m") as disk, contextlib.ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in export.variables.items():
                patch.setenv(name, value)
            flags = ("--steps", "100000000", "--workers", "2")
            run = stack.enter_context(ray_run(export.folder, *flags, **often))
        run.wait(lambda: run.live().get("written_snapshots", 0) and run.live()["written_checkpoints"], "saves")
        yield run, disk


@pytest.mark.cluster
def test_a_run_on_ray_goes_on_while_its_disk_is_full_and_counts_it(on_ray: tuple[RayRun, SmallDisk]) -> None:
    run, disk = on_ray
    port = run.live()["metrics_port"]

    def failing() -> bool:
        seen = scraped(port)
        return seen["checkpoint"] >= 1 and seen["snapshot"] >= 1 and seen["report"] >= 3

    run.wait(disk.kept_full(failing), "failed writes of every kind")
    steps = scraped(port)["env_steps"]
    run.wait(disk.kept_full(lambda: scraped(port)["env_steps"] > steps), "env steps on a full disk")
    disk.free()
    run.wait(lambda: "the checkpoint is written again" in run.output(), "a checkpoint")
    run.wait(lambda: "the snapshot of shard 0 is written again" in run.output(), "a snapshot")
    run.wait(lambda: run.live().get("failed_reports", 0) >= 3, "live.json")
    line = run.live()
    assert line["workers_restarted"] == 0 and line["generation"] == 0, line
    assert "Traceback" not in run.output()
    lines(run.run_dir / "metrics.jsonl")  # every line is JSON


@pytest.mark.cluster
@pytest.mark.parametrize("why", ["Read-only file system", "Stale file handle"])
def test_a_run_on_ray_goes_on_while_its_directory_is_read_only_or_stale_and_counts_it(
    why: str, on_ray: tuple[RayRun, SmallDisk], export: FaultyFolder
) -> None:
    run, _ = on_ray
    port, again = run.live()["metrics_port"], "the checkpoint is written again"
    before, written = scraped(port), run.output().count(again)

    def grown(name: str, count: int) -> Callable[[], bool]:
        return lambda: scraped(port)[name] >= before[name] + count

    with read_only(run.run_dir) if why.startswith("Read") else export.stale():
        for name in ("checkpoint", "snapshot", "report"):
            run.wait(grown(name, 1), f"failed writes: {name}")
        before["env_steps"] = scraped(port)["env_steps"]
        run.wait(grown("env_steps", 100), "env steps meanwhile")
    run.wait(lambda: run.output().count(again) > written, "a checkpoint")
    run.wait(lambda: run.live()["failed_reports"] > before["report"], "live.json")
    assert why in run.output() and "Traceback" not in run.output(), run.output()[-3_000:]
    line = run.live()
    assert line["workers_restarted"] == 0 and line["generation"] == 0, line
    lines(run.run_dir / "metrics.jsonl")  # every line is JSON


@pytest.mark.cluster
def test_a_run_on_ray_goes_on_and_scales_while_no_fsync_of_the_driver_a_shard_or_the_learner_returns(
    on_ray: tuple[RayRun, SmallDisk], export: FaultyFolder, tmp_path: Path
) -> None:
    run, _ = on_ray
    port, shards = run.live()["metrics_port"], {process.pid for process in run.children("ray::ShardActor")}
    before = scraped(port)
    with export.stuck():
        run.wait(lambda: scraped(port)["report"] >= before["report"] + 2, "reports that cannot be written")
        before["env_steps"] = scraped(port)["env_steps"]
        run.wait(lambda: scraped(port)["env_steps"] >= before["env_steps"] + 100, "env steps meanwhile")
        run.wait(lambda: list((run.run_dir / "checkpoints").glob(".tmp-*")), "a checkpoint under way")
        before["updates"] = scraped(port)["updates"]
        run.wait(lambda: scraped(port)["updates"] >= before["updates"] + 100, "updates meanwhile")
        scale = start("scale", str(run.run_dir), "--workers", "1", log=tmp_path / "scale.log")
        run.wait(lambda: len(run.children("ray::WorkerActor")) == 1, "the worker to go")
        assert scale.poll() is None, "its answer cannot be written yet"
    assert scale.wait(60) == 0, (tmp_path / "scale.log").read_text()
    assert "has been under way to the disk for" in run.output() and "Traceback" not in run.output()
    run.wait(lambda: run.live()["failed_reports"] > before["report"], "live.json")
    line = run.live()
    assert line["workers_restarted"] == 0 and line["generation"] == 0 and line["shards_restarted_hung"] == 0, line
    assert {process.pid for process in run.children("ray::ShardActor")} == shards
    lines(run.run_dir / "metrics.jsonl")  # every line is JSON


@pytest.mark.cluster
def test_a_shard_that_is_killed_while_it_writes_a_snapshot_is_no_failed_write(
    on_ray: tuple[RayRun, SmallDisk], export: FaultyFolder
) -> None:
    run, _ = on_ray
    port, again = run.live()["metrics_port"], "replay shard 0 was restarted by Ray"
    before, restarts = scraped(port)["snapshot"], run.output().count(again)
    with export.stuck():
        run.wait(lambda: scraped(port)["snapshot_age_s"] > 3, "a snapshot under way")
        run.kill_one("ray::ShardActor")
    run.wait(lambda: run.output().count(again) > restarts, "the shard's restart")
    run.wait(lambda: scraped(port)["snapshot_age_s"] < 3, "the next snapshot")
    assert scraped(port)["snapshot"] == before


@pytest.mark.cluster
def test_a_request_that_cannot_be_written_is_not_asked_and_says_what_to_do(
    on_ray: tuple[RayRun, SmallDisk],
) -> None:
    run, _ = on_ray
    with read_only(run.run_dir):
        stop, scale = command("stop", str(run.run_dir)), command("scale", str(run.run_dir), "--workers", "3")
    for result, name in ((stop, "stop.json"), (scale, "scale.json")):
        assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
        assert (
            f"control/{name} cannot be written (" in result.stderr
            and "the run was not asked and goes on" in result.stderr
        )
    assert f"or end process {run.process.pid} with SIGTERM" in stop.stderr and run.process.poll() is None


@pytest.mark.cluster
def test_a_request_that_is_none_does_not_end_a_run_and_the_next_one_is_answered(
    on_ray: tuple[RayRun, SmallDisk],
) -> None:
    run, _ = on_ray
    (run.run_dir / "control" / "answer.json").write_text("[")
    for number, text in enumerate(("{", "[]", '{"id": 1}', '{"id": "x", "workers": "many"}'), start=1):
        (run.run_dir / "control" / "scale.json.new").write_text(text)
        (run.run_dir / "control" / "scale.json.new").replace(run.run_dir / "control" / "scale.json")
        run.wait(lambda number=number: run.output().count("scale.json is no request") == number, text)
    assert (run.run_dir / "control" / "scale.json.unreadable").read_text() == text
    scaled = command("scale", str(run.run_dir), "--workers", "1")
    assert scaled.returncode == 0, scaled.stderr


@pytest.mark.cluster
def test_a_shard_that_restarts_without_its_files_begins_empty_and_says_and_counts_it(
    on_ray: tuple[RayRun, SmallDisk],
) -> None:
    run, disk = on_ray
    (run.run_dir / "replay" / "shard-0").rename(disk.path / "taken")  # the next snapshot makes another one
    held = run.live()["size_rows"]
    (run.run_dir / "replay" / "shard-0").touch()  # that no snapshot can be written to before the shard is killed
    run.kill_one("ray::ShardActor")
    (run.run_dir / "replay" / "shard-0").unlink()
    run.wait(lambda: "found no snapshot in" in run.output(), "the shard's restart")
    assert "it begins empty, all rows that it held are lost and count as rows_dropped_shard_restart" in run.output()
    run.wait(lambda: run.live().get("rows_dropped_shard_restart", 0) >= held, "the rows to be counted")
    line = run.live()
    dropped = sum(rows for name, rows in line.items() if name.startswith("rows_dropped_"))
    assert line["rows_recorded"] == line["rows_stored"] + dropped, line


@pytest.mark.cluster
def test_a_learner_that_restarts_without_its_checkpoints_ends_the_run_and_does_not_begin_at_update_0(
    on_ray: tuple[RayRun, SmallDisk],
) -> None:
    run, disk = on_ray
    (run.run_dir / "checkpoints").rename(disk.path / "checkpoints")
    (run.run_dir / "checkpoints").touch()  # that none can be written before the learner is killed
    run.kill_one("ray::LearnerActor")
    assert run.end() == 1, run.output()[-3_000:]
    last = run.output().strip().splitlines()[-1]
    assert "the learner was restarted" in last and "expected the checkpoints of a run that has made" in last, last
    (run.run_dir / "checkpoints").unlink()
    resumed = command("resume", str(run.run_dir))
    assert resumed.returncode == 2 and "--accept-loss" in resumed.stderr, resumed.stderr
