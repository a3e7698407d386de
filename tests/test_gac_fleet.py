"""Runs on whole episodes on a real Ray: from a dataset alone, in stages, with two learners, and with parts killed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from counting_env import counted
from ray_runs import RayRun, driven
from tiny_episodes import ENV, STEPS, finetune_words, make_dataset, train_words
from tiny_runs import command, lines, newest_manifest, read, wait_for

from cluster.checks import spec_of
from cluster.graph import make_shard
from cluster.run_dir import RunDirectory
from replay import snapshot
from replay.arena import ONLINE
from replay.shard import Shard

pytestmark = pytest.mark.cluster

RAY = ("--backend", "ray")
OFTEN: dict[str, Any] = {"metrics__line_s": 0.25}
COUNTING = "counting_env:CountingPendulum-v0"  # of all runs that gather: their base run has to have the same
SLOW: dict[str, Any] = {"worker__envs_per_worker": 1}  # so that a stage is met while it is gathered
BOUND = ("elbo", "action_nll", "return_nll", "return_error", "kl_total", "kl_token", "active_dims", "collapse")


def conserved(line: dict[str, Any]) -> bool:
    """Rows recorded are stored or dropped by a reason, and those stored are of whole, open or lost episodes."""
    dropped = sum(rows for name, rows in line.items() if name.startswith("rows_dropped_"))
    lost = sum(rows for name, rows in line.items() if name.startswith("lost_rows_"))
    stored = line["episode_rows"] + line["open_rows"] + lost
    return bool(line["rows_recorded"] == line["rows_stored"] + dropped and line["rows_stored"] == stored)


def on_disk(run_dir: Path) -> list[int]:
    """Rows that the newest snapshot of each shard stands for."""
    folders = sorted((run_dir / "replay").glob("shard-*"))
    return [newest_manifest(folder)["state"]["table"]["inserted"] for folder in folders]


def shards_of(run_dir: Path) -> list[Shard]:
    """The run's shards as their newest snapshots have them."""
    run = RunDirectory.open(run_dir)
    plan, found = spec_of(dataclasses.replace(run.config(), env=ENV), run), []  # no module is taken from a file
    for index in range(run.config().replay.shards):
        shard = make_shard(plan, index)
        assert isinstance(shard, Shard) and snapshot.load(shard, plan.shard_dir(index)) is not None
        found.append(shard)
    return found


@pytest.fixture(scope="module")
def offline(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayRun]:
    """A GAC that learned from its dataset alone, two shards and no worker."""
    base = tmp_path_factory.mktemp("gac-fleet")
    with pytest.MonkeyPatch.context() as patch:
        make_dataset(base / "data", patch)
        flags = ("--env", COUNTING, "--steps", "40", "--shards", "2", *RAY)
        with driven(base / "run", *train_words("gac", base / "run", *flags, **OFTEN)) as run:
            assert run.end() == 0, run.output()[-3_000:]
            yield run


def test_a_run_on_a_dataset_alone_has_no_worker_and_tells_the_parts_of_its_bound(offline: RayRun) -> None:
    summary = read(offline.run_dir / "summary.json")
    assert summary["exit"] == "completed" and summary["updates"] == 40 and summary["env_steps"] == 0
    assert summary["workers"] == {"started": 0, "restarted": 0} and summary["eval_episodes"] == 2
    assert summary["replay_ratio"] is summary["target_replay_ratio"] is None
    last = {key: value for line in lines(offline.run_dir / "metrics.jsonl") for key, value in line.items()}
    assert all(math.isfinite(last[f"loss_{name}"]) for name in BOUND)
    assert 0 <= last["loss_active_dims"] <= 1 and 0 <= last["loss_collapse"] <= 1 and last["loss_kl_token"] > 0
    assert (last["stage"], last["held_dataset_episodes"], last["online_episodes"]) == (0, 8, 0)
    for name in ("curve.png", "checkpoints", "evaluations.jsonl"):
        assert (offline.run_dir / name).exists()


