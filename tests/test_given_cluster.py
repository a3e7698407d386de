"""A cluster with a token, as deploy/ starts one: from another host nobody gets in without it, on any of the ways in."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from network import reached, second_host
from ray_runs import head_node
from tiny_runs import ROOT

pytestmark = pytest.mark.cluster

CLUSTER = ROOT / "deploy" / "kubernetes" / "base" / "cluster.yaml"
PATH_OF = "RAY_AUTH_TOKEN_PATH"
WAYS = {  # each runs `touch MARK` on the cluster, if it is let in
    "job": """
import json, os, sys, time, urllib.request
address, mark, token = sys.argv[1], sys.argv[2], os.environ.get("RAY_AUTH_TOKEN_PATH")
headers = {"Content-Type": "application/json"} | ({"Authorization": "Bearer " + open(token).read()} if token else {})
data = json.dumps({"entrypoint": "touch " + mark}).encode()
print(urllib.request.urlopen(urllib.request.Request(address + "/api/jobs/", data, headers), timeout=60).status)
""",
    "client": """
import pathlib, sys, ray
ray.init(sys.argv[1])
ray.get(ray.remote(lambda mark: pathlib.Path(mark).touch()).remote(sys.argv[2]))
""",
}
WAYS["driver"] = WAYS["client"]  # at the head itself
REFUSED = {
    "job": "HTTP Error 401: Unauthorized",
    "client": "ray client connection timeout",
    "driver": "InvalidAuthToken",
}


def test_from_another_host_every_way_into_a_cluster_takes_the_token_and_nothing_else(tmp_path: Path) -> None:
    spec = yaml.safe_load(CLUSTER.read_text())["spec"]
    assert spec["authOptions"] == {"mode": "token"}  # KubeRay sets RAY_AUTH_MODE, and the token, in every pod
    listens = f"--dashboard-host={spec['headGroupSpec']['rayStartParams']['dashboard-host']}"
    token = tmp_path / "token"
    token.write_text(secrets.token_hex(32), encoding="ascii")
    nothing = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "HOME": str(tmp_path)
    }
    known = nothing | {"RAY_AUTH_MODE": "token", PATH_OF: str(token)}
    with second_host() as host:
        words = ("--num-cpus=1", "--object-store-memory=80000000", listens)
        with head_node(*words, env=known, host=host.address_of_ours) as head:
            doors = {"job": head.dashboard, "client": head.client, "driver": head.address}
            ports = [int(door.rpartition(":")[2]) for door in doors.values()]
            assert reached(host, ports) == ports

            def enter(way: str, env: dict[str, str], mark: Path) -> subprocess.CompletedProcess[str]:
                words = host.words(sys.executable, "-c", WAYS[way], doors[way], str(mark))
                return subprocess.run(words, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=200)

            for way in WAYS:
                result = enter(way, nothing, tmp_path / f"{way}-without")
                assert result.returncode == 1 and REFUSED[way] in result.stderr, (way, result.stderr[-2_000:])
            for way in WAYS:
                result = enter(way, known, tmp_path / f"{way}-with")
                # A client that is let in gets a process of its own at the head; a busy machine may not start it in Ray's time.
                busy = way == "client" and "Starting Ray client server failed" in result.stderr
                assert result.returncode == 0 or busy, (way, result.stderr[-2_000:])
                assert (tmp_path / f"{way}-with").exists() or busy or way == "job", "a job runs later"
            assert not list(tmp_path.glob("*-without"))
