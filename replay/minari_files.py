"""A Minari dataset's files, opened without Minari's front door.

``minari.load_dataset`` builds the environment that the metadata names when it finds no spaces (``gym.make`` on an
embedded spec, whose entry point is any function of any module). Here the spaces must be in the metadata and the storage
classes are opened with them: what a file names is never imported. No pickle is read anywhere.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from replay.manifest import read_whole
from replay.stored_episode import DatasetError, EpisodeLayout, Refused, StoredEpisode

METADATA, HDF5 = "metadata.json", "main_data.hdf5"
FORMATS = {"hdf5": "h5py", "arrow": "pyarrow", "parquet": "pyarrow"}  # and what each needs
COLUMNS = ("observations", "actions", "rewards", "terminations", "truncations")
ID = re.compile(r"(?:[-_\w]+/)*[-_\w]+-v\d+")  # as Minari's own: (namespace/)name-vN


def datasets_root() -> Path:
    """Where Minari keeps its datasets: MINARI_DATASETS_PATH, else ~/.minari/datasets."""
    given = os.environ.get("MINARI_DATASETS_PATH")
    return Path(given) if given else Path.home() / ".minari" / "datasets"


def settled(id_or_path: str) -> str:
    """What finds the same dataset after the current directory has changed: an id, or an absolute path; "" stays.

    Makes MINARI_DATASETS_PATH absolute, for this process and those that it starts.
    """
    if given := os.environ.get("MINARI_DATASETS_PATH"):
        os.environ["MINARI_DATASETS_PATH"] = os.path.abspath(given)
    with contextlib.suppress(DatasetError):
        if id_or_path and not find_data(id_or_path).is_relative_to(datasets_root()):
            return str(Path(id_or_path).expanduser().absolute())
    return id_or_path


def check_id(dataset_id: str) -> str:
    """The id, if it is one of Minari's form; else DatasetError."""
    if not ID.fullmatch(dataset_id):
        raise DatasetError(
            f"{dataset_id!r} is no dataset id, expected (namespace/)name-vN of letters of any script, digits, - and _: there is no "
            "folder it could stand for; write for example drawbridge/pointmaze-umaze-d0-v0"
        )
    return dataset_id


def find_data(id_or_path: str) -> Path:
    """The folder that has the dataset's metadata.json: of an id under ``datasets_root``, else of a path."""
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # a name too long, or of no user's home
        if ID.fullmatch(id_or_path) and (found := datasets_root() / id_or_path / "data").is_dir():
            return found
        path = Path(id_or_path).expanduser()
        for folder in (path / "data", path):
            if (folder / METADATA).is_file() or (folder / HDF5).is_file():
                return folder
    near = difflib.get_close_matches(id_or_path, [folder.as_posix() for folder in dataset_folders()], n=3, cutoff=0.5)
    raise DatasetError(
        f"no dataset {id_or_path!r} in {datasets_root()} (nearest: {', '.join(near) or 'none is close'}) and no Minari folder of "
        "that path: there is nothing to read; "
        "`drawbridge dataset list` shows what is there, `drawbridge dataset make` makes one, `drawbridge dataset "
        "import` fetches one"
    )


def dataset_folders() -> Iterator[Path]:
    """Every dataset's folder under ``datasets_root`` relative to it, which is its id, in order."""
    root = datasets_root()
    return (folder.relative_to(root) for folder in _with_data(root))


def _with_data(folder: Path) -> Iterator[Path]:
    """Folders with a ``data`` in them; hidden ones, and what is inside a dataset, are skipped, as Minari does. A link is followed
    to a dataset alone: others may lead in a circle."""
    if not folder.is_dir():
        return
    if (folder / "data").is_dir():
        yield folder
        return
    with contextlib.suppress(PermissionError):
        for path in sorted(folder.iterdir()):
            if not path.name.startswith(".") and (not path.is_symlink() or (path / "data").is_dir()):
                yield from _with_data(path)


