"""Runs that end in seconds: small networks, few rows, and the command line as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cluster.cli import main
from learners import checkpoint
from replay.manifest import read_manifest
from replay.snapshot import intact, manifest_path

ROOT = Path(__file__).resolve().parent.parent
TINY = {
    "agent.critic_width": 32,
    "agent.bridge_width": 16,
    "agent.bridge_steps": 2,
    "learner.batch_size": 32,
    "learner.updates_per_call": 8,
    "replay.capacity_rows": 20_000,
    "replay.min_size_rows": 64,
    "worker.random_steps": 64,
    "worker.chunk_steps": 4,
    "evaluation.episodes": 1,
    "evaluation.final_episodes": 2,
    "metrics.tensorboard": "false",
    "metrics.port": -1,
}


def train_words(
    run_dir: Path, env: str = "InvertedPendulum-v5", *flags: str, algorithm: str = "softgac", **settings: Any
) -> list[str]:
    """The words of a ``train`` command; ``settings`` are fields with __ for the dot, over those of TINY."""
    tiny = {key: value for key, value in TINY.items() if algorithm == "softgac" or not key.startswith("agent.bridge")}
    given = tiny | {name.replace("__", "."): value for name, value in settings.items()}
    pairs = [word for key, value in given.items() for word in ("--set", f"{key}={value}")]
    return ["train", algorithm, "--env", env, "--run-dir", str(run_dir), *flags, *pairs]


def train_inline(run_dir: Path, env: str, steps: int, *flags: str, **settings: Any) -> int:
    """A whole inline run in this process; returns the exit code."""
    return main(train_words(run_dir, env, "--backend", "inline", "--steps", str(steps), *flags, **settings))


def command(
    *words: str, timeout: float = 240.0, cwd: Path = ROOT, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A finished ``python -m cluster`` in a process of its own; ``env``: all of its variables, instead of this process's."""
    return subprocess.run(_argv(words), capture_output=True, text=True, timeout=timeout, cwd=cwd, env=env)


def start(
    *words: str, log: Path, env: dict[str, str] | None = None, cwd: Path = ROOT, before: Sequence[str] = ()
) -> subprocess.Popen[str]:
    """A command that goes on; what it says is in ``log``. In another folder than this tree's it is the installed one.

    Args:
        before: words of a command that runs it, such as unshare's.
    """
    argv = _argv(words) if cwd == ROOT else [str(Path(sys.executable).parent / "drawbridge"), *words]
    argv[:0] = before
    with open(log, "w", encoding="utf-8") as file:
        return subprocess.Popen(
            argv, stdout=file, stderr=subprocess.STDOUT, text=True, cwd=cwd, env={**os.environ, **(env or {})}
        )


def _argv(words: tuple[str, ...]) -> list[str]:
    return [sys.executable, "-m", "cluster", *words]


MINE = """
import time
import gymnasium as gym
from gymnasium.envs.mujoco.inverted_pendulum_v5 import InvertedPendulumEnv

class Mine(InvertedPendulumEnv):
    def step(self, action):
        time.sleep(0.002)  # a run that goes on leaves the cores to others
        return super().step(action)

gym.register("Mine-v0", Mine, max_episode_steps=100)
"""


def folder_of_ones_own(path: Path) -> Path:
    """A new folder with a package ``mine``, which registers Mine-v0, beside one that is called like one of this project's."""
    for name, text in (("mine", MINE), ("replay", "raise ImportError('not this one')")):
        (path / name).mkdir(parents=True)
        (path / name / "__init__.py").write_text(text)
    return path


def wait_for(condition: Callable[[], Any], what: str, deadline_s: float = 90.0, log: Path | None = None) -> Any:
    """The first true value of ``condition``; AssertionError with the end of ``log`` at the deadline."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.1)
    result = log.read_text(encoding="utf-8")[-3_000:] if log is not None else ""
    raise AssertionError(f"waited {deadline_s:.0f} s for {what}, in vain\n{result}")


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def edit_config(run_dir: Path, **settings: Any) -> None:
    """Writes ``settings``, with __ for the dot, into a run's config.json, as a stranger might."""
    config = read(run_dir / "config.json")
    for key, value in settings.items():
        part, _, leaf = key.partition("__")
        (config[part] if leaf else config)[leaf or part] = value
    (run_dir / "config.json").write_text(json.dumps(config))


def edit_meta(run_dir: Path, **values: Any) -> None:
    """Leaves one checkpoint, the newest, with these values in its meta; None: without that one."""
    found = checkpoint.load_newest(run_dir / "checkpoints", {})
    assert found is not None
    meta = {key: value for key, value in (found.meta | values).items() if value is not None}
    checkpoint.save(run_dir / "checkpoints", found.tensors, meta, keep=1)


def lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def live(run_dir: Path) -> dict[str, Any]:
    """The newest line of a run, empty before the first."""
    path = run_dir / "live.json"
    return dict(read(path)) if path.exists() else {}


def newest_manifest(shard: Path) -> dict[str, Any]:
    """Of the newest snapshot in a shard's folder that has all of its files."""
    return read_manifest(manifest_path(shard, next(intact(shard))))
