"""A Ray cluster that a run starts for itself: it listens on loopback only and asks for a token that only this user can read."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import psutil

from cluster.bounded import SHUTDOWN_S, in_thread
from cluster.errors import RunError
from replay.manifest import open_own

# Ray's own settings, for every process of the cluster. The learners' collectives are no part of Ray: gloo and NCCL take an interface.
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
AUTH = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
# What Ray 2.60 says when a deadline of its own is over: 30 s for the head's port, 20 attempts for the first call, 30 s for the node. The
# raylet ends itself with the first one when its agents are not there after 15 s. All are RuntimeErrors or bare Exceptions.
PORT_OVERDUE = "Timed out waiting for file"
OVERDUE = (PORT_OVERDUE, "Failed to start GCS", "The current node timed out during startup")
DAEMONS = ("gcs_server", "raylet")
END_S = 1.0  # for processes to end by themselves, after Ray has ended the cluster
_held = contextlib.ExitStack()  # what the cluster of this process needs as long as it lives


def start_cluster(limit_s: float, event: Callable[[str], None], **options: Any) -> None:
    """``ray.init`` of a new cluster on this machine, tried again until ``limit_s`` when Ray's own deadlines are too short.

    Args:
        limit_s: deadline of all attempts, in seconds; one that has begun ends by itself.
        event: called with a line about every attempt that failed and is repeated.
        options: of ``ray.init``.

    Raises:
        RunError: it did not start in time, or failed of something else than slowness.
    """
    import ray

    began, attempts, before = time.monotonic(), 0, _children()
    _held.enter_context(_private_token())
    try:
        while True:
            attempts += 1
            try:
                with _on_loopback(), _in_groups_of_their_own():
                    ray.init(address="local", **options)
                return
            except Exception as error:
                why, slow = _cause(error, before)
                _end_attempt(before)
                waited = time.monotonic() - began
                if not slow:
                    raise RunError(
                        f"Ray could not start on this machine: {why}, expected a cluster of the run's own; nothing was trained; see the "
                        "logs in /tmp/ray/session_latest/logs, mend that, or give --address of a cluster"
                    ) from error
                if waited >= limit_s:
                    raise RunError(
                        f"Ray did not start on this machine within {waited:.0f} s and {attempts} attempts ({why}), expected less than "
                        f"{limit_s:.0f} s; nothing was trained; see the logs in /tmp/ray/session_latest/logs, free the machine, or raise "
                        "ray.start_timeout_s"
                    ) from error
            event(
                f"Ray has not started after {waited:.0f} s ({why}); trying again, for {limit_s:.0f} s in all "
                "(ray.start_timeout_s)"
            )
    except BaseException:
        _end_attempt(before)  # it may be a signal that came at any moment
        _held.close()
        raise


def stop_cluster() -> None:
    """Ends the cluster that ``start_cluster`` started, and forgets its token."""
    import ray

    try:
        parts, ended = _parts(), in_thread(ray.shutdown)
        _wait_for(ended)
        _, left = psutil.wait_procs(parts, timeout=END_S)
        for part in left:  # the head hangs, or there is none and some wait a minute for one
            with contextlib.suppress(psutil.Error):
                part.kill()
        _wait_for(ended)  # ray.shutdown returns once a head that hung is dead
    finally:
        _held.close()


def _wait_for(ended: Future[None]) -> None:
    """Waits for ``ray.shutdown``, for SHUTDOWN_S at most; what it raises does not matter at the end."""
    with contextlib.suppress(Exception):
        ended.result(SHUTDOWN_S)


def _parts() -> list[psutil.Process]:
    """The processes of this process's own cluster."""
    found: list[psutil.Process] = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if child.name() in ("gcs_server", "raylet"):
                found += [child, *child.children(recursive=True)]
    return found


