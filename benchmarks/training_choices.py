"""Runs that are trained to be compared: forms of the posterior at equal time."""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gac import choices, dataset_id, drawbridge, learn, named
from benchmarks.markdown import over_seeds, table
from benchmarks.trained import trained

EQUAL = {"cpu": ("d300", 120.0), "linear": ("d0", 60.0)}  # by preset: data of UMaze, CPU seconds of a training
POSTERIORS = {
    "amortised": (),
    "stored": ("agent.posterior=stored", "agent.inner_steps=3"),
    "fresh": ("agent.posterior=fresh",),
}


def posteriors(out: Path, preset: str, seeds: Sequence[int]) -> str:
    """Fresh, stored and amortised posteriors, each trained on UMaze for as many updates as fit into equal CPU seconds."""
    data, cpu_s = EQUAL[preset]
    options = choices("gac", preset)
    rows = []
    for form, settings in POSTERIORS.items():
        name = named(preset, form)
        updates = max(32, int(cpu_s / seconds_per_update(out, preset, data, settings)))
        for seed in seeds:
            steps = [*settings, f"steps={updates}", f"agent.updates={updates}"]
            learn(out, "umaze", data, "gac", seed, options, steps, name, ["--preset", preset])
        runs = trained(out, name=name)
        scores = [over_seeds([run.record["scores"][mode]["score"] for run in runs]) for mode in ("st", "kl", "max")]
        rows.append([form, str(runs[0].spec.config.steps), *scores])
    return table(["posterior", f"updates in {cpu_s:g} s", "st", "kl", "max"], rows)


def seconds_per_update(
    out: Path, preset: str, data: str, settings: tuple[str, ...], counts: tuple[int, int] = (50, 150)
) -> float:
    """CPU seconds of one update on UMaze: the difference of two short runs, so that what starting costs falls out."""
    spent = []
    for count in counts:
        before = _children_s()
        run_dir = (out / f"timing-{os.getpid()}-{len(list(out.iterdir()))}").resolve()
        words = ["train", "gac", "--preset", preset, "--dataset", dataset_id("umaze", data), "--backend", "inline"]
        words += ["--steps", str(count), "--run-dir", str(run_dir)]
        for setting in (*settings, "evaluation.every_steps=0", "evaluation.final_episodes=1", "evaluation.mode=prior"):
            words += ["--set", setting]
        drawbridge(*words)
        spent.append(_children_s() - before)
    return (spent[1] - spent[0]) / (counts[1] - counts[0])


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
