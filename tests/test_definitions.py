"""deploy/kubernetes as kustomize builds it, against the schemas of KubeRay, Kubernetes and the Prometheus Operator.

The part of KubeRay's definitions that is used is in tests/kuberay-1.7.0.json. Where DRAWBRIDGE_SCHEMAS names a folder with
``kuberay/`` (the operator's CustomResourceDefinitions), objects are checked against all of them, and that part must be theirs.
"""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from at_hand import DEPLOY as EXTRA
from at_hand import schemas
from kustomized import KUBERNETES, OVERLAYS, ROOT, Object, built, cluster_of, containers, kubectl, pods

DEPLOY = ROOT / "deploy"
PART = json.loads((ROOT / "tests" / "kuberay-1.7.0.json").read_text())
SPECS = {"RayCluster": "rayClusterSpec", "RayJob": "rayJobSpec"}  # names in PART
every_overlay = pytest.mark.parametrize("overlay", OVERLAYS)


# --- kubectl ----------------------------------------------------------------------------------------------------------------


@every_overlay
def test_kustomize_builds_what_is_checked_here(overlay: str) -> None:
    theirs = {f"{one['kind']}/{one['metadata']['name']}": one for one in kubectl(KUBERNETES / "overlays" / overlay)}
    assert theirs == built(overlay)


def test_an_image_named_by_the_user_reaches_every_container(tmp_path: Path) -> None:
    """By the kustomization.yaml of docs/deploy.md."""
    page = (ROOT / "docs" / "deploy.md").read_text()
    (text,) = [block for block in page.split("\n\n") if block.lstrip().startswith("resources: [../drawbridge/")]
    digest = "sha256:" + "12" * 32
    shutil.copytree(KUBERNETES, tmp_path / "drawbridge" / "deploy" / "kubernetes")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "kustomization.yaml").write_text(text.replace("sha256:...", digest))
    (job,) = [one for one in kubectl(tmp_path / "own") if one["kind"] == "RayJob"]
    images = {container["image"] for container in containers(*pods({"RayJob/drawbridge": job}))}
    assert images == {f"REGISTRY/drawbridge@{digest}"}


def test_the_monitoring_set_holds_the_dashboard_itself() -> None:
    (found,) = [one for one in kubectl(DEPLOY) if one["kind"] == "ConfigMap"]
    assert json.loads(found["data"]["drawbridge.json"]) == json.loads(
        (DEPLOY / "grafana" / "dashboard.json").read_text()
    )
    assert found["metadata"]["labels"] == {"grafana_dashboard": "1"}


# --- KubeRay and Kubernetes -------------------------------------------------------------------------------------------------


def fits(spec: Object, kind: str) -> None:
    """ValidationError where the spec of a ``kind`` does not fit the part of KubeRay's definitions."""
    jsonschema.Draft202012Validator({"$ref": f"#/$defs/{SPECS[kind]}", "$defs": PART["$defs"]}).validate(spec)


@every_overlay
def test_every_object_fits_its_schema(overlay: str) -> None:
    found = built(overlay)
    for one in found.values():
        if one["kind"] in SPECS:
            fits(one["spec"], one["kind"])
        else:
            kubernetes_validate.validate(one, "1.33", strict=True)
    for pod in pods(found):
        named = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod", **pod["metadata"]}, "spec": pod["spec"]}
        kubernetes_validate.validate(named, "1.33", strict=True)


def test_a_misspelt_key_is_refused() -> None:
    cluster = misspelt(built("job"))
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        fits(cluster, "RayCluster")
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": {"containrs": []}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, "1.33", strict=True)


def misspelt(found: dict[str, Object]) -> Object:
    cluster = cluster_of(found)
    cluster["workerGroupSpecs"][0]["maxReplica"] = 3
    return cluster


@functools.cache
def definition(kind: str) -> Object:
    """The whole schema of a ``kind`` of KubeRay's, which refuses unknown keys as an API server with strict checks does."""
    crd = yaml.load((schemas("kuberay") / f"{kind.lower()}s.yaml").read_text(), yaml.CSafeLoader)  # 43,000 lines
    (schema,) = [one["schema"]["openAPIV3Schema"] for one in crd["spec"]["versions"] if one["name"] == "v1"]
    return dict(strict(schema))


