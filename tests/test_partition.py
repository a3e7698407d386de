"""A cluster of two hosts that asks for a token: strangers on the other host are refused, and a short cut between the hosts costs nothing.

Longer cuts: benchmarks/partition.py.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from counting_env import FOLDER, counted
from network import Host
from ray_runs import ray_run, two_hosts
from tiny_runs import ROOT, read, train_words

pytestmark = pytest.mark.cluster

CUT_S = 5.0


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Host]]:
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text(secrets.token_hex(32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        patch.setenv(FOLDER, str(token.parent))  # workers have the environment of their node
        with two_hosts({}) as found:
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


def test_a_cut_of_five_seconds_between_two_hosts_loses_no_row_and_restarts_nobody(
    hosts: tuple[str, Host], tmp_path: Path
) -> None:
    address, host = hosts
    folder = Path(os.environ[FOLDER])
    settings = {
        "worker__cpus": 1, "worker__envs_per_worker": 1, "worker__max_unacked": 2, "replay__replay_ratio": 0.2,
        "evaluation__every_steps": 0, "ray__shard_labels": "name=core", "ray__learner_labels": "name=core",
    }  # fmt: skip
    flags = ("--steps", "100000000", "--workers", "2", "--address", address)
    with ray_run(tmp_path / "run", *flags, env="counting_env:Counting-v0", **settings) as run:
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


def sizes(folder: Path) -> dict[str, int]:
    """Steps of each environment that has made some hundred: those of the workers."""
    return {path.name: size for path in folder.glob("*.steps") if (size := path.stat().st_size) > 100}
