"""A Ray cluster that a run starts for itself: it listens on loopback only and asks for a token that only this user can read."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil

from cluster.errors import RunError

# Ray's own settings, for every process of the cluster. The learners' collectives are no part of Ray: gloo and NCCL take an interface.
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
AUTH = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
_held = contextlib.ExitStack()  # what the cluster of this process needs as long as it lives


def start_cluster(limit_s: float, event: Callable[[str], None], **options: Any) -> None:
    """``ray.init`` of a new cluster on this machine, tried again until ``limit_s`` when Ray's own 30 s are too short.

    Args:
        limit_s: deadline of all attempts, in seconds; one that has begun ends by itself.
        event: called with a line about every attempt that failed and is repeated.
        options: of ``ray.init``.

    Raises:
        RunError: it did not start in time.
    """
    import ray

    began, attempts = time.monotonic(), 0
    _held.enter_context(_private_token())
    try:
        while True:
            attempts += 1
            before = _children()
            try:
                with _on_loopback():
                    ray.init(address="local", **options)
                return
            except Exception as error:  # Ray raises bare Exceptions here
                _end_attempt(before)
                waited, why = time.monotonic() - began, (str(error).splitlines() or [type(error).__name__])[0]
            if waited >= limit_s:
                raise RunError(
                    f"Ray did not start on this machine within {waited:.0f} s and {attempts} attempts ({why}), expected less than "
                    f"{limit_s:.0f} s; nothing was trained; see the logs in /tmp/ray/session_latest/logs, free the machine, or raise "
                    "ray.start_timeout_s"
                )
            event(
                f"Ray has not started after {waited:.0f} s ({why}); trying again, for {limit_s:.0f} s in all "
                "(ray.start_timeout_s)"
            )
    except BaseException:
        _held.close()
        raise


def stop_cluster() -> None:
    """Ends the cluster that ``start_cluster`` started, and forgets its token."""
    import ray

    try:
        with contextlib.suppress(Exception):
            ray.shutdown()
    finally:
        _held.close()


@contextlib.contextmanager
def _private_token() -> Iterator[None]:
    """A fresh token in a file of mode 0600, named by this process's environment, which Ray's processes inherit.

    The user's own token (~/.ray/auth_token) is neither used nor written: a later ``ray start`` would ask for it.
    """
    from ray._private.authentication.authentication_token_generator import generate_new_authentication_token

    before = {name: os.environ.pop(name) for name in AUTH if name in os.environ}
    handle, path = tempfile.mkstemp(prefix="drawbridge-", suffix=".token")
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(generate_new_authentication_token())
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": path}
        _read_again()
        yield
    finally:
        for name in AUTH:
            os.environ.pop(name, None)
        os.environ |= before
        with contextlib.suppress(OSError):
            os.unlink(path)
        _read_again()


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


def _children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def _end_attempt(before: set[psutil.Process]) -> None:
    """Ends what a failed ``ray.init`` left: it forgets the processes that it started."""
    import ray

    with contextlib.suppress(Exception):
        ray.shutdown()
    left = [child for child in _children() if child not in before]
    for child in left:
        with contextlib.suppress(psutil.Error):
            child.kill()
    psutil.wait_procs(left, timeout=10)
    logging.getLogger("ray").setLevel(logging.WARNING)