def test_a_baseline_learns_on_ray_too(offline: RayRun, tmp_path: Path) -> None:
    words = train_words("bc", tmp_path / "run", "--steps", "20", *RAY)
    with driven(tmp_path / "run", *words) as run:
        assert run.end() == 0, run.output()[-3_000:]
    summary = read(tmp_path / "run" / "summary.json")
    assert (summary["exit"], summary["updates"], summary["eval_episodes"]) == ("completed", 20, 2)


def test_stages_are_gathered_with_plans_and_learned_from_by_two_learners(offline: RayRun, tmp_path: Path) -> None:
    words = finetune_words(offline.run_dir, tmp_path / "run", "--env", COUNTING, learner__learners=2, **OFTEN)
    with driven(tmp_path / "run", *words) as run:
        assert run.end() == 0, run.output()[-3_000:]
    summary = read(run.run_dir / "summary.json")
    rows = summary["rows"]
    assert summary["exit"] == "completed" and summary["updates"] == 40
    assert rows["recorded"] == rows["stored"] + sum(rows["dropped"].values()) and rows["stored"] >= 16 * STEPS
    result = lines(run.run_dir / "metrics.jsonl")
    last = {key: value for line in result for key, value in line.items()}
    assert last["online_episodes"] >= 16 and last["stage"] == 2 and conserved(result[-1]), result[-1]
    assert any(line.get("plan_s", 0) > 0 for line in result)  # a line in whose time no episode began tells of 0 s
    assert math.isfinite(last["plan_predicted_mean"]) and math.isfinite(last["plan_target_mean"])
    assert all(math.isfinite(last[f"loss_{name}"]) for name in BOUND)
    versions = [line["version"] for line in result]
    assert versions == sorted(versions)
    for shard in shards_of(run.run_dir):
        online = shard.store.arena.held(ONLINE)
        stage, version = shard.store.arena.stage[online], shard.store.arena.version[online]
        assert all((stage == k).sum() >= 4 for k in (1, 2))
        assert version[stage == 2].min() > version[stage == 1].max(), "stage 2 was gathered with what stage 1 taught"
        assert (shard.store.arena.mode[online] == "explore").all()


def test_workers_that_die_or_hang_after_their_shard_has_all_its_episodes_are_not_replaced_and_end_no_run(
    offline: RayRun, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "worker__workers": 3,
        "replay__shards": 1,
        "worker__restart_budget": 0,
        "worker__step_timeout_s": 600,
        "ray__call_timeout_s": 600,  # the learner stands still for as long as one worker takes to gather the stage
    }
    words = finetune_words(
        offline.run_dir, tmp_path / "run", "--env", COUNTING, stages=1, episodes=160, **settings, **OFTEN, **SLOW
    )
    with driven(tmp_path / "run", *words) as run:
        run.wait(lambda: run.live().get("env_steps", 0) > 0, "workers to collect")
        learner = run.wait(lambda: run.children("ray::LearnerActor"), "the learner")[0]
        run.wait(lambda: run.live()["workers"] == 3 == len(run.children("ray::WorkerActor")), "three workers")
        victim, hung, _ = run.children("ray::WorkerActor")
        learner.suspend()  # the run cannot end before the worker has died
        victim.suspend()  # it cannot return when the stage is gathered
        hung.suspend()
        run.wait(lambda: run.live()["workers"] == 2, "the other worker to return, as the stage is gathered")
        victim.kill()
        run.wait(lambda: "is not replaced, as its shard has all its rows" in run.output(), "the driver to notice")
        learner.resume()
        assert run.end() == 0, run.output()[-3_000:]
        assert "1 worker did not end within" in run.output(), "the one that hangs"
    summary, last = read(run.run_dir / "summary.json"), lines(run.run_dir / "metrics.jsonl")[-1]
    assert summary["exit"] == "completed" and summary["workers"]["restarted"] == 0 and last["online_episodes"] >= 160
    assert conserved(last), last


STAGES, EPISODES, UPDATES = 3, 80, 400
UNEVEN: dict[str, Any] = {"worker__chunk_steps": 61}  # within a stage no episode ends where a chunk does
SAVE_S = 1.0