@contextlib.contextmanager
def _private_token() -> Iterator[None]:
    """A fresh token in a file of mode 0600, named by this process's environment, which Ray's processes inherit.

    The user's own token (~/.ray/auth_token) is neither used nor written: a later ``ray start`` would ask for it.
    """
    from ray._private.authentication.authentication_token_generator import generate_new_authentication_token

    _remove_old_tokens(Path(tempfile.gettempdir()))
    before = {name: os.environ.pop(name) for name in AUTH if name in os.environ}
    handle, path = tempfile.mkstemp(prefix=f"drawbridge-{os.getpid()}-", suffix=".token")
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_SH)  # as long as this process lives
        os.write(handle, generate_new_authentication_token().encode())
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": path}
        _read_again()
        yield
    finally:
        for name in AUTH:
            os.environ.pop(name, None)
        os.environ |= before
        os.close(handle)
        with contextlib.suppress(OSError):
            os.unlink(path)
        _read_again()


def _remove_old_tokens(folder: Path) -> None:
    """Removes the token files of this user's processes that were killed: they are gone, and hold no lock, wherever they had run."""
    for path in folder.glob("drawbridge-*-*.token"):
        pid = path.name.split("-")[1]
        if not pid.isdecimal() or psutil.pid_exists(int(pid)):
            continue
        with contextlib.suppress(OSError), open_own(path, "rb+") as file:
            if os.fstat(file.fileno()).st_uid == os.geteuid():
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


def _read_again() -> None:
    """Ray reads its settings and the token once a process."""
    import ray

    raylet: Any = ray._raylet  # without type stubs
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Lets a new node take 127.0.0.1 as its address, to which all of its parts then bind. On Linux Ray has no option for it."""
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextlib.contextmanager
def _in_groups_of_their_own() -> Iterator[None]:
    """Lets Ray's processes, which are started in this block, have process groups of their own: a signal to this process's group, as
    `timeout` and job control send, reaches the driver alone, which then ends the run in order."""
    from ray._private import services

    class Apart(services.ConsolePopen):
        def __init__(self, *words: Any, **options: Any) -> None:
            super().__init__(*words, process_group=0, **options)

    module: Any = services
    before, module.ConsolePopen = module.ConsolePopen, Apart
    try:
        yield
    finally:
        module.ConsolePopen = before


def _children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def _cause(error: Exception, before: set[psutil.Process]) -> tuple[str, bool]:
    """Why ``ray.init`` failed, in a line, and whether it was only slow: a deadline of Ray's own was over and no daemon had ended."""
    why = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    if not any(text in why for text in OVERDUE):
        return why, False
    started = [child for child in psutil.Process().children() if child not in before]
    ended = [p.name() for p in started if p.status() == psutil.STATUS_ZOMBIE and p.name() in DAEMONS]
    if not ended:
        return why, True
    last = _last_words(ended[0], started)
    return f"Ray's {ended[0]} ended by itself: {last or 'it wrote no reason'}", PORT_OVERDUE in last


def _last_words(daemon: str, started: list[psutil.Process]) -> str:
    """What Ray's ``daemon`` wrote as its error, in the folder that the others of ``started`` name; "" if nothing is found."""
    with contextlib.suppress(OSError, psutil.Error, StopIteration, IndexError):
        words = (word for process in started for word in process.cmdline())
        folder = next(word for word in words if word.startswith("--log_dir=")).partition("=")[2]
        text = Path(folder, f"{daemon}.err").read_text(encoding="utf-8", errors="replace")
        return text.splitlines()[0].rpartition("Check failed: ")[2]
    return ""


def _end_attempt(before: set[psutil.Process]) -> None:
    """Ends what a failed ``ray.init`` left: it forgets the processes that it started."""
    import ray

    ended = in_thread(ray.shutdown)
    _wait_for(ended)
    left = [child for child in _children() if child not in before]
    for child in left:
        with contextlib.suppress(psutil.Error):
            child.kill()
    psutil.wait_procs(left, timeout=10)
    _wait_for(ended)
    logging.getLogger("ray").setLevel(logging.WARNING)
