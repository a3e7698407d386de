"""From nothing to a fine-tuned maze policy, with its pictures: ``make train-gac``, or ``python benchmarks/demo_gac.py``.

Every step is a command of `drawbridge` and is shown as one: a dataset of the maze planner, GAC on it, the four modes of inference
on the same 100 starts and what its plan is worth, three rivals on the same data and starts, three stages online through the
fleet on Ray, the four modes again. Scores: 0 is the random policy, 100 the planner. What a command says goes to log.txt, but for
the two of GAC that learn, which show themselves. The same command given again goes on at the step that was interrupted or failed.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import itertools
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cluster.metrics.wording import clock
from cluster.run_dir import RunDirectory

ROOT = Path(__file__).resolve().parent.parent
MODES = ("prior", "st", "kl", "max")
RIVALS = ("bc", "percent-bc", "rvs")
LAST_LINES = 15  # of the log, shown when a step fails
DATA_SEED = 1  # the data is the same whatever the seed of learning


class Step(NamedTuple):
    """One command of `drawbridge`."""

    what: str
    words: list[str]
    shown: bool = False  # lets its own lines through
    into: Path | None = None  # where its standard output goes as well
    run: Path | None = None  # the run that it makes, which is resumed once it has begun


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 when every step succeeded; that of the first which did not, otherwise; 2 if the dataset is another one."""
    options = parse(argv)
    if problem := other_dataset(options):
        print(f"demo_gac: error: {problem}", file=sys.stderr)
        return 2
    began = time.monotonic()
    with folder(options) as state:
        steps = plan(options)
        for number, step in enumerate(steps, 1):
            words = [] if number <= state.done else what_is_left(step, options)
            print(f"[{number}/{len(steps)}] {clock(time.monotonic() - began)}  {step.what}", flush=True)
            print(f"    drawbridge {shlex.join(words)}" if words else "    is there", flush=True)
            if words and (code := run(step._replace(words=words), options.out / "log.txt")):
                print(f"step {number} did not finish; the same command goes on with it", file=sys.stderr)
                return code
            state.finished(number)
    print(f"\n{closing(options.out, time.monotonic() - began)}")
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The demonstration's sizes; a smaller one takes smaller numbers."""
    parser = argparse.ArgumentParser(description="From nothing to a fine-tuned maze policy, with its pictures.")
    parser.add_argument("--dataset", default="drawbridge/pointmaze-umaze-d300-v0", help="made first unless it is there")
    parser.add_argument("--env", default="PointMaze_UMaze-v3", help="maze that a dataset is made of")
    parser.add_argument("--episodes", type=int, default=1_000, help="of the dataset")
    parser.add_argument(
        "--dwell", type=int, default=300, help="steps that the planner stays at a target: all of an episode"
    )
    parser.add_argument("--updates", type=int, default=3_000, help="on the dataset alone")
    parser.add_argument("--rival-updates", type=int, default=5_000, help="of each rival")
    parser.add_argument("--stages", type=int, default=3)
    parser.add_argument("--episodes-per-stage", type=int, default=500)
    parser.add_argument("--updates-per-stage", type=int, default=2_500)
    parser.add_argument("--evaluation-episodes", type=int, default=100, help="of each mode, before and after")
    parser.add_argument("--backend", choices=["ray", "inline"], default="ray")
    parser.add_argument("--seed", type=int, default=1, help=f"of all that learns; that of the dataset is {DATA_SEED}")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of the run on the dataset, and of that after it",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/gac-demo"),
        help="for everything: a new directory, or that of the same command",
    )
    return parser.parse_args(argv)


