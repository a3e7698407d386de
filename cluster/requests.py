"""How a command reaches the process that drives a run: requests and answers as files in the run's ``control/``.

control/scale.json   {"id": text, "workers": whole number}: have that many rollout workers; answered in control/answer.json
control/stop.json    {"id": text, "process": whole number}: the process of that number ends the run with a checkpoint; the
                     released lock answers. A request to an earlier process of the run means nothing to the next one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.errors import RunError
from cluster.history import Damaged, read_object
from cluster.outside import check_links
from replay.manifest import write_atomic

NUMBERS = {
    "stop": "process",
    "scale": "workers",
}  # the number that each kind of request holds; in the order of taking them


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What another command asks of the run."""

    kind: str
    ident: str
    number: int


class Requests:
    """The requests of one run; ``folder`` is its control/."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: dict[str, tuple[int, int, int]] = {}  # which file of each kind was looked at last

    def write(self, kind: str, number: int) -> str:
        """Leaves a request for the run; its id.

        Raises:
            UsageError: a link would lead it out of the run directory.
            RunError: it cannot be written.
        """
        check_links(self._folder.parent)
        path, ident = self._folder / f"{kind}.json", f"{os.getpid()}-{time.time_ns()}"
        try:
            write_atomic(path, _encoded({"id": ident, NUMBERS[kind]: number}))
        except OSError as error:
            end = f", or end process {number} with SIGTERM on its own machine" if kind == "stop" else ""
            raise RunError(
                f"{path} cannot be written ({error}), expected room for a request: the run was not asked and goes on as it is; free some space "
                f"there, or make it writable, and give the command again{end}"
            ) from error
        return ident

    def wait_for_answer(self, ident: str, deadline_s: float, over: Callable[[], str], withdrawn: str = "") -> str:
        """What the run answers; RunError when it refuses, or answers nothing in time: a request of kind ``withdrawn`` that it has not
        taken by then is removed.

        Args:
            over: why the run answers no more; "" while it may.
        """
        deadline, run = time.monotonic() + deadline_s, self._folder.parent
        while True:
            late = f"the run in {run} did not answer within {deadline_s:g} s" if time.monotonic() >= deadline else ""
            why = over() or late  # before the look: the last answer of a run counts
            answer: dict[str, Any] = {}
            with contextlib.suppress(OSError, Damaged):  # what is there may be an earlier one, damaged since
                answer = read_object(self._folder / "answer.json")
            if answer.get("id") == ident:
                if not answer.get("ok"):
                    raise RunError(str(answer.get("message")))
                return str(answer.get("message"))
            if why:
                break
            time.sleep(0.1)
        untaken = bool(withdrawn) and self._withdraw(withdrawn, ident)
        done = "it may still do what was asked" if why == late else "what was asked may have been done before"
        then = "the request is withdrawn and nothing was changed" if untaken else done
        raise RunError(f"{why}; {then}; see `drawbridge status {run}`")

    def _withdraw(self, kind: str, ident: str) -> bool:
        """Removes a request that nobody has taken; whether it was there."""
        path = self._folder / f"{kind}.json"
        try:
            mine = read_object(path).get("id") == ident
            if mine:
                path.unlink()
        except (OSError, Damaged):
            return False
        return mine

    def take(self, *kinds: str) -> Request | None:
        """The request of another command, once; of these ``kinds`` alone, of any if none is given.

        Raises:
            RunError: what is there is no request; it was moved aside, if that is possible.
        """
        for kind in kinds or NUMBERS:
            if (request := self._take(kind)) is not None:
                return request
        return None

    def answer(self, request: Request, ok: bool, message: str) -> None:
        """Says what became of it."""
        write_atomic(self._folder / "answer.json", _encoded({"id": request.ident, "ok": ok, "message": message}))

    def _take(self, kind: str) -> Request | None:
        path = self._folder / f"{kind}.json"
        try:
            found = path.stat()
        except OSError:
            return None
        now = found.st_ino, found.st_mtime_ns, found.st_size
        if self._seen.get(kind) == now:  # it could not be removed
            return None
        self._seen[kind] = now
        try:
            data = read_object(path)
            ident, number = data.get("id"), data.get(NUMBERS[kind])
            if not isinstance(ident, str) or type(number) is not int:
                raise Damaged(f"it has no id or no number {NUMBERS[kind]!r}, expected what `drawbridge {kind}` writes")
        except (OSError, Damaged) as error:
            aside = path.with_name(f"{kind}.json.unreadable")
            with contextlib.suppress(OSError):
                os.replace(path, aside)
            raise RunError(
                f"{path} is no request ({error}): nothing is changed and the run goes on; the file is {aside.name} now; give "
                f"`drawbridge {kind}` again"
            ) from error
        with contextlib.suppress(OSError):
            path.unlink()
        return Request(kind=kind, ident=ident, number=number)


def _encoded(data: dict[str, Any]) -> bytes:
    return json.dumps(data).encode()
