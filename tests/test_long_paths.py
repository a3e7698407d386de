"""A path that no file system takes is one clear error of every command, before anything is started."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import pytest
from tiny_runs import train_inline, train_words

import drawbridge
from cluster.cli import _parser, main
from cluster.commands.arguments import location, new_file
from cluster.errors import UsageError, too_long

LONG = "x" * 300


def parsers(parser: argparse.ArgumentParser, words: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The words of every command, subcommands of subcommands too."""
    found = [words]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found = [way for name, inner in action.choices.items() for way in parsers(inner, (*words, name))]
    return found


def of(words: tuple[str, ...]) -> argparse.ArgumentParser:
    parser = _parser()
    for word in words:
        (choices,) = (a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction))
        parser = choices[word]
    return parser


@pytest.mark.parametrize("words", parsers(_parser()), ids=" ".join)
def test_every_argument_that_is_a_path_is_checked(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for action in of(words)._actions:
        named = f"{action.dest} {action.metavar or ''}".upper()
        if action.metavar in ("ID", "ID|PATH"):  # of a dataset, which may be a path
            continue
        if action.type in (location, new_file):
            for text in (LONG, str(tmp_path / LONG / "run"), "/".join(["y" * 200] * 25)):
                with pytest.raises(argparse.ArgumentTypeError, match="expected at most 4,095 and 255"):
                    action.type(text)  # type: ignore[operator]
        else:
            assert not any(part in named for part in ("_DIR", "FILE", "PATH")), (words, action.dest)


def test_a_command_says_it_and_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        train_words(tmp_path / LONG),
        ["resume", LONG],
        ["status", str(tmp_path / LONG)],
        ["report", LONG],
        ["train", "softgac", "--env", "Pendulum-v1", "--config", LONG],
        ["check-env", "Pendulum-v1", "--py-modules", LONG],
    ):
        with pytest.raises(SystemExit, match="2"):
            main(words)
        result = capsys.readouterr().err
        assert "300 in its longest name, expected at most 4,095 and 255" in result and "give a shorter one" in result
        assert "Traceback" not in result and len(result.splitlines()[-1]) < 500
    for words in (
        ["dataset", "import", LONG],
        ["dataset", "show", str(tmp_path / LONG)],
        ["train", "gac", "--dataset", LONG],
    ):
        assert main(words) == 2, words
        assert "Traceback" not in (result := capsys.readouterr().err) and "Errno" not in result
    with pytest.raises(UsageError, match=r"run: the path .* has .* expected at most 4,095 and 255"):
        drawbridge.load(tmp_path / LONG)
    assert not list(tmp_path.iterdir())


def test_a_name_that_a_command_makes_of_a_long_one_is_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_inline(tmp_path / "run", "Pendulum-v1", 96) == 0
    run = Path(shutil.move(tmp_path / "run", tmp_path / ("r" * 250)))
    assert too_long(run) == ""
    capsys.readouterr()
    assert main(["finetune", str(run), "--steps", "96"]) == 1  # into ...-finetune-1
    result = capsys.readouterr().err
    assert "261 in its longest name" in result and "Traceback" not in result and "Errno" not in result
    assert [path.name for path in tmp_path.iterdir()] == [run.name]
