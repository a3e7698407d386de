"""Alarms are the same wherever a run is looked at: the console, status, summary.json, the report and evaluate."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_episodes import make_dataset, train_words
from tiny_runs import lines, read

from cluster.cli import main
from cluster.metrics.alarms import ALARMS, alarms, figures, planned_updates
from cluster.metrics.console import Console
from cluster.pictures.report import write_report
from cluster.session import Session

SLOW = {
    "worker_steps_per_s_min": 1.0,
    "worker_steps_per_s_p50": 9.0,
    "slowest_workers": "worker 3 on b: 1.0",
}


@pytest.fixture
def events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the consoles of runs on the tiny dataset say, line by line."""
    make_dataset(tmp_path / "datasets", monkeypatch)
    said: list[str] = []
    monkeypatch.setattr(Console, "event", lambda self, text: said.append(text))
    return said


def train(run: Path, steps: int) -> int:
    return main(train_words("gac", run, "--backend", "inline", "--steps", str(steps)))


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """The JSON object that a command prints."""
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def page_of(run: Path) -> str:
    return html.unescape(write_report([run], run.parent / "page.html").read_text())


@pytest.mark.parametrize(("steps", "stopped"), [(100_000, True), (10, False)])
def test_a_run_that_was_stopped_early_and_one_that_ended_have_the_same_alarms_for_all_who_tell_them(
    steps: int,
    stopped: bool,
    events: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The plans of both are copies of the return, which is an alarm late in a training alone."""
    monkeypatch.setattr("algorithms.gac.bound.collapsed", lambda kl_Bnd, least: torch.zeros(()))
    monkeypatch.setattr("algorithms.gac.bound.return_share", lambda mean_Bnd, kl_Bnd, y_B: torch.tensor(0.99))
    if stopped:
        monkeypatch.setattr(Session, "asked_to_stop", property(lambda session: session.aggregator.updates > 0))
    run, sentence = tmp_path / "run", "99 % of what plans say is the return"
    assert train(run, steps) == (143 if stopped else 0)
    summary, words = read(run / "summary.json"), str(run)
    assert read(run / "live.json")["loss_plan_return"] == pytest.approx(0.99)
    assert (0 < summary["updates"] < 0.1 * steps) == stopped
    tellers = {
        "console": events,
        "summary.json": summary["alarms"],
        "status": printed(capsys, "status", words)["alarms"],
        "evaluate": printed(capsys, "evaluate", words, "--episodes", "1")["warnings"],
        "report": page_of(run).replace(">", "> ").split("> "),
    }
    for line in lines(run / "metrics.jsonl"):
        sounds = alarms(line, steps)
        assert {name: line[f"alarm_{name}"] for name in ALARMS} == {name: name in sounds for name in ALARMS}
        assert sounds.keys() <= {"plan_return"}
    for name, texts in tellers.items():
        assert any(text.strip().startswith(sentence) for text in texts) == (not stopped), name


def test_slow_workers_are_an_alarm_of_status_and_of_the_report_too(
    events: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train(run, 5) == 0
    (run / "live.json").write_text(json.dumps(read(run / "live.json") | SLOW))
    assert "worker 3 on b" in printed(capsys, "status", str(run))["alarms"][-1]
    assert "(worker 3 on b: 1.0)" in page_of(run)


def test_alarms_are_read_from_figures_that_can_be_used_alone() -> None:
    damaged = {"updates": None, "loss_collapse": float("nan"), "workers_in_words": "2 run", "slow": True}
    assert figures(SLOW | damaged) == SLOW


def test_the_planned_updates_of_a_configuration_that_was_read_are_those_of_a_run_that_counts_updates() -> None:
    assert planned_updates({"unit": "updates", "steps": 3_000}) == 3_000
    for config in ({}, {"unit": "env_steps", "steps": 3_000}, {"unit": "updates", "steps": "many"}):
        assert planned_updates(config) is None
