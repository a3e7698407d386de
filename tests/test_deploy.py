"""What deploy/ gives a cluster: accepted by the schemas of KubeRay and Grafana, by Prometheus, and by this project's own parts.

The schemas are not part of the project: DRAWBRIDGE_SCHEMAS names a folder with ``kuberay/`` (CustomResourceDefinitions) and
``grafana/`` (JSON schemas); without it the checks against them are skipped.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import os
import re
import shlex
import shutil
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
import yaml
from real_runs import RealRuns

from cluster.cli import _parser
from cluster.commands.train import resolve
from cluster.connection import HEALTH
from cluster.metrics.catalogue import METRICS
from cluster.metrics.exporter import Exporter

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
JOB, SERVICE = yaml.safe_load_all((DEPLOY / "rayjob.yaml").read_text())
VOLUME = yaml.safe_load((DEPLOY / "volume.yaml").read_text())
CLUSTER = JOB["spec"]["rayClusterSpec"]
PODS = [group["template"] for group in (CLUSTER["headGroupSpec"], *CLUSTER["workerGroupSpecs"])]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TARGETS = [target for panel in PANELS for target in panel["targets"]]


@pytest.fixture
def schemas() -> Path:
    folder = os.environ.get("DRAWBRIDGE_SCHEMAS")
    if not folder:
        pytest.skip("skipped: no schemas")
    return Path(folder)


# --- KubeRay ----------------------------------------------------------------------------------------------------------


def strict(schema: Any) -> Any:
    """An OpenAPI schema of a CustomResourceDefinition as JSON schema that refuses unknown keys, except in metadata."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    made = {key: value if key in ("enum", "default") else strict(value) for key, value in schema.items()}
    if isinstance(made.get("properties"), dict):
        if "metadata" in made["properties"]:
            made["properties"]["metadata"] = {"type": "object"}
        if not made.get("x-kubernetes-preserve-unknown-fields"):
            made.setdefault("additionalProperties", False)
    return made


@pytest.fixture
def rayjob_schema(schemas: Path) -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the definition is 1.4 MB
    definition = yaml.load((schemas / "kuberay" / "rayjobs.yaml").read_text(), Loader=loader)
    versions = {version["name"]: version for version in definition["spec"]["versions"]}
    return strict(versions["v1"]["schema"]["openAPIV3Schema"])


