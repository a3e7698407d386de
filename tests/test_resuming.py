"""What may change when a run goes on, what may not and why, and how another command ends it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from tiny_runs import read, start, train_inline, train_words, wait_for

from cluster.cli import main
from cluster.commands.resuming import resumed
from cluster.config import flatten, override
from cluster.errors import UsageError
from cluster.run_dir import RunDirectory

OTHERS = {  # a setting of each kind that is fixed: another value, and a word of the reason
    "env": ("Hopper-v5", "learned in that environment"),
    "dataset": ("a/b-v0", "came from that dataset"),
    "seed": ("9", "random numbers"),
    "backend": ("ray", "backend needs"),
    "agent.bridge_width": ("17", "networks"),
    "learner.batch_size": ("64", "a learner and counts"),
    "learner.device": ("cuda", "a learner and counts"),
    "replay.capacity_rows": ("30000", "a replay and counts"),
    "data.offline_fraction": ("0.25", "from the dataset"),
    "online.stages": ("2", "the stages so far"),
    "worker.workers": ("3", "of an inline run holds its workers"),
    "worker.chunk_steps": ("8", "of an inline run holds its workers"),
}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("resuming") / "run"
    assert train_inline(path, "Pendulum-v1", 160) == 0
    return path


def test_what_no_checkpoint_depends_on_changes_and_stays_changed(run_dir: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_dir, run)
    given = {
        "metrics.line_s": 0.5,
        "evaluation.final_episodes": 1,
        "learner.checkpoint_s": 7.0,
        "learner.cuda_graph": False,
        "ray.call_timeout_s": 30.0,
        "worker.random_steps": 200,
        "worker.step_timeout_s": 90.0,
        "worker.backend": "torch",
    }
    words = [word for key, value in given.items() for word in ("--set", f"{key}={value}")]
    assert main(["resume", str(run), "--steps", "240", *words]) == 0
    found = flatten(RunDirectory.open(run).config())
    assert {key: found[key][0] for key in given} == given
    assert read(run / "summary.json")["env_steps"] >= 240 and read(run / "summary.json")["eval_episodes"] == 1


def test_what_cannot_change_is_refused_by_name_with_the_reason_all_at_once_and_nothing_is_touched(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    words = [word for key, (value, _) in OTHERS.items() for word in ("--set", f"{key}={value}")]
    assert main(["resume", str(run_dir), "--steps", "240", *words]) == 2
    result = capsys.readouterr().err
    for key, (_, why) in OTHERS.items():
        (line,) = (line for line in result.splitlines() if line.startswith(f"  - {key} is "))
        assert why in line, line
    assert "nothing was started" in result and "Leave out what cannot change" in result
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before
    assert main(["resume", str(run_dir), "--workers", "3"]) == 2
    assert "of an inline run holds its workers" in capsys.readouterr().err
    assert main(["resume", str(run_dir), "--set", "worker.wrkers=3"]) == 2
    assert "nearest: worker.workers" in capsys.readouterr().err


def test_what_cannot_change_is_listed_with_all_else_that_is_wrong(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = (
        "agent.gamma=0.9",
        "worker.workers=3",
        "foo=1",
        "learner.checkpoint_s=x",
        "evaluation.episodes=0",
        "steps=7",
    )
    assert main(["resume", str(run_dir), *(word for pair in given for word in ("--set", pair))]) == 2
    result = capsys.readouterr().err
    expected = (
        "agent.gamma is 0.99",
        "worker.workers is ",
        "--set foo: ",
        "--set learner.checkpoint_s=x",
        "evaluation.episodes is 0",
        "give --steps more",
    )
    for part in expected:
        assert sum(part in line and line.startswith("  - ") for line in result.splitlines()) == 1, (part, result)


def test_on_ray_the_workers_may_change_and_the_same_value_is_no_change(run_dir: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.write_config(override(RunDirectory.open(run_dir).config(), {"backend": "ray"}))
    config = resumed(run, {"worker.workers": "3", "worker.envs_per_worker": "2", "seed": "1"})
    assert (config.worker.workers, config.worker.envs_per_worker) == (3, 2)
    run.keep_workers(5)  # what `drawbridge scale` notes
    assert resumed(run, {}).worker.workers == 5
    with pytest.raises(UsageError, match="seed is 1 in this run, expected no other value"):
        resumed(run, {"seed": "2"})


def test_stop_ends_a_run_as_sigterm_does_and_means_only_the_process_that_drives_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    process = start(*train_words(run, "Pendulum-v1", "--backend", "inline", "--steps", "1000000"), log=log)
    try:
        wait_for(
            lambda: (run / "live.json").exists() and read(run / "live.json")["state"] == "running", "the run", log=log
        )
        (run / "control" / "stop.new").write_text(json.dumps({"id": "x", "process": process.pid + 1}))
        (run / "control" / "stop.new").replace(run / "control" / "stop.json")
        wait_for(lambda: not (run / "control" / "stop.json").exists(), "the stale request to be taken", log=log)
        assert process.poll() is None
        assert main(["stop", str(run)]) == 0
        assert re.search(
            rf"{run} ended at [\d,]+ env steps and [\d,]+ updates; everything is saved", capsys.readouterr().out
        )
        assert process.wait(timeout=60) == 143
    finally:
        process.kill()
        process.wait()
    assert "ended by `drawbridge stop` at" in log.read_text() and "saved: the checkpoint" in log.read_text()
    assert read(run / "summary.json")["exit"] == "interrupted"
    assert main(["stop", str(run)]) == 2 and "there is nothing to stop" in capsys.readouterr().err
