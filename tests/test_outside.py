"""A run directory may come from anybody: what reaches out of it is named again by the command, or refused."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_runs import command, edit_config, edit_meta, read, train_inline, train_words

from cluster.cli import main
from cluster.commands.status import status
from cluster.config import make_preset, override
from cluster.outside import named_again, unnamed
from cluster.own_code import resume_words
from cluster.run_dir import RunDirectory
from replay.manifest import append_whole, write_atomic, write_synced
from rollout_workers.env import EnvError
from rollout_workers.env_ids import find_env, name_module

STEPS = 96
OWN = ("127.0.0.1", "localhost", "::1")  # hosts of an endpoint that only this machine reaches


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("outside") / "run"
    assert train_inline(path, "Pendulum-v1", STEPS) == 0
    return path


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That run as a stranger hands it over."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return Path(shutil.copytree(trained, tmp_path / "run"))


class Peer:
    """Somebody who listens at ``address``, and counts who comes."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.callers = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return
            self.callers += 1
            with caller:
                caller.recv(100)
                caller.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def peer() -> Iterator[Peer]:
    found = Peer()
    yield found
    found.close()


def commands_from(run: Path, out: Path) -> dict[str, list[str]]:
    """The commands that drive a run with settings from the run directory ``run``."""
    return {
        "resume": ["resume", str(run), "--steps", "200"],
        "finetune": ["finetune", str(run), "--out", str(out), "--steps", "200"],
        "train": ["train", "softgac", "--config", str(run / "config.json"), "--run-dir", str(out), "--steps", "200"],
    }


