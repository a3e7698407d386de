"""New Minari datasets, written as their episodes come and put in place in one step.

A dataset is written in a hidden folder beside the others (Minari's own listing passes over it), synced to the disk and
renamed: under its id it is whole or not there. One process at a time writes an id; what a killed one left is
removed by the next that writes that id.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from replay.manifest import fsync_directory
from replay.minari_files import METADATA, check_id, datasets_root, missing
from replay.stored_episode import DatasetError, EpisodeLayout, StoredEpisode, check_episode

STAGING = ".drawbridge"  # folder in Minari's root for what is not whole yet
NAMESPACE = "namespace_metadata.json"  # Minari's mark of a folder of datasets


def write_files(
    dataset_id: str,
    episodes: Iterable[StoredEpisode],
    *,
    env_id: str,
    action_low_A: np.ndarray,
    action_high_A: np.ndarray,
    env_spec: EnvSpec | None = None,
    random_return: float | None = None,
    expert_return: float | None = None,
    reference_episodes: int = 100,
    expert: str = "",
    description: Mapping[str, Any] | None = None,
    algorithm_name: str = "",
    force: bool = False,
) -> Path:
    """Writes an HDF5 dataset that ``minari.load_dataset`` reads; one episode is in memory at a time.

    Args:
        dataset_id: (namespace/)name-vN.
        episodes: consumed once; those of no steps are left out. Their ``index`` is not kept: a dataset counts
            from 0.
        env_id: of the environment; ``env_spec``: its registration, for Minari's ``recover_environment``.
        action_low_A, action_high_A: the environment's action box, float: actions are stored in it.
        random_return, expert_return, reference_episodes: Minari's ref_min_score, ref_max_score and how many episodes each
            is a mean of.
        expert: who ``expert_return`` was measured with.
        description: how the dataset was made, JSON-able.
        algorithm_name: who acted.
        force: replace a dataset of this id.

    Returns: the folder with metadata.json.

    Raises:
        DatasetError: the id exists or is malformed, another process writes it, no episode came, an episode has other
            shapes or values that are not finite. Nothing is left and an older dataset is as it was.
        OSError: the disk is full or cannot be written; as above.
    """
    check_can_write(dataset_id, force)
    with staging(dataset_id) as stage:
        data = stage / "data"
        stream = _checked(episodes, len(action_low_A), dataset_id)
        first = next(stream, None)
        if first is None:
            raise DatasetError(
                f"no episode of any steps came for {dataset_id}, expected some: nothing was written; ask "
                "for more episodes"
            )
        layout = EpisodeLayout(
            gym.spaces.Box(-np.inf, np.inf, (len(first.next_obs_O),), np.float32),
            gym.spaces.Box(np.asarray(action_low_A, np.float32), np.asarray(action_high_A, np.float32)),
            dataset_id,
        )
        storage = _new_storage(data, layout, _as_text(env_spec or EnvSpec(env_id)))
        storage.update_episodes(_buffer(episode, layout) for episode in _chain(first, stream))
        about = {"env_id": env_id, "expert": expert, "description": dict(description or {})}
        storage.update_metadata(
            _minari_fields(dataset_id, algorithm_name, random_return, expert_return, reference_episodes)
            | {"drawbridge": about}
        )
        publish(stage, dataset_id, force)
    return datasets_root() / dataset_id / "data"


def check_can_write(dataset_id: str, force: bool) -> None:
    """DatasetError unless a dataset of this id could be written now: asked before episodes are collected. Writes nothing."""
    _check_free(dataset_id, force)
    base = datasets_root() / STAGING
    if (base / f"{_slug(dataset_id)}.lock").exists():
        with _locked(dataset_id):
            return
    there = next(path for path in (base, *base.parents) if os.path.lexists(path))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise _unwritable(base, "it is read-only" if there.is_dir() else f"{there} is no folder")


def _unwritable(base: Path, why: str | None) -> DatasetError:
    return DatasetError(
        f"{base} cannot be written to ({why}), expected a folder for datasets: nothing was written; let this user write there, or set "
        "MINARI_DATASETS_PATH to another folder"
    )


def _check_free(dataset_id: str, force: bool) -> None:
    target = datasets_root() / check_id(dataset_id)
    if not target.exists():
        return
    if not (target / "data" / METADATA).is_file():
        raise DatasetError(
            f"{target} is there and is no dataset, expected nothing or one to replace: it is left as it is; choose another id"
        )
    if not force:
        raise DatasetError(
            f"the dataset {dataset_id} exists in {datasets_root()}, expected a new id: it is left as it is; add --force "
            "to replace it, or choose another id (an import keeps its own)"
        )


@contextlib.contextmanager
def _locked(dataset_id: str) -> Iterator[None]:
    """Holds the id's lock; DatasetError where another process does, or nothing can be written."""
    base = datasets_root() / STAGING
    with contextlib.ExitStack() as stack:
        try:
            base.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(base / f"{_slug(dataset_id)}.lock", "w"))
        except OSError as error:
            raise _unwritable(base, error.strerror) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DatasetError(
                f"another process is writing {dataset_id}, expected one at a time: nothing was written; wait for it, or "
                "choose another id"
            ) from error
        yield


