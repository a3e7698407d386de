"""Checkpoints: tensors in safetensors beside a JSON manifest, complete and intact or not taken at all.

A checkpoint is a directory ``checkpoint-00000042`` with two files:

    tensors.safetensors   every tensor by name; parts of a run share one file under prefixes ("learner/", "worker3/")
    manifest.json         the caller's ``meta``, and what ``replay.manifest`` says of the tensors

It is written under a temporary name, synced file by file, renamed, and the parent is synced: a crash or a full disk at
any moment leaves the older checkpoints as they were. Nothing in it is a pickle, so reading one runs no code.

Not promised: safety of two processes that save into one directory at the same time (a run has one writer).

torch is imported where tensors are read or written: a driver looks at manifests alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from replay.manifest import (
    Damaged,
    fsync_directory,
    full_length,
    newest_valid,
    read_file,
    read_manifest,
    seal,
    write_file,
)

if TYPE_CHECKING:
    import torch

FORMAT = 2
TENSORS, MANIFEST = "tensors.safetensors", "manifest.json"
_NAME = re.compile(r"checkpoint-(\d{8,})")
_TEMPORARY = ".tmp-checkpoint-"


class CheckpointError(RuntimeError):
    """Checkpoints exist and none can be used; the message lists each with its problem."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What ``load_newest`` found."""

    tensors: dict[str, torch.Tensor]  # on the CPU
    meta: dict[str, Any]  # as given to ``save``
    path: Path
    warnings: tuple[str, ...]  # one line for each newer checkpoint that could not be used

    def part(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors of one part, without their prefix; empty when there is no such part."""
        return {key.removeprefix(f"{name}/"): t for key, t in self.tensors.items() if key.startswith(f"{name}/")}


def prefixed(name: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of one part under the names that ``Checkpoint.part(name)`` gives back."""
    return {f"{name}/{key}": value for key, value in tensors.items()}


def save(directory: Path, tensors: Mapping[str, Any], meta: Mapping[str, Any], *, keep: int) -> Path:
    """Writes a checkpoint durably, then removes all but the newest ``keep`` valid ones.

    Args:
        directory: where the checkpoints of one run live; made when missing.
        tensors: torch tensors or numpy arrays by name, any dtype that safetensors knows.
        meta: JSON-able; what ``load_newest`` compares with ``expect`` stands here.
        keep: valid checkpoints left on disk, this one included, at least 1.

    Returns:
        the path of the new checkpoint.

    Raises:
        OSError: it could not be written (disk full, say); the older ones are untouched and nothing half-made is left.
        ValueError: ``keep`` below 1, or ``meta`` is not JSON.
    """
    if keep < 1:
        raise ValueError(
            f"checkpoints to keep: {keep}, expected at least 1: otherwise the new one would be removed too"
        )
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for leftover in directory.glob(f"{_TEMPORARY}*"):  # of a writer that died
        shutil.rmtree(leftover, ignore_errors=True)
    numbers = [_number(path) for path in _checkpoints(directory)]
    final = directory / f"checkpoint-{max(numbers, default=0) + 1:08d}"
    temporary = directory / f"{_TEMPORARY}{os.getpid()}"
    try:
        temporary.mkdir()
        _write(temporary, tensors, meta)
        os.rename(temporary, final)
        fsync_directory(directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _prune(directory, final, keep)
    return final


def exists(directory: Path) -> bool:
    """Whether there is a checkpoint, usable or not; a save that never finished is none."""
    return bool(_checkpoints(Path(directory)))


def damage(directory: Path) -> list[str]:
    """What is wrong with each checkpoint, newest first, if none is complete and intact; empty if one is, or if there are none."""
    found = []
    for path in _checkpoints(Path(directory)):
        if (problem := problem_of(path)) is None:
            return []
        found.append(f"{path.name}: {problem}")
    return found


def load_newest(directory: Path, expect: Mapping[str, Any]) -> Checkpoint | None:
    """The newest checkpoint that is complete, intact and whose ``meta`` agrees with ``expect`` in every field of it.

    Returns:
        None when there is no checkpoint at all (a save that never finished is none).

    Raises:
        CheckpointError: there are some, and not one can be used. Starting from scratch is left to the user to decide.
    """
    found, problems = newest_valid(_checkpoints(Path(directory)), lambda path: (path, *_read(path, expect)))
    if found is not None:
        path, tensors, meta = found
        return Checkpoint(tensors=tensors, meta=meta, path=path, warnings=tuple(problems))
    if problems:
        listing = "\n  ".join(problems)
        raise CheckpointError(
            f"none of the {len(problems)} checkpoints in {directory} can be used:\n  {listing}\n"
            "Nothing was started: without them the run's training is lost. Put a good copy back, give the settings that they were made "
            "with, or train again in a new run directory"
        )
    return None


def newest_meta(directory: Path) -> dict[str, Any] | None:
    """``meta`` of the newest checkpoint that has an intact manifest and tensors of full length; None: there is none.

    Reads no tensors, so a flipped bit in them goes unnoticed here.
    """
    for path in _checkpoints(Path(directory)):
        with contextlib.suppress(Damaged):
            manifest = _manifest(path)
            if full_length(path, manifest["segments"]):
                return dict(manifest["meta"])
    return None


def problem_of(path: Path) -> str | None:
    """Why the checkpoint at ``path`` cannot be used, or None when it is complete and intact."""
    try:
        _verify(path)
    except Damaged as problem:
        return str(problem)
    return None


def _checkpoints(directory: Path) -> list[Path]:
    """Newest first."""
    if not directory.is_dir():
        return []
    return sorted((p for p in directory.iterdir() if _NAME.fullmatch(p.name)), key=_number, reverse=True)


def _number(path: Path) -> int:
    return int(path.name.removeprefix("checkpoint-"))


def _write(directory: Path, tensors: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    import safetensors.torch

    data = safetensors.torch.save({name: _plain(value) for name, value in tensors.items()})
    entry = write_file(directory / TENSORS, data)
    try:
        manifest = seal({"format": FORMAT, "meta": dict(meta), "segments": [entry]})
    except (TypeError, ValueError) as error:
        raise ValueError(f"a checkpoint's meta must be JSON: {error}; nothing was written") from error
    write_file(directory / MANIFEST, manifest)
    fsync_directory(directory)


def _plain(value: torch.Tensor | np.ndarray) -> torch.Tensor:
    """A contiguous CPU tensor with storage of its own: safetensors refuses views that share a buffer."""
    import torch

    tensor = value.detach() if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value))
    tensor = tensor.cpu().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _prune(directory: Path, newest: Path, keep: int) -> None:
    """Removes what is older than the ``keep``-th valid checkpoint; ``newest`` was written a moment ago."""
    valid = 0
    for path in _checkpoints(directory):
        if valid >= keep:
            shutil.rmtree(path, ignore_errors=True)
        elif path == newest or problem_of(path) is None:
            valid += 1


def _read(path: Path, expect: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    meta, data = _verify(path)
    wanted = json.loads(json.dumps(expect))
    differing = [line for key in wanted for line in _differing(key, meta.get(key, _ABSENT), wanted[key])]
    if differing:
        raise Damaged(f"made with another configuration: {'; '.join(differing)}")
    import safetensors.torch

    return safetensors.torch.load(data), meta


_ABSENT = object()


def _differing(name: str, there: Any, here: Any) -> list[str]:
    """What is not the same; of mappings, entry by entry under its dotted name."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        keys = sorted({*there, *here})
        return [
            line
            for key in keys
            for line in _differing(f"{name}.{key}", there.get(key, _ABSENT), here.get(key, _ABSENT))
        ]
    return [] if there == here else [f"{name} is {_shown(there)} there, {_shown(here)} here"]


def _shown(value: Any) -> str:
    return "absent" if value is _ABSENT else repr(value)


def _verify(path: Path) -> tuple[dict[str, Any], bytes]:
    """(meta, bytes of the tensors) of an intact checkpoint; Damaged otherwise."""
    manifest = _manifest(path)
    return manifest["meta"], read_file(path, manifest["segments"][0])


def _manifest(path: Path) -> dict[str, Any]:
    manifest = read_manifest(path / MANIFEST)
    if manifest["format"] == 1:
        entry = manifest["files"][TENSORS]
        return manifest | {"segments": [{"file": TENSORS, "bytes": entry["bytes"], "digest": entry["blake2b"]}]}
    if manifest["format"] != FORMAT:
        raise Damaged(
            f"format {manifest['format']}, this version reads 1 and {FORMAT}; use the version of Drawbridge that wrote it"
        )
    return manifest
