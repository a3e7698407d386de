"""Alarms are the same wherever a run is looked at: the console, status, summary.json, the report and evaluate."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_episodes import BARREN, finetune_words, make_barren_dataset, make_dataset, train_words
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


def train(run: Path, steps: int, *flags: str) -> int:
    return main(train_words("gac", run, "--backend", "inline", "--steps", str(steps), *flags))


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """The JSON object that a command prints."""
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def page_of(run: Path) -> str:
    return html.unescape(write_report([run], run.parent / "page.html").read_text())


def tellers(
    run: Path, events: list[str], capsys: pytest.CaptureFixture[str], sentence: str, *flags: str
) -> dict[str, bool]:
    """Who tells of an alarm that begins with ``sentence``."""
    evaluated = printed(capsys, "evaluate", str(run), "--episodes", "1", *flags)["warnings"]
    texts = {
        "console": events,
        "summary.json": read(run / "summary.json")["alarms"],
        "status": printed(capsys, "status", str(run))["alarms"],
        "evaluate": evaluated,
        "report": page_of(run).split("</b> "),
    }
    return {name: any(text.startswith(sentence) for text in said) for name, said in texts.items()}


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
    run = tmp_path / "run"
    assert train(run, steps) == (143 if stopped else 0)
    summary, records = read(run / "summary.json"), lines(run / "metrics.jsonl")
    assert records[-1]["loss_plan_return"] == pytest.approx(0.99)
    assert (0 < summary["updates"] < 0.1 * steps) == stopped
    for record in records:
        sounds = alarms(record, steps)
        assert {name: record[f"alarm_{name}"] for name in ALARMS} == {name: name in sounds for name in ALARMS}
        assert sounds.keys() <= {"plan_return"}
    told = tellers(run, events, capsys, "99 % of what plans say is the return")
    assert told == dict.fromkeys(told, not stopped)


@pytest.mark.parametrize("barren", [True, False])
def test_a_stage_whose_episodes_are_all_alike_is_told_by_all_and_one_whose_returns_differ_by_none(
    barren: bool, events: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One gathers where nothing is rewarded, unlike in its data."""
    base, run, flags = tmp_path / "base", tmp_path / "run", ("--env", BARREN) if barren else ()
    if barren:
        make_barren_dataset(tmp_path / "barren", monkeypatch)
    assert train(base, 5, *flags) == 0
    assert main(finetune_words(base, run, *flags, stages=1, episodes=12, updates=5)) == 0
    newest = lines(run / "metrics.jsonl")[-1]
    assert (newest["loss_explore_spread"] == 0.0) == (newest["loss_explore_collapse"] == 1.0) == barren
    assert newest["alarm_exploration"] == barren
    told = tellers(run, events, capsys, "the exploring episodes of the newest stage are all alike", *flags)
    assert told == dict.fromkeys(told, barren)
    assert "loss_explore_spread" not in lines(base / "metrics.jsonl")[-1], "nothing was gathered"


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
