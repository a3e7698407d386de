"""Episodes for datasets: walked by the maze planner, acted by a trained agent, or taken out of a run's replay.

Episode i starts from, and acts with, random numbers of its own: it depends on the seed and on i, not on how many are
made or run side by side. Their order is that of i.

Letters: E environments (one an episode), T steps, O observation dim, A action dim.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.random import Generator, SeedSequence

from algorithms import online_names
from cluster.checks import spec_of
from cluster.commands.evaluation import newest_weights
from cluster.data_kind import kind_of
from cluster.errors import RunError, UsageError
from cluster.graph import RunSpec, make_policy, make_shard
from cluster.history import evaluation_records
from cluster.own_code import to_come_words
from cluster.run_dir import RunDirectory
from replay import snapshot
from replay.dataset import StoredEpisode
from replay.schema import EpisodeMetadata
from replay.store import Store
from rollout_workers.actor import Actor, noise_by_step
from rollout_workers.episodes import SIDE_BY_SIDE, Acts, EpisodeRuns
from rollout_workers.fixed_goal import fixed_goal_id
from rollout_workers.maze import Maze, maze_of
from rollout_workers.waypoints import WaypointPlanner

FIXED_STARTS = 10_000  # evaluation episode i starts from this seed + i, as EvaluationConfig.seed has it by default
KINDS = ("medium", "expert", "mixed", "replay")
_START, _ACT = 0, 1  # spawn keys: what an episode's environment draws from, and what its actions do


class References(NamedTuple):
    """Mean undiscounted returns between which scores are normalised: 0 is random, 100 is expert."""

    random_return: float
    expert_return: float


def collect_maze_episodes(
    env_id: str,
    *,
    episodes: int,
    noise: float = 0.5,
    dwell: int = 0,
    seed: int,
    progress: Progress | None = None,
) -> Iterator[StoredEpisode]:
    """Episodes of the waypoint planner, with targets drawn over all free cells; rewards are for the one fixed goal.

    Args:
        env_id: a FixedGoal id, or the PointMaze id that it is a variant of.
        episodes: at least 1. noise, dwell: as in WaypointPlanner.

    Raises EnvError and UsageError for what cannot be made, before the first episode.
    """
    maze_id, maze = _maze_with_goal(env_id)
    _check_count(episodes, seed)
    planner = WaypointPlanner(maze, noise=noise, dwell=dwell)
    return _collect(EpisodeRuns(maze_id), planner, episodes, seed, progress)


def measure_references(env_id: str, seed: int, episodes: int = 100) -> References:
    """Mean returns of uniform random actions and of the noise-free planner sent straight to the goal.

    Both from the fixed starts that evaluations have (FIXED_STARTS + i), so that scores compare like with like; ``seed`` is
    of the random actions. Scores on UMaze would otherwise hang on how many starts lie in the goal's cell.
    """
    maze_id, maze = _maze_with_goal(env_id)
    _check_count(episodes, seed)
    runs, streams = EpisodeRuns(maze_id), _streams(seed, range(episodes))
    random_return = runs.mean_return(_Uniform(2), FIXED_STARTS, streams)
    straight = WaypointPlanner(maze, target=maze.goal_cell)
    return References(random_return, runs.mean_return(straight, FIXED_STARTS, streams))


def collect_agent_episodes(
    run_dir: Path, kind: str, episodes: int | None, seed: int, progress: Progress | None = None
) -> Iterator[StoredEpisode]:
    """Episodes of a run of SoftGAC or of a method on its critics; of kind replay those of a run on whole episodes too, see ``replayed``.

    Args:
        run_dir: of the run.
        kind: medium: its newest policy with its exploration noise. expert: the newest policy, deterministic. mixed: these
            two in turn. replay: whole episodes of its replay's newest snapshots, from the oldest to the newest, without a
            new env step.
        episodes: how many. For replay at most as many, evenly spread over its age; None takes all of them.

    Raises UsageError, RunError and EnvError for what cannot be had, before the first episode.
    """
    if kind not in KINDS:
        raise UsageError(f"kind is {kind!r}, expected one of {', '.join(KINDS)}; nothing was collected")
    _check_count(1 if episodes is None and kind == "replay" else episodes, seed)
    if kind == "replay":
        return replayed_episodes(_plan(run_dir), episodes, progress)
    spec = _plan(run_dir)
    assert episodes is not None
    actor, explores = _actor(spec), {"medium": (True, True), "expert": (False, False), "mixed": (True, False)}[kind]

    def explore(numbers: range) -> None:
        assert actor.stateless is not None
        actor.stateless.exploring_E = np.array([explores[i % 2] for i in numbers])

    runs = EpisodeRuns(spec.config.env, spec.config.worker.fast_envs)
    return _collect(runs, actor, episodes, seed, progress, explore)


def check_kinds(run_dir: Path, kinds: Sequence[str]) -> None:
    """UsageError or RunError unless ``collect_agent_episodes`` can begin with each of these kinds."""
    spec = _plan(run_dir)
    if set(kinds) - {"replay"}:
        _actor(spec)
    if "replay" in kinds:
        _all_found(spec)


def measure_agent_references(run_dir: Path, seed: int, episodes: int = 100) -> References:
    """Mean returns of uniform random actions and of the run's best deterministic policy, as ``measure_references`` has them.

    Best is the newest policy, measured here, or what the run's own evaluations saw earlier, if that was more.
    """
    _check_count(episodes, seed)
    spec = _plan(run_dir)
    runs, streams = EpisodeRuns(spec.config.env, spec.config.worker.fast_envs), _streams(seed, range(episodes))
    newest = runs.mean_return(_actor(spec), FIXED_STARTS, streams)
    seen = [float(np.mean(found.returns)) for _, found in evaluation_records(run_dir, spec.config.unit, [])]
    best = max([newest, *seen])
    return References(runs.mean_return(_Uniform(spec.action_dim), FIXED_STARTS, streams), best)


def _actor(spec: RunSpec) -> Actor:
    """Acts with the newest policy of a run; UsageError for one that follows plans."""
    actor = Actor(make_policy(spec), backend=spec.config.worker.backend)
    if actor.stateless is None:
        raise UsageError(
            f"{spec.run_dir} is a run of {spec.config.algorithm}, expected {online_names()}: its episodes follow plans, which are not "
            "collected; nothing was done; give a run of one of these, or take what its stages gathered with `drawbridge dataset export`"
        )
    actor.replace(newest_weights(spec))
    return actor


class _Uniform:
    """Uniform random actions in [-1, 1], by the contract of an EpisodePolicy."""

    def __init__(self, action_dim: int) -> None:
        self._action_dim = action_dim

    def reset(self, num_envs: int) -> None:
        """Nothing to forget."""

    def begin(self, env_K: np.ndarray, obs_KO: np.ndarray, rng: Generator) -> list[EpisodeMetadata]:
        """A stream of ``rng`` for each environment; there are no metadata."""
        self._action = noise_by_step(
            rng.spawn(len(env_K)), lambda rng, steps: rng.uniform(-1.0, 1.0, (steps, self._action_dim))
        )
        return []

    def act(self, obs_EO: np.ndarray, reward_E: np.ndarray) -> np.ndarray:
        """Actions float32 (E, A)."""
        return next(self._action).astype(np.float32)


def _collect(
    runs: EpisodeRuns,
    actor: Acts,
    episodes: int,
    seed: int,
    progress: Progress | None,
    before: Callable[[range], None] = lambda numbers: None,
) -> Iterator[StoredEpisode]:
    """``episodes`` sound ones; for each that broke another one is made at the end. ``before`` takes each group's numbers."""
    made = attempts = 0
    try:
        while made < episodes:
            if attempts >= 2 * episodes + SIDE_BY_SIDE:
                raise RunError(
                    f"{attempts - made} of {attempts} episodes met a NaN or an infinity, expected few: {made} of {episodes} "
                    "were made, the rest is abandoned; look at the environment and the policy"
                )
            numbers = range(attempts, attempts + min(SIDE_BY_SIDE, episodes - made))
            attempts = numbers.stop
            starts = [_start(seed, i) for i in numbers]
            before(numbers)
            for episode in runs.run(actor, starts, _streams(seed, numbers)):
                if episode is not None:
                    made += 1
                    if progress is not None:
                        progress(made)
                    yield episode._replace(index=made - 1)
    finally:
        runs.close()