@pytest.fixture(scope="module")
def going(offline: RayRun, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayRun]:
    """A run in stages of which the tests from here on kill parts in turn."""
    run_dir = tmp_path_factory.mktemp("gac-faults") / "run"
    often: dict[str, Any] = {"replay__snapshot_s": SAVE_S, "learner__checkpoint_s": SAVE_S, **OFTEN}
    sizes = {"stages": STAGES, "episodes": EPISODES, "updates": UPDATES}
    for path in folder.iterdir():  # of the runs before this one
        path.unlink()
    words = finetune_words(offline.run_dir, run_dir, "--env", COUNTING, **sizes, **SLOW, **UNEVEN, **often)
    with driven(run_dir, *words) as run:
        run.wait_for_steps(200)
        yield run


def test_a_learner_killed_while_it_learns_from_a_stage_makes_the_lost_updates_again(going: RayRun) -> None:
    going.wait(lambda: going.live()["updates"] > 60, "the first stage to be learned from")
    before = going.live()
    going.kill_one("ray::LearnerActor")
    going.wait(lambda: going.live()["generation"] > before["generation"], "a new generation")
    assert "learner restarted from the newest checkpoint" in going.output()
    going.wait(lambda: going.live()["stage"] >= 2, "the next stage")
    line = going.live()
    assert line["updates"] >= UPDATES - 20 and conserved(line), line  # the last blocks of a stage may be on their way


def test_a_shard_killed_in_a_stage_comes_back_and_the_stage_is_completed(going: RayRun) -> None:
    going.wait(lambda: going.live()["online_episodes"] > EPISODES, "the second stage to be gathered")
    going.kill_one("ray::ShardActor")
    going.wait(lambda: "was restarted by Ray" in going.output(), "the shard's restart")
    going.wait(lambda: going.live()["online_episodes"] > EPISODES, "episodes of the second stage again")
    assert conserved(going.live()), going.live()


def test_sigterm_in_a_stage_saves_everything_and_counts_every_step_that_was_made(going: RayRun, folder: Path) -> None:
    going.wait(lambda: going.live()["updates"] > UPDATES + 40, "the second stage to be learned from")
    going.process.terminate()
    assert going.end() == 143, going.output()[-3_000:]
    interrupted = read(going.run_dir / "summary.json")
    rows = interrupted["rows"]
    print(f"rows at SIGTERM: {rows}")
    assert rows["recorded"] == rows["stored"] + sum(rows["dropped"].values()) == counted(folder, going.process.pid)
    assert interrupted["exit"] == "interrupted" and rows["stored"] == sum(on_disk(going.run_dir)), rows
    wait_for(lambda: not going.alive(), "the run's processes to end", 30)


def test_the_resumed_run_gathers_and_learns_to_its_end_although_a_worker_is_killed(going: RayRun, folder: Path) -> None:
    assert going.process.poll() is not None, "the test before this one ends the run"
    interrupted = read(going.run_dir / "summary.json")
    with driven(going.run_dir, "resume", str(going.run_dir), "--env", COUNTING) as run:
        run.wait(lambda: run.live()["online_episodes"] > 2 * EPISODES + 2, "the third stage to be gathered")
        run.kill_one("ray::WorkerActor")
        run.wait(lambda: run.live()["workers_restarted_died"] == 1, "another worker")
        assert run.end() == 0, run.output()[-3_000:]
    worker = read(going.run_dir / "config.json")["worker"]
    summary, last = read(going.run_dir / "summary.json"), lines(going.run_dir / "metrics.jsonl")[-1]
    assert summary["exit"] == "completed" and last["stage"] == STAGES
    assert STAGES * UPDATES <= summary["updates"] <= STAGES * UPDATES + 20, "whole blocks, none of them twice"
    assert last["online_episodes"] >= STAGES * EPISODES and conserved(last), last
    assert summary["env_steps"] >= interrupted["env_steps"]
    uncounted = counted(folder, going.process.pid, run.process.pid) - summary["rows"]["recorded"]
    assert 0 <= uncounted <= (1 + worker["max_unacked"]) * worker["chunk_steps"] * worker["envs_per_worker"], uncounted
    versions = [(line["generation"], line["version"]) for line in lines(going.run_dir / "metrics.jsonl")]
    assert versions == sorted(versions)
    result = command("evaluate", str(going.run_dir), "--env", COUNTING, "--episodes", "2", "--json")
    assert result.returncode == 0, result.stderr
