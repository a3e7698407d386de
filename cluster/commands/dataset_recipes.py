"""How datasets are made: who acts, which references are measured, and what the metadata says."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from algorithms import ALGORITHMS
from cluster.commands.counter import Counter, counted
from cluster.errors import RunError
from cluster.metrics.wording import clock, count, number
from cluster.own_code import search_path
from cluster.run_dir import RunDirectory
from replay.dataset import Dataset, DatasetError, StoredEpisode, in_order, open_dataset, write_dataset
from replay.dataset_writer import check_can_write
from replay.task import id_of, join_task, name_of
from rollout_workers.maze import REACHED, Maze, maze_of

REFERENCE_EPISODES = 100  # that each reference is a mean of
REFERENCE_SEED = 0  # whatever the data's is: references of one environment are the same in all its datasets


def make_maze(
    dataset_id: str | None, env_id: str, *, episodes: int, noise: float, dwell: int, seed: int, force: bool
) -> Dataset:
    """A maze dataset: the planner walks to random targets, its return is counted for the fixed goal.

    ``env_id`` is a PointMaze id or that of its variant with the fixed goal; the dataset is of the variant.

    Source: the recipe of D4RL's maze data (Fu et al. 2020); fixed goal, noise and dwell are choices of this project.
    """
    from rollout_workers.fixed_goal import fixed_goal_id

    env_id = fixed_goal_id(env_id)
    from cluster.commands.collecting import collect_maze_episodes, measure_references  # torch: a refusal need not wait

    dataset_id = dataset_id or f"drawbridge/{env_name(env_id)}-d{dwell}-v0"
    check_can_write(dataset_id, force)
    recipe: dict[str, Any] = {"episodes": episodes, "noise": noise, "dwell": dwell, "seed": seed}
    collected = collect_maze_episodes(env_id, **recipe)
    return _write(
        dataset_id,
        shown(collected, episodes),
        env_id,
        _measured(lambda: measure_references(env_id, REFERENCE_SEED, REFERENCE_EPISODES)),
        expert="planner",
        algorithm_name="waypoint planner",
        description={"command": _command("make maze", env=env_id, id=dataset_id, **recipe), **recipe},
        force=force,
    )


def agent_id(run_dir: Path, kind: str) -> str:
    """The id of a dataset of a run's agent where none is given."""
    return f"drawbridge/{env_name(RunDirectory.open(run_dir).config().env)}-{kind}-v0"


def make_agents(
    dataset_ids: Sequence[str], run_dir: Path, kinds: Sequence[str], *, episodes: int, seed: int, force: bool
) -> Iterator[Dataset]:
    """``make_agent`` of each kind, which looks before it makes; where there are several, all are looked at before the first is made."""
    from cluster.commands.collecting import check_kinds

    check_ids(dataset_ids, force)
    if len(kinds) > 1:
        check_kinds(run_dir, kinds)
    for dataset_id, kind in zip(dataset_ids, kinds):
        yield make_agent(dataset_id, run_dir, kind, episodes=episodes, seed=seed, force=force)


def check_ids(dataset_ids: Sequence[str], force: bool) -> None:
    """DatasetError unless datasets of all these ids may be made by one command."""
    if twice := sorted({each for each in dataset_ids if dataset_ids.count(each) > 1}):
        raise DatasetError(
            f"{twice[0]} would be made {dataset_ids.count(twice[0])} times, expected once: each would replace the one before, so nothing was "
            "made; name every kind and every environment once"
        )
    for dataset_id in dataset_ids:
        check_can_write(dataset_id, force)


def make_agent(dataset_id: str | None, run_dir: Path, kind: str, *, episodes: int, seed: int, force: bool) -> Dataset:
    """A dataset of a trained agent's episodes; see ``collecting.collect_agent_episodes`` for the kinds."""
    dataset_id = dataset_id or agent_id(run_dir, kind)
    recipe = {"run": str(run_dir), "kind": kind, "episodes": episodes, "seed": seed}
    description = {"command": _command("make agent", id=dataset_id, **recipe), **recipe}
    return _of_run(dataset_id, run_dir, kind, episodes, seed, description=description, force=force)


def trained_id(env: str, kind: str) -> str:
    """The id of a dataset of an agent that is trained for it, by D4RL's names: drawbridge/hopper-medium-replay-v0."""
    return f"drawbridge/{env_name(env)}-{'medium-replay' if kind == 'replay' else kind}-v0"


