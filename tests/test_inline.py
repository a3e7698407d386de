"""The whole graph in one process: bit-identical under a seed, exactly resumable, and honest when it cannot be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_runs import TINY, command, lines, live, read, start, train_inline, train_words, wait_for

from cluster.cli import main
from cluster.config import make_preset, override
from cluster.graph import RunSpec, make_shard
from learners.checkpoint import newest_meta
from replay import snapshot
from rollout_workers.envs import env_spec

CHEETAH, PENDULUM = "HalfCheetah-v5", "Pendulum-v1"  # the batched path of ours, Gymnasium's own environments
CLOCKS = ("wall_s", "time_s")


def learner(run_dir: Path) -> dict[str, np.ndarray]:
    """The newest checkpoint's tensors of the learner, without the counter of its restarts."""
    newest = max((run_dir / "checkpoints").iterdir())
    tensors = load_file(newest / "tensors.safetensors")
    return {name: t for name, t in tensors.items() if name.startswith("learner/") and not name.endswith("generation")}


def rows(run_dir: Path, env: str, shards: int = 1) -> list[np.ndarray]:
    """The rows of every shard's snapshot, oldest first."""
    spec = env_spec(env)
    settings = {key: str(value) for key, value in TINY.items()} | {"env": env, "replay.shards": str(shards)}
    config = override(make_preset("softgac", "cpu"), settings)
    spec = RunSpec(config=config, obs_dim=spec.obs_dim, action_dim=spec.action_dim, run_dir=run_dir)
    found = []
    for index in range(shards):
        shard = make_shard(spec, index)
        assert snapshot.load(shard, spec.shard_dir(index)) is not None
        found.append(shard.store.rows[: shard.store.size].copy())
    return found


def evaluations(run_dir: Path) -> list[dict[str, Any]]:
    """What was evaluated, without clocks and without the generation, which counts starts."""
    result = lines(run_dir / "evaluations.jsonl")
    return [{k: v for k, v in line.items() if k not in (*CLOCKS, "generation")} for line in result]


def assert_same(one: Path, other: Path, env: str, shards: int = 1) -> None:
    here, there = learner(one), learner(other)
    assert here.keys() == there.keys() and len(here) > 10
    differing = [name for name in here if not np.array_equal(here[name], there[name], equal_nan=True)]
    assert not differing, f"{len(differing)} of {len(here)} tensors differ, such as {differing[:5]}"
    for mine, its in zip(rows(one, env, shards), rows(other, env, shards), strict=True):
        assert len(mine) > 64 and np.array_equal(mine, its)


GRAPHS = {
    "batched MuJoCo": (CHEETAH, 1, 2),
    "Gymnasium's environments": (PENDULUM, 1, 2),
    "two shards, three workers": (PENDULUM, 2, 3),
}


@pytest.mark.parametrize("graph", GRAPHS)
def test_one_seed_gives_one_run_and_a_resumed_run_equals_one_that_never_stopped(tmp_path: Path, graph: str) -> None:
    env, shards, workers = GRAPHS[graph]
    flags = ("--shards", str(shards), "--workers", str(workers))
    often = {"evaluation__every_steps": 96}
    one, two, parts = (tmp_path / name for name in ("one", "two", "parts"))
    assert train_inline(one, env, 384, *flags, **often) == 0
    assert train_inline(two, env, 384, *flags, **often, learner__checkpoint_s=0.2) == 0  # saves change nothing
    assert_same(one, two, env, shards)
    assert evaluations(one) == evaluations(two)
    at = [line["env_steps"] for line in evaluations(one)]
    assert at[0] == 0 and at[-4:] == [96, 192, 288, 384] and at == sorted(set(at))  # early ones, then as asked
    assert train_inline(parts, env, 192, *flags, **often) == 0
    assert main(["resume", str(parts), "--steps", "384"]) == 0
    assert_same(one, parts, env, shards)
    kept = [line for line in evaluations(parts) if line["env_steps"] != 192]  # there one ended, the other went on
    assert kept == [line for line in evaluations(one) if line["env_steps"] != 192]


