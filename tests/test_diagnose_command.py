"""What ``drawbridge diagnose`` cannot look at is refused by name, and what its policy warns of is told in words."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_episodes import ENV, TINY, TINY_GAC, make_dataset, swings

import drawbridge
from cluster.cli import main
from replay.dataset import write_dataset

FAR = ("--mode", "st", "--target-return", "99999")
FEW = {"steps": 5, "backend": "inline", "evaluation.final_episodes": 1, "metrics.line_s": 1_000}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of the module's datasets."""
    root = tmp_path_factory.mktemp("datasets")
    with pytest.MonkeyPatch.context() as patch:
        make_dataset(root, patch)
        yield root


@pytest.fixture(scope="module")
def run(datasets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs") / "run", "tiny/pendulum-v0")


def trained(path: Path, dataset: str) -> Path:
    return drawbridge.train("gac", dataset=dataset, run=path, settings=TINY | TINY_GAC | FEW)


def write(dataset_id: str, episodes: int, spoilt: int = 0, env_id: str = ENV) -> str:
    """Swings, of which the ``spoilt`` first ones are cut to a step and so refused."""
    bound = np.array([2.0])
    made = (
        one._replace(**{name: getattr(one, name)[:1] for name in ("obs_TO", "action_TA", "reward_T")})
        if one.index < spoilt
        else one
        for one in swings(episodes)
    )
    about: dict[str, Any] = {"random_return": -1_200.0, "expert_return": -150.0, "reference_episodes": 0}
    write_dataset(
        dataset_id, made, env_id=env_id, action_low_A=-bound, action_high_A=bound, algorithm_name="random", **about
    )
    return dataset_id


def diagnosed(capsys: pytest.CaptureFixture[str], run: Path, *flags: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["diagnose", str(run), "--episodes", "1", "--json", *flags]) == 0
    return dict(json.loads(capsys.readouterr().out))


def refused(capsys: pytest.CaptureFixture[str], run: Path, *flags: str) -> str:
    capsys.readouterr()
    assert main(["diagnose", str(run), "--episodes", "1", *flags]) == 2
    result = capsys.readouterr()
    assert "evaluating" not in result.out and "Traceback" not in result.err and "nothing was diagnosed" in result.err
    return result.err


def test_fewer_than_two_episodes_are_refused_by_name(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, spoilt = write("tiny/one-v0", 1), write("tiny/spoilt-v0", 3, spoilt=2)
    for dataset in (one, spoilt):
        said = refused(capsys, run, "--dataset", dataset)
        assert f"dataset {dataset} has 1 episode that can be read, expected at least 2" in said
    said = refused(capsys, trained(tmp_path / "run", one))
    assert f"dataset {one} has 1 episode that can be read" in said and "give --dataset with more" in said


def test_episodes_that_can_be_read_are_looked_at_wherever_they_stand(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("tiny/late-v0", 4, spoilt=2)
    assert diagnosed(capsys, run, "--dataset", "tiny/late-v0")["recorded_episodes"] == 2


def test_a_target_outside_the_returns_seen_is_warned_of_in_words(
    run: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    (text,) = diagnosed(capsys, run, *FAR)["warnings"]
    assert text.startswith("target return 99999 is outside the returns")
    assert diagnosed(capsys, run, "--mode", "kl")["warnings"] == []
    assert main(["diagnose", str(run), "--episodes", "1", *FAR]) == 0
    said = capsys.readouterr()
    assert f"  warning    {text}" in said.out
    lines = [line for line in said.err.splitlines() if line.endswith((" 1 episode", " episodes"))]
    assert lines[0] == "the plan as searched: 1 episode" and len(lines) == 7, "of every part, in a log too"
    assert not [one for one in recwarn if "target return" in str(one.message)]


def test_a_loaded_policy_warns_at_the_line_that_loads_it(run: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        drawbridge.load(run, mode="st", target_return=1e6)
    (found,) = [one for one in caught if "target return 1e+06 is outside" in str(one.message)]
    assert found.filename == __file__


def test_another_task_is_refused_with_a_fix_that_works(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write("tiny/elsewhere-v0", 2, env_id="Elsewhere-v0")
    said = refused(capsys, run, "--dataset", other)
    assert f"{other} is of another task than {ENV}: its environment is Elsewhere-v0" in said
    assert "--env" not in said and "give --dataset with episodes of the run's task" in said
    bound = np.array([3.0])
    wider = {"env_id": ENV, "action_low_A": -bound, "action_high_A": bound, "algorithm_name": "random"}
    write_dataset("tiny/wider-v0", swings(2), random_return=0.0, expert_return=1.0, reference_episodes=0, **wider)
    said = refused(capsys, run, "--dataset", "tiny/wider-v0")
    assert "choose another dataset so that the action boxes agree" in said and "--env" not in said


def test_a_dataset_that_was_moved_is_looked_at_where_it_is_named(
    run: Path, datasets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = diagnosed(capsys, run)
    here, moved = datasets / "tiny/pendulum-v0", tmp_path / "moved"
    shutil.move(here, moved)
    try:
        said = refused(capsys, run)
        assert "the run's dataset cannot be read (no dataset 'tiny/pendulum-v0'" in said and "or give --dataset" in said
        found = diagnosed(capsys, run, "--dataset", str(moved))
    finally:
        shutil.move(moved, here)
    assert found["explained"] == before["explained"] and found["scores"]["searched"]["normalised_mean"] is None
    assert found["scores"]["searched"]["return_mean"] == before["scores"]["searched"]["return_mean"]
    assert found["warnings"][0].startswith("not normalised, because the run's own dataset cannot be read")
