"""``evaluate``, ``plan``, ``diagnose`` and ``export``: what is done with a run's newest policy."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from cluster.commands.arguments import (
    add_command,
    add_env_again,
    add_settings,
    count,
    location,
    name_env_again,
    new_file,
    point,
    seed,
    settings_of,
)
from cluster.errors import RunError, UsageError
from cluster.run_dir import RunDirectory


def add_evaluate(commands: Any) -> None:
    evaluate = add_command(commands, "evaluate", _evaluate, "run deterministic episodes with a run's newest policy")
    evaluate.add_argument("run_dir", type=location, metavar="RUN_DIR")
    evaluate.add_argument("--episodes", type=count, default=10, help="episodes (default: 10)")
    evaluate.add_argument("--seed", type=seed, default=10_000, help="episode i starts from seed + i (default: 10000)")
    evaluate.add_argument(
        "--mode",
        choices=["prior", "st", "kl", "max", "explore"],
        help="how a policy that plans infers its plan (default: the run's); explore: as it gathers episodes, odt and iql's kind too",
    )
    evaluate.add_argument(
        "--target-return",
        type=float,
        metavar="Y",
        help="return to ask for, in the environment's units (gac in mode st, rvs, dt, odt)",
    )
    evaluate.add_argument("--json", action="store_true", help="one JSON object instead of words")
    evaluate.add_argument("--video", type=new_file, metavar="FILE.mp4", help="also record a video of the first episode")
    evaluate.add_argument(
        "--plot", type=new_file, metavar="FILE.png", help="also draw predicted against achieved returns (gac)"
    )
    add_env_again(evaluate)
    add_settings(evaluate, "any field agent.infer_* or agent.replan* of a run of gac; may be repeated")


def add_plan(commands: Any) -> None:
    plan = add_command(commands, "plan", _plan, "draw the plans of a run's newest policy in its maze, and their ascent")
    plan.add_argument("run_dir", type=location, metavar="RUN_DIR")
    plan.add_argument("--start", type=point, metavar="X,Y", help="where to start, in metres (default: a few starts)")
    plan.add_argument("--plot", type=new_file, required=True, metavar="FILE.png", help="where the picture goes")
    plan.add_argument("--seed", type=seed, default=10_000, help="of starts and samples (default: 10000)")
    add_env_again(plan)


def add_diagnose(commands: Any) -> None:
    diagnose = add_command(commands, "diagnose", _diagnose, "what the behaviour of a run of gac depends on")
    diagnose.add_argument("run_dir", type=location, metavar="RUN_DIR")
    diagnose.add_argument("--episodes", type=count, default=100, help="episodes of each kind (default: 100)")
    diagnose.add_argument("--seed", type=seed, default=10_000, help="episode i starts from seed + i (default: 10000)")
    diagnose.add_argument("--mode", choices=["st", "kl", "max"], help="how plans are searched (default: the run's)")
    diagnose.add_argument("--target-return", type=float, metavar="Y", help="return to ask for (st)")
    diagnose.add_argument(
        "--dataset",
        metavar="ID",
        help="recorded episodes to look at, such as others than were learned from (default: the run's)",
    )
    diagnose.add_argument("--json", action="store_true", help="one JSON object instead of words")
    add_env_again(diagnose)


def add_export(commands: Any) -> None:
    export = add_command(
        commands, "export", _export, "write a run's newest noise-free policy as a file for other programs"
    )
    export.add_argument("run_dir", type=location, metavar="RUN_DIR")
    export.add_argument(
        "--onnx", type=new_file, metavar="FILE.onnx", help="a graph for onnxruntime, which needs nothing else"
    )
    export.add_argument("--torch", type=new_file, metavar="FILE.pt2", help="a program for torch.export.load")
    add_env_again(export)


def _evaluate(arguments: argparse.Namespace) -> int:
    name_env_again(arguments.run_dir, arguments.env)
    from cluster.commands.counter import counted
    from cluster.commands.evaluation import evaluate, evaluation_in_words

    with counted("evaluating", arguments.episodes):
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
        print(json.dumps(result), file=arguments.stdout)
    else:
        print(evaluation_in_words(result))
        if arguments.video and "no_video" not in result:
            print(f"video: {arguments.video}")
        if arguments.plot:
            print(f"picture: {arguments.plot}")
    if "no_video" in result:
        raise RunError(result["no_video"])
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    name_env_again(arguments.run_dir, arguments.env)
    from cluster.pictures.plan_picture import draw_plans

    print(draw_plans(arguments.run_dir, arguments.plot, start=arguments.start, seed=arguments.seed))
    return 0


def _diagnose(arguments: argparse.Namespace) -> int:
    name_env_again(arguments.run_dir, arguments.env)
    from cluster.diagnosis import diagnose, diagnosis_in_words

    found = diagnose(
        arguments.run_dir,
        arguments.episodes,
        arguments.seed,
        mode=arguments.mode,
        target_return=arguments.target_return,
        dataset=arguments.dataset,
    )
    words = diagnosis_in_words(found)
    if arguments.json:
        print(json.dumps(found), file=arguments.stdout)
    else:
        print(words)
    try:
        RunDirectory(arguments.run_dir).write_diagnosis(words)
    except OSError as error:
        print(f"WARNING: not kept for `drawbridge report`: {error}", file=sys.stderr)
    return 0


def _export(arguments: argparse.Namespace) -> int:
    if arguments.onnx is None and arguments.torch is None:
        raise UsageError(
            "neither --onnx nor --torch was given, so there is nothing to write; give one of them, or both"
        )
    name_env_again(arguments.run_dir, arguments.env)
    from cluster.export import export_policy
    from cluster.policy import LoadedPolicy

    for line in export_policy(LoadedPolicy(arguments.run_dir), arguments.onnx, arguments.torch):
        print(line)
    return 0