def strict(schema: Any) -> Any:
    """Kubernetes' dialect as a JSON schema; the metadata of objects and pods is left open, as it is there."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    found = {key: strict(value) for key, value in schema.items()}
    if isinstance(fields := found.get("properties"), dict) and found.get("type") == "object":
        if "metadata" in fields:
            fields["metadata"] = {"type": "object"}
        if not found.get("x-kubernetes-preserve-unknown-fields"):
            found["additionalProperties"] = False
    return found


@every_overlay
def test_every_cluster_and_job_fits_the_whole_definition_of_the_operator(overlay: str) -> None:
    checked = 0
    for one in built(overlay).values():
        if one["kind"] in SPECS:
            jsonschema.Draft202012Validator(definition(one["kind"])).validate(one)
            checked += 1
    assert checked == 1


def test_the_whole_definition_refuses_a_misspelt_key_too() -> None:
    found = built("job")
    misspelt(found)
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        jsonschema.Draft202012Validator(definition("RayJob")).validate(found["RayJob/drawbridge"])


def differences(part: Any, whole: Any, where: str) -> list[str]:
    """Where the part of KubeRay's definitions says something else than the whole; {} in the part leaves a key open."""
    if not part:
        return []
    part = PART["$defs"][part["$ref"].rsplit("/", 1)[1]] if "$ref" in part else part
    found = [
        f"{where}: {key} is {part.get(key)}, expected {whole.get(key)}"
        for key in ("type", "enum", "anyOf", "required")
        if part.get(key) != whole.get(key)
    ]
    fields, theirs = part.get("properties", {}), whole.get("properties", {})
    found += [f"{where}: {key} is in one of them alone" for key in sorted(set(fields) ^ set(theirs))]
    for key in set(fields) & set(theirs):
        found += differences(fields[key], theirs[key], f"{where}.{key}")
    for key in ("items", "additionalProperties"):
        ours, other = part.get(key), whole.get(key)
        if isinstance(ours, dict):
            found += differences(ours, other or {}, f"{where}[]")
        elif ours != other:
            found.append(f"{where}: {key} is {ours}, expected {other}")
    return found


@pytest.mark.parametrize("kind", SPECS)
def test_the_part_of_the_definitions_that_is_kept_here_is_the_operators(kind: str) -> None:
    whole = definition(kind)["properties"]["spec"]
    assert differences({"$ref": f"#/$defs/{SPECS[kind]}"}, whole, kind) == []
    less = {**whole, "properties": {**whole["properties"], "suspend": {"type": "string"}}}
    assert differences({"$ref": f"#/$defs/{SPECS[kind]}"}, less, kind) == [
        f"{kind}.suspend: type is boolean, expected string"
    ]


# --- the Prometheus Operator ------------------------------------------------------------------------------------------------


def kept(given: Object, kind: str) -> Object:
    """What the Prometheus Operator keeps of an object: all of it, where no key is unknown; ValidationError where a value does not fit."""
    v1 = pytest.importorskip("cloudcoil.models.prometheus_operator.v1", reason=f"no definitions of it here ({EXTRA})")
    taken = getattr(v1, kind).model_validate(given)
    return dict(taken.model_dump(exclude_unset=True, by_alias=True, mode="json"))


def test_monitor_and_rules_fit_the_definitions_of_the_prometheus_operator() -> None:
    monitor = yaml.safe_load((KUBERNETES / "podmonitor.yaml").read_text())
    printed = subprocess.run([str(KUBERNETES / "prometheusrule.sh")], capture_output=True, timeout=30, check=True)
    for one in (monitor, yaml.safe_load(printed.stdout)):
        assert kept(one, one["kind"]) == one
    monitor["spec"]["podMetricsEndpoints"][0]["intervall"] = "5s"
    assert kept(monitor, "PodMonitor") != monitor
