"""A run on a real Ray: it ends, its rows add up, its versions only grow, its replay ratio is kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray_runs import RayRun, ray_run
from tiny_runs import command, lines, read, wait_for

from learners import checkpoint
from replay.manifest import read_manifest

pytestmark = pytest.mark.cluster

STEPS = 3_000
FIRST_ROWS = 1_000  # replay.min_size_rows


@pytest.fixture(scope="module")
def completed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayRun]:
    """A run of two workers that ended by itself."""
    run_dir = tmp_path_factory.mktemp("fleet") / "run"
    settings: dict[str, Any] = {
        "replay__min_size_rows": FIRST_ROWS,
        "replay__replay_ratio": 1.0,
        "evaluation__every_steps": 1_000,
        "learner__publish_updates": 64,
        "metrics__tensorboard": "true",
        "metrics__port": 0,
    }
    with ray_run(run_dir, "--steps", str(STEPS), "--workers", "2", env="InvertedPendulum-v5", **settings) as run:
        run.wait_for_steps(FIRST_ROWS)
        run.kill_one("ray::EvaluatorActor")  # the next evaluation fails
        run.children()
        assert run.end() == 0, run.output()[-3_000:]
        yield run


def test_a_run_completes_with_a_curve_a_checkpoint_and_every_row_accounted_for(completed: RayRun) -> None:
    summary = read(completed.run_dir / "summary.json")
    assert summary["exit"] == "completed" and STEPS <= summary["env_steps"] <= STEPS + 64
    rows = summary["rows"]
    assert rows["recorded"] == rows["stored"] + sum(rows["dropped"].values()) and rows["stored"] == summary["env_steps"]
    assert (completed.run_dir / "curve.png").stat().st_size > 1_000
    assert list((completed.run_dir / "events").iterdir())
    assert checkpoint.load_newest(completed.run_dir / "checkpoints", {"env": "InvertedPendulum-v5"}) is not None


def test_no_row_is_stored_twice(completed: RayRun) -> None:
    newest = max((completed.run_dir / "replay" / "shard-0").glob("manifest-*.json"))
    assert read_manifest(newest)  # intact
    last = lines(completed.run_dir / "metrics.jsonl")[-1]
    assert last["rows_duplicate"] == 0 and last["size_rows"] == last["env_steps"]


def test_policy_versions_never_go_backwards_and_rows_are_made_with_recent_ones(completed: RayRun) -> None:
    result = lines(completed.run_dir / "metrics.jsonl")
    for name in ("version", "env_steps", "updates", "time_s", "rows_recorded"):
        values = [line[name] for line in result]
        assert values == sorted(values), name
    summary = read(completed.run_dir / "summary.json")
    assert summary["policy_version"] > 20
    assert summary["policy_age_versions"]["p95"] <= 4


def test_the_replay_ratio_is_kept_after_warm_up(completed: RayRun) -> None:
    summary = read(completed.run_dir / "summary.json")
    assert summary["replay_ratio"] == pytest.approx(summary["target_replay_ratio"], rel=0.01)
    all_lines = lines(completed.run_dir / "metrics.jsonl")
    for line in all_lines:
        due = max(0, line["env_steps"] - FIRST_ROWS)
        unreported = 128 + 1.5 * max(
            result["updates_per_s"] for result in all_lines
        )  # updates are reported later than rows
        assert abs(line["updates"] - due) <= unreported + 0.02 * due, line


def test_evaluations_come_along_while_it_trains_and_at_the_end_although_an_evaluator_is_killed(
    completed: RayRun,
) -> None:
    result = lines(completed.run_dir / "evaluations.jsonl")
    assert completed.output().count("an evaluation failed") == 1, "its evaluator was killed"
    assert len(result) >= 2 and len(result[-1]["returns"]) == 2
    summary = read(completed.run_dir / "summary.json")
    assert result[-1]["updates"] == summary["updates"] and summary["eval_env_steps"] == result[-1]["env_steps"]


def test_nothing_of_the_run_is_left_behind_on_the_machine(completed: RayRun) -> None:
    assert completed.known
    wait_for(lambda: not completed.alive(), "the run's processes to end", 30)


def test_status_evaluate_and_report_read_the_run_afterwards(completed: RayRun, tmp_path: Path) -> None:
    result = command("status", str(completed.run_dir))
    assert result.returncode == 0 and "ended" in result.stdout
    assert "\n  restarts   evaluator 1\n" in result.stdout and completed.live()["evaluators_restarted_died"] == 1
    result = command("evaluate", str(completed.run_dir), "--episodes", "2", "--json")
    assert result.returncode == 0 and '"returns"' in result.stdout
    result = command("report", str(completed.run_dir), "--output", str(tmp_path / "page.html"))
    assert result.returncode == 0 and (tmp_path / "page.html").stat().st_size > 5_000
