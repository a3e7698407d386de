"""Signals that come before a run is under way: they end it at once, leave no process, and the same command starts it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from ray_runs import driven
from tiny_runs import command, read, train_inline, train_words, wait_for

from cluster.cli import main
from cluster.commands.status import status
from cluster.errors import Interrupted
from cluster.signals import Signals


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_command_with_its_own_exit_code_and_one_sentence(
    signum: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    monkeypatch.setattr("cluster.checks.check_tree", lambda: signal.raise_signal(signum))
    assert main(train_words(Path("never"), "InvertedPendulum-v5")) == code
    result = capsys.readouterr().err.strip()
    assert result == f"drawbridge: ended by {signum.name} before the command had finished; give it again"
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_signal_in_a_block_that_is_held_is_raised_after_it() -> None:
    done = []
    with (
        Signals() as signals,
        pytest.raises(Interrupted, match="SIGTERM during the test"),
        signals.at_once("during the test"),
    ):
        with signals.held():
            signal.raise_signal(signal.SIGTERM)
            done.append("held")
        done.append("after")
    assert done == ["held"]


def test_a_second_ctrl_c_has_its_words_also_where_ray_raises_an_interrupt_of_its_own() -> None:
    with (
        Signals("cut short; resume") as signals,
        pytest.raises(KeyboardInterrupt, match="cut short; resume"),
        signals.worded(),
    ):
        signal.raise_signal(signal.SIGINT)
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt from error


@pytest.mark.cluster
def test_a_second_ctrl_c_on_ray_says_that_the_save_was_cut_short(tmp_path: Path) -> None:
    words = train_words(tmp_path / "run", "broken_envs:Slow-v0", "--backend", "ray", metrics__line_s=0.5)
    with driven(tmp_path / "run", *words) as run:
        run.wait_for_steps(16)
        run.process.send_signal(signal.SIGINT)
        run.wait(lambda: run.live()["state"] == "finishing", "the save")
        run.process.send_signal(signal.SIGINT)
        assert run.end() == 130, run.output()[-3_000:]
        last = run.output().strip().splitlines()[-1]
        assert last.startswith("drawbridge: error: interrupted twice, so the save was cut short: see"), last
        assert "interrupted twice" in read(run.run_dir / "failure.json")["error"]
        wait_for(lambda: not run.alive(), "all that was started to end", 60)


@pytest.mark.cluster
def test_a_signal_during_the_start_ends_all_that_was_started_and_the_same_command_starts_the_run(
    tmp_path: Path,
) -> None:
    words = train_words(tmp_path / "run", "InvertedPendulum-v5", "--backend", "ray", "--steps", "128")
    for part, signum, code in (
        ("gcs_server", signal.SIGTERM, 143),  # Ray is starting
        ("ray::ShardActor", signal.SIGINT, 130),  # actors are waited for
        ("ray::LearnerActor", None, 143),
    ):
        with driven(tmp_path / "run", *words) as run:
            run.wait(lambda run=run, part=part: run.children(part), f"a process {part}")
            if signum is None:
                stopped = command("stop", str(run.run_dir))
                assert stopped.returncode == 0 and "during the start" in stopped.stdout, stopped.stderr
            else:
                run.process.send_signal(signum)
            assert run.end() == code, run.output()[-3_000:]
            last = run.output().strip().splitlines()[-1]
            sender = "`drawbridge stop`" if signum is None else signum.name
            assert last.startswith(f"drawbridge: ended by {sender} during the start"), run.output()[-3_000:]
            assert "Traceback" not in run.output() and last.endswith(read(run.run_dir / "failure.json")["error"])
            assert not read(run.run_dir / "failure.json")["traceback"]
            assert status(run.run_dir)["state"] == "interrupted"
            wait_for(lambda run=run: not run.alive(), "all that was started to end", 60)
    assert train_inline(tmp_path / "run", "InvertedPendulum-v5", 128) == 0
    assert not (tmp_path / "run" / "failure.json").exists()


def test_a_signal_while_a_native_module_is_imported_is_no_error_of_the_import() -> None:
    """As pybind11 does: whatever is raised while a module is made becomes an ImportError."""
    with (
        Signals() as signals,
        pytest.raises(Interrupted, match="ended by SIGTERM as it began"),
        signals.at_once("as it began"),
    ):
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException as error:
            raise ImportError("initialization failed") from error


def test_an_error_beside_a_signal_stays_what_it_is() -> None:
    with (
        Signals() as signals,
        pytest.raises(ImportError, match="no module"),
        signals.at_once("as it began"),
        signals.held(),
    ):
        signals.caught.append(signal.SIGTERM)
        raise ImportError("no module")
