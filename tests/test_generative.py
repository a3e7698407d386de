"""What the benchmarks of SoftGAC and its rivals put into their tables and pictures, on made-up figures and tiny runs."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes

from benchmarks import generative, three_modes, variants
from cluster.cli import _parser
from cluster.commands.train import resolve
from cluster.config import flatten, make_preset


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: object) -> str:
    """What ``python benchmarks/generative.py WORDS`` prints."""
    monkeypatch.setattr(sys, "argv", ["generative.py", *map(str, words)])
    generative.main()
    return capsys.readouterr().out


def test_the_report_leaves_out_runs_with_settings_and_draws_the_interval_of_every_point(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    at = [0, 500, 1_000]
    return_SE = np.random.default_rng(0).normal(size=(5, 3)).cumsum(1).round(3) * 100
    base = {"env": "Pendulum-v1", "steps": 1_000, "sampled": [1.0], "cpu_s": 3.0}
    lines = [
        base | {"method": "softgac", "set": changed, "seed": seed, "evaluations": curve}
        for changed in ([], ["agent.rho=9"])
        for seed, row in enumerate(return_SE)
        for curve in [[{"env_steps": step, "returns": [value]} for step, value in zip(at, row)]]
    ]
    (tmp_path / "returns.jsonl").write_text("\n".join(map(json.dumps, lines)))
    bands: list[tuple[Any, ...]] = []
    monkeypatch.setattr(Axes, "fill_between", lambda axes, *given, **named: bands.append(given))
    words = ("report", "--returns", tmp_path / "returns.jsonl", "--picture", tmp_path / "picture.png")
    told = run(capsys, monkeypatch, *words)
    assert "| softgac |" in told and "agent.rho=9" not in told and (tmp_path / "picture.png").exists()
    (steps, low, high), (minutes, *again) = bands
    assert list(steps) == at and list(minutes) == [0.0, 0.025, 0.05] and np.array_equal(again, (low, high))
    for column, *drawn in zip(return_SE.T, low, high):
        assert drawn == pytest.approx(generative.interval(column)) and drawn[0] < generative.iqm(column) < drawn[1]
    assert "| softgac agent.rho=9 |" in run(capsys, monkeypatch, *words, "--settings") and len(bands) == 6


def test_the_costs_in_the_tree_name_their_machine_and_all_that_the_report_reads() -> None:
    costs = json.loads(generative.COSTS.read_text())
    assert list(costs) == generative.METHODS
    for name, found in costs.items():
        assert found["machine"] and generative.quickest(found) > 0, name
        assert {"parameters", "onnx_64_us", "torch_64_us", "update_ms", "peak_mib"} <= set(found), name


def test_costs_are_stored_with_the_machine_and_leave_the_others_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generative, "fastest", lambda call, least=200: 1e-6)
    file = tmp_path / "costs.json"
    file.write_text(json.dumps({"qsm": {"machine": "another"}}))
    run(capsys, monkeypatch, "costs", "--out", file, "--methods", "softgac")
    found = json.loads(file.read_text())
    assert list(found) == ["softgac", "qsm"] and found["qsm"] == {"machine": "another"}
    assert found["softgac"]["machine"] == generative.machine() != ""


def test_each_panel_of_the_toy_names_its_budget_and_has_every_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(three_modes, "PANELS", [("softgac", {"alpha_init": 0.1, "rho": 0.05}), ("flowrl", {})])
    picture = tmp_path / "toy.png"
    told = run(capsys, monkeypatch, "toy", "--updates", 10, "--seeds", 3, 4, "--picture", picture)
    assert picture.exists() and "| softgac alpha_init=0.1 rho=0.05 |" in told and "| flowrl |" in told
    rows = [line for line in told.splitlines() if line.startswith(("| softgac", "| flowrl"))]
    for row in rows:
        cells = re.findall(r"(\d+)% \[(\d+)%, (\d+)%\]", row)
        assert len(cells) == 3 and all(int(low) <= int(mean) <= int(high) for mean, low, high in cells)
        assert re.search(r"\| \d / \d \|", row)
    assert rows[0].endswith("(0.60) |") and rows[1].endswith("|  |")  # the budget is rho K A
    assert any(int(low) < int(high) for _, low, high in re.findall(r"(\d+)% \[(\d+)%, (\d+)%\]", rows[1]))


@pytest.mark.parametrize("form", variants.FORMS)
def test_variants_are_trained_with_what_their_tables_were_measured_with(form: str) -> None:
    """Preset cpu has another first temperature, budget and support by now."""
    arguments = _parser().parse_args(variants.words(form, "Pendulum-v1", 2))
    config = flatten(resolve(arguments))
    agent = {key.removeprefix("agent."): value for key, (value, _) in config.items() if key.startswith("agent.")}
    assert (agent["alpha_init"], agent["alpha_lr"], agent["v_min"], agent["v_max"]) == (0.1, 0.003, -400, 400)
    assert agent.get("rho", 0.2) == 0.2 and config["steps"][0] == config["evaluation.every_steps"][0] == 7_000
    assert (config["algorithm"][0], config["seed"][0]) == ("sac" if form == "sac" else "softgac", 2)
    named = {pair.split("=")[0] for pair in variants.FORMS[form]}
    changed = {"alpha_init", "v_min", "v_max", "rho"} | {name.removeprefix("agent.") for name in named}
    preset = make_preset(str(config["algorithm"][0]), "cpu").agent
    assert {name for name, value in agent.items() if value != getattr(preset, name)} <= changed
