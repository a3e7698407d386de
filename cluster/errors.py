"""Errors that the command line turns into exit codes."""

from __future__ import annotations

import re

SAME_FAILURE = 3  # failures of one part without progress between them that end the run
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def without_control(text: str) -> str:
    """``text`` without colours and other control characters, of which Ray's tracebacks have many; lines and tabs stay."""
    return _CONTROL.sub("", text)


class UsageError(ValueError):
    """The caller asked for something that cannot be done; nothing was started. Exit code 2."""


class RunError(RuntimeError):
    """A run that was started could not go on. Exit code 1."""


class HeadGone(RunError):
    """The head of the Ray cluster is gone, so nothing can be ended in order."""


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to end. Exit code 128 + signal. No Exception, so that nothing tries again or goes on."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum
