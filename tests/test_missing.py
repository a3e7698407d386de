"""Files of a run that are missing are named and refused, never replaced by a fresh start without a word."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_runs import lines, live, read, train_inline

from cluster.cli import main
from cluster.config import make_preset, override
from cluster.errors import UsageError
from cluster.run_dir import RunDirectory
from cluster.saving import check_parts

PENDULUM = "Pendulum-v1"
CONFIG = override(make_preset("softgac", "cpu"), {"env": PENDULUM, "backend": "inline"})
STEPS = 192


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two shards that ended."""
    run = tmp_path_factory.mktemp("missing") / "run"
    assert train_inline(run, PENDULUM, STEPS, "--shards", "2", "--workers", "2") == 0
    return run


@pytest.fixture
def run(ended: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(ended, tmp_path / "run")


def _clear(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _remove_manifests(run: Path) -> None:
    for path in run.glob("replay/shard-1/manifest-*"):
        path.unlink()


def _remove_segments(run: Path) -> None:
    for path in run.glob("replay/shard-0/segment-*"):
        path.unlink()


def _cut_checkpoints(run: Path) -> None:
    for path in run.glob("checkpoints/*/tensors.safetensors"):
        path.write_bytes(path.read_bytes()[:-100])


LOST: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "no checkpoints": (lambda run: shutil.rmtree(run / "checkpoints"), "checkpoints does not exist", "updates"),
    "empty checkpoints": (lambda run: _clear(run / "checkpoints"), "checkpoints is empty", "updates"),
    "cut checkpoints": (_cut_checkpoints, "tensors.safetensors is truncated", "updates"),
    "no manifest": (_remove_manifests, "shard-1 has 1 segments and no manifest", "rows of the replay"),
    "segments": (_remove_segments, "shard-0 has 1 manifests and not all files of any", "rows of the replay"),
    "one shard": (
        lambda run: shutil.rmtree(run / "replay" / "shard-0"),
        "shard-0 does not exist",
        "rows of the replay",
    ),
    "an empty shard": (lambda run: _clear(run / "replay" / "shard-1"), "shard-1 is empty", "rows of the replay"),
    "the replay": (lambda run: shutil.rmtree(run / "replay"), "shard-1 does not exist", "rows of the replay"),
}


def files(run: Path) -> set[tuple[str, int]]:
    """Every file by path and size, but for those that whoever holds a run writes."""
    return {(str(path.relative_to(run)), path.stat().st_size) for path in run.rglob("*") if path.is_file()} - {
        ("run.lock", size) for size in range(16)
    }


@pytest.mark.parametrize("loss", LOST)
def test_what_is_missing_is_named_and_refused_and_begins_anew_with_the_flag_alone(
    loss: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lose, seen, lost = LOST[loss]
    lose(run)
    before, updates = files(run), live(run)["updates"]
    capsys.readouterr()
    assert main(["resume", str(run), "--steps", "320"]) == 2
    result = capsys.readouterr().err
    for part in (seen, "expected", f"{lost}", "would throw away", "nothing was started", f"resume {run} --accept-loss"):
        assert part in result and "Traceback" not in result, (part, result)
    assert files(run) == before and not (run / "control" / "starts").exists()
    assert main(["resume", str(run), "--steps", "320", "--accept-loss"]) == 0
    result = capsys.readouterr().out
    assert "begins anew, as --accept-loss allows: " in result and "the run resumes at " in result
    summary = read(run / "summary.json")
    rows = summary["rows"]
    assert summary["env_steps"] >= 320 and rows["recorded"] == rows["stored"] + sum(rows["dropped"].values())
    if lost == "updates":  # all rows are kept, all updates are made again
        assert rows["dropped"] == {} and f"{updates:,} updates are made again" in result
        assert summary["replay_ratio"] == pytest.approx(1.0, abs=0.15)
    else:
        assert rows["dropped"]["restart"] == (STEPS if loss == "the replay" else STEPS // 2)
        assert summary["updates"] >= updates


def test_a_snapshot_of_which_a_byte_differs_is_refused_in_words(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in run.glob("replay/shard-0/segment-*"):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert main(["resume", str(run), "--steps", "320"]) == 1
    result = capsys.readouterr().err
    assert "its digest differs" in result and "restore the files" in result and "Traceback" not in result


@pytest.mark.parametrize(
    "words", [["evaluate"], ["export", "--onnx", "p.onnx"], ["finetune"]], ids=lambda words: words[0]
)
def test_checkpoints_that_are_gone_are_not_taken_for_those_of_a_run_that_only_begins(
    words: list[str], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run / "checkpoints")
    assert main([words[0], str(run), *words[1:]]) in (1, 2)
    result, updates = capsys.readouterr().err, live(run)["updates"]
    assert f"checkpoints does not exist, expected the checkpoints of a run that has made {updates} updates" in result
    assert "put them back" in result and "Traceback" not in result and "yet" not in result


def test_the_command_that_is_proposed_names_the_environment_again_where_that_is_needed(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", override(CONFIG, {"env": "mine:Mine-v0"}))
    (run.path / "live.json").write_text(json.dumps({"updates": 9, "written_checkpoints": 1, "written_snapshots": 0}))
    shutil.rmtree(run.checkpoints)
    with pytest.raises(UsageError, match=f"`drawbridge resume {run.path} --env mine:Mine-v0 --accept-loss`"):
        check_parts(run, run.config(), False)


def test_the_record_is_found_in_metrics_jsonl_where_live_json_is_missing_too(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "live.json").unlink()
    shutil.rmtree(run / "checkpoints")
    assert main(["resume", str(run), "--steps", "320"]) == 2
    assert "expected the checkpoints of a run that has made" in capsys.readouterr().err


def test_without_live_json_a_resumed_run_goes_on_from_the_last_line_of_metrics_jsonl(run: Path) -> None:
    (run / "live.json").unlink()
    assert main(["resume", str(run), "--steps", "320"]) == 0
    rows = read(run / "summary.json")["rows"]
    assert rows["recorded"] == rows["stored"] + sum(rows["dropped"].values()) >= 320
    times = [line["time_s"] for line in lines(run / "metrics.jsonl")]
    assert times == sorted(times)


def test_a_run_that_was_killed_before_it_saved_anything_goes_on_without_the_flag(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    shutil.rmtree(run / "replay")
    line = live(run)
    (run / "live.json").write_text(json.dumps(line | {"written_checkpoints": 0, "written_snapshots": 0}))
    assert main(["resume", str(run), "--steps", "320"]) == 0
    assert read(run / "summary.json")["rows"]["dropped"] == {"restart": STEPS}


LEFT: dict[str, tuple[str, ...]] = {
    "a lock": ("run.lock",),
    "a lock and folders": ("run.lock", "checkpoints/", "replay/", "control/"),
    "half a config.json": ("run.lock", "control/", "checkpoints/", ".config.json.17.tmp"),
    "a start that failed": (
        "run.lock",
        "config.json",
        "live.json",
        "failure.json",
        "control/reserve",
        "events/e",
        "replay/",
    ),
}


@pytest.mark.parametrize("left", LEFT)
def test_the_same_command_takes_the_directory_of_a_start_that_never_began(left: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name in LEFT[left]:
        path = run / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir(exist_ok=True)
        else:
            path.touch()
    assert train_inline(run, PENDULUM, 128) == 0
    assert not (run / "failure.json").exists() and read(run / "summary.json")["exit"] == "completed"


def test_a_start_that_is_refused_after_it_made_its_directory_removes_it_and_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise UsageError("the port was taken a moment ago")

    with monkeypatch.context() as patch:
        patch.setattr("cluster.drive._exporter", refuse)
        assert train_inline(tmp_path / "run", PENDULUM, 128) == 2
    assert not (tmp_path / "run").exists()
    assert train_inline(tmp_path / "run", PENDULUM, 128) == 0


def test_a_start_that_failed_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no display")

    with monkeypatch.context() as patch:
        patch.setattr("cluster.inline.make_evaluator", fail)
        assert train_inline(tmp_path / "run", PENDULUM, 128) == 1
    assert "no display" in read(tmp_path / "run" / "failure.json")["error"]
    assert train_inline(tmp_path / "run", PENDULUM, 128) == 0


@pytest.mark.parametrize("kept", ["metrics.jsonl", "thesis.txt", "replay/shard-0/manifest-000000001.json"])
def test_a_directory_with_anything_of_worth_is_not_taken(kept: str, tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", CONFIG)
    run.release()
    (run.path / kept).parent.mkdir(exist_ok=True, parents=True)
    (run.path / kept).write_text("mine")
    with pytest.raises(UsageError, match="exists and is not empty"):
        RunDirectory.create(run.path, CONFIG)
    assert (run.path / kept).read_text() == "mine"


def test_a_run_that_has_learned_is_not_taken_even_without_its_lines(run: Path) -> None:
    for path in run.iterdir():
        if path.name not in ("run.lock", "config.json", "checkpoints"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UsageError, match="exists and is not empty"):
        RunDirectory.create(run, CONFIG)
