"""More and fewer rollout workers while a run goes on, two learners and two shards on a real Ray."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ray_runs import PACED, RATIO, RayRun, driven, ray_run
from tiny_runs import command, lines, read

import drawbridge
from cluster.metrics.catalogue import HOPS

pytestmark = pytest.mark.cluster

SHARDS = LEARNERS = 2


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayRun]:
    """A run of two learners and two shards that was scaled from 2 to 4 and back to 2, and ended by itself."""
    run_dir = tmp_path_factory.mktemp("scale") / "run"
    flags = ("--steps", "1000000", "--workers", "2", "--shards", str(SHARDS), "--learners", str(LEARNERS))
    with ray_run(run_dir, *flags, learner__checkpoint_s=5, learner__updates_per_call=4) as run:
        run.wait_for_steps(500)
        for workers in (4, 2):
            result = command("scale", str(run_dir), "--workers", str(workers))
            assert result.returncode == 0, result.stderr
            assert result.stdout.startswith(f"rollout workers: {6 - workers} -> {workers}: ")
            run.wait(lambda n=workers: run.live()["workers"] == n, f"{workers} workers in live.json")
            assert read(run_dir / "config.json")["worker"]["workers"] == workers, "a resume would not keep it"
            run.wait(lambda n=workers: len(run.children("ray::WorkerActor")) == n, f"{workers} worker processes")
            run.wait_for_steps(run.live()["env_steps"] + 500)
        yield run


def test_a_run_scales_up_and_down_while_it_goes_on(scaled: RayRun) -> None:
    result = lines(scaled.run_dir / "metrics.jsonl")
    seen = [line["workers"] for line in result]
    assert 4 in seen and max(seen[: seen.index(4)]) <= 3 and seen[-1] == 2
    assert result[-1]["workers_started"] == 4 and result[-1]["workers_restarted"] == 0
    assert result[-1]["env_steps"] > result[seen.index(4)]["env_steps"]


def test_only_learners_have_torch(scaled: RayRun) -> None:
    expected = {"Shard": SHARDS, "Store": 1, "Learner": LEARNERS, "Worker": 2, "Evaluator": 1}
    for part, count in expected.items():
        found = scaled.children(f"ray::{part}Actor")
        assert len(found) == count, part
        for process in found:
            assert any("libtorch" in file.path for file in process.memory_maps()) == (part == "Learner"), process


def test_what_went_over_each_hop_is_what_the_run_counts(scaled: RayRun) -> None:
    last = lines(scaled.run_dir / "metrics.jsonl")[-1]
    assert all(last[f"hop_{hop}_{what}"] > 0 for hop in HOPS for what in ("calls", "s", "bytes"))
    row_bytes = last["hop_append_bytes"] / last["env_steps"]
    assert row_bytes == 4 * (2 * 4 + 1 + 2), (
        "InvertedPendulum-v5: two observations, an action, reward and discount; float32"
    )
    assert last["rss_bytes_evaluator"] > 1e8
    assert 0 < last["hop_publish_calls"] <= last["version"] and last["hop_fetch_calls"] >= 4
    assert {name for name in last if name.startswith("queue_")} == {"queue_append", "queue_sample", "queue_block"}


@pytest.mark.parametrize(
    ("workers", "why"), [(1, "one for each replay shard"), (4_096, "GiB of memory"), (5_000, "workers")]
)
def test_a_number_of_workers_that_cannot_be_is_refused_and_changes_nothing(
    scaled: RayRun, workers: int, why: str
) -> None:
    result = command("scale", str(scaled.run_dir), "--workers", str(workers))
    assert result.returncode != 0
    assert f"cannot scale to {workers} workers" in result.stderr and "nothing was changed" in result.stderr
    assert why in result.stderr
    assert scaled.live()["workers"] == 2


def test_status_of_a_running_run_says_so(scaled: RayRun) -> None:
    result = command("status", str(scaled.run_dir))
    assert result.returncode == 0 and f"running (process {scaled.process.pid})" in result.stdout
    result = command("resume", str(scaled.run_dir))
    assert result.returncode == 2 and f"belongs to a living run (process {scaled.process.pid})" in result.stderr


def test_two_learners_and_two_shards_share_one_run_that_ends_in_order_on_sigterm(scaled: RayRun) -> None:
    assert len(scaled.children("ray::LearnerActor")) == LEARNERS
    assert len(scaled.children("ray::ShardActor")) == SHARDS
    result = command("scale", str(scaled.run_dir), "--workers", "3")
    assert result.stdout.startswith("rollout workers: 2 -> 3: "), result.stderr
    scaled.process.terminate()
    assert scaled.end() == 143, scaled.output()[-3_000:]
    summary = read(scaled.run_dir / "summary.json")
    rows = summary["rows"]
    assert summary["exit"] == "interrupted" and rows["recorded"] == rows["stored"] + sum(rows["dropped"].values())
    assert summary["replay_ratio"] == pytest.approx(RATIO, rel=0.1)
    for index in range(SHARDS):
        assert list((scaled.run_dir / "replay" / f"shard-{index}").glob("manifest-*.json"))
    assert list((scaled.run_dir / "checkpoints").iterdir())


def test_a_rival_whose_policy_takes_the_critics_scales_and_ends_in_order(tmp_path: Path) -> None:
    run_dir, flags = tmp_path / "run", ("--steps", "1000000", "--workers", "1")
    with ray_run(run_dir, *flags, algorithm="qvpo", agent__actor_width=16, agent__diffusion_steps=3) as run:
        run.wait(lambda: run.live().get("updates", 0) > 0, "updates")
        result = command("scale", str(run_dir), "--workers", "2")
        assert result.stdout.startswith("rollout workers: 1 -> 2: "), result.stderr
        run.wait(lambda: len(run.children("ray::WorkerActor")) == 2 and run.live()["workers"] == 2, "2 workers")
        run.wait_for_steps(run.live()["env_steps"] + 300)
        run.process.terminate()
        assert run.end() == 143, run.output()[-3_000:]
    summary, last = read(run_dir / "summary.json"), lines(run_dir / "metrics.jsonl")[-1]
    rows = summary["rows"]
    assert rows["recorded"] == rows["stored"] + sum(rows["dropped"].values()) and last["workers_restarted"] == 0
    assert summary["replay_ratio"] == pytest.approx(RATIO, rel=0.2) and last["version"] > 1
    policy = drawbridge.load(run_dir, env=PACED)
    assert policy.updates > 0 and np.abs(policy(np.zeros(4, np.float32))).max() > 0


@pytest.mark.parametrize(("words", "workers"), [((), 3), (("--workers", "2"), 2)])
def test_a_resumed_run_has_the_workers_it_was_last_scaled_to_or_those_that_the_command_asks_for(
    scaled: RayRun, words: tuple[str, ...], workers: int
) -> None:
    assert scaled.process.poll() is not None, "the test before this one ends the run"
    steps = read(scaled.run_dir / "summary.json")["env_steps"]
    with driven(scaled.run_dir, "resume", str(scaled.run_dir), "--env", PACED, *words) as run:
        run.wait(lambda: run.live()["env_steps"] > steps + 100 and run.live()["workers"] == workers, "the workers")
        assert len(run.children("ray::WorkerActor")) == run.live()["workers_wanted"] == workers
        assert read(scaled.run_dir / "config.json")["worker"]["workers"] == workers
        run.process.terminate()
        assert run.end() == 143, run.output()[-3_000:]
