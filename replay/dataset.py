"""Minari datasets on disk, as streams of whole episodes.

Letters: T steps, O observation dim, A action dim, X dim of what statistics are of.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from replay.dataset_writer import write_files
from replay.minari_files import EpisodeFiles, dataset_folders, datasets_root, find_data, read_metadata, recorded_env
from replay.schema import DataSummary
from replay.stored_episode import DatasetError, Refused, StoredEpisode
from replay.task import name_of

__all__ = [
    "Dataset",
    "DatasetError",
    "DatasetRow",
    "StoredEpisode",
    "check_against",
    "list_datasets",
    "open_dataset",
    "summarise",
    "write_dataset",
]
# Mean returns of a random policy and of the expert by which D4RL's scores are normalised, and the task that they are of. Source:
# d4rl/infos.py, github.com/Farama-Foundation/D4RL. Mazes go by the dataset's id, because their tasks differ from PointMaze's.
D4RL_REFERENCES = {
    "maze2d-umaze": (23.85, 161.86, "maze2d-umaze-v1"),
    "maze2d-medium": (13.13, 277.39, "maze2d-medium-v1"),
    "maze2d-large": (6.7, 273.99, "maze2d-large-v1"),
    "Hopper": (-20.272305, 3234.3, "Hopper-v2"),
    "HalfCheetah": (-280.178953, 12135.0, "HalfCheetah-v2"),
    "Walker2d": (1.629008, 4592.3, "Walker2d-v2"),
}
LEAST_STD = 1e-3  # of observations and actions in statistics: a constant coordinate is not blown up
LEAST_RETURN_STD = 1e-6


class Dataset:
    """A dataset that can be read here. Made by ``open_dataset``.

    Attributes:
        id, path: of the dataset; ``path`` is the folder with metadata.json and the data.
        env: the environment it was recorded in, as its metadata says. env_id: its id; "" where it does not say.
        obs_dim, action_dim: of its episodes as vectors; Dicts are flattened in the order of sorted keys.
        total_episodes, total_steps: as the metadata says, the refused ones included.
        random_return, expert_return: mean returns of the two references, Minari's ref_min_score and ref_max_score; of a dataset
            without them, or whose expert is not above random, D4RL's where D4RL has them for its task, else None.
        expert: who the expert is: "planner", "softgac run X", "D4RL's expert of Hopper-v2", or "".
        description: how it was made (command, noise, dwell, seed, ...); {"text": ...} for datasets made elsewhere.
        metadata_digest: BLAKE2b of its metadata, which say how it was made: another one after it is made anew otherwise.
    """

    def __init__(self, data: Path, shortest: int = 1) -> None:
        metadata = read_metadata(data)
        ours = metadata.get("drawbridge")
        ours = ours if isinstance(ours, dict) else {}
        text = metadata.get("description")
        self.id: str = metadata["dataset_id"]
        self.path = data
        self.env = recorded_env(metadata)
        self.env_id = self.env.env_id
        self.total_episodes: int = metadata["total_episodes"]
        self.total_steps: int = metadata["total_steps"]
        self.random_return = _finite(metadata.get("ref_min_score"))
        self.expert_return = _finite(metadata.get("ref_max_score"))
        if not in_order(self.random_return, self.expert_return):
            self.random_return = self.expert_return = None
        self.expert: str = str(ours.get("expert", ""))
        if (
            self.random_return is None
            and self.expert_return is None
            and (published := _published(self.id, self.env_id))
        ):
            self.random_return, self.expert_return, task = published
            self.expert = f"D4RL's expert of {task}"
        made = ours.get("description")
        self.description: dict[str, Any] = made if isinstance(made, dict) and made else {"text": text} if text else {}
        self.metadata_digest = hashlib.blake2b(
            json.dumps(metadata, sort_keys=True).encode(), digest_size=16
        ).hexdigest()
        self._files = EpisodeFiles(data, metadata, shortest)
        self._refused: dict[int, str] = {}
        self._summary: DataSummary | None = None
        if not self.total_episodes:
            raise DatasetError(
                f"{self.id} has no episodes, expected some: nothing can be learned from it; choose another"
            )

    @property
    def obs_dim(self) -> int:
        return self._files.layout.obs_dim

    @property
    def action_dim(self) -> int:
        return self._files.layout.action_dim

    @property
    def action_bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bounds (A,) of the box that actions were recorded in, float64."""
        return self._files.layout.action_bounds

    def columns(self, key: str) -> slice | None:
        """Where the part ``key`` of Dict observations stands in an episode's; None where there is no such part."""
        return self._files.layout.columns(key)

    def goals_vary(self) -> bool:
        """Whether observations name a goal (desired_goal) that is not the same in all of them. Reads the dataset."""
        goal = self.columns("desired_goal")
        return goal is not None and bool((self.summary().obs_std_O[goal] > LEAST_STD).any())

    @property
    def refused(self) -> dict[str, list[int]]:
        """Indices of the episodes that were refused so far, by reason: all of them once every episode was read."""
        reasons: dict[str, list[int]] = {}
        for index in sorted(self._refused):
            reasons.setdefault(self._refused[index], []).append(index)
        return reasons

    @property
    def clipped_steps(self) -> int:
        """Steps read so far, repeats included, whose action lay outside the action box and was clipped to it."""
        return self._files.layout.clipped

    def episodes(self, indices: Iterable[int] | None = None) -> Iterator[StoredEpisode]:
        """Streams episodes from the disk, in the order of ``indices`` (default: all); refused ones are left out.

        Raises:
            DatasetError: an index outside the dataset, files that are gone, or not one episode of all could be read.
        """
        self._files.check_openable()
        given = 0
        for index in range(self.total_episodes) if indices is None else indices:
            if not 0 <= index < self.total_episodes:
                raise DatasetError(
                    f"{self.id} was asked for episode {index}, expected 0 to {self.total_episodes - 1}: there is no "
                    "such episode; give indices of this dataset"
                )
            try:
                episode = self._files.read(int(index))
            except Refused as refusal:
                self._refused[int(index)] = str(refusal)
                continue
            given += 1
            yield episode
        if indices is None and not given:
            counts = ", ".join(f"{len(found)} {reason}" for reason, found in self.refused.items())
            raise DatasetError(
                f"every episode of {self.id} was refused ({counts}), expected some that can be read: nothing can be "
                "learned from it; import or make the dataset again"
            )

    def summary(self) -> DataSummary:
        """Statistics of the episodes that can be read: one pass over the dataset at the first call, then from memory."""
        if self._summary is None:
            self._summary = summarise(self.episodes())
        return self._summary

    def normalised(self, value: float) -> float | None:
        """100 (value - random) / (expert - random), as D4RL's scores; None without two references."""
        if self.random_return is None or self.expert_return is None:
            return None
        return 100.0 * (value - self.random_return) / (self.expert_return - self.random_return)