class State:
    """What was asked for in a directory, and how many steps are done."""

    def __init__(self, out: Path, options: argparse.Namespace) -> None:
        self.path, self.done = out / "demo.json", 0
        self.asked = {name: value for name, value in vars(options).items() if name != "out"}

    def unfinished(self, steps: int) -> bool:
        """Whether the same was asked for there before, and is not done."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads(self.path.read_text())
            self.done = int(found["done"])
            return bool(found["asked"] == self.asked and self.done < steps)
        return False

    def finished(self, number: int) -> None:
        self.done = max(self.done, number)
        self.path.write_text(json.dumps({"asked": self.asked, "done": self.done}) + "\n")


@contextlib.contextmanager
def folder(options: argparse.Namespace) -> Iterator[State]:
    """Sets ``options.out`` to the first of OUT, OUT-2, OUT-3, ... that is new, or unfinished by the same command; it is locked."""
    first: Path = options.out
    for number in itertools.count(1):
        options.out = first if number == 1 else first.with_name(f"{first.name}-{number}")
        state, new = State(options.out, options), not options.out.exists()
        if not new and not state.unfinished(len(plan(options))):
            continue
        options.out.mkdir(parents=True, exist_ok=True)
        with open(options.out / "demo.lock", "a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # it is being made
                continue
            state.finished(0)
            yield state
            return


def other_dataset(options: argparse.Namespace) -> str:
    """What is wrong with the dataset that is there, in a sentence; "" if there is none, or the one that would be made."""
    from cluster.cli import _parser
    from replay.dataset import DatasetError, open_dataset

    if not dataset_exists(options.dataset):
        return ""
    asked = _parser().parse_args(plan(options)[0].words)
    names = ("env", "episodes", "noise", "dwell", "seed")
    try:
        found = open_dataset(options.dataset)
    except DatasetError as error:
        return f"{error}; nothing was started"
    there = found.description | {"env": found.env_id.removeprefix("FixedGoal/"), "episodes": found.total_episodes}
    if differing := [name for name in names if there.get(name) != getattr(asked, name)]:
        seen = ", ".join(f"{name} {there.get(name)}" for name in differing)
        wanted = ", ".join(f"{name} {getattr(asked, name)}" for name in differing)
        return (
            f"dataset {options.dataset} is there with {seen}, expected {wanted}: it would be learned from and scored as if it were the one "
            "asked for, so nothing was started; give --dataset with another id, or make this one anew with "
            f"`drawbridge {shlex.join(plan(options)[0].words)} --force`"
        )
    return ""


def dataset_exists(name: str) -> bool:
    from replay.dataset import list_datasets

    return name in {row.id for row in list_datasets()}


def what_is_left(step: Step, options: argparse.Namespace) -> list[str]:
    """The command that does ``step``, or the rest of it; none if it is done."""
    if step.words[:2] == ["dataset", "make"] and dataset_exists(options.dataset):
        return []
    if step.run is None or not step.run.exists() or RunDirectory(step.run).never_began():
        return step.words
    if (RunDirectory(step.run).summary() or {}).get("exit") == "completed":
        return []
    return ["resume", str(step.run)]


def plan(options: argparse.Namespace) -> list[Step]:
    """Every step, in order."""
    o, out = options, options.out
    made = ["dataset", "make", "maze", "--env", o.env, "--episodes", str(o.episodes), "--id", o.dataset]
    made += ["--dwell", str(o.dwell), "--seed", str(DATA_SEED)]
    stages = ["--stages", str(o.stages), "--episodes-per-stage", str(o.episodes_per_stage)]
    stages += ["--updates-per-stage", str(o.updates_per_stage)]
    train = ["train", "gac", "--dataset", o.dataset, "--steps", str(o.updates), "--seed", str(o.seed)]
    train += [word for pair in o.set for word in ("--set", pair)]
    return [
        Step("a planner walks to one random target an episode", made),
        Step("what is in the data", ["dataset", "show", o.dataset, "--plot", str(out / "dataset.png")]),
        Step(
            "learning offline",
            [*train, "--backend", o.backend, "--run-dir", str(out / "offline")],
            shown=True,
            run=out / "offline",
        ),
        *judged(o, "offline"),
        Step(
            "what the plan is worth",
            ["diagnose", str(out / "offline"), "--episodes", str(o.evaluation_episodes), "--json"],
            into=out / "diagnosis.json",
        ),
        *[step for name in RIVALS for step in rival(o, name)],
        Step(
            f"{o.stages} stages online",
            ["finetune", str(out / "offline"), *stages, "--out", str(out / "online")],
            shown=True,
            run=out / "online",
        ),
        *judged(o, "online"),
        Step(
            "both runs on one page",
            ["report", str(out / "offline"), str(out / "online"), "--output", str(out / "report.html")],
        ),
    ]


def rival(options: argparse.Namespace, name: str) -> list[Step]:
    """Another algorithm on the same data and starts."""
    o, run = options, options.out / name
    train = ["train", name, "--dataset", o.dataset, "--steps", str(o.rival_updates), "--seed", str(o.seed)]
    train += ["--backend", "inline", "--set", "evaluation.every_steps=0", "--set", "evaluation.final_episodes=1"]
    words = ["evaluate", str(run), "--episodes", str(o.evaluation_episodes), "--json"]
    return [
        Step(f"{name} learns from the same data", [*train, "--run-dir", str(run)], run=run),
        Step(f"{name} on the same starts", words, into=o.out / f"{name}.json"),
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
    with passed_on() as started:
        if step.shown:
            return finished(started(subprocess.Popen(command, cwd=ROOT, text=True)))[0]
        with open(log, "a") as file:
            file.write(f"$ drawbridge {shlex.join(step.words)}\n")
            file.flush()
            process = started(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=file, text=True))
            code, output = finished(process)
            file.write(output)
    if step.into is not None and not code:
        step.into.write_text(output)
    if code:
        print("\n".join(log.read_text().splitlines()[-LAST_LINES:]), file=sys.stderr)
    return code


@contextlib.contextmanager
def passed_on() -> Iterator[Callable[[subprocess.Popen[str]], subprocess.Popen[str]]]:
    """A signal lets what was started save what it has; yields who is to be told of a process. One that comes before a process is
    passed on to it, and SIGINT is left to it: the terminal sends that to both."""
    running: list[subprocess.Popen[str]] = []
    asked: list[int] = []

    def end(number: int, frame: object) -> None:
        asked.append(number)
        for process in running:
            process.terminate()

    def started(process: subprocess.Popen[str]) -> subprocess.Popen[str]:
        running.append(process)
        if asked:
            process.terminate()
        return process

    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None),
        signal.SIGTERM: signal.signal(signal.SIGTERM, end),
    }
    try:
        yield started
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def finished(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and standard output of ``process``."""
    output, _ = process.communicate()
    return (process.returncode if process.returncode >= 0 else 128 - process.returncode), output or ""


def closing(out: Path, seconds: float) -> str:
    """The scores before and after, and where everything is."""
    lines = [f"done in {clock(seconds)}; normalised scores (0: random, 100: the planner) over the same starts", ""]
    lines += [f"    {'mode':8}{'offline':>10}{'online':>10}{'predicted':>22}"]
    for mode in MODES:
        before, after = (json.loads((out / f"{name}-{mode}.json").read_text()) for name in ("offline", "online"))
        predicted = f"{score_of_prediction(before):.0f}, then {score_of_prediction(after):.0f}"
        lines.append(f"    {mode:8}{before['normalised_mean']:10.1f}{after['normalised_mean']:10.1f}{predicted:>22}")
    rivals = (f"{name} {json.loads((out / f'{name}.json').read_text())['normalised_mean']:.1f}" for name in RIVALS)
    lines += ["", f"    the same data without a plan: {', '.join(rivals)}"]
    lines += [f"    {text}" for text in json.loads((out / "diagnosis.json").read_text())["reading"]]
    found = (
        ("dataset.png", "returns and ways of the data"),
        ("diagnosis.json", "what hiding or redrawing the plan costs, and what it explains of the actions"),
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
