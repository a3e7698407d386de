"""Runs on a real Ray, through the command line, and what the tests do to their processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from network import Host, second_host
from tiny_runs import ROOT, live, start, train_words, wait_for

NODE = "DRAWBRIDGE_NODE"  # environment variable of the processes of ``two_hosts`` and ``head_node``
PACED, RATIO = "paced_env:Paced-v0", 0.1  # steps and updates at a pace that leaves the cores to others
END_S = 300.0  # a run's own end, on a machine that others use too


class RayRun:
    """One ``drawbridge`` process that drives a run on a cluster of its own."""

    def __init__(self, run_dir: Path, log: Path, *words: str, cwd: Path = ROOT, before: Sequence[str] = ()) -> None:
        self.run_dir, self.log = run_dir, log
        self.process: subprocess.Popen[str] = start(*words, log=log, cwd=cwd, before=before)
        self.known: dict[int, psutil.Process] = {}  # every process of the run that was ever seen

    def children(self, title: str = "") -> list[psutil.Process]:
        """Living processes of the run whose command line has ``title``, such as "ray::WorkerActor"."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self.known |= {child.pid: child for child in psutil.Process(self.process.pid).children(recursive=True)}
        return [child for child in self.alive() if title in _title(child)]

    def alive(self) -> list[psutil.Process]:
        """Those of the run's processes seen so far that still live."""
        return [process for process in self.known.values() if _lives(process)]

    def live(self) -> dict[str, Any]:
        return live(self.run_dir)

    def output(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def wait(self, condition: Any, what: str, deadline_s: float = END_S) -> Any:
        """The first true value of ``condition``; fails at once when the run has ended without it."""

        def checked() -> Any:
            value = condition()
            if not value and self.process.poll() is not None:
                value = condition()
                assert value, f"the run ended ({self.process.returncode}) before {what}\n{self.output()[-3_000:]}"
            return value

        return wait_for(checked, what, deadline_s, self.log)

    def wait_for_steps(self, env_steps: int) -> None:
        self.wait(lambda: self.live().get("env_steps", 0) >= env_steps, f"{env_steps} env steps")

    def kill_one(self, title: str) -> int:
        """SIGKILL to one process with ``title``; its id."""
        victim = self.wait(lambda: self.children(title), f"a process {title}")[0]
        victim.kill()
        victim.wait(30)
        return int(victim.pid)

    def end(self) -> int:
        """Waits for the run's own end."""
        try:
            return self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the run did not end within {END_S:.0f} s\n{self.output()[-3_000:]}") from None

    def close(self) -> None:
        """Ends what is left: this run's processes, by their ids."""
        self.children()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(30)
        _, left = psutil.wait_procs(list(self.known.values()), timeout=20)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


@contextlib.contextmanager
def stopped(run: RayRun, title: str, but: int = 0) -> Iterator[int]:
    """One process with ``title``, not the one with the id ``but``, is stopped for the time of the block, unless it is killed in it; its id."""
    victim = run.wait(lambda: [p for p in run.children(title) if p.pid != but], f"a process {title}")[0]
    victim.send_signal(signal.SIGSTOP)
    try:
        yield int(victim.pid)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.send_signal(signal.SIGCONT)


def with_variable(name: str, value: str) -> list[psutil.Process]:
    """Processes whose environment has this variable, and their children: all of a cluster whose head was started with it.

    Ray's agents write their titles over their environment, so they are found as children of the raylet only.
    """
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(name) == value:
                found |= {p.pid: p for p in (process, *process.children(recursive=True))}
    return list(found.values())


@contextlib.contextmanager
def two_hosts(variables: dict[str, str], theirs: Mapping[str, str] | None = None) -> Iterator[tuple[str, Host]]:
    """A cluster of this host, as node ``core`` with 2 CPUs, and of a second one, as node ``far`` with 1; its address, and that host.

    Args:
        variables: of the environment of both nodes.
        theirs: more of the second one's.
    """
    folder = Path(tempfile.mkdtemp(prefix="db", dir="/tmp"))  # short: Ray's sockets have at most 107 characters
    with second_host() as host:
        try:
            head = ["--head", f"--node-ip-address={host.address_of_ours}", "--port=0", "--include-dashboard=false"]
            said = _start_node(folder, "core", 2, variables, head, [])
            address = said.split("--address='")[1].split("'")[0]
            far = [f"--address={address}", f"--node-ip-address={host.address}"]
            _start_node(folder, "far", 1, variables | dict(theirs or {}), far, host.words())
            yield address, host
        finally:
            _end_nodes(folder)


class Head(NamedTuple):
    """Where the head of a cluster listens."""

    address: str
    client: str  # for Ray clients
    dashboard: str


@contextlib.contextmanager
def head_node(*words: str, env: dict[str, str], host: str = "127.0.0.1") -> Iterator[Head]:
    """A cluster that `ray start --head` starts with ``words``, as an operator does: in an environment and on ports of its own."""
    folder = Path(tempfile.mkdtemp(prefix="db", dir="/tmp"))  # short: Ray's sockets have at most 107 characters
    gcs, dashboard, client, agent = free_ports(4)
    try:
        started = subprocess.run(
            [str(Path(sys.executable).parent / "ray"), "start", "--head", f"--node-ip-address={host}", f"--port={gcs}",
             f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}",
             f"--temp-dir={folder}", "--disable-usage-stats", *words],
            env={**env, NODE: str(folder)}, capture_output=True, text=True, timeout=180,
        )  # fmt: skip
        assert started.returncode == 0, started.stdout + started.stderr
        yield Head(f"{host}:{gcs}", f"ray://{host}:{client}", f"http://{host}:{dashboard}")
    finally:
        _end_nodes(folder)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _end_nodes(folder: Path) -> None:
    """Ends all nodes whose environment has ``folder`` as its NODE, and removes the folder."""
    ours = with_variable(NODE, str(folder))
    for process in ours:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(ours, timeout=30)
    shutil.rmtree(folder, ignore_errors=True)


def _start_node(
    folder: Path, name: str, cpus: int, variables: dict[str, str], words: list[str], before: list[str]
) -> str:
    """What `ray start` says."""
    (folder / name).mkdir()
    started = subprocess.run(
        [*before, str(Path(sys.executable).parent / "ray"), "start", *words, f"--num-cpus={cpus}", f"--labels=name={name}",
         "--object-store-memory=80000000", f"--temp-dir={folder / name}", "--disable-usage-stats"],
        env=os.environ | variables | {NODE: str(folder)}, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert started.returncode == 0, started.stdout + started.stderr
    return started.stdout


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):  # it may go between the two questions
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


@contextlib.contextmanager
def ray_run(run_dir: Path, *flags: str, env: str = PACED, cwd: Path = ROOT, **settings: Any) -> Iterator[RayRun]:
    """A new run on Ray, started in folder ``cwd``."""
    words = train_words(
        run_dir, env, "--backend", "ray", *flags, **({"metrics__line_s": 0.5, "replay__replay_ratio": RATIO} | settings)
    )
    with driven(run_dir, *words, cwd=cwd) as run:
        yield run


@contextlib.contextmanager
def driven(run_dir: Path, *words: str, cwd: Path = ROOT, before: Sequence[str] = ()) -> Iterator[RayRun]:
    """A command that drives the run in ``run_dir``."""
    run = RayRun(run_dir, run_dir.with_suffix(f".{words[0]}.log"), *words, cwd=cwd, before=before)
    try:
        yield run
    finally:
        run.close()
