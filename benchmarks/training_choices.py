"""Runs that are trained to be compared: forms of the posterior at equal time."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from benchmarks.gac import dataset_id, drawbridge, learn
from benchmarks.markdown import over_seeds, table
from benchmarks.trained import trained

CPU_S = 60.0
POSTERIORS = {
    "amortised": (),
    "stored": ("agent.posterior=stored", "agent.inner_steps=3"),
    "fresh": ("agent.posterior=fresh",),
}


def posteriors(out: Path, seeds: list[int], cpu_s: float = CPU_S) -> str:
    """Fresh, stored and amortised posteriors, each of preset ``linear`` trained on UMaze d0 for as many updates as fit into ``cpu_s``."""
    for name, settings in POSTERIORS.items():
        updates = max(32, int(cpu_s / seconds_per_update(out, settings)))
        for seed in seeds:
            steps = [*settings, f"steps={updates}", f"agent.updates={updates}"]
            learn(out, "umaze", "d0", "gac", seed, steps, name, ["--preset", "linear"])
    rows = []
    for name in POSTERIORS:
        runs = trained(out, name=name)
        scores = {
            mode: over_seeds([run.record["scores"][mode]["score"] for run in runs]) for mode in ("st", "kl", "max")
        }
        rows.append([name, str(runs[0].spec.config.steps) if runs else "-", *scores.values()])
    return table(["posterior", f"updates in {cpu_s:g} s", "st", "kl", "max"], rows)


def seconds_per_update(out: Path, settings: tuple[str, ...], counts: tuple[int, int] = (50, 150)) -> float:
    """CPU seconds of one update on UMaze d0: the difference of two short runs, so that what starting costs falls out."""
    spent = []
    for count in counts:
        before = _children_s()
        words = [
            "train",
            "gac",
            "--preset",
            "linear",
            "--dataset",
            dataset_id("umaze", "d0"),
            "--backend",
            "inline",
            "--steps",
            str(count),
        ]
        words += ["--run-dir", str((out / f"timing-{os.getpid()}-{len(list(out.iterdir()))}").resolve())]
        for setting in (*settings, "evaluation.every_steps=0", "evaluation.final_episodes=1", "evaluation.mode=prior"):
            words += ["--set", setting]
        drawbridge(*words)
        spent.append(_children_s() - before)
    return (spent[1] - spent[0]) / (counts[1] - counts[0])


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