def read_metadata(data: Path) -> dict[str, Any]:
    """metadata.json as it is; DatasetError where it is none."""
    _check_version(data)
    try:
        metadata = json.loads(read_whole(data / METADATA))
        if not isinstance(metadata, dict):
            raise ValueError("it is no JSON object")
        json.dumps(metadata, ensure_ascii=False).encode()  # halves of surrogate pairs cannot be printed
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(
            f"{data / METADATA} cannot be read ({error}), expected a dataset's metadata: nothing was read; restore the "
            "file or import the dataset again"
        ) from error
    for key, kind in (("dataset_id", str), ("data_format", str), ("total_episodes", int), ("total_steps", int)):
        value = metadata.get(key)
        if not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, int) and value < 0):
            raise DatasetError(
                f"{data / METADATA} has {key} = {value!r}, expected a {kind.__name__}: this is no complete Minari "
                "dataset; restore the file or import the dataset again"
            )
    return metadata


def _check_version(data: Path) -> None:
    """DatasetError for files of Minari 0.4, which kept the metadata in main_data.hdf5."""
    if (data / METADATA).exists() or not (data / HDF5).is_file():
        return
    with contextlib.suppress(ImportError, OSError):  # other faults are reported where metadata.json is read
        import h5py  # type: ignore[import-untyped]

        with h5py.File(data / HDF5, "r") as file:
            version = file.attrs.get("minari_version", "")
        if version:
            raise DatasetError(
                f"{data} is of Minari {version} and has its metadata in {HDF5}, expected a {METADATA} as Minari 0.5 writes it: "
                "nothing was read; import a later version of the dataset (`drawbridge dataset import ID`), or load it with Minari 0.4 "
                "and write its episodes anew with 0.5"
            )


class RecordedEnv(NamedTuple):
    """The environment that a dataset's metadata names, as text: nothing is built or imported."""

    env_id: str = ""  # "" if none
    entry_point: str = ""  # "": the rest is not known either
    kwargs: dict[str, Any] = {}  # noqa: RUF012  # every argument it was made with, registered ones included
    max_episode_steps: int | None = None
    wrappers: tuple[str, ...] = ()  # names
    doubt: str = ""  # what of the metadata is odd, in words


def recorded_env(metadata: dict[str, Any]) -> RecordedEnv:
    """What the metadata says of the environment to evaluate in: Minari's eval_env_spec, else its env_spec."""
    ours, spec, recorded = (metadata.get(key) for key in ("drawbridge", "eval_env_spec", "env_spec"))
    named = ours.get("env_id") if isinstance(ours, dict) else None
    own = named if isinstance(named, str) else ""
    doubt = (
        "its eval_env_spec is not the env_spec that its episodes come from"
        if spec and recorded not in (None, spec)
        else ""
    )
    if not (spec or recorded):
        return RecordedEnv(own)
    try:
        found = json.loads(spec or recorded or "")
        limit, wrappers = found.get("max_episode_steps"), found.get("additional_wrappers") or ()
        return RecordedEnv(
            env_id=own or str(found.get("id") or ""),
            entry_point=str(found.get("entry_point") or ""),
            kwargs=dict(found.get("kwargs") or {}),
            max_episode_steps=None if limit is None else int(limit),
            wrappers=tuple(str(wrapper["name"]) for wrapper in wrappers),
            doubt=doubt,
        )
    except (TypeError, ValueError, AttributeError, LookupError, RecursionError) as error:
        return RecordedEnv(own, doubt=f"its env_spec cannot be read ({type(error).__name__})")


