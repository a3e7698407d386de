"""GAC and its baselines: same datasets, same starts, same evaluation.

    python benchmarks/gac.py data                                  makes the maze datasets that are missing
    python benchmarks/gac.py offline --out runs/gac --tasks umaze --data d300 --seeds 1 2 3
    python benchmarks/gac.py offline --out runs/gac --tasks umaze --data d0 d50 --preset linear
    python benchmarks/gac.py online --out runs/gac --tasks umaze --data d0 --seeds 1 2 3
    python benchmarks/gac.py offline --tasks hopper --data medium-replay   the same on a SoftGAC agent's episodes, which are made first:
    drawbridge dataset make agent --train Hopper-v5 HalfCheetah-v5 Walker2d-v5 --steps 25000 --kind medium replay
    python benchmarks/gac.py table --out runs/gac                  Markdown tables of what is there

Offline: every algorithm is trained on the same dataset. What there is to choose (the return that rvs, dt and preset linear ask for,
linear's weight of the KL and number of ascent steps) is chosen for each mode on 50 starts (seeds 20000 and up); reported are 100
others (seeds 10000 and up). Preset cpu searches as it comes, on all data.
Online: three stages of GAC from the offline run of the same seed, by exploring plans whose target y+ moves or stays what it first was
(nothing else differs), or by exploiting plans, at equal episodes, with linear's weight of the KL that was chosen offline; each
mode is chosen and reported again. Rivals that can read each step's reward get an episode's sum, as GAC does, unless told --rewards
steps. Those that learn values make as many stages, episodes and updates; rlpd has no offline part, so its one
run makes them too.
Scores: 0 is the random policy, 100 the planner. One torch thread.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
TASKS = {
    "umaze": "PointMaze_UMaze-v3",
    "medium": "PointMaze_Medium-v3",
    "large": "PointMaze_Large-v3",
    "hopper": "Hopper-v5",
    "halfcheetah": "HalfCheetah-v5",
    "walker2d": "Walker2d-v5",
}
AGENTS = ("hopper", "halfcheetah", "walker2d")  # their data are a SoftGAC agent's
# Steps that the planner stays at a target, all of an episode in the last three (of UMaze, Medium and Large); of an agent.
DATA = {"d0": 0, "d50": 50, "d300": 300, "d600": 600, "d800": 800, "medium": None, "medium-replay": None}
COMPARED = ("gac", "bc", "percent-bc", "rvs", "dt", "odt", "iql", "td3-bc", "cql", "cal-ql", "rlpd", "softgac")
STAGED = ("odt", "iql", "td3-bc", "cql", "cal-ql")  # besides gac; rlpd gathers the same episodes in its only run
REWARDED = ("dt", "odt", "iql", "td3-bc", "cql", "cal-ql", "rlpd")  # can read each step's reward
LARGER = ("medium", "large")
TRAINING = {  # settings that are not the preset's own; cpu and linear: of gac
    **{("cpu", maze): ("--steps", "6000", "--set", "agent.updates=6000") for maze in LARGER},
    **{
        ("linear", maze): ("--steps", "3000", "--set", "agent.width=256", "--set", "agent.points=64") for maze in LARGER
    },
    **{(name, maze): ("--steps", "2000", "--set", "agent.context=5") for name in ("dt", "odt") for maze in TASKS},
    **{(name, maze): ("--steps", "3000") for name in ("bc", "percent-bc") for maze in TASKS},
    # The only one that acts: it is warm-started, and half of each batch stays the dataset's. Steps are env steps.
    **{("softgac", maze): ("--steps", "10000", "--set", "data.pretrain_updates=5000") for maze in TASKS},
}
TUNE, TEST = (20_000, 50), (10_000, 100)  # (first seed, episodes)
ONLINE = {  # settings of the command line
    "moving": ["--target", "moving"],
    "fixed": ["--target", "fixed"],
    "exploit": ["--set", "online.plan=kl"],
}
SHORTER = ["--episodes-per-stage", "100"]  # of agents' tasks: as the log has for Gym
# linear alone: a disturbed hopper falls, and one that is asked for too much does. Where all start alike the best episodes are worth
# drawing most.
CALM = ["--set", "agent.explore_action_std=0.1", "--set", "agent.explore_reach=1"]
BEST = ["--set", "data.sampling=return", "--set", "data.return_temperature=0.03"]


@dataclasses.dataclass(frozen=True)
class Choice:
    """One way to act with a trained policy."""

    mode: str
    settings: tuple[tuple[str, str], ...] = ()
    target: float | None = None  # in multiples of the data's best return

    def describe(self) -> dict[str, Any]:
        return {"mode": self.mode, "settings": dict(self.settings), "target": self.target}


def choices(algorithm: str, preset: str = "cpu") -> dict[str, list[Choice]]:
    """What is chosen from, by the name it is reported under; ``preset``: of GAC's runs."""
    if algorithm in ("dt", "odt"):
        return {algorithm: [Choice("", target=share) for share in (0.5, 1.0, 1.5, 2.0)]}
    if algorithm == "rvs":
        return {"rvs": [Choice("", target=share) for share in (0.6, 0.8, 1.0, 1.2, 1.5, 2.0, 3.0)]}
    if algorithm != "gac":
        return {algorithm: [Choice("")]}
    if preset == "cpu":
        return {mode: [Choice(mode)] for mode in ("prior", "st", "kl", "max")}
    return {
        "prior": [Choice("prior")],
        "st": [Choice("st", target=share) for share in (0.6, 0.8, 1.0, 1.5, 2.0, 3.0)],
        "kl": [Choice("kl", (("agent.infer_kl_weight", weight),)) for weight in ("1.0", "0.3", "0.1", "0.03", "0.01")],
        "max": [Choice("max", (("agent.infer_max_steps", steps),)) for steps in ("10", "30", "100", "200", "400")],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["data", "offline", "online", "table"])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gac")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=["umaze", "medium"])
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=["d0", "d50"])
    parser.add_argument("--algorithms", nargs="+", choices=COMPARED, default=list(COMPARED))
    parser.add_argument("--plans", nargs="+", choices=list(ONLINE), default=list(ONLINE))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--episodes", type=int, default=1_000, help="of a dataset")
    parser.add_argument("--preset", choices=["cpu", "linear"], default="cpu", help="of GAC's runs")
    parser.add_argument(
        "--rewards",
        choices=["sum", "steps"],
        default="sum",
        help="what those see that read rewards: an episode's sum at its end, as GAC does, or each step's",
    )
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE of GAC's runs, for ablations")
    parser.add_argument("--name", default="", help="of an ablation of GAC")
    arguments = parser.parse_args()
    if (arguments.set or arguments.name) and arguments.what != "table" and arguments.algorithms != ["gac"]:
        parser.error(
            "--set and --name are of GAC's runs, expected --algorithms gac with them: the others would not heed them"
        )
    arguments.out = arguments.out.resolve()  # commands run in ROOT
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.what == "table":
        print(table(arguments.out))
        return
    for maze in arguments.tasks:
        for data in arguments.data:
            make_dataset(maze, data, arguments.episodes)
    if arguments.what == "data":
        return
    for seed in arguments.seeds:
        for maze in arguments.tasks:
            for data in arguments.data:
                if arguments.what == "offline":
                    for algorithm in arguments.algorithms:
                        offline(arguments, maze, data, algorithm, seed)
                    continue
                for plan in arguments.plans if "gac" in arguments.algorithms else ():
                    online(arguments, maze, data, plan, seed)
                for algorithm in (name for name in arguments.algorithms if name in STAGED):
                    online_rival(arguments, maze, data, algorithm, seed)


