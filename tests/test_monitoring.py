"""deploy/monitoring: a real Prometheus finds real runs by their target files; alerts fire for faults and for nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from at_hand import PROMETHEUS, program
from monitored import Monitor, free_port, monitored, with_docker
from small_disk import small_disk
from tiny_runs import live, start, train_words, wait_for

from cluster.drive import _await_last_scrape
from cluster.errors import Interrupted, RunError, UsageError
from cluster.metrics.discovery import announced, run_label
from cluster.metrics.exporter import Exporter

ROOT = Path(__file__).resolve().parent.parent
MONITORING = ROOT / "deploy" / "monitoring"
OF_THE_DISK = {"SnapshotFailed", "ReportFailed", "DiskLow", "CheckpointOld"}
SCRAPE = {"X-Prometheus-Scrape-Timeout-Seconds": "1"}  # a header that Prometheus sends
QUICK = {"metrics__port": 0, "metrics__line_s": 0.5, "learner__checkpoint_s": 2, "worker__envs_per_worker": 2}


@pytest.fixture(scope="module")
def monitor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitor]:
    program("prometheus", PROMETHEUS)
    with monitored(tmp_path_factory.mktemp("monitor")) as monitor:
        yield monitor


def test_alerts_fire_for_the_faults_of_a_run_and_for_nothing_of_a_healthy_one(monitor: Monitor, tmp_path: Path) -> None:
    """One run on a full disk, of an environment that returns NaN, is killed in the end; one beside it is healthy, and is stopped."""
    settings: dict[str, Any] = QUICK | {"metrics__targets_dir": monitor.targets}
    flags = ("--backend", "inline", "--steps", "100000000")
    with small_disk(tmp_path / "disk") as disk:
        healthy = start(
            *train_words(tmp_path / "healthy", "InvertedPendulum-v5", *flags, **settings), log=tmp_path / "h"
        )
        words = train_words(disk.path / "faulty", "broken_envs:SometimesNaN-v0", *flags, **settings)
        faulty = start(*words, log=tmp_path / "f")
        try:
            for run in ("healthy", "faulty"):
                wait_for(lambda run=run: "running" in monitor.states(run), f"{run} to be scraped", 60, monitor.log)
            targets = {run: monitor.target(run) for run in ("healthy", "faulty")}

            def fired() -> set[str]:
                return monitor.fired("faulty", targets["faulty"])

            wait_for(lambda: "RowsDropped" in fired(), "RowsDropped", 60, monitor.log)
            wait_for(disk.kept_full(lambda: fired() >= OF_THE_DISK), f"{OF_THE_DISK}", 60, monitor.log)
            assert "RunDown" not in fired()
            faulty.kill()
            wait_for(lambda: "RunDown" in fired(), "RunDown", 60, monitor.log)
            assert fired() == {"RowsDropped", "RunDown", *OF_THE_DISK}
            healthy.terminate()
            assert healthy.wait(60) == 143
            assert monitor.target("healthy") == "" and monitor.target("faulty") == targets["faulty"]
            assert monitor.states("healthy") >= {"running"} and monitor.states("healthy") & {"finishing", "ended"}
            wait_for(
                lambda: not monitor.query(f'up{{instance="{targets["healthy"]}"}}'), "the target to go", 60, monitor.log
            )
            assert monitor.fired("healthy", targets["healthy"]) == set()
        finally:
            for process in (healthy, faulty):
                process.kill()
                process.wait(30)


def test_a_target_file_goes_when_a_run_ends_in_order_and_stays_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "targets" / "run-1.json"
    for error, stays in ((None, False), (Interrupted(15, "stopped"), False), (RunError("broken"), True)):
        try:
            with announced(path.parent, "run-1", "127.0.0.1", 9464):
                assert json.loads(path.read_text()) == [
                    {"targets": ["127.0.0.1:9464"], "labels": {"job": "drawbridge"}}
                ]
                if error:
                    raise error
        except (RunError, Interrupted):
            pass
        assert path.exists() == stays


def test_a_resume_elsewhere_names_the_target_file_that_its_killed_run_left_and_removes_none_that_it_was_not_told_of(
    tmp_path: Path,
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    old, new = tmp_path / "old targets", tmp_path / "new"

    def killed(*words: str) -> str:
        """What a command says whose process is killed as soon as it trains; its endpoint is gone with it."""
        process = start(*words, log=log)
        try:
            wait_for(
                lambda: (seen := live(run)).get("pid") == process.pid and seen["state"] == "running", "it", 90, log
            )
        finally:
            process.kill()
            process.wait(30)
        return log.read_text()

    flags = ("--backend", "inline", "--steps", "100000000")
    settings: dict[str, Any] = QUICK | {"metrics__targets_dir": old}
    killed(*train_words(run, "InvertedPendulum-v5", *flags, **settings))
    (left,) = old.iterdir()
    resume = ("resume", str(run), "--set")
    said = killed(*resume, f"metrics.targets_dir={new}")
    (command,) = re.findall(r"remove it: (rm .*)", said)
    assert left.exists() and (new / left.name).exists() and f"WARNING: {left} still tells Prometheus" in said
    subprocess.run(command, shell=True, check=True, timeout=30)
    assert not list(old.iterdir())
    assert "WARNING" not in killed(*resume, f"metrics.targets_dir={new}")
    said = killed(*resume, f"metrics.targets_dir={new}", "--set", "metrics.port=-1")
    assert "WARNING" not in said and not list(new.iterdir()), "the command named the folder"
    killed(*resume, f"metrics.targets_dir={new}", "--set", "metrics.port=0")
    assert f"rm {new / left.name}" in killed(*resume, "metrics.targets_dir=") and (new / left.name).exists()
    assert "WARNING" not in killed("resume", str(run)), "nothing names that folder any more"


def test_a_folder_of_targets_that_cannot_be_written_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UsageError, match=r"metrics\.targets_dir.*nothing was started"),
        announced(tmp_path / "file", "a", "h", 1),
    ):
        pass


def test_an_endpoint_on_all_addresses_is_announced_under_the_hosts_name(tmp_path: Path) -> None:
    with announced(tmp_path, "a", "0.0.0.0", 9464):
        (target,) = json.loads((tmp_path / "a.json").read_text())[0]["targets"]
    assert target.endswith(":9464") and not target.startswith("0.0.0.0")


def test_the_label_of_a_run_is_its_own_and_stays(tmp_path: Path) -> None:
    runs = [tmp_path / name / "run" for name in "ab"]
    for run in runs:
        (run / "control").mkdir(parents=True)
    labels = [run_label(run) for run in runs]
    assert labels[0] != labels[1] and [run_label(run) for run in runs] == labels
    (runs[0] / "control" / "run_id").write_bytes(b"\xff{}")
    assert run_label(runs[0]) == run_label(runs[0]) != labels[0], "a damaged one is replaced"


def test_a_copy_of_a_run_gets_a_label_of_its_own_and_one_that_is_moved_keeps_it(tmp_path: Path) -> None:
    run, copy = tmp_path / "a" / "run", tmp_path / "b" / "run"
    (run / "control").mkdir(parents=True)
    label = run_label(run)
    shutil.copytree(run, copy)
    assert run_label(copy) == run_label(copy) != label == run_label(run)
    moved = run.rename(tmp_path / "run")
    assert run_label(moved) == label
    (moved / "control" / "run_id").write_text("0123abcd")  # as earlier versions wrote it
    assert run_label(moved) == "run-0123abcd"
    shutil.copytree(moved, tmp_path / "c" / "run")
    assert run_label(tmp_path / "c" / "run") != "run-0123abcd"


def test_the_end_of_a_run_waits_until_prometheus_has_seen_it_and_for_nobody_else() -> None:
    facts = {"algorithm": "gac", "env": "e", "user": "u", "commit": "c"}
    exporter, said, end = Exporter("trial", facts=facts), list[str](), threading.Event()

    def scrape(**headers: str) -> str:
        with urllib.request.urlopen(urllib.request.Request(exporter.url, headers=headers), timeout=10) as answer:
            return str(answer.read().decode())

    def wait_for_the_last_scrape() -> None:
        _await_last_scrape(exporter, said.append)
        end.set()

    try:
        exporter.set_state("running")
        exporter.set_state("ended")
        scrape()
        exporter.set_state("ended")
        wait_for_the_last_scrape()
        assert said == [], "of a run that no Prometheus watches"
        end.clear()
        exporter.set_state("running")
        scrape(**SCRAPE)
        exporter.set_state("ended")
        waiting = threading.Thread(target=wait_for_the_last_scrape)
        waiting.start()
        wait_for(lambda: said, "the wait to be said")
        scrape()
        assert not end.wait(0.3), "it has not come again"
        assert 'state="ended"' in scrape(**SCRAPE)
        waiting.join(10)
        assert end.is_set()
    finally:
        exporter.close()


def test_a_run_that_is_scraped_every_10_s_is_seen_to_end_in_order(tmp_path: Path) -> None:
    program("prometheus", PROMETHEUS)
    with monitored(tmp_path / "monitor", every_s=10) as monitor:
        settings: dict[str, Any] = QUICK | {"metrics__targets_dir": monitor.targets}
        flags = ("--backend", "inline", "--steps", "100000000")
        run = start(*train_words(tmp_path / "run", "InvertedPendulum-v5", *flags, **settings), log=tmp_path / "log")
        try:
            wait_for(lambda: "running" in monitor.states("run"), "the run to be scraped", 60, monitor.log)
            run.terminate()
            assert run.wait(60) == 143
        finally:
            run.kill()
            run.wait(30)
        (ended,) = monitor.query('last_over_time(drawbridge_run_ended{run=~"run-.*"}[1h])')
        assert ended["value"][1] == "1"


def test_monitoring_listens_on_this_machine_alone_and_names_files_that_exist() -> None:
    script = (MONITORING / "start.sh").read_text()
    assert '--web.listen-address="127.0.0.1:$port"' in script
    (grafana,) = yaml.safe_load((MONITORING / "compose.yml").read_text())["services"].values()
    assert grafana["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    places = dict(volume.removesuffix(":ro").split(":") for volume in grafana["volumes"])
    assert all((MONITORING / source).exists() for source in places)
    provisioning = MONITORING / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://127.0.0.1:$PROMETHEUS_PORT" and source["jsonData"]["manageAlerts"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "drawbridge.yml").read_text())["providers"]
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home in places.values() and Path(home).parent == Path(provider["options"]["path"])


def ready(port: int) -> bool:
    """Whether Prometheus answers there."""
    with (
        contextlib.suppress(OSError),
        urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=10) as reply,
    ):
        return bool(reply.status == 200)
    return False


@contextlib.contextmanager
def begun(folder: Path, port: int, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """``make monitoring`` in a process group of its own, as a terminal starts it; what it says is in ``folder/log``."""
    program("prometheus", PROMETHEUS)
    words = ["make", "monitoring", f"TARGETS={folder / 'targets'}", f"DATA={folder / 'data'}", f"PORT={port}"]
    with (folder / "log").open("wb") as sink:
        process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=sink, stderr=sink, start_new_session=True)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def test_one_command_starts_prometheus_and_grafana_and_ctrl_c_ends_both(tmp_path: Path) -> None:
    port, (environment, calls) = free_port(), with_docker(tmp_path)
    log = tmp_path / "log"
    with begun(tmp_path, port, environment) as process:
        wait_for(lambda: ready(port) and "Grafana: http://127.0.0.1:3000\n" in log.read_text(), "both", 60, log)
        os.killpg(process.pid, signal.SIGINT)
        process.wait(60)
    assert not ready(port)
    compose = f"{port} compose --file {MONITORING / 'compose.yml'}"
    told = [f"{port} compose version", f"{compose} up --detach --quiet-pull", f"{compose} down"]
    assert calls.read_text().splitlines() == told
    assert f"Prometheus: http://127.0.0.1:{port}/alerts" in log.read_text()


def test_docker_compose_knows_the_words_that_it_is_given() -> None:
    calls = re.findall(r'"\$\{compose\[@\]\}" ([a-z -]+[a-z])', (MONITORING / "start.sh").read_text())
    assert [call.split()[0] for call in calls] == ["down", "up"]
    for call in calls:
        words = [program("docker-compose"), "--file", str(MONITORING / "compose.yml"), *call.split(), "--help"]
        subprocess.run(words, check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize("fails", ["version", "up"])
def test_prometheus_runs_without_grafana_where_docker_cannot_start_it_which_is_said(tmp_path: Path, fails: str) -> None:
    port, (environment, calls) = free_port(), with_docker(tmp_path, fails)
    log = tmp_path / "log"
    with begun(tmp_path, port, environment) as process:
        wait_for(lambda: ready(port) and "Grafana is left out: " in log.read_text(), "Prometheus", 60, log)
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)
    assert not ready(port) and log.read_text().count("Grafana") == 1
    assert ("up" in calls.read_text().split(), "down" in calls.read_text().split()) == (fails == "up",) * 2


def test_a_port_that_is_taken_is_named_and_a_grafana_that_runs_is_left_alone(tmp_path: Path) -> None:
    environment, calls = with_docker(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with begun(tmp_path, port, environment) as process:
            assert process.wait(60) != 0
    assert f"port {port} of 127.0.0.1 is taken, so nothing was started" in (tmp_path / "log").read_text()
    assert not calls.read_text()


def test_data_of_a_prometheus_that_runs_are_not_shared_with_a_second_one(tmp_path: Path) -> None:
    port, (environment, _) = free_port(), with_docker(tmp_path, "version")
    with begun(tmp_path, port, environment):
        wait_for(lambda: ready(port), "Prometheus", 60, tmp_path / "log")
        words = [MONITORING / "start.sh", tmp_path / "others", tmp_path / "data", str(free_port())]
        second = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)
        assert second.returncode == 1 and f"keeps its data in {tmp_path / 'data'}, so nothing" in second.stderr
        assert str(tmp_path / "targets") in (tmp_path / "data" / "prometheus.yml").read_text() and ready(port)


def test_the_script_says_what_it_needs() -> None:
    result = subprocess.run([MONITORING / "start.sh"], capture_output=True, text=True, timeout=30)
    assert result.returncode == 2 and "metrics.targets_dir" in result.stderr
