"""The ``drawbridge dataset`` commands: make, import, list, show and export Minari datasets."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.commands.arguments import (
    add_command,
    add_env_again,
    add_env_kwargs,
    add_settings,
    cell,
    count,
    location,
    name_env_again,
    named_task,
    new_file,
    noise,
    seconds,
    settings_of,
    whole,
)
from cluster.errors import RunError, UsageError, too_long

if TYPE_CHECKING:
    from replay.dataset import Dataset

KINDS = ("medium", "replay", "expert", "mixed")


def add_dataset(commands: Any) -> None:
    """Adds ``dataset`` and what it can do to the command line's subcommands."""
    dataset = commands.add_parser(
        "dataset",
        help="make, import, list, show and export Minari datasets",
        description="Minari datasets, under MINARI_DATASETS_PATH or ~/.minari/datasets.",
    )
    actions = dataset.add_subparsers(title="commands", required=True, metavar="COMMAND")
    make = actions.add_parser("make", help="make one", description="Makes a dataset.")
    kinds = make.add_subparsers(title="kinds", required=True, metavar="KIND")
    _add_maze(kinds)
    _add_agent(kinds)
    take = _command(actions, "import", _import, "copy a Minari folder in, or download an id from Minari's remote")
    take.add_argument("source", metavar="ID|PATH", help="a folder, an id (D4RL/pointmaze/umaze-v2), or hf://OWNER/ID")
    take.add_argument("--timeout", type=seconds, default=3600.0, help="seconds for a download (default: 3600)")
    _add_force(take)
    one = _command(actions, "relabel", _relabel, "a PointMaze dataset of changing goals, as one of one fixed goal")
    one.add_argument("dataset", metavar="ID|PATH")
    add_env_kwargs(one)
    _add_cells(one)
    one.add_argument("--id", help="(default: the dataset's name with -onegoal-v0)")
    _add_force(one)
    _command(actions, "list", _list, "the datasets that are there")
    show = _command(actions, "show", _show, "read a dataset once and say what is in it")
    show.add_argument("dataset", metavar="ID|PATH")
    show.add_argument(
        "--plot", type=new_file, metavar="FILE.png", help="also draw its returns, and its trajectories in a maze"
    )
    export = _command(actions, "export", _export, "a run's replay as a Minari dataset")
    export.add_argument("run_dir", type=location, metavar="RUN_DIR")
    export.add_argument("id", metavar="ID")
    add_env_again(export)
    _add_force(export)


def _add_maze(kinds: Any) -> None:
    maze = _command(kinds, "maze", _make_maze, "a waypoint planner to random targets in a maze with one fixed goal")
    maze.add_argument("--env", required=True, help="PointMaze_UMaze-v3, PointMaze_Medium-v3 or PointMaze_Large-v3")
    add_env_kwargs(maze)
    _add_cells(maze)
    maze.add_argument("--episodes", type=count, required=True, help="episodes to collect")
    maze.add_argument(
        "--noise", type=noise, default=0.5, help="standard deviation of action noise, up to 100 (default: 0.5)"
    )
    maze.add_argument("--dwell", type=whole, default=0, help="steps at a target before the next (default: 0)")
    maze.add_argument("--seed", type=whole, default=1, help="of everything random (default: 1)")
    maze.add_argument("--id", help="(default: drawbridge/NAME-dDWELL-v0, NAME as pointmaze-umaze)")
    _add_force(maze)