def test_a_run_from_before_the_bridge_had_a_choice_of_norms_resumes_with_the_papers(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    paper = {"agent__input_norm": "layer_norm"}
    assert train_inline(new, PENDULUM, 192, **paper) == 0
    assert train_inline(old, PENDULUM, 96, **paper) == 0
    config = read(old / "config.json")
    del config["agent"]["input_norm"]
    (old / "config.json").write_text(json.dumps(config))
    assert "input_norm" not in (newest_meta(old / "checkpoints") or {})["agent"]  # as it was then
    assert main(["resume", str(old), "--steps", "192"]) == 0
    assert_same(old, new, PENDULUM)


def test_another_seed_gives_another_run(tmp_path: Path) -> None:
    assert train_inline(tmp_path / "one", PENDULUM, 128) == 0
    assert train_inline(tmp_path / "two", PENDULUM, 128, "--seed", "2") == 0
    assert not np.array_equal(rows(tmp_path / "one", PENDULUM)[0], rows(tmp_path / "two", PENDULUM)[0])


def test_a_checkpoint_and_a_snapshot_of_different_moments_resume_and_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train_inline(run, PENDULUM, 192) == 0
    shutil.copytree(run / "checkpoints", tmp_path / "older")
    assert main(["resume", str(run), "--steps", "320"]) == 0
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(tmp_path / "older", run / "checkpoints")
    capsys.readouterr()
    assert main(["resume", str(run), "--steps", "512"]) == 0
    assert "not of one moment" in capsys.readouterr().out
    summary = read(run / "summary.json")
    assert summary["env_steps"] >= 512
    assert summary["rows"]["recorded"] == summary["rows"]["stored"] + sum(summary["rows"]["dropped"].values())
    assert summary["replay_ratio"] == pytest.approx(1.0, abs=0.15)  # the updates that were lost are made up


def test_a_resume_without_its_snapshots_keeps_the_learner_and_counts_the_rows_as_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train_inline(run, PENDULUM, 192) == 0
    updates = read(run / "summary.json")["updates"]
    shutil.rmtree(run / "replay")
    capsys.readouterr()
    assert main(["resume", str(run), "--steps", "320", "--accept-loss"]) == 0
    assert "not of one moment" in capsys.readouterr().out
    summary = read(run / "summary.json")
    assert summary["rows"]["dropped"] == {"restart": 192} and summary["updates"] >= updates


def test_observations_that_are_not_numbers_are_dropped_and_counted_and_the_run_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train_inline(run, "broken_envs:SometimesNaN-v0", 2_400, replay__replay_ratio=0.1) == 0
    summary = read(run / "summary.json")
    dropped = summary["rows"]["dropped"]
    assert dropped and all("finite" in reason for reason in dropped), dropped
    assert summary["rows"]["recorded"] == summary["rows"]["stored"] + sum(dropped.values())
    assert np.isfinite(rows(run, "broken_envs:SometimesNaN-v0")[0]).all()


def test_a_support_that_clips_its_targets_is_reported_in_words_in_the_summary_and_in_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_inline(tmp_path / "fitted", PENDULUM, 128) == 0
    result = capsys.readouterr().out
    assert train_inline(tmp_path / "narrow", PENDULUM, 128, agent__v_min=-1, agent__v_max=1) == 0
    assert "outside their support" in capsys.readouterr().out and "outside their support" not in result
    narrow, fitted = (read(tmp_path / name / "summary.json")["clipped_mass"] for name in ("narrow", "fitted"))
    assert narrow > 0.5 and fitted < 0.05
    assert main(["report", str(tmp_path / "narrow"), "--output", str(tmp_path / "report.html")]) == 0
    assert "outside their support" in (tmp_path / "report.html").read_text()


def test_sigterm_says_which_part_could_not_be_saved_and_why(tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    words = train_words(run, PENDULUM, "--backend", "inline", "--steps", "100000000", metrics__line_s=0.2)
    process = start(*words, log=log)
    try:
        wait_for(lambda: live(run).get("env_steps", 0) > 100, "env steps", log=log)
        (run / "checkpoints").rename(tmp_path / "checkpoints")
        (run / "checkpoints").touch()
        process.terminate()
        assert process.wait(60) == 143, log.read_text()
    finally:
        process.kill()
    summary, last = read(run / "summary.json"), log.read_text().strip().splitlines()[-1]
    rows = summary["rows"]["stored"]
    assert f"saved: snapshots of 1 of 1 shards ({rows:,} rows); NOT saved: the checkpoint (FileExistsError" in last, (
        last
    )
    assert "there is none on disk" in last
    assert summary["saved"]["snapshots"] == [{"rows": rows}] and summary["saved"]["checkpoint"]["updates"] is None


def test_a_run_that_made_its_steps_and_could_not_save_them_fails_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("cluster.inline.checkpoint_writer", lambda *_: full)
        assert train_inline(run, PENDULUM, 128) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "NOT saved: the checkpoint (OSError: [Errno 28] No space left on device; there is none on disk)" in last, (
        last
    )
    assert "; make room there, then go on with `drawbridge resume" in last
    assert read(run / "summary.json")["exit"] == "unsaved"
    assert main(["status", str(run)]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0].endswith("unsaved") and said.count("drawbridge resume") == 1, said


@pytest.mark.parametrize("sender", ["SIGTERM", "`drawbridge stop`"])
def test_a_signal_or_a_stop_during_the_final_evaluation_ends_the_run_at_once_and_resume_completes_it(
    tmp_path: Path, sender: str
) -> None:
    flags = ("--steps", "200", "--backend", "inline")
    words = train_words(tmp_path / "run", CHEETAH, *flags, evaluation__final_episodes=100_000)
    process = start(*words, log=tmp_path / "log")
    try:
        wait_for(
            lambda: live(tmp_path / "run").get("state") == "finishing", "the final evaluation", log=tmp_path / "log"
        )
        assert command("scale", str(tmp_path / "run"), "--workers", "3").returncode == 1  # at once, too
        if sender == "SIGTERM":
            process.terminate()
        else:
            stopped = command("stop", str(tmp_path / "run"))
            assert stopped.returncode == 0 and "everything is saved" in stopped.stdout, stopped.stderr
        assert process.wait(20) == 143, (tmp_path / "log").read_text()
    finally:
        process.kill()
        process.wait(30)
    last = (tmp_path / "log").read_text().strip().splitlines()[-1]
    assert f"ended by {sender} at" in last and "saved: the checkpoint of update" in last and "go on with" in last
    assert read(tmp_path / "run" / "summary.json")["exit"] == "interrupted"
    assert main(["resume", str(tmp_path / "run"), "--set", "evaluation.final_episodes=1"]) == 0
    assert read(tmp_path / "run" / "summary.json")["exit"] == "completed"
