"""How a run is named in its series, and the file that tells Prometheus where it is (file_sd)."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
import secrets
import shlex
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from cluster.config import MetricsConfig
from cluster.errors import Interrupted, UsageError
from replay.manifest import read_whole, write_atomic

EVERYWHERE = ("0.0.0.0", "::")  # hosts of an endpoint that listens on all addresses
IDENT = re.compile(r"([0-9a-f]{8})(?: (\d+))?")  # and the inode of the directory that it is of


def run_label(path: Path) -> str:
    """The label ``run`` of the run in ``path``: its name, and eight digits that are its own, even if it is resumed elsewhere.

    A directory that was copied is another one by its inode: the copy gets digits of its own.
    """
    kept, inode = path / "control" / "run_id", path.stat().st_ino
    ident, of = "", None
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if found := IDENT.fullmatch(read_whole(kept, 64).decode("ascii")):
            ident, of = found.groups()
    if of is None or int(of) != inode:  # of an earlier version without inode: it is taken for this directory's
        ident = ident if ident and of is None else secrets.token_hex(4)
        with contextlib.suppress(OSError):
            write_atomic(kept, f"{ident} {inode}".encode())
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
    path = _target_file(folder, label)
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


def left_behind(path: Path, before: MetricsConfig, now: MetricsConfig) -> list[str]:
    """What to do about the target file that an earlier process of the run in ``path`` left and this one will not write over.

    In a folder that the command names, as every ``now.targets_dir`` is, it is removed; one that only a config.json names is left as it is.

    Args:
        before, now: the run's settings until now, and those of this process.
    """
    if not before.targets_dir:
        return []
    file = _target_file(Path(before.targets_dir), run_label(path))
    with contextlib.suppress(OSError):
        if not stat.S_ISREG(file.lstat().st_mode):
            return []
        if not now.targets_dir or os.path.realpath(now.targets_dir) != os.path.realpath(before.targets_dir):
            return [
                f"WARNING: {file} still tells Prometheus the address that this run had before: RunDown fires for a run that lives; it stays, "
                f"because only config.json names that folder; remove it: rm {shlex.quote(str(file))}"
            ]
        if now.port < 0:
            file.unlink()
    return []


def _target_file(folder: Path, label: str) -> Path:
    return folder / f"{label}.json"


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # what stays is a false alarm, no reason for a run to fail
        path.unlink()
