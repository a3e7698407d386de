"""Joining a Ray cluster, or starting one on this machine for the time of a run."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from cluster.errors import UsageError
from cluster.run_dir import ROOT

CONNECT_TIMEOUT_S = 5.0
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113, section 3.4
HTTP2_SETTINGS = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # an empty frame: length 0, type 4, no flags, stream 0
HEALTH = {"initial_delay_ms": "1000", "period_ms": "1000", "timeout_ms": "1000", "failure_threshold": "5"}
THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def connect(address: str | None, *, cpus: float, object_store_bytes: int) -> bool:
    """Connects this process to Ray; returns whether it started a cluster of its own, which ends with it.

    Args:
        address: of a running cluster ("host:port", "ray://host:port", "auto"); None takes RAY_ADDRESS, which
            ``ray job submit`` sets, and starts a local cluster where that is unset too.
        cpus: logical CPUs the run reserves; a local cluster is made to hold them.
        object_store_bytes: of a local cluster.

    Raises:
        UsageError: nobody answers at ``address``.
    """
    import ray

    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # the learner is no background task
    address = address or os.environ.get("RAY_ADDRESS")
    common: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False, "configure_logging": True}
    if address is None or address == "local":
        for name, value in HEALTH.items():
            os.environ.setdefault(f"RAY_health_check_{name}", value)
        with _own_signals():
            ray.init(
                address="local",
                include_dashboard=False,
                num_cpus=max(os.cpu_count() or 1, int(cpus) + 1),
                object_store_memory=object_store_bytes,
                runtime_env={"env_vars": threads()},
                **common,
            )
        return True
    knock(address)
    inside_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    tree = {} if inside_job else {"working_dir": str(ROOT), "excludes": [".venv", ".git", "runs", "*.png", "*.mp4"]}
    try:
        with _own_signals():
            ray.init(address=address, runtime_env={"env_vars": threads(), **tree}, **common)
    except (ConnectionError, RuntimeError, TimeoutError) as error:
        raise UsageError(_unreachable(address, str(error).splitlines()[0])) from error
    return False


def threads() -> dict[str, str]:
    """One thread for each library in every process of the run, unless the Ray job that this is sets its own.

    A job's variables reach all of its processes, and Ray ends a job whose driver names one of them again.
    """
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    given = (job.get("runtime_env") or {}).get("env_vars") or {}
    return {name: value for name, value in THREADS.items() if name not in given}


def disconnect(own: bool) -> None:
    """Leaves the cluster; a cluster of our own ends."""
    import ray

    if own and ray.is_initialized():
        with contextlib.suppress(Exception):
            ray.shutdown()


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Gives this process's SIGTERM handler back: ray.init puts its own there, which aborts without a checkpoint."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def knock(address: str | None) -> None:
    """A quick answer whether anybody listens where ``connect`` would go: Ray itself tries for a minute.

    Raises:
        UsageError: nobody does.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    if address in (None, "", "local", "auto"):
        return
    parts = urlsplit(address if "://" in address else f"ray-gcs://{address}")
    try:
        port = parts.port or (10001 if parts.scheme == "ray" else 6379)
        with socket.create_connection((parts.hostname or "", port), timeout=CONNECT_TIMEOUT_S) as peer:
            if os.environ.get("RAY_USE_TLS", "0") == "0":
                _greet(peer)
    except (OSError, ValueError) as error:
        raise UsageError(_unreachable(address, str(error))) from error


def _greet(peer: socket.socket) -> None:
    """ConnectionError unless ``peer`` answers as a gRPC server does, which Ray's heads are: with HTTP/2 settings."""
    peer.settimeout(CONNECT_TIMEOUT_S)
    peer.sendall(HTTP2_PREFACE + HTTP2_SETTINGS)
    header = peer.recv(9)
    if len(header) < 4 or header[3] != HTTP2_SETTINGS[3]:
        raise ConnectionError("what listens there does not speak gRPC")


def _unreachable(address: str, why: str) -> str:
    return (
        f"--address {address}: no Ray cluster answers there ({why}), expected host:port of a running head node; nothing was started; "
        "start one with `ray start --head`, or leave --address out to run on this machine"
    )
