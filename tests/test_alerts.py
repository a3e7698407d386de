"""deploy/alerts.yml: accepted and unit-tested by promtool, explained in docs/alerts.md, and only of what real runs export."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest
import yaml
from real_runs import Printed, RealRuns

ROOT = Path(__file__).resolve().parent.parent
RULES = [
    rule for group in yaml.safe_load((ROOT / "deploy" / "alerts.yml").read_text())["groups"] for rule in group["rules"]
]
NAMES = [rule["alert"] for rule in RULES]
SELECTOR = re.compile(r"\b(drawbridge_\w+|up)\b(?:\{(.*?)\})?")
MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"(.*?)"')


@pytest.mark.parametrize("words", [("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml")])
def test_promtool_accepts_the_rules_and_their_unit_tests_pass(words: tuple[str, ...]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian package prometheus)")
    result = subprocess.run([promtool, *words], cwd=ROOT / "deploy", capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_rule_has_a_severity_a_summary_and_a_section_of_the_runbook() -> None:
    sections = re.findall(r"^## (\w+)$", (ROOT / "docs" / "alerts.md").read_text(), re.M)
    assert sections == NAMES and len(set(NAMES)) >= 14
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["runbook"] == f"docs/alerts.md#{rule['alert'].lower()}"


def test_a_figure_in_an_alert_is_a_whole_number_a_percentage_a_duration_or_a_size() -> None:
    figures = [
        found
        for rule in RULES
        for found in re.findall(r"\{\{(.*?)\}\}", rule["annotations"]["summary"])
        if "$value" in found
    ]
    assert len(figures) >= 10
    assert [
        figure
        for figure in figures
        if not re.fullmatch(r" (printf `%.0f` \$value|\$value \| humanize(Percentage|Duration|1024)) ", figure)
    ] == []


def test_every_rule_is_seen_quiet_and_firing_by_the_unit_tests() -> None:
    seen = defaultdict(set)
    for test in yaml.safe_load((ROOT / "deploy" / "alerts_test.yml").read_text())["tests"]:
        for case in test.get("alert_rule_test", []):
            seen[case["alertname"]].add(bool(case["exp_alerts"]))
    assert seen == {name: {False, True} for name in NAMES}


def test_the_unit_tests_are_of_the_dashboards_own_expression_of_the_state() -> None:
    panels = json.loads((ROOT / "deploy" / "grafana" / "dashboard.json").read_text())["panels"]
    (target,) = next(panel["targets"] for panel in panels if panel["title"] == "State")
    tests = yaml.safe_load((ROOT / "deploy" / "alerts_test.yml").read_text())["tests"]
    cases = [case for test in tests for case in test.get("promql_expr_test", [])]
    assert {case["expr"] for case in cases} == {target["expr"].replace("$run", ".*")}
    shown = {re.search('state="(.*?)"', sample["labels"]) for case in cases for sample in case["exp_samples"]}
    assert {found[1] for found in shown if found} == {"running", "ended", "failed", "gone"}


@pytest.fixture
def printed(real_runs: RealRuns) -> Printed:
    return real_runs.printed


def test_rules_read_only_series_and_labels_that_real_runs_export(printed: Printed) -> None:
    read = [(rule["alert"], *found) for rule in RULES for found in SELECTOR.findall(rule["expr"])]
    assert {alert for alert, *_ in read} == set(NAMES)
    assert {name for _, name, _ in read} - {"up"} <= set(printed)
    for alert, name, matchers in read:
        for label, operator, values in MATCHER.findall(matchers):
            if name == "up":
                assert (label, operator, values) == ("job", "=", "drawbridge")
                continue
            expected = set(values.split("|")) if "~" in operator else {values}
            assert expected <= printed[name][label], f"{alert}: {name} never had {label} {values}"


def test_the_state_of_a_run_is_exported_from_its_start_to_its_end(printed: Printed) -> None:
    info = printed["drawbridge_run_info"]
    assert info["state"] == {"starting", "running", "finishing", "ended", "failed"}
    assert info["algorithm"] == {"softgac", "gac"} and len(info["run"]) == 4
    assert all(re.fullmatch(r"\w+-[0-9a-f]{8}", run) for run in info["run"])
