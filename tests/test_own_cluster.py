"""A cluster that a run starts for itself: nobody reaches it from another host, and on this one it asks for its own token."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from network import Host, reached, second_host
from ray_runs import PACED, RayRun, driven, head_node, ray_run
from tiny_runs import ROOT, folder_of_ones_own, read, train_words, wait_for

from cluster.connection import check_reachable
from cluster.errors import UsageError
from cluster.own_cluster import _remove_old_tokens

pytestmark = pytest.mark.cluster

RAY = Path(sys.executable).parent / "ray"
AUTH = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
LOOPBACK = ("127.0.0.1", "::ffff:127.0.0.1", "::1")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def going(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayRun]:
    """A run of two learners without an end, of a user who has set nothing of Ray's, in a folder with code of their own."""
    with pytest.MonkeyPatch.context() as patch:
        for name in AUTH:
            patch.delenv(name, raising=False)
        patch.setenv("HOME", str(home))
        settings = {"learner__learners": 2, "evaluation__every_steps": 0, "replay__replay_ratio": 0.05}
        folder = folder_of_ones_own(tmp_path_factory.mktemp("own") / "code")
        where: dict[str, Any] = {"env": "mine:Mine-v0", "cwd": folder}
        with ray_run(folder.parent / "run", "--steps", "100000000", **where, **settings) as run:
            run.wait_for_steps(200)
            yield run


def listening(run: RayRun) -> list[tuple[str, int]]:
    """Addresses and ports on which the run's processes accept connections."""
    processes = [psutil.Process(run.process.pid), *run.children()]
    found = [connection for process in processes for connection in process.net_connections("tcp")]
    return [(str(c.laddr.ip), int(c.laddr.port)) for c in found if c.status == psutil.CONN_LISTEN]


def head(run: RayRun) -> psutil.Process:
    return run.children("gcs_server")[0]


def gcs_port(run: RayRun) -> int:
    return next(int(c.laddr.port) for c in head(run).net_connections("tcp") if c.status == psutil.CONN_LISTEN)


def joined(host: Host, address: str) -> str:
    """What `ray start --address` says over there, until it was refused or has joined; it would try for minutes."""
    folder = Path(tempfile.mkdtemp(prefix="db", dir="/tmp"))  # short: Ray's sockets have at most 107 characters
    log = folder / "told"
    words = host.words(str(RAY), "start", f"--address={address}", f"--temp-dir={folder}", "--num-cpus=1", "--block")
    with open(log, "w", encoding="utf-8") as file:
        joining = subprocess.Popen(
            words,
            stdout=file,
            stderr=file,
            env={name: value for name, value in os.environ.items() if name not in AUTH},
        )
    try:
        signs = ("Failed to connect to GCS", "Ray runtime started")
        wait_for(
            lambda: any(sign in log.read_text() for sign in signs), "`ray start` to be refused or to join", 90, log
        )
        return log.read_text()
    finally:
        for process in (*psutil.Process(joining.pid).children(recursive=True), joining):
            process.kill()
        joining.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def test_from_another_host_no_port_of_the_run_is_reached_and_ray_start_cannot_join(going: RayRun) -> None:
    ports = listening(going)
    assert len(ports) >= 8, ports  # head, raylet, agents, driver, actors, the learners' own
    with second_host() as host:
        assert reached(host, [port for _, port in ports]) == []
        assert [where for where in ports if where[0] not in LOOPBACK] == []
        assert "Failed to connect to GCS" in joined(host, f"{host.address_of_ours}:{gcs_port(going)}")


def test_on_this_host_the_cluster_asks_for_its_token_which_only_its_user_can_read(
    going: RayRun, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in AUTH:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match="the cluster asks for a token"):
        check_reachable(f"127.0.0.1:{gcs_port(going)}")
    result = head(going).environ()
    token = Path(result["RAY_AUTH_TOKEN_PATH"])
    assert token.stat().st_mode & 0o777 == 0o600 and token.stat().st_uid == os.geteuid()
    assert len(token.read_text(encoding="ascii")) == 64 and "RAY_AUTH_TOKEN" not in result
    assert not (home / ".ray" / "auth_token").exists()  # a later `ray start` of this user would ask for it


BESIDE = """
import os
import ray
from cluster.connection import connect, disconnect

own = connect(None, cpus=1, object_store_bytes=100_000_000)
print(own, ray.get(ray.remote(lambda: os.environ["RAY_AUTH_TOKEN_PATH"]).remote(), timeout=120))
disconnect(own)
print(sorted(name for name in os.environ if name.startswith("RAY_AUTH")))
"""


