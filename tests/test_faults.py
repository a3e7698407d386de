"""Processes of a real run are killed: training goes on, or the same command resumes it, within the recovery points."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray_runs import PACED, RATIO, RayRun, driven, ray_run
from tiny_runs import command, lines, read, wait_for

pytestmark = pytest.mark.cluster

# Ray's own: two small processes a node that wait a minute for the dead head before they leave.
RAYS_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
GRACE_S = 25.0  # between SIGTERM and a scheduler's SIGKILL
SAVE_S = 2.0  # between snapshots and between checkpoints: what a killed shard, learner or driver may lose
SETTINGS: dict[str, Any] = {
    "replay__snapshot_s": SAVE_S,
    "learner__checkpoint_s": SAVE_S,
    "evaluation__every_steps": 0,
    "replay__capacity_rows": 200_000,
}


def conserved(line: dict[str, Any]) -> bool:
    dropped = sum(rows for name, rows in line.items() if name.startswith("rows_dropped_"))
    return bool(line["rows_recorded"] == line["rows_stored"] + dropped)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults") / "run"


@pytest.fixture(scope="module")
def going(run_dir: Path) -> Iterator[RayRun]:
    """A run without an end; the tests of this file kill parts of it in turn."""
    with ray_run(run_dir, "--steps", "100000000", "--workers", "2", **SETTINGS) as run:
        run.wait_for_steps(500)
        yield run


def test_a_killed_worker_is_restarted_as_a_new_incarnation_and_counted(going: RayRun) -> None:
    victim = going.kill_one("ray::WorkerActor")
    going.wait(lambda: going.live()["workers_restarted"] == 1, "the restart to be counted")
    going.wait(lambda: len(going.children("ray::WorkerActor")) == 2, "two workers again")
    assert victim not in [child.pid for child in going.children("ray::WorkerActor")]
    going.wait_for_steps(going.live()["env_steps"] + 500)
    assert "worker" in going.output() and "restarted" in going.output()
    assert conserved(going.live()), going.live()


def test_a_killed_learner_goes_on_from_its_checkpoint_in_a_new_generation_at_the_same_ratio(going: RayRun) -> None:
    going.wait(lambda: any((going.run_dir / "checkpoints").glob("checkpoint-*")), "a checkpoint")
    before = going.live()
    victim = going.kill_one("ray::LearnerActor")
    going.wait(lambda: going.live()["generation"] > before["generation"], "a new generation")
    going.wait(lambda: going.live()["updates"] > before["updates"] + 150, "updates beyond those of the one that died")
    assert victim not in [child.pid for child in going.children("ray::LearnerActor")]
    (event,) = [line for line in going.output().splitlines() if "learner restarted from the newest checkpoint" in line]
    assert re.search(
        r"checkpoint \(was on \S+ \(\w{8}\)\): its process ended without a word: .* \(learner 0\)$", event
    ), event
    line = going.live()
    due = RATIO * (line["env_steps"] - 64)  # less replay.min_size_rows
    assert abs(line["updates"] - due) <= 256 + 2.0 * line["updates_per_s"], line
    versions = [(line["generation"], line["version"]) for line in lines(going.run_dir / "metrics.jsonl")]
    assert versions == sorted(versions)


def test_a_killed_shard_comes_back_from_its_snapshot_and_loses_no_more_than_one_interval(going: RayRun) -> None:
    going.wait(lambda: list((going.run_dir / "replay" / "shard-0").glob("manifest-*.json")), "a snapshot")
    before = going.live()
    victim = going.kill_one("ray::ShardActor")
    going.wait(lambda: "replay shard 0 was restarted by Ray" in going.output(), "the shard's restart")
    going.wait_for_steps(before["env_steps"] + 1_000)
    assert victim not in [child.pid for child in going.children("ray::ShardActor")]
    line = going.live()
    assert conserved(line), line
    rate = max(result["env_steps_per_s"] for result in lines(going.run_dir / "metrics.jsonl"))
    assert line.get("rows_dropped_shard_restart", 0) <= rate * (SAVE_S + 5.0) + 512, line


def test_sigterm_ends_a_run_within_its_grace_with_everything_saved(going: RayRun) -> None:
    begun = time.monotonic()
    going.process.terminate()
    assert going.end() == 143, going.output()[-3_000:]
    assert time.monotonic() - begun < GRACE_S
    assert "go on with `drawbridge resume" in going.output().strip().splitlines()[-1]
    summary = read(going.run_dir / "summary.json")
    assert summary["exit"] == "interrupted" and summary["workers"]["restarted"] == 1
    rows = summary["rows"]
    assert rows["recorded"] == rows["stored"] + sum(rows["dropped"].values())
    wait_for(lambda: not going.alive(), "the run's processes to end", 30)


@pytest.fixture(scope="module")
def resumed(going: RayRun) -> Iterator[RayRun]:
    """The run after SIGTERM, gone on with by the command that it named."""
    assert going.process.poll() is not None, "the test before this one ends the run"
    steps, updates = (read(going.run_dir / "summary.json")[name] for name in ("env_steps", "updates"))
    with driven(going.run_dir, "resume", str(going.run_dir), "--env", PACED) as run:
        run.wait(lambda: run.live().get("state") == "running", "the resumed run to go on")
        first = run.live()
        assert first["env_steps"] >= steps and first["updates"] >= updates - 64  # nothing was lost
        run.wait_for_steps(steps + 500)
        yield run


def test_a_driver_killed_by_sigkill_leaves_no_process_and_its_state_is_lost(resumed: RayRun) -> None:
    resumed.wait(lambda: len(resumed.children("ray::")) >= 4, "the run's actors")
    resumed.process.kill()
    resumed.process.wait(30)
    wait_for(lambda: not [p for p in resumed.alive() if p.name() not in RAYS_AGENTS], "the run's processes to end", 30)
    result = command("status", str(resumed.run_dir))
    assert ", lost" in result.stdout and "drawbridge resume" in result.stdout


def test_the_run_of_a_killed_driver_is_resumed_to_its_end_and_lost_no_more_than_its_recovery_points(
    resumed: RayRun,
) -> None:
    assert resumed.process.poll() is not None, "the test before this one kills the driver"
    killed = resumed.live()
    rate = max(result["env_steps_per_s"] for result in lines(resumed.run_dir / "metrics.jsonl"))
    steps = killed["env_steps"] + 800
    with driven(resumed.run_dir, "resume", str(resumed.run_dir), "--env", PACED, "--steps", str(steps)) as run:
        assert run.end() == 0, run.output()[-3_000:]
    summary = read(resumed.run_dir / "summary.json")
    rows = summary["rows"]
    assert summary["exit"] == "completed" and summary["env_steps"] >= steps
    assert rows["recorded"] == rows["stored"] + sum(rows["dropped"].values())
    assert rows["dropped"].get("restart", 0) <= rate * (SAVE_S + 5.0) + 512
    assert summary["replay_ratio"] == pytest.approx(RATIO, rel=0.05)
    versions = [(line["generation"], line["version"]) for line in lines(resumed.run_dir / "metrics.jsonl")]
    assert versions == sorted(versions)


HALTS = {
    "exits": ("broken_envs:Exits-v0", "called sys.exit(0) in go_wrong (broken_envs.py", 4),
    "hangs": ("broken_envs:Hangs-v0", "says that it has made no step for", 1),
}


def waited_s(run_dir: Path) -> list[float]:
    """For how long, at least, each restart of the only worker was waited for after its last rows, by the metrics lines."""
    found, rows_at, before = list[float](), 0.0, {"env_steps": 0, "workers_restarted": 0, "time_s": 0.0}
    for line in lines(run_dir / "metrics.jsonl"):
        if line["workers_restarted"] > before["workers_restarted"]:
            found.append(before["time_s"] - rows_at)
        if line["env_steps"] > before["env_steps"]:
            rows_at = line["time_s"]
        before = line
    return found


@pytest.mark.parametrize("fault", HALTS)
def test_an_environment_that_goes_wrong_every_time_is_restarted_within_the_budget_and_then_halts_the_run(
    fault: str, tmp_path: Path
) -> None:
    env, cause, budget = HALTS[fault]
    settings = {
        "worker__step_timeout_s": 3,
        "worker__restart_budget": budget,
        "replay__replay_ratio": 0.1,
        "metrics__line_s": 0.1,
    }
    with ray_run(tmp_path / "run", "--steps", "100000", "--workers", "1", env=env, **settings) as run:
        assert run.end() == 1, run.output()[-3_000:]
        assert f"restarted {budget} times (worker.restart_budget) within an hour" in run.output()
        assert cause in run.output()
        assert cause in run.output().strip().splitlines()[-1]
        failure = read(run.run_dir / "failure.json")
        assert cause in failure["error"] and "can be resumed" in failure["error"]
        line = run.live()
        assert line["state"] == "failed" and line["workers_restarted"] == budget and conserved(line), line
        assert re.search(
            rf"the run halts; saved: the checkpoint of update {line['updates']:,}, snapshots of 1 of 1 shards \({line['rows_stored']:,} rows\)",
            run.output(),
        ), run.output()[-3_000:]
    waits = waited_s(tmp_path / "run")
    print(f"seconds that each restart was waited for, at least: {[round(seconds, 1) for seconds in waits]}")
    turn_s = 0.5  # between two lines, on a machine that others use too
    assert all(seconds >= due - turn_s for seconds, due in zip(waits, (0.0, 0.5, 1.0, 2.0))) and len(waits) == budget


def test_workers_whose_chunk_takes_longer_than_any_step_may_are_slow_and_not_hung(tmp_path: Path) -> None:
    """A chunk of 8 x 8 steps of 50 ms takes 3.2 s; a step may take 1 s."""
    settings = {
        "worker__step_timeout_s": 1,
        "worker__restart_budget": 0,
        "worker__chunk_steps": 8,
        "evaluation__episodes": 1,
    }
    settings |= {"evaluation__every_steps": 0, "evaluation__final_episodes": 1, "evaluation__max_episode_steps": 20}
    with ray_run(tmp_path / "run", "--steps", "384", env="broken_envs:Slow-v0", **settings) as run:
        assert run.end() == 0, run.output()[-3_000:]
        assert run.live()["workers_restarted"] == 0 and "no step" not in run.output()


def test_a_stopped_worker_is_found_and_named_when_its_time_is_over(tmp_path: Path) -> None:
    limit_s, turns_s = 12.0, 6.0  # two looks and a start, on a machine that others use too
    with ray_run(tmp_path / "run", "--steps", "100000", "--workers", "2", worker__step_timeout_s=limit_s) as run:
        run.wait_for_steps(200)
        victim = run.children("ray::WorkerActor")[0]
        victim.suspend()
        since = time.monotonic()
        run.wait(lambda: run.live()["workers_restarted"] == 1, "the worker to be replaced")
        took_s = time.monotonic() - since
        assert run.live()["workers_restarted_hung"] == 1 and limit_s <= took_s < limit_s + turns_s
        found = re.search(
            r"made no step that is known for (\d+) s and has not answered for 1\d s \(worker", run.output()
        )
        assert found and limit_s <= int(found[1]) < limit_s + turns_s, run.output()[-3_000:]
        print(
            f"a worker that may take {limit_s:.0f} s for a step was found after {found[1]} s and replaced after {took_s:.1f} s"
        )


def test_a_minute_after_the_driver_was_killed_rays_own_agents_are_gone_too(resumed: RayRun) -> None:
    wait_for(lambda: not resumed.alive(), "Ray's agents to end", 120)
