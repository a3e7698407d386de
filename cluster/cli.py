"""The ``drawbridge`` command: exit code 0 on success, 2 when what was asked for cannot be done, another one on failure."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import difflib
import functools
import io
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from cluster.bounded import leave_cluster
from cluster.commands.arguments import add_command, location, new_file
from cluster.commands.check_env import add_check_env
from cluster.commands.dataset import add_dataset
from cluster.commands.doctor import add_doctor
from cluster.commands.gpu_check import add_gpu_check
from cluster.commands.listing import add_list
from cluster.commands.policy import add_diagnose, add_evaluate, add_export, add_plan
from cluster.commands.status import add_status
from cluster.commands.stop import add_stop
from cluster.commands.train import add_finetune, add_resume, add_train
from cluster.errors import Interrupted, RunError, UsageError, too_long, without_control
from cluster.own_code import use_code
from cluster.signals import Signals
from replay.task import OWN_PACKAGES, ROOT

# numbers that argparse does not know as such
NEGATIVE = re.compile(r"-(\d+\.?\d*|\.\d+)e[-+]?\d+|-(inf|infinity|nan)", re.IGNORECASE)
NEAR = 0.75  # how like a flag an unknown one must be to be taken for it; they share their dashes


def main(argv: list[str] | None = None) -> int:
    """Runs one command; the last line on standard error is the root cause when it fails."""
    parser, words = _parser(), _with_numbers(sys.argv[1:] if argv is None else argv)
    arguments, unknown = parser.parse_known_args(words)
    if unknown:
        _refuse_unknown(parser, words, unknown)
    arguments.execute = execute  # for commands that do theirs in several processes
    return execute(arguments) if argv is None else _caught(arguments)


def _with_numbers(argv: Sequence[str]) -> list[str]:
    """The words, with a number such as -1e3 or -inf made part of the flag before it: argparse would take it for another flag."""
    words: list[str] = []
    for word in argv:
        if words and words[-1].startswith("--") and "=" not in words[-1] and NEGATIVE.fullmatch(word):
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


def _refuse_unknown(parser: argparse.ArgumentParser, argv: list[str], unknown: list[str]) -> NoReturn:
    """Exits with 2, the usage of the command that was given, and its flags nearest to the unknown ones."""
    for word in argv:
        inner = next((a for a in parser._actions if isinstance(a, argparse._SubParsersAction)), None)
        if inner is not None and word in inner.choices:
            parser = inner.choices[word]
    flags = [flag for flag in parser._option_string_actions if flag.startswith("--")]
    near = {
        given: match[0]
        for given in (word.partition("=")[0] for word in unknown if word.startswith("--"))
        if (match := difflib.get_close_matches(given, flags, n=1, cutoff=NEAR))
    }
    hints = "".join(f"; did you mean {flag} for {given}?" for given, flag in near.items())
    parser.error(f"unrecognized arguments: {' '.join(unknown)}{hints}")


def execute(arguments: argparse.Namespace) -> int:
    """Runs the command that this process is for, and ends with."""
    code = _caught(arguments)
    leave_cluster(code)
    return code


def _caught(arguments: argparse.Namespace) -> int:
    with Signals() as signals, signals.at_once("before the command had finished; give it again"):
        return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    try:
        with _json_alone(arguments) if getattr(arguments, "json", False) else contextlib.nullcontext():
            use_code(getattr(arguments, "imports", ()), getattr(arguments, "py_modules", ()))
            return int(arguments.command(arguments) or 0)
    except UsageError as error:
        return _failed(error, 2)
    except Interrupted as error:
        print(f"drawbridge: {without_control(str(error))}", file=sys.stderr)
        return 128 + error.signum
    except KeyboardInterrupt as error:
        return _failed(RunError(str(error) or "interrupted"), 130)
    except BrokenPipeError:
        return 1
    except RunError as error:
        return _failed(error, 1)
    except SystemExit as error:
        _print_traceback()
        return _failed(
            RunError(
                f"code that is not this project's called sys.exit({error.code!r}), expected it to return or to raise: the command did not "
                "finish, whatever that exit code says; the traceback above shows the place"
            ),
            1,
        )
    except Exception as error:
        if isinstance(error, OSError) and (problem := too_long(error.filename)):
            return _failed(RunError(f"the command did not finish: {problem}"), 1)
        if _is_ours(error):  # it says all there is to say of this project's part
            _print_frames_of_others(error)
        else:
            _print_traceback()
        return _failed(error, 1)


@contextlib.contextmanager
def _json_alone(arguments: argparse.Namespace) -> Iterator[None]:
    """What the command writes to ``arguments.stdout`` ends up on standard output; all else that is written there in this block, by
    whatever code, on standard error."""
    arguments.stdout, standard, kept = io.StringIO(), sys.stdout, None
    try:
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or no file: print alone uses it
            standard.flush()
            kept = standard.fileno(), os.dup(standard.fileno())
            os.dup2(sys.stderr.fileno(), kept[0])
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        if kept is not None:
            ctypes.CDLL(None).fflush(None)  # what native code has printed
            os.dup2(kept[1], kept[0])
            os.close(kept[1])
        print(arguments.stdout.getvalue(), end="", file=standard, flush=True)  # also of a command that fails after it


def _is_ours(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] in OWN_PACKAGES


def _print_traceback() -> None:
    print(without_control(traceback.format_exc()), end="", file=sys.stderr)


def _print_frames_of_others(error: BaseException) -> None:
    """The traceback of what caused ``error``, from the first frame on that is neither this project's nor Gymnasium's, if there is one."""
    while error.__cause__ is not None:
        error = error.__cause__
    folders = [f"{ROOT / name}{os.sep}" for name in OWN_PACKAGES] + [f"{os.sep}gymnasium{os.sep}"]
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [at for at, frame in enumerate(frames) if not any(folder in frame.filename for folder in folders)]
    if theirs and not _is_ours(error):
        text = "".join([*traceback.format_list(frames[theirs[0] :]), *traceback.format_exception_only(error)])
        print(f"Traceback (most recent call last):\n{without_control(text)}", end="", file=sys.stderr)


def _failed(error: BaseException, code: int) -> int:
    print(f"drawbridge: error: {without_control(str(error))}", file=sys.stderr)
    return code


@functools.cache
def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="drawbridge",
        description="Distributed actor-learner training of generative actor-critics on Ray.",
        epilog="exit codes: 0 success, 2 usage error (nothing was started), 1 failure (root cause last), 128+N ended by signal N",
        formatter_class=formatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="the version of this tree, and its commit")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_doctor(commands)
    add_gpu_check(commands)
    add_check_env(commands)
    add_train(commands)
    add_finetune(commands)
    add_dataset(commands)
    add_resume(commands)
    add_evaluate(commands)
    add_plan(commands)
    add_diagnose(commands)
    add_export(commands)
    add_stop(commands)
    add_status(commands)
    add_list(commands)
    completion = add_command(
        commands,
        "completion",
        functools.partial(_completion, parser),
        "print a script that completes commands and flags",
    )
    completion.add_argument("shell", choices=["bash", "zsh"])
    return parser


def _completion(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    import shtab

    print(shtab.complete(_with_paths(parser, shtab.FILE, shtab.DIRECTORY), arguments.shell))
    return 0


def _with_paths(parser: argparse.ArgumentParser, file: Any, directory: Any) -> argparse.ArgumentParser:
    """The parser, and those of its commands, with what completes each argument that is a path."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _with_paths(command, file, directory)
        elif action.type in (location, new_file):
            action.complete = directory if "DIR" in f"{action.metavar or action.dest}".upper() else file  # type: ignore[attr-defined]
    return parser


class _Version(argparse.Action):
    """Prints the version when it is asked for: the commit is looked up then."""

    def __call__(self, parser: argparse.ArgumentParser, *arguments: object) -> None:
        from cluster.version import git_hash, tree_version

        print(f"drawbridge {tree_version()} (commit {git_hash()})")
        parser.exit()
