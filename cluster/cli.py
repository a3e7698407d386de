"""The ``drawbridge`` command: exit code 0 on success, 2 when what was asked for cannot be done, another one on failure."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from algorithms import ALGORITHMS
from cluster.arguments import count, point, seconds, seed
from cluster.config import PRESETS, RunConfig, describe, make_preset, override
from cluster.dataset_command import add_dataset
from cluster.env_again import add_env_again, name_env_again
from cluster.errors import Interrupted, RunError, UsageError

if TYPE_CHECKING:
    from cluster.graph import Plan


def main(argv: list[str] | None = None) -> int:
    """Runs one command; the last line on standard error is the root cause when it fails."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        return int(arguments.command(arguments) or 0)
    except UsageError as error:
        return _failed(error, 2)
    except Interrupted as error:
        return _failed(error, 128 + error.signum)
    except KeyboardInterrupt:
        return _failed(RunError("interrupted"), 130)
    except BrokenPipeError:
        return 1
    except RunError as error:
        return _failed(error, 1)
    except Exception as error:
        traceback.print_exc()
        return _failed(error, 1)


def _failed(error: BaseException, code: int) -> int:
    print(f"drawbridge: error: {error}", file=sys.stderr)
    return code


@functools.cache
def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="drawbridge",
        description="Distributed actor-learner training of generative actor-critics on Ray.",
        epilog="exit codes: 0 success, 2 usage error (nothing was started), 1 failure (root cause last), 128+N ended by signal N",
        formatter_class=formatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_finetune(commands)
    add_dataset(commands)
    resume = _command(commands, "resume", _resume, "go on with a run that ended, was stopped or was killed")
    resume.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    resume.add_argument("--steps", type=count, help="env steps of the whole run (default: as before)")
    resume.add_argument("--address", help="Ray cluster to run on, host:port (default: as before)")
    resume.add_argument(
        "--accept-loss",
        action="store_true",
        help="begin anew what is missing of checkpoints and snapshots, keep the rest (default: refuse)",
    )
    add_env_again(resume)
    evaluate = _command(commands, "evaluate", _evaluate, "run deterministic episodes with a run's newest policy")
    evaluate.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    evaluate.add_argument("--episodes", type=count, default=10, help="episodes (default: 10)")
    evaluate.add_argument("--seed", type=seed, default=10_000, help="episode i starts from seed + i (default: 10000)")
    evaluate.add_argument(
        "--mode",
        choices=["prior", "st", "kl", "max"],
        help="how a policy that plans infers its plan (default: the run's)",
    )
    evaluate.add_argument(
        "--target-return", type=float, metavar="Y", help="return to ask for, in the environment's units (st, dt)"
    )
    evaluate.add_argument("--json", action="store_true", help="one JSON object instead of words")
    evaluate.add_argument("--video", type=Path, metavar="FILE.mp4", help="also film the first episode")
    evaluate.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="also draw predicted against achieved returns (gac)"
    )
    add_env_again(evaluate)
    _add_settings(evaluate, "any field agent.infer_* or agent.replan* of a run of gac; may be repeated")
    plan = _command(commands, "plan", _plan, "draw the plans of a run's newest policy in its maze, and their ascent")
    plan.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    plan.add_argument("--start", type=point, metavar="X,Y", help="where to start, in metres (default: a few starts)")
    plan.add_argument("--plot", type=Path, required=True, metavar="FILE.png", help="where the picture goes")
    plan.add_argument("--seed", type=seed, default=10_000, help="of starts and samples (default: 10000)")
    add_env_again(plan)
    scale = _command(commands, "scale", _scale, "change the number of rollout workers while the run goes on")
    scale.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    scale.add_argument("--workers", type=count, required=True, help="rollout workers from now on, 1 to 4096")
    scale.add_argument(
        "--timeout", type=seconds, default=120.0, help="seconds to wait for the run's answer (default: 120)"
    )
    status = _command(commands, "status", _status, "how a run is going, or how it ended")
    status.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    status.add_argument("--json", action="store_true", help="one JSON object instead of words")
    report = _command(commands, "report", _report, "one self-contained HTML page with the curves of these runs")
    report.add_argument("run_dirs", type=Path, nargs="+", metavar="RUN_DIR")
    report.add_argument(
        "--output", type=Path, default=Path("report.html"), help="where the page goes (default: report.html)"
    )
    _command(commands, "presets", _presets, "the named configurations")
    config = _command(commands, "config", _config, "every field of a preset: value, unit, meaning")
    config.add_argument("preset", metavar="PRESET", help=", ".join(PRESETS))
    config.add_argument("--env", metavar="ID", help="resolve what preset paper sets by task (default: HalfCheetah-v5)")
    config.add_argument("--algorithm", default="softgac", choices=list(ALGORITHMS), help="(default: softgac)")
    return parser


