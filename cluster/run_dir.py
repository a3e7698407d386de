"""A run's directory: what is written where, and who holds it.

config.json        every resolved field, package versions, git hash;  dataset.json  what tells the dataset from others
metrics.jsonl      one line of rates and losses every few seconds
evaluations.jsonl  env_steps, updates, wall_s, returns and lengths of every episode
checkpoints/       the learner's state;  replay/shard-I/  the shards' snapshots;  events/  TensorBoard
live.json          the newest line, the process id and the state of the run
summary.json       written at the end;  failure.json  if it failed;  diagnosis.txt  the newest of ``drawbridge diagnose``, in words
control/           requests of other commands (requests.py), their answers, and room set aside for failure.json
run.lock           held (flock) by the process that drives the run
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from cluster.config import RunConfig, from_json, to_json
from cluster.errors import RunError, UsageError, without_control
from cluster.history import Damaged, misfits, parsed, read_object
from cluster.made_with import longer_words
from cluster.metrics.catalogue import is_resumed
from cluster.metrics.thinning import thin_out
from cluster.no_run import what_to_give
from cluster.outside import check_links
from cluster.own_code import check_place, taken_words
from cluster.requests import Requests
from cluster.version import git_hash, versions
from replay.manifest import append_whole, fsync_directory, open_own, read_whole, write_atomic, write_synced

MOST_BYTES = 64 << 20  # of metrics.jsonl: about 15 hours of records 2 s apart; beyond, the older half is thinned out
RESERVE_BYTES = 1 << 16  # that a run sets aside for failure.json
OF_A_START = {  # what a run directory may hold before the run has begun
    "run.lock", "config.json", "dataset.json", "live.json", "failure.json", "control", "checkpoints", "replay", "events",
}  # fmt: skip
FACTS = ("versions", "git", "command", "unit")  # of config.json: no settings
LOOK_S = 0.3  # longer than another command needs to see whether a run is alive


class RunDirectory:
    """The files of one run under ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.checkpoints = self.path / "checkpoints"
        self.replay = self.path / "replay"
        self.dumps = self.path / "dumps"
        self.events = self.path / "events"
        self.control = self.path / "control"
        self._lock: IO[bytes] | None = None
        self.requests = Requests(self.control)

    @classmethod
    def create(cls, path: Path, config: RunConfig) -> RunDirectory:
        """A new run directory, locked by this process; UsageError when something is there already.

        What a start left that never began to learn is no obstacle: it is removed.
        """
        flag = "--out" if config.online.base else "--run-dir"  # of finetune, of train
        run = cls(check_place(path, flag))
        if run.path.exists() and (not run.path.is_dir() or any(run.path.iterdir())):
            living = run.owner()
            if living:
                raise UsageError(
                    f"run directory {run.path} belongs to a living run (process {living}); nothing was started; "
                    f"watch it with `drawbridge status {run.path}`, or choose another {flag}"
                )
            if not run.path.is_dir() or not run.never_began():
                raise UsageError(taken_words(run.path, flag))
        with written_at_start(run.path):
            run.path.mkdir(parents=True, exist_ok=True)
            run.hold()
            if not run.never_began():
                raise UsageError(
                    f"another run began in {run.path} meanwhile; nothing was started; choose another {flag}"
                )
            for path in run.path.iterdir():
                if path.name not in ("run.lock", "control"):
                    _remove(path)
            for folder in (run.checkpoints, run.replay):
                folder.mkdir(parents=True, exist_ok=True)
            run.write_config(config)
        return run

    def never_began(self) -> bool:
        """Whether all there is comes from a start that was interrupted, failed or was refused before anything was learned."""
        names = {path.name for path in self.path.iterdir()}
        of_a_start = all(name in OF_A_START or name.endswith(".tmp") for name in names)
        return "run.lock" in names and of_a_start and not self._has_learned()

    def _has_learned(self) -> bool:
        """Whether there is a row, or more than the checkpoint that learners write before their first update."""
        if any(self.replay.glob("*/*")):
            return True
        count = len(list(self.checkpoints.glob("checkpoint-*")))
        if not count:
            return False
        from learners import checkpoint

        return count > 1 or (checkpoint.newest_meta(self.checkpoints) or {}).get("updates") != 0

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """An existing run directory; UsageError when it is none."""
        run = cls(path)
        config = run.path / "config.json"
        if not config.is_file():
            lacks = "its config.json is no file" if config.exists() else "it has no config.json"
            raise UsageError(f"{run.path} is not a run directory ({lacks}); nothing was done; {what_to_give(run.path)}")
        return run

    def config(self) -> RunConfig:
        """The configuration the run was started with; UsageError names every field that cannot be used."""
        data = self._read("config.json")
        fields = {key: value for key, value in data.items() if key not in FACTS}
        try:
            return from_json(fields)
        except UsageError as error:
            raise UsageError(f"{self.path / 'config.json'} cannot be used: {error}") from error

    def write_config(self, config: RunConfig) -> None:
        self._write("config.json", {**to_json(config), "unit": config.unit, "versions": versions(), "git": git_hash()})

    def hold(self) -> None:
        """Takes the lock for this process; UsageError names the process that holds it, or a link that leads out."""
        check_links(self.path)
        lock = open_own(self.path / "run.lock", "ab+")  # until the process ends
        if not _locked(lock):
            owner = self.owner()
            lock.close()
            raise UsageError(
                f"run directory {self.path} belongs to a living run (process {owner}); a second one would write over its files, "
                "so nothing was started; wait for it, or end that process first"
            )
        lock.truncate(0)
        lock.write(str(os.getpid()).encode())
        lock.flush()
        os.set_inheritable(lock.fileno(), False)
        self._lock = lock
        self.control.mkdir(exist_ok=True)
        if not _is_whole(self.control / "reserve"):
            _remove(self.control / "reserve")
            write_synced(self.control / "reserve", bytes(RESERVE_BYTES))
        for path in (self.path / "metrics.jsonl", self.path / "evaluations.jsonl"):
            if path.exists():  # a writer that was killed may have left half a line: what follows must begin on its own
                append_whole(path, _newline)

    def release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def check_there(self) -> None:
        """RunError if the directory was removed or moved; one that does not answer may come back."""
        try:
            self.path.stat()
        except FileNotFoundError:
            raise RunError(
                f"run directory {self.path} is gone, expected it to stay until the run's end: nothing can be saved any more, so the run "
                "ends here; if it was moved, move it back and resume it, otherwise start the run again"
            ) from None
        except OSError:
            return

    def owner(self) -> int | None:
        """Process id of the run that holds the lock, None when nobody does."""
        try:
            with open(
                os.open(self.path / "run.lock", os.O_RDONLY | os.O_NONBLOCK), encoding="ascii"
            ) as lock:  # all may look
                try:
                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return int(lock.read(20) or 0) or None
                return None
        except (OSError, ValueError):  # it is not there, or no run wrote it
            return None

    def append(self, name: str, line: dict[str, Any]) -> None:
        """Adds one JSON object as one line to ``name`` (metrics.jsonl or evaluations.jsonl)."""
        self.append_line(name, json.dumps(line).encode())

    def append_line(self, name: str, text: bytes) -> None:
        """Adds a line to ``name``, whole or not at all; one that was cut before it is ended first.

        Raises:
            OSError: it could not be written; what of it reached the file is taken back, if that is possible.
        """
        path = self.path / name
        append_whole(path, lambda last: _newline(last) + text + b"\n")
        if name == "metrics.jsonl" and path.stat().st_size > MOST_BYTES:
            with contextlib.suppress(OSError):  # tried again with the next record
                thin_out(path)

    def write_live(self, line: dict[str, Any], state: str) -> None:
        self._write("live.json", {**line, "pid": os.getpid(), "state": state, "written": time.time()})

    def live(self) -> dict[str, Any]:
        """The newest line of the run, empty before the first; RunError when its counters are none to go on from.

        Without live.json it is the last line of metrics.jsonl.
        """
        data = self._read("live.json") if (self.path / "live.json").exists() else self._last_line()
        if bad := [text for key, text in misfits(data, ()).items() if is_resumed(key)]:
            raise RunError(
                f"{self.path / 'live.json'} cannot be used ({'; '.join(bad)}); a resumed run goes on from these counters, so nothing "
                "was started; put a good copy back"
            )
        return data

    def _last_line(self) -> dict[str, Any]:
        """The last line of metrics.jsonl that is one, empty without."""
        with contextlib.suppress(OSError):
            for text in reversed(read_whole(self.path / "metrics.jsonl").splitlines()):
                with contextlib.suppress(Damaged):
                    if isinstance(line := parsed(text), dict):
                        return line
        return {}

    def write_summary(self, summary: dict[str, Any]) -> None:
        self._write("summary.json", summary)

    def summary(self) -> dict[str, Any] | None:
        return self._read("summary.json") if (self.path / "summary.json").exists() else None

    def write_diagnosis(self, words: str) -> None:
        """Keeps what ``drawbridge diagnose`` said, for the report."""
        write_atomic(self.path / "diagnosis.txt", f"{words}\n".encode())

    def write_failure(self, error: str, traceback: str) -> None:
        """Writes failure.json: where there is no room, into the file of RESERVE_BYTES that every start sets aside.

        Raises:
            OSError: not even there, as on a file system that is read-only.
        """
        when = time.time()
        error, traceback = without_control(error), without_control(traceback)
        text = _encoded({"error": error, "traceback": traceback, "when": when})
        try:
            write_atomic(self.path / "failure.json", text)
        except OSError:
            if len(text) > RESERVE_BYTES:
                most = RESERVE_BYTES // 32  # characters; one may take 12 bytes
                text = _encoded({"error": error[:most], "traceback": traceback[-most:], "when": when})
            with open_own(self.control / "reserve", "rb+") as reserve:
                reserve.write(text)
                reserve.truncate()
                reserve.flush()
                os.fsync(reserve.fileno())
            os.replace(self.control / "reserve", self.path / "failure.json")
            with contextlib.suppress(OSError):
                fsync_directory(self.path)

    def failure(self) -> dict[str, Any]:
        return self._read("failure.json")

    def starts(self) -> int:
        """How often the run has been started again."""
        path = self.control / "starts"
        try:
            return int(read_whole(path, 64)) if path.exists() else 0
        except (OSError, ValueError) as error:
            raise RunError(
                f"{path} holds no whole number ({error}), expected how often the run was started: what old workers sent could be taken for "
                "new, so nothing was started; write a number into it that is no smaller"
            ) from error

    def count_start(self) -> int:
        """How often the run has been started before, this time counted from now on."""
        write_atomic(self.control / "starts", str(count := self.starts() + 1).encode())
        return count

    def is_complete(self, config: RunConfig) -> bool:
        """Whether the run has ended with all of its steps."""
        done = int(self.live().get(config.unit, 0))
        return config.steps <= done and (self.summary() or {}).get("exit") == "completed"

    def check_resumable(self, config: RunConfig) -> None:
        """UsageError when there is nothing left to do."""
        if self.is_complete(config):
            done, noun = int(self.live().get(config.unit, 0)), config.unit.replace("_", " ")
            raise UsageError(
                f"the run in {self.path} has made its {done:,} {noun} and ended; nothing was started; {longer_words(config.online.stages)}"
            )

    def clear_outcome(self) -> None:
        """Forgets how an earlier part of the run ended: it goes on now."""
        for name in ("summary.json", "failure.json"):
            (self.path / name).unlink(missing_ok=True)

    def keep_workers(self, workers: int) -> None:
        """Notes the number of rollout workers that the run was scaled to: a resume begins with it."""
        data = self._read("config.json")
        data["worker"]["workers"] = workers
        self._write("config.json", data)

    def _write(self, name: str, data: dict[str, Any]) -> None:
        write_atomic(self.path / name, _encoded(data))

    def _read(self, name: str) -> dict[str, Any]:
        path = self.path / name
        try:
            return read_object(path)
        except (OSError, Damaged) as error:
            raise RunError(
                f"{path} cannot be read ({error}); the run directory is damaged there; nothing was changed; put a good copy back"
            ) from error