def dataset_id(maze: str, data: str) -> str:
    return f"drawbridge/{'' if maze in AGENTS else 'pointmaze-'}{maze}-{data}-v0"


def make_dataset(maze: str, data: str, episodes: int) -> None:
    from replay.dataset import DatasetError, open_dataset

    try:
        open_dataset(dataset_id(maze, data))
    except DatasetError:
        if DATA[data] is None:
            raise
        words = ["dataset", "make", "maze", "--env", TASKS[maze], "--episodes", str(episodes), "--noise", "0.5"]
        drawbridge(*words, "--dwell", str(DATA[data]), "--seed", "1", "--id", dataset_id(maze, data))


def drawbridge(*words: str) -> None:
    command = [sys.executable, "-m", "cluster", *words]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})


def offline(arguments: argparse.Namespace, maze: str, data: str, algorithm: str, seed: int) -> None:
    """One trained policy, each mode chosen on some starts and reported on others."""
    if algorithm != "gac":
        settings = [f"agent.rewards={arguments.rewards}"] if algorithm in REWARDED else []
        name, longer = rewarded(algorithm, arguments.rewards), TRAINING.get((algorithm, maze), ())
        learn(arguments.out, maze, data, algorithm, seed, choices(algorithm), settings, name, longer)
        return
    preset, name = arguments.preset, named(arguments.preset, arguments.name)
    words = ["--preset", preset, *TRAINING.get((preset, maze), ())]
    learn(arguments.out, maze, data, algorithm, seed, choices(algorithm, preset), arguments.set, name, words)


