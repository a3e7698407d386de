"""Nodes of a real cluster come and go under one run: what is reserved stays reserved, and the loss of a node is one event."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray_runs import RayRun, ray_run, with_variable
from tiny_runs import command, lines, read

pytestmark = pytest.mark.cluster

NODE = "DRAWBRIDGE_TEST_NODE"  # environment variable of a node's processes: which node of which test
QUICK = {f"RAY_health_check_{name}": value for name, value in {
    "initial_delay_ms": "1000", "period_ms": "500", "timeout_ms": "500", "failure_threshold": "4",
}.items()}  # fmt: skip


class Nodes:
    """Raylets of one cluster on this machine, each a node to Ray."""

    def __init__(self) -> None:
        self.folder = Path(
            tempfile.mkdtemp(prefix="db", dir="/tmp")
        )  # short: Ray's sockets have at most 107 characters
        result = self.start("head", 0, "--head", "--port=0", "--include-dashboard=false")
        self.address = result.split("--address='")[1].split("'")[0]
        self.host = self.address.split(":")[0]  # of all nodes, whatever address they are given

    def start(self, name: str, cpus: int, *words: str) -> str:
        """A node, which has joined when this returns."""
        given = words or (f"--address={self.address}",)
        started = subprocess.run(
            [str(Path(sys.executable).parent / "ray"), "start", *given, "--node-ip-address=127.0.0.1", f"--num-cpus={cpus}",
             "--object-store-memory=80000000", f"--labels=name={name}", "--disable-usage-stats",
             *([f"--temp-dir={self.folder}"] if words else [])],
            env=os.environ | QUICK | {NODE: f"{self.folder}{name}"}, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert started.returncode == 0, started.stdout + started.stderr
        return started.stdout

    def processes(self, name: str) -> list[psutil.Process]:
        return with_variable(NODE, f"{self.folder}{name}")

    def process(self, name: str, title: str) -> psutil.Process:
        """The one process of a node with ``title``."""
        (found,) = self.titled(name, title)
        return found

    def titled(self, name: str, title: str) -> list[psutil.Process]:
        """The processes of a node with ``title``."""
        return [process for process in self.processes(name) if title in " ".join(process.cmdline())]

    def kill(self, name: str) -> None:
        """Every process of a node dies, and nobody says goodbye."""
        assert any(process.name() == "raylet" for process in self.processes(name))
        self.end(name)

    def end(self, name: str) -> None:
        """Kills what is left of a node."""
        ours = self.processes(name)
        for process in ours:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(ours, timeout=30)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    nodes = Nodes()
    try:
        yield nodes
    finally:
        for name in ("core", "pool", "more", "spare", "head"):
            nodes.end(name)
        shutil.rmtree(nodes.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def going(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayRun]:
    """A run whose learner and one shard fill node core, whose other shard and workers fill node pool; one worker more has no place.

    The port of its metrics is taken.
    """
    nodes.start("core", 1)
    nodes.start("pool", 2)
    settings: dict[str, Any] = {
        "ray__shard_labels": "name=!head", "ray__learner_labels": "name=in(core,spare)", "ray__worker_labels": "name=in(pool,more)",
        "worker__cpus": 0.75, "learner__cpus": 0.5, "ray__shard_cpus": 0.5, "replay__snapshot_s": 2,
        "learner__checkpoint_s": 2, "evaluation__every_steps": 50_000_000,
    }  # fmt: skip
    flags = ("--steps", "100000000", "--workers", "2", "--shards", "2", "--address", nodes.address)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings["metrics__port"] = taken.getsockname()[1]
        with ray_run(tmp_path_factory.mktemp("nodes") / "run", *flags, **settings) as run:
            run.wait_for_steps(300)
            yield run


def goes_on(run: RayRun) -> None:
    line = run.live()
    run.wait_for_steps(line["env_steps"] + 200)
    run.wait(lambda: run.live()["updates"] > line["updates"] + 40, "more updates")
    line = run.live()
    dropped = sum(rows for name, rows in line.items() if name.startswith("rows_dropped_"))
    assert line["rows_recorded"] == line["rows_stored"] + dropped, line


def test_the_evaluator_is_where_workers_may_be_and_the_head_has_no_part(going: RayRun, nodes: Nodes) -> None:
    going.wait(lambda: nodes.titled("pool", "ray::EvaluatorActor"), "the evaluator", 60)
    assert not nodes.titled("head", "Actor")


GROUPS = """
import json, ray, sys
ray.init(address=sys.argv[1], log_to_driver=False)
from ray.util import placement_group_table
print(json.dumps([group for group in placement_group_table().values() if group["state"] == "CREATED"]))
"""


def test_room_for_learner_and_shards_is_reserved_with_memory_and_the_shards_are_on_different_nodes(
    going: RayRun, nodes: Nodes
) -> None:
    asked = subprocess.run([sys.executable, "-c", GROUPS, nodes.address], capture_output=True, text=True, timeout=120)
    assert asked.returncode == 0, asked.stderr[-3_000:]
    groups = {len(group["bundles"]): group for group in json.loads(asked.stdout)}
    assert {count: group["strategy"] for count, group in groups.items()} == {1: "PACK", 2: "SPREAD"}
    for group in groups.values():
        assert all(bundle["CPU"] == 0.5 and bundle["memory"] > 1e8 for bundle in group["bundles"].values()), group
    assert len(set(groups[2]["bundles_to_node_id"].values())) == 2, groups[2]
    assert [bool(nodes.titled(name, "ray::ShardActor")) for name in ("core", "pool")] == [True, True]


def test_a_port_that_is_taken_on_the_drivers_host_is_replaced_by_a_free_one_and_said(going: RayRun) -> None:
    config = read(going.run_dir / "config.json")
    port, taken = going.live()["metrics_port"], config["metrics"]["port"]
    said = f"; it listens on port {port} instead"
    assert port != taken and any(f"{taken}" in line and said in line for line in going.output().splitlines())
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        assert "drawbridge_env_steps_total" in answer.read().decode()


def test_the_doctor_warns_of_a_cluster_that_asks_for_no_token(going: RayRun, nodes: Nodes) -> None:
    result = command("doctor", "--address", nodes.address, "--run-dir", str(going.run_dir))
    assert f"  auth           {nodes.address}" in result.stdout, result.stdout + result.stderr
    assert "no token is asked for: whoever reaches it runs code on every node" in result.stdout
    assert "start its head and nodes with RAY_AUTH_MODE=token" in result.stdout and "fail" not in result.stdout[:-40]


def test_in_a_full_cluster_a_waiting_worker_does_not_take_the_place_of_a_learner_that_died(
    going: RayRun, nodes: Nodes
) -> None:
    result = command("scale", str(going.run_dir), "--workers", "3")
    assert result.stdout.strip() == "rollout workers: 2 -> 3: 2 run, 1 wait for CPUs", result.stdout + result.stderr
    before = going.live()
    nodes.process("core", "ray::LearnerActor").kill()
    going.wait(lambda: going.live()["generation"] > before["generation"], "the learner to come back")
    goes_on(going)
    line = going.live()
    assert (line["workers"], line["workers_pending"]) == (2, 1)
    assert line["restart_budget_left_learner"] == 2 and line["learners_restarted_died"] == 1
    assert line[f"node_restarts_learner_died_{nodes.host}"] == 1


def test_a_node_that_is_added_takes_the_worker_that_waits(going: RayRun, nodes: Nodes) -> None:
    nodes.start("more", 2)
    going.wait(lambda: going.live()["workers"] == 3, "the third worker")


def test_a_worker_that_dies_on_a_dying_node_waits_and_the_loss_of_the_node_is_one_event_and_costs_no_budget(
    going: RayRun, nodes: Nodes
) -> None:
    (raylet,) = [process for process in nodes.processes("pool") if process.name() == "raylet"]
    raylet.suspend()  # it lives and accepts connections
    nodes.titled("pool", "ray::WorkerActor")[0].kill()
    going.wait(lambda: " is lost (" in going.output(), "the head to give the node up")
    assert "restarted (was on" not in going.output().split(" is lost (")[0], "it was not restarted before that"
    nodes.kill("pool")
    going.wait(lambda: going.live()["workers_restarted_node_lost"] == 2, "both of its workers to be replaced")
    (event,) = [line for line in going.output().splitlines() if " is lost (" in line]
    anywhere = r"(, the store of weights)?(, the evaluator)?"  # they need no CPU of their own: Ray chooses their node
    assert re.search(f", and with it shard [01], worker 0, worker 1{anywhere}: restarted on other nodes", event), event
    assert "restarted (was on" not in going.output()
    assert going.live()[f"node_restarts_worker_node_lost_{nodes.host}"] == 2
    assert going.live()["restart_budget_left_worker"] == 10 and going.live()["workers"] >= 1
    goes_on(going)


def test_a_node_that_comes_back_under_its_name_takes_a_worker_and_may_be_lost_again(
    going: RayRun, nodes: Nodes
) -> None:
    nodes.start("pool", 2)
    going.wait(lambda: going.live()["workers"] == 3, "the worker that waits to be there")
    nodes.kill("pool")
    going.wait(lambda: going.live()["workers_restarted_node_lost"] == 3, "its worker to be replaced")
    events = [line for line in going.output().splitlines() if " is lost (" in line]
    assert len(events) == 2 and re.search(", and with it worker [012]", events[1]), events
    assert going.live()["restart_budget_left_worker"] == 10
    goes_on(going)


def test_learner_and_shard_of_a_second_node_that_is_lost_move_together(going: RayRun, nodes: Nodes) -> None:
    nodes.start("spare", 1)
    before = going.live()
    nodes.kill("core")
    going.wait(lambda: going.live()["generation"] > before["generation"], "the learner elsewhere")
    going.wait(lambda: going.live()["shards_restarted_node_lost"] == 2, "the shard elsewhere")
    event = [line for line in going.output().splitlines() if " is lost (" in line][-1]
    assert re.search(", and with it learner 0, shard [01], (worker [012], )*the store of weights", event), event
    going.wait(lambda: going.live()["stores_restarted_node_lost"] == 1, "the store's restart to be counted")
    goes_on(going)
    line = going.live()
    assert (line["restart_budget_left_learner"], line["restart_budget_left_shard"]) == (2, 3)
    assert line[f"node_restarts_shard_node_lost_{nodes.host}"] == 2
    assert line[f"node_restarts_learner_node_lost_{nodes.host}"] == 1
    assert line[f"node_restarts_store_node_lost_{nodes.host}"] == 1
    assert [line["generation"] for line in lines(going.run_dir / "metrics.jsonl")][-1] == 2