def _plan(run_dir: Path) -> RunSpec:
    run = RunDirectory.open(run_dir)
    return spec_of(run.config(), run)


def _maze_with_goal(env_id: str) -> tuple[str, Maze]:
    maze_id = fixed_goal_id(env_id)
    maze = maze_of(maze_id)
    assert maze is not None
    return maze_id, maze


def _streams(seed: int, numbers: Sequence[int]) -> list[SeedSequence]:
    """Sources of the actors' streams: the generator spawned from the i-th is that of (seed, i, _ACT)."""
    return [SeedSequence(seed, spawn_key=(i,), n_children_spawned=_ACT) for i in numbers]


def _start(seed: int, number: int) -> int:
    """What the environment of an episode is reset with."""
    return int(SeedSequence(seed, spawn_key=(number, _START)).generate_state(1)[0])


def _check_count(episodes: int | None, seed: int) -> None:
    if episodes is None or episodes < 1 or seed < 0:
        raise UsageError(
            f"{episodes} episodes with seed {seed} asked for, expected at least 1 and a seed of at least 0: nothing was "
            "collected; correct them"
        )


Progress = Callable[[int], None]  # called with the number of episodes made


class Found(NamedTuple):
    """An episode that the environment ended, in a snapshot."""

    age: tuple[int, int, int]  # of the policy at its first step, then when it was stored
    shard: int
    rows: int
    read: Callable[[int], StoredEpisode]  # with this index


