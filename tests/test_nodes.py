"""Nodes of a real cluster come and go under one run: what is reserved stays reserved, and the loss of a node is one event."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray_runs import RayRun, ray_run, with_variable
from tiny_runs import command, lines

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
        found = []
        for process in self.processes(name):
            with contextlib.suppress(psutil.NoSuchProcess):
                found += [process] if title in " ".join(process.cmdline()) else []
        return found

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
    """A run whose learner and shard fill node core, and whose workers fill node pool; one worker more has no place.

    Its parts are asked for while node pool is not there yet.
    """
    nodes.start("core", 1)
    settings: dict[str, Any] = {
        "ray__shard_labels": "name=in(core,spare)", "ray__learner_labels": "name=in(core,spare)",
        "ray__worker_labels": "name=in(pool,more)", "worker__cpus": 0.5, "learner__cpus": 0.5, "replay__snapshot_s": 2,
        "learner__checkpoint_s": 2, "evaluation__every_steps": 50_000_000,
    }  # fmt: skip
    flags = ("--steps", "100000000", "--workers", "2", "--address", nodes.address)
    with ray_run(tmp_path_factory.mktemp("nodes") / "run", *flags, **settings) as run:
        run.wait(
            lambda: run.live().get("workers_pending") == 2, "learner and shard, and workers that have no place yet"
        )
        nodes.start("pool", 1)
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
    assert not nodes.titled("head", "Actor") and len(nodes.titled("core", "Actor")) == 3, "learner, shard, store"


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
    nodes.start("more", 1)
    going.wait(lambda: going.live()["workers"] == 3, "the third worker")


def test_the_loss_of_a_node_is_one_event_and_costs_no_budget(going: RayRun, nodes: Nodes) -> None:
    nodes.kill("pool")
    going.wait(lambda: going.live()["workers_restarted_node_lost"] == 2, "both of its workers to be replaced")
    (event,) = [line for line in going.output().splitlines() if " is lost (" in line]
    assert ", and with it worker 0, worker 1, the evaluator: restarted on other nodes" in event, event
    assert "restarted (was on" not in going.output()
    assert going.live()[f"node_restarts_worker_node_lost_{nodes.host}"] == 2
    assert going.live()["restart_budget_left_worker"] == 10 and going.live()["workers"] >= 1
    goes_on(going)


def test_learner_and_shard_of_a_second_node_that_is_lost_move_together(going: RayRun, nodes: Nodes) -> None:
    nodes.start("spare", 1)
    before = going.live()
    nodes.kill("core")
    going.wait(lambda: going.live()["generation"] > before["generation"], "the learner elsewhere")
    going.wait(lambda: going.live()["shards_restarted_node_lost"] == 1, "the shard elsewhere")
    event = [line for line in going.output().splitlines() if " is lost (" in line][-1]
    assert ", and with it learner 0, shard 0" in event, event
    goes_on(going)
    line = going.live()
    assert (line["restart_budget_left_learner"], line["restart_budget_left_shard"]) == (2, 3)
    assert all(line[f"node_restarts_{part}_node_lost_{nodes.host}"] == 1 for part in ("shard", "learner"))
    assert [line["generation"] for line in lines(going.run_dir / "metrics.jsonl")][-1] == 2
