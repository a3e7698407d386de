"""deploy/kubernetes built as kustomize builds it: the few things of kustomize that are used there."""

from __future__ import annotations

import copy
import json
import subprocess
from pathlib import Path
from typing import Any

import yaml
from at_hand import program

ROOT = Path(__file__).resolve().parent.parent
KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = sorted(path.name for path in (KUBERNETES / "overlays").iterdir())
Object = dict[str, Any]


def kustomization(folder: Path) -> Object:
    return dict(yaml.safe_load((folder / "kustomization.yaml").read_text()))


def change(target: Object, patch: list[Object]) -> None:
    """Applies a JSON patch (RFC 6902) to ``target``: test, add, replace and remove, each of something that must be there."""
    for operation in patch:
        *parents, last = (part.replace("~1", "/") for part in operation["path"].split("/")[1:])
        place: Any = target
        for part in parents:
            place = place[int(part) if isinstance(place, list) else part]
        key: Any = int(last) if isinstance(place, list) and last != "-" else last
        if operation["op"] == "test":
            assert place[key] == operation["value"], operation
        elif operation["op"] == "remove":
            del place[key]
        elif isinstance(place, list):
            assert key == "-", operation
            place.append(copy.deepcopy(operation["value"]))
        else:
            assert (key in place) == (operation["op"] == "replace"), operation
            place[key] = copy.deepcopy(operation["value"])


def built(overlay: str) -> dict[str, Object]:
    """Every object of an overlay, by kind and name."""
    folder = KUBERNETES / "overlays" / overlay
    found: dict[str, Object] = {}

    def add(path: Path) -> None:
        for one in yaml.safe_load_all(path.read_text()):
            found[f"{one['kind']}/{one['metadata']['name']}"] = json.loads(json.dumps(one))  # no shared anchors

    def build(folder: Path) -> None:
        for name in kustomization(folder).get("resources", []):
            build(folder / name) if (folder / name).is_dir() else add(folder / name)
        for name in kustomization(folder).get("components", []):
            build(folder / name)
        for patch in kustomization(folder).get("patches", []):
            given = yaml.safe_load(patch["patch"])
            if isinstance(given, dict):
                assert given.pop("$patch") == "delete"
                del found[f"{given['kind']}/{given['metadata']['name']}"]
            else:
                (target,) = [one for one in found.values() if one["kind"] == patch["target"]["kind"]]
                change(target, given)
        for image in kustomization(folder).get("images", []):
            for container in containers(*pods(found)):
                if container["image"] == image["name"]:
                    container["image"] = f"{image['newName']}@{image['digest']}"
        if folder.name == "job" and "RayJob/drawbridge" in found and "replacements" in kustomization(folder):
            job, cluster = found["RayJob/drawbridge"], found["RayCluster/drawbridge"]
            job["spec"]["rayClusterSpec"] = copy.deepcopy(cluster["spec"])
            job["metadata"]["annotations"] = cluster["metadata"]["annotations"]
            head = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
            job["spec"]["submitterPodTemplate"]["spec"]["containers"][0]["image"] = head["image"]

    build(folder)
    return found


def cluster_of(found: dict[str, Object]) -> Object:
    """The spec of an overlay's RayCluster, or of its RayJob's."""
    if "RayJob/drawbridge" in found:
        return dict(found["RayJob/drawbridge"]["spec"]["rayClusterSpec"])
    return dict(found["RayCluster/drawbridge"]["spec"])


def groups(found: dict[str, Object]) -> dict[str, Object]:
    spec = cluster_of(found)
    return {"head": spec["headGroupSpec"], **{group["groupName"]: group for group in spec["workerGroupSpecs"]}}


def pods(found: dict[str, Object]) -> list[Object]:
    templates = [group["template"] for group in groups(found).values()]
    if "RayJob/drawbridge" in found and "submitterPodTemplate" in found["RayJob/drawbridge"]["spec"]:
        templates.append(found["RayJob/drawbridge"]["spec"]["submitterPodTemplate"])
    return templates


def containers(*templates: Object) -> list[Object]:
    return [container for template in templates for container in template["spec"]["containers"]]


def kubectl(folder: Path) -> list[Object]:
    """What the real kustomize makes of ``folder``."""
    output = subprocess.run([program("kubectl"), "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert output.returncode == 0, output.stderr
    return list(yaml.safe_load_all(output.stdout))
