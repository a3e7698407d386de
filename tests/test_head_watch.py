"""The head of a cluster that is named dies and comes back with its state, then hangs, then dies for good.

test_own_cluster.py has the head of a run's own cluster, which does not come back either.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ray_runs import PACED, ray_run, with_variable
from tiny_runs import read

pytestmark = pytest.mark.cluster

STATE = "RAY_gcs_storage_path"
SETTING = "RAY_gcs_rpc_server_reconnect_timeout_s"  # of the driver too: it waits half of this
PATIENT, HASTY = {SETTING: "600"}, {SETTING: "16"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def of_cluster(folder: Path, name: str = "") -> list[psutil.Process]:
    """The processes of the cluster that keeps its state in ``folder``; only those called ``name``, if given."""
    found = []
    for process in with_variable(STATE, str(folder / "state")):
        with contextlib.suppress(psutil.Error):
            if name in process.name():
                found.append(process)
    return found


@pytest.fixture(scope="module")
def head() -> Iterator[tuple[Path, str]]:
    """The temporary folder and the address of a cluster whose head keeps its state on disk, so that it can be restarted."""
    folder = Path(tempfile.mkdtemp(prefix="db", dir="/tmp"))  # short: Ray's sockets have at most 107 characters
    port = free_port()
    kept = {"RAY_gcs_storage": "rocksdb", STATE: str(folder / "state")} | PATIENT
    try:
        started = subprocess.run(
            [str(Path(sys.executable).parent / "ray"), "start", "--head", "--node-ip-address=127.0.0.1", f"--port={port}",
             f"--temp-dir={folder}", "--num-cpus=6", "--object-store-memory=200000000", "--include-dashboard=false",
             "--disable-usage-stats"],
            env=os.environ | kept, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert started.returncode == 0, started.stdout + started.stderr
        yield folder, f"127.0.0.1:{port}"
    finally:
        ours = of_cluster(folder)
        for process in ours:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(ours, timeout=30)
        shutil.rmtree(folder, ignore_errors=True)


def test_a_run_goes_on_when_the_head_of_a_cluster_comes_back_with_its_state_and_ends_though_it_hangs(
    head: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = head
    monkeypatch.setenv(*next(iter(PATIENT.items())))
    settings = {"evaluation__every_steps": 0, "worker__restart_budget": 5}
    with ray_run(tmp_path / "run", "--steps", "100000000", "--workers", "1", "--address", address, **settings) as run:
        run.wait_for_steps(200)
        (gcs,) = of_cluster(folder, "gcs_server")
        words, environment = gcs.cmdline(), gcs.environ()
        gcs.kill()
        run.wait_for_steps(run.live()["env_steps"] + 200)  # parts that live need no head
        with open(folder / "restarted.log", "w", encoding="utf-8") as log:
            restarted = subprocess.Popen(words, env=environment, stdout=log, stderr=log)
        of_cluster(folder, "ray::WorkerActor")[0].kill()
        run.wait(lambda: run.live()["workers_restarted"] == 1, "the worker to be replaced")
        run.wait_for_steps(run.live()["env_steps"] + 200)
        restarted.send_signal(signal.SIGSTOP)  # a head that hangs does not keep a run that was asked to end
        run.process.terminate()
        assert run.end() == 143, run.output()[-3_000:]
        restarted.send_signal(signal.SIGCONT)
        assert "ended by SIGTERM at" in run.output().strip().splitlines()[-1], run.output()[-3_000:]
        assert read(run.run_dir / "summary.json")["exit"] == "interrupted"


def test_a_run_whose_named_cluster_loses_its_head_for_good_ends_in_time_with_the_command_that_goes_on(
    head: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = head
    monkeypatch.setenv(*next(iter(HASTY.items())))
    settings = {"evaluation__every_steps": 0}
    with ray_run(tmp_path / "run", "--steps", "100000000", "--workers", "1", "--address", address, **settings) as run:
        run.wait_for_steps(200)
        (gcs,) = of_cluster(folder, "gcs_server")
        gcs.kill()
        killed = time.time()
        assert run.end() == 1, run.output()[-3_000:]
        ended = time.time()
    failure, when = (read(run.run_dir / "failure.json")[key] for key in ("error", "when"))
    print(f"{when - killed:.1f} s after its head died the run had said so, after {ended - killed:.1f} s it had ended")
    assert 7 <= when - killed < 16, "after half of Ray's own limit, before Ray would end the process"
    assert f"drawbridge: error: {failure}" in run.output() and ended - killed < 30, run.output()[-3_000:]
    assert "the head of the Ray cluster (GCS) at " in failure and "expected an answer within 8 s" in failure, failure
    words = failure.split("go on with `")[1]
    assert words.startswith(f"drawbridge resume {run.run_dir} ") and "` when the cluster has a head again" in words
    assert f" --env {PACED}" in words and f" --address {address}" in words, words
    assert run.live()["state"] == "failed"
