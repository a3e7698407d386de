"""Joining a Ray cluster, or starting one on this machine for the time of a run."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from typing import Any
from urllib.parse import urlsplit

from cluster.errors import UsageError
from cluster.run_dir import ROOT

CONNECT_TIMEOUT_S = 5.0
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
    address = address or os.environ.get("RAY_ADDRESS")
    common: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False, "configure_logging": True}
    if address is None or address == "local":
        for name, value in HEALTH.items():
            os.environ.setdefault(f"RAY_health_check_{name}", value)
        ray.init(
            address="local",
            include_dashboard=False,
            num_cpus=max(os.cpu_count() or 1, int(cpus) + 1),
            object_store_memory=object_store_bytes,
            runtime_env={"env_vars": THREADS},
            **common,
        )
        return True
    knock(address)
    inside_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    tree = {} if inside_job else {"working_dir": str(ROOT), "excludes": [".venv", ".git", "runs", "*.png", "*.mp4"]}
    try:
        ray.init(address=address, runtime_env={"env_vars": THREADS, **tree}, **common)
    except (ConnectionError, RuntimeError, TimeoutError) as error:
        raise UsageError(_unreachable(address, str(error).splitlines()[0])) from error
    return False


def disconnect(own: bool) -> None:
    """Leaves the cluster; a cluster of our own ends."""
    import ray

    if own and ray.is_initialized():
        with contextlib.suppress(Exception):
            ray.shutdown()


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
        with socket.create_connection((parts.hostname or "", port), timeout=CONNECT_TIMEOUT_S):
            return
    except (OSError, ValueError) as error:
        raise UsageError(_unreachable(address, str(error))) from error


def _unreachable(address: str, why: str) -> str:
    return (
        f"--address {address}: no Ray cluster answers there ({why}), expected host:port of a running head node; nothing was started; "
        "start one with `ray start --head`, or leave --address out to run on this machine"
    )