def train_agent(env: str, steps: int, seed: int, settings: dict[str, str], folder: Path) -> Path:
    """The run in ``folder`` of a SoftGAC agent of ``steps`` env steps; one that is there already goes on, or is used as it is."""
    path = folder / "runs" / "agents" / f"{env_name(env)}-{steps}-{seed}"
    words = ["train", "softgac", "--env", env, "--steps", str(steps), "--seed", str(seed), "--run-dir", str(path)]
    words += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    if (path / "config.json").exists():
        run = RunDirectory.open(path)
        if (run.summary() or {}).get("exit") == "completed":
            return path
        words = ["resume", str(path)]
    print(f"training an agent in {env}: {path}", file=sys.stderr, flush=True)
    # -P: a module called replay in the current directory hides none of this project's
    argv = [sys.executable, "-P", "-m", "cluster", *words]
    done = subprocess.run(argv, stdout=sys.stderr, check=False, cwd=folder, env={**os.environ, **search_path()})
    if done.returncode:
        raise RunError(
            f"the agent in {env} was not trained to its end, see above: no dataset of it was made; give the command again"
        )
    return path


def export_replay(dataset_id: str, run_dir: Path, *, force: bool) -> Dataset:
    """Every whole episode that a run's replay snapshots hold, as a dataset; of a run in stages what it gathered in them."""
    description = {"command": f"drawbridge dataset export {run_dir} {dataset_id}", "run": str(run_dir)}
    return _of_run(dataset_id, run_dir, "replay", None, 0, description=description, force=force)


def relabel(source: str, kwargs: dict[str, Any], dataset_id: str | None, *, force: bool) -> Dataset:
    """A PointMaze dataset whose goals change, as one of the task with the one fixed goal: its rewards are those of that goal.

    Episodes that continue each other (as D4RL's do, which end at each goal) are joined, and cut into pieces of the task's time limit.
    """
    from rollout_workers.env_ids import find_env
    from rollout_workers.fixed_goal import fixed_goal_id

    dataset = open_dataset(source)
    env_id = join_task(fixed_goal_id(name_of(dataset.env_id)), kwargs)
    maze, limit, columns = maze_of(env_id), find_env(env_id).max_episode_steps, dataset.columns("observation")
    assert maze is not None and maze.goal_xy is not None and limit
    if columns is None:
        raise DatasetError(
            f"{dataset.id} has observations without the part `observation`, expected PointMaze's Dict: there is no position to tell a goal "
            "from, so nothing was written; a dataset of one goal needs no relabelling"
        )
    from cluster.commands.collecting import measure_references

    dataset_id = dataset_id or f"{re.sub(r'-v[0-9]+$', '', dataset.id)}-onegoal-v0"
    check_can_write(dataset_id, force)
    words = [f"drawbridge dataset relabel {source}", f"--id {dataset_id}"]
    words += [f"--env-kwargs {shlex.quote(json.dumps(kwargs))}"] if kwargs else []
    return _write(
        dataset_id,
        shown(relabelled(dataset.episodes(), columns, maze, limit), None),
        env_id,
        _measured(lambda: measure_references(env_id, REFERENCE_SEED, REFERENCE_EPISODES)),
        expert="planner",
        algorithm_name="",
        description={"command": " ".join(words), "source": dataset.id},
        force=force,
    )


def relabelled(episodes: Iterable[StoredEpisode], columns: slice, maze: Maze, steps: int) -> Iterator[StoredEpisode]:
    """Pieces of ``steps`` steps that begin in the maze's start cells, with 1 for each step that ends within reach of its goal.

    Pieces that begin elsewhere and what is left of less are dropped, and how much that is goes to standard error.

    Args:
        columns: of the observation that begins with the position, m.

    Raises DatasetError where no piece begins there.
    """
    assert maze.goal_xy is not None
    obs_TO: np.ndarray | None = None
    made = pieces = read = 0
    for episode in episodes:
        own_NO = np.concatenate([episode.obs_TO, episode.next_obs_O[None]])[:, columns]
        if obs_TO is None or not np.allclose(obs_TO[-1], own_NO[0], atol=1e-6):
            obs_TO, action_TA = own_NO[:1], episode.action_TA[:0]
        obs_TO, read = np.concatenate([obs_TO, own_NO[1:]]), read + len(episode.action_TA)
        action_TA = np.concatenate([action_TA, episode.action_TA])
        while len(action_TA) >= steps:
            piece_NO, obs_TO = obs_TO[: steps + 1], obs_TO[steps:]
            piece_TA, action_TA = action_TA[:steps], action_TA[steps:]
            pieces += 1
            if maze.cells_of(piece_NO[:1, :2])[0] not in maze.start_S:
                continue
            reward_T = (np.linalg.norm(piece_NO[1:, :2] - maze.goal_xy, axis=1) <= REACHED).astype(np.float64)
            yield StoredEpisode(made, piece_NO[:-1], piece_TA, reward_T, False, True, piece_NO[-1])
            made += 1
    if pieces and not made:
        raise DatasetError(
            f"none of the {pieces:,} pieces of {steps} steps begins in the start cells {maze.free_K2[maze.start_S].tolist()}, expected some: "
            "nothing was written; name other cells, or leave --start-cells out"
        )
    print(_left_out(read, made, pieces, steps), file=sys.stderr, flush=True)


def _left_out(read: int, made: int, pieces: int, steps: int) -> str:
    others, short = pieces - made, read - pieces * steps
    elsewhere = (
        f"{others * steps:,} in {count(others, 'piece')} that did not begin in the start cells, " if others else ""
    )
    return f"left out {others * steps + short:,} of {read:,} steps: {elsewhere}{short:,} in pieces of less than {steps} steps"


