"""What a run needs of its machines: ``drawbridge doctor`` looks at everything, every start at what is fast.

Facts are gathered on each machine (``gather_facts``, without Ray) and judged here (``judge``). Only what would end a run fails a check:
a run directory that a node does not see, a package that is missing, a port that is closed. The rest is a warning.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib.metadata
import platform
import resource
import secrets
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from algorithms import compiled
from cluster.connection import accepts
from cluster.errors import RunError
from cluster.metrics.wording import number
from cluster.version import PACKAGES
from replay.manifest import write_synced

SKEW_S = 2.0  # between the clocks of two machines; an answer takes milliseconds
FSYNC_S = 0.1  # of one small file; a snapshot and a checkpoint sync several
OPEN_FILES = 4096
FREE_BYTES = 2 << 30
CONNECT_S = 2.0
NODES_S = 60.0  # for every node to answer
START_NODES_S = 20.0  # the same when a run starts
SAME = ("python", "ray")  # Ray takes no other version


class Check(NamedTuple):
    """One line of the table."""

    state: str  # ok | warn | fail
    name: str
    where: str
    seen: str
    fix: str = ""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a machine looks at."""

    mark: Path | None = None  # a file with ``nonce`` in it, locked by who asks, where the run directory is to be
    nonce: str = ""
    peers: tuple[tuple[str, int], ...] = ()  # ports of other nodes
    torch: bool = False  # whether to ask torch for its GPUs and to build loops.c, which takes seconds