def test_a_second_cluster_beside_it_has_a_token_of_its_own_that_its_end_takes_along(going: RayRun) -> None:
    token = Path(head(going).environ()["RAY_AUTH_TOKEN_PATH"])
    given = {name: value for name, value in os.environ.items() if name not in AUTH}
    given |= {"RAY_AUTH_TOKEN": "theirs", "RAY_ADDRESS": ""}  # set, to nothing
    result = subprocess.run(
        [sys.executable, "-c", BESIDE], cwd=ROOT, env=given, capture_output=True, text=True, timeout=200
    )
    assert result.returncode == 0, result.stderr[-3_000:]
    own, path, left = result.stdout.replace("\n", " ", 1).split(maxsplit=2)
    assert own == "True" and path != str(token) and not Path(path).exists()
    assert left.strip() == "['RAY_AUTH_TOKEN']"  # the user's settings are as they were
    going.wait_for_steps(going.live()["env_steps"] + 200)
    assert token.exists()


KILLED = """
import os, signal
from cluster.connection import connect

connect(None, cpus=1, object_store_bytes=100_000_000)
print(os.environ["RAY_AUTH_TOKEN_PATH"], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
TASK = "import ray, sys; ray.init(sys.argv[1]); print(ray.get(ray.remote(lambda: 'works').remote(), timeout=120))"


def test_a_ray_start_of_the_same_user_asks_for_no_token_of_a_run(going: RayRun, home: Path) -> None:
    """While a run goes on, after one that was killed; the next run removes what that left."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {"HOME": str(home)}

    def python(code: str, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, *words], cwd=ROOT, env=clean, capture_output=True, text=True, timeout=200
        )

    left = Path(python(KILLED).stdout.strip())
    assert left.stat().st_mode & 0o777 == 0o600 and going.live()["state"] == "running"
    with head_node("--num-cpus=1", "--object-store-memory=80000000", "--include-dashboard=false", env=clean) as other:
        result = python(TASK, other.address)
    assert result.stdout == "works\n", result.stderr[-3_000:]
    token = Path(head(going).environ()["RAY_AUTH_TOKEN_PATH"])
    ended = python(BESIDE)
    assert ended.returncode == 0 and not left.exists() and token.exists(), ended.stderr[-3_000:]


def test_no_token_is_removed_that_somebody_may_still_need(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    own, held, living, older, link = (
        tmp_path / name for name in (f"drawbridge-{gone.pid}-a.token", f"drawbridge-{gone.pid}-b.token",
                                     f"drawbridge-{os.getpid()}-c.token", "drawbridge-d_e.token", f"drawbridge-{gone.pid}-f.token")
    )  # fmt: skip
    for path in (own, held, living, older):
        path.write_text("token")
    link.symlink_to(living)
    with open(held) as file:  # of a process in another container
        fcntl.flock(file, fcntl.LOCK_SH)
        _remove_old_tokens(tmp_path)
    assert set(tmp_path.iterdir()) == {held, living, older, link}
    if os.geteuid() == 0:
        os.chown(held, 1, 1)
        _remove_old_tokens(tmp_path)
        assert held.exists()


def test_a_run_whose_head_dies_ends_with_the_reason_and_the_command_that_goes_on_and_leaves_nothing(
    going: RayRun,
) -> None:
    token = Path(head(going).environ()["RAY_AUTH_TOKEN_PATH"])
    head(going).kill()
    check_end_without_head(going, "(UNAVAILABLE)")
    assert not token.exists()


def test_a_run_whose_head_hangs_ends_in_the_same_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "12")  # two questions of 3 s without an answer
    with ray_run(tmp_path / "run", "--steps", "100000000", evaluation__every_steps=0) as run:
        run.wait_for_steps(200)
        head(run).suspend()
        check_end_without_head(run, "(DEADLINE_EXCEEDED)")


def check_end_without_head(run: RayRun, code: str) -> None:
    """The run ends by itself, with the reason and the command that goes on, and leaves no process."""
    assert run.end() == 1, run.output()[-3_000:]
    last = run.output().strip().splitlines()[-1]
    assert "the head of the Ray cluster (GCS) at 127.0.0.1:" in last and code in last, run.output()[-3_000:]
    assert f"go on with `drawbridge resume {run.run_dir}" in last
    assert last.endswith(read(run.run_dir / "failure.json")["error"]) and run.live()["state"] == "failed"
    wait_for(lambda: not run.alive(), "the run's processes to end", 60)


