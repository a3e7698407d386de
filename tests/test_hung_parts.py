"""Processes of a real run are stopped (SIGSTOP) or killed while they start: the part itself is replaced, and nobody else.

One run of two learners goes on through all of it but the last, and is resumed from there to its end. A stopped process answers
nothing and dies of nothing but SIGKILL, as one does whose native code hangs.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from ray_runs import PACED, RayRun, driven, ray_run, stopped
from tiny_runs import command, lines, read, wait_for

pytestmark = pytest.mark.cluster

ANSWER_S = 7.0  # ray.call_timeout_s
DEAF_S = 1.5  # longest time between two metrics lines, which come every 0.5 s
SETTINGS: dict[str, Any] = {
    "ray__call_timeout_s": ANSWER_S,
    "worker__step_timeout_s": 6,
    "worker__restart_budget": 0,
    "learner__restart_budget": 10,
    "learner__checkpoint_s": 2,
    "replay__snapshot_s": 2,
    "evaluation__every_steps": 0,
    "evaluation__timeout_s": 4,
    "ray__shard_restart_budget": 1,
}


def goes_on(run: RayRun, updates: int = 40) -> None:
    """Waits until the run has gathered and learned more, and checks that every worker is still the first of its slot."""
    before = run.live()
    run.wait_for_steps(before["env_steps"] + 150)
    run.wait(lambda: run.live()["updates"] > before["updates"] + updates, "more updates")
    assert run.live()["workers_restarted"] == 0, run.output()[-3_000:]


def deaf_s(run: RayRun, since: dict[str, Any]) -> float:
    """The longest time between two metrics lines from the line ``since`` on."""
    times = [line["time_s"] for line in lines(run.run_dir / "metrics.jsonl") if line["time_s"] >= since["time_s"]]
    longest_s = max(after - earlier for earlier, after in itertools.pairwise(times))
    print(f"longest time between two of {len(times)} metrics lines: {longest_s:.2f} s")
    return longest_s


@pytest.fixture(scope="module")
def going(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayRun]:
    run_dir = tmp_path_factory.mktemp("hung") / "run"
    flags = ("--steps", "100000000", "--workers", "2", "--learners", "2")
    with ray_run(run_dir, *flags, **SETTINGS) as run:
        run.wait_for_steps(500)
        run.wait(lambda: any((run_dir / "checkpoints").glob("checkpoint-*")), "a checkpoint")
        yield run


def test_a_stopped_learner_is_named_and_replaced_and_the_driver_is_never_deaf(going: RayRun) -> None:
    before = going.live()
    with stopped(going, "ray::LearnerActor") as victim:
        result = command("scale", str(going.run_dir), "--workers", "3", timeout=30)
        assert result.stdout.startswith("rollout workers: 2 -> 3: "), result.stderr
        going.wait(lambda: "hangs: it did not answer for" in going.output(), "the learner to be found", ANSWER_S + 12)
        going.wait(lambda: going.live()["generation"] > before["generation"], "a new generation", 60)
        going.wait(
            lambda: victim not in [child.pid for child in going.children("ray::LearnerActor")],
            "Ray to kill the stopped process, which its replacement need not wait for",
            30,
        )
    restarted = r"learner restarted from the newest checkpoint \(was on \S+ \(\w{8}\)\): learner [01] hangs: it did not answer for"
    assert re.search(restarted, going.output()), going.output()[-3_000:]
    goes_on(going)
    assert deaf_s(going, before) < DEAF_S


def test_a_stopped_worker_that_is_to_go_is_killed_in_time_and_nobody_waits_for_it(going: RayRun) -> None:
    before, third = going.live(), max(going.children("ray::WorkerActor"), key=lambda child: child.create_time())
    third.suspend()
    began = time.monotonic()
    result = command("scale", str(going.run_dir), "--workers", "2")
    answered_s = time.monotonic() - began
    assert result.stdout.startswith("rollout workers: 3 -> 2: 2 run"), result.stderr
    assert third.is_running(), "the answer did not wait for it"
    going.wait(
        lambda: "1 worker did not end within 8 s and had to be killed" in going.output(), "the worker to be late"
    )
    going.wait(lambda: len(going.children("ray::WorkerActor")) == 2, "the third worker to leave")
    goes_on(going)
    print(f"`scale` was answered within {answered_s:.1f} s")
    assert deaf_s(going, before) < DEAF_S
    line = going.live()
    dropped = sum(rows for name, rows in line.items() if name.startswith("rows_dropped_"))
    assert line["rows_recorded"] == line["rows_stored"] + dropped and line["rows_dropped_worker_lost"] == 0, line


def test_one_of_two_learners_is_killed_and_one_more_while_they_restart(going: RayRun) -> None:
    before = going.live()
    old = {child.pid for child in going.children("ray::LearnerActor")}
    restarts = going.output().count("learner restarted from the newest checkpoint")
    going.kill_one("ray::LearnerActor")
    started = going.wait(
        lambda: [child for child in going.children("ray::LearnerActor") if child.pid not in old], "a learner to start"
    )
    started[0].kill()
    assert going.live()["generation"] == before["generation"], "it was killed before it had begun"
    going.wait(lambda: going.live()["generation"] >= before["generation"] + 2, "the second generation after that")
    assert going.output().count("learner restarted from the newest checkpoint") == restarts + 2
    goes_on(going)
    assert deaf_s(going, before) < DEAF_S


def test_a_stopped_shard_and_a_stopped_store_are_killed_and_come_back_and_nobody_else_is_blamed(going: RayRun) -> None:
    going.wait(lambda: list((going.run_dir / "replay" / "shard-0").glob("manifest-*.json")), "a snapshot")
    before = going.live()
    with stopped(going, "ray::ShardActor"), stopped(going, "ray::StoreActor"):
        for text in (
            "replay shard 0 hangs: it did not answer for",
            "the store of weights hangs: it did not answer for",
        ):
            going.wait(lambda text=text: text in going.output(), text, ANSWER_S + 12)
        for text in ("replay shard 0 was restarted by Ray", "it is given the newest policy again"):
            going.wait(lambda text=text: text in going.output(), text, 60)
    going.wait(lambda: going.live()["stores_restarted_hung"] == 1, "the restart to be counted")
    goes_on(going)
    assert deaf_s(going, before) < DEAF_S
    line = going.live()
    assert line["generation"] == before["generation"], "the learners waited for their shard"
    assert line["version"] > before["version"]


def test_a_shard_that_hangs_with_no_restart_left_ends_the_run_with_that_cause(going: RayRun) -> None:
    with stopped(going, "ray::ShardActor"):
        assert going.end() == 1, going.output()[-3_000:]
    failure = read(going.run_dir / "failure.json")["error"]
    assert "replay shard 0 hangs" in failure and "its 1 restarts within an hour (ray.shard_restart_budget)" in failure
    assert "it did not answer for" in failure and "ray.call_timeout_s" in failure and "can be resumed" in failure
    wait_for(lambda: not [p for p in going.alive() if "ray::" in " ".join(p.cmdline())], "the run's actors to end", 30)


def test_two_learners_are_resumed_to_the_end_of_their_run_although_the_evaluator_is_stopped(going: RayRun) -> None:
    assert going.process.poll() is not None, "the test before this one ends the run"
    before = going.live()
    steps = before["env_steps"] + 600
    words = (
        "--env",
        PACED,
        "--steps",
        str(steps),
        "--set",
        f"evaluation.every_steps={10 * steps}",
    )  # but for the first and the last
    with driven(going.run_dir, "resume", str(going.run_dir), *words) as run:
        run.wait(
            lambda: run.live()["generation"] > before["generation"] + 1 and run.live()["state"] == "running",
            "it to run",
        )
        run.wait_for_steps(steps - 400)
        with stopped(run, "ray::EvaluatorActor"):
            assert run.end() == 0, run.output()[-3_000:]
        assert "an evaluation took longer than 4 s" in run.output() and "learner restarted" not in run.output()
        assert run.live()["evaluators_restarted_hung"] == run.output().count("an evaluation took longer")
    summary = read(going.run_dir / "summary.json")
    assert summary["exit"] == "completed" and summary["env_steps"] >= steps and summary["workers"]["restarted"] == 0
    assert summary["updates"] > before["updates"]
    versions = [(line["generation"], line["version"]) for line in lines(going.run_dir / "metrics.jsonl")]
    assert versions == sorted(versions)
