"""An environment that changes the current directory: what a command line or a program named by a relative path stays where it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from broken_envs import ChangesDirectory
from tiny_runs import TINY, lines, read, train_inline, train_words

import drawbridge
from cluster.checks import spec_of
from cluster.cli import main
from cluster.config import make_preset, override
from cluster.run_dir import RunDirectory
from replay.minari_files import datasets_root

ID = f"{ChangesDirectory.__name__}-v0"
ENV = f"broken_envs:{ID}"


def strays(folder: Path) -> list[Path]:
    """Files below a folder that the environment went to."""
    return [path for path in folder.rglob("*") if path.is_file() and "elsewhere" in path.parts]


def test_every_relative_path_of_a_command_is_meant_from_where_the_command_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "one"
    assert train_inline(Path("runs/one"), ENV, 160) == 0
    assert read(run / "config.json")["env"] == ENV and lines(run / "metrics.jsonl")
    for words in (
        ["evaluate", "runs/one", "--episodes", "1", "--env", ENV],
        ["export", "runs/one", "--onnx", "policy.onnx", "--env", ENV],
        ["resume", "runs/one", "--steps", "200", "--env", ENV],
        ["finetune", "runs/one", "--out", "runs/two", "--steps", "128", "--env", ENV],
        ["report", "runs/one", "runs/two", "--output", "page.html"],
    ):
        monkeypatch.chdir(tmp_path)
        assert main(words) == 0, words
    words = train_words(Path("unused"), ENV, "--backend", "inline", "--steps", "64")
    at = words.index("--run-dir")
    monkeypatch.chdir(tmp_path)
    assert main(words[:at] + words[at + 2 :]) == 0
    (named,) = (path for path in (tmp_path / "runs").iterdir() if path.name.startswith("broken_envs_"))
    for path in (run, tmp_path / "runs" / "two", named):
        assert (path / "summary.json").is_file() and any((path / "checkpoints").iterdir()), path
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "policy.onnx", "page.html", "elsewhere"}
    assert strays(tmp_path) == []


def test_every_relative_path_of_a_program_is_meant_from_where_it_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = TINY | {"backend": "inline", "steps": 128}
    assert drawbridge.train("softgac", ENV, run="run", settings=settings) == tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    assert drawbridge.load("run", env=ENV).run_dir == tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    assert len(drawbridge.evaluate("run", episodes=1, env=ENV)["returns"]) == 1
    assert strays(tmp_path) == []


def test_paths_among_the_settings_and_minaris_folder_are_settled_before_an_environment_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", "minari")
    for folder in ("mine", "minari/here/mine-v0/data"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "metadata.json").touch()
    given = {"env": ID, "metrics.targets_dir": "targets"}
    for name, expected in (("mine", str(tmp_path / "mine")), ("here/mine-v0", "here/mine-v0"), ("", "")):
        monkeypatch.chdir(tmp_path)
        config = override(make_preset("softgac", "cpu"), given | {"dataset": name})
        found = spec_of(config, RunDirectory(Path("run"))).config
        assert Path.cwd() != tmp_path, "the environment was made"
        assert (found.dataset, found.metrics.targets_dir) == (expected, str(tmp_path / "targets"))
        assert datasets_root() == tmp_path / "minari"
