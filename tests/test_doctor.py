"""`drawbridge doctor` on this machine alone, and how facts are judged; on a cluster with an unfit node: tests/test_job_submit.py."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import socket
from pathlib import Path

import pytest

import cluster.connection
from algorithms import compiled
from cluster.cli import main
from cluster.config import make_preset
from cluster.doctor import Facts, Question, check_machine, gather_facts, judge, marked
from cluster.errors import UsageError
from cluster.run_dir import RunDirectory


@pytest.fixture
def facts(tmp_path: Path) -> Facts:
    with marked(tmp_path / "run") as question:
        return dataclasses.replace(gather_facts(question), open_files=65_536, shm_bytes=8 << 30, uncompiled="")


def states(there: Facts, here: Facts, **given: object) -> dict[str, str]:
    """The state of every check of another machine than ours, by name."""
    return {check.name: check.state for check in judge(there, here, "there", **given)}  # type: ignore[arg-type]


def test_this_machine_is_fit_and_nothing_is_left_in_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["doctor", "--run-dir", str(tmp_path / "runs" / "new")]) == 0
    table = capsys.readouterr().out
    assert "flock works, fsync takes" in table and "0 fail" in table
    assert list(tmp_path.iterdir()) == []
    assert [check.name for check in check_machine(tmp_path)] == ["compiler"] * bool(compiled.problem())


def test_a_run_directory_that_cannot_be_written_fails(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").touch()
    assert main(["doctor", "--run-dir", "/proc/runs"]) == 1
    assert "fail   run directory" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "check", "state"),
    [
        ({"open_files": 1024}, "ulimit", "warn"),
        ({"shm_bytes": 64 << 20}, "/dev/shm", "warn"),
        ({"gpus": 2, "cuda": 1}, "GPUs", "warn"),
        ({"uncompiled": "no C compiler"}, "compiler", "warn"),
        ({"closed": ("10.0.0.1:6379",)}, "ports", "fail"),
    ],
)
def test_what_a_machine_lacks_is_named(facts: Facts, changed: dict[str, object], check: str, state: str) -> None:
    assert set(states(dataclasses.replace(facts), facts).values()) == {"ok"}
    assert {check: state}.items() <= states(dataclasses.replace(facts, **changed), facts).items()


def test_another_ray_and_a_missing_package_fail_and_gpus_that_ray_does_not_count_are_a_warning(facts: Facts) -> None:
    for changed in ({"ray": "2.0"}, {"mujoco": ""}):
        assert states(dataclasses.replace(facts, versions=facts.versions | changed), facts)["versions"] == "fail"
    there = dataclasses.replace(facts, gpus=1)
    assert [states(there, facts, resources={"GPU": count})["GPUs"] for count in (0.0, 1.0)] == ["warn", "ok"]


def test_storage_that_is_slow_or_has_no_common_locks_is_a_warning_and_unseen_storage_fails(tmp_path: Path) -> None:
    with marked(tmp_path) as question:
        here = gather_facts(question)
        assert question.mark is not None
        elsewhere = gather_facts(Question(mark=question.mark.with_name("gone"), nonce=question.nonce))
        assert states(elsewhere, here)["run directory"] == "fail"
    assert here.storage is not None
    for changed in ({"excluded": False}, {"fsync_s": 0.5}):
        there = dataclasses.replace(here, storage=dataclasses.replace(here.storage, **changed))
        assert states(there, here)["run directory"] == "warn"


def test_a_port_that_is_closed_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        peers = server.getsockname(), unused.getsockname()
        assert gather_facts(Question(peers=peers)).closed == (f"127.0.0.1:{unused.getsockname()[1]}",)


def test_a_file_system_without_locks_is_named_and_not_taken_for_a_living_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: object, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UsageError, match=r"cannot be written .*No locks available"):
        RunDirectory.create(tmp_path / "run", make_preset("softgac", "cpu"))


def test_a_tree_too_large_for_a_job_is_named_with_its_largest_file_and_rayignore_is_respected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(cluster.connection, "ROOT", tmp_path)
    with open(tmp_path / "big.npz", "wb") as file:
        file.truncate(101 << 20)
    assert main(["doctor", "--run-dir", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    assert "101.0 MiB in 1 files" in table and "big.npz (101 MiB)" in table and "413" in table
    (tmp_path / ".rayignore").write_text("*.npz\n")
    assert main(["doctor", "--run-dir", str(tmp_path)]) == 0
    assert "0.0 MiB in 1 files" in capsys.readouterr().out
