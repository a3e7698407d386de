"""Which form of SoftGAC learns best: returns of short runs, by form, environment and seed.

    python benchmarks/variants.py run --out runs/norms.jsonl       every run that is missing there, one after the other
    python benchmarks/variants.py run --out runs/norms.jsonl --forms layer_norm running --envs Pendulum-v1 --seeds 1 2
    python benchmarks/variants.py table --out runs/norms.jsonl     the means in Markdown

Preset cpu, inline, one torch thread, with what it had when the tables of the documentation were made (``FORMER``): the support
[-400, 400], the first temperature .1 and the bridge's budget .2. Each run appends one line: the mean of 10 deterministic episodes at
its last env step.
Forms: the norm at the input of the bridge's steps (``layer_norm``; ``running``, the preset's), ``antithetic`` pairs of paths, and the
two forms of batch renormalisation, ``crossq`` and ``ioffe``, from update 1,000 on. ``sac`` is the control: a Gaussian actor with the
same critics.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
STEPS = {
    "Pendulum-v1": 7_000,
    "benchmarks.variants:PendulumPlus100-v0": 7_000,
    "InvertedDoublePendulum-v5": 5_000,
    "Hopper-v5": 8_000,
    "HalfCheetah-v5": 7_000,
    "Walker2d-v5": 5_000,
    "Ant-v5": 5_000,
}
FORMER = ["agent.v_min=-400", "agent.v_max=400", "agent.alpha_init=0.1", "agent.alpha_lr=0.003"]
BUDGET = "agent.rho=0.2"  # of the bridge alone
FORMS = {
    "layer_norm": ["agent.input_norm=layer_norm"],
    "running": ["agent.input_norm=running"],
    "antithetic": ["agent.particles=2", "agent.antithetic=true"],
    "crossq": ["agent.renorm_warmup=1000", "agent.renorm_form=crossq"],
    "ioffe": ["agent.renorm_warmup=1000", "agent.renorm_form=ioffe"],
    "sac": [],
}


def pendulum_plus_100(**arguments: Any) -> gym.Env:
    """Pendulum whose observations all lie 100 higher."""
    env = gym.make("Pendulum-v1", **arguments)
    box: Any = env.observation_space
    moved = gym.spaces.Box(box.low + 100, box.high + 100, dtype=np.float32)
    return gym.wrappers.TransformObservation(env, lambda obs: (obs + 100).astype(np.float32), moved)


if "PendulumPlus100-v0" not in gym.registry:  # this file is imported by its id, too
    gym.register("PendulumPlus100-v0", entry_point=pendulum_plus_100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--out", type=Path, required=True, help="file of the results, one JSON line a run")
    parser.add_argument("--forms", nargs="+", choices=list(FORMS), default=["layer_norm", "running", "sac"])
    parser.add_argument("--envs", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    arguments = parser.parse_args()
    if arguments.what == "table":
        table(results(arguments.out))
        return
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for env in arguments.envs:
        for seed in arguments.seeds:
            for form in arguments.forms:
                if (form, env, seed) not in results(arguments.out):
                    line = train(form, env, seed)
                    print(line, flush=True)
                    with arguments.out.open("a") as file:
                        file.write(json.dumps(line) + "\n")


def results(path: Path) -> dict[tuple[str, str, int], float]:
    """Mean return of each run in the file."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {(line["form"], line["env"], line["seed"]): line["mean"] for line in map(json.loads, lines)}


def words(form: str, env: str, seed: int) -> list[str]:
    """Of the command line, for one run."""
    method, budget = ("sac", []) if form == "sac" else ("softgac", [BUDGET])
    settings = [f"evaluation.every_steps={STEPS[env]}", *FORMER, *budget, *FORMS[form]]
    given = ["train", method, "--env", env, "--preset", "cpu", "--seed", str(seed), "--steps", str(STEPS[env])]
    return [*given, "--backend", "inline", *(word for setting in settings for word in ("--set", setting))]


def train(form: str, env: str, seed: int) -> dict[str, object]:
    """One run of the command line."""
    began = time.monotonic()
    command = [sys.executable, "-m", "cluster", *words(form, env, seed)]
    with tempfile.TemporaryDirectory() as base:
        run_dir = Path(base) / "run"
        subprocess.run(
            [*command, "--run-dir", str(run_dir)],
            cwd=ROOT,
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        last = json.loads((run_dir / "evaluations.jsonl").read_text().splitlines()[-1])
    seconds = round(time.monotonic() - began, 1)
    return {
        "form": form,
        "env": env,
        "seed": seed,
        "env_steps": last["env_steps"],
        "mean": round(float(np.mean(last["returns"])), 1),
        "seconds": seconds,
    }


def table(means: dict[tuple[str, str, int], float]) -> None:
    """One row an environment, one column a form: the mean over the seeds, then each seed."""
    forms = [form for form in FORMS if any(key[0] == form for key in means)]
    print("| environment, env steps | " + " | ".join(forms) + " |\n|---|" + "---|" * len(forms))
    for env, steps in STEPS.items():
        cells = []
        for form in forms:
            seeds = [means[key] for key in sorted(means) if key[:2] == (form, env)]
            each = " / ".join(f"{mean:,.0f}" for mean in seeds)
            cells.append(f"{np.mean(seeds):,.0f} ({each})" if seeds else "not run")
        if set(cells) != {"not run"}:
            print(f"| {env}, {steps:,} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
