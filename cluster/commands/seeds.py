"""Runs that differ in their seed alone, side by side: ``train --seeds``, and ``resume`` of the directory that holds them.

Each is a process that does what its own command would, in PARENT/seed-N; what it says goes to PARENT/seed-N.log. Nothing that ends one
of them ends another. A signal is handed on to all: each saves and ends.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from multiprocessing.context import SpawnProcess
from pathlib import Path

from cluster.commands.listing import table_of
from cluster.commands.resuming import resumed
from cluster.config import RunConfig
from cluster.errors import Interrupted, RunError, UsageError
from cluster.made_with import longer_words
from cluster.own_code import resume_words, taken_words, twice_words
from cluster.run_dir import RunDirectory, seed_dirs, written_at_start
from cluster.signals import Signals
from replay.manifest import open_own, read_whole

REFRESH_S = 1.0  # of the table on a terminal
WAIT_S = 0.1  # at most, until a signal is handed on
PLAIN_S = 30.0  # between two tables elsewhere


def seed_name(seed: int) -> str:
    return f"seed-{seed}"


def check_seeds(arguments: argparse.Namespace) -> None:
    """UsageError when the seeds of a ``train`` command cannot be run side by side."""
    seeds = arguments.seeds
    if arguments.seed is not None or any(pair.startswith("seed=") for pair in arguments.set):
        raise UsageError("--seed and --seeds were both given, expected one of them: nothing was started; leave one out")
    if len(set(seeds)) < len(seeds):
        raise UsageError(
            f"--seeds {' '.join(map(str, seeds))}: expected each seed once: a second run would be the same; nothing was started"
        )


def check_parent(parent: Path, seeds: Iterable[int]) -> None:
    """UsageError unless new runs of these seeds may go into the directory: one that is not there, is empty, or of a start that led nowhere."""
    if not parent.exists():
        return
    names = {seed_name(seed) for seed in seeds}
    known = {"run.lock", "control", *(f"{name}.log" for name in names)}
    free = parent.is_dir() and RunDirectory(parent).owner() is None
    if not free or not all(
        path.name in known or (path.name in names and RunDirectory(path).never_began()) for path in parent.iterdir()
    ):
        raise UsageError(f"{taken_words(parent)}; nothing was started")


def members(parent: Path, arguments: argparse.Namespace, seeds: Iterable[int]) -> dict[Path, argparse.Namespace]:
    """What each seed's process is to do of a ``train`` command."""
    return {
        parent / seed_name(seed): argparse.Namespace(
            **vars(arguments) | {"seed": seed, "seeds": None, "run_dir": parent / seed_name(seed)}
        )
        for seed in seeds
    }


def resume_together(arguments: argparse.Namespace, settings: dict[str, str]) -> int:
    """Goes on, with these settings, with the runs of a parent directory that are not complete then."""
    parent = arguments.run_dir
    runs = [RunDirectory.open(path) for path in seed_dirs(parent)]
    configs = {run: resumed(run, settings) for run in runs}
    left = [run.path for run, config in configs.items() if not run.is_complete(config)]
    if not left:
        fix = longer_words(max(config.online.stages for config in configs.values()), "each", "theirs")
        raise UsageError(f"the {len(runs)} runs in {parent} are complete; nothing was started; {fix}")
    again = {path: argparse.Namespace(**vars(arguments) | {"run_dir": path}) for path in left}
    return run_together(parent, again, next(iter(configs.values())))


def run_together(parent: Path, members: dict[Path, argparse.Namespace], config: RunConfig) -> int:
    """Runs each member's command in a process of its own, and shows how they get on; the exit code.

    Args:
        config: of one of them, for the words that say how to go on.

    Raises:
        RunError: some did not complete; the others did.
        Interrupted: a signal or `drawbridge stop` ended them, in order.
    """
    together = RunDirectory(parent)  # for `drawbridge stop`
    with written_at_start(parent):
        parent.mkdir(parents=True, exist_ok=True)
        together.hold()
        for path in members:
            open_own(_log(path), "ab").close()
    spawn = multiprocessing.get_context("spawn")
    processes = {path: spawn.Process(target=_work, args=(member, _log(path))) for path, member in members.items()}
    print(f"{len(members)} runs in {parent}; each has its own log there")
    with Signals(twice_words(parent, config)) as signals:
        for process in processes.values():
            process.start()
        handed = 0
        view = _View(parent, processes)
        while any(process.is_alive() for process in processes.values()):
            try:
                _wait(processes.values())
                view.show()
            except KeyboardInterrupt:  # a second Ctrl-C: do not save
                handed = 0
            _answer(together, processes)
            for _ in signals.caught[handed:]:
                _hand_on(processes.values(), signals.caught[0])
            handed = len(signals.caught)
        view.show(last=True)
        ends = [128 + signum for signum in signals.caught] + [-signum for signum in signals.caught]
        expected = {0, *ends}  # the second: a process that was only starting, and did not take signals yet
        bad = [path for path, process in processes.items() if process.exitcode not in expected]
        how = _how_to_go_on(parent, members, bad, config)
        if signals.caught:
            raise signals.interrupted(f"with all its runs; {how}")
        count = f"{len(bad)} of {len(members)} runs"
        if bad and {processes[path].exitcode for path in bad} <= {128 + signal.SIGTERM, -signal.SIGTERM}:
            raise Interrupted(signal.SIGTERM, f"{count} were ended: {how}")
        if bad:
            raise RunError(f"{count} did not complete: {how}")
    print(f"compare them with `drawbridge report {parent}`")
    return 0