@dataclass(frozen=True, kw_only=True)
class Storage:
    """The file system of the run directory, as one machine sees it."""

    problem: str  # "" if files can be seen, locked and written there
    excluded: bool  # whether the asker's lock is respected
    fsync_s: float
    free_bytes: int


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What one machine is like."""

    versions: dict[str, str]  # "" if a package is missing
    clock: float
    open_files: int
    shm_bytes: int
    gpus: int  # device files of NVIDIA's driver
    cuda: int | None  # GPUs that torch can use; None: not asked
    storage: Storage | None
    closed: tuple[str, ...]  # peers that do not accept a connection
    uncompiled: str = ""  # why a learner's passes run in torch and not in C


def gather_facts(question: Question) -> Facts:
    """Looks at the machine that this process is on."""
    gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
    return Facts(
        versions={"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[1],  # Ray raises the soft limit itself
        shm_bytes=shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else 0,
        gpus=gpus,
        cuda=_cuda_devices() if question.torch and gpus else None,
        storage=None if question.mark is None else _try_storage(question.mark, question.nonce),
        closed=_closed(question.peers),
        uncompiled=_uncompiled(build=question.torch),
        clock=time.time(),  # last: the answer is on its way at once
    )


def _uncompiled(build: bool) -> str:
    loaded = compiled.load() if build else None
    return compiled.problem() if loaded is None else "" if loaded.library else loaded.words


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _cuda_devices() -> int:
    from cluster.checks import cuda_devices

    return cuda_devices()


def _try_storage(mark: Path, nonce: str) -> Storage:
    """Reads and tries to lock ``mark``, and writes a file next to it."""
    problem, excluded, times = "", True, [0.0]
    try:
        with open(mark, encoding="ascii") as file:
            if file.read() != nonce:
                raise FileNotFoundError(errno.ENOENT, "another file is there", str(mark))
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                excluded = False
            except BlockingIOError:
                pass
        times = []
        for _ in range(3):
            began = time.monotonic()
            write_synced(mark.with_name(f"probe-{secrets.token_hex(4)}"), bytes(4096))
            times.append(time.monotonic() - began)
    except FileNotFoundError:
        problem = "it is not seen here"
    except OSError as error:
        problem = str(error)
    free = 0
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(mark.parent).free
    return Storage(problem=problem, excluded=excluded, fsync_s=statistics.median(times), free_bytes=free)


def _closed(peers: Sequence[tuple[str, int]]) -> tuple[str, ...]:
    if not peers:
        return ()
    with ThreadPoolExecutor(min(32, len(peers))) as pool:
        taken = pool.map(lambda peer: accepts(peer[0], peer[1], CONNECT_S), peers)
        return tuple(f"{host}:{port}" for (host, port), open_ in zip(peers, taken) if not open_)


@contextlib.contextmanager
def marked(run_dir: Path) -> Iterator[Question]:
    """A question about the file system of ``run_dir``, which need not exist; OSError if nothing can be written there."""
    folder = run_dir.resolve()
    while not folder.is_dir():
        folder = folder.parent
    own = folder / f"doctor-{secrets.token_hex(8)}.tmp"
    try:
        own.mkdir()
        nonce = secrets.token_hex(16)
        write_synced(own / "mark", nonce.encode())
        with open(own / "mark", "r+b") as file:  # NFS locks no file that is open for reading alone
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield Question(mark=own / "mark", nonce=nonce)
    finally:
        shutil.rmtree(own, ignore_errors=True)


def judge(
    facts: Facts, here: Facts, where: str, skew_s: float = 0.0, resources: dict[str, float] | None = None
) -> list[Check]:
    """The checks of one machine.

    Args:
        here: of the machine that asks, with which versions are compared.
        where: the machine's name.
        skew_s: how far its clock is ahead of ours.
        resources: what Ray has counted there, for a node.
    """
    other = facts is not here
    found = [_judge_versions(facts, here, where)]
    if other:
        found.append(_judge_clock(skew_s, where))
    if facts.storage is not None:
        found += _judge_storage(facts.storage, where, other)
    limit = facts.open_files
    if limit != resource.RLIM_INFINITY and limit < OPEN_FILES:
        found.append(
            Check("warn", "ulimit", where, f"at most {limit:,} open files (hard limit)", f"raise it to at least {OPEN_FILES:,} before "
                  "`ray start` (ulimit -n 65536, LimitNOFILE=, or the container's ulimits)")
        )  # fmt: skip
    else:
        words = "no limit of open files" if limit == resource.RLIM_INFINITY else f"{limit:,} open files"
        found.append(Check("ok", "ulimit", where, words))
    wanted = int((resources or {}).get("object_store_memory", 0))
    sizes = f"/dev/shm holds {facts.shm_bytes / 2**30:.1f} GiB"
    if facts.shm_bytes < max(wanted, 64 << 20) or facts.shm_bytes <= 64 << 20:
        found.append(
            Check("warn", "/dev/shm", where, f"{sizes}; the object store wants {wanted / 2**30:.1f}", "give the container more (docker run "
                  "--shm-size, an emptyDir of medium Memory), otherwise Ray keeps objects in /tmp, which is slower")
        )  # fmt: skip
    else:
        found.append(Check("ok", "/dev/shm", where, sizes))
    found.append(_judge_gpus(facts, where, resources))
    if facts.uncompiled:
        words = f"updates on the CPU compute with torch alone: {facts.uncompiled}"
        fix = (
            "install a C compiler (on Debian: apt install gcc libc6-dev): updates become about 1.3 times as fast, and workers of softgac "
            "then act without torch, 180 MiB less each"
        )
        found.append(Check("warn", "compiler", where, words, fix))
    else:
        found.append(Check("ok", "compiler", where, "updates on the CPU have compiled passes"))
    if facts.closed:
        found.append(
            Check("fail", "ports", where, f"cannot reach {', '.join(facts.closed[:5])}" + (" ..." if len(facts.closed) > 5 else ""),
                  "open all TCP ports between the nodes: parts of a run talk to each other directly")
        )  # fmt: skip
    elif other:
        found.append(Check("ok", "ports", where, "reaches the other nodes"))
    return found


def _judge_versions(facts: Facts, here: Facts, where: str) -> Check:
    missing = [name for name, version in facts.versions.items() if not version]
    differ = {name: version for name, version in facts.versions.items() if version and version != here.versions[name]}
    fix = "install what constraints.txt names on every node (`make setup` does), or use one image for all"
    if missing:
        return Check("fail", "versions", where, f"not installed: {', '.join(missing)}", fix)
    if differ:
        words = ", ".join(f"{name} {version} (here {here.versions[name]})" for name, version in differ.items())
        return Check("fail" if set(differ) & set(SAME) else "warn", "versions", where, words, fix)
    main = ", ".join(f"{name} {facts.versions[name]}" for name in ("python", "ray", "torch", "mujoco"))
    return Check("ok", "versions", where, main)


def _judge_clock(skew_s: float, where: str) -> Check:
    if abs(skew_s) > SKEW_S:
        words = f"{abs(skew_s):.1f} s {'ahead of' if skew_s > 0 else 'behind'} this machine"
        return Check(
            "warn",
            "clock",
            where,
            words,
            "run a time service (chrony, systemd-timesyncd): ages, alerts and logs are wrong",
        )
    return Check("ok", "clock", where, f"within {SKEW_S:g} s of this machine")


def _judge_storage(storage: Storage, where: str, other: bool) -> list[Check]:
    if storage.problem:
        fix = "put --run-dir on storage that every node sees under the same path, can write and can lock (flock)"
        return [Check("fail", "run directory", where, storage.problem, fix)]
    found = []
    if not storage.excluded:
        found.append(
            Check("warn", "run directory", where, "a lock (flock) that another process holds does not count here", "mount it with "
                  "locks that hold for all nodes (NFS: without local_lock), otherwise two drivers could write into one run")
        )  # fmt: skip
    if storage.fsync_s > FSYNC_S:
        found.append(
            Check("warn", "run directory", where, f"fsync takes {storage.fsync_s:.2f} s", "use faster storage, or longer "
                  "learner.checkpoint_s and replay.snapshot_s: each save syncs several files")
        )  # fmt: skip
    if not found:
        lock = "locks hold between nodes" if other else "flock works"
        found.append(Check("ok", "run directory", where, f"{lock}, fsync takes {number(storage.fsync_s * 1e3)} ms"))
    free = f"{storage.free_bytes / 2**30:,.1f} GiB free"
    if storage.free_bytes < FREE_BYTES:
        found.append(
            Check("warn", "disk", where, free, f"free at least {FREE_BYTES >> 30} GiB where the run directory is")
        )
    elif not other:
        found.append(Check("ok", "disk", where, free))
    return found


def _judge_gpus(facts: Facts, where: str, resources: dict[str, float] | None) -> Check:
    words = f"{facts.gpus} GPU{'' if facts.gpus == 1 else 's'}" if facts.gpus else "none"
    if facts.cuda is not None and facts.cuda < facts.gpus:
        fix = "install a CUDA build of torch and a driver that is new enough for it (see `nvidia-smi`)"
        return Check("warn", "GPUs", where, f"{words}, of which torch can use {facts.cuda}", fix)
    counted = None if resources is None else resources.get("GPU", 0.0)
    if counted is not None and counted < facts.gpus:
        fix = "start the node with `ray start --num-gpus`, or give the pod its GPUs as resources"
        return Check("warn", "GPUs", where, f"{words}, of which Ray counts {counted:g}", fix)
    return Check("ok", "GPUs", where, words)


class Answer(NamedTuple):
    """What a node said."""

    where: str
    facts: Facts | None
    problem: str  # why there are no facts
    skew_s: float
    resources: dict[str, float]


def ask_nodes(question: Question, limit_s: float) -> list[Answer]:
    """Facts of every living node but this one, of the cluster that this process has joined. Takes no CPUs from it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from cluster.bounded import in_thread
    from cluster.remote import root

    deadline = time.monotonic() + limit_s
    nodes = [node for node in in_thread(ray.nodes).result(limit_s) if node["Alive"]]
    ours = "" if ray.util.client.ray.is_connected() else ray.get_runtime_context().get_node_id()
    ports = {
        node["NodeID"]: [
            (node["NodeManagerAddress"], int(node[key])) for key in ("NodeManagerPort", "ObjectManagerPort")
        ]
        for node in nodes
    }
    task, refs = ray.remote(num_cpus=0, max_retries=0)(gather_facts), {}
    for node in nodes:
        if node["NodeID"] == ours:
            continue
        peers = tuple(port for other, both in ports.items() if other != node["NodeID"] for port in both)
        where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        asked = Question(mark=question.mark, nonce=question.nonce, peers=peers, torch=question.torch)
        refs[task.options(scheduling_strategy=where).remote(asked)] = node
    answers: list[Answer] = []
    while refs:
        ready = ray.wait(list(refs), num_returns=1, timeout=max(0.0, deadline - time.monotonic()))[0]
        got, facts, problem = time.time(), None, f"no answer within {limit_s:.0f} s"
        ref = ready[0] if ready else next(iter(refs))
        if ready:
            try:
                facts = ray.get(ref)
            except Exception as error:  # whatever it is, that node cannot run a part
                problem = root(error)
        node = refs.pop(ref)
        skew_s = 0.0 if facts is None else facts.clock - got
        answers.append(Answer(_name(node), facts, problem, skew_s, dict(node["Resources"])))
    return answers


