"""Datasets made elsewhere, brought under Minari's root: from a folder, or by id from Minari's remote."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

from replay.dataset import Dataset
from replay.dataset_writer import check_can_write, publish, staging
from replay.minari_files import check_id, datasets_root, find_data, read_metadata
from replay.stored_episode import DatasetError

REACH_S = 60.0  # for the remote's first answer
DOWNLOAD_S = 3_600.0  # for all of a dataset

# Run in a process of their own: Minari's clients have no deadline that can be set from outside. Both read and write files alone.
_CHECK_REACHABLE = (
    "import sys; from minari.storage.remotes import get_cloud_storage as storage; "
    "storage(remote_path=sys.argv[1] or None).get_dataset_metadata(sys.argv[2])"
)
_DOWNLOAD = "import sys, minari; minari.download_dataset(sys.argv[2], True)"


def import_dataset(id_or_path: str, *, force: bool = False, timeout_s: float = DOWNLOAD_S) -> Dataset:
    """Copies a Minari folder in under its own id, or downloads an id; checked before it is put in place.

    Args:
        id_or_path: an existing folder; else an id as Minari's remote has it, ``D4RL/pointmaze/umaze-v2`` or with the remote
            before it, ``hf://farama-minari/D4RL/pointmaze/umaze-v2``.
        force: replace a dataset of that id.
        timeout_s: for a download; the remote must answer within 60 s.

    Raises:
        DatasetError: no such folder or id, the id exists, the remote cannot be reached or is too slow, or what came
            cannot be used here. Nothing is left behind.
    """
    path = Path(id_or_path).expanduser()
    if path.is_dir():
        return _from_folder(path, force)
    remote, dataset_id = _split(id_or_path)
    return _from_remote(remote, dataset_id, force, timeout_s)


def _from_folder(path: Path, force: bool) -> Dataset:
    data = find_data(str(path))
    dataset_id = check_id(read_metadata(data)["dataset_id"])
    if data.resolve() == (datasets_root() / dataset_id / "data").resolve():
        raise DatasetError(
            f"{path} is the dataset {dataset_id} itself, expected another place: there is nothing to copy"
        )
    check_can_write(dataset_id, force)
    _check_copyable(data)
    with staging(dataset_id) as stage:
        shutil.copytree(data, stage / "data")
        Dataset(stage / "data")
        publish(stage, dataset_id, force)
    return Dataset(datasets_root() / dataset_id / "data")


def _check_copyable(data: Path) -> None:
    """DatasetError unless the folder has files and folders alone, and room is left for them: a link may lead to any file."""
    size, root = 0, datasets_root()
    for path in data.rglob("*"):
        about = path.lstat()
        if not (stat.S_ISREG(about.st_mode) or stat.S_ISDIR(about.st_mode)):
            raise DatasetError(
                f"{path} is a link, a pipe or a device, expected files and folders alone: nothing was imported; put the file itself there"
            )
        size += about.st_size
    root.mkdir(parents=True, exist_ok=True)
    if size > (free := shutil.disk_usage(root).free):
        raise DatasetError(
            f"{data} has {size / 2**20:,.1f} MiB, expected no more than the {free / 2**20:,.1f} MiB that are free in {root}: nothing was "
            "imported; free some space, or set MINARI_DATASETS_PATH to a folder that has it"
        )


def _from_remote(remote: str, dataset_id: str, force: bool, timeout_s: float) -> Dataset:
    check_can_write(dataset_id, force)
    _fetch(_CHECK_REACHABLE, remote, dataset_id, REACH_S, datasets_root())
    with staging(dataset_id) as stage:
        _fetch(_DOWNLOAD, remote, dataset_id, timeout_s, stage)
        came = Dataset(find_data(str(stage / dataset_id)))
        if came.id != dataset_id:
            raise DatasetError(
                f"the remote's {dataset_id} calls itself {came.id}, expected the same id: nothing was imported; ask for "
                "that id"
            )
        publish(stage / dataset_id, dataset_id, force)
    return Dataset(datasets_root() / dataset_id / "data")


def _split(given: str) -> tuple[str, str]:
    """(remote, id); the remote as ``hf://name``, or "" for Minari's default."""
    scheme, separator, rest = given.partition("://")
    if not separator:
        return "", check_id(given)
    name, _, dataset_id = rest.partition("/")
    return f"{scheme}://{name}", check_id(dataset_id)


def _fetch(code: str, remote: str, dataset_id: str, timeout_s: float, root: Path) -> None:
    words = [sys.executable, "-c", code, remote, dataset_id]
    environment = os.environ | {"MINARI_DATASETS_PATH": str(root)}
    if remote:  # Minari asks its default remote about namespaces, also where an id names another one
        environment["MINARI_REMOTE"] = remote
    where = remote or os.environ.get("MINARI_REMOTE", "Minari's remote")
    try:
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise DatasetError(
            f"{where} did not give {dataset_id} within {timeout_s:.0f} s, expected an answer: nothing was imported; look "
            "at the connection, give more time with --timeout, or download it elsewhere and import the folder"
        ) from error
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["no word"]
        raise DatasetError(
            f"{where} did not give {dataset_id} ({said[-1][:300]}), expected a dataset: nothing was imported; correct the "
            "id, see that the remote can be reached, or download it elsewhere and import the folder"
        )
