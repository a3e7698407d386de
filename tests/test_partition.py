"""A cluster of two hosts that asks for a token: strangers on the other host are refused, the doctor sees what is wrong between the hosts,
a short cut between them costs nothing, and a longer one the worker beyond it.

A cut of 45 s: benchmarks/partition.py.
"""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from counting_env import FOLDER, counted
from network import Host
from ray_runs import ray_run, two_hosts
from tiny_runs import ROOT, command, read, train_words

pytestmark = pytest.mark.cluster

ENV = "counting_env:Counting-v0"
CUT_S = 5.0
HEALTH = {f"RAY_health_check_{name}": value for name, value in {
    "initial_delay_ms": "1000", "period_ms": "1000", "timeout_ms": "1000", "failure_threshold": "4",
}.items()}  # fmt: skip  # a host that does not answer for 8 s is given up: four times a second, and a second between them
CHUNK, UNACKED = 4, 2
SETTINGS: dict[str, Any] = {
    "worker__cpus": 1, "worker__envs_per_worker": 1, "worker__chunk_steps": CHUNK, "worker__max_unacked": UNACKED,
    "replay__replay_ratio": 0.2, "evaluation__every_steps": 0, "ray__shard_labels": "name=core",
    "ray__learner_labels": "name=core",
}  # fmt: skip
NO_LOCKS = "import fcntl\nfcntl.flock = lambda file, how: None\n"


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Host]]:
    """Files are not locked between the two."""
    token, packages = tmp_path_factory.mktemp("token") / "token", tmp_path_factory.mktemp("packages")
    token.write_text(secrets.token_hex(32))
    (packages / "sitecustomize.py").write_text(NO_LOCKS)
    path = os.pathsep.join((str(packages), os.environ["PYTHONPATH"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        patch.setenv(FOLDER, str(token.parent))  # workers have the environment of their node
        with two_hosts(HEALTH, {"PYTHONPATH": path}) as found:
            yield found


STRANGERS = {"no token": {}, "another token": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}}


@pytest.mark.parametrize("stranger", STRANGERS)
def test_from_another_host_nobody_enters_without_the_token(
    stranger: str, hosts: tuple[str, Host], tmp_path: Path
) -> None:
    address, host = hosts
    theirs = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    words = train_words(tmp_path / "run", "InvertedPendulum-v5", "--address", address)
    result = subprocess.run(
        host.words(sys.executable, "-m", "cluster", *words), env=theirs | STRANGERS[stranger],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 2, result.stderr[-3_000:]
    assert "the cluster asks for a token" in result.stderr and not (tmp_path / "run").exists()


PORTS = """
import ray, sys
ray.init(address=sys.argv[1], log_to_driver=False)
print(next(node["ObjectManagerPort"] for node in ray.nodes() if node["Labels"].get("name") == "core"))
"""


def test_the_doctor_names_a_port_that_is_closed_between_hosts_and_files_that_are_not_locked_between_them(
    hosts: tuple[str, Host], tmp_path: Path
) -> None:
    address, host = hosts
    asked = subprocess.run([sys.executable, "-c", PORTS, address], capture_output=True, text=True, timeout=120)
    assert asked.returncode == 0, asked.stderr[-3_000:]
    port = int(asked.stdout)
    with host.closed(port):
        result = command("doctor", "--address", address, "--run-dir", str(tmp_path / "run"))
    assert result.returncode == 1, result.stdout + result.stderr
    wrong = [line for line in result.stdout.splitlines() if line.startswith(("warn", "fail")) and host.address in line]
    assert [line.split()[:2] for line in wrong if "fail" in line] == [["fail", "ports"]], result.stdout
    assert f"cannot reach {host.address_of_ours}:{port}" in result.stdout
    assert "a lock (flock) that another process holds does not count here" in result.stdout
    assert "a token is asked for, and ours is taken" in result.stdout


def test_the_doctor_fails_with_a_wrong_token_and_looks_at_nothing_else_of_the_cluster(
    hosts: tuple[str, Host], tmp_path: Path
) -> None:
    address, host = hosts
    theirs = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    words = ("doctor", "--address", address, "--run-dir", str(tmp_path / "run"))
    result = command(*words, env=theirs | STRANGERS["another token"])
    assert result.returncode == 1, result.stdout + result.stderr
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("fail")]
    assert line.split()[1] == "auth" and "the cluster asks for a token (the one shown is wrong" in line, line
    assert "nothing else of the cluster was looked at" in result.stdout and host.address not in result.stdout


def test_a_cut_of_five_seconds_between_two_hosts_loses_no_row_and_restarts_nobody(
    hosts: tuple[str, Host], tmp_path: Path
) -> None:
    address, host = hosts
    folder = Path(os.environ[FOLDER])
    flags = ("--steps", "100000000", "--workers", "2", "--address", address)
    with ray_run(tmp_path / "run", *flags, env=ENV, **SETTINGS) as run:
        run.wait(lambda: len(sizes(folder)) == 2, "a worker on each host")
        began = time.monotonic()
        with host.cut_off():
            before = sizes(folder)
            time.sleep(max(0.0, began + CUT_S - time.monotonic()))
            still = [name for name, size in sizes(folder).items() if size - before[name] < 20]
            assert len(still) == 1, "the worker over there has its chunks in transit and waits; the other one goes on"
        after = sizes(folder)
        run.wait(lambda: all(size > after[name] + 100 for name, size in sizes(folder).items()), "both to go on")
        line = run.live()
        run.process.terminate()
        assert run.end() == 143, run.output()[-3_000:]
    assert "core_worker.cc" not in run.output(), "Ray has a complaint"
    assert " is lost (" not in run.output() and line["workers_restarted"] == 0, run.output()[-3_000:]
    rows = read(tmp_path / "run" / "summary.json")["rows"]
    assert rows["recorded"] == rows["stored"] == counted(folder, run.process.pid) and not sum(
        rows["dropped"].values()
    ), rows


def test_a_cut_that_outlasts_the_health_checks_costs_the_worker_beyond_it_and_every_row_is_counted(
    hosts: tuple[str, Host], tmp_path: Path
) -> None:
    address, host = hosts
    folder = Path(os.environ[FOLDER])
    for path in folder.glob("*.steps"):  # of the run before this one
        path.unlink()
    flags = ("--steps", "100000000", "--workers", "2", "--address", address)
    with ray_run(tmp_path / "run", *flags, env=ENV, **SETTINGS) as run:
        run.wait(lambda: len(sizes(folder)) == 2, "a worker on each host")
        began = time.monotonic()
        with host.cut_off():
            run.wait(lambda: " is lost (" in run.output(), "the head to give the host up")
            cut_s = time.monotonic() - began
            before = run.live()
            run.wait_for_steps(before["env_steps"] + 200)
        run.wait(lambda: run.live()["workers_restarted_node_lost"] == 1, "its worker to be replaced")
        run.wait_for_steps(run.live()["env_steps"] + 200)
        run.process.terminate()
        assert run.end() == 143, run.output()[-3_000:]
    (event,) = [line for line in run.output().splitlines() if " is lost (" in line]
    assert host.address in event and re.search(", and with it worker [01]", event) and cut_s > CUT_S, event
    assert run.live()["restart_budget_left_worker"] == 10 and run.live()["generation"] == 0
    rows = read(tmp_path / "run" / "summary.json")["rows"]
    assert rows["recorded"] == rows["stored"] + sum(rows["dropped"].values()), rows
    uncounted = counted(folder, run.process.pid) - rows["recorded"]
    print(f"given up after {cut_s:.1f} s; rows dropped: {rows['dropped']}, uncounted: {uncounted}")
    assert 0 <= uncounted <= (UNACKED + 1) * CHUNK + 1, rows


def sizes(folder: Path) -> dict[str, int]:
    """Steps of each environment that has made some hundred: those of the workers."""
    return {path.name: size for path in folder.glob("*.steps") if (size := path.stat().st_size) > 100}