TRIES = """
import os, sys, time, types
from pathlib import Path

import psutil
import ray
from ray._private import node, services

from cluster.connection import connect, disconnect
from cluster.errors import RunError
from cluster.own_cluster import start_cluster

WAIT = "RAY_gcs_server_port_wait_time_s"  # Ray's own deadline for its head's port
SIZES = {"num_cpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False}


def attempt(title, limit_s, **options):
    try:
        start_cluster(limit_s, lambda text: print(title, "| again:", text), **SIZES | options)
    except RunError as error:
        print(title, "|", error)


def slow_once(text):
    print("slow once | again:", text)
    os.environ[WAIT] = "60"


os.environ[WAIT] = "0"
attempt("too slow", 0.0)
own = connect(None, cpus=1, object_store_bytes=100_000_000, start_timeout_s=60, event=slow_once)
heads = [child for child in psutil.Process().children() if child.name() == "gcs_server"]
print("slow once |", own, len(heads), ray.get(ray.remote(lambda: "works").remote(), timeout=120))
disconnect(own)

attempt("no folder", 600.0, _temp_dir="/proc/nowhere")

os.environ["RAY_raylet_start_wait_time_s"] = "1"  # of one question to the head; Ray asks again for 30 s, which are 1 here
node.time = types.SimpleNamespace(**vars(time) | {"monotonic": lambda: 30 * time.monotonic()})
for title, script in (
    ("slow raylet", "exec sleep 100"),
    ("slow agents", 'for word; do case $word in --log_dir=*) log=${word#*=};; esac; done; echo "'
     '(raylet) x.cc:1: Check failed: Timed out waiting for file metrics_agent_port" > $log/raylet.err; exit 1'),
    ("dead raylet", "exit 1"),
):
    services.RAYLET_EXECUTABLE = str(Path(sys.argv[1], title, "raylet"))
    Path(services.RAYLET_EXECUTABLE).parent.mkdir()
    Path(services.RAYLET_EXECUTABLE).write_text("#!/bin/sh\\n" + script)
    Path(services.RAYLET_EXECUTABLE).chmod(0o700)
    attempt(title, 0.0 if "slow" in title else 600.0)
"""


def test_a_start_that_is_only_slow_is_tried_again_until_its_deadline_and_any_other_failure_ends_at_once(
    tmp_path: Path,
) -> None:
    words = [sys.executable, "-c", TRIES, str(tmp_path)]
    result = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stderr[-3_000:]
    said = [line.split(" | ", 1) for line in result.stdout.splitlines()]
    assert [title for title, _ in said] == [
        "too slow", "slow once", "slow once", "no folder", "slow raylet", "slow agents", "dead raylet"
    ], said  # fmt: skip
    texts = dict(said)
    assert said[1][1].startswith("again: Ray has not started after 0 s (Timed out waiting for file"), said[1]
    assert texts["slow once"] == "True 1 works"  # nothing is left of the first attempt
    for title, cause in (
        ("too slow", "Timed out waiting for file"),
        ("slow raylet", "The current node timed out during startup"),
        ("slow agents", "Ray's raylet ended by itself: Timed out waiting for file metrics_agent_port"),
    ):
        assert "within" in texts[title] and f"1 attempts ({cause}" in texts[title], texts[title]
        assert "raise ray.start_timeout_s" in texts[title]
    for title, cause in (
        ("no folder", "No such file or directory: '/proc/nowhere'"),
        ("dead raylet", "Ray's raylet ended by itself: it wrote no reason"),
    ):
        assert texts[title].startswith("Ray could not start on this machine: ") and cause in texts[title], texts[title]


def test_a_signal_to_the_group_of_the_driver_ends_the_run_in_order(tmp_path: Path) -> None:
    words = train_words(tmp_path / "run", PACED, "--backend", "ray", "--steps", "100000000", "--workers", "3")
    with driven(tmp_path / "run", *words, before=["setsid"]) as run:  # as `timeout` and job control have it
        run.wait_for_steps(200)
        assert [child.name() for child in run.children() if os.getpgid(child.pid) == run.process.pid] == []
        os.killpg(run.process.pid, signal.SIGTERM)
        assert run.end() == 143, run.output()[-3_000:]
    last = run.output().strip().splitlines()[-1]
    assert "; saved: the checkpoint of update" in last and "NOT saved" not in last, run.output()[-3_000:]
    assert "did not end in order" not in run.output()
