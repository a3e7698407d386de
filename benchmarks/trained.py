"""Trained runs of benchmarks/gac.py, to be asked further questions; nothing in them is changed.

Letters: E episodes, K environments.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from algorithms.gac.policy import GACPolicy
from algorithms.interface import PlanRequest
from algorithms.weights import Weights
from benchmarks.markdown import table
from cluster.checks import spec_of
from cluster.commands.evaluation import newest_weights
from cluster.config import override
from cluster.graph import RunSpec
from cluster.run_dir import RunDirectory
from replay.dataset import Dataset, open_dataset
from rollout_workers.env import BatchEnv
from rollout_workers.envs import make_batch_env
from rollout_workers.evaluator import Evaluation, Evaluator
from rollout_workers.maze import Maze, maze_of

SEARCHES = ("st", "kl", "max")
MAZES = ("umaze", "medium", "large")
MakeEnv = Callable[[str, int, int, bool], BatchEnv]


@dataclasses.dataclass(frozen=True)
class Trained:
    """One run, with what was chosen for each mode on its tuning starts. Scores: 0 is the random policy, 100 the planner."""

    record: Mapping[str, Any]
    run_dir: Path

    @property
    def data(self) -> str:
        return f"{self.record['maze']} {self.record['data']}"

    @functools.cached_property
    def spec(self) -> RunSpec:
        run = RunDirectory(self.run_dir)
        spec = spec_of(run.config(), run)
        return spec

    @functools.cached_property
    def weights(self) -> Weights:
        return newest_weights(self.spec)

    @property
    def dataset(self) -> Dataset:
        return _dataset(self.spec.config.dataset)

    @property
    def maze(self) -> Maze:
        maze = maze_of(self.spec.config.env)
        assert maze is not None
        return maze

    @property
    def best_mode(self) -> str:
        """The search that did best on the tuning starts; the run's own where there was nothing to choose."""
        tuned = {mode: self.record["scores"][mode]["tuned"] for mode in SEARCHES}
        if max(map(len, tuned.values())) == 1:
            agent: Any = self.spec.config.agent
            return str(agent.infer_mode)
        return max(SEARCHES, key=lambda mode: max(tuned[mode]))

    def target(self, mode: str) -> float | None:
        """The return that ``mode`` asks for in environment units, as chosen."""
        share = self.record["scores"][mode]["chosen"]["target"]
        return None if share is None else share * self.dataset.summary().return_max

    def policy(
        self,
        mode: str,
        settings: Mapping[str, str] | None = None,
        kind: Callable[[Any, int, int], GACPolicy] = GACPolicy,
    ) -> GACPolicy:
        """An acting policy with what was chosen for ``mode``, ``settings`` over it; its weights are not loaded."""
        chosen = self.record["scores"][mode]["chosen"]["settings"]
        config: Any = override(self.spec.config, {**chosen, **(settings or {})}).agent
        return kind(config, self.spec.obs_dim, self.spec.action_dim)

    def run(
        self,
        policy: GACPolicy,
        mode: str,
        starts: tuple[int, int],
        *,
        target: float | None = None,
        record_paths: bool = False,
        make_env: MakeEnv = make_batch_env,
    ) -> Evaluation:
        """Episodes of ``policy``; ``starts``: (first seed, episodes). ``target`` None: as chosen."""
        evaluator = Evaluator(self.spec.config.env, policy, timeout_s=3_600.0, make_env=make_env)
        wanted = self.target(mode) if target is None else target
        return evaluator.evaluate(
            self.weights, starts[1], starts[0], PlanRequest(mode=mode, target_return=wanted), record_paths=record_paths
        )

    def scores(self, returns: Sequence[float] | np.ndarray) -> np.ndarray:
        """Normalised returns (E,)."""
        return np.array([self.dataset.normalised(float(value)) for value in returns], np.float64)


def trained(out: Path, kind: str = "offline", name: str = "", plan: str = "") -> list[Trained]:
    """The runs of GAC in ``out`` that are whole, by maze, data and seed; ``name``: of a preset or ablation, ``plan``: of online runs."""
    runs = [_opened(path, path.stat().st_mtime_ns) for path in sorted(out.glob("*.json"))]
    return [
        run
        for run in runs
        if run.record["kind"] == kind
        and run.record.get("algorithm", "gac") == "gac"
        and (run.record.get("plan", ""), run.record["name"]) == (plan, name)
        and run.record["maze"] in MAZES
        and run.run_dir.is_dir()
    ]


@functools.cache
def _opened(path: Path, changed: int) -> Trained:
    """One run a process, so that its weights are read once."""
    record = json.loads(path.read_text())
    return Trained(record, path.parent / record["run_dir"])


@functools.cache
def _dataset(name: str) -> Dataset:
    """One a process, so that its statistics are computed once."""
    return open_dataset(name)


def choices(runs: Sequence[Trained]) -> str:
    """Who was asked: seed, updates, how plans are read, what was chosen for each mode, and the best mode."""
    rows = []
    for run in runs:
        agent: Any = run.spec.config.agent
        chosen = (run.record["scores"][mode]["chosen"] for mode in SEARCHES)
        cells = (", ".join([*choice["settings"].values(), *_share(choice["target"])]) for choice in chosen)
        about = (run.data, run.record.get("plan", ""), str(run.record["seed"]), str(run.weights.updates))
        rows.append([*about, f"{agent.plan_reading}, {agent.tokens} tokens", *cells, run.best_mode])
    head = ["", "online", "seed", "updates", "reading", "st: target", "kl: weight", "max: steps", "best mode"]
    return table(head, rows)


def _share(target: float | None) -> list[str]:
    return [] if target is None else [f"{target:g} of the best"]


def by_data(runs: Sequence[Trained]) -> dict[str, list[Trained]]:
    """The runs of each maze and kind of data."""
    groups: dict[str, list[Trained]] = {}
    for run in runs:
        groups.setdefault(run.data, []).append(run)
    return groups