def _add_cells(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--goal-cell", nargs=2, type=whole, metavar=("ROW", "COL"), help="the one goal (default: the maze's own)"
    )
    parser.add_argument(
        "--start-cells",
        nargs="+",
        type=cell,
        metavar="ROW,COL",
        help="cells in which episodes begin, equally often (default: all free cells)",
    )


def _add_agent(kinds: Any) -> None:
    agent = _command(kinds, "agent", _make_agent, "episodes of a trained agent")
    whose = agent.add_mutually_exclusive_group(required=True)
    whose.add_argument("--run", type=location, metavar="RUN_DIR", help="a run of SoftGAC or of a method on its critics")
    whose.add_argument(
        "--train",
        nargs="+",
        metavar="ENV",
        help="environments to train a SoftGAC agent in first, each in runs/agents/NAME-STEPS-SEED; a run that is there goes on",
    )
    agent.add_argument(
        "--steps", type=count, default=300_000, help="env steps of each agent of --train (default: 300000)"
    )
    agent.add_argument(
        "--kind",
        choices=KINDS,
        nargs="+",
        required=True,
        help="medium: its newest policy with exploration; expert: without; mixed: half and half; replay: its replay",
    )
    agent.add_argument("--episodes", type=count, required=True, help="episodes; for replay at most")
    agent.add_argument("--seed", type=whole, default=1, help="of everything random (default: 1)")
    agent.add_argument(
        "--id",
        help="of one dataset (default: drawbridge/NAME-KIND-v0, NAME as halfcheetah; of --train replay is medium-replay)",
    )
    add_env_again(agent)
    add_settings(agent, "of the runs of --train, any field of `drawbridge config cpu`")
    _add_force(agent)


def make_dataset(
    source: str | Path,
    *,
    episodes: int,
    kind: str,
    seed: int,
    name: str | None,
    noise: float,
    dwell: int,
    env: str | None,
    force: bool,
) -> Dataset:
    """``drawbridge.make_dataset``: what ``dataset make`` makes, from Python."""
    from cluster.commands.dataset_recipes import make_agent, make_maze

    if kind == "maze":
        return make_maze(name, str(source), episodes=episodes, noise=noise, dwell=dwell, seed=seed, force=force)
    run_dir = Path(source).absolute()
    name_env_again(run_dir, env)
    return make_agent(name, run_dir, kind, episodes=episodes, seed=seed, force=force)


def _make_maze(arguments: argparse.Namespace) -> None:
    from cluster.commands.dataset_recipes import make_maze
    from replay.task import join_task

    env_id, kwargs = named_task(arguments.env, arguments.env_kwargs)
    made = make_maze(
        arguments.id,
        join_task(env_id, _with_cells(kwargs or {}, arguments)),
        episodes=arguments.episodes,
        noise=arguments.noise,
        dwell=arguments.dwell,
        seed=arguments.seed,
        force=arguments.force,
    )
    print(_one_line(made))


def _with_cells(kwargs: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """The task's arguments with the goal and the starts that flags name."""
    cells = {"goal_cell": arguments.goal_cell, "start_cells": arguments.start_cells}
    given = {name: value for name, value in cells.items() if value is not None}
    if twice := sorted(given.keys() & kwargs.keys()):
        raise UsageError(
            f"{twice[0]} is {kwargs[twice[0]]} in the environment's arguments and --{twice[0].replace('_', '-')} is {given[twice[0]]}, "
            "expected one of the two: nobody can tell which is meant, so nothing was made; leave one out"
        )
    return kwargs | given


def _make_agent(arguments: argparse.Namespace) -> None:
    from cluster.commands.dataset_recipes import agent_id, check_ids, make_agents, train_agent, trained_id

    kinds, recipe = arguments.kind, {"episodes": arguments.episodes, "seed": arguments.seed, "force": arguments.force}
    if arguments.id and len(kinds) * len(arguments.train or [arguments.run]) > 1:
        raise UsageError(
            f"--id {arguments.id} was given for more than one dataset, expected one --kind and one environment: one would replace the "
            "other, so nothing was made; leave --id out"
        )
    if arguments.run:
        name_env_again(arguments.run, arguments.env)
        ids = [arguments.id or agent_id(arguments.run, kind) for kind in kinds]
        for made in make_agents(ids, arguments.run, kinds, **recipe):
            print(_one_line(made))
        return
    settings = settings_of(arguments.set)
    rows = [[arguments.id or trained_id(env, kind) for kind in kinds] for env in arguments.train]
    check_ids([each for row in rows for each in row], arguments.force)  # before hours of training
    here = Path.cwd()  # an environment may change the directory
    for env, row in zip(arguments.train, rows):
        run_dir = train_agent(env, arguments.steps, arguments.seed, settings, here)
        for made in make_agents(row, run_dir, kinds, **recipe):
            print(_one_line(made))


def _export(arguments: argparse.Namespace) -> None:
    from cluster.commands.dataset_recipes import export_replay

    name_env_again(arguments.run_dir, arguments.env)
    print(_one_line(export_replay(arguments.id, arguments.run_dir, force=arguments.force)))


def _import(arguments: argparse.Namespace) -> None:
    from replay.dataset_import import import_dataset

    print(_one_line(import_dataset(arguments.source, force=arguments.force, timeout_s=arguments.timeout)))


def _relabel(arguments: argparse.Namespace) -> None:
    from cluster.commands.dataset_recipes import relabel

    _, kwargs = named_task(None, arguments.env_kwargs)
    print(
        _one_line(relabel(arguments.dataset, _with_cells(kwargs or {}, arguments), arguments.id, force=arguments.force))
    )


def _list(arguments: argparse.Namespace) -> None:
    from cluster.commands.table import aligned
    from replay.dataset import list_datasets
    from replay.minari_files import datasets_root

    rows = list_datasets()
    if not rows:
        print(f"no datasets in {datasets_root()}; `drawbridge dataset make` makes one")
        return
    cells = [("ID", "ENVIRONMENT", "EPISODES", "STEPS", "MB")]
    cells += [(r.id, r.env_id or "-", f"{r.episodes:,}", f"{r.steps:,}", f"{r.bytes / 1e6:,.1f}") for r in rows]
    for index, line in enumerate(aligned(cells, left=2)):
        print(line)
        if index and rows[index - 1].problem:
            print(f"  ! {rows[index - 1].problem}")


def _show(arguments: argparse.Namespace) -> None:
    from cluster.pictures.dataset_view import describe_dataset
    from replay.dataset import open_dataset

    if arguments.plot is not None and arguments.plot.suffix != ".png":
        raise UsageError(f"--plot {arguments.plot}: expected a name that ends in .png; nothing was read")
    print(describe_dataset(open_dataset(arguments.dataset), arguments.plot))


def _one_line(made: Any) -> str:
    return f"{made.id}: {made.total_episodes:,} episodes, {made.total_steps:,} steps of {made.env_id or 'an unnamed environment'}"


def _reporting(run: Callable[[argparse.Namespace], None]) -> Callable[[argparse.Namespace], None]:
    """``run`` with its errors as the command line reports them."""

    def command(arguments: argparse.Namespace) -> None:
        from replay.stored_episode import DatasetError
        from rollout_workers.env import EnvError

        try:
            run(arguments)
        except (DatasetError, EnvError) as error:
            raise UsageError(str(error)) from error
        except OSError as error:
            if problem := too_long(error.filename):
                raise UsageError(f"{problem}; no dataset was changed") from error
            raise RunError(f"{error}: no dataset was changed; see that the disk has room and can be written") from error

    return command


def _command(commands: Any, name: str, run: Callable[[argparse.Namespace], None], help: str) -> argparse.ArgumentParser:
    return add_command(commands, name, _reporting(run), help)


def _add_force(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="replace a dataset of that id")
