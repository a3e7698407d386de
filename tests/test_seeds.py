"""``train --seeds``: runs side by side in one directory, which the commands take like a run."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_runs import command, live, read, start, train_words, wait_for

from cluster.cli import main
from cluster.commands.seeds import _how_to_go_on, _View
from cluster.config import make_preset
from cluster.run_dir import RunDirectory

ENV = "broken_envs:OneRaises-v0"


def words(parent: Path, *flags: str) -> list[str]:
    return train_words(parent, ENV, "--backend", "inline", *flags)


def test_one_failing_seed_ends_no_other_a_signal_or_stop_saves_all_and_resume_takes_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (switch := tmp_path / "switch").touch()
    monkeypatch.setenv("FAULT_SWITCH", str(switch))
    parent, log = tmp_path / "runs", tmp_path / "log"
    seeds = [parent / "seed-7", parent / "seed-8"]
    both = start(*words(parent, "--seeds", "7", "8", "--steps", "1000000"), log=log)
    try:
        fails = wait_for(lambda: [s for s in seeds if (s / "failure.json").exists()], "a seed that fails", 90, log)[0]
        goes_on = next(seed for seed in seeds if seed != fails)
        wait_for(lambda: live(goes_on).get("env_steps", 0) > 1_500, "the other to go on", 90, log)
        both.terminate()
        assert both.wait(60) == 143, log.read_text()
    finally:
        both.kill()
        both.wait(30)
    said = log.read_text()
    assert "RUN" in said and "seed-7" in said and "seed-8" in said  # the table
    last = said.strip().splitlines()[-1]
    assert f"ended by SIGTERM with all its runs; {fails.name} (" in last and "the simulator lost its licence" in last
    assert f"go on with `drawbridge resume {parent} --env {ENV}`" in last
    assert read(goes_on / "summary.json")["exit"] == "interrupted"

    pids = {seed: live(seed)["pid"] for seed in seeds}
    resumed = start("resume", str(parent), "--steps", "1000000", "--env", ENV, log=log)
    try:
        for seed in seeds:
            wait_for(lambda s=seed: live(s)["pid"] != pids[s] and live(s)["state"] == "running", "a resume", 90, log)
        assert main(["stop", str(parent)]) == 0
        told = capsys.readouterr().out
        assert [line.split(" ended at ")[0] for line in told.splitlines()] == list(map(str, seeds))
        assert told.count("everything is saved") == 2 and resumed.wait(60) == 143, log.read_text()
    finally:
        resumed.kill()
        resumed.wait(30)
    last = log.read_text().strip().splitlines()[-1]
    assert last.startswith("drawbridge: 2 of 2 runs were ended: seed-7 (ended by `drawbridge stop` at ")
    assert main(["list", str(parent)]) == 0 and capsys.readouterr().out.count("  interrupted  ") == 2

    steps = str(max(live(seed)["env_steps"] for seed in seeds) + 100)
    again = command("resume", str(parent), "--steps", steps, "--env", ENV)
    assert again.returncode == 0, again.stdout + again.stderr
    assert all(read(seed / "summary.json")["exit"] == "completed" for seed in seeds)
    assert main(["resume", str(parent), "--steps", steps, "--env", ENV]) == 2
    assert f"the 2 runs in {parent} are complete" in capsys.readouterr().err
    assert main(["status", str(parent)]) == 0
    assert capsys.readouterr().out.count("evaluated") == 2
    assert main(["report", str(parent), "--output", str(tmp_path / "report.html")]) == 0
    assert "2 runs" in (tmp_path / "report.html").read_text()


def test_stop_ends_a_seed_that_is_only_starting_and_the_same_command_or_resume_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    switch, parent, log = tmp_path / "switch", tmp_path / "runs", tmp_path / "log"
    monkeypatch.setenv("FAULT_SWITCH", str(switch))
    said = train_words(parent, "broken_envs:OneStartsNever-v0", "--backend", "inline", "--seeds", "7", "8")
    both = start(*said, "--steps", "1000000", log=log)
    try:
        wait_for((parent / "seed-8.log").exists, "a seed's process", 60, log)
        switch.touch()  # no environment is made yet: the imports of learning take longer
        seeds = [parent / "seed-7", parent / "seed-8"]
        began = wait_for(lambda: [s for s in seeds if live(s).get("env_steps", 0) > 200], "one that begins", 90, log)
        assert not switch.exists() and len(began) == 1
        starting = next(seed for seed in seeds if seed not in began)
        assert not (starting / "config.json").exists()
        assert main(["stop", str(parent)]) == 0
        assert both.wait(60) == 143, log.read_text()
    finally:
        both.kill()
        both.wait(30)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{began[0]} ended at ") and first.endswith("everything is saved")
    assert second == f"ended while it was starting: {starting.name}"
    last = log.read_text().strip().splitlines()[-1]
    assert f"{starting.name} (ended by SIGTERM before the command had finished" in last and "it wrote nothing" in last
    assert main(["stop", str(parent)]) == 2 and "there is nothing to stop" in capsys.readouterr().err


def test_a_start_that_led_nowhere_is_no_obstacle_to_the_same_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parent, log = tmp_path / "runs", tmp_path / "log"
    given = words(parent, "--seeds", "7", "8", "--steps", "100")
    both = start(*given, log=log)
    try:
        wait_for((parent / "seed-8.log").exists, "a seed's process", 60, log)
        both.terminate()
        assert both.wait(60) == 143, log.read_text()
    finally:
        both.kill()
        both.wait(30)
    last = log.read_text().strip().splitlines()[-1]
    assert not list(parent.glob("*/config.json")), "the signal came too late for this test"
    assert last.endswith("with all its runs; none of them had begun: give the same command again"), last
    assert main([*words(parent, "--seeds", "9", "--steps", "100")]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    again = command(*given)
    assert again.returncode == 0, again.stdout + again.stderr
    assert [read(parent / f"seed-{seed}" / "summary.json")["exit"] for seed in (7, 8)] == ["completed"] * 2


def test_every_run_of_seeds_that_ended_is_gone_on_with_or_begun(tmp_path: Path) -> None:
    paths, config = [tmp_path / "seed-7", tmp_path / "seed-8"], make_preset("softgac", "cpu", ENV)
    resume = f"go on with `drawbridge resume {tmp_path} --env {ENV}`"
    for path in paths:
        path.with_name(f"{path.name}.log").write_text("drawbridge: error: the licence is lost\n")
    said = _how_to_go_on(tmp_path, paths, paths[:1], config)
    assert said == "seed-7 (the licence is lost); none of them had begun: give the same command again"
    paths[0].mkdir()
    (paths[0] / "config.json").touch()
    begin = f"it wrote nothing: begin it by `drawbridge train` with --run-dir {paths[1]} and its --seed"
    assert _how_to_go_on(tmp_path, paths, [], config) == f"seed-8 (the licence is lost; {begin}); {resume}"
    assert _how_to_go_on(tmp_path, paths[:1], [], config) == resume


def test_the_table_shows_no_run_as_it_was_before_its_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [RunDirectory.create(tmp_path / f"seed-{seed}", make_preset("softgac", "cpu", ENV)) for seed in (7, 8)]
    for run in runs:
        run.write_live({"env_steps": 1_024}, "interrupted")
    alive = SimpleNamespace(pid=os.getpid() + 1, is_alive=lambda: True)
    over = SimpleNamespace(pid=os.getpid() + 1, is_alive=lambda: False)
    mine = SimpleNamespace(pid=os.getpid(), is_alive=lambda: True)
    for first, second, shown in (
        (alive, alive, []),
        (alive, mine, ["seed-8"]),
        (alive, over, ["seed-8"]),
        (mine, mine, ["seed-7", "seed-8"]),
    ):
        _View(tmp_path, dict(zip((run.path for run in runs), (first, second)))).show()
        assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == shown


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--seeds", "1", "1"], "expected each seed once"),
        (["--seeds", "1", "2", "--seed", "3"], "--seed and --seeds were both given"),
        (["--seeds", "1", "2", "--set", "metrics.port=9000"], "metrics.port is 9000 for 2 runs"),
        (["--seeds", "1", "2", "--env", "Nope-v0"], "unknown environment 'Nope-v0'"),
    ],
)
def test_seeds_that_cannot_run_side_by_side_are_refused_before_anything_is_written(
    flags: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words(tmp_path / "runs"), *flags]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "runs").exists()


def test_a_directory_that_holds_something_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").touch()
    assert main(words(tmp_path, "--seeds", "1", "2")) == 2
    result = capsys.readouterr().err
    assert "expected a new one" in result and "choose another --run-dir" in result and "resume" not in result, "no run"
