"""How a run is named in its series."""

from __future__ import annotations

import contextlib
import getpass
import re
import secrets
from pathlib import Path

from replay.durable import write_atomic

IDENT = re.compile(r"[0-9a-f]{8}")


def run_label(path: Path) -> str:
    """The label ``run`` of the run in ``path``: its name, and eight digits that are its own, even if it is resumed elsewhere."""
    kept = path / "control" / "run_id"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if IDENT.fullmatch(ident := kept.read_text(encoding="ascii")):
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
