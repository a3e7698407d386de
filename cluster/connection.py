"""Joining a Ray cluster, or starting one on this machine for the time of a run."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cluster.errors import UsageError
from cluster.own_cluster import LOOPBACK, start_cluster, stop_cluster
from cluster.own_code import search_path, shipped
from replay.task import ROOT

if TYPE_CHECKING:
    from ray.job_config import JobConfig

CONNECT_TIMEOUT_S = 5.0
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113, section 3.4
HTTP2_SETTINGS = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # an empty frame: length 0, type 4, no flags, stream 0
ASKED = ("/ray.rpc.NodeInfoGcsService/CheckAlive", "/ray.rpc.RayletDriver/ClusterInfo")  # of a head; of a client server
HEALTH = {"initial_delay_ms": "1000", "period_ms": "1000", "timeout_ms": "1000", "failure_threshold": "5"}
RAYS_OWN = (".git", ".venv", "venv", "__pycache__")  # what Ray leaves out of a tree by default
THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def connect(
    address: str | None,
    *,
    cpus: float,
    object_store_bytes: int,
    start_timeout_s: float = 120.0,
    event: Callable[[str], None] = lambda text: None,
) -> bool:
    """Connects this process to Ray; returns whether it started a cluster of its own, which ends with it.

    A cluster of its own has a token of its own (``own_cluster``). On one that is given, the user's RAY_AUTH_MODE and token stand.

    Args:
        address: of a running cluster ("host:port", "ray://host:port", "auto"); None takes RAY_ADDRESS, which
            ``ray job submit`` sets, and starts a local cluster where that is unset too.
        cpus: logical CPUs the run reserves; a local cluster is made to hold them.
        object_store_bytes: of a local cluster.
        start_timeout_s: deadline for a local cluster to start.
        event: called with every line worth a person's attention.

    Raises:
        UsageError: nobody answers at ``address``, it asks for a token that this process does not have, or a token is to be shown and
            there is none.
        RunError: a local cluster did not start in time.
    """
    import ray
    from ray.exceptions import AuthenticationError

    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # the learner is no background task
    address = cluster_address(address)
    common: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False, "configure_logging": True}
    if not address:
        for name, value in HEALTH.items():
            os.environ.setdefault(f"RAY_health_check_{name}", value)
        with _own_signals():
            start_cluster(
                start_timeout_s,
                event,
                include_dashboard=False,
                num_cpus=max(os.cpu_count() or 1, int(cpus) + 1),
                object_store_memory=object_store_bytes,
                runtime_env={"env_vars": threads() | LOOPBACK | search_path()},
                job_config=_without_folders(),
                **common,
            )
        return True
    check_reachable(address)
    job = _job()
    tree = {} if job is not None else {"working_dir": str(ROOT), "excludes": list(RAYS_OWN)}
    os.environ.setdefault("RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES", "")  # Ray would warn of every one that is there
    code = shipped(job)
    try:
        with _own_signals():
            ray.init(address=address, runtime_env={"env_vars": threads(), **tree, **code}, **common)
    except (ConnectionError, RuntimeError, TimeoutError, ValueError, AuthenticationError) as error:
        raise UsageError(_unreachable(address, str(error).splitlines()[0])) from error
    return False


def cluster_address(given: str | None) -> str:
    """Of the cluster that a run uses: the one given, else that of RAY_ADDRESS; "" for one of the run's own."""
    address = given or os.environ.get("RAY_ADDRESS") or ""
    return "" if address == "local" else address


def _named(address: str) -> str:
    """An address as whoever gave it did."""
    return f"RAY_ADDRESS={address}" if address == os.environ.get("RAY_ADDRESS") else f"--address {address}"


def shipped_files() -> dict[str, int]:
    """The files of this tree that go to a cluster with a run, and their sizes in bytes."""
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    sizes: dict[str, int] = {}

    def add(path: Path) -> None:
        if path.is_file():
            sizes[str(path.relative_to(ROOT))] = path.stat().st_size

    excludes = [_get_excludes(ROOT, get_runtime_env_default_excludes())]
    _dir_travel(ROOT, excludes, add, include_gitignore=True, logger=logging.getLogger(__name__))
    return sizes


def _without_folders() -> JobConfig:
    """A configuration to which Ray does not add the driver's folders: they are in ``search_path``."""
    from ray.job_config import JobConfig

    config: Any = JobConfig()
    config._runtime_env_has_working_dir = lambda: True  # where there is one, Ray adds none
    return config


def threads() -> dict[str, str]:
    """One thread for each library in every process of the run, unless the Ray job that this is sets its own.

    A job's variables reach all of its processes, and Ray ends a job whose driver names one of them again.
    """
    given = (_job() or {}).get("env_vars") or {}
    return {name: value for name, value in THREADS.items() if name not in given}


def _job() -> dict[str, Any] | None:
    """The runtime_env of the Ray job that this process is part of; None outside of one."""
    text = os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR")
    return None if text is None else dict(json.loads(text).get("runtime_env") or {})