@pytest.mark.parametrize("name", ["resume", "finetune", "train"])
def test_no_command_calls_a_cluster_that_only_a_file_names(
    name: str,
    run: Path,
    peer: Peer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    edit_config(run, backend="ray", ray__address=peer.address)
    edit_meta(run, backend="ray", settings=None)  # as if it had been made there
    words, before = commands_from(run, tmp_path / "out")[name], (run / "config.json").read_bytes()
    for ours in ("", "127.0.0.1:1", "local"):
        monkeypatch.setenv("RAY_ADDRESS", ours)
        assert main(words) == 2
        result = capsys.readouterr().err
        for part in (
            f"ray.address is '{peer.address}'", "expected the command line to name them", "nothing was started",
            f"repeat the command with --address {peer.address}, or give other values",
        ):  # fmt: skip
            assert part in result, result
    assert not peer.callers and (run / "config.json").read_bytes() == before and not (tmp_path / "out").exists()
    for given, ours in (
        (["--address", peer.address], ""),
        (["--set", f"ray.address={peer.address}"], ""),
        ([], peer.address),
    ):
        callers = peer.callers
        monkeypatch.setenv("RAY_ADDRESS", ours)
        assert main([*words, *given]) == 2
        assert "what listens there does not speak gRPC" in capsys.readouterr().err and peer.callers == callers + 1


@pytest.mark.parametrize("name", ["resume", "finetune", "train"])
def test_whatever_reaches_out_is_named_again_as_the_error_says(
    name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "some where" / "targets"
    edit_config(run, metrics__host="0.0.0.0", metrics__targets_dir=str(folder), metrics__port=0)
    words = commands_from(run, tmp_path / "out")[name]
    assert main(words) == 2
    result = capsys.readouterr().err
    assert "metrics.host is '0.0.0.0' (others can read the metrics); metrics.targets_dir is" in result
    assert not folder.exists() and not (tmp_path / "out").exists()
    flags = result.partition("repeat the command with ")[2].partition(", or give other values")[0]
    assert main([*words, *shlex.split(flags)]) == 0
    assert folder.exists() and "http://0.0.0.0:" in capsys.readouterr().out


def test_another_value_will_do_and_is_kept(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_config(run, metrics__host="0.0.0.0", metrics__targets_dir="/nowhere/targets")
    assert (
        main(["resume", str(run), "--steps", "128", "--set", "metrics.host=127.0.0.1", "--set", "metrics.targets_dir="])
        == 0
    )
    capsys.readouterr()
    assert main(["resume", str(run), "--steps", "160"]) == 0


def test_the_words_that_go_on_with_a_run_name_all_of_it_again(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run's own, as it halts, and those of the commands that look at it."""
    own, folder = tmp_path / "own", tmp_path / "some where"
    settings = {"metrics__targets_dir": folder, "metrics__port": 0, "metrics__host": "0.0.0.0"}
    assert train_inline(own, "broken_envs:Raises-v0", 4_000, replay__replay_ratio=0.1, **settings) == 1
    words = f"drawbridge resume {own} --env broken_envs:Raises-v0 --set metrics.host=0.0.0.0 --set metrics.targets_dir='{folder}'"
    capsys.readouterr()
    assert main(["status", str(own)]) == 0 and f"go on with `{words}`" in capsys.readouterr().out
    assert main(train_words(own)) == 2 and f"go on with it by `{words}`" in capsys.readouterr().err
    edit_config(run, metrics__targets_dir=str(folder))
    again = shlex.split(status(run)["resume"])[1:]
    assert main([*again[:2], "--steps", "200"]) == 2 and main([*again, "--steps", "200"]) == 0
    assert (
        resume_words("r", {"ray": {"address": "head:6379", "call_timeout_s": 1}, "metrics": 3})
        == "drawbridge resume r --address head:6379"
    )


def test_what_stays_on_this_machine_and_in_the_directory_needs_no_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    preset = make_preset("softgac", "cpu")
    assert preset.backend == "ray" and unnamed(preset, {}) == {} and named_again(preset) == ""
    for key, value in (("ray.address", "local"), *(("metrics.host", host) for host in OWN)):
        assert unnamed(override(preset, {key: value}), {}) == {}
    out = {"ray.address": "auto", "metrics.host": "head", "metrics.targets_dir": "targets", "metrics.logger": "wandb"}
    assert unnamed(override(preset, out), {}) == out
    assert set(unnamed(override(preset, {**out, "backend": "inline"}), {"metrics.host": "x"})) == {
        "metrics.targets_dir",
        "metrics.logger",
    }


def test_an_argument_that_may_be_a_file_is_named_on_the_command_line() -> None:
    for task in ('Ant-v5?{"xml_file":"/a/stranger/s.xml"}', 'Ant-v5?{"deep":[{"~/x":1}]}'):
        with pytest.raises(
            EnvError, match=r"has the text '.*' and was read from a file, expected .* may name code or a file"
        ):
            find_env(task)
        assert f" --env {shlex.quote(task)}" in resume_words("run", {"env": task})
        name_module(task)
        assert find_env(task).id == "Ant-v5"


# --- links and pipes --------------------------------------------------------------------------------------------------

FILES = (
    "run.lock",
    "metrics.jsonl",
    "evaluations.jsonl",
    "curve.png",
    "config.json",
    "control/reserve",
    "control/starts",
)
FOLDERS = ("checkpoints", "replay", "replay/shard-0", "control", "events", "dumps", "wandb")


@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
def test_a_link_that_leads_out_of_a_run_directory_is_refused_and_what_it_leads_to_stays(
    name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    link, victim = run / name, tmp_path / "victim"
    if link.exists():
        shutil.move(link, victim)
    elif name in FOLDERS:
        victim.mkdir()
    else:
        victim.write_text("precious")
    link.symlink_to(victim)
    before = contents(victim)
    assert main(["resume", str(run), "--steps", "200"]) == 2
    result = capsys.readouterr().err
    for part in (
        f"{link} is a link to {victim}",
        "expected no link out of a run directory",
        "nothing was started",
        "remove the link",
    ):
        assert part in result, result
    assert contents(victim) == before


def contents(path: Path) -> dict[str, bytes]:
    paths = [path, *path.rglob("*")]
    return {str(each): each.read_bytes() if each.is_file() else b"" for each in paths}


def test_no_request_to_a_run_is_left_where_a_link_leads(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = RunDirectory(run)
    held.hold()
    shutil.move(run / "control", tmp_path / "victim")
    (run / "control").symlink_to(tmp_path / "victim")
    before = contents(tmp_path / "victim")
    for words in (["stop", str(run)], ["scale", str(run), "--workers", "2"]):
        assert main([*words, "--timeout", "1"]) == 2 and "control is a link to" in capsys.readouterr().err
    held.release()
    assert contents(tmp_path / "victim") == before


def test_a_run_directory_may_be_a_link_itself_and_hold_links_that_stay_inside(run: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(run)
    (run / "latest").symlink_to("checkpoints")
    (run / "circle").symlink_to("circle")
    assert main(["resume", str(tmp_path / "link"), "--steps", "128"]) == 0
    assert read(run / "summary.json")["env_steps"] >= 128


def test_the_directory_of_several_seeds_is_looked_at_like_one_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = tmp_path / "parent"
    parent.mkdir()
    shutil.copytree(run, parent / "seed-1")
    (parent / "seed-2").symlink_to(run)
    words = ["resume", str(parent), "--steps", "128"]
    assert main(words) == 2 and f"seed-2 is a link to {run}" in capsys.readouterr().err
    (parent / "seed-2").unlink()
    os.mkfifo(parent / "seed-1.log")
    assert main(words) == 2 and "seed-1.log" in capsys.readouterr().err
    assert read(parent / "seed-1" / "summary.json") == read(run / "summary.json")


def test_no_file_is_written_through_a_link_nor_through_a_pipe(tmp_path: Path) -> None:
    victim, link, pipe = tmp_path / "victim", tmp_path / "link", tmp_path / "pipe"
    victim.write_bytes(b"precious")
    link.symlink_to(victim)
    os.mkfifo(pipe)
    (tmp_path / f".file.{os.getpid()}.tmp").symlink_to(victim)
    for path, what in (link, "it is a link"), (pipe, "it is no regular file|it is a pipe"):
        with pytest.raises(OSError, match=what):
            append_whole(path, lambda last: b"more")
        with pytest.raises(OSError, match=what):
            write_synced(path, b"other")
    os.link(victim, tmp_path / "twin")
    for write in (
        lambda: append_whole(tmp_path / "twin", lambda last: b"more"),
        lambda: write_synced(tmp_path / "twin", b"other"),
    ):
        with pytest.raises(OSError, match="another name"):
            write()
    with pytest.raises(OSError, match="symbolic links"):
        write_atomic(tmp_path / "file", b"other")
    assert victim.read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("name", "code"),
    [("control/run_id", 0), ("run.lock", 2), ("metrics.jsonl", 2), ("evaluations.jsonl", 2), ("control/reserve", 0)],
)
def test_a_pipe_in_place_of_a_file_holds_nobody_up_and_is_named(name: str, code: int, run: Path) -> None:
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    result = command("resume", str(run), "--steps", "128", "--set", "metrics.port=0", timeout=120)
    assert result.returncode == code, result.stderr
    if code:
        assert (
            name in result.stderr
            and "free some space" not in result.stderr
            and "mend that, or choose another" in result.stderr
        )