def _add_train(commands: Any) -> None:
    train = _command(commands, "train", _train, "train a policy")
    train.add_argument("algorithm", choices=list(ALGORITHMS))
    train.add_argument("--env", help="Gymnasium environment id (default: the dataset's)")
    train.add_argument(
        "--dataset", metavar="ID", help="Minari dataset to learn from: id or path (see `drawbridge dataset`)"
    )
    train.add_argument(
        "--preset",
        default="cpu",
        help="cpu (two cores), timed (gac on long episodes) or paper (published settings; needs a GPU) (default: cpu)",
    )
    train.add_argument(
        "--steps",
        type=count,
        help="env steps of the whole run; of gac, bc, percent-bc and dt: updates (default: the preset's)",
    )
    train.add_argument("--workers", type=count, help="rollout worker processes (default: the preset's)")
    train.add_argument(
        "--envs-per-worker", type=count, help="environments a worker steps as one batch (default: the preset's)"
    )
    train.add_argument("--shards", type=count, help="replay shard processes (default: 1)")
    train.add_argument("--learners", type=count, help="learner processes that share one update (default: 1)")
    train.add_argument(
        "--backend", choices=["ray", "inline"], help="ray: actors; inline: one process, deterministic (default: ray)"
    )
    train.add_argument(
        "--address", help="Ray cluster to run on, host:port (default: RAY_ADDRESS, else one of the run's own)"
    )
    train.add_argument("--seed", type=int, help="seed of everything random (default: 1)")
    train.add_argument("--run-dir", type=Path, help="a new directory for the run (default: runs/ENV-ALGORITHM-SEED-N)")
    train.add_argument("--device", choices=["cpu", "cuda", "auto"], help="where learners compute (default: auto)")
    _add_settings(train)


def _add_settings(
    parser: argparse.ArgumentParser, help: str = "any field of `drawbridge config PRESET`; may be repeated"
) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=help,
    )


def _add_finetune(commands: Any) -> None:
    finetune = _command(
        commands, "finetune", _finetune, "go on online with the newest policy of an offline run, as a new run"
    )
    finetune.add_argument("run_dir", type=Path, metavar="RUN_DIR")
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
    finetune.add_argument("--backend", choices=["ray", "inline"], help="(default: the base run's)")
    finetune.add_argument("--address", help="Ray cluster to run on, host:port (default: the base run's)")
    finetune.add_argument("--seed", type=int, help="(default: the base run's)")
    finetune.add_argument(
        "--out", type=Path, metavar="DIR", help="directory of the new run (default: RUN_DIR-finetune-N)"
    )
    _add_settings(finetune)


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int | None], help: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
    parser.set_defaults(command=run)
    return parser


FLAGS = {
    "steps": "steps",
    "seed": "seed",
    "backend": "backend",
    "workers": "worker.workers",
    "envs_per_worker": "worker.envs_per_worker",
    "shards": "replay.shards",
    "learners": "learner.learners",
    "device": "learner.device",
    "address": "ray.address",
}


def settings_of(pairs: list[str]) -> dict[str, str]:
    """What --set asked for, by key."""
    settings = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--set {pair}: expected KEY=VALUE; nothing was started")
        settings[key] = value
    return settings


def resolve(arguments: argparse.Namespace, problems: list[str] | None = None) -> RunConfig:
    """The configuration that a ``train`` command line asks for; ``problems`` takes what is wrong with its settings."""
    from rollout_workers.env import name_module

    config = make_preset(arguments.algorithm, arguments.preset)
    settings = settings_of(arguments.set)
    if arguments.dataset:
        settings["dataset"] = arguments.dataset
    elif config.learns_from_episodes and "dataset" not in settings:
        raise UsageError(
            f"train {arguments.algorithm} without --dataset: it learns from recorded episodes, so nothing was started; give "
            "--dataset ID (`drawbridge dataset list` shows those here, `drawbridge dataset make` makes one)"
        )
    if arguments.env:
        name_module(arguments.env)
    settings["env"] = arguments.env or _env_of_dataset(settings.get("dataset", ""))
    if arguments.steps and hasattr(config.agent, "updates"):  # the schedule of step sizes is as long as the run
        settings.setdefault("agent.updates", str(arguments.steps))
    for flag, key in FLAGS.items():
        value = getattr(arguments, flag)
        if value is not None:
            settings[key] = str(value)
    return override(make_preset(arguments.algorithm, arguments.preset, settings["env"]), settings, problems)


def _env_of_dataset(name: str) -> str:
    from replay.dataset import DatasetError, open_dataset

    if not name:
        raise UsageError("neither --env nor --dataset was given, so there is nothing to learn; give one of them")
    try:
        found = open_dataset(name).env_id
    except DatasetError as error:
        raise UsageError(str(error)) from error
    if not found:
        raise UsageError(
            f"{name} does not name its environment, so nothing could be evaluated and nothing was started; give --env"
        )
    return found


def _train(arguments: argparse.Namespace) -> int:
    from cluster.checks import check_tree, make_plan
    from cluster.drive import drive
    from cluster.run_dir import RunDirectory

    check_tree()
    problems: list[str] = []
    config = resolve(arguments, problems)
    path = arguments.run_dir or _new_run_dir(config)
    plan = make_plan(config, RunDirectory(path), 0, problems)  # every problem is found before anything is written
    _read_dataset(plan)
    _knock(config)
    return drive(RunDirectory.create(path, config), plan)


