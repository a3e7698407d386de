"""What a person sees of a command that runs episodes: a line that is redrawn on a terminal, one now and then elsewhere."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
from linear_policy import LinearPolicy

from cluster.commands import counter
from cluster.commands.counter import counted
from rollout_workers.evaluator import Evaluator

PENDULUM = LinearPolicy(3, 1)
ROOT = Path(__file__).resolve().parent.parent


class Screen(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def seen(episodes: int, terminal: bool, max_envs: int = 2) -> str:
    screen = Screen(terminal)
    evaluator = Evaluator("Pendulum-v1", PENDULUM, backend="torch", max_envs=max_envs, max_episode_steps=10)
    with counted("evaluating", episodes, screen):
        evaluator.evaluate(PENDULUM.weights(1), episodes)
    return screen.getvalue()


def test_episodes_are_counted_over_all_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counter, "REFRESH_S", 0.0)
    result = seen(5, terminal=True)
    assert result.startswith("\r\x1b[Kevaluating: 0 of 5 episodes, step 1\r") and result.endswith("\n")
    counts = [int(text) for text in re.findall(r"(\d) of 5", result)]
    assert counts == sorted(counts) and set(counts) == {0, 2, 4, 5}
    assert "\r\x1b[Kevaluating: step 7\r" in seen(1, terminal=True)  # of a film or one episode: its steps


def test_a_log_gets_a_line_now_and_then_and_a_short_command_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert seen(5, terminal=False) == ""
    monkeypatch.setattr(counter, "PLAIN_S", 0.0)
    assert seen(2, terminal=False).splitlines()[0] == "evaluating: 0 of 2 episodes, step 1"


def test_a_part_of_a_command_says_so_when_it_begins() -> None:
    for terminal, expected in ((False, "plans: 5 episodes\n"), (True, "\r\x1b[Kplans: 5 episodes\n")):
        screen = Screen(terminal)
        with counted("plans", 5, screen, part=True):
            pass
        assert screen.getvalue() == expected


def test_the_mazes_are_found_without_a_notice_of_other_environments() -> None:
    code = "from rollout_workers.env_ids import find_env; find_env('PointMaze_UMaze-v3')"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout + ended.stderr) == (0, "")