@contextlib.contextmanager
def staging(dataset_id: str) -> Iterator[Path]:
    """An empty folder for a dataset that is being written, on the disk of the others; gone at the end."""
    base, name = datasets_root() / STAGING, _slug(dataset_id)
    with _locked(dataset_id):
        old, target = base / f"{name}.old", datasets_root() / dataset_id
        if old.exists() and not target.exists():  # a writer was killed between the two renames of ``publish``
            os.rename(old, target)
        stage = base / name
        shutil.rmtree(stage, ignore_errors=True)  # of a writer that was killed
        stage.mkdir()
        try:
            yield stage
        finally:
            shutil.rmtree(stage, ignore_errors=True)


def publish(folder: Path, dataset_id: str, force: bool) -> None:
    """Puts ``folder``, made inside ``staging``, in place of the id, synced; an older dataset goes when the new one is there."""
    _sync(folder)
    _check_free(dataset_id, force)
    root, target = datasets_root(), datasets_root() / dataset_id
    for parent in reversed(target.relative_to(root).parents[:-1]):
        (root / parent).mkdir(exist_ok=True)
        if not (root / parent / NAMESPACE).exists():
            (root / parent / NAMESPACE).write_text("{}")
    old = root / STAGING / f"{_slug(dataset_id)}.old"
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.rename(target, old)
    try:
        os.rename(folder, target)
    except OSError:
        if old.exists():
            os.rename(old, target)
        raise
    fsync_directory(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _slug(dataset_id: str) -> str:
    return check_id(dataset_id).replace("/", "--")


def _as_text(spec: EnvSpec) -> EnvSpec:
    """The registration without what JSON cannot hold: a class or a function is its name, an argument that is no JSON is left out."""
    named: dict[str, Any] = {
        field: f"{getattr(entry, '__module__', '')}:{getattr(entry, '__qualname__', type(entry).__name__)}"
        for field in ("entry_point", "vector_entry_point")
        if callable(entry := getattr(spec, field))
    }
    return dataclasses.replace(spec, kwargs={key: v for key, v in spec.kwargs.items() if _is_json(v)}, **named)


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _new_storage(data: Path, layout: EpisodeLayout, env_spec: EnvSpec) -> Any:
    try:
        from minari.dataset._storages import get_minari_storage
        from minari.dataset.minari_storage import MinariStorage

        get_minari_storage("hdf5")
    except ImportError as error:
        raise missing("h5py", f"datasets are written as HDF5 (here {data})") from error
    return MinariStorage.new(data, layout.obs_space, layout.action_space, env_spec, "hdf5")


def _minari_fields(
    dataset_id: str, algorithm_name: str, low: float | None, high: float | None, episodes: int
) -> dict[str, Any]:
    from minari import __version__

    fields: dict[str, Any] = {
        "dataset_id": dataset_id,
        "minari_version": __version__,
        "algorithm_name": algorithm_name,
        "author": {"drawbridge"},
        "description": "Made by drawbridge; its recipe is in the field drawbridge.",
    }
    if low is not None and high is not None:
        fields |= {"ref_min_score": low, "ref_max_score": high, "num_episodes_average_score": episodes}
    return fields


def _checked(episodes: Iterable[StoredEpisode], action_dim: int, dataset_id: str) -> Iterator[StoredEpisode]:
    obs_dim = None
    for episode in episodes:
        obs_dim = len(episode.next_obs_O) if obs_dim is None else obs_dim
        check_episode(episode, obs_dim, action_dim)
        if len(episode.reward_T):
            yield episode


def _chain(first: StoredEpisode, others: Iterator[StoredEpisode]) -> Iterator[StoredEpisode]:
    yield first
    yield from others


def _buffer(episode: StoredEpisode, layout: EpisodeLayout) -> Any:
    from minari.data_collector.episode_buffer import EpisodeBuffer

    steps = len(episode.reward_T)
    ends = np.arange(steps) == steps - 1
    return EpisodeBuffer(
        observations=np.concatenate([episode.obs_TO, episode.next_obs_O[None]]).astype(np.float32),
        actions=layout.boxed(episode.action_TA),
        rewards=np.asarray(episode.reward_T, np.float64),
        terminations=ends & episode.terminated,
        truncations=ends & episode.truncated,
    )


def _sync(folder: Path) -> None:
    """Waits until the disk has every file of ``folder`` and their names."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir():
            fsync_directory(path)
        else:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    fsync_directory(folder)
