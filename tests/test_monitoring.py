"""deploy/monitoring: a real Prometheus finds real runs by their target files; alerts fire for faults and for nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from monitored import Monitor, monitored
from small_disk import small_disk
from tiny_runs import start, train_words, wait_for

from cluster.errors import Interrupted, RunError, UsageError
from cluster.metrics.discovery import announced, run_label
from cluster.metrics.exporter import Exporter

MONITORING = Path(__file__).resolve().parent.parent / "deploy" / "monitoring"
OF_THE_DISK = {"SnapshotFailed", "ReportFailed", "DiskLow", "CheckpointOld"}
QUICK = {"metrics__port": 0, "metrics__line_s": 0.5, "learner__checkpoint_s": 2, "worker__envs_per_worker": 2}


@pytest.fixture(scope="module")
def monitor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitor]:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed (Debian package prometheus)")
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


def test_the_end_of_a_run_waits_until_a_scraper_has_seen_it(tmp_path: Path) -> None:
    facts = {"algorithm": "gac", "env": "e", "user": "u", "commit": "c"}
    exporter, done, seen = Exporter("trial", facts=facts), threading.Event(), [""]

    def scrape() -> None:
        while not done.is_set():
            with urllib.request.urlopen(exporter.url, timeout=10) as answer:
                seen.append(answer.read().decode())
            done.wait(0.2)

    exporter.set_state("running")
    scraper = threading.Thread(target=scrape)
    scraper.start()
    try:
        wait_for(lambda: len(seen) > 3, "three scrapes")
        exporter.set_state("finishing")
        exporter.set_state("ended")
        exporter.await_last_scrape()
        wait_for(lambda: 'state="ended"' in seen[-1], "the scrape to be answered", 10)
    finally:
        done.set()
        scraper.join(10)
        exporter.close()


def test_monitoring_listens_on_this_machine_alone_and_names_files_that_exist() -> None:
    script = (MONITORING / "start.sh").read_text()
    assert '--web.listen-address="127.0.0.1:$port"' in script
    (grafana,) = yaml.safe_load((MONITORING / "compose.yml").read_text())["services"].values()
    assert grafana["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    places = dict(volume.removesuffix(":ro").split(":") for volume in grafana["volumes"])
    assert all((MONITORING / source).exists() for source in places)
    provisioning = MONITORING / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://127.0.0.1:9090" and "${3:-9090}" in script and source["jsonData"]["manageAlerts"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "drawbridge.yml").read_text())["providers"]
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home in places.values() and Path(home).parent == Path(provider["options"]["path"])


def test_the_script_says_what_it_needs() -> None:
    result = subprocess.run([MONITORING / "start.sh"], capture_output=True, text=True, timeout=30)
    assert result.returncode == 2 and "metrics.targets_dir" in result.stderr
