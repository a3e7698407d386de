"""A dataset that was made anew under its id is noticed by every command on a run that learned from the first one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_episodes import DATASET, ENV, finetune_words, make_dataset, swings, train_words

from cluster.cli import main
from cluster.dataset_identity import IDENTITY_FILE
from replay.dataset import write_dataset


@pytest.fixture(scope="module", autouse=True)
def runs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of gac, and its dataset."""
    folder = tmp_path_factory.mktemp("identity")
    with pytest.MonkeyPatch.context() as patch:
        make_dataset(folder / "datasets", patch)
        run = folder / "run"
        assert main(train_words("gac", run, "--backend", "inline", "--steps", "10")) == 0
        yield run


def make_anew(episodes: int, expert: float = -150.0) -> None:
    about = {"random_return": -1_200.0, "expert_return": expert, "reference_episodes": 0, "algorithm_name": "random"}
    bound = np.array([2.0])
    write_dataset(DATASET, swings(episodes), env_id=ENV, action_low_A=-bound, action_high_A=bound, force=True, **about)


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(list(words)) == 0
    output = capsys.readouterr()
    return output.out + output.err


def test_the_same_dataset_moved_is_not_another_and_one_made_anew_is_named_by_each_command(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = f"{DATASET} has changed since {runs} learned from it: "
    evaluate = ("evaluate", str(runs), "--episodes", "2")
    shutil.copytree(runs.parent / "datasets", tmp_path / "moved")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "moved"))
    assert "has changed" not in said(capsys, *evaluate)

    make_anew(9)
    new = "episodes 8 then, 9 now; steps 1,600 then, 1,800 now"
    assert sentence + new in said(capsys, *evaluate)
    assert sentence + new in said(capsys, "diagnose", str(runs), "--episodes", "2")
    assert sentence + new in said(capsys, *finetune_words(runs, tmp_path / "online", "--backend", "inline", stages=1))
    # its own note is of the new one
    assert "has changed" not in said(capsys, "evaluate", str(tmp_path / "online"), "--episodes", "2")

    before = {path: path.read_bytes() for path in runs.rglob("*.json")}
    assert main(["resume", str(runs), "--steps", "20"]) == 2
    refused = capsys.readouterr().err
    assert sentence + new in refused and "nothing was started" in refused
    assert {path: path.read_bytes() for path in runs.rglob("*.json")} == before

    make_anew(8, expert=-100.0)
    assert f"{sentence}return of the expert -150 then, -100 now" in said(capsys, *evaluate)


def test_a_run_whose_dataset_has_moved_goes_on_from_its_new_place_and_from_no_other_dataset(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_dataset(tmp_path / "first", monkeypatch)
    here, there, run = tmp_path / "here", tmp_path / "there", tmp_path / "run"
    shutil.copytree(tmp_path / "first" / DATASET, here)
    words = train_words("gac", run, "--backend", "inline", "--steps", "10")
    words[words.index(DATASET)] = str(here)
    assert main(words) == 0
    here.rename(there)
    resume = ["resume", str(run), "--steps", "20"]
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    assert main(resume) == 2
    told = capsys.readouterr().err
    assert f"no dataset '{here}'" in told and f"`drawbridge resume {run} --dataset PATH`" in told

    write_dataset("test/other-v0", swings(3), env_id=ENV, action_low_A=-np.array([2.0]), action_high_A=np.array([2.0]))
    assert main([*resume, "--dataset", "test/other-v0"]) == 2
    told = capsys.readouterr().err
    assert f"test/other-v0 is not the dataset that {run} learned from: id '{DATASET}' then, 'test/other-v0' now" in told

    assert main([*resume, "--set", "dataset="]) == 2
    assert "what was learned came from that dataset" in capsys.readouterr().err
    (run / IDENTITY_FILE).rename(tmp_path / IDENTITY_FILE)  # without the note nobody knows
    assert main([*resume, "--dataset", str(there)]) == 2
    assert "what was learned came from that dataset" in capsys.readouterr().err
    (tmp_path / IDENTITY_FILE).rename(run / IDENTITY_FILE)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before

    assert main([*resume, "--dataset", str(there)]) == 0
    assert main(["resume", str(run), "--steps", "30"]) == 0
    assert "has changed" not in said(capsys, "evaluate", str(run), "--episodes", "2")


@pytest.mark.parametrize("content", ["", "[]", '{"id": 1}', f'{{"id": "{DATASET}", "episodes": [], "steps": true}}'])
def test_a_damaged_note_ends_no_command(
    content: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(runs, tmp_path / "run")
    (tmp_path / "run" / IDENTITY_FILE).write_text(content)
    told = "episodes unknown then, 8 now" in said(capsys, "evaluate", str(tmp_path / "run"), "--episodes", "2")
    assert told == ("{" in content)
