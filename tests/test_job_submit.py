"""A cluster that is running already and asks for a token: ``ray job submit`` from a clean clone, ``--address`` from a checkout."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import pytest
from ray_runs import free_ports, head_node, with_variable
from tiny_runs import ROOT, command, folder_of_ones_own, live, read, start, train_words, wait_for

pytestmark = pytest.mark.cluster

BIN = Path(sys.executable).parent
TAKEN = ("PYTHONPATH", "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name not in TAKEN},
    "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",  # `python` in a job is the one of whoever started the cluster
}


@dataclass(frozen=True)
class Cluster:
    """Where a cluster listens."""

    address: str
    client: str  # of its Ray client server
    dashboard: str
    environment: dict[str, str]  # of a user who has the token


def _answers(url: str, token: str) -> bool:
    asked = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(asked, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head node of this test's own, started as an operator does and ended by its processes' ids."""
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text(secrets.token_hex(32), encoding="ascii")
    environment = ENVIRONMENT | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    with head_node("--num-cpus=6", "--object-store-memory=300000000", env=environment) as head:
        wait_for(lambda: _answers(f"{head.dashboard}/api/version", token.read_text()), "the dashboard", 120)
        yield Cluster(*head, environment)


def _started(log: Path, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, log.read_text()
    return "Ray runtime started" in log.read_text()


def completed(run_dir: Path) -> bool:
    summary = read(run_dir / "summary.json")
    rows = summary["rows"]
    return bool(
        summary["exit"] == "completed"
        and summary["backend"] == "ray"
        and rows["stored"] >= 600
        and rows["recorded"] == rows["stored"] + sum(rows["dropped"].values())
    )


def test_a_job_submitted_from_a_clean_clone_trains_on_the_running_cluster_with_its_own_variables(
    cluster: Cluster, tmp_path: Path
) -> None:
    clone, run_dir, seen = tmp_path / "clone", tmp_path / "run", tmp_path / "seen"
    seen.mkdir()
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True, timeout=120)
    entry = [
        "python",
        "-m",
        "cluster",
        *train_words(run_dir, "Threads-v0", "--steps", "600", "--workers", "2"),
        *("--import", "threads_env", "--py-modules", str(ROOT / "tests" / "threads_env.py")),
    ]
    threads = {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "3"}
    settings = json.dumps({"env_vars": threads | {"THREADS_SEEN": str(seen)}})
    result = subprocess.run(
        [str(BIN / "ray"), "job", "submit", "--address", cluster.dashboard, "--working-dir", ".",
         "--runtime-env-json", settings, "--", *entry],
        cwd=clone, env=cluster.environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3_000:] + result.stderr[-3_000:]
    assert "succeeded" in result.stdout and completed(run_dir)
    workers = [read(path) for path in seen.iterdir()]
    assert len(workers) >= 2 and all(given == threads for given in workers), workers  # the job's values, not ours of 1
    assert str(clone) not in result.stdout.split("run directory")[0]  # the tree that ran is the one Ray unpacked


