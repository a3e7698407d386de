"""The questions that the paper leaves open, asked of trained runs: one table an answer.

    python benchmarks/gac.py offline --out runs/gac --algorithms gac          trains what is asked, online too
    python benchmarks/questions.py paths carried --runs runs/gac              tables of some questions
    python benchmarks/questions.py all --runs runs/gac                        of all that train nothing
    python benchmarks/questions.py posteriors by-heart --out runs/questions   these train runs of their own
    python benchmarks/questions.py page                                       puts headlines into docs/gac-questions.md

Each table is written to OUT/NAME.md, of another preset than cpu to OUT/PRESET-NAME.md. Scores: 0 is the random policy, 100 the
planner; means over training seeds, each seed's value behind them; the page shows the lowest and the highest, of longer tables
the means alone. One torch thread.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import ascents, by_heart, cognitive_map, plan_quality, promises, replanning, training_choices  # noqa: E402
from benchmarks.gac import dataset_id, joined, named  # noqa: E402
from benchmarks.markdown import filled, pivoted, ranged  # noqa: E402
from benchmarks.trained import Trained, choices, trained  # noqa: E402
from replay.dataset import Dataset, open_dataset  # noqa: E402

DOCS = ROOT / "docs"
PAGE = DOCS / "gac-questions.md"
MOVING = ("moving",)
ONLINE = (*MOVING, "fixed", "exploit")
ABILITIES = ((40.0, 60.0, 80.0, 90.0, 95.0, 95.0, 95.0), 8.0)  # of a made-up course, and the predictor's error

Ask = Callable[[argparse.Namespace], str]


def offline(arguments: argparse.Namespace) -> list[Trained]:
    return _of(arguments, trained(arguments.runs, name=named(arguments.preset)))


def online(arguments: argparse.Namespace, plans: tuple[str, ...] = ONLINE) -> list[Trained]:
    preset = named(arguments.preset)
    return _of(arguments, [run for plan in plans for run in trained(arguments.runs, "online", preset, plan)])


def picture(arguments: argparse.Namespace, name: str) -> Path:
    """Where a picture goes: into docs/, whose page is of preset cpu; of another preset beside its tables."""
    return DOCS / name if arguments.preset == "cpu" else arguments.out / f"{arguments.preset}-{name}"


ASKED: dict[str, Ask] = {
    "runs": lambda a: choices([*offline(a), *online(a)]),
    "target": lambda a: promises.online_stages(online(a)),
    "target-walk": lambda a: promises.target_walk(*ABILITIES),
    "replanning": lambda a: replanning.replanning(offline(a)),
    "paths": lambda a: plan_quality.paths(offline(a)),
    "carried": lambda a: plan_quality.carried(offline(a)),
    "map": lambda a: cognitive_map.cognitive_map(offline(a), picture(a, "gac-map.png")),
    "kl": lambda a: ascents.kl(offline(a), picture(a, "gac-kl.png")),
    "monotone": lambda a: by_heart.monotone(offline(a)),
    "dynamics": lambda a: ascents.dynamics(offline(a), picture(a, "gac-inference.png")),
    "calibration": lambda a: promises.calibration(offline(a)),
    "calibration-online": lambda a: promises.calibration(online(a, MOVING)),
    "sweep": lambda a: promises.sweep(offline(a)),
    "sweep-online": lambda a: promises.sweep(online(a, MOVING)),
}
TRAINING: dict[str, Ask] = {
    "by-heart": lambda a: by_heart.by_heart(_dataset(), a.updates, a.seeds),
    "posteriors": lambda a: training_choices.posteriors(a.out, a.preset, a.seeds),
}
PRINTED = {  # not on the page, or in words or as a picture
    "runs", "target-walk", "posteriors", "dynamics", "kl", "sweep-online", "by-heart", "monotone", "target", "calibration-online",
}  # fmt: skip
HEADLINES: dict[str, tuple[tuple[int, ...], int, str]] = {  # of ``pivoted``; the other tables are shown as they are
    "replanning": ((1,), 0, "{2} / {3} / {4}"),
    "paths": ((1,), 0, "{2} / {3}"),
    "calibration": ((0,), 1, "{2} -> {3} ({5})"),
    "sweep": ((0,), 1, "{4}"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=[*ASKED, *TRAINING, "all", "page"])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "gac", help="of benchmarks/gac.py")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "questions", help="for tables and runs of its own")
    parser.add_argument("--preset", choices=["cpu", "linear"], default="cpu", help="of the runs, and of posteriors")
    parser.add_argument("--data", nargs="+", default=[], help='such as "umaze d0"; default: all there are')
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="of runs of its own")
    parser.add_argument("--updates", type=int, default=1_500, help="of by-heart")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in asked(arguments.what):
        began = time.process_time()
        text = (ASKED | TRAINING)[name](arguments)
        (arguments.out / f"{joined(named(arguments.preset), name)}.md").write_text(text + "\n")
        print(f"{name}, {time.process_time() - began:.0f} s of CPU\n\n{text}\n", flush=True)
    if "page" in arguments.what:
        made = {
            name: path.read_text().strip()
            for name in ASKED | TRAINING
            if (path := arguments.out / f"{name}.md").exists()
        }
        PAGE.write_text(filled(PAGE.read_text(), {name: headline(name, made[name]) for name in set(made) - PRINTED}))


def asked(words: list[str]) -> list[str]:
    """The questions that the command line names, each once: those that it adds to ``all``, too."""
    named_ = [name for word in words for name in (ASKED if word == "all" else [word])]
    return [name for name in dict.fromkeys(named_) if name != "page"]


def headline(name: str, text: str) -> str:
    """The table of the question ``name`` as the page shows it."""
    return pivoted(text, *HEADLINES[name]) if name in HEADLINES else ranged(text)


def _of(arguments: argparse.Namespace, runs: list[Trained]) -> list[Trained]:
    return [run for run in runs if run.data in arguments.data or not arguments.data]


def _dataset() -> Dataset:
    return open_dataset(dataset_id("umaze", "d300"))


if __name__ == "__main__":
    main()