def in_order(random_return: float | None, expert_return: float | None) -> bool:
    """Whether scores between these references rise with the return; True where one is missing, and there are none."""
    return random_return is None or expert_return is None or expert_return > random_return


def open_dataset(id_or_path: str | Path, shortest: int = 1) -> Dataset:
    """A dataset under Minari's root by its id, or by the path of its folder. No environment is built.

    Episodes of fewer than ``shortest`` steps are refused.

    Raises:
        DatasetError: there is none, it is empty or damaged, its spaces are absent or cannot be used here, h5py is missing.
    """
    return Dataset(find_data(str(id_or_path)), shortest)


def write_dataset(dataset_id: str, episodes: Iterable[StoredEpisode], **about: Any) -> Dataset:
    """Writes episodes as they come as a new dataset, which exists whole or not at all; see ``dataset_writer.write_files``
    for ``about``: env_id, action_low_A, action_high_A, references, description, force."""
    return Dataset(write_files(dataset_id, episodes, **about))


def check_against(
    dataset: Dataset,
    env_id: str,
    obs_dim: int,
    low_A: np.ndarray,
    high_A: np.ndarray,
    choose: str = "choose the dataset or --env",
) -> None:
    """DatasetError unless a model of the dataset could act in ``env_id``: shapes and action boxes decide, not the ids.

    Args:
        env_id, obs_dim, low_A, high_A: of the run's environment; the bounds are those of its action box.
        choose: what the command line lets a user choose, for the fix.
    """
    sides = (
        f"{dataset.id} is of {dataset.env_id or 'an environment it does not name'} (observations of {dataset.obs_dim}, "
        f"actions of {dataset.action_dim} numbers), expected {env_id} (observations of {obs_dim}, actions of {len(low_A)})"
    )
    if (dataset.obs_dim, dataset.action_dim) != (obs_dim, len(low_A)):
        raise DatasetError(f"{sides}: a model of one cannot act in the other; {choose} so that the shapes agree")
    recorded = dataset.action_bounds
    if not np.allclose(recorded, (low_A, high_A), rtol=1e-4, atol=1e-6):
        boxes = [f"{low.tolist()} to {high.tolist()}" for low, high in (recorded, (low_A, high_A))]
        raise DatasetError(
            f"{dataset.id} has actions from {boxes[0]}, expected {boxes[1]} as in {env_id}: the same action would be another one "
            f"there; {choose} so that the action boxes agree"
        )


