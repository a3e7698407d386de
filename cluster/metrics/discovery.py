"""How a run is named in its series, and the file that tells Prometheus where it is (file_sd)."""

from __future__ import annotations

import contextlib
import getpass
import json
import re
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

from cluster.errors import Interrupted, UsageError
from replay.manifest import read_whole, write_atomic

EVERYWHERE = ("0.0.0.0", "::")  # hosts of an endpoint that listens on all addresses
IDENT = re.compile(r"[0-9a-f]{8}")


def run_label(path: Path) -> str:
    """The label ``run`` of the run in ``path``: its name, and eight digits that are its own, even if it is resumed elsewhere."""
    kept = path / "control" / "run_id"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if IDENT.fullmatch(ident := read_whole(kept, 64).decode("ascii")):
            return f"{path.name}-{ident}"
    ident = secrets.token_hex(4)
    with contextlib.suppress(OSError):
        write_atomic(kept, ident.encode())
    return f"{path.name}-{ident}"


def user_name() -> str:
    """Who runs this process, as far as the machine knows."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"


@contextlib.contextmanager
def announced(folder: Path, label: str, host: str, port: int) -> Iterator[None]:
    """Keeps the address of a run's endpoint in a file of ``folder``, which Prometheus watches.

    A run that ends in order removes the file. The file of one that fails or is killed stays, so that its alert RunDown fires; the
    run writes over it when it is resumed.

    Args:
        label: of the run, which names the file.
        host, port: where the endpoint listens.
    """
    path = folder / f"{label}.json"
    address = socket.getfqdn() if host in EVERYWHERE else host
    target = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps([{"targets": [target], "labels": {"job": "drawbridge"}}]).encode())
    except OSError as error:
        raise UsageError(
            f"{path} could not be written ({error}), expected metrics.targets_dir to be a folder that Prometheus watches: the run "
            "would not be found, so nothing was started; make the folder writable, or choose another"
        ) from error
    try:
        yield
    except Interrupted:
        _remove(path)
        raise
    _remove(path)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # what stays is a false alarm, no reason for a run to fail
        path.unlink()