def test_the_doctor_names_what_makes_a_tree_too_large_before_ray_refuses_it_with_413(
    cluster: Cluster, tmp_path: Path
) -> None:
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True, timeout=120)
    for index in range(12):  # no zip makes them smaller; Ray warns of single files of 10 MiB
        (clone / f"replay-{index:02}.bin").write_bytes(os.urandom((10 << 20) - index - 1))
    doctor = [sys.executable, "-m", "cluster", "doctor", "--run-dir", str(tmp_path)]
    table = subprocess.run(doctor, cwd=clone, capture_output=True, text=True, timeout=120)
    (line,) = [line for line in table.stdout.splitlines() if " tree " in line]
    assert line.startswith("warn") and "more than 100 MiB (zipped) with error 413" in line, table.stdout + table.stderr
    assert "the largest: replay-00.bin (10 MiB), replay-01.bin (10 MiB)" in table.stdout
    result = subprocess.run(
        [str(BIN / "ray"), "job", "submit", "--address", cluster.dashboard, "--working-dir", ".", "--", "true"],
        cwd=clone, env=cluster.environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert result.returncode != 0 and "413: Maximum request body size 104857600 exceeded" in result.stderr
    assert "replay-" not in result.stdout + result.stderr


def test_an_address_joins_the_running_cluster_with_ones_own_module_and_says_for_whom_there_is_no_room(
    cluster: Cluster, tmp_path: Path
) -> None:
    """The module is in the folder that the command starts in; no node of the cluster looks there."""
    run_dir, log, own = tmp_path / "run", tmp_path / "log", folder_of_ones_own(tmp_path / "own")
    flags = ("--steps", "1000000", "--address", cluster.address)
    words = train_words(run_dir, "mine:Mine-v0", *flags, worker__cpus=2, worker__restart_budget=5)
    run = start(*words, log=log, env=cluster.environment, cwd=own)
    try:
        wait_for(lambda: live(run_dir).get("env_steps", 0) > 200 and live(run_dir)["workers"] == 2, "rows", 120, log)
        result = command("scale", str(run_dir), "--workers", "4")
        assert result.stdout == "rollout workers: 2 -> 4: 2 run, 2 wait for CPUs\n", result.stderr
        assert "workers    2 run, 2 wait for CPUs\n" in command("status", str(run_dir)).stdout
        seen = live(run_dir)
        assert [seen[key] for key in ("workers_wanted", "workers", "workers_pending")] == [4, 2, 2]
        assert seen["restart_budget_left_worker"] == 5 and seen["disk_free_bytes"] > 0
        run.terminate()
        assert run.wait(60) == 143, log.read_text()[-3_000:]
        assert "ignored by default" not in log.read_text()  # Ray's words about .git and .venv
        assert f"drawbridge resume {run_dir} --env mine:Mine-v0 --address {cluster.address}`" in log.read_text()
    finally:
        run.kill()
        run.wait(30)
    rows = read(run_dir / "summary.json")["rows"]
    assert rows["recorded"] == rows["stored"] + sum(rows["dropped"].values()) > 200
    token = Path(cluster.environment["RAY_AUTH_TOKEN_PATH"]).read_text(encoding="ascii")
    assert _answers(f"{cluster.dashboard}/api/version", token)


NO_TOKEN: dict[str, tuple[dict[str, str], str]] = {
    "nothing set": ({}, "none was shown; RAY_AUTH_MODE is unset"),
    "switched off": ({"RAY_AUTH_MODE": "disabled"}, "none was shown; RAY_AUTH_MODE is disabled"),
    "another token": ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "wrong"}, "the one shown is wrong"),
}  # fmt: skip


@pytest.mark.parametrize("case", NO_TOKEN)
def test_without_the_token_the_running_cluster_is_refused_at_once_and_by_name(
    case: str, cluster: Cluster, tmp_path: Path
) -> None:
    given, why = NO_TOKEN[case]
    address = cluster.client if case == "another token" else cluster.address
    words = train_words(tmp_path / "run", "InvertedPendulum-v5", "--steps", "600", "--address", address)
    result = command(*words, env=ENVIRONMENT | given, timeout=30)  # Ray by itself tries for 50 s
    assert result.returncode == 2, result.stderr[-3_000:]
    last = result.stderr.strip().splitlines()[-1]
    assert "the cluster asks for a token" in last and why in last and "set RAY_AUTH_MODE=token" in last
    assert not (tmp_path / "run").exists()


