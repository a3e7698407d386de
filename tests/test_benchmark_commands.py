"""Every command of benchmarks/ that a page or a benchmark shows is understood by that benchmark. No benchmark is run."""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PLACES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "Makefile",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "benchmarks").glob("*.py")),
]


class Understood(Exception):
    """The benchmark has read its words."""


def shown() -> list[str]:
    """Each command once: the benchmark's name and its words. It begins a line, with remarks after two spaces, or has words in backticks."""
    texts = [re.sub(r"[ \t]*\\\n\s*", " ", place.read_text()) for place in PLACES]
    call = r"(?:\w+=\S+ )*(?:\$\(\w+\)|python3?) (?:benchmarks/(?=\w+\.py)|-m benchmarks\.)(\w+)(?:\.py)?"
    found = [match for text in texts for match in re.findall(rf"(?m)^[ \t]+{call}((?: [^ \n#;|&>]+)*)", text)]
    found += [match for text in texts for match in re.findall(rf"`{call}(\s[^`]+)`", text)]
    return sorted({" ".join([name, *re.sub(r"\[.*\]|\$\(\w+\)", "", words).split()]) for name, words in found})


@pytest.mark.parametrize("command", shown())
def test_a_benchmark_understands_the_words_that_are_shown(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, *words = shlex.split(command, comments=True)
    if "ArgumentParser" not in (ROOT / "benchmarks" / f"{name}.py").read_text():
        assert not words, f"benchmarks/{name}.py takes no words"
        return
    read = argparse.ArgumentParser.parse_args

    def read_only(parser: argparse.ArgumentParser, *given: Any) -> None:
        read(parser, *given)
        raise Understood

    monkeypatch.setattr(sys, "argv", [name, *words])
    monkeypatch.delitem(sys.modules, f"benchmarks.{name}", raising=False)  # run anew, whoever has imported it
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", read_only)
    try:
        with pytest.raises(Understood):
            runpy.run_module(f"benchmarks.{name}", run_name="__main__")
    except ModuleNotFoundError as error:
        if error.name != "jax":
            raise
        pytest.skip("jax is not installed: it comes with the extra [bench], which the tests do without")