class DatasetRow(NamedTuple):
    """What ``list_datasets`` says of one dataset, from its metadata alone."""

    id: str
    env_id: str
    episodes: int
    steps: int
    bytes: int
    problem: str  # "" when the metadata can be read


def list_datasets() -> list[DatasetRow]:
    """Every dataset under Minari's root, by id; a damaged one has its problem in its row."""
    root = datasets_root()
    return [_row(root / folder / "data", folder.as_posix()) for folder in dataset_folders()]


def _row(data: Path, place: str) -> DatasetRow:
    size = sum(path.stat().st_size for path in data.rglob("*") if path.is_file())
    try:
        metadata = read_metadata(data)
    except DatasetError as error:
        return DatasetRow(place, "", 0, 0, size, str(error))
    other = metadata["dataset_id"] != place
    problem = f"its metadata calls it {metadata['dataset_id']}" if other else ""
    episodes, steps = metadata["total_episodes"], metadata["total_steps"]
    return DatasetRow(place, recorded_env(metadata).env_id, episodes, steps, size, problem)


def _published(dataset_id: str, env_id: str) -> tuple[float, float, str] | None:
    """D4RL's references for a dataset of one of its tasks."""
    maze = re.search(r"maze2d-(umaze|medium|large)-v\d+$", dataset_id)
    name = maze[0].rsplit("-", 1)[0] if maze else re.sub(r"-v\d+$", "", name_of(env_id))
    return D4RL_REFERENCES.get(name)


def _finite(value: Any) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and math.isfinite(value) else None


class Moments:
    """Mean and variance of rows that come in batches, in float64 (Chan et al. 1979: no sum of squares that cancels)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean_X: np.ndarray = np.zeros(())
        self._squares_X: np.ndarray = np.zeros(())

    def add(self, rows_TX: np.ndarray) -> None:
        """Takes T >= 1 more rows."""
        rows_TX = rows_TX.astype(np.float64)
        count, mean_X = len(rows_TX), rows_TX.mean(axis=0)
        delta_X, total = mean_X - self.mean_X, self.count + count
        self._squares_X = self._squares_X + ((rows_TX - mean_X) ** 2).sum(axis=0)
        self._squares_X = self._squares_X + delta_X**2 * (self.count * count / total)
        self.mean_X = self.mean_X + delta_X * (count / total)
        self.count = total

    def std(self, least: float) -> np.ndarray:
        """Of the rows so far (divided by their number), at least ``least``."""
        return np.maximum(np.sqrt(self._squares_X / self.count), least)


def summarise(episodes: Iterable[StoredEpisode]) -> DataSummary:
    """Statistics of at least one episode. Observations are those that an action answered: the last one is not counted."""
    obs, action = Moments(), Moments()
    returns, lengths = [], []
    for episode in episodes:
        obs.add(episode.obs_TO)
        action.add(episode.action_TA)
        returns.append(float(episode.reward_T.sum()))
        lengths.append(len(episode.reward_T))
    return_N = np.array(returns)
    return DataSummary(
        obs_mean_O=obs.mean_X,
        obs_std_O=obs.std(LEAST_STD),
        action_mean_A=action.mean_X,
        action_std_A=action.std(LEAST_STD),
        return_mean=float(return_N.mean()),
        return_std=max(float(return_N.std()), LEAST_RETURN_STD),
        return_min=float(return_N.min()),
        return_max=float(return_N.max()),
        return_quantiles=tuple(np.percentile(return_N, np.arange(101)).tolist()),
        max_length=max(lengths),
        episodes=len(lengths),
        steps=sum(lengths),
    )