def replayed_episodes(spec: RunSpec, episodes: int | None, progress: Progress | None) -> Iterator[StoredEpisode]:
    """At most ``episodes`` of them, evenly spread over their age; None: all. Of a run on whole episodes those of its stages.

    Shards of whole episodes keep no observation after the last action: there the last step's own observation is given once
    more, so that actions, rewards and returns are exact.

    Raises UsageError when there is none, RunError when no snapshot is intact, both before the first episode.
    """
    found, held = _all_found(spec)
    if left_out := held - sum(one.rows for one in found):
        print(
            f"left out {left_out:,} of {held:,} rows that the replay holds: they are of episodes that are not whole, cut by the end of the "
            "run or by a failure, or overwritten in part",
            file=sys.stderr,
            flush=True,
        )
    count = len(found) if episodes is None else min(episodes, len(found))
    chosen = [found[at] for at in np.linspace(0, len(found) - 1, count).round().astype(int)]
    return _stored(chosen, progress)


def _all_found(spec: RunSpec) -> tuple[list[Found], int]:
    """The whole episodes in a run's snapshots, from the oldest to the newest, and how many gathered rows these hold in all; UsageError
    where there is no such episode."""
    config = spec.config
    if kind_of(config).workers(config) == 0:
        raise UsageError(
            f"{spec.run_dir} is a run of {config.algorithm} without stages, expected one that gathered episodes: all it has is its dataset "
            "and nothing was collected; give a run of `drawbridge finetune`"
        )
    stores = {index: store for index in range(config.replay.shards) if (store := _loaded(spec, index)) is not None}
    found = [Found(one.age, index, one.rows, one.read) for index, store in stores.items() for one in store.recorded()]
    found.sort(key=lambda one: (one.age, one.shard))
    if not found:
        run, wait = RunDirectory(spec.run_dir), "let the run go on until it writes its next checkpoint"
        raise UsageError(
            f"{spec.run_dir} has no replay snapshot with a whole episode in it, expected one; nothing was collected; "
            f"{to_come_words(run, config, wait)}"
        )
    return found, sum(store.online_rows for store in stores.values())


def _stored(chosen: list[Found], progress: Progress | None) -> Iterator[StoredEpisode]:
    for index, found in enumerate(chosen):
        if progress is not None:
            progress(index + 1)
        yield found.read(index)


def _loaded(spec: RunSpec, index: int) -> Store | None:
    """What one shard's newest snapshot holds; None where it has none."""
    shard = make_shard(kind_of(spec.config).to_read(spec), index)
    try:
        return None if snapshot.load(shard, spec.shard_dir(index)) is None else shard.store
    except snapshot.SnapshotError as error:
        raise RunError(str(error)) from error
