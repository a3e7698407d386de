"""A DeepMind Control task (extra ``dmc``) trains, is evaluated and becomes a dataset like any other environment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_runs import command, train_words

from cluster.checks import spec_of
from cluster.graph import make_shard
from cluster.run_dir import RunDirectory
from replay.messages import TRUNCATED
from replay.snapshot import load
from rollout_workers.envs import env_spec

WALKER = "dm_control/walker-run-v0"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("dm_control", "shimmy"):
        pytest.importorskip(package, reason=f"{package} is not installed: it comes with the extra [dmc]")
    run_dir = tmp_path_factory.mktemp("dmc") / "run"
    flags = ("--backend", "inline", "--workers", "1", "--envs-per-worker", "1", "--steps", "1100")
    done = command(*train_words(run_dir, WALKER, *flags))
    assert done.returncode == 0, done.stderr
    assert "GLFW" not in done.stderr, "what a window needs is said where none is drawn"
    return run_dir


def test_an_evaluation_has_whole_episodes_within_the_tasks_returns(run_dir: Path) -> None:
    done = command("evaluate", str(run_dir), "--episodes", "2", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["lengths"] == [1000, 1000] and found["env"] == WALKER
    assert all(0.0 < value < 1000.0 for value in found["returns"])


def test_its_time_limit_truncates_so_the_value_of_the_last_state_counts(run_dir: Path) -> None:
    run = RunDirectory(run_dir)
    spec = spec_of(run.config(), run)
    shard = make_shard(spec, 0)
    load(shard, spec.shard_dir(0))
    table, rows = shard.store, spec.layout.views(shard.store.rows[: shard.store.size])
    ended = table.flag[: table.size] != 0
    assert table.step[: table.size][ended].tolist() == [999] and (table.flag[: table.size][ended] == TRUNCATED).all()
    assert (rows.discount == 1.0).all()
    assert env_spec(WALKER).max_episode_steps == 1000, "shimmy registers none, and what makes datasets asks for one"
