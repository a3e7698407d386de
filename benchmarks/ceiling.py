"""The ceiling of a plan: how much of the planner's actions an oracle explains that is told where the planner is going.

    python benchmarks/ceiling.py drawbridge/pointmaze-umaze-d0-v0 drawbridge/pointmaze-medium-d0-v0

Episodes are made by each dataset's recipe, with the planner's target beside every step. One regression for each kind of
knowledge, told the state and its Fourier features as GAC is; shares of the variance of the actions of other episodes.
A target is told as the way to the centre of the next cell towards it. "Shares of targets" is what a plan without a clock can
know of them: that way, averaged over all targets of the episode. The score is of the oracle that is told the goal's cell as
its target. Letters: N steps, E episodes, T steps of one, K free cells, A, X.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from algorithms.fourier import append_fourier, octaves
from algorithms.gac.regression import regression
from benchmarks.markdown import table
from replay.dataset import Dataset, open_dataset
from rollout_workers.episodes import EpisodeRuns
from rollout_workers.maze import Maze, maze_of
from rollout_workers.waypoints import D_GAIN, P_GAIN, WaypointPlanner

TRAIN, HELD_OUT = 500, 100  # episodes
UPDATES, BATCH, PAST = 4_000, 1_024, 8  # of a regression; PAST: steps of history
LEVELS = 10  # of the return; its exact value would give each episode away
STARTS = (10_000, 100)  # (first seed, episodes) that the oracle acts from


class Recorded(WaypointPlanner):
    """Remembers where it was going at every step, and the mean of its actions over its noise."""

    def begin(self, *args: Any) -> Any:
        self.targets: list[np.ndarray] = []
        self.means: list[np.ndarray] = []
        self._rng = np.random.default_rng(0)
        return super().begin(*args)

    def act(self, obs_EO: np.ndarray, reward_E: np.ndarray | None = None) -> np.ndarray:
        action_EA = super().act(obs_EO, reward_E)
        force_EA = P_GAIN * (self._maze.centre_K2[self._waypoint_E] - obs_EO[:, :2]) + D_GAIN * obs_EO[:, 2:4]
        noisy = force_EA + self._deviation * self._rng.standard_normal((64, *force_EA.shape))
        self.means.append(np.clip(noisy, -1.0, 1.0).mean(0))
        self.targets.append(self.target_E.copy())
        return action_EA


class Informed:
    """Actions by state and knowledge: a regression that has learned these."""

    def __init__(self, obs_NO: torch.Tensor, knowledge_NX: torch.Tensor, action_NA: torch.Tensor) -> None:
        self.mean_O, self.std_O, self.octave = obs_NO.mean(0), obs_NO.std(0), octaves(4)
        self.regression = regression(self._seen(obs_NO, knowledge_NX), action_NA, updates=UPDATES, batch=BATCH)

    def __call__(self, obs_NO: torch.Tensor, knowledge_NX: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.regression(self._seen(obs_NO, knowledge_NX))
        return made

    def _seen(self, obs_NO: torch.Tensor, knowledge_NX: torch.Tensor) -> torch.Tensor:
        seen_NX = append_fourier((obs_NO - self.mean_O) / self.std_O, obs_NO, 2, self.octave)
        return torch.cat([seen_NX, knowledge_NX], 1)


class Oracle:
    """Acts by a regression that is told one target for good."""

    def __init__(self, informed: Informed, maze: Maze, target: int) -> None:
        self.informed, self.maze, self.target = informed, maze, target

    def reset(self, num_envs: int) -> None: ...

    def begin(self, *_: Any) -> list[Any]:
        return []

    @torch.inference_mode()
    def act(self, obs_EO: np.ndarray, reward_E: np.ndarray) -> np.ndarray:
        knowledge = torch.from_numpy(ways(self.maze, obs_EO)[:, self.target])
        return self.informed(torch.from_numpy(np.asarray(obs_EO, np.float32)), knowledge).numpy()


def ways(maze: Maze, obs_NO: np.ndarray) -> np.ndarray:
    """(N, K, 2) float32, m: from each position to the centre of the next cell towards every target."""
    onward_NK = maze.next_KK[maze.cells_of(obs_NO[:, :2])]
    return (maze.centre_K2[onward_NK] - obs_NO[:, None, :2]).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+")
    names = parser.parse_args().datasets
    torch.set_num_threads(1)
    columns = [ceiling(open_dataset(name)) for name in names]
    rows = [[row, *(column[row] for column in columns)] for row in columns[0]]
    print(table(["", *names], rows))


def ceiling(dataset: Dataset) -> dict[str, str]:
    """Cells by the names of their rows."""
    maze = maze_of(dataset.env_id)
    assert maze is not None
    data = recorded(dataset, maze)
    cut = TRAIN * (len(data["obs"]) // (TRAIN + HELD_OUT))
    informed, shares = {}, {}
    for name, parts in {
        "the state": (),
        f"and {PAST} steps of the past": ("past",),
        "and the return": ("return",),
        "and shares of targets": ("shares",),
        "and the target": ("target",),
        "and the past and the target": ("past", "target"),
    }.items():
        knowledge = torch.cat([data["obs"][:, :0], *(data[part] for part in parts)], 1)
        informed[name] = Informed(data["obs"][:cut], knowledge[:cut], data["action"][:cut])
        pairs = zip(data["obs"][cut:].split(8_192), knowledge[cut:].split(8_192))
        predicted = torch.cat([informed[name](*pair) for pair in pairs])
        shares[name] = explained(data["action"][cut:], predicted)
    shares["all but the planner's noise"] = explained(data["action"][cut:], data["mean"][cut:])
    assert maze.goal_cell is not None
    goal = maze.index_of(maze.goal_cell)
    streams = np.random.SeedSequence(0).spawn(STARTS[1])
    with contextlib.closing(EpisodeRuns(dataset.env_id)) as runs:
        reached = runs.mean_return(Oracle(informed["and the target"], maze, goal), STARTS[0], streams)
    cells = {name: f"{share:.3f}" for name, share in shares.items()}
    return cells | {"score of the oracle that is told the goal": f"{dataset.normalised(reached):.1f}"}


def recorded(dataset: Dataset, maze: Maze) -> dict[str, torch.Tensor]:
    """Episodes of the dataset's recipe, all of one length, one after the other: (N, ...) float32."""
    about = dataset.description
    planner = Recorded(maze, noise=about["noise"], dwell=about["dwell"])
    count = TRAIN + HELD_OUT
    runs = EpisodeRuns(dataset.env_id)
    streams = np.random.SeedSequence(7).spawn(count)
    made = [one for one in runs.run(planner, [500_000 + i for i in range(count)], streams) if one is not None]
    runs.close()
    obs_ETO = np.stack([one.obs_TO for one in made])
    target_ET = np.stack(planner.targets, 1)
    share_EK = np.eye(len(maze.free_K2), dtype=np.float32)[target_ET].mean(1)
    way_ETK2 = ways(maze, obs_ETO.reshape(-1, obs_ETO.shape[-1])).reshape(*target_ET.shape, -1, 2)
    before = [np.concatenate([obs_ETO[:, :1].repeat(k, 1), obs_ETO[:, :-k]], 1) - obs_ETO for k in range(1, PAST + 1)]
    return_E = np.array([one.reward_T.sum() for one in made])
    level_E = return_E.argsort().argsort() * LEVELS // len(return_E) / LEVELS
    parts = {
        "obs": obs_ETO,
        "action": np.stack([one.action_TA for one in made]),
        "mean": np.stack(planner.means, 1),
        "target": np.take_along_axis(way_ETK2, target_ET[..., None, None], 2)[:, :, 0],
        "past": np.concatenate(before, -1),
        "shares": np.einsum("etkx,ek->etx", way_ETK2, share_EK),
        "return": np.broadcast_to(level_E[:, None, None], (*target_ET.shape, 1)),
    }
    return {name: torch.from_numpy(part.reshape(-1, part.shape[-1]).astype(np.float32)) for name, part in parts.items()}


def explained(action_NA: torch.Tensor, predicted_NA: torch.Tensor) -> float:
    """Share of the actions' variance."""
    total = (action_NA - action_NA.mean(0)).square().sum()
    return float(1.0 - (action_NA - predicted_NA).square().sum() / total)


if __name__ == "__main__":
    main()
