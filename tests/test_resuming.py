"""What may change when a run resumes, what may not and why, and how another command ends it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import edit_config, edit_meta, read, start, train_inline, train_words, wait_for

from cluster.cli import main
from cluster.commands.resuming import resumed
from cluster.config import flatten, from_json, override, to_json
from cluster.errors import UsageError
from cluster.made_with import why_fixed
from cluster.run_dir import RunDirectory
from learners import checkpoint
from replay.option import in_setting_words

OTHERS = {  # a setting of each kind that is fixed: another value, and a word of the reason
    "env": ("Hopper-v5", "learned in that environment"),
    "dataset": ("a/b-v0", "came from that dataset"),
    "seed": ("9", "random numbers"),
    "backend": ("ray", "backend needs"),
    "agent.bridge_width": ("17", "networks"),
    "learner.batch_size": ("64", "a learner and counts"),
    "learner.threads": ("2", "a learner and counts"),
    "replay.capacity_rows": ("30000", "a replay and counts"),
    "data.offline_fraction": ("0.25", "from the dataset"),
    "online.stages": ("2", "the stages so far"),
    "worker.workers": ("3", "of an inline run holds its workers"),
    "worker.chunk_steps": ("8", "of an inline run holds its workers"),
}


EDITS: dict[str, Any] = {  # of config.json
    "preset": "paper",
    "env": "Hopper-v5",
    "dataset": "a/b-v0",
    "seed": 9,
    "backend": "ray",
    "agent.bridge_width": 17,
    "learner.batch_size": 64,
    "replay.shards": 2,
    "replay.replay_ratio": 0.5,
    "replay.n_step": 3,
    "worker.workers": 3,
    "worker.envs_per_worker": 2,
    "worker.chunk_steps": 8,
    "worker.fast_envs": False,
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


def contents(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def copied(run_dir: Path, tmp_path: Path, **edits: Any) -> Path:
    run = tmp_path / "copy"
    shutil.copytree(run_dir, run, dirs_exist_ok=True)
    edit_config(run, **{key.replace(".", "__"): value for key, value in edits.items()})
    return run


@pytest.mark.parametrize("edits", [{key: value} for key, value in EDITS.items()] + [EDITS], ids=[*EDITS, "all"])
def test_an_edit_of_config_json_is_refused_as_the_command_line_is(
    edits: dict[str, Any], run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = flatten(RunDirectory.open(run_dir).config())
    run = copied(run_dir, tmp_path, **edits)
    before = contents(run)
    assert main(["resume", str(run), "--steps", "240"]) == 2
    result = capsys.readouterr().err
    for key, value in edits.items():
        was, now = (repr(v) if isinstance(v, str) else in_setting_words(v) for v in (made[key][0], value))
        expected = f"  - {key} is {was} in this run, expected no other value than that (config.json has {now}): "
        assert sum(line.startswith(expected) for line in result.splitlines()) == 1, (expected, result)
    assert "nothing was started" in result and "Put config.json back to what the run was made with" in result
    assert "Traceback" not in result and "--accept-loss" not in result and contents(run) == before


def test_no_field_that_may_not_change_is_taken_from_an_edited_config_json(run_dir: Path, tmp_path: Path) -> None:
    config = RunDirectory.open(run_dir).config()
    data, taken, refused = to_json(config), set(), set()
    for key, (value, field) in flatten(config).items():
        other: Any = next((choice for choice in field.metadata["choices"] or () if choice != value), None)
        if other is None:
            kinds: dict[type, Callable[[Any], Any]] = {
                bool: lambda old: not old,
                str: lambda old: f"{old}x",
                int: lambda old: old + 1,
                float: lambda old: old / 2 or 0.25,
            }
            other = kinds[type(value)](value) if value is not None else 2
        part, _, leaf = key.rpartition(".")
        edited = data | ({part: data[part] | {leaf: other}} if part else {leaf: other})
        try:
            from_json(edited)
        except UsageError:
            continue  # out of its range: refused by every command
        run = copied(run_dir, tmp_path, **{key: other}) if key not in ("algorithm", "steps") else None
        if run is None:
            continue
        try:
            resumed(
                RunDirectory.open(run), {"steps": "240"} | dict.fromkeys(("ray.address", "metrics.targets_dir"), "")
            )
            taken.add(key)
        except UsageError as error:
            if f"{key} is " in str(error) and "in this run, expected no other value than that (config.json has " in str(
                error
            ):
                refused.add(key)
    assert len(refused) > 40 and len(taken) > 20 and {"seed", "replay.n_step", "learner.batch_size"} <= refused
    assert {key for key in taken if why_fixed("inline", key)} == set()
    assert {key for key in refused if not why_fixed("inline", key)} == set()


def test_an_edited_algorithm_is_told_from_a_configuration_of_another_version(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match="they are those of softgac, not of sac; nothing was started; put algorithm back"
    ):
        resumed(RunDirectory(copied(run_dir, tmp_path, algorithm="sac")), {})


def test_the_command_line_puts_an_edited_config_json_back(run_dir: Path, tmp_path: Path) -> None:
    run = RunDirectory(copied(run_dir, tmp_path, **{"worker.workers": 3, "seed": 9}))
    with pytest.raises(UsageError, match=r"worker\.workers is 2 in this run.*\(config\.json has 3\)"):
        resumed(run, {"seed": "1", "steps": "240"})
    config = resumed(run, {"seed": "1", "worker.workers": "2", "steps": "240"})
    assert (config.seed, config.worker.workers) == (1, 2)


def test_a_run_of_an_older_version_resumes_and_an_edit_of_its_config_json_is_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "old"
    assert train_inline(old, "InvertedPendulum-v5", 160) == 0
    edit_meta(old, settings=None)
    for edits in ({"worker.workers": 3}, {"worker.envs_per_worker": 2}, {"worker.fast_envs": False}):
        run = tmp_path / "edited"
        shutil.copytree(old, run)
        edit_config(run, **{key.replace(".", "__"): value for key, value in edits.items()})
        capsys.readouterr()
        assert main(["resume", str(run), "--steps", "240"]) == 1
        result = capsys.readouterr().err
        assert "has no state that fits worker" in result and "put these back" in result, result
        assert "Traceback" not in result
        shutil.rmtree(run)
    edit_config(old, backend="ray")
    assert main(["resume", str(old), "--steps", "240"]) == 2
    assert "backend is 'inline' in this run" in capsys.readouterr().err  # which every checkpoint has told
    edit_config(old, backend="inline")
    assert main(["resume", str(old), "--steps", "240"]) == 0 and read(old / "summary.json")["env_steps"] >= 240
    assert (checkpoint.newest_meta(old / "checkpoints") or {})["settings"]["worker.workers"] == 2


def test_a_run_that_began_on_a_gpu_resumes_on_a_cpu(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(run_dir, tmp_path, **{"learner.device": "cuda"})
    found = checkpoint.load_newest(run / "checkpoints", {})
    assert found is not None
    state = torch.arange(16, dtype=torch.uint8)  # of a generator on CUDA
    checkpoint.save(run / "checkpoints", found.tensors | {"learner/agent/generator": state}, found.meta, keep=3)
    if not torch.cuda.is_available():
        assert main(["resume", str(run), "--steps", "240"]) == 2
        result = capsys.readouterr().err
        assert "this machine has no CUDA device" in result and "set learner.device=cpu" in result
    assert main(["resume", str(run), "--steps", "240", "--set", "learner.device=cpu"]) == 0
    assert read(run / "summary.json")["env_steps"] >= 240 and read(run / "config.json")["learner"]["device"] == "cpu"
    assert (checkpoint.newest_meta(run / "checkpoints") or {})["updates"] > found.meta["updates"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_run_that_began_on_a_cpu_resumes_on_a_gpu_and_goes_back(run_dir: Path, tmp_path: Path) -> None:
    run = copied(run_dir, tmp_path, **{"learner.device": "cpu"})
    for device, steps in (("cuda", 240), ("cpu", 320)):
        assert main(["resume", str(run), "--steps", str(steps), "--set", f"learner.device={device}"]) == 0
        assert read(run / "summary.json")["env_steps"] >= steps


@pytest.mark.parametrize("edited", [False, True])
def test_a_run_is_not_made_shorter_than_it_is_and_nothing_is_touched(
    edited: bool, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(run_dir, tmp_path, **({"steps": 100} if edited else {}))
    (run / "summary.json").unlink()  # it was killed, or goes on
    before = contents(run)
    assert main(["resume", str(run), *([] if edited else ["--steps", "100"])]) == 2
    result = capsys.readouterr().err
    assert re.search(r"steps is 100, expected at least 16\d, the env steps that the run has made of 160: ", result), (
        result
    )
    assert re.search(r"give --steps 16\d to end it there", result) and "nothing was started" in result
    assert contents(run) == before


def test_a_run_that_was_killed_in_its_last_evaluation_ends(run_dir: Path, tmp_path: Path) -> None:
    run = copied(run_dir, tmp_path)
    (run / "summary.json").unlink()
    assert main(["resume", str(run)]) == 0 and read(run / "summary.json")["exit"] == "completed"


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
