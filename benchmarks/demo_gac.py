"""From nothing to a fine-tuned maze policy, with its pictures: ``make train-gac``, or ``python benchmarks/demo_gac.py``.

Every step is a command of `drawbridge` and is shown as one: a dataset of the maze planner, GAC on it, the four modes of inference
on the same 100 starts, three stages online through the fleet on Ray, the four modes again. Scores: 0 is the random
policy, 100 the planner. What a command says goes to log.txt, but for the two that learn, which show themselves.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cluster.metrics.wording import clock

ROOT = Path(__file__).resolve().parent.parent
MODES = ("prior", "st", "kl", "max")
LAST_LINES = 15  # of the log, shown when a step fails


class Step(NamedTuple):
    """One command of `drawbridge`."""

    what: str
    words: list[str]
    shown: bool = False  # lets its own lines through
    into: Path | None = None  # where its standard output goes as well


def main() -> int:
    """Exit code 0 when every step succeeded; that of the first which did not, otherwise."""
    options = parse(None)
    options.out = unused(options.out)
    options.out.mkdir(parents=True)
    steps, began = plan(options, dataset_exists(options.dataset)), time.monotonic()
    for number, step in enumerate(steps, 1):
        print(f"[{number}/{len(steps)}] {clock(time.monotonic() - began)}  {step.what}", flush=True)
        print(f"    drawbridge {shlex.join(step.words)}", flush=True)
        if code := run(step, options.out / "log.txt"):
            return code
    print(f"\n{closing(options.out, time.monotonic() - began)}")
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The demonstration's sizes; a smaller one takes smaller numbers."""
    parser = argparse.ArgumentParser(description="From nothing to a fine-tuned maze policy, with its pictures.")
    parser.add_argument("--dataset", default="drawbridge/pointmaze-umaze-d0-v0", help="made first unless it is there")
    parser.add_argument("--env", default="PointMaze_UMaze-v3", help="maze that a dataset is made of")
    parser.add_argument("--episodes", type=int, default=1_000, help="of the dataset")
    parser.add_argument("--updates", type=int, default=2_000, help="on the dataset alone")
    parser.add_argument("--stages", type=int, default=3)
    parser.add_argument("--episodes-per-stage", type=int, default=500)
    parser.add_argument("--updates-per-stage", type=int, default=2_500)
    parser.add_argument("--evaluation-episodes", type=int, default=100, help="of each mode, before and after")
    parser.add_argument("--backend", choices=["ray", "inline"], default="ray")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/gac-demo"), help="a new directory for everything")
    return parser.parse_args(argv)


def unused(path: Path) -> Path:
    """``path``, or ``path``-N with the least N from 2 on that is not there yet."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def dataset_exists(name: str) -> bool:
    from replay.dataset import list_datasets

    return name in {row.id for row in list_datasets()}


def plan(options: argparse.Namespace, data_is_there: bool) -> list[Step]:
    """Every step, in order."""
    o, out = options, options.out
    made = ["dataset", "make", "maze", "--env", o.env, "--episodes", str(o.episodes), "--id", o.dataset]
    stages = ["--stages", str(o.stages), "--episodes-per-stage", str(o.episodes_per_stage)]
    stages += ["--updates-per-stage", str(o.updates_per_stage)]
    train = ["train", "gac", "--dataset", o.dataset, "--steps", str(o.updates), "--seed", str(o.seed)]
    return [
        *([] if data_is_there else [Step("a planner walks to random targets", made)]),
        Step("what is in the data", ["dataset", "show", o.dataset, "--plot", str(out / "dataset.png")]),
        Step("learning offline", [*train, "--backend", o.backend, "--run-dir", str(out / "offline")], shown=True),
        *judged(o, "offline"),
        Step(
            f"{o.stages} stages online",
            ["finetune", str(out / "offline"), *stages, "--out", str(out / "online")],
            shown=True,
        ),
        *judged(o, "online"),
        Step(
            "both runs on one page",
            ["report", str(out / "offline"), str(out / "online"), "--output", str(out / "report.html")],
        ),
    ]


def judged(options: argparse.Namespace, name: str) -> list[Step]:
    """The four modes on the same starts, and a picture of their plans."""
    run, episodes = options.out / name, str(options.evaluation_episodes)
    steps = []
    for mode in MODES:
        words = ["evaluate", str(run), "--mode", mode, "--episodes", episodes, "--json"]
        if mode == "kl":
            words += ["--plot", str(options.out / f"calibration-{name}.png")]
        steps.append(Step(f"{name} policy, mode {mode}", words, into=options.out / f"{name}-{mode}.json"))
    return [*steps, Step(f"{name} plans", ["plan", str(run), "--plot", str(options.out / f"plans-{name}.png")])]


def run(step: Step, log: Path) -> int:
    """Runs one step; its exit code, and the end of the log where it failed."""
    command = [sys.executable, "-m", "cluster", *step.words]
    if step.shown:
        return subprocess.run(command, cwd=ROOT, check=False).returncode
    with open(log, "a") as file:
        file.write(f"$ drawbridge {shlex.join(step.words)}\n")
        file.flush()
        done = subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.PIPE, stderr=file, text=True)
        file.write(done.stdout)
    if step.into is not None and not done.returncode:
        step.into.write_text(done.stdout)
    if done.returncode:
        print("\n".join(log.read_text().splitlines()[-LAST_LINES:]), file=sys.stderr)
    return done.returncode


def closing(out: Path, seconds: float) -> str:
    """The scores before and after, and where everything is."""
    lines = [f"done in {clock(seconds)}; normalised scores (0: random, 100: the planner) over the same starts", ""]
    lines += [f"    {'mode':8}{'offline':>10}{'online':>10}{'predicted':>22}"]
    for mode in MODES:
        before, after = (json.loads((out / f"{name}-{mode}.json").read_text()) for name in ("offline", "online"))
        told = f"{score_of_prediction(before):.0f}, then {score_of_prediction(after):.0f}"
        lines.append(f"    {mode:8}{before['normalised_mean']:10.1f}{after['normalised_mean']:10.1f}{told:>22}")
    found = (
        ("dataset.png", "returns and ways of the data"),
        ("plans-offline.png", "plans of each mode, their ascent and what came of it; plans-online.png the same after"),
        ("calibration-offline.png", "predicted against achieved returns (kl); calibration-online.png the same after"),
        ("report.html", "curves of both runs; offline/curve.png and online/curve.png are its pictures"),
        ("online", "the run: `drawbridge evaluate`, `plan`, `finetune` and `report` take it"),
        ("online-kl.json", "every episode: return, prediction, path, shortest path; one file for each mode and run"),
    )
    return "\n".join([*lines, "", *(f"    {out / name}\n        {what}" for name, what in found)])


def score_of_prediction(found: dict) -> float:
    """Mean predicted return on the same scale."""
    mean = sum(found["predicted"]) / len(found["predicted"])
    return 100 * (mean - found["random_return"]) / (found["expert_return"] - found["random_return"])


if __name__ == "__main__":
    sys.exit(main())