def disconnect(own: bool) -> None:
    """Leaves the cluster; a cluster of our own ends."""
    if own:
        stop_cluster()


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Gives this process's SIGTERM handler back: ray.init puts its own there, which calls sys.exit(15).

    A SIGTERM that Ray's handler took meanwhile is handed on.
    """
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as error:
        if error.code == signal.SIGTERM and callable(handler):
            handler(signal.SIGTERM, None)
        raise
    finally:
        if callable(handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def check_reachable(address: str | None) -> None:
    """A quick answer whether a cluster would have this process where ``connect`` would go: Ray itself tries for a minute.

    Raises:
        UsageError: nobody listens there, the cluster asks for a token that this process does not have, or RAY_AUTH_MODE says that one is
            to be shown and there is none.
    """
    address = cluster_address(address)
    if not address:
        return
    there = _found() if address == "auto" else address
    if not there:
        raise UsageError(_unreachable(address, "no head is known on this machine"))
    try:
        host, port, method = _endpoint(there)
        with socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S) as peer:
            if os.environ.get("RAY_USE_TLS", "0") == "0":
                _greet(peer)
    except (OSError, ValueError) as error:
        raise UsageError(_unreachable(address, str(error))) from error
    _show_token(address, _target(host, port), method)


def _endpoint(address: str) -> tuple[str, int, str]:
    """Host and port of a head or of a client server, and the method that asks it anything; ValueError for a port that is none."""
    parts = urlsplit(address if "://" in address else f"ray-gcs://{address}")
    client = parts.scheme == "ray"
    return parts.hostname or "", parts.port or (10001 if client else 6379), ASKED[client]


def _target(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def accepts(host: str, port: int, limit_s: float) -> bool:
    """Whether somebody takes a connection there."""
    try:
        socket.create_connection((host, port), timeout=limit_s).close()
    except OSError:
        return False
    return True


def _found() -> str:
    """Where Ray goes for "auto": the address that is written down, or else that of a head on this machine; "" without one."""
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
    from ray._private.services import find_bootstrap_address, find_gcs_addresses

    found = os.environ.get("RAY_ADDRESS")
    if not found or found == "auto":
        found = find_bootstrap_address(None) or next(iter(find_gcs_addresses()), "")
    if not found:
        return ""
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)  # as ray.init does for "auto"
    return str(found)


def hail(peer: socket.socket) -> bytes:
    """What ``peer`` says first to one who begins to speak HTTP/2, up to the header of a frame."""
    peer.sendall(HTTP2_PREFACE + HTTP2_SETTINGS)
    return peer.recv(9)


def _greet(peer: socket.socket) -> None:
    """ConnectionError unless ``peer`` answers as a gRPC server does, which Ray's heads are: with HTTP/2 settings."""
    peer.settimeout(CONNECT_TIMEOUT_S)
    header = hail(peer)
    if len(header) < 4 or header[3] != HTTP2_SETTINGS[3]:
        raise ConnectionError("what listens there does not speak gRPC")


def _show_token(address: str, target: str, method: str) -> None:
    """One call with the token that Ray would show, if any. What else is wrong with the peer, ``ray.init`` finds out."""
    import grpc
    from ray._private.grpc_utils import init_grpc_channel
    from ray.exceptions import AuthenticationError

    try:
        with contextlib.closing(init_grpc_channel(target)) as channel:
            channel.unary_unary(method)(b"", timeout=CONNECT_TIMEOUT_S)
    except AuthenticationError as error:  # before anything was asked
        why = str(error).split(". ", 1)[0]
        raise UsageError(
            f"{_named(address)}: RAY_AUTH_MODE is token here and there is no token to show ({why}), expected one: nothing was started; set "
            "RAY_AUTH_TOKEN_PATH to a file with the token that the head was started with, or RAY_AUTH_TOKEN to the token itself; if the "
            "cluster asks for none, unset RAY_AUTH_MODE"
        ) from error
    except grpc.RpcError as error:
        if isinstance(error, grpc.Call) and error.code() == grpc.StatusCode.UNAUTHENTICATED:
            raise UsageError(
                _locked(address, "the one shown is wrong" if _has_token() else "none was shown")
            ) from error


def asks_for_token(address: str) -> bool:
    """Whether the cluster, which ``check_reachable`` has found, refuses a call without a token. One with TLS wants a certificate."""
    import grpc

    if os.environ.get("RAY_USE_TLS", "0") != "0":
        return True
    host, port, method = _endpoint(_found() if address == "auto" else address)
    with contextlib.closing(grpc.insecure_channel(_target(host, port))) as channel:
        try:
            channel.unary_unary(method)(b"", timeout=CONNECT_TIMEOUT_S)
        except grpc.RpcError as error:
            return isinstance(error, grpc.Call) and error.code() == grpc.StatusCode.UNAUTHENTICATED
    return False


def _has_token() -> bool:
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    return bool(is_token_auth_enabled())


def _locked(address: str, why: str) -> str:
    mode = os.environ.get("RAY_AUTH_MODE")
    return (
        f"{_named(address)}: the cluster asks for a token ({why}; RAY_AUTH_MODE is {mode or 'unset'}), expected RAY_AUTH_MODE=token and the "
        "token that its head was started with; nothing was started; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a file with the "
        "token, or RAY_AUTH_TOKEN to the token itself"
    )


def _unreachable(address: str, why: str) -> str:
    return (
        f"{_named(address)}: no Ray cluster answers there ({why}), expected host:port of a running head node; nothing was started; "
        "start one with `ray start --head`, or run on this machine with --address local"
    )