def test_the_job_fits_kuberays_definition_which_refuses_a_misspelt_key(rayjob_schema: dict[str, Any]) -> None:
    validator = jsonschema.Draft202012Validator(rayjob_schema)
    validator.validate(JOB)
    wrong = json.loads(json.dumps(JOB))
    wrong["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 3
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        validator.validate(wrong)


def test_the_job_keeps_the_operators_rules_that_no_schema_knows() -> None:
    assert not ("backoffLimit" in JOB["spec"] and "clusterSelector" in JOB["spec"])
    assert CLUSTER["enableInTreeAutoscaling"]
    for pod in PODS:
        assert pod["spec"].get("restartPolicy", "Never") == "Never", "autoscaler v2 asks for it"
    for group in CLUSTER["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in (CLUSTER["headGroupSpec"], *CLUSTER["workerGroupSpecs"]):
        given = set(group["rayStartParams"])
        assert not given & {"labels", "num-cpus", "num-gpus", "memory", "resources"}, "the pod's resources say it"


def test_the_jobs_ray_is_the_pinned_one_and_notices_a_lost_node_as_fast_as_a_local_cluster() -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    assert CLUSTER["rayVersion"] == pins["ray"] == importlib.metadata.version("ray")
    environment = {item["name"]: item["value"] for item in PODS[0]["spec"]["containers"][0]["env"]}
    assert {name: environment[f"RAY_health_check_{name}"] for name in HEALTH} == HEALTH


def test_the_cluster_of_the_job_asks_for_a_token_because_it_listens_beyond_its_pods() -> None:
    assert CLUSTER["authOptions"] == {"mode": "token"}
    for pod in PODS:  # the operator sets these itself, from its Secret
        given = [item["name"] for item in pod["spec"]["containers"][0].get("env", [])]
        assert not [name for name in given if name.startswith("RAY_AUTH")]


def entrypoint_commands() -> tuple[str, list[str], list[str]]:
    """The file the entrypoint looks for, and the arguments of its two commands, resume and train."""
    bash, option, script = shlex.split(JOB["spec"]["entrypoint"])
    assert (bash, option) == ("bash", "-c")
    assert not set(script) & set("$\"'`\\"), "two shells read it: the submitter's and the job's"
    match = re.fullmatch(
        r"if \[ -e (\S+) \]; then python -m cluster (.*?); else python -m cluster (.*?); fi", script.strip()
    )
    assert match
    return match[1], shlex.split(match[2]), shlex.split(match[3])


def test_the_entrypoint_asks_for_what_the_command_line_knows_and_goes_on_with_the_same_run() -> None:
    witness, resume, train = entrypoint_commands()
    arguments = _parser().parse_args(train)
    config = resolve(arguments)  # raises for an unknown --set key
    assert resume == ["resume", str(arguments.run_dir)]
    assert witness == f"{arguments.run_dir}/config.json"
    assert (config.backend, config.metrics.host) == ("ray", "0.0.0.0")


@pytest.mark.parametrize(("exists", "command"), [(False, "train"), (True, "resume")])
def test_the_entrypoint_trains_first_and_resumes_once_there_is_a_run(
    tmp_path: Path, exists: bool, command: str
) -> None:
    """Run as Ray runs it, with a ``python`` that only tells how it was called."""
    told = tmp_path / "python"
    told.write_text('#!/bin/sh\necho "$@"\n')
    told.chmod(0o755)
    if exists:
        (tmp_path / "halfcheetah").mkdir()
        (tmp_path / "halfcheetah" / "config.json").touch()
    submitted = shlex.join(shlex.split(JOB["spec"]["entrypoint"])).replace("/runs", str(tmp_path))
    path = f"{tmp_path}:{os.environ['PATH']}"
    result = subprocess.run(submitted, shell=True, env={"PATH": path}, capture_output=True, text=True, timeout=30)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"-m cluster {command} ")


def test_a_fresh_cluster_of_the_job_holds_what_the_run_reserves() -> None:
    _, _, train = entrypoint_commands()
    config = resolve(_parser().parse_args(train))
    cpus = [int(pod["spec"]["containers"][0]["resources"]["limits"]["cpu"]) for pod in PODS]
    reserved = config.worker.workers * config.worker.cpus + config.learner.learners * config.learner.cpus
    reserved += config.replay.shards * config.ray.shard_cpus
    assert reserved <= cpus[0] + cpus[1] * CLUSTER["workerGroupSpecs"][0]["replicas"]


def test_every_pod_mounts_the_volume_that_holds_the_run_directory() -> None:
    witness, _, _ = entrypoint_commands()
    assert VOLUME["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in PODS:
        claims = {v["name"]: v["persistentVolumeClaim"]["claimName"] for v in pod["spec"]["volumes"]}
        (mount,) = pod["spec"]["containers"][0]["volumeMounts"]
        assert claims[mount["name"]] == VOLUME["metadata"]["name"]
        assert Path(witness).is_relative_to(mount["mountPath"])


def test_the_service_leads_to_the_port_of_the_metrics_endpoint() -> None:
    _, _, train = entrypoint_commands()
    config = resolve(_parser().parse_args(train))
    assert SERVICE["spec"]["selector"].items() <= PODS[0]["metadata"]["labels"].items()
    ports = {port["name"]: port["containerPort"] for port in PODS[0]["spec"]["containers"][0]["ports"]}
    (port,) = SERVICE["spec"]["ports"]
    assert port["port"] == ports[port["targetPort"]] == config.metrics.port


# --- the image --------------------------------------------------------------------------------------------------------


def test_the_image_gets_every_package_of_the_project_and_only_files_that_exist() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    copied = {word for line in re.findall(r"^COPY (.*) \S+$", text, re.M) for word in line.split()}
    assert [name for name in copied if not (ROOT / name).exists()] == []
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert {name.split(".")[0] for name in found["packages"]} | {f"{name}.py" for name in found["py-modules"]} <= copied
    assert "ARG PYTHON=3.13\nFROM python:${PYTHON}-slim\n" in text


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


def test_the_dashboard_fits_grafanas_schemas(schemas: Path) -> None:
    def fits(value: Any, file: str, definition: str) -> None:
        schema = json.loads((schemas / "grafana" / f"{file}.json").read_text())
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
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian package prometheus)")
    command = [promtool, "check", "config", str(DEPLOY / "prometheus.yml")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[tuple[str, Exporter]]:
    """The address of a real Prometheus that runs deploy/prometheus.yml, with our port and shorter intervals; what it scrapes."""
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("prometheus is not installed (Debian package prometheus)")
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


def test_a_real_prometheus_answers_every_query_of_the_dashboard_over_the_records_of_real_runs(
    prometheus: tuple[str, Exporter], real_runs: RealRuns
) -> None:
    address, exporter = prometheus
    open_questions = {t["expr"].replace("$__rate_interval", "30s").replace("$run", "trial") for t in TARGETS}
    assert not [expression for expression in open_questions if "$" in expression]
    start, records = time.monotonic(), itertools.cycle(real_runs.records)
    while open_questions and time.monotonic() < start + 90:
        exporter.update(next(records))
        try:
            open_questions -= {expression for expression in open_questions if answer(address, expression)}
        except urllib.error.HTTPError as error:
            if error.code == 400:
                pytest.fail(f"Prometheus does not understand a query: {error.read().decode()}")
        except OSError:
            pass  # not listening yet
        time.sleep(0.2)
    assert open_questions == set(), "without an answer for 90 s"
