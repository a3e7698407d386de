"""What is asked of a run's policy and is not as it should be: the words name the run's own values, and reasons that are true."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_episodes import TINY, TINY_CLONE, TINY_GAC, finetune_words, make_dataset

import drawbridge
from cluster.cli import main
from cluster.made_with import why_fixed

FEW = {"steps": 5, "backend": "inline", "evaluation.final_episodes": 1, "metrics.line_s": 1_000}
AGENT = {"gac": TINY_GAC, "rvs": TINY_CLONE} | dict.fromkeys(
    ("dt", "odt"), TINY_CLONE | {"agent.heads": 1, "agent.context": 4}
)
TARGETED = ("rvs", "dt", "odt")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("asked")
    with pytest.MonkeyPatch.context() as patch:
        dataset = make_dataset(path / "datasets", patch)
        for name, agent in AGENT.items():
            drawbridge.train(name, dataset=dataset, run=path / name, settings=TINY | agent | FEW)
        yield path


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(list(words)) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("name", TARGETED)
def test_a_target_outside_the_data_is_warned_of_whoever_is_asked(
    root: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    for target, expected in (("99999", 1), ("-1200", 0), (None, 0)):
        words = ["evaluate", str(root / name), "--episodes", "1", "--json"]
        assert main([*words, *([] if target is None else ["--target-return", target])]) == 0
        told = json.loads(capsys.readouterr().out)["warnings"]
        assert len([one for one in told if "of tiny/pendulum-v0, which the policy was trained on" in one]) == expected
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        drawbridge.load(root / name, target_return=99_999)
    (found,) = [one for one in caught if "target return 99999 is outside the returns" in str(one.message)]
    assert found.filename == __file__


def test_a_setting_of_the_search_is_refused_with_the_default_of_the_runs_preset(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, "evaluate", str(root / "gac"), "--set", "agent.infer_steps=0")
    assert "agent.infer_steps is 0, expected" in said and said.rstrip().endswith("; the default is 100"), said


def test_resuming_with_another_search_is_refused_for_the_reason_that_there_is(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for setting in ("agent.infer_mode=st", "agent.infer_steps=7", "agent.replan=steps"):
        key, _, _ = setting.partition("=")
        assert "of one search" in why_fixed("inline", key) and "networks" not in why_fixed("inline", key)
    said = refused(capsys, "resume", str(root / "gac"), "--set", "agent.infer_mode=st")
    assert "agent.infer_mode is 'kl' in this run" in said and "`drawbridge evaluate --set` tries another" in said
    assert "networks and optimisers" not in said and "networks" in why_fixed("inline", "agent.width")


def test_finetune_names_its_own_flag_for_a_directory_that_is_taken(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "taken"
    shutil.copytree(root / "gac", taken)
    said = refused(capsys, *finetune_words(root / "gac", taken))
    assert "exists and is not empty" in said and "choose another --out" in said and "--run-dir" not in said
