"""The ``drawbridge`` command: exit code 0 on success, 2 when what was asked for cannot be done, another one on failure."""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from algorithms import ALGORITHMS
from cluster.config import PRESETS, RunConfig, describe, make_preset, override
from cluster.errors import Interrupted, RunError, UsageError


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
    resume = _command(commands, "resume", _resume, "go on with a run that ended, was stopped or was killed")
    resume.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    resume.add_argument("--steps", type=_count, help="env steps of the whole run (default: as before)")
    resume.add_argument("--address", help="Ray cluster to run on, host:port (default: as before)")
    evaluate = _command(commands, "evaluate", _evaluate, "run deterministic episodes with a run's newest policy")
    evaluate.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    evaluate.add_argument("--episodes", type=_count, default=10, help="episodes (default: 10)")
    evaluate.add_argument("--seed", type=int, default=10_000, help="episode i starts from seed + i (default: 10000)")
    evaluate.add_argument("--json", action="store_true", help="one JSON object instead of words")
    evaluate.add_argument("--video", type=Path, metavar="FILE.mp4", help="also film the first episode")
    scale = _command(commands, "scale", _scale, "change the number of rollout workers while the run goes on")
    scale.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    scale.add_argument("--workers", type=_count, required=True, help="rollout workers from now on, 1 to 4096")
    scale.add_argument(
        "--timeout", type=float, default=120.0, help="seconds to wait for the run's answer (default: 120)"
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
    config.add_argument("--algorithm", default="softgac", choices=list(ALGORITHMS), help="(default: softgac)")
    return parser


def _add_train(commands: Any) -> None:
    train = _command(commands, "train", _train, "train a policy")
    train.add_argument("algorithm", choices=list(ALGORITHMS))
    train.add_argument("--env", required=True, help="Gymnasium environment id")
    train.add_argument(
        "--preset", default="cpu", help="cpu (two cores) or paper (published settings; needs a GPU) (default: cpu)"
    )
    train.add_argument("--steps", type=_count, help="env steps of the whole run (default: the preset's)")
    train.add_argument("--workers", type=_count, help="rollout worker processes (default: the preset's)")
    train.add_argument(
        "--envs-per-worker", type=_count, help="environments a worker steps as one batch (default: the preset's)"
    )
    train.add_argument("--shards", type=_count, help="replay shard processes (default: 1)")
    train.add_argument("--learners", type=_count, help="learner processes that share one update (default: 1)")
    train.add_argument(
        "--backend", choices=["ray", "inline"], help="ray: actors; inline: one process, deterministic (default: ray)"
    )
    train.add_argument(
        "--address", help="Ray cluster to run on, host:port (default: RAY_ADDRESS, else one of the run's own)"
    )
    train.add_argument("--seed", type=int, help="seed of everything random (default: 1)")
    train.add_argument("--run-dir", type=Path, help="a new directory for the run (default: runs/ENV-ALGORITHM-SEED-N)")
    train.add_argument("--device", choices=["cpu", "cuda", "auto"], help="where learners compute (default: auto)")
    train.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any field of `drawbridge config PRESET`; may be repeated",
    )


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int | None], help: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
    parser.set_defaults(command=run)
    return parser


def _count(text: str) -> int:
    try:
        value = float(text.replace("_", ""))
        if value >= 1 and value == int(value):
            return int(value)
    except (ValueError, OverflowError):
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")


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


def resolve(arguments: argparse.Namespace) -> RunConfig:
    """The configuration that a ``train`` command line asks for."""
    config = make_preset(arguments.algorithm, arguments.preset)
    settings = {"env": arguments.env}
    for pair in arguments.set:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--set {pair}: expected KEY=VALUE; nothing was started")
        settings[key] = value
    for flag, key in FLAGS.items():
        value = getattr(arguments, flag)
        if value is not None:
            settings[key] = str(value)
    return override(config, settings)


def _train(arguments: argparse.Namespace) -> int:
    from cluster.checks import check_tree, make_plan
    from cluster.drive import drive
    from cluster.run_dir import RunDirectory

    check_tree()
    config = resolve(arguments)
    path = arguments.run_dir or _new_run_dir(config)
    plan = make_plan(config, RunDirectory(path), 0)  # every problem is found before anything is written
    _knock(config)
    return drive(RunDirectory.create(path, config), plan)


def _new_run_dir(config: RunConfig) -> Path:
    stem = f"{config.env}-{config.algorithm}-{config.seed}".replace("/", "_").replace(":", "_")
    number = 1
    while (path := Path("runs") / f"{stem}-{number}").exists():
        number += 1
    return path


def _resume(arguments: argparse.Namespace) -> int:
    from cluster.checks import check_tree, make_plan
    from cluster.drive import drive
    from cluster.run_dir import RunDirectory

    check_tree()
    run = RunDirectory.open(arguments.run_dir)
    settings = {"steps": str(arguments.steps)} if arguments.steps else {}
    if arguments.address:
        settings["ray.address"] = arguments.address
    config = override(run.config(), settings)
    run.hold()
    run.check_resumable(config)
    _knock(config)
    plan = make_plan(config, run, run.count_start())
    run.write_config(config)
    run.clear_outcome()
    return drive(run, plan)


def _knock(config: RunConfig) -> None:
    from cluster.connection import knock

    if config.backend == "ray":
        knock(config.ray.address)


def _evaluate(arguments: argparse.Namespace) -> int:
    from cluster.inspection import evaluate

    result = evaluate(arguments.run_dir, arguments.episodes, arguments.seed, arguments.video)
    if arguments.json:
        print(json.dumps(result))
    else:
        print(
            f"{result['env']}: {result['return_mean']:.1f} +- {result['return_std']:.1f} over {len(result['returns'])} deterministic "
            f"episodes (policy of {result['env_steps']:,} env steps)"
        )
        if arguments.video:
            print(f"film: {arguments.video}")
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

    write_report(arguments.run_dirs, arguments.output)
    print(arguments.output)
    return 0


def _presets(arguments: argparse.Namespace) -> int:
    for name, make in PRESETS.items():
        print(f"{name:8} {(make.__doc__ or '').strip()}")
    print("\n`drawbridge config PRESET` shows every field of one.")
    return 0


def _config(arguments: argparse.Namespace) -> int:
    print(describe(make_preset(arguments.algorithm, arguments.preset)))
    return 0
