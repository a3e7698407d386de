"""What a run has written, by its own record, and is not there any more: nothing of that begins anew without a word.

The record is the newest metrics line (live.json, or metrics.jsonl): ``written_checkpoints``, and ``written_snapshots``, which
counts once every shard has one. Lines of older versions have neither: there, what was learned and stored has to be somewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.config import RunConfig
from cluster.errors import UsageError
from cluster.run_dir import RunDirectory


def missing_checkpoint(run: RunDirectory) -> str:
    """That the run wrote checkpoints and none is there, in words; "" where that is not so."""
    from learners import checkpoint

    if checkpoint.exists(run.checkpoints):
        return ""
    line = run.live()
    updates = int(line.get("updates", 0))
    if not line.get("written_checkpoints", updates):
        return ""
    seen = "is empty" if run.checkpoints.is_dir() else "does not exist"
    return f"{run.checkpoints} {seen}, expected the checkpoints of a run that has made {updates:,} updates"


def check_parts(run: RunDirectory, config: RunConfig, accept_loss: bool) -> list[str]:
    """Looks for the checkpoint and for every shard's snapshot before a run goes on.

    Args:
        accept_loss: what is missing begins anew.

    Returns:
        what is missing and begins anew, in words.

    Raises:
        UsageError: something is missing and ``accept_loss`` is False; nothing was changed.
    """
    line = run.live()
    problems = [problem] if (problem := missing_checkpoint(run)) else []
    folders = [run.replay / f"shard-{index}" for index in range(config.replay.shards)]
    if _snapshots_expected(line, folders):
        problems += [_seen(folder) for folder in folders if not any(folder.glob("manifest-*.json"))]
    if not problems:
        return []
    lost = [
        f"{int(line.get('updates', 0)):,} updates" if problem else "",
        f"rows of the replay ({int(line.get('size_rows', 0)):,} were held)" if len(problems) > bool(problem) else "",
    ]
    if not accept_loss:
        raise UsageError(
            "files that the run wrote are missing:\n"
            + "\n".join(f"  - {text}" for text in problems)
            + f"\nGoing on without them would throw away {' and '.join(filter(None, lost))}, so nothing was started. Put them back, or "
            f"begin anew what is missing and keep the rest with `drawbridge resume {run.path} --accept-loss`"
        )
    return [f"begins anew, as --accept-loss allows: {text}" for text in problems]


def _snapshots_expected(line: Mapping[str, Any], folders: list[Path]) -> bool:
    if "written_snapshots" in line:
        return bool(line["written_snapshots"])
    return bool(line.get("env_steps")) or any(any(folder.glob("manifest-*.json")) for folder in folders)


def _seen(folder: Path) -> str:
    segments = len(list(folder.glob("segment-*"))) if folder.is_dir() else 0
    if segments:
        return f"{folder} has {segments} segments and no manifest, expected the manifest that says what is in them"
    return f"{folder} {'is empty' if folder.is_dir() else 'does not exist'}, expected a snapshot of that replay shard"