@contextlib.contextmanager
def held_new(path: Path, config: RunConfig) -> Iterator[RunDirectory]:
    """A new run directory, for as long as the run goes on; of a start that is refused (UsageError) nothing is left."""
    there = path.exists()
    run = RunDirectory.create(path, config)
    try:
        yield run
    except UsageError:
        with contextlib.suppress(UsageError, OSError):
            run.hold()
            if run.never_began():
                for left in run.path.iterdir():
                    _remove(left)
                if not there:
                    run.path.rmdir()
        run.release()
        raise


def seed_dirs(path: Path) -> list[Path]:
    """The runs that ``train --seeds`` made in this directory, by their seeds; none where it is itself a run."""
    if (path / "config.json").is_file():
        return []
    found = {config.parent.name.removeprefix("seed-"): config.parent for config in path.glob("seed-*/config.json")}
    return [found[seed] for seed in sorted(filter(str.isdecimal, found), key=int)]


@contextlib.contextmanager
def written_at_start(path: Path) -> Iterator[None]:
    """Turns an OSError of the files that a start writes in run directory ``path`` into a UsageError."""
    try:
        yield
    except OSError as error:
        seen, full = str(error), error.errno in (errno.ENOSPC, errno.EDQUOT)
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(path if path.exists() else path.parent).free
            seen += f"; {free / 2**20:,.1f} MiB free there" if full else ""
        raise UsageError(
            f"run directory {path} cannot be written ({seen}), expected to hold the run's files: nothing was started; "
            f"{'free some space' if full else 'mend that'}, or choose another one"
        ) from error


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_whole(reserve: Path) -> bool:
    """Whether there is what a start sets aside, and under no other name."""
    try:
        found = reserve.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == RESERVE_BYTES and found.st_nlink == 1


def _encoded(data: dict[str, Any]) -> bytes:
    return json.dumps(data, indent=1, default=str).encode()


def _locked(lock: IO[bytes]) -> bool:
    """Takes the lock unless a run holds it; whoever only looks (``owner``) has it for an instant and is waited for."""
    deadline = time.monotonic() + LOOK_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:  # any other error is of a file system that has no locks
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)


def _newline(last: bytes) -> bytes:
    """What ends a file's last line, if it needs it; ``last`` is the file's last byte."""
    return b"" if last in (b"", b"\n") else b"\n"
