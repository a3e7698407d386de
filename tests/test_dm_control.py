"""A DeepMind Control task (extra ``dmc``) trains, is evaluated and becomes a dataset like any other environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import imageio.v3
import pytest
from tiny_runs import ROOT, command, train_words

from cluster.checks import spec_of
from cluster.graph import make_shard
from cluster.run_dir import RunDirectory
from replay.messages import TRUNCATED
from replay.snapshot import load
from rollout_workers.env import EnvError
from rollout_workers.envs import env_spec

WALKER = "dm_control/walker-run-v0"
GL = ("MUJOCO_GL", "PYOPENGL_PLATFORM")


@pytest.fixture(autouse=True)
def renderer_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making such an environment sets MUJOCO_GL for its process, which here has other tests, too."""
    for name in GL:
        monkeypatch.setenv(name, os.environ.get(name, ""))
        monkeypatch.delenv(name)


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


FILM = """
import sys
from linear_policy import LinearPolicy
from rollout_workers.actor import Actor
from rollout_workers.video import record_video

policy = LinearPolicy(24, 6)
actor = Actor(policy)
actor.load(policy.weights(0))
record_video(sys.argv[1], actor, sys.argv[2], seed=3, max_steps=3)
"""


def test_a_video_is_drawn_without_a_display_and_plays_at_the_tasks_own_speed(run_dir: Path, tmp_path: Path) -> None:
    """In a process of its own: dm_control chooses its renderer once, when it is imported, and nobody has set MUJOCO_GL."""
    path, environment = tmp_path / "walker.mp4", {k: v for k, v in os.environ.items() if k not in GL}
    words = [sys.executable, "-c", FILM, WALKER, str(path)]
    done = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
    if "renderers do not start here" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert (done.returncode, done.stderr) == (0, "")
    assert imageio.v3.immeta(path)["fps"] == 40, "a step is .025 s"


def test_what_no_run_could_use_is_refused_by_name(run_dir: Path) -> None:
    with pytest.raises(EnvError, match=r"unbounded action box: coordinate 0 is in \[-10000000000"):
        env_spec("dm_control/lqr-lqr_2_1-v0")
    with pytest.raises(EnvError, match=r"max_episode_steps 2,000, expected at most 1,000"):
        env_spec(WALKER + '?{"max_episode_steps":2000}')
    assert env_spec(WALKER + '?{"max_episode_steps":50}').max_episode_steps == 50


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
