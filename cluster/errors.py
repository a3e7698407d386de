"""Errors that the command line turns into exit codes."""

from __future__ import annotations

import errno
import os
import re

SAME_FAILURE = 3  # failures of one part without progress between them that end the run
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def without_control(text: str) -> str:
    """``text`` without colours and other control characters, of which Ray's tracebacks have many; lines and tabs stay."""
    return _CONTROL.sub("", text)


def too_long(path: object) -> str:
    """That no file system takes a path; "" where this one does."""
    try:
        os.lstat(str(path))
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            name = max(str(path).split(os.sep), key=lambda part: len(os.fsencode(part)))
            return (
                f"the path {_short(str(path))} has {len(os.fsencode(str(path))):,} bytes, and {len(os.fsencode(name)):,} in its longest name, "
                f"expected at most 4,095 and 255, as file systems take them ({error.strerror}): nothing can be there; give a shorter one"
            )
    except ValueError:  # no path at all
        pass
    return ""


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:40]}...{text[-30:]}")


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