def test_a_token_file_that_is_not_there_is_named(cluster: Cluster, tmp_path: Path) -> None:
    words = train_words(tmp_path / "run", "InvertedPendulum-v5", "--steps", "600", "--address", cluster.address)
    result = command(*words, env=ENVIRONMENT | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/none"}, timeout=30)
    assert result.returncode == 2 and "RAY_AUTH_MODE is token here" in result.stderr, result.stderr[-3_000:]
    assert (
        "file cannot be opened or is empty: /none" in result.stderr
        and "the cluster asks for a token" not in result.stderr
    )


# --- a second node --------------------------------------------------------------------------------------------------------

AHEAD = "import time\nreal = time.time\ntime.time = lambda: real() + 90\n"
MISFIT = (
    """mount -t tmpfs tmpfs "$HIDDEN" && mount -t tmpfs -o size=32m tmpfs /dev/shm && ulimit -n 2000 && exec "$@" """
)


@pytest.fixture
def misfit(cluster: Cluster, tmp_path: Path) -> Iterator[Path]:
    """A second node with another mujoco, a fast clock and few resources; it does not see the folder that is yielded."""
    if os.geteuid() != 0:
        pytest.skip("only root can hide a folder from a node")
    hidden, packages, log = tmp_path / "hidden", tmp_path / "packages", tmp_path / "log"
    hidden.mkdir()
    (packages / "mujoco-0.1.dist-info").mkdir(parents=True)
    (packages / "mujoco-0.1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: mujoco\nVersion: 0.1\n")
    (packages / "sitecustomize.py").write_text(AHEAD)
    (agent,) = free_ports(1)
    slow = {"RAY_raylet_start_wait_time_s": "100"}  # until the head knows it; Ray waits for 30 s
    variables = slow | {"PYTHONPATH": f"{packages}{os.pathsep}{os.environ['PYTHONPATH']}", "HIDDEN": str(hidden)}
    words = [
        "unshare", "--mount", "bash", "-c", MISFIT, "bash", str(BIN / "ray"), "start", f"--address={cluster.address}",
        "--num-cpus=1", f"--dashboard-agent-listen-port={agent}", "--object-store-memory=100000000", "--disable-usage-stats",
        "--block",
    ]  # fmt: skip
    with open(log, "wb") as sink:
        node = subprocess.Popen(words, env=cluster.environment | variables, stdout=sink, stderr=sink)
    try:
        wait_for(partial(_started, log, node), "the second node", 120, log)
        yield hidden
    finally:
        ours = with_variable("HIDDEN", str(hidden))
        for process in ours:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(ours, timeout=30)


def test_the_doctor_names_what_is_wrong_with_a_node_and_a_run_that_needs_it_does_not_begin(
    cluster: Cluster, misfit: Path
) -> None:
    result = command("doctor", "--address", cluster.address, "--run-dir", str(misfit / "run"), env=cluster.environment)
    assert result.returncode == 1, result.stderr
    rows = [line.split(maxsplit=2) for line in result.stdout.splitlines() if not line.startswith(" ")]
    wrong = {f"{state} {name}": rest for state, name, rest in rows if state in ("warn", "fail")}
    found = {"warn versions": "mujoco 0.1 (here 3.", "warn clock": "90.0 s ahead", "warn ulimit": "at most 2,000 open files",
             "warn /dev/shm": "/dev/shm holds 0.0 GiB", "fail run": "it is not seen here"}  # fmt: skip
    assert set(wrong) == set(found) and all(words in wrong[key] for key, words in found.items()), result.stdout
    assert len({rest[rest.index("(") : rest.index(")")] for rest in wrong.values()}) == 1, "all are of one node"
    assert "a token is asked for, and ours is taken" in result.stdout and "reaches the other nodes" in result.stdout

    run_dir = misfit / "run"
    words = train_words(run_dir, "InvertedPendulum-v5", "--steps", "600", "--address", cluster.address)
    begun = command(*words, env=cluster.environment)
    assert begun.returncode == 1 and "clock, " in begun.stdout, begun.stderr[-3_000:]
    assert "run directory, " in begun.stderr and "it is not seen here; put --run-dir on storage" in begun.stderr
    assert "not fit for this run" in read(run_dir / "failure.json")["error"] and not any((run_dir / "replay").iterdir())