def _name(node: dict[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:6]})"


def node_checks(answers: Iterable[Answer], here: Facts, silent: str = "fail") -> list[Check]:
    """The checks of every node; ``silent``: the state of one that did not answer."""
    found = []
    for answer in sorted(answers, key=lambda answer: answer.where):
        if answer.facts is None:
            fix = (
                "look at that node's raylet and its logs (/tmp/ray/session_latest/logs), or take it out of the cluster"
            )
            found.append(Check(silent, "node", answer.where, answer.problem, fix))
        else:
            found += judge(answer.facts, here, answer.where, answer.skew_s, answer.resources)
    return found


def check_machine(run_dir: Path) -> list[Check]:
    """What is fast to find out on this machine at the start of a run, problems alone."""
    try:
        with marked(run_dir) as question:
            facts = gather_facts(question)
    except OSError:
        return []  # the run's own first files meet the same, and say what to do
    return [check for check in judge(facts, facts, "this machine") if check.state != "ok"]


def check_cluster(run_dir: Path, event: Callable[[str], None]) -> None:
    """Looks at the other nodes of the cluster that a run has just joined; warnings go to ``event``, RunError lists what must be mended.

    A node that does not answer in time is a warning: its cluster may have others.
    """
    try:
        with marked(run_dir) as question:
            answers = ask_nodes(question, START_NODES_S)
    except (OSError, TimeoutError) as error:
        event(f"WARNING: the nodes of the cluster were not looked at ({error or 'its head does not answer'})")
        return
    found = node_checks(answers, gather_facts(Question()), silent="warn")
    for check in found:
        if check.state == "warn":
            event(in_words(check))
    if failed := [f"  - {in_words(check)}" for check in found if check.state == "fail"]:
        raise RunError(
            "a node of the cluster is not fit for this run, expected every one to be, because any part may be placed there; nothing was "
            "trained; mend it (`drawbridge doctor --address` shows all checks), or take it out of the cluster:\n"
            + "\n".join(failed)
        )


def in_words(check: Check) -> str:
    """A check that is not ok, as one line of a log."""
    return f"{'WARNING: ' if check.state == 'warn' else ''}{check.name}, {check.where}: {check.seen}; {check.fix}"
