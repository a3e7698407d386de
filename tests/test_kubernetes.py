"""deploy/kubernetes and what is beside it for clusters: rules that no schema knows, and run where that can be.

Schemas and kubectl: tests/test_definitions.py.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from kustomized import KUBERNETES, OVERLAYS, ROOT, Object, built, cluster_of, containers, groups, pods
from test_readme import commands
from tiny_runs import read, train_words

from cluster.cli import _parser
from cluster.commands.arguments import settings_of
from cluster.commands.train import resolve
from cluster.connection import HEALTH
from cluster.outside import unnamed
from cluster.session import GRACE_S
from cluster.setting_text import parse_labels

DEPLOY = ROOT / "deploy"
JOBS = [name for name in OVERLAYS if name != "shared"]


def test_the_rule_of_the_operator_is_made_of_the_alert_rules() -> None:
    output = subprocess.run(
        [str(KUBERNETES / "prometheusrule.sh")], capture_output=True, text=True, timeout=30, check=True
    )
    rule = yaml.safe_load(output.stdout)
    assert (rule["kind"], rule["spec"]) == ("PrometheusRule", yaml.safe_load((DEPLOY / "alerts.yml").read_text()))


# --- what no schema knows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_operators_own_rules_are_kept(overlay: str) -> None:
    found = built(overlay)
    spec = cluster_of(found)
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    assert spec["rayVersion"] == pins["ray"]
    for name, group in groups(found).items():
        assert group["template"]["spec"]["restartPolicy"] == "Never", "autoscaler v2 asks for it"
        assert not set(group["rayStartParams"]) & {"labels", "num-gpus", "memory"}, "the pod's resources say it"
        if name != "head":
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    if "autoscalerOptions" in spec:
        assert spec["enableInTreeAutoscaling"]
        assert "automountServiceAccountToken" not in spec["headGroupSpec"]["template"]["spec"]
    assert all(re.search(r"@sha256:[0-9a-f]{64}$", c["image"]) for c in containers(*pods(found))), "by digest"
    kinds = {one["kind"] for one in found.values()}
    assert ("RayJob" in kinds) != ("RayCluster" in kinds)
    if overlay == "shared":
        assert spec["gcsFaultToleranceOptions"]["backend"] == "rocksdb"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_cluster_asks_for_a_token_and_its_pods_are_restricted_and_have_reserved_memory(overlay: str) -> None:
    found = built(overlay)
    assert cluster_of(found)["authOptions"] == {"mode": "token"}
    for pod in pods(found):
        user = pod["spec"]["securityContext"]
        assert user["runAsNonRoot"] and user["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]
            # the operator sets these itself, from its Secret
            assert not [item for item in container.get("env", []) if item["name"].startswith("RAY_AUTH")]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_policies_budgets_service_and_monitor_choose_pods_that_are_there(overlay: str) -> None:
    found = built(overlay)
    labels = [pod["metadata"]["labels"] for pod in pods(found)]

    def chosen(selector: Object) -> int:
        by_label = selector.get("matchLabels", selector if "matchExpressions" not in selector else {})
        for expression in selector.get("matchExpressions", []):
            assert expression["operator"] in ("Exists", "In") and expression["key"] == "drawbridge"
        wanted = [set(e["values"]) for e in selector.get("matchExpressions", []) if e["operator"] == "In"]
        return sum(by_label.items() <= one.items() and all(one["drawbridge"] in w for w in wanted) for one in labels)

    assert chosen(found["NetworkPolicy/drawbridge"]["spec"]["podSelector"]) == len(labels)
    core, rollout = (found[f"PodDisruptionBudget/drawbridge-{name}"]["spec"] for name in ("core", "rollout"))
    assert chosen(core["selector"]) == core["minAvailable"] == 2 and chosen(rollout["selector"]) == 1
    monitor = yaml.safe_load((KUBERNETES / "podmonitor.yaml").read_text())["spec"]
    service = found["Service/drawbridge-metrics"]["spec"]
    assert chosen(monitor["selector"]) == len(labels) and chosen(service["selector"]) == 1
    ports = {p["name"]: p["containerPort"] for p in containers(groups(found)["driver"]["template"])[0]["ports"]}
    endpoints = {one["relabelings"][0]["replacement"]: one for one in monitor["podMetricsEndpoints"]}
    assert all(one["relabelings"][0]["targetLabel"] == "job" for one in endpoints.values())
    assert ports[endpoints["drawbridge"]["port"]] == ports[service["ports"][0]["targetPort"]] == 9464
    assert endpoints["ray"]["port"] == "metrics" and not set(ports) & {"metrics"}, "KubeRay adds it to every pod"
    (of_prometheus,) = [
        rule["ports"]
        for rule in found["NetworkPolicy/drawbridge"]["spec"]["ingress"]
        if "monitoring" in str(rule["from"])
    ]
    assert {port["port"] for port in of_prometheus} == {9464, 8080}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_lost_node_is_noticed_as_on_a_local_cluster_and_a_stopped_job_has_time_to_save(overlay: str) -> None:
    for group in groups(built(overlay)).values():
        environment = {item["name"]: item["value"] for item in containers(group["template"])[0]["env"]}
        assert {name: environment[f"RAY_health_check_{name}"] for name in HEALTH} == HEALTH
        assert int(environment["RAY_JOB_STOP_WAIT_TIME_S"]) > 2 * GRACE_S


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_mounts_the_volume_and_keeps_rays_logs_on_it(overlay: str) -> None:
    found = built(overlay)
    volume = found["PersistentVolumeClaim/drawbridge-runs"]
    assert volume["spec"]["accessModes"] == ["ReadWriteMany"]
    for group in groups(found).values():
        volumes = {v["name"]: v for v in group["template"]["spec"]["volumes"]}
        ray, logs = containers(group["template"])
        for container in (ray, logs):
            mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
            assert mounts["/runs"]["persistentVolumeClaim"]["claimName"] == volume["metadata"]["name"]
            assert "emptyDir" in mounts["/tmp/ray"]
        assert "/runs/ray-logs/" in logs["command"][-1]


def test_the_logs_of_a_pod_are_copied_while_it_lives_and_when_it_ends(tmp_path: Path) -> None:
    words = containers(groups(built("job"))["rollout"]["template"])[1]["command"]
    assert words[:3] == ["tini", "--", "bash"]
    logs = tmp_path / "session_latest" / "logs"
    logs.mkdir(parents=True)
    (logs / "raylet.out").write_text("first\n")
    script = words[-1].replace("/tmp/ray", str(tmp_path)).replace("/runs", str(tmp_path / "runs"))
    copying = subprocess.Popen(["bash", "-c", script], env={"PATH": os.environ["PATH"], "HOSTNAME": "pod-1"})
    copied = tmp_path / "runs" / "ray-logs" / "pod-1" / "raylet.out"
    try:
        while not copied.exists():
            assert copying.poll() is None
        (logs / "raylet.out").write_text("first\nlast\n")
        os.utime(logs / "raylet.out", (2e9, 2e9))
        copying.terminate()
        assert copying.wait(30) == 0
    finally:
        copying.kill()
    assert copied.read_text() == "first\nlast\n"


def test_the_command_of_a_pod_is_kuberays_own_with_its_quotes(tmp_path: Path) -> None:
    driver = groups(built("job"))["driver"]
    words = containers(driver["template"])[0]["command"]
    assert words[:3] == ["tini", "-g", "--"]
    stub = tmp_path / "ray"
    stub.write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n')
    stub.chmod(0o755)
    given = f"ray start  --address=head:6379  --resources={driver['rayStartParams']['resources']}  --block"
    output = subprocess.run(
        words[3:], env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "KUBERAY_GEN_RAY_START_CMD": given},
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    shown = output.stdout.splitlines()
    assert shown[:2] == ["start", "--address=head:6379"], output.stderr
    assert json.loads(shown[2].removeprefix("--resources=")) == {"driver": 1}


# --- the job ----------------------------------------------------------------------------------------------------------------


def entrypoint_commands(overlay: str) -> tuple[str, list[str], list[str]]:
    """The file that the entrypoint looks for, and the arguments of its two commands, resume and train."""
    bash, option, script = shlex.split(built(overlay)["RayJob/drawbridge"]["spec"]["entrypoint"])
    assert (bash, option) == ("bash", "-c")
    assert not set(script) & set("$\"'`\\"), "two shells read it: the submitter's and the job's"
    match = re.fullmatch(
        r"if \[ -e (\S+) \]; then python -m cluster (.*?); else python -m cluster (.*?); fi", script.strip()
    )
    assert match
    return match[1], shlex.split(match[2]), shlex.split(match[3])


@pytest.mark.parametrize("overlay", JOBS)
def test_the_entrypoint_asks_for_what_the_command_line_knows_and_a_fresh_cluster_holds_what_it_reserves(
    overlay: str,
) -> None:
    witness, resume, train = entrypoint_commands(overlay)
    arguments = _parser().parse_args(train)
    config = resolve(arguments)  # raises for an unknown --set key
    again = _parser().parse_args(resume)
    assert resume[0] == "resume" and again.run_dir == arguments.run_dir
    assert unnamed(config, settings_of(again.set)) == {}  # what a resume must be told again
    assert witness == f"{arguments.run_dir}/config.json" and Path(witness).is_relative_to("/runs")
    assert (config.backend, config.metrics.host, config.metrics.port) == ("ray", "0.0.0.0", 9464)
    found = built(overlay)
    resources = {name: containers(group["template"])[0]["resources"]["limits"] for name, group in groups(found).items()}
    assert groups(found)["head"]["rayStartParams"]["num-cpus"] == "0"
    (name,) = json.loads(found["RayJob/drawbridge"]["spec"]["entrypointResources"])
    assert name in groups(found)["driver"]["rayStartParams"]["resources"]
    reserved = config.worker.workers * config.worker.cpus + config.learner.learners * config.learner.cpus
    reserved += config.replay.shards * config.ray.shard_cpus
    there = int(resources["driver"]["cpu"]) + int(resources["rollout"]["cpu"]) * groups(found)["rollout"]["replicas"]
    assert reserved <= there
    for part, group in (("learner", "driver"), ("shard", "driver"), ("worker", "rollout")):
        assert parse_labels(getattr(config.ray, f"{part}_labels")) == groups(found)[group]["labels"]
    gpus = float(resources["driver"].get("nvidia.com/gpu", 0))
    assert (config.learner.device == "cuda") == (gpus > 0) and config.learner.gpus <= gpus


def test_a_job_for_the_cluster_of_many_or_of_a_cloud_is_placed_by_labels_that_its_nodes_have() -> None:
    """So no part of it is on the head, which offers no CPUs: the evaluator would need none."""
    (train,) = [words for words in commands(ROOT / "docs" / "deploy.md") if "/runs/hopper" in words]
    config = resolve(_parser().parse_args(train))
    shared = {name: group.get("labels", {}) for name, group in groups(built("shared")).items()}
    machines = yaml.safe_load((DEPLOY / "cloud" / "aws.yaml").read_text())["available_node_types"]
    for nodes in (shared, {name: kind.get("labels", {}) for name, kind in machines.items()}):
        assert nodes["head"] == {}
        for part, node in (("learner", "driver"), ("shard", "driver"), ("worker", "rollout")):
            assert parse_labels(getattr(config.ray, f"{part}_labels")) == nodes[node]
    ports = containers(groups(built("shared"))["driver"]["template"])[0]["ports"]
    assert (config.metrics.host, config.metrics.port) == ("0.0.0.0", ports[0]["containerPort"])


@pytest.mark.parametrize(("exists", "command"), [(False, "train"), (True, "resume")])
def test_the_entrypoint_trains_first_and_resumes_once_there_is_a_run(
    tmp_path: Path, exists: bool, command: str
) -> None:
    """Run as Ray runs it, with a ``python`` that only says how it was called."""
    output = tmp_path / "python"
    output.write_text('#!/bin/sh\necho "$@"\n')
    output.chmod(0o755)
    if exists:
        (tmp_path / "halfcheetah").mkdir()
        (tmp_path / "halfcheetah" / "config.json").touch()
    entrypoint = built("job")["RayJob/drawbridge"]["spec"]["entrypoint"]
    submitted = shlex.join(shlex.split(entrypoint)).replace("/runs", str(tmp_path))
    path = f"{tmp_path}:{os.environ['PATH']}"
    result = subprocess.run(submitted, shell=True, env={"PATH": path}, capture_output=True, text=True, timeout=30)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"-m cluster {command} ")


IN_POD = """
"$0" -m cluster "${@:2}" & run=$!
until [[ -e $RUN/metrics.jsonl ]]; do kill -0 $run || exit 9; sleep 0.1; done
"$0" "$1"; echo "hook $?"
wait $run; echo "run $?"
"""


def test_before_its_pod_ends_a_run_is_saved_by_the_hook(tmp_path: Path) -> None:
    """In a namespace of processes, as a pod is."""
    driver = groups(built("job"))["driver"]["template"]
    hook = containers(driver)[0]["lifecycle"]["preStop"]["exec"]["command"]
    script = Path(hook[1]).relative_to("/opt/drawbridge")
    assert f"COPY {script} {script}" in (DEPLOY / "Dockerfile").read_text()
    limit = re.search(r"LIMIT_S = ([\d.]+)", (ROOT / script).read_text())
    assert limit and 2 * GRACE_S < float(limit[1]) < driver["spec"]["terminationGracePeriodSeconds"]
    if os.geteuid() != 0:
        pytest.skip("only root can make a namespace of processes")
    run = tmp_path / "run"
    settings = {"metrics__line_s": 0.2, "metrics__port": 0, "metrics__targets_dir": tmp_path / "targets"}
    words = train_words(run, "paced_env:Paced-v0", "--backend", "inline", "--steps", "1000000", **settings)
    pod = [
        "unshare",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "bash",
        "-c",
        IN_POD,
        sys.executable,
        str(script),
    ]
    output = subprocess.run(
        [*pod, *words], cwd=ROOT, env={**os.environ, "RUN": str(run)}, capture_output=True, text=True, timeout=120
    )
    assert "1 runs were asked to end, 0 have not\nhook 0\nrun 143\n" in output.stdout, output.stdout + output.stderr
    summary = read(run / "summary.json")
    assert summary["exit"] == "interrupted" and "problem" not in summary["saved"]["checkpoint"]


# --- the image, Slurm, machines of a cloud ------------------------------------------------------------------------------------


def tool(*words: str) -> None:
    """A linter that pip installed beside this Python says nothing."""
    name, *rest = words
    output = subprocess.run(
        [str(Path(sys.executable).parent / name), *rest], capture_output=True, text=True, timeout=60
    )
    assert (output.returncode, output.stdout) == (0, ""), output.stdout + output.stderr


def test_shell_scripts_and_the_dockerfile_pass_their_linters() -> None:
    scripts = [path for path in DEPLOY.rglob("*") if path.is_file() and path.read_text().startswith("#!")]
    assert len(scripts) >= 3
    tool("shellcheck", *map(str, scripts))
    tool("hadolint", str(DEPLOY / "Dockerfile"))


def test_the_image_is_made_of_what_dockerignore_lets_through() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = re.findall(r"^COPY (.*) \S+$", (DEPLOY / "Dockerfile").read_text(), re.M)
    assert kept == {word for line in copied for word in line.split()}


def test_rays_own_check_takes_the_machines_of_the_cloud() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((DEPLOY / "cloud" / "aws.yaml").read_text()))
    validate_config(config)
    assert config["available_node_types"]["head"]["resources"]["CPU"] == 0
    wrong = {**config, "idle_timeout": 3}
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout"):
        validate_config(wrong)


def test_every_file_that_the_page_passes_to_a_command_is_there() -> None:
    page = (ROOT / "docs" / "deploy.md").read_text()
    named = re.findall(r"(?m)^ {4,}.*?((?:deploy|/opt/drawbridge/deploy)/[\w./-]+)", page)
    assert len(named) >= 7 and [name for name in named if not (ROOT / name).exists()] == []


SRUN = '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n'
RAY = """#!/bin/bash
echo "ray $*" >>"$CALLS"
while [[ $1 != -- ]]; do shift; done
exec "${@:2:$(($# - 3))}"
"""
SCONTROL = """#!/bin/bash
echo "scontrol $*" >>"$CALLS"
[[ $1 == show ]] && printf 'node-a\\nnode-b\\n' || true
"""


def test_a_slurm_job_ends_with_a_checkpoint_before_its_time_is_over_and_is_requeued_and_resumes(tmp_path: Path) -> None:
    """The real script and a real run, inline; Slurm and ``ray symmetric-run`` are stand-ins that note how they were called."""
    run, calls, bin_ = tmp_path / "runs" / "run", tmp_path / "calls", tmp_path / "bin"
    bin_.mkdir()
    for name, text in {"srun": SRUN, "ray": RAY, "scontrol": SCONTROL}.items():
        (bin_ / name).write_text(text)
        (bin_ / name).chmod(0o755)
    (tmp_path / "script").write_text(
        (DEPLOY / "slurm" / "train.sbatch")
        .read_text()
        .replace("$PWD/.venv/bin", f"{bin_}:{Path(sys.executable).parent}")
    )
    environment = {**os.environ, "CALLS": str(calls), "SLURM_JOB_ID": "12345", "SLURM_JOB_NODELIST": "node-[a-b]"}
    environment |= {"SLURM_NNODES": "2", "SLURM_CPUS_ON_NODE": "4"}
    settings = {"metrics__line_s": 0.2, "metrics__port": 0, "metrics__targets_dir": tmp_path / "targets"}
    words = train_words(run, "paced_env:Paced-v0", "--backend", "inline", "--steps", "1000000", **settings)
    flags = [word for word in words[1:] if word not in ("--run-dir", str(run))]

    def job() -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(tmp_path / "script"), str(run), *flags], cwd=ROOT, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def count() -> int:
        return len((run / "metrics.jsonl").read_bytes().splitlines()) if (run / "metrics.jsonl").exists() else 0

    for words in (["train", "softgac"], ["resume", str(run)]):
        calls.write_text("")
        before, started = count(), job()
        try:
            while count() < before + 3:
                assert started.poll() is None, started.communicate()
            started.send_signal(10)  # SIGUSR1
            output, _ = started.communicate(timeout=60)
        finally:
            started.kill()
        assert started.returncode == 0, output
        said = [shlex.split(line) for line in calls.read_text().splitlines()]
        ray = next(line for line in said if line[0] == "ray")
        assert ray[1:6] == ["symmetric-run", "--address", "node-a:22345", "--min-nodes", "2"]
        assert ray[ray.index("--") + 1 :][:5] == ["python", "-m", "cluster", *words]
        assert ray[-2:] == ["--address", "node-a:22345"] and said[-1] == ["scontrol", "requeue", "12345"]
        assert "ended by `drawbridge stop`" in output and read(run / "summary.json")["exit"] == "interrupted"
    token = Path(f"{run}.token")
    assert token.stat().st_mode & 0o777 == 0o600 and len(token.read_text()) == 64