def _work(member: argparse.Namespace, log: Path) -> None:
    os.setsid()  # Ctrl-C goes to the command alone, which hands it on
    with open_own(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    sys.exit(member.execute(member))


def _log(path: Path) -> Path:
    return path.with_name(f"{path.name}.log")


def _wait(processes: Iterable[SpawnProcess]) -> None:
    multiprocessing.connection.wait([p.sentinel for p in processes if p.is_alive()], timeout=WAIT_S)


def _hand_on(processes: Iterable[SpawnProcess], signum: int) -> None:
    for process in processes:
        if process.is_alive() and process.pid is not None:
            os.kill(process.pid, signum)


def _answer(together: RunDirectory, processes: Mapping[Path, SpawnProcess]) -> None:
    """Takes the request of `drawbridge stop`, if there is one."""
    try:
        request = together.requests.take()
    except RunError as error:
        print(error)
        return
    if request is not None and request.kind == "stop" and request.number == os.getpid():
        together.requests.answer(request, True, _end(processes))


def _end(processes: Mapping[Path, SpawnProcess]) -> str:
    """Asks the runs to save and end, and ends the processes of those that are only starting; which those were."""
    starting = []
    for path, process in processes.items():
        if not process.is_alive() or process.pid is None:
            continue
        run = RunDirectory(path)
        if (run.path / "config.json").is_file() and run.owner() == process.pid:
            with contextlib.suppress(OSError):
                run.requests.write("stop", process.pid)
                continue
        os.kill(process.pid, signal.SIGTERM)
        starting.append(path.name)
    return f"ended while it was starting: {', '.join(starting)}" if starting else ""


def _how_to_go_on(parent: Path, members: Iterable[Path], bad: Iterable[Path], config: RunConfig) -> str:
    """Why each of the ``bad`` runs ended before its end, and how to go on with all, also with those that never began."""
    unbegun = [path for path in members if not (path / "config.json").exists()]
    if unbegun == list(members):
        return "; ".join([*map(_why, bad), "none of them had begun: give the same command again"])
    begin = {
        path: f"it wrote nothing: begin it by `drawbridge train` with --run-dir {path} and its --seed"
        for path in unbegun
    }
    reasons = [_why(path, begin.get(path, "")) for path in members if path in bad or path in begin]
    return "; ".join([*reasons, f"go on with `{resume_words(parent, config)}`"])


def _why(path: Path, then: str = "") -> str:
    """Why a run ended before its end, and what to do ``then``."""
    return f"{path.name} ({'; '.join(filter(None, (_last_line(_log(path)), then)))})"


def _last_line(log: Path) -> str:
    lines = read_whole(log).decode(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1].removeprefix("drawbridge: ").removeprefix("error: ") if lines else "it said nothing"


def _is_starting(path: Path, process: SpawnProcess) -> bool:
    """Whether what the files of a run say of it, if there are any, is from before ``process``, which is to drive it."""
    try:
        return process.is_alive() and RunDirectory(path).live().get("pid") != process.pid
    except RunError:  # it is damaged: the table says so
        return False


class _View:
    """The table of ``drawbridge list PARENT``, without runs that are only starting, again and again: in place on a terminal."""

    def __init__(self, parent: Path, processes: Mapping[Path, SpawnProcess]) -> None:
        self._parent, self._processes, self._shown, self._due = parent, processes, 0, 0.0

    def show(self, last: bool = False) -> None:
        terminal = sys.stdout.isatty()
        if not last and time.monotonic() < self._due:
            return
        self._due = time.monotonic() + (REFRESH_S if terminal else PLAIN_S)
        starting = {path.resolve() for path, process in self._processes.items() if _is_starting(path, process)}
        if not seed_dirs(self._parent) or len(starting) == len(self._processes):
            return
        lines = table_of(self._parent, starting)
        up = f"\x1b[{self._shown}A" if terminal and self._shown else ""
        print(up + "\n".join(f"{line}\x1b[K" if terminal else line for line in lines), flush=True)
        self._shown = len(lines)