def named(preset: str, ablation: str = "") -> str:
    """What GAC's runs are called besides: the preset where it is not the default, and of an ablation."""
    return joined("" if preset == "cpu" else preset, ablation)


def rewarded(algorithm: str, rewards: str) -> str:
    """What a rival's runs are called besides, where they see what GAC does not."""
    return "steps" if algorithm in REWARDED and rewards == "steps" else ""


def joined(*parts: object) -> str:
    """The parts that are not empty, with hyphens between them."""
    return "-".join(str(part) for part in parts if part != "")


def learn(
    out: Path,
    maze: str,
    data: str,
    algorithm: str,
    seed: int,
    options: dict[str, list[Choice]],
    settings: Sequence[str],
    name: str,
    words: Sequence[str] = (),
) -> None:
    """A run of ``algorithm`` over its preset, by ``words`` of the command line and then ``settings``."""
    stem = joined(algorithm, name, maze, data, seed)
    about = {"kind": "offline", "algorithm": algorithm, "name": name, "maze": maze, "data": data, "seed": seed}
    command = ["train", algorithm, "--dataset", dataset_id(maze, data), "--seed", str(seed), *words, "--run-dir"]
    scored(out, stem, about, options, command, settings)


def online(arguments: argparse.Namespace, maze: str, data: str, plan: str, seed: int) -> None:
    """Three stages from the offline run of the same seed."""
    out, preset, name = arguments.out, named(arguments.preset), named(arguments.preset, arguments.name)
    base = json.loads((out / f"{joined('gac', preset, maze, data, seed)}.json").read_text())
    stem = joined("online", plan, name, maze, data, seed)
    about = {"kind": "online", "plan": plan, "name": name, "maze": maze, "data": data, "seed": seed}
    command = ["finetune", str(out / base["run_dir"]), *ONLINE[plan]]
    if maze in AGENTS:
        command += [*SHORTER, *(CALM + BEST if arguments.preset == "linear" else ())]
    if plan == "exploit":
        for key, value in base["scores"]["kl"]["chosen"]["settings"].items():
            command += ["--set", f"{key}={value}"]
    scored(out, stem, about, choices("gac", arguments.preset), [*command, "--out"], arguments.set)


def online_rival(arguments: argparse.Namespace, maze: str, data: str, algorithm: str, seed: int) -> None:
    """As many stages, episodes and updates as GAC has, from the offline run of the same seed."""
    out, name = arguments.out, rewarded(algorithm, arguments.rewards)
    stem = joined(algorithm, name, maze, data, seed)
    base = json.loads((out / f"{stem}.json").read_text())
    about = {"kind": "online", "plan": "", "name": name, "maze": maze, "data": data, "seed": seed}
    command = ["finetune", str(out / base["run_dir"]), *(SHORTER if maze in AGENTS else ()), "--out"]
    scored(out, f"online-{stem}", about, choices(algorithm), command, [])


