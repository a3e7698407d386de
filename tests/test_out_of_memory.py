"""A rollout worker takes more and more memory, in a group of processes that may have so much: Ray's memory monitor kills it, and it alone."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from counting_env import FOLDER, counted
from ray_runs import RayRun, driven
from tiny_runs import read, train_words, wait_for

pytestmark = pytest.mark.cluster

LIMIT_BYTES, SHARE = 6 << 30, 0.6  # of the group; of it the part from which on Ray kills: a run takes about 2 GiB
CHUNK, UNACKED = 4, 2


@contextlib.contextmanager
def small_memory() -> Iterator[list[str]]:
    """Words before a command: what it starts has LIMIT_BYTES of memory, and sees that as a container sees its own."""
    first = Path("/sys/fs/cgroup/memory")  # cgroup version 1
    mount, limit = (first, "memory.limit_in_bytes") if first.is_dir() else (first.parent, "memory.max")
    group = mount / f"drawbridge-{os.getpid()}"
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("a group of processes with little memory takes root and util-linux")
    try:
        group.mkdir()
        (group / limit).write_text(str(LIMIT_BYTES))
    except OSError as error:
        pytest.skip(f"no group of processes with little memory here: {error}")
    script = f'mount --bind {group} {mount} && echo $$ > {mount}/cgroup.procs && exec "$@"'
    try:
        yield ["unshare", "--mount", "sh", "-c", script, "sh"]
    finally:
        wait_for(lambda: not (group / "cgroup.procs").read_text(), "the processes of the group to end", 60)
        group.rmdir()


def log_of(run: RayRun) -> Path:
    """What the run's raylet says."""
    (head,) = run.children("gcs_server")
    return Path(next(word.split("=", 1)[1] for word in head.cmdline() if word.startswith("--log_dir="))) / "raylet.out"


def test_a_worker_that_leaks_is_killed_before_the_shard_the_store_and_the_learner_named_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    monkeypatch.setenv("RAY_memory_usage_threshold", str(SHARE))
    settings = {
        "worker__envs_per_worker": 1, "worker__chunk_steps": CHUNK, "worker__max_unacked": UNACKED, "replay__replay_ratio": 0.2,
        "evaluation__every_steps": 300, "metrics__line_s": 0.5,
    }  # fmt: skip
    words = train_words(tmp_path / "run", "counting_env:Counting-v0", "--backend", "ray", "--steps", "100000000",
                        "--workers", "2", **settings)  # fmt: skip
    with small_memory() as before, driven(tmp_path / "run", *words, before=before) as run:
        run.wait_for_steps(400)
        log, others = log_of(run), {p.pid for part in ("Shard", "Store", "Learner") for p in run.children(f"::{part}")}
        workers = {process.pid for process in run.children("::Worker")}
        (tmp_path / "leak").touch()
        run.wait(lambda: run.live()["workers_restarted"], "a worker to be replaced")
        run.wait_for_steps(run.live()["env_steps"] + 200)
        assert "OOM kill reason: Memory usage" in log.read_text(), "Ray's monitor did not kill it"
        assert others <= {process.pid for process in run.children()} and len(others) == 3
        assert workers - {process.pid for process in run.children()}
        run.process.terminate()
        assert run.end() == 143, run.output()[-3_000:]
    line, summary = run.live(), read(tmp_path / "run" / "summary.json")
    assert (
        line["shards_restarted_died"] == line["learners_restarted_died"] == 0 and line["workers_restarted_raised"] == 0
    )
    (event, *_) = [text for text in run.output().splitlines() if "restarted (was on" in text]
    assert "or because its node ran out of memory" in event and "MiB when it last said so" in event
    rows, kills = summary["rows"], summary["workers"]["restarted"]
    assert rows["recorded"] == rows["stored"] + sum(rows["dropped"].values()), rows
    assert 0 <= counted(tmp_path, run.process.pid) - rows["recorded"] <= kills * ((UNACKED + 1) * CHUNK + 1), rows
