"""The image, the dashboard and the scrape configuration: accepted by Grafana's schemas and by Prometheus. Clusters: tests/test_kubernetes.py.

Grafana's schemas are not part of the project: DRAWBRIDGE_SCHEMAS names a folder with ``grafana/`` (JSON schemas); without it the check
against them is skipped.
"""

from __future__ import annotations

import itertools
import json
import re
import socket
import subprocess
import time
import tomllib
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from at_hand import PROMETHEUS, program, schemas
from real_runs import RealRuns

from cluster.metrics.catalogue import METRICS
from cluster.metrics.exporter import Exporter

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TARGETS = [target for panel in PANELS for target in panel["targets"]]


# --- the image --------------------------------------------------------------------------------------------------------


def test_the_image_gets_every_package_of_the_project_and_only_files_that_exist() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    copied = {word for line in re.findall(r"^COPY (.*) \S+$", text, re.M) for word in line.split()}
    assert [name for name in copied if not (ROOT / name).exists()] == []
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert {name.split(".")[0] for name in found["packages"]} | {f"{name}.py" for name in found["py-modules"]} <= copied
    assert re.search(r"\nARG BASE=python:3\.13-slim@sha256:[0-9a-f]{64}\nFROM \$\{BASE\}\n", text), "by digest"
    assert re.findall(r"(?m)^FROM (.*)$", text) == ["${BASE}"]


def test_docker_compose_reads_the_file_as_it_is_meant() -> None:
    words = [
        program("docker-compose"),
        "--file",
        str(DEPLOY / "monitoring" / "compose.yml"),
        "config",
        "--format",
        "json",
    ]
    told = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert told.returncode == 0 and not told.stderr, told.stderr
    (grafana,) = json.loads(told.stdout)["services"].values()
    assert re.search(r":[\d.]+@sha256:[0-9a-f]{64}$", grafana["image"]), "by tag and digest"
    assert grafana["environment"]["PROMETHEUS_PORT"] == "9090"
    assert grafana["network_mode"] == "host" and "ports" not in grafana and grafana["cap_drop"] == ["ALL"]
    assert all(volume["read_only"] and Path(volume["source"]).exists() for volume in grafana["volumes"])