def shown(
    episodes: Iterable[StoredEpisode], total: int | None, stream: TextIO | None = None
) -> Iterator[StoredEpisode]:
    """The episodes as they come, with a line of progress on ``stream`` (default: standard error)."""
    counter, start, made, steps = Counter(stream), time.monotonic(), 0, 0
    for episode in episodes:
        yield episode
        made, steps = made + 1, steps + len(episode.reward_T)
        if counter.due:
            counter.show(_made(made, total, steps, time.monotonic() - start))
    counter.show(_made(made, None, steps, time.monotonic() - start, f"/{total:,}" if total else ""), last=True)


def _made(made: int, total: int | None, steps: int, spent_s: float, of: str = "") -> str:
    left = f", {clock(spent_s * (total - made) / made)} left" if total else ""
    of = f"/{total:,}" if total else of
    return f"{made:,}{of} episodes, {steps:,} steps, {steps / max(spent_s, 1e-9):,.0f} steps/s{left}"


def _measured(measure: Callable[[], tuple[float, float]]) -> tuple[float, float]:
    print(f"measuring the references: twice {REFERENCE_EPISODES} episodes", file=sys.stderr, flush=True)
    with counted("references", 2 * REFERENCE_EPISODES), _halfway():
        return measure()


@contextlib.contextmanager
def _halfway() -> Iterator[None]:
    """Turns what an environment does wrong while episodes are made into a RunError: the command had begun."""
    from rollout_workers.env import EnvError

    try:
        yield
    except EnvError as error:
        raise RunError(f"{error}; no dataset was written") from error


def env_name(env_id: str) -> str:
    """An environment id as part of a dataset id: FixedGoal/PointMaze_UMaze-v3 as pointmaze-umaze."""
    bare = re.sub(r"-v\d+$", "", name_of(env_id).removeprefix("FixedGoal/"))
    return re.sub(r"[^0-9a-z]+", "-", bare.lower()).strip("-")


def _of_run(
    dataset_id: str,
    run_dir: Path,
    kind: str,
    episodes: int | None,
    seed: int,
    *,
    description: dict[str, Any],
    force: bool,
) -> Dataset:
    """A dataset of a run's episodes, with the references that belong beside them."""
    from cluster.commands.collecting import collect_agent_episodes

    check_can_write(dataset_id, force)
    config = RunDirectory.open(run_dir).config()
    collected = collect_agent_episodes(run_dir, kind, episodes, seed)
    references, expert = _references_of(run_dir)
    return _write(
        dataset_id,
        shown(collected, episodes),
        config.env,
        references,
        expert=expert,
        algorithm_name=config.algorithm,
        description=description,
        force=force,
    )


def _references_of(run_dir: Path) -> tuple[tuple[float | None, float | None], str]:
    """Random and expert return beside data of a run, and who the expert is: the run's best policy, measured now. A run on
    whole episodes has those of its dataset, so that scores before and after its stages compare."""
    from cluster.commands.collecting import measure_agent_references

    config = RunDirectory.open(run_dir).config()
    if ALGORITHMS[config.algorithm].items == "episodes":
        dataset = open_dataset(config.dataset)
        return (dataset.random_return, dataset.expert_return), dataset.expert
    measured = _measured(lambda: measure_agent_references(run_dir, REFERENCE_SEED, REFERENCE_EPISODES))
    return measured, f"{config.algorithm} run {run_dir.name}"


def _write(
    dataset_id: str,
    episodes: Iterable[StoredEpisode],
    env_id: str,
    references: tuple[float | None, float | None],
    **about: Any,
) -> Dataset:
    from rollout_workers.env_ids import find_env
    from rollout_workers.envs import env_spec

    if not in_order(*references):
        print(_useless(dataset_id, references, about["expert"]), file=sys.stderr, flush=True)
        references = None, None
    spec = env_spec(env_id)
    with _halfway():
        return write_dataset(
            dataset_id,
            episodes,
            env_id=id_of(env_id),
            env_spec=find_env(env_id),
            action_low_A=spec.low,
            action_high_A=spec.high,
            random_return=references[0],
            expert_return=references[1],
            reference_episodes=REFERENCE_EPISODES,
            **about,
        )


def _useless(dataset_id: str, references: tuple[float | None, float | None], expert: str) -> str:
    return (
        f"warning: the expert of {dataset_id} ({expert}) returns {number(references[1])}, expected more than the {number(references[0])} of "
        "random actions: normalised scores would fall where returns rise, so the dataset gets no references and its scores are not "
        "normalised, unless D4RL has references for its task; make it of an agent that was trained for longer"
    )


def _command(words: str, **flags: Any) -> str:
    return f"drawbridge dataset {words} " + " ".join(
        f"--{name} {shlex.quote(str(value))}" for name, value in flags.items()
    )
