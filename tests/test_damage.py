"""One real run, damaged in one way after the other: numbers that are not finite, files that are damaged, SIGTERM while learners restart.

Two learners share its updates. Its rows are counted against the environments' own files, and no worker is killed: none is uncounted.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from counting_env import counted
from ray_runs import RayRun, driven, ray_run
from tiny_runs import newest_manifest, read

from learners import checkpoint

pytestmark = pytest.mark.cluster

GRACE_S = 25.0  # between SIGTERM and a scheduler's SIGKILL
ENV = "counting_env:Counting-v0"
SETTINGS: dict[str, Any] = {
    "learner__checkpoint_s": 2,
    "learner__nonfinite_skips": 1,
    "learner__rollbacks": 1_000,
    "replay__snapshot_s": 2,
    "replay__replay_ratio": 0.1,
    "replay__capacity_rows": 400_000,
    "worker__envs_per_worker": 1,
    "evaluation__every_steps": 0,
    "metrics__line_s": 0.25,
}


def goes_on(run: RayRun) -> None:
    before = run.live()
    run.wait_for_steps(before["env_steps"] + 200)
    run.wait(lambda: run.live()["updates"] > before["updates"] + 40, "more updates")
    run.wait(lambda: run.live()["version"] > before["version"], "newer weights")
    assert run.live()["workers_restarted"] == 0, run.output()[-3_000:]


def saved_twice(run: RayRun) -> None:
    """Waits until no older checkpoint or snapshot is left than those of now."""
    before = run.live()
    for what in ("written_checkpoints", "written_snapshots"):
        run.wait(lambda what=what: run.live()[what] >= before[what] + 2, what)


def exact(run: RayRun, folder: Path, rows: dict[str, Any], *drivers: int) -> None:
    """Every step that an environment made is stored, and in the newest snapshot, or dropped by a reason."""
    assert rows["recorded"] == rows["stored"] + sum(rows["dropped"].values()) == counted(folder, *drivers), rows
    assert rows["stored"] == newest_manifest(run.run_dir / "replay" / "shard-0")["state"]["table"]["inserted"]


@pytest.fixture(scope="module")
def going(folder: Path) -> Iterator[RayRun]:
    flags = ("--steps", "100000000", "--workers", "2", "--learners", "2")
    with ray_run(folder / "run", *flags, env=ENV, **SETTINGS) as run:
        run.wait_for_steps(300)
        yield run


def test_a_worker_that_gives_nan_loses_the_rest_of_that_episode_and_every_row_of_it_is_counted(
    going: RayRun, folder: Path
) -> None:
    (folder / "nan").touch()
    going.wait(lambda: going.live()["rows_dropped_nonfinite_observation"] == 1, "the row to be dropped")
    assert not (folder / "nan").exists() and going.live()["workers_restarted"] == 0


def test_two_learners_whose_update_is_not_finite_skip_it_and_roll_back_together(going: RayRun, folder: Path) -> None:
    going.wait(lambda: going.live()["written_checkpoints"] >= 2, "a checkpoint")
    (folder / "explode").touch()
    going.wait(lambda: going.live()["nonfinite_updates"] > 0, "an update that is not finite")
    going.wait(lambda: "the learner rolled back to a checkpoint at update " in going.output(), "a rollback")
    assert list((going.run_dir / "dumps").glob("nonfinite-*.safetensors"))
    goes_on(going)
    assert going.live()["generation"] == 0, "no process was restarted for it"
    found = checkpoint.load_newest(going.run_dir / "checkpoints", {})
    assert found is not None and not any(bool(tensor.isnan().any()) for tensor in found.tensors.values())


def test_a_killed_store_of_weights_comes_back_empty_and_is_given_the_newest_policy_again(going: RayRun) -> None:
    victim = going.kill_one("ray::StoreActor")
    going.wait(lambda: "the store of weights was restarted by Ray" in going.output(), "the store's restart")
    assert victim not in [child.pid for child in going.children("ray::StoreActor")]
    going.wait(lambda: going.live()["stores_restarted_died"] == 1, "it to be counted")
    goes_on(going)


def test_a_damaged_checkpoint_and_a_damaged_snapshot_are_named_and_those_before_them_are_taken(going: RayRun) -> None:
    saved_twice(going)
    before, learners = going.live(), going.children("ray::LearnerActor")
    for learner in learners:
        learner.suspend()  # or they might write another one
    newest = max((going.run_dir / "checkpoints").glob("checkpoint-*"))
    tensors = newest / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"\xff")
    for learner in learners:
        learner.kill()
    going.wait(lambda: "checkpoint skipped: " in going.output(), "the damaged one to be found")
    going.wait(lambda: going.live()["generation"] > before["generation"], "the learners to go on")
    (warning,) = [line for line in going.output().splitlines() if "checkpoint skipped: " in line]
    assert newest.name in warning and "damaged" in warning, warning
    (shard,) = going.children("ray::ShardActor")
    shard.suspend()
    manifest = max((going.run_dir / "replay" / "shard-0").glob("manifest-*.json"))
    manifest.write_text("{")
    shard.kill()
    going.wait(lambda: "shard 0: snapshot skipped: " in going.output(), "the damaged one to be found")
    assert manifest.name in going.output() and "found no snapshot" not in going.output()
    goes_on(going)


def test_sigterm_while_learners_restart_saves_the_rest_and_counts_every_row(going: RayRun, folder: Path) -> None:
    before, old = going.live(), {child.pid for child in going.children("ray::LearnerActor")}
    going.kill_one("ray::LearnerActor")
    started = going.wait(lambda: [p for p in going.children("ray::LearnerActor") if p.pid not in old], "a new learner")
    started[0].suspend()  # or it might be up before the signal
    begun = time.monotonic()
    going.process.terminate()
    assert going.end() == 143, going.output()[-3_000:]
    assert time.monotonic() - begun < GRACE_S
    summary, last = read(going.run_dir / "summary.json"), going.output().strip().splitlines()[-1]
    exact(going, folder, summary["rows"], going.process.pid)
    assert summary["exit"] == "interrupted" and going.live()["generation"] == before["generation"], "it came later"
    meta = checkpoint.newest_meta(going.run_dir / "checkpoints")
    assert meta is not None and summary["saved"]["checkpoint"]["updates"] == meta["updates"]
    assert f"saved: snapshots of 1 of 1 shards ({summary['env_steps']:,} rows); NOT saved: the checkpoint (" in last
    assert f"the newest on disk: {meta['updates']:,} updates" in last, last


def test_a_run_that_halts_names_the_first_cause_and_saves_what_it_has_before(going: RayRun, folder: Path) -> None:
    assert going.process.poll() is not None, "the test before this one ends the run"
    before = read(going.run_dir / "summary.json")
    words = (
        "resume",
        str(going.run_dir),
        "--env",
        ENV,
        "--set",
        "learner.rollbacks=0",
        "--set",
        "replay.snapshot_s=600",
    )
    with driven(going.run_dir, *words) as run:
        run.wait(lambda: run.live().get("state") == "running", "the resumed run to go on")
        (folder / "explode").touch()  # if the row of before is not drawn again
        assert run.end() == 1, run.output()[-3_000:]
    failure = read(going.run_dir / "failure.json")["error"]
    assert "updates" in failure and "First cause: " in failure and "were not finite" in failure, failure
    assert "the run halts; saved: snapshots of 1 of 1 shards" in run.output(), run.output()[-3_000:]
    line = run.live()
    dropped = {name.removeprefix("rows_dropped_"): n for name, n in line.items() if name.startswith("rows_dropped_")}
    rows = {"recorded": line["rows_recorded"], "stored": line["rows_stored"], "dropped": dropped}
    exact(run, folder, rows, going.process.pid, run.process.pid)
    assert rows["stored"] >= before["env_steps"] and line["state"] == "failed" and line["rows_in_flight"] == 0
