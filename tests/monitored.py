"""A real Prometheus over real runs: started by deploy/monitoring/start.sh, with the rules of deploy/alerts.yml made impatient.

Docker is a stand-in that notes how it was called, so no Grafana is started.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
MINUTE_S = 2  # how long a minute of the rules is here: two scrapes
HOLD_S = 8  # least `for`: Prometheus takes 5 s to drop a target


def impatient(rules: str) -> str:
    """The text of the rules with shorter minutes, otherwise as it is."""
    rules = re.sub(r"for: (\d+)m", lambda found: f"for: {max(HOLD_S, MINUTE_S * int(found[1]))}s", rules)
    return re.sub(r"\[(\d+)m", lambda found: f"[{MINUTE_S * int(found[1])}s", rules)


DOCKER = """#!/bin/bash
echo "$PROMETHEUS_PORT $*" >>"{calls}"
for word in {fails}; do [[ " $* " != *" $word "* ]] || exit 1; done
"""


def with_docker(folder: Path, fails: str = "") -> tuple[dict[str, str], Path]:
    """Variables with which ``docker`` is a stand-in that fails in the subcommands ``fails``, and the file of its calls."""
    calls, program = folder / "calls", folder / "bin" / "docker"
    program.parent.mkdir(parents=True)
    calls.touch()
    program.write_text(DOCKER.format(calls=calls, fails=fails))
    program.chmod(0o755)
    return {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}, calls


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


class Monitor:
    """A Prometheus that scrapes the runs announced in ``targets`` every ``every_s`` seconds."""

    def __init__(self, folder: Path, every_s: int) -> None:
        self.targets, self.log = folder / "targets", folder / "log"
        deploy = folder / "deploy"
        shutil.copytree(ROOT / "deploy", deploy)
        (deploy / "alerts.yml").write_text(impatient((ROOT / "deploy" / "alerts.yml").read_text()))
        config = yaml.safe_load((deploy / "monitoring" / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": f"{every_s}s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        (deploy / "monitoring" / "prometheus.yml").write_text(yaml.safe_dump(config))
        port, (environment, _) = free_port(), with_docker(folder, fails="version")
        self.url = f"http://127.0.0.1:{port}"
        words = [deploy / "monitoring" / "start.sh", self.targets, folder / "data", str(port)]
        with self.log.open("wb") as sink:
            self.process = subprocess.Popen(words, stdout=sink, stderr=sink, env=environment)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """What Prometheus answers; nothing while it is not up yet."""
        words = urllib.parse.urlencode({"query": expression})
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"{self.url}/api/v1/query?{words}", timeout=10) as reply,
        ):
            return list(json.loads(reply.read())["data"]["result"])
        return []

    def states(self, run: str) -> set[str]:
        """The states that the run in directory ``run`` was ever scraped in."""
        found = self.query(f'last_over_time(drawbridge_run_info{{run=~"{run}-.*"}}[1h])')
        return {series["metric"]["state"] for series in found}

    def fired(self, run: str, target: str) -> set[str]:
        """The alerts that ever fired for the run in directory ``run`` or for its address ``target``."""
        of_run, of_target = (f'last_over_time(ALERTS{{alertstate="firing",{which}}}[1h])' for which in (
            f'run=~"{run}-.*"', f'instance="{target}"'))  # fmt: skip
        return {series["metric"]["alertname"] for series in self.query(f"{of_run} or {of_target}")}

    def value(self, alert: str, target: str) -> float:
        """What the expression of ``alert`` gives now that it fires for address ``target``; 0 where it does not."""
        with urllib.request.urlopen(f"{self.url}/api/v1/alerts", timeout=10) as reply:
            alerts = json.loads(reply.read())["data"]["alerts"]
        wanted = {"alertname": alert, "instance": target}.items()
        firing = [one for one in alerts if wanted <= one["labels"].items() and one["state"] == "firing"]
        return max((float(one["value"]) for one in firing), default=0.0)

    def target(self, run: str) -> str:
        """The address that the run in directory ``run`` has announced; empty before and after."""
        for path in self.targets.glob(f"{run}-*.json"):
            return str(json.loads(path.read_text())[0]["targets"][0])
        return ""

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)


@contextlib.contextmanager
def monitored(folder: Path, every_s: int = 1) -> Iterator[Monitor]:
    monitor = Monitor(folder, every_s)
    try:
        yield monitor
    finally:
        monitor.close()