def _new_run_dir(config: RunConfig) -> Path:
    stem = f"{config.env}-{config.algorithm}-{config.seed}".replace("/", "_").replace(":", "_")
    return _unused(Path("runs") / stem)


def _unused(stem: Path) -> Path:
    """``stem``-N with the least N that is not there yet."""
    number = 1
    while (path := stem.with_name(f"{stem.name}-{number}")).exists():
        number += 1
    return path


def _finetune(arguments: argparse.Namespace) -> int:
    from cluster.checks import check_tree, make_plan
    from cluster.drive import drive
    from cluster.finetune import check_base, finetuned
    from cluster.run_dir import RunDirectory
    from rollout_workers.env import name_module

    check_tree()
    base = RunDirectory.open(arguments.run_dir)
    settings = settings_of(arguments.set)
    for flag in ("dataset", "env", "backend", "seed", "steps"):
        if getattr(arguments, flag) is not None:
            settings[flag] = str(getattr(arguments, flag))
    name_module(settings.get("env", ""))
    for flag in ("stages", "episodes_per_stage", "updates_per_stage"):
        if getattr(arguments, flag) is not None:
            settings[f"online.{flag}"] = str(getattr(arguments, flag))
    if arguments.address:
        settings["ray.address"] = arguments.address
    problems: list[str] = []
    config = finetuned(base, settings, arguments.target, problems)
    path = arguments.out or _unused(base.path.with_name(f"{base.path.name}-finetune"))
    plan = make_plan(config, RunDirectory(path), 0, problems)
    check_base(plan)
    _read_dataset(plan)
    _knock(config)
    return drive(RunDirectory.create(path, config), plan)


def _read_dataset(plan: Plan) -> None:
    """One pass over a new run's dataset, which is kept for its learner: what cannot be learned from is found here."""
    from replay.dataset import DatasetError

    try:
        if plan.dataset is not None:
            plan.dataset.summary()
    except DatasetError as error:
        raise UsageError(f"{error}; nothing was started") from error


def _plan(arguments: argparse.Namespace) -> int:
    from cluster.plan_picture import draw_plans

    name_env_again(arguments.run_dir, arguments.env)
    print(draw_plans(arguments.run_dir, arguments.plot, start=arguments.start, seed=arguments.seed))
    return 0


def _resume(arguments: argparse.Namespace) -> int:
    from cluster.checks import check_tree, make_plan
    from cluster.drive import drive
    from cluster.missing import check_parts
    from cluster.run_dir import RunDirectory, written_at_start

    check_tree()
    run = RunDirectory.open(arguments.run_dir)
    name_env_again(run.path, arguments.env)
    settings = {"steps": str(arguments.steps)} if arguments.steps else {}
    if arguments.address:
        settings["ray.address"] = arguments.address
    config = override(run.config(), settings)
    with written_at_start(run.path):
        run.hold()
    run.check_resumable(config)
    lost = check_parts(run, config, arguments.accept_loss)
    _knock(config)
    plan = make_plan(config, run, 0)
    with written_at_start(run.path):
        plan = dataclasses.replace(plan, start=run.count_start())
        run.write_config(config)
        run.clear_outcome()
    for text in lost:
        print(text)
    return drive(run, plan)


def _knock(config: RunConfig) -> None:
    from cluster.connection import knock

    if config.backend == "ray":
        knock(config.ray.address)


def _evaluate(arguments: argparse.Namespace) -> int:
    from cluster.inspection import evaluate
    from cluster.inspection import evaluation_in_words as in_words

    name_env_again(arguments.run_dir, arguments.env)
    result = evaluate(
        arguments.run_dir,
        arguments.episodes,
        arguments.seed,
        arguments.video,
        mode=arguments.mode,
        target_return=arguments.target_return,
        plot=arguments.plot,
        settings=settings_of(arguments.set),
    )
    if arguments.json:
        print(json.dumps(result))
    else:
        print(in_words(result))
        if arguments.video:
            print(f"film: {arguments.video}")
        if arguments.plot:
            print(f"picture: {arguments.plot}")
    return 0


def _scale(arguments: argparse.Namespace) -> int:
    from cluster.run_dir import RunDirectory

    print(RunDirectory.open(arguments.run_dir).request_workers(arguments.workers, arguments.timeout))
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from cluster.inspection import status, status_in_words

    found = status(arguments.run_dir)
    print(json.dumps(found) if arguments.json else status_in_words(found))
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from cluster.report import write_report

    try:
        write_report(arguments.run_dirs, arguments.output)
    except OSError as error:
        raise RunError(
            f"{arguments.output} could not be written ({error}); give --output a file that can be"
        ) from error
    print(arguments.output)
    return 0


def _presets(arguments: argparse.Namespace) -> int:
    for name, make in PRESETS.items():
        print(f"{name:8} {(make.__doc__ or '').strip()}")
    print("\n`drawbridge config PRESET` shows every field of one.")
    return 0


def _config(arguments: argparse.Namespace) -> int:
    print(describe(make_preset(arguments.algorithm, arguments.preset, arguments.env)))
    return 0
