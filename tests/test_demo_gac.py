"""``make train-gac``: interrupted at any step it goes on there, and it takes no dataset but the one asked for."""

from __future__ import annotations

import contextlib
import io
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_episodes import TINY, TINY_GAC, pairs
from tiny_runs import ROOT, read, wait_for

from benchmarks import demo_gac
from cluster.cli import main
from cluster.inline import InlineFleet
from replay.dataset import open_dataset, write_dataset
from replay.stored_episode import StoredEpisode

ID = "drawbridge/pointmaze-umaze-d300-v0"
SIZES = (
    "--episodes",
    "3",
    "--updates",
    "15",
    "--rival-updates",
    "10",
    "--stages",
    "1",
    "--episodes-per-stage",
    "2",
    "--updates-per-stage",
    "10",
)
SMALL = (*SIZES, "--evaluation-episodes", "1", "--backend", "inline", *pairs(TINY, TINY_GAC))
STEPS = 22
TRAINS = (3, 10, 12, 14, 16)  # steps that resume a run


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return tmp_path


def interrupted(advance: Callable[..., None], self: InlineFleet, seconds: float, until: int) -> None:
    """One turn of a run, then SIGTERM."""
    self._take_turn()
    advance(self, 0.0, until)
    signal.raise_signal(signal.SIGTERM)


def test_interrupted_at_every_step_the_same_command_goes_on_there_and_does_no_step_twice(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words, log = [*SMALL, "--out", str(root / "out")], root / "told"
    with open(log, "w", encoding="utf-8") as file:  # the real script, in the first of its steps
        script = subprocess.Popen(
            [sys.executable, demo_gac.__file__, *words], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        wait_for(lambda: "dataset make maze" in log.read_text(), "its first step", log=log)
        wait_for(lambda: (root / "out" / "log.txt").exists(), "the command to start", log=log)
        script.terminate()
        assert script.wait(60) == 143, log.read_text()
    finally:
        script.kill()
    assert log.read_text().endswith("step 1 did not finish; the same command goes on with it\n")

    begun: list[str] = []  # steps that were interrupted, in this process from here on
    done: list[list[str]] = []
    advance = InlineFleet.advance

    def run(step: demo_gac.Step, log: Path) -> int:
        if first := step.what not in begun:
            begun.append(step.what)
            if step.run is None:
                return 1
        result = io.StringIO()
        with monkeypatch.context() as patch, contextlib.redirect_stdout(result):
            if first:
                patch.setattr(InlineFleet, "advance", lambda *a: interrupted(advance, *a))
            code = main(step.words)
        if not code:
            done.append(step.words)
            if step.into is not None:
                step.into.write_text(result.getvalue())
        return code

    monkeypatch.setattr(demo_gac, "run", run)
    codes = [demo_gac.main(words) for _ in range(STEPS + 1)]
    assert codes == [143 if number in TRAINS else 1 for number in range(1, STEPS + 1)] + [0]
    offline, online = root / "out" / "offline", root / "out" / "online"
    assert len(done) == len(begun) == STEPS and [words[0] for words in done].count("evaluate") == 11
    assert done[2] == ["resume", str(offline)] and done[15] == ["resume", str(online)]
    assert (read(offline / "summary.json")["updates"], read(online / "summary.json")["updates"]) == (15, 10)
    assert "normalised scores" in capsys.readouterr().out and not (root / "out-2").exists()
    begun.clear()
    done.clear()
    assert demo_gac.main([*words, "--seed", "2"]) == 1 and not done  # another command, in a new directory
    assert (root / "out-2").exists()


def maze_data(**recipe: Any) -> None:
    """A dataset that says it was made by ``recipe``."""
    rows = np.zeros((5, 4), np.float32), np.zeros((5, 2), np.float32), np.arange(5.0)
    episodes = [StoredEpisode(index, *rows, False, True, rows[0][0]) for index in range(recipe["episodes"])]
    box = {"action_low_A": -np.ones(2), "action_high_A": np.ones(2)}
    about = {"random_return": 0.0, "expert_return": 20.0, "expert": "planner", "description": recipe}
    write_dataset(ID, iter(episodes), env_id="FixedGoal/PointMaze_UMaze-v3", **box, **about)


RECIPE: dict[str, Any] = {"episodes": 3, "noise": 0.5, "dwell": 300, "seed": 1}


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"episodes": 2}, "is there with episodes 2, expected episodes 3:"),
        ({"seed": 7}, "is there with seed 7, expected seed 1:"),
        ({"dwell": 50, "noise": 0.0}, "is there with noise 0.0, dwell 50, expected noise 0.5, dwell 300:"),
    ],
)
def test_a_dataset_of_another_recipe_is_refused_before_anything_is_started(
    other: dict[str, Any], words: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    maze_data(**RECIPE | other)
    assert demo_gac.main([*SMALL, "--out", str(root / "out")]) == 2
    error = capsys.readouterr().err
    assert words in error and "nothing was started; give --dataset with another id" in error and "--force" in error
    assert not (root / "out").exists()


def test_a_dataset_of_the_recipe_asked_for_is_taken(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    maze_data(**RECIPE)
    began: list[str] = []
    monkeypatch.setattr(demo_gac, "run", lambda step, log: began.append(step.what) or 1)
    assert demo_gac.main([*SMALL, "--out", str(root / "out")]) == 1
    assert began == ["what is in the data"] and open_dataset(ID).total_episodes == 3