def scored(
    out: Path,
    stem: str,
    about: dict[str, Any],
    options: dict[str, list[Choice]],
    command: Sequence[str],
    settings: Sequence[str],
) -> None:
    """Runs ``command``, whose last word takes the run's directory, and writes down what each mode scores; nothing where
    ``stem`` is there already."""
    if (out / f"{stem}.json").exists():
        return
    run_dir, began = out / f"{stem}-{int(time.time())}", time.monotonic()
    words = [*command, str(run_dir.resolve()), "--backend", "inline"]
    for setting in ("evaluation.every_steps=0", "evaluation.final_episodes=1", *settings):
        words += ["--set", setting]
    drawbridge(*words)
    record = about | {"run_dir": run_dir.name, "settings": list(settings), "train_s": time.monotonic() - began}
    record["scores"] = {label: best_of(run_dir, some) for label, some in options.items()}
    write(out / f"{stem}.json", record)


def best_of(run_dir: Path, options: list[Choice]) -> dict[str, Any]:
    """The option that does best on the tuning starts, on the test starts."""
    tuned = [evaluate(run_dir, option, *TUNE)["score"] for option in options]
    chosen = options[int(np.argmax(tuned))]
    return {"chosen": chosen.describe(), "tuned": tuned, **evaluate(run_dir, chosen, *TEST)}


def evaluate(run_dir: Path, choice: Choice, first_seed: int, episodes: int) -> dict[str, Any]:
    """Scores of one way to act; those of starts outside the goal apart."""
    from algorithms import ALGORITHMS
    from algorithms.interface import PlanRequest
    from cluster.checks import spec_of
    from cluster.commands.evaluation import newest_weights
    from cluster.config import override
    from cluster.graph import make_evaluator
    from cluster.run_dir import RunDirectory

    run = RunDirectory(run_dir)
    spec = spec_of(run.config(), run)
    dataset = spec.dataset
    assert dataset is not None
    target = None if choice.target is None else choice.target * dataset.summary().return_max
    acting = dataclasses.replace(spec, config=override(spec.config, dict(choice.settings)))
    aim = (
        PlanRequest(mode=choice.mode, target_return=target)
        if ALGORITHMS[spec.config.algorithm].takes_requests
        else None
    )
    found = make_evaluator(acting).evaluate(newest_weights(spec), episodes, first_seed, aim)
    scores = np.array([dataset.normalised(value) for value in found.returns])
    outside = ~np.array(found.starts_in_goal or [False] * len(scores))
    predicted = np.array([dataset.normalised(value) for value in found.predicted])
    return {
        "score": float(scores.mean()),
        "outside_goal": float(scores[outside].mean()),
        "reached": float(np.mean(np.array(found.reached) >= 0)) if found.reached else None,
        "predicted": float(predicted.mean()) if len(predicted) else None,
        "episodes": {"score": scores.round(2).tolist(), "predicted": predicted.round(2).tolist()},
    }


def write(path: Path, record: dict[str, Any]) -> None:
    path.write_text(json.dumps(record))
    figures = {label: round(found["score"], 1) for label, found in record["scores"].items()}
    print(path.stem, f"{record['train_s']:.0f} s", figures, flush=True)


def table(out: Path) -> str:
    """Mean over seeds with its bootstrap interval, and each seed's score; with one seed there is no interval."""
    records = [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]
    lines = []
    for kind in ("offline", "online"):
        groups: dict[tuple[str, str, str], dict[str, list[float]]] = {}
        for record in (r for r in records if r["kind"] == kind):
            for label, found in record["scores"].items():
                row = " ".join(part for part in (record.get("plan", ""), label, record["name"]) if part)
                column = groups.setdefault((kind, record["maze"], record["data"]), {})
                column.setdefault(row, []).append(found["score"])
        for (_, maze, data), rows in groups.items():
            lines += [f"\n{maze} {data}, {kind}\n", "| | mean | 95 % | seeds |", "|---|---|---|---|"]
            lines += [
                f"| {row} | {np.mean(scores):.1f} | {interval(scores)} | {' / '.join(f'{score:.1f}' for score in scores)} |"
                for row, scores in rows.items()
            ]
    return "\n".join(lines)


def interval(scores: Sequence[float]) -> str:
    """Where 95 % of the means of 10,000 resamples of the seeds lie."""
    if len(scores) < 2:
        return "one seed"
    drawn = np.random.default_rng(0).choice(scores, (10_000, len(scores)))
    low, high = np.percentile(drawn.mean(1), (2.5, 97.5))
    return f"{low:.1f} to {high:.1f}"


if __name__ == "__main__":
    main()
