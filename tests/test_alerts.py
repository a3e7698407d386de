"""deploy/alerts.yml: accepted and unit-tested by promtool, explained in docs/alerts.md, and only of what real runs export."""

from __future__ import annotations

import re
import shutil
import subprocess
import urllib.request
from collections import defaultdict
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tiny_episodes
import tiny_runs
import yaml
from prometheus_client.parser import text_string_to_metric_families

import cluster.drive
from cluster.cli import main
from cluster.metrics.exporter import Exporter, Line

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


def test_every_rule_is_seen_quiet_and_firing_by_the_unit_tests() -> None:
    seen = defaultdict(set)
    for test in yaml.safe_load((ROOT / "deploy" / "alerts_test.yml").read_text())["tests"]:
        for case in test["alert_rule_test"]:
            seen[case["alertname"]].add(bool(case["exp_alerts"]))
    assert seen == {name: {False, True} for name in NAMES}


class RecordingExporter(Exporter):
    """Keeps the values that every label of every series had at any scrape."""

    printed: ClassVar[dict[str, dict[str, set[str]]]] = defaultdict(lambda: defaultdict(set))

    def update(self, line: Line) -> None:
        super().update(line)
        self.scrape()

    def set_state(self, state: str) -> None:
        super().set_state(state)
        self.scrape()

    def scrape(self) -> None:
        with urllib.request.urlopen(self.url, timeout=10) as answer:
            for family in text_string_to_metric_families(answer.read().decode()):
                for sample in family.samples:
                    for label, value in sample.labels.items():
                        self.printed[sample.name][label].add(value)


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, set[str]]]:
    """{series: {label: values}} that the endpoints of a run of softgac, one of gac and one that fails printed."""
    folder = tmp_path_factory.mktemp("printed")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(cluster.drive, "Exporter", RecordingExporter)
        tiny_episodes.make_dataset(folder / "datasets", monkeypatch)
        inline: dict[str, Any] = {"metrics__port": 0, "metrics__line_s": 0.1}
        assert tiny_runs.train_inline(folder / "softgac", "Pendulum-v1", 600, **inline) == 0
        words = tiny_episodes.train_words("gac", folder / "gac", "--backend", "inline", "--steps", "10", **inline)
        assert main(words) == 0
        assert tiny_runs.train_inline(folder / "failed", "broken_envs:Raises-v0", 4_000, **inline) == 1
    return RecordingExporter.printed


def test_rules_read_only_series_and_labels_that_real_runs_export(printed: dict[str, dict[str, set[str]]]) -> None:
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


def test_the_state_of_a_run_is_exported_from_its_start_to_its_end(printed: dict[str, dict[str, set[str]]]) -> None:
    info = printed["drawbridge_run_info"]
    assert info["state"] == {"starting", "running", "finishing", "ended", "failed"}
    assert info["algorithm"] == {"softgac", "gac"} and len(info["run"]) == 3
    assert all(re.fullmatch(r"\w+-[0-9a-f]{8}", run) for run in info["run"])