def test_the_gate_installs_the_programs_without_which_tests_here_are_skipped() -> None:
    """At the versions of constraints.txt."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    gate = (ROOT / ".ci" / "run").read_text()
    installed = re.search(r"(?m)^extras=([\w,]+)$", gate)
    assert installed and set(installed[1].split(",")) >= {"test", "deploy"} and '--editable ".[$extras]"' in gate
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    assert {need.split(">=")[0] for name in ("test", "deploy") for need in extras[name]} <= {
        name.lower() for name in pins
    }
    assert " prometheus)" in gate


# --- Prometheus and Grafana -------------------------------------------------------------------------------------------


def test_the_dashboard_shows_every_series_and_none_that_does_not_exist() -> None:
    named = {name for target in TARGETS for name in re.findall(r"drawbridge_[a-z_]+", target["expr"])}
    variables = {
        name for v in DASHBOARD["templating"]["list"] for name in re.findall(r"drawbridge_[a-z_]+", v["query"])
    }
    known = {series.full_name for series in METRICS}
    assert named | variables <= known
    assert known - named <= {"drawbridge_run_seconds"}


def test_every_panel_says_what_it_shows_and_overlaps_no_other() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    assert all(panel["title"] and panel["description"] for panel in PANELS)
    for one, two in itertools.combinations([panel["gridPos"] for panel in DASHBOARD["panels"]], 2):
        apart_x = one["x"] + one["w"] <= two["x"] or two["x"] + two["w"] <= one["x"]
        apart_y = one["y"] + one["h"] <= two["y"] or two["y"] + two["h"] <= one["y"]
        assert apart_x or apart_y


def test_what_is_a_state_is_shown_as_it_is_now_and_health_and_cluster_have_a_row_each() -> None:
    stats = [panel for panel in PANELS if panel["type"] == "stat"]
    assert all(target["instant"] and not target["range"] for panel in stats for target in panel["targets"])
    shown = {name for panel in stats for t in panel["targets"] for name in re.findall(r"drawbridge_[a-z_]+", t["expr"])}
    assert shown >= {"drawbridge_run_info", "drawbridge_workers", "drawbridge_disk_free_bytes"}
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows[:3] == ["Overview", "Health", "Cluster"]


def test_a_state_that_is_wrong_is_shown_in_red_and_the_dashboard_leads_to_rays_own() -> None:
    worst = {"State": 0, "Reached by Prometheus": 0, "Alerts firing": 1, "Silent for": 61, "Free disk": 2**30}
    best = {"State": 1, "Reached by Prometheus": 1, "Alerts firing": 0, "Silent for": 2, "Free disk": 2**40}
    for values, expected in ((worst, "red"), (best, "green")):
        for title, value in values.items():
            (panel,) = [panel for panel in PANELS if panel["title"] == title]
            steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
            colours = [step["color"] for step in steps if step["value"] is None or step["value"] <= value]
            assert colours[-1] == expected, title
    assert [link["url"] for link in DASHBOARD["links"]] == ["http://127.0.0.1:8265", "/d/rayDefaultDashboard"]


def test_the_dashboard_fits_grafanas_schemas() -> None:
    folder = schemas("grafana")

    def fits(value: Any, file: str, definition: str) -> None:
        schema = json.loads((folder / f"{file}.json").read_text())
        jsonschema.Draft7Validator({**schema, "$ref": f"#/definitions/{definition}"}).validate(value)

    fits(DASHBOARD, "dashboard", "Dashboard")
    for panel in PANELS:
        fits(panel["options"], panel["type"], "Options")
        if "custom" in panel["fieldConfig"]["defaults"]:
            fits(panel["fieldConfig"]["defaults"]["custom"], panel["type"], "FieldConfig")
        for target in panel["targets"]:
            fits(target, "prometheus", "Dataquery")
    with pytest.raises(jsonschema.ValidationError, match="refreshes"):
        fits({**DASHBOARD, "refreshes": "1s"}, "dashboard", "Dashboard")


def test_promtool_accepts_the_scrape_configuration() -> None:
    command = [program("promtool", PROMETHEUS), "check", "config", str(DEPLOY / "prometheus.yml")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[tuple[str, Exporter]]:
    """The address of a real Prometheus that runs deploy/prometheus.yml, with our port and shorter intervals; what it scrapes."""
    binary = program("prometheus", PROMETHEUS)
    exporter = Exporter("trial", facts={"algorithm": "softgac", "env": "Hopper-v5", "user": "ada", "commit": "0123abc"})
    exporter.set_state("running")
    text = (DEPLOY / "prometheus.yml").read_text()
    assert "127.0.0.1:9464" in text and "[alerts.yml]" in text
    text = text.replace("[alerts.yml]", f"[{DEPLOY / 'alerts.yml'}]")
    text = text.replace("127.0.0.1:9464", f"127.0.0.1:{exporter.port}").replace(": 5s", ": 1s").replace(": 15s", ": 1s")
    config = tmp_path / "prometheus.yml"
    config.write_text(text)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [binary, f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'tsdb'}"]
    with (tmp_path / "log").open("wb") as sink:
        server = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=sink, stderr=sink)
    try:
        yield f"http://127.0.0.1:{port}", exporter
    finally:
        server.terminate()
        server.wait(timeout=30)
        exporter.close()


def answer(address: str, expression: str) -> list[Any]:
    """What Prometheus answers; an expression it cannot read is an HTTPError, except that it may not be up yet."""
    query = urllib.parse.urlencode({"query": expression})
    with urllib.request.urlopen(f"{address}/api/v1/query?{query}", timeout=10) as reply:
        return json.loads(reply.read())["data"]["result"]


@pytest.mark.cluster
def test_a_real_prometheus_answers_every_query_of_the_dashboard_over_the_records_of_real_runs(
    prometheus: tuple[str, Exporter], real_runs: RealRuns, killed_run: list[dict[str, Any]]
) -> None:
    address, exporter = prometheus
    open_questions = {t["expr"].replace("$__rate_interval", "30s").replace("$run", "trial") for t in TARGETS}
    assert not [expression for expression in open_questions if "$" in expression]
    of_a_fault = {expression for expression in open_questions if "restarts_total" in expression}
    assert len(of_a_fault) == 2

    def answered(expression: str) -> bool:
        found = answer(address, expression)
        return any(float(series["value"][1]) > 0 for series in found) if expression in of_a_fault else bool(found)

    start, records = time.monotonic(), itertools.cycle(real_runs.records + killed_run)
    # what runs on a CPU do not have: tests/test_parts.py
    elsewhere = set() if torch.cuda.is_available() else {e for e in open_questions if "_gpu_" in e}
    while open_questions > elsewhere and time.monotonic() < start + 180:
        exporter.update(next(records))
        try:
            open_questions -= {expression for expression in open_questions if answered(expression)}
        except urllib.error.HTTPError as error:
            if error.code == 400:
                pytest.fail(f"Prometheus does not understand a query: {error.read().decode()}")
        except OSError:
            pass  # not listening yet
        time.sleep(0.2)
    assert open_questions == elsewhere, "without an answer for 180 s"
