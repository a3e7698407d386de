"""On a real Ray, rows are counted against the environments' own files: through storms of kills, scaling, and every end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from counting_env import counted
from ray_runs import RayRun, driven, ray_run
from tiny_runs import command, lines, newest_manifest, read

from learners import checkpoint

pytestmark = pytest.mark.cluster

GRACE_S = 25.0  # between SIGTERM and a scheduler's SIGKILL
ENV = "counting_env:Counting-v0"
SHARDS, CHUNK, UNACKED = 2, 4, 2
SETTINGS: dict[str, Any] = {
    "replay__snapshot_s": 2.0,
    "learner__checkpoint_s": 2.0,
    "evaluation__every_steps": 0,
    "replay__capacity_rows": 400_000,
    "replay__replay_ratio": 0.2,
    "worker__envs_per_worker": 1,
    "worker__chunk_steps": CHUNK,
    "worker__max_unacked": UNACKED,
    "worker__restart_budget": 20,
    "ray__shard_restart_budget": 20,
    "metrics__line_s": 0.25,
}


def on_disk(run_dir: Path) -> list[int]:
    """Rows that the newest snapshot of each shard stands for."""
    found = []
    for index in range(SHARDS):
        manifest = newest_manifest(run_dir / "replay" / f"shard-{index}")
        found.append(manifest["state"]["table"]["inserted"])
    return found


def kill_shard_after_acks(run: RayRun, also: str = "") -> None:
    """Kills a shard right after it stored and acknowledged more, most of which the driver has not heard of."""
    result = run.output().count("was restarted by Ray")
    before = run.live()["env_steps"]
    run.wait(lambda: run.live()["env_steps"] > before, "rows to be acknowledged")
    if also:
        run.kill_one(also)
    run.kill_one("ray::ShardActor")
    run.wait(lambda: run.output().count("was restarted by Ray") > result, "the shard's restart")


def totals(run_dir: Path) -> dict[str, Any]:
    rows = read(run_dir / "summary.json")["rows"]
    assert rows["recorded"] == rows["stored"] + sum(rows["dropped"].values()), rows
    return dict(rows)


@pytest.fixture(scope="module")
def stormy(folder: Path) -> Iterator[RayRun]:
    """A run that was scaled, whose shards were killed, whose worker raised, and that SIGTERM ended. No worker was killed."""
    flags = ("--steps", "100000000", "--workers", "3", "--shards", str(SHARDS))
    with ray_run(folder / "run", *flags, env=ENV, **SETTINGS) as run:
        run.wait_for_steps(300)
        kill_shard_after_acks(run)
        kill_shard_after_acks(run)
        result = command("scale", str(run.run_dir), "--workers", "2")
        assert result.returncode == 0, result.stderr
        restarts = run.live()["workers_restarted"]
        (folder / "raise").touch()
        run.wait(lambda: run.live()["workers_restarted"] > restarts, "the worker that raised to be replaced")
        kill_shard_after_acks(run)
        begun = time.monotonic()
        run.process.terminate()
        assert run.end() == 143, run.output()[-3_000:]
        assert time.monotonic() - begun < GRACE_S
        yield run


def test_after_shards_died_a_worker_raised_and_sigterm_every_step_is_stored_or_dropped_by_a_reason(
    stormy: RayRun, folder: Path
) -> None:
    rows = totals(stormy.run_dir)
    assert rows["recorded"] == counted(folder, stormy.process.pid), rows
    assert rows["dropped"]["shard_restart"] > 0 and rows["dropped"]["worker_lost"] == 2, rows
    assert rows["stored"] == sum(on_disk(stormy.run_dir)), "the counters are not of what was saved"
    last = lines(stormy.run_dir / "metrics.jsonl")[-1]
    assert last["rows_in_flight"] == 0 and last["rows_stored"] == rows["stored"]


def test_what_sigterm_says_was_saved_is_on_disk(stormy: RayRun) -> None:
    summary, last = read(stormy.run_dir / "summary.json"), stormy.output().strip().splitlines()[-1]
    meta = checkpoint.newest_meta(stormy.run_dir / "checkpoints")
    assert meta is not None and meta["updates"] == summary["updates"]
    disk = on_disk(stormy.run_dir)
    assert (
        f"saved: the checkpoint of update {meta['updates']:,}, snapshots of 2 of 2 shards ({sum(disk):,} rows)" in last
    )
    assert "NOT" not in last and "go on with `drawbridge resume" in last
    assert summary["saved"] == {
        "checkpoint": {"updates": meta["updates"]},
        "snapshots": [{"rows": rows} for rows in disk],
    }
    assert last.removeprefix("drawbridge: ") in command("status", str(stormy.run_dir)).stdout


@pytest.fixture(scope="module")
def killed(stormy: RayRun, folder: Path) -> Iterator[tuple[RayRun, int]]:
    """The run, gone on with; workers and shards are killed at once, and no checkpoint can be written at the end."""
    before, rows = counted(folder, stormy.process.pid), totals(stormy.run_dir)
    assert before == rows["recorded"], "the test before this one"
    with driven(stormy.run_dir, "resume", str(stormy.run_dir), "--env", ENV) as run:
        run.wait_for_steps(rows["stored"] + 300)
        for also in ("ray::WorkerActor", "ray::WorkerActor", ""):
            kill_shard_after_acks(run, also)
        run.wait(lambda: run.live()["workers_restarted"] >= 3, "the workers' restarts")
        run.wait_for_steps(run.live()["env_steps"] + 300)
        checkpoints = run.run_dir / "checkpoints"
        checkpoints.rename(run.run_dir / "elsewhere")
        checkpoints.touch()
        run.process.terminate()
        assert run.end() == 143, run.output()[-3_000:]
        yield run, stormy.process.pid


def test_a_storm_of_kills_leaves_uncounted_only_what_a_killed_worker_had_not_said(
    killed: tuple[RayRun, int], folder: Path
) -> None:
    run, first = killed
    rows = totals(run.run_dir)
    assert rows["stored"] == sum(on_disk(run.run_dir))
    rate = max(line["env_steps_per_s"] for line in lines(run.run_dir / "metrics.jsonl"))
    unreported = (
        counted(folder, first, run.process.pid) - rows["recorded"]
    )  # two workers that died with their shard: since the driver last looked
    assert 0 <= unreported <= 2 * ((UNACKED + 1) * CHUNK + 1 + 2.0 * rate), rows


def test_what_could_not_be_saved_is_said_with_its_reason(killed: tuple[RayRun, int]) -> None:
    run, _ = killed
    summary, last = read(run.run_dir / "summary.json"), run.output().strip().splitlines()[-1]
    assert "; NOT saved: the checkpoint (" in last and "there is none on disk" in last, last
    assert f"saved: snapshots of 2 of 2 shards ({summary['env_steps']:,} rows)" in last
    assert summary["saved"]["checkpoint"]["updates"] is None and summary["saved"]["checkpoint"]["problem"]
    assert "checkpoint and replay are saved" not in run.output()
