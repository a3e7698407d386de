"""``deploy/setup.sh`` with Pythons that are scripts: which one it takes, what it says meanwhile, and what of a failure."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PYTHON = """#!/bin/bash
case "$*" in
  *version_info*) [ "{version}" = absent ] && exit 127; echo "{version}" ;;
  "-m venv"*) mkdir -p "$3/bin" "$3/lib/python{version}/site-packages"; cp "$0" "$3/bin/python" ;;
  "-m pip install"*)
    echo "Collecting numpy==2.4.6 (from drawbridge)"; echo "  Downloading numpy-2.4.6.whl (16.6 MB)"
    echo "Installing collected packages: numpy, ray, torch"
    touch "$(dirname "$0")/../pip-was-asked"
    exit {code} ;;
esac
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree with the script and what it reads, and a folder bin/ for Pythons."""
    (tmp_path / "deploy").mkdir()
    (tmp_path / "bin").mkdir()
    shutil.copy(ROOT / "deploy" / "setup.sh", tmp_path / "deploy")
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    for version in ("3.13", "3.12", "3.11"):
        has(tmp_path, f"python{version}", "absent")  # as pyenv's commands for versions that are not chosen
    has(tmp_path, "python3", "3.9")
    return tmp_path


def has(tree: Path, name: str, version: str, code: int = 0) -> Path:
    path = tree / "bin" / name
    path.write_text(PYTHON.format(version=version, code=code))
    path.chmod(0o755)
    return path


def set_up(tree: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    path = f"{tree / 'bin'}:/usr/bin:/bin"
    env = {name: value for name, value in os.environ.items() if name != "PYTHON"} | {"PATH": path} | variables
    asked = ["bash", str(tree / "deploy" / "setup.sh"), *(words or (".venv",))]
    return subprocess.run(asked, capture_output=True, text=True, timeout=60, env=env)


def test_the_newest_python_that_runs_is_taken_and_its_setup_is_said(tree: Path) -> None:
    for version in ("3.12", "3.11"):
        has(tree, f"python{version}", version)
    ended = set_up(tree)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.startswith("making .venv with Python 3.12\n")
    assert ended.stderr.endswith("ready: .venv, Python 3.12\n") and "Downloading" not in ended.stdout + ended.stderr
    assert (tree / ".venv" / ".installed").exists()
    (tree / ".venv" / "pip-was-asked").unlink()
    assert set_up(tree).stderr == "" and not (tree / ".venv" / "pip-was-asked").exists()  # nothing changed since


def test_what_pip_said_is_shown_when_it_fails_and_the_next_call_goes_on(tree: Path) -> None:
    has(tree, "python3.13", "3.13", code=1)
    ended = set_up(tree)
    assert ended.returncode == 2 and "Downloading numpy-2.4.6.whl" in ended.stderr
    assert "setup: pip install failed" in ended.stderr and not (tree / ".venv" / ".installed").exists()
    shutil.copy(has(tree, "python3.13", "3.13"), tree / ".venv" / "bin" / "python")
    assert set_up(tree).returncode == 0


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({}, ("no Python 3.13, 3.12, 3.11 was found (python3 is 3.9)", "apt install python3.13 python3.13-venv")),
        ({"PYTHON": "python3"}, ("PYTHON=python3 is 3.9", "leave PYTHON out")),
        ({"PYTHON": "nowhere/python"}, ("PYTHON=nowhere/python is no Python that runs",)),
    ],
)
def test_any_other_python_is_refused_in_a_sentence(
    tree: Path, variables: dict[str, str], words: tuple[str, ...]
) -> None:
    ended = set_up(tree, **variables)
    assert ended.returncode == 2 and not (tree / ".venv").exists()
    assert all(word in ended.stderr for word in words) and ended.stderr.count("\n") == 1, ended.stderr


def test_python_overrides_and_does_not_fit_an_environment_of_another_one(tree: Path) -> None:
    for version in ("3.13", "3.11"):
        has(tree, f"python{version}", version)
    assert "with Python 3.11" in set_up(tree, PYTHON="python3.11").stderr
    ended = set_up(tree, PYTHON="python3.13")
    assert ended.returncode == 2 and ".venv has Python 3.11" in ended.stderr and "remove .venv" in ended.stderr


def test_the_matrix_is_of_every_python_there_is_and_no_silent_success_without_one(tree: Path) -> None:
    none = set_up(tree, "--all")
    assert none.returncode == 2 and "no Python 3.13, 3.12, 3.11 was found" in none.stderr and not none.stdout
    paths = [tree / "bin" / f"python{version}" for version in ("3.13", "3.12", "3.11")]
    for path in (*paths[:2], tree / "bin" / "python3"):  # three names of one version
        path.unlink()
        path.symlink_to(sys.executable)
    found = set_up(tree, "--all")
    assert (found.returncode, found.stdout) == (0, f"{paths[0]}\n"), found.stdout + found.stderr
