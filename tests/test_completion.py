"""The script of ``drawbridge completion`` in the shells that it is for."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from cluster.cli import main


@pytest.fixture
def script(tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> Path:
    shell = request.param
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed here")
    assert main(["completion", shell]) == 0
    path = tmp_path / "_drawbridge"
    path.write_text(capsys.readouterr().out)
    return path


@pytest.mark.parametrize("script", ["bash"], indirect=True)
def test_bash_completes_commands_flags_their_values_and_run_directories(script: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "rest.txt").touch()

    def completed(*words: str) -> list[str]:
        line = " ".join(f"'{word}'" for word in words)
        code = f"source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _shtab_drawbridge {words[0]} '{words[-1]}'"
        shell = ["bash", "-c", f"{code}; printf '%s\\n' \"${{COMPREPLY[@]}}\""]
        ended = subprocess.run(shell, capture_output=True, text=True, cwd=tmp_path, timeout=30)
        return ended.stdout.split()

    assert completed("drawbridge", "res") == ["resume"]
    assert completed("drawbridge", "dataset", "make", "m") == ["maze"]
    assert completed("drawbridge", "train", "gac", "--datas") == ["--dataset"]
    assert completed("drawbridge", "train", "gac", "--backend", "i") == ["inline"]
    assert completed("drawbridge", "status", "r") == ["runs"]


@pytest.mark.parametrize("script", ["zsh"], indirect=True)
def test_zsh_takes_the_script(script: Path) -> None:
    assert script.read_text().startswith("#compdef drawbridge")
    subprocess.run(["zsh", "-n", str(script)], check=True, timeout=30)
