"""Evaluations without a result: the run goes on, as training leaves out what is not finite, and everybody says the same of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray.exceptions import RayTaskError
from tiny_runs import read, train_inline

from cluster.cli import main
from cluster.errors import SAME_FAILURE
from cluster.evaluations import Evaluations
from rollout_workers.evaluator import BrokenEpisodes

ENV = "broken_envs:NaNInEveryEpisode-v0"


def test_an_inline_run_of_which_no_episode_can_be_evaluated_is_trained_to_its_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train_inline(run, ENV, 320, evaluation__every_steps=80) == 0
    result = capsys.readouterr()
    words = f"an evaluation has no result: none of 1 episodes of {ENV} with policy"
    assert result.out.count(words) > SAME_FAILURE and "Traceback" not in result.out + result.err
    assert "a non-finite observation after 7 steps), expected observations and rewards without a NaN" in result.out
    summary = read(run / "summary.json")
    assert summary["exit"] == "completed" and sum(summary["rows"]["dropped"].values()) > 0
    assert main(["evaluate", str(run), "--episodes", "2", "--env", ENV]) == 1
    result = capsys.readouterr()
    assert "none of 2 episodes" in result.err and "correct the environment" in result.err
    assert "Traceback" not in result.err


def test_on_ray_it_is_reported_too_and_the_evaluator_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    error = RayTaskError("evaluate", "traceback\nBrokenEpisodes: none", BrokenEpisodes("none")).as_instanceof_cause()

    def get(ref: object) -> None:
        raise error

    said: list[str] = []
    evaluations = Evaluations.__new__(Evaluations)
    vars(evaluations).update(event=said.append, _run="under way", _failures=0, _evaluator=SimpleNamespace())
    monkeypatch.setattr(ray, "get", get)
    for _ in range(SAME_FAILURE + 1):
        evaluations.look_at("under way")
    assert said == ["an evaluation has no result: BrokenEpisodes: none"] * (SAME_FAILURE + 1)
    assert evaluations.runs == []
