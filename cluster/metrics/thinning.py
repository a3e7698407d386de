"""Fewer records of a long run: no count is lost, whether it is of the whole run or of the time since the record before."""

from __future__ import annotations

import json
from pathlib import Path

from cluster.metrics.catalogue import WINDOW_SUMS
from replay.manifest import read_whole, write_atomic


def thin_out(path: Path) -> None:
    """Drops every second line of the older half of metrics.jsonl, never the first; the next one takes over its WINDOW_SUMS."""
    lines = read_whole(path).splitlines(keepends=True)
    half = len(lines) // 2 | 1
    older = [lines[0], *map(_taken_over, lines[1:half:2], lines[2:half:2])]
    write_atomic(path, b"".join([*older, *lines[half:]]))


def _taken_over(dropped: bytes, kept: bytes) -> bytes:
    try:
        before, line = json.loads(dropped), json.loads(kept)
        line |= {key: before[key] + line.get(key, 0) for key in WINDOW_SUMS if key in before}
        return json.dumps(line).encode() + b"\n"
    except (ValueError, TypeError):  # one of them is damaged
        return kept
