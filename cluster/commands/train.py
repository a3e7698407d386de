"""``train``, ``finetune`` and ``resume``: commands that drive a run."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from algorithms import ALGORITHMS
from cluster.commands.arguments import (
    add_command,
    add_env_again,
    add_env_kwargs,
    add_settings,
    count,
    location,
    name_env_again,
    named_task,
    seed,
    settings_of,
    without_effect,
)
from cluster.commands.config_file import read_settings
from cluster.commands.resuming import resumed
from cluster.commands.seeds import check_parent, check_seeds, members, resume_together, run_together, seed_name
from cluster.config import RunConfig, make_preset, override
from cluster.errors import UsageError
from cluster.outside import check_named
from cluster.run_dir import RunDirectory, held_new, seed_dirs, written_at_start
from cluster.task_preset import scheduled
from replay.task import id_of, join_task, name_of

if TYPE_CHECKING:
    from cluster.graph import RunSpec

KEYS = {  # of the settings that flags of other names set
    "workers": "worker.workers",
    "envs_per_worker": "worker.envs_per_worker",
    "shards": "replay.shards",
    "learners": "learner.learners",
    "device": "learner.device",
    "address": "ray.address",
    "stages": "online.stages",
    "episodes_per_stage": "online.episodes_per_stage",
    "updates_per_stage": "online.updates_per_stage",
}


def add_train(commands: Any) -> None:
    train = add_command(commands, "train", _train, "train a policy")
    train.add_argument("algorithm", choices=list(ALGORITHMS))
    train.add_argument("--env", help="Gymnasium environment id (default: the dataset's)")
    add_env_kwargs(train)
    train.add_argument(
        "--dataset", metavar="ID", help="Minari dataset to learn from: id or path (see `drawbridge dataset`)"
    )
    train.add_argument(
        "--config",
        type=location,
        metavar="FILE",
        help="settings to begin with, under all flags: a run's config.json, or JSON with some of its fields",
    )
    train.add_argument(
        "--preset",
        help="cpu (two cores), paper (published settings; needs a GPU), paper-fleet (the same, many environments), of gac: "
        "linear (return-conditioned with a latent) (default: the file's, else cpu)",
    )
    train.add_argument(
        "--steps",
        type=count,
        help="env steps of the whole run; of algorithms that learn from whole episodes: updates (default: the preset's)",
    )
    train.add_argument("--workers", type=count, help="rollout worker processes (default: the preset's)")
    train.add_argument(
        "--envs-per-worker", type=count, help="environments a worker steps as one batch (default: the preset's)"
    )
    train.add_argument("--shards", type=count, help="replay shard processes (default: 1)")
    train.add_argument("--learners", type=count, help="learner processes that share one update (default: 1)")
    train.add_argument(
        "--backend",
        choices=["ray", "inline"],
        help="ray: actors; inline: one process, deterministic (default: the preset's)",
    )
    train.add_argument(
        "--address", help="Ray cluster to run on, host:port (default: RAY_ADDRESS, else one of the run's own)"
    )
    train.add_argument("--seed", type=int, help="seed of everything random (default: 1)")
    train.add_argument(
        "--seeds", type=seed, nargs="+", metavar="N", help="a run for each of these seeds, side by side in DIR/seed-N"
    )
    train.add_argument(
        "--run-dir", type=location, help="a new directory for the run (default: runs/ENV-ALGORITHM-SEED-N)"
    )
    train.add_argument("--device", choices=["cpu", "cuda", "auto"], help="where learners compute (default: auto)")
    add_settings(train)


def add_finetune(commands: Any) -> None:
    finetune = add_command(
        commands, "finetune", _finetune, "go on online with the newest policy of an offline run, as a new run"
    )
    finetune.add_argument("run_dir", type=location, metavar="RUN_DIR")
    finetune.add_argument(
        "--stages", type=count, help="times that episodes are gathered and then learned from (default: 3)"
    )
    finetune.add_argument("--episodes-per-stage", type=count, help="episodes gathered in a stage (default: 500)")
    finetune.add_argument("--updates-per-stage", type=count, help="updates that follow (default: 2500)")
    finetune.add_argument(
        "--target", choices=["moving", "fixed"], help="return that exploring plans ask for (default: moving)"
    )
    finetune.add_argument("--steps", type=count, help="env steps of an actor-critic's run (default: as its base run)")
    finetune.add_argument("--dataset", metavar="ID", help="dataset to mix in (default: the base run's)")
    finetune.add_argument("--env", help="Gymnasium environment id (default: the base run's)")
    add_env_kwargs(finetune, "the base run's")
    finetune.add_argument("--backend", choices=["ray", "inline"], help="(default: the base run's)")
    finetune.add_argument("--address", help="Ray cluster to run on, host:port: the base run's again, or another")
    finetune.add_argument("--seed", type=int, help="(default: the base run's)")
    finetune.add_argument(
        "--out", type=location, metavar="DIR", help="directory of the new run (default: RUN_DIR-finetune-N)"
    )
    add_settings(finetune)


def add_resume(commands: Any) -> None:
    resume = add_command(commands, "resume", _resume, "go on with a run that ended, was stopped or was killed")
    resume.add_argument("run_dir", type=location, metavar="RUN_DIR")
    resume.add_argument(
        "--steps",
        type=count,
        help="env steps, or updates, of the whole run; not of a run in stages (default: as before)",
    )
    resume.add_argument("--workers", type=count, help="rollout worker processes (default: as before, or last scaled)")
    resume.add_argument("--dataset", metavar="ID", help="the run's dataset, where it has moved: id or path")
    resume.add_argument("--address", help="Ray cluster to run on, host:port: the run's own again, or another")
    resume.add_argument(
        "--accept-loss",
        action="store_true",
        help="begin anew what is missing of checkpoints and snapshots, keep the rest (default: refuse)",
    )
    add_env_again(resume)
    add_settings(
        resume, "a field that no checkpoint depends on: worker.*, evaluation.*, metrics.*, ray.*, intervals, budgets"
    )


def _train(arguments: argparse.Namespace) -> int:
    problems: list[str] = []
    if arguments.seeds:
        check_seeds(arguments)
    config = resolve(arguments, problems)  # before the imports of learning, which take seconds
    from cluster.checks import check_tree

    check_tree()
    if arguments.seeds:
        parent = arguments.run_dir or _new_run_dir(config, "seeds")
        check_parent(parent, arguments.seeds)
        _prove(config, parent / seed_name(arguments.seeds[0]), problems, len(arguments.seeds))
        return run_together(parent, members(parent, arguments, arguments.seeds), config)
    return _start(config, arguments.run_dir or _new_run_dir(config), problems)


def _finetune(arguments: argparse.Namespace) -> int:
    base = RunDirectory.open(arguments.run_dir)
    from cluster.checks import check_tree
    from cluster.commands.finetune import check_base, finetuned
    from cluster.dataset_task import check_same_task

    check_tree()
    settings = _given(
        arguments, "dataset", "backend", "seed", "steps", "stages", "episodes_per_stage", "updates_per_stage", "address"
    )
    typed = arguments.env or settings.get("env")
    if typed or arguments.env_kwargs is not None:
        settings["env"] = _over(base.config().env, *named_task(typed, arguments.env_kwargs))
    problems: list[str] = []
    config = finetuned(base, settings, arguments.target, problems)
    problems += without_effect(config, settings)
    check_named(config, settings, base.path / "config.json")
    path = arguments.out or _unused(base.path.with_name(f"{base.path.name}-finetune"))

    def check(spec: RunSpec) -> None:
        named = arguments.env or arguments.env_kwargs is not None
        if arguments.dataset and not named and spec.dataset is not None:
            check_same_task(spec.dataset, config.env)
        check_base(spec)

    return _start(config, path, problems, check)


def _start(
    config: RunConfig, path: Path, problems: list[str], check: Callable[[RunSpec], None] = lambda spec: None
) -> int:
    """Drives a new run in ``path``; every problem, those that ``check`` raises included, is found before anything is written."""
    spec = _prove(config, path, problems, check=check)
    from cluster.drive import drive  # imports torch: a refusal need not wait for it

    with held_new(path, spec.config) as run:
        return drive(run, spec)


def _prove(
    config: RunConfig,
    path: Path,
    problems: list[str],
    runs: int = 1,
    check: Callable[[RunSpec], None] = lambda spec: None,
) -> RunSpec:
    """Looks for everything that could keep a new run in ``path`` from starting; ``runs``: that many are to start like it."""
    from cluster.checks import make_spec, read_dataset

    spec = make_spec(config, RunDirectory(path), 0, problems, runs)
    check(spec)
    read_dataset(spec)
    _check_reachable(config)
    return spec


def _resume(arguments: argparse.Namespace) -> int:
    settings = _given(arguments, "dataset", "steps", "workers", "address")
    if seed_dirs(arguments.run_dir):
        return resume_together(arguments, settings)
    run = RunDirectory.open(arguments.run_dir)
    from cluster.checks import check_tree, make_spec
    from cluster.metrics.discovery import left_behind
    from cluster.saving import check_parts, set_aside

    check_tree()
    name_env_again(run.path, arguments.env)
    config = resumed(run, settings)
    with written_at_start(run.path):
        run.hold()
    run.check_resumable(config)
    lost = check_parts(run, config, arguments.accept_loss)
    _check_reachable(config)
    spec = make_spec(config, run, 0)
    left = left_behind(run.path, run.config().metrics, spec.config.metrics)
    from cluster.drive import drive  # takes seconds: a signal meanwhile finds the run as it was

    with written_at_start(run.path):
        spec = dataclasses.replace(spec, start=run.count_start())
        run.write_config(spec.config)
        run.clear_outcome()
        set_aside(run, config, lost)
    print(*lost, *left, sep="\n", end="\n" * bool(lost or left))
    return drive(run, spec)


def train(
    algorithm: str,
    env: str | None,
    *,
    dataset: str | None,
    preset: str,
    run_dir: str | Path | None,
    settings: Mapping[str, Any],
    env_kwargs: Mapping[str, Any] | None,
) -> Path:
    """``drawbridge.train``: a whole run from Python; its directory."""
    from cluster.checks import check_tree

    check_tree()
    given = {key: "none" if value is None else str(value) for key, value in settings.items()}
    problems: list[str] = []
    config = new_run(algorithm, env, dataset, preset, given, problems, env_kwargs=env_kwargs)
    path = _new_run_dir(config) if run_dir is None else Path(run_dir).absolute()
    _start(config, path, problems)
    return path


def resolve(arguments: argparse.Namespace, problems: list[str] | None = None) -> RunConfig:
    """The configuration that a ``train`` command line asks for; ``problems`` takes what is wrong with its settings."""
    settings = _given(
        arguments, "steps", "seed", "backend", "workers", "envs_per_worker", "shards", "learners", "device", "address"
    )
    base = read_settings(arguments.config) if arguments.config else {}
    theirs, preset = base.pop("algorithm", arguments.algorithm), base.pop("preset", "cpu")
    if theirs != arguments.algorithm:
        raise UsageError(
            f"--config {arguments.config} is of {theirs}, expected {arguments.algorithm}: its fields are of another algorithm, so nothing "
            f"was started; give `train {theirs}`, or leave --config out"
        )
    chosen = arguments.env, arguments.dataset, arguments.preset or preset
    return new_run(arguments.algorithm, *chosen, settings, problems, base, str(arguments.config), arguments.env_kwargs)


def _given(arguments: argparse.Namespace, *flags: str) -> dict[str, str]:
    """The settings of ``--set``, and over them those of the flags that were given."""
    found = ((KEYS.get(flag, flag), getattr(arguments, flag)) for flag in flags)
    return settings_of(arguments.set) | {key: str(value) for key, value in found if value is not None}


def new_run(
    algorithm: str,
    env: str | None,
    dataset: str | None,
    preset: str,
    settings: dict[str, str],
    problems: list[str] | None = None,
    base: dict[str, str] | None = None,
    source: str = "",
    env_kwargs: str | Mapping[str, Any] | None = None,
) -> RunConfig:
    """A preset of an algorithm with these settings, in ``env`` or else in the dataset's task.

    Args:
        settings: by dotted key, over those of ``base``, which come from the file ``source``.
        problems: takes what is wrong with them; None: that is one UsageError.
    """
    config, base = make_preset(algorithm, preset), base or {}
    if dataset:
        settings["dataset"] = dataset
    data = settings.get("dataset", base.get("dataset", ""))
    if not data and ALGORITHMS[algorithm].items == "episodes":
        raise UsageError(
            f"train {algorithm} without --dataset: it learns from recorded episodes, so nothing was started; give "
            "--dataset ID (`drawbridge dataset list` shows those here, `drawbridge dataset make` makes one)"
        )
    settings["env"] = _task(env, env_kwargs, settings.get("env") or base.get("env") or "", data)
    if "steps" in settings and hasattr(config.agent, "updates"):  # the schedule of step sizes is as long as the run
        settings.setdefault("agent.updates", settings["steps"])
    found: list[str] = []
    config = override(make_preset(algorithm, preset, settings["env"]), base, found)
    found = [f"{source}: {text.removeprefix('--set ')}" for text in found]
    config = override(config, settings, found)
    found += without_effect(config, settings)
    if problems is not None:
        problems += found
    elif found:
        raise UsageError("\n".join(found))
    check_named(config, settings, source)
    from cluster.data_kind import evaluated_often  # with numpy: whoever trains nothing need not wait for it

    config = scheduled(config, settings if "steps" in settings else base | settings)
    return evaluated_often(config, base | settings)


def _task(env: str | None, env_kwargs: str | Mapping[str, Any] | None, written: str, name: str) -> str:
    """The task of a new run: the dataset's, as far as the command line, or else the setting ``env``, names no other.

    Args:
        written: the setting, a whole task; "" if none. name: of the dataset; "" if none.
    """
    env_id, kwargs = named_task(env, env_kwargs)
    if written:
        return _over(written, env_id, kwargs)
    if not (env_id or name):
        raise UsageError("neither --env nor --dataset was given, so there is nothing to learn; give one of them")
    if env_id and (kwargs is not None or not name):
        return join_task(env_id, kwargs or {})
    from cluster.dataset_task import check_same_task, task_of
    from replay.dataset import DatasetError, open_dataset

    try:
        dataset = open_dataset(name)
    except DatasetError as error:
        if env_id:
            return env_id  # the dataset's problem is listed with those of the environment
        raise UsageError(str(error)) from error
    found = env_id or dataset.env_id
    if not found:
        raise UsageError(
            f"{name} does not name its environment, so nothing could be evaluated and nothing was started; give --env"
        )
    if kwargs is not None or name_of(found) != name_of(dataset.env_id):
        return join_task(found, kwargs or {})
    task = task_of(dataset, found)
    if not env_id:
        check_same_task(dataset, task)
    return task


def _over(task: str, env_id: str, kwargs: dict[str, Any] | None) -> str:
    """``task`` with what the command line names of another one; its arguments stay if its id is named again."""
    if kwargs is None and env_id in ("", id_of(task)):
        return task
    return join_task(env_id or id_of(task), kwargs or {})


def _new_run_dir(config: RunConfig, seeds: str = "") -> Path:
    stem = f"{id_of(config.env)}-{config.algorithm}-{seeds or config.seed}".replace("/", "_").replace(":", "_")
    return _unused(Path("runs").absolute() / stem)


def _unused(stem: Path) -> Path:
    """``stem``-N with the least N that is not there yet."""
    number = 1
    while (path := stem.with_name(f"{stem.name}-{number}")).exists():
        number += 1
    return path


def _check_reachable(config: RunConfig) -> None:
    from cluster.connection import check_reachable

    if config.backend == "ray":
        check_reachable(config.ray.address)
