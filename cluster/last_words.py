"""What is said of a process that ends without a word: `os._exit`, a crash in native code, SIGKILL."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator

_SCRIPT = 'read -r word || printf "%s\\n" "$1" >&2'
WAIT_S = 5.0


@contextlib.contextmanager
def last_words(text: str) -> Iterator[Callable[[], None]]:
    """Lets a shell say ``text`` on standard error if this process ends within the block; without a shell nobody does.

    Yields:
        what to call before this process ends in the block with words of its own.
    """
    shell = None
    with contextlib.suppress(OSError):
        shell = subprocess.Popen(
            ["sh", "-c", _SCRIPT, "sh", text],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for this process
        )

    def dismiss() -> None:
        if shell is not None and shell.stdin is not None and not shell.stdin.closed:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                shell.stdin.write(b"done\n")
                shell.stdin.close()
                shell.wait(WAIT_S)

    try:
        yield dismiss
    finally:
        dismiss()


def ended_words(task: str) -> str:
    """That ``task`` has most likely ended a process that only tries it."""
    return (
        f"the process ended without a word, expected {task} to return or to raise: it called os._exit or its native code crashed, or else "
        "the process was killed"
    )


def run_ended_words(task: str) -> str:
    """That a process ended which makes updates as well as steps of ``task``; nothing here can tell which it was at."""
    return (
        "the process ended without a word, expected a summary: it was killed, as a machine does that runs out of memory, or "
        f"{task} called os._exit, or native code of it or of an update crashed"
    )
