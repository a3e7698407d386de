"""What a person sees of a run: a live view that fits its terminal, plain lines elsewhere, the summary in words."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console as Terminal

from cluster.metrics.console import Console, in_words, plain_line
from cluster.metrics.view import SILENT_AFTER_S, View, sparkline
from cluster.metrics.wording import clock, number, percent, span

ROOT = Path(__file__).resolve().parent.parent
LINE: dict[str, Any] = {
    "time_s": 192.4, "env_steps": 12_000, "updates": 24_000, "env_steps_per_s": 164.2, "updates_per_s": 328.4,
    "replay_ratio": 2.003, "target_replay_ratio": 2.0, "fill": 0.012, "size_rows": 12_000, "rows_recorded": 12_032,
    "rows_dropped_nonfinite": 32, "workers": 4, "workers_restarted": 1, "version": 388, "policy_age_p50": 1.0,
    "policy_age_p95": 3.0, "return_mean": 1204.0, "return_min": 812.0, "return_max": 1560.0, "publish_interval_s": 0.4,
    "learner_data_wait": 0.03, "learner_update": 0.92, "learner_publish": 0.01, "env_s": 1.0, "act_s": 0.8,
    "push_wait_s": 0.2, "loss_alpha": 0.0831, "loss_q_mean": 104.0, "loss_control_energy_per_step_coord": 0.21,
    "loss_critic_loss": 3.2, "eval_return_mean": 1742.0, "eval_env_steps": 10_000,
}  # fmt: skip
SUMMARY: dict[str, Any] = {
    "algorithm": "softgac", "env": "HalfCheetah-v5", "seed": 1, "backend": "ray", "exit": "completed",
    "env_steps": 20_000, "updates": 40_000, "wall_s": 192.3, "env_steps_per_s": 104.0, "updates_per_s": 208.0,
    "replay_ratio": 2.0, "min_size_rows": 1_000, "pretrain_updates": 500, "eval_return_mean": 3514.2, "eval_return_std": 123.4, "eval_episodes": 10,
    "rows": {"recorded": 20_000, "stored": 19_968, "dropped": {"nonfinite": 32, "malformed": 0}},
    "workers": {"started": 4, "restarted": 1}, "learner_time": {"data_wait": 0.012, "update": 0.93, "publish": 0.021},
    "policy_age_versions": {"p50": 1, "p95": 3},
}  # fmt: skip


def drawn(width: int, line: dict[str, Any] | None = None, **changes: Any) -> str:
    """The view as text, drawn by rich into a recording of a terminal of that width."""
    recording = Terminal(record=True, width=width, force_terminal=True, file=io.StringIO(), color_system="truecolor")
    view: dict[str, Any] = {
        "evaluations": ((0, -100.0), (5_000, 600.0), (10_000, 1742.0)),
        "eta_s": 48.7,
        "silent_s": 0.0,
    } | changes
    recording.print(View(title="SoftGAC on HalfCheetah-v5, seed 1", line=line or LINE, total_steps=20_000, **view))
    return recording.export_text()


def plain(**options: Any) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(total_steps=20_000, stream=stream, title="trial", **options), stream


def test_the_live_view_shows_what_matters_within_80_columns() -> None:
    text = drawn(80)
    assert max(map(len, text.splitlines())) <= 80
    for result in (
        "SoftGAC on HalfCheetah-v5, seed 1", "60 %", "12,000 of 20,000 env steps", "ETA 0:00:49", "evaluation 1,742",
        "training 1,204", "164 env steps/s", "328 updates/s", "replay ratio 2.00 (target 2.00)", "1.2 % full",
        "32 dropped (nonfinite 32)", "4 running", "1 restarted", "version 388", "age p50 / p95 1 / 3 versions",
        "update 92 %", "data wait 3.0 %", "publish 1.0 %", "alpha 0.0831", "Q 104", "0:03:12 elapsed", "▁▄█",
    ):  # fmt: skip
        assert result in text, result


@pytest.mark.parametrize("width", [30, 40, 60, 79, 80, 120, 200])
def test_no_line_of_the_view_is_wider_than_the_terminal(width: int) -> None:
    lines = drawn(width).splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) <= 14, "nothing is wrapped"


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(st.sampled_from(sorted(LINE)), st.floats(0, 1e12) | st.integers(0, 10**9)),
    st.integers(24, 160),
)
def test_any_part_of_a_metrics_line_can_be_shown(line: dict[str, float], width: int) -> None:
    assert max(map(len, drawn(width, line or {"env_steps": 0}, evaluations=()).splitlines())) <= width
    assert plain_line(line, 20_000, None, None).isascii()


def test_the_view_keeps_to_ascii_where_the_terminal_cannot_do_more() -> None:
    assert drawn(80, ascii=True).isascii()


def test_the_view_says_so_when_the_run_falls_silent() -> None:
    assert "no news for 42 s" in drawn(80, silent_s=42.0)
    assert "no news" not in drawn(80, silent_s=SILENT_AFTER_S - 1)


def test_non_finite_updates_come_first_among_the_figures_of_learning() -> None:
    assert "Learning 3.00 non-finite updates" in drawn(80, LINE | {"loss_nonfinite": 3.0})


def test_a_sparkline_spans_its_values_and_shows_the_newest() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([9, 0, 7], 2) == "▁█"
    assert sparkline([5.0, 5.0], 8, ascii=True) == "__"


def test_plain_lines_have_no_control_characters_and_come_at_most_every_so_often() -> None:
    console, stream = plain()
    for step in range(100):
        console.update(LINE | {"env_steps": step})
    assert stream.getvalue().count("\n") == 1
    console.close()
    text = stream.getvalue()
    assert text.splitlines()[-1].startswith("[0:03:12]   0 %  99 steps  164 steps/s  328 updates/s  ratio 2.00")
    assert text.count("\n") == 2, "the newest line is printed at the end"
    assert text.isascii() and not re.search(r"[^\n\x20-\x7e]", text)


def test_every_plain_line_is_printed_when_no_interval_is_asked_for() -> None:
    console, stream = plain(plain_every_s=0.0)
    for step in range(3):
        console.update({"env_steps": step})
    console.close()
    assert stream.getvalue().count("\n") == 3


def test_faults_stand_in_a_plain_line_only_where_there_are_any() -> None:
    assert plain_line(LINE, 20_000, None, None).endswith("1 worker restart  32 dropped rows  ETA -")
    healthy = LINE | {"workers_restarted": 0, "rows_dropped_nonfinite": 0}
    assert "restart" not in plain_line(healthy, 20_000, None, None)


def test_restarts_of_every_part_are_named_in_lines_view_and_summary() -> None:
    line = LINE | {"workers_restarted_died": 1, "learners_restarted_died": 1, "shards_restarted_hung": 2}
    line |= {"evaluators_restarted_raised": 0}
    result = plain_line(line, 20_000, None, None)
    assert "  1 worker restart  1 learner restart  2 shard restarts  32 dropped rows  " in result
    assert "evaluator" not in result and "Restarts learner 1   shard 2" in drawn(80, line)
    told = {"restarts": {"worker": 1, "learner": 1, "shard": 2, "store": 0, "evaluator": 0}}
    assert in_words(SUMMARY | told).endswith("1 restarted.\nRestarts of other parts: learner 1, shard 2.")
    assert "other parts" not in in_words(SUMMARY | {"restarts": {"worker": 1, "learner": 0}})


def test_the_end_is_reckoned_by_the_pace_since_the_first_update_and_unknown_before_it() -> None:
    console, stream = plain(plain_every_s=0.0)
    for time_s, env_steps, updates in ((1, 1_000, 0), (11, 1_100, 100), (111, 2_100, 1_100)):
        console.update({"time_s": time_s, "env_steps": env_steps, "updates": updates})
    result = stream.getvalue().splitlines()
    assert (
        result[0].endswith("ETA -") and result[1].endswith("ETA -") and result[2].endswith("ETA 0:29:50")
    )  # 17,900 at 10/s


def test_the_reward_of_a_step_is_shown_until_an_episode_has_ended() -> None:
    running = {"env_steps": 64, "reward_mean": -0.25}
    assert "reward -0.250 a step" in plain_line(running, 20_000, None, None)
    assert "a step" not in plain_line(running | {"return_mean": -9.0}, 20_000, None, None)
    assert "reward -0.250 a step, no episode has ended yet" in drawn(80, running, evaluations=())


def test_a_run_that_learns_from_a_dataset_alone_shows_nothing_of_environments() -> None:
    offline = LINE | {"env_steps": 0, "workers": 0, "workers_wanted": 0, "env_steps_per_s": 0.0, "rows_recorded": 0}
    offline = {
        key: value for key, value in offline.items() if not key.startswith(("rows_dropped", "return_", "workers_r"))
    }
    for text in (drawn(80, offline, unit="updates"), plain_line(offline, 20_000, None, None, "updates")):
        assert "updates" in text and not [word for word in ("env step", " steps", "running", "age p50") if word in text]


def test_a_run_in_stages_says_what_it_is_at() -> None:
    phase = "stage 2 of 3, gathering 120 of 500 episodes"
    assert phase in drawn(80, phase=phase) and phase in plain_line(LINE, 20_000, None, None, phase=phase)


def test_a_key_that_a_line_lacks_keeps_its_last_value() -> None:
    console, stream = plain(plain_every_s=0.0)
    console.update(LINE)
    console.update({"env_steps": 13_000})
    console.close()
    assert "13,000 steps  164 steps/s" in stream.getvalue().splitlines()[-1]


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.sampled_from(sorted(LINE)), st.floats() | st.none() | st.text() | st.integers(), min_size=1))
def test_no_value_in_a_metrics_line_can_stop_the_run(line: dict[str, Any]) -> None:
    console, stream = plain(plain_every_s=0.0)
    console.update(line)
    console.update(LINE)
    console.close()
    assert stream.getvalue().isascii() and console.lost is None
    recording = Terminal(width=80, file=io.StringIO())
    recording.print(console._view())


def test_events_appear_at_once_with_their_time_and_without_markup_or_control_characters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = [500.0]
    monkeypatch.setattr("cluster.metrics.console.time.monotonic", lambda: now_s[0])
    console, stream = plain()
    now_s[0] += 75.0
    console.event("1 of 1 learners up")  # a start has no line yet
    assert stream.getvalue() == "[0:01:15] 1 of 1 learners up\n"
    resumed, said = plain(before_s=3_600.0)
    now_s[0] += 16.0
    resumed.event("1 of 1 learners up")
    assert said.getvalue() == "[1:00:16] 1 of 1 learners up\n"
    now_s[0] -= 16.0
    console.update(LINE)
    now_s[0] += 3.0
    console.event("worker 3 was restarted: [red]\x1b[31mboom\x1b[0m\x07\nsecond line")
    assert stream.getvalue().endswith("[0:03:15] worker 3 was restarted: [red]boom\n           second line\n")
    console.close()


def test_ci_and_dumb_terminals_get_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    for name, value in (("CI", "true"), ("TERM", "dumb")):
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.delenv("CI", raising=False)
        monkeypatch.setenv(name, value)
        stream = Screen()
        with Console(total_steps=10, stream=stream, title="trial") as console:
            console.update(LINE)
        assert "\x1b" not in stream.getvalue()


def test_a_closed_stream_ends_the_showing_and_not_the_run() -> None:
    console, stream = plain(plain_every_s=0.0)
    stream.close()
    console.update(LINE)
    console.event("still going")
    console.close(SUMMARY)
    assert console.lost is not None and "went away" in console.lost


def test_a_broken_pipe_ends_the_showing_and_not_the_run() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        console = Console(total_steps=10, stream=stream, title="trial", plain_every_s=0.0)
        console.update(LINE)
        assert console.lost is not None
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # so that closing the stream can flush


def test_a_real_terminal_gets_the_view_and_its_cursor_back() -> None:
    code = (
        "from cluster.metrics.console import Console\n"
        "from tests.test_console import LINE, SUMMARY\n"
        "console = Console(total_steps=20_000, title='SoftGAC on HalfCheetah-v5')\n"
        "console.update(LINE)\nconsole.event('checkpoint written')\nconsole.close(SUMMARY)\n"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("CI", "NO_COLOR")}
    environment |= {
        "TERM": "xterm-256color",
        "COLUMNS": "80",
        "LINES": "24",
        "PYTHONPATH": str(ROOT),
        "PYTHONUTF8": "1",
    }
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", code], stdout=theirs, stderr=theirs, env=environment, cwd=ROOT)
    os.close(theirs)
    text = received(ours)
    assert process.wait(timeout=60) == 0, text
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    assert "╭─ SoftGAC on HalfCheetah-v5" in shown
    assert shown.count("[0:03:12] checkpoint written") == 1
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is shown again"
    assert "Its deterministic policy returns 3,514" in text


def received(terminal: int) -> str:
    """Everything written to a pseudo terminal until its other side is closed."""
    chunks: list[bytes] = []
    while True:
        try:
            chunk = os.read(terminal, 65536)
        except OSError:  # Linux's way to say that nobody has the other side open
            chunk = b""
        if not chunk:
            os.close(terminal)
            return b"".join(chunks).decode()
        chunks.append(chunk)


def test_the_summary_in_words_tells_every_figure() -> None:
    text = in_words(SUMMARY)
    assert max(map(len, text.splitlines())) <= 80
    flat = " ".join(text.split())
    for result in (
        "SoftGAC on HalfCheetah-v5 (seed 1, ray backend) finished: 20,000 env steps and 40,000 updates in 3 min 12 s",
        "104 env steps/s and 208 updates/s",
        "returns 3,514 on average over 10 episodes, with a standard deviation of 123",
        "2.00 updates for each env step after the first 1,000, besides 500 before on the dataset.",
        "93 % into updates, 1.2 % into waiting for data and 2.1 % into publishing weights",
        "1 version old at the median and 3 at the 95th percentile",
        "20,000 rows of experience recorded, 19,968 stored, 32 dropped (nonfinite 32)",
        "4 rollout workers started, 1 restarted",
    ):
        assert result in flat, result


def test_a_run_that_stopped_early_says_so_and_missing_figures_are_left_out() -> None:
    assert in_words({"exit": "interrupted", "algorithm": "sac", "env": "Hopper-v5", "env_steps": 1}) == (
        "SAC on Hopper-v5 stopped before its end (exit: interrupted): 1 env step.\n"
        "No evaluation was made, so nothing is known of the policy's return."
    )


OFFLINE: dict[str, Any] = SUMMARY | {
    "algorithm": "bc", "env_steps": 0, "updates": 60, "env_steps_per_s": 0.0, "updates_per_s": 5.0, "wall_s": 12.0, "replay_ratio": None,
    "min_size_rows": None, "pretrain_updates": 0, "rows": {"recorded": 0, "stored": 0, "dropped": {}},
    "workers": {"started": 0, "restarted": 0}, "policy_age_versions": {"p50": 0, "p95": 0},
}  # fmt: skip


def test_the_summary_of_a_run_that_gathers_nothing_says_nothing_of_gathering() -> None:
    text = " ".join(in_words(OFFLINE).split())
    assert "finished: 60 updates in 12 s, 5.00 updates/s. " in text and "93 % into updates" in text
    for word in ("env step", "experience", "version", "rows", "workers"):
        assert word not in text, word
    for gathered in ({"env_steps": 9_600}, {"workers": {"started": 2, "restarted": 0}}, {"min_size_rows": 64}):
        assert "rows of experience recorded" in in_words(OFFLINE | gathered)


def test_the_summary_of_a_run_in_stages_tells_its_episodes_beside_those_asked_for() -> None:
    def told(made: int, asked: int) -> str:
        return " ".join(in_words(SUMMARY | {"online_episodes": made, "asked_episodes": asked}).split())

    assert "32 whole episodes gathered; 20 asked for, and environments that end an episode together add" in told(32, 20)
    assert " 20 whole episodes gathered. " in told(20, 20)
    assert " 1 whole episode gathered of 20 asked for. " in told(1, 20)
    assert "whole episode" not in in_words(SUMMARY | {"asked_episodes": 0})


@settings(deadline=None, max_examples=60)
@given(st.sets(st.sampled_from(sorted(SUMMARY))))
def test_any_part_of_a_summary_can_be_put_into_words(keys: set[str]) -> None:
    text = in_words({key: SUMMARY[key] for key in keys})
    assert text and text.isascii()


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (number(12_400), "12,400"), (number(1742.4), "1,742"), (number(2.0), "2.00"), (number(0.0831), "0.0831"),
        (number(None), "-"), (number(float("nan")), "nan"), (number(1e12), "1e+12"), (number(-98.2), "-98.2"),
        (percent(0.012), "1.2 %"), (percent(0.92), "92 %"), (percent(0.0), "0 %"), (percent(None), "-"),
        (clock(3723), "1:02:03"), (clock(None), "-"), (span(42.4), "42 s"), (span(7500), "2 h 5 min"),
    ],
)  # fmt: skip
def test_figures_have_the_digits_a_reader_needs(shown: str, expected: str) -> None:
    assert shown == expected