class EpisodeFiles:
    """The episodes of one dataset's files.

    Args:
        data: folder with metadata.json.
        metadata: what that says.
        shortest: fewest steps of an episode that is read.

    Raises:
        DatasetError: spaces absent or not usable here, unknown format, a missing package, files that cannot be opened.
    """

    def __init__(self, data: Path, metadata: dict[str, Any], shortest: int) -> None:
        self.data, self.name = data, metadata["dataset_id"]
        self.total = metadata["total_episodes"]
        self._format = metadata["data_format"]
        spaces = [_space(metadata, key, self.name) for key in ("observation_space", "action_space")]
        self.layout = EpisodeLayout(spaces[0], spaces[1], self.name, shortest)
        self._storage = self._open(bool(metadata.get("jpeg_encoding", True)))
        self.check_openable()

    def check_openable(self) -> None:
        """DatasetError when the files are not there or not what their format says, as a torn copy is, or hold less than half of it."""
        held = self._held_by_hdf5() if self._format == "hdf5" else self._held_by_folders()
        if self.total > 2 * max(1, held):
            raise DatasetError(
                f"{self.name} has {self.total:,} episodes by its metadata and {held:,} in its files, expected as many: most of it is missing, "
                "nothing was read; import or make the dataset again"
            )

    def _held_by_folders(self) -> int:
        return sum(path.name.isdecimal() for path in self.data.iterdir())

    def _held_by_hdf5(self) -> int:
        import h5py

        path = self.data / HDF5
        try:
            if path.exists() and not path.is_file():
                raise OSError("it is no file")
            with h5py.File(path, "r") as file:
                return len(file)
        except OSError as error:
            raise DatasetError(
                f"{path} cannot be opened ({error}), expected an HDF5 file: it is cut off or damaged, nothing was read; "
                "import or make the dataset again"
            ) from error

    def read(self, index: int) -> StoredEpisode:
        """One episode; Refused, with the reason, where it is damaged or of no use."""
        try:
            raw = self._arrow(index) if self._format != "hdf5" else next(iter(self._storage.get_episodes([index])))
            (about,) = self._storage.get_episode_metadata([index])
            steps = about.get("total_steps")
            return self.layout.episode(index, raw, None if steps is None else int(steps))
        except (Refused, MemoryError):
            raise
        except Exception as error:  # whatever h5py, pyarrow or Minari makes of damaged bytes
            raise Refused("unreadable") from error

    def _arrow(self, index: int) -> dict[str, Any]:
        """As Minari's ArrowStorage.get_episodes, which fails on some infos and takes the first batch of a long episode."""
        from minari.dataset._storages.arrow_storage import _decode_space
        from pyarrow import dataset

        skipped = ["_", ".", METADATA]
        part = dataset.dataset(self.data / str(index), format=self._format, ignore_prefixes=skipped)
        table = part.to_table(list(COLUMNS))
        columns = {name: table[name].combine_chunks() for name in COLUMNS}
        for name in COLUMNS[1:]:
            columns[name] = columns[name][:-1]  # they are padded to the observations' length
        layout, jpeg_encoding = self.layout, self._storage.jpeg_encoding
        decoded = {name: np.asarray(columns[name]) for name in COLUMNS[2:]}
        decoded["observations"] = _decode_space(layout.obs_space, columns["observations"], jpeg_encoding)
        decoded["actions"] = _decode_space(layout.action_space, columns["actions"], jpeg_encoding)
        return decoded

    def _open(self, jpeg_encoding: bool) -> Any:
        if self._format not in FORMATS:
            raise DatasetError(
                f"{self.name} has the format {self._format!r}, expected one of {', '.join(FORMATS)}: it cannot be read; "
                "convert it with Minari"
            )
        try:
            from minari.dataset._storages import get_minari_storage

            storage = get_minari_storage(self._format)
        except ImportError as error:
            raise missing(FORMATS[self._format], f"{self.name} is stored as {self._format}") from error
        try:
            return storage(self.data, self.layout.obs_space, self.layout.action_space, jpeg_encoding=jpeg_encoding)
        except ValueError as error:
            raise DatasetError(
                f"{self.name} has no data beside its metadata ({error}), expected {self._format} files: nothing was "
                "read; import or make the dataset again"
            ) from error


def missing(package: str, why: str) -> DatasetError:
    """The error of a package that is not installed."""
    return DatasetError(
        f"{why}, which needs {package}, and that is not installed: nothing was read or written; pip install {package}"
    )


def _space(metadata: dict[str, Any], key: str, name: str) -> gym.Space:
    given = metadata.get(key)
    if given is None:
        raise DatasetError(
            f"{name} has no {key} in its metadata, expected one: Minari would build the environment "
            f"{recorded_env(metadata).env_id!r} "
            "to ask it, which runs whatever code the metadata names, so it is not done here; add the space to "
            f"{METADATA} as docs/datasets.md shows"
        )
    try:
        from minari.serialization import deserialize_space

        return deserialize_space(given)
    except Exception as error:  # a space is data; any failure means that it is none
        raise DatasetError(
            f"{name} has an {key} that cannot be read ({type(error).__name__}: {error}), expected a serialised Gymnasium "
            "space: nothing was read; restore the metadata or import the dataset again"
        ) from error
