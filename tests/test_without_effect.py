"""What only a cluster has is refused for a run in one process, unless nobody asks for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_runs import edit_config, read, train_inline, train_words

from cluster.cli import main
from cluster.commands.status import status

ADDRESS = "1.2.3.4:6379"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inline") / "run"
    assert train_inline(path, "Pendulum-v1", 96) == 0
    return path


def test_an_address_and_more_learners_are_refused_with_backend_inline(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, before = tmp_path / "out", (run / "config.json").read_bytes()
    address, learners = "ray.address is '1.2.3.4:6379' with backend inline", "learner.learners is 2 with backend inline"
    inline = ("--backend", "inline", "--steps", "96")
    for words, expected in (
        (train_words(out, "Pendulum-v1", *inline, "--address", ADDRESS), [address]),
        (train_words(out, "Pendulum-v1", *inline, "--learners", "2"), [learners]),
        (train_words(out, "Pendulum-v1", *inline, "--address", ADDRESS, learner__learners=2), [address, learners]),
        (["finetune", str(run), "--out", str(out), "--address", ADDRESS], [address]),
        (["finetune", str(run), "--out", str(out), "--set", "learner.learners=2"], [learners]),
        (["resume", str(run), "--steps", "200", "--address", ADDRESS], [address]),
    ):
        capsys.readouterr()
        assert main(words) == 2, words
        result = capsys.readouterr().err
        for part in (*expected, "nothing was started"):
            assert result.count(part) == 1, (part, result)
    assert not out.exists() and (run / "config.json").read_bytes() == before


def test_an_address_that_an_inline_run_has_from_before_stays_and_no_words_repeat_it(run: Path, tmp_path: Path) -> None:
    edit_config(run, ray__address=ADDRESS)
    assert status(run)["resume"] == f"drawbridge resume {run}"
    assert main(["resume", str(run), "--steps", "128"]) == 0 and read(run / "config.json")["ray"]["address"] == ADDRESS
    words = ["train", "softgac", "--config", str(run / "config.json"), "--run-dir", str(tmp_path / "new")]
    assert main([*words, "--steps", "96"]) == 0
