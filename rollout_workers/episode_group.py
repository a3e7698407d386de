"""Episodes that run side by side in an evaluation, one an environment.

Letters: E environments (one an episode), O observation dim.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from replay.trajectories import EpisodeMetadata
from rollout_workers.env import StepResult
from rollout_workers.maze import MazePaths


class EpisodeGroup:
    """The episodes of one group: who still runs, and what the others gave."""

    def __init__(self, seeds: list[int]) -> None:
        self.seeds = seeds
        self.return_E = np.zeros(len(seeds))
        self.length_E = np.zeros(len(seeds), np.int64)
        self.running_E = np.ones(len(seeds), bool)
        self.broken_E = np.zeros(len(seeds), bool)
        self.errors: list[str] = []
        self.stamps: list[EpisodeMetadata] = []
        self.paths: MazePaths | None = None

    def begin(self, stamps: list[EpisodeMetadata], paths: MazePaths | None) -> None:
        """Takes what the episodes were begun with: a stamp each where the policy plans."""
        self.stamps, self.paths = stamps, paths

    def finished(self) -> dict[str, list[Any]]:
        """The lists of an Evaluation, over the episodes that ended by themselves."""
        whole = np.flatnonzero(~self.broken_E).tolist()
        lists: dict[str, list[Any]] = {
            "returns": self.return_E[whole].tolist(),
            "lengths": self.length_E[whole].tolist(),
        }
        if self.stamps:
            lists["predicted"] = [float(self.stamps[e].predicted) for e in whole]
            lists["variance"] = [float(self.stamps[e].variance) for e in whole]
        if self.paths is not None:
            lists["path_length"] = self.paths.length_E[whole].tolist()
            lists["shortest_path"] = self.paths.shortest_E[whole].tolist()
            lists["reached"] = self.paths.reached_E[whole].tolist()
            lists["starts_in_goal"] = self.paths.starts_in_goal_E[whole].tolist()
            if self.paths.recorded:
                lists["paths"] = [self.paths.positions(e, int(self.length_E[e])) for e in whole]
        return lists

    def refuse_observations(self, obs_EO: np.ndarray) -> np.ndarray:
        """Ends the running episodes whose observation is not finite; the environments (E,) that need a reset."""
        bad_E = ~np.isfinite(obs_EO).all(axis=1)
        self._end_broken(bad_E, "a non-finite observation")
        return bad_E

    def add(self, step: StepResult) -> np.ndarray:
        """Counts one step of the running episodes; the environments (E,) that need a reset."""
        counted_E = self.running_E & step.valid_E
        self.length_E[counted_E] += 1
        self._end_broken(~np.isfinite(step.next_obs_EO).all(axis=1) & counted_E, "a non-finite observation")
        self._end_broken(~np.isfinite(step.reward_E) & counted_E, "a non-finite reward")
        counted_E &= self.running_E
        self.return_E[counted_E] += step.reward_E[counted_E]
        if self.paths is not None:
            self.paths.add(counted_E, self.length_E, step.next_obs_EO, step.reward_E)
        self.running_E &= ~(counted_E & (step.terminated_E | step.truncated_E))
        return self.refuse_observations(step.obs_EO)

    def _end_broken(self, bad_E: np.ndarray, what: str) -> None:
        for e in np.flatnonzero(bad_E & self.running_E):
            self.errors.append(f"episode with seed {self.seeds[e]}: {what} after {self.length_E[e]} steps")
            self.broken_E[e] = True
        self.running_E &= ~bad_E


def asked(stamps: list[EpisodeMetadata]) -> dict[str, Any]:
    """``Evaluation.mode`` and ``target`` of all the episodes: one mode, and the mean of their targets."""
    if not stamps:
        return {}
    targets = [stamp.target for stamp in stamps if math.isfinite(stamp.target)]
    return {"mode": stamps[0].mode, "target": float(np.mean(targets)) if targets else None}


def joined(groups: list[dict[str, list[Any]]]) -> dict[str, Any]:
    """The groups' lists of an Evaluation one after the other; no predictions where a policy gives none, for NaN is not JSON."""
    lists: dict[str, Any] = {name: [value for group in groups for value in group[name]] for name in groups[0]}
    if not np.isfinite(lists.get("predicted", []) + lists.get("variance", [])).all():
        del lists["predicted"], lists["variance"]
    return lists
