"""Runs that are trained to be compared: forms of the posterior at equal time, and what Medium needs."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np

from algorithms.gac.config import GACConfig, cpu, timed
from benchmarks.gac import dataset_id, drawbridge, learn
from benchmarks.markdown import over_seeds, table
from benchmarks.replanning import replanning
from benchmarks.trained import trained

CPU_S = 60.0
WATCHFUL = "timed"
POSTERIORS = {
    "amortised": (),
    "stored": ("agent.posterior=stored", "agent.inner_steps=3"),
    "fresh": ("agent.posterior=fresh",),
}
ABLATIONS = {  # of the preset timed, but for the last one
    "full": (),
    "no waves": ("agent.obs_waves=0",),
    "implicit prior": ("agent.prior=implicit",),
    "mlp return head": ("agent.return_head=mlp",),
    "unbounded": ("agent.return_bounded=false",),
    "kl weight 1": ("agent.kl_weight=1",),
    "preset cpu": None,
}


def posteriors(out: Path, seeds: list[int], cpu_s: float = CPU_S) -> str:
    """Fresh, stored and amortised posteriors, each trained on UMaze d0 for as many updates as fit into ``cpu_s``."""
    for name, settings in POSTERIORS.items():
        updates = max(32, int(cpu_s / seconds_per_update(out, settings)))
        for seed in seeds:
            learn(out, "umaze", "d0", "gac", seed, [*settings, f"steps={updates}", f"agent.updates={updates}"], name)
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
        words = ["train", "gac", "--dataset", dataset_id("umaze", "d0"), "--backend", "inline", "--steps", str(count)]
        words += ["--run-dir", str((out / f"timing-{os.getpid()}-{len(list(out.iterdir()))}").resolve())]
        for setting in (*settings, "evaluation.final_episodes=1", "evaluation.mode=prior"):
            words += ["--set", setting]
        drawbridge(*words)
        spent.append(_children_s() - before)
    return (spent[1] - spent[0]) / (counts[1] - counts[0])


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def timed_settings() -> list[str]:
    """The preset timed as settings over the preset cpu."""
    over, under = timed(), cpu()
    values = {field.name: getattr(over, field.name) for field in dataclasses.fields(GACConfig)}
    changed = {name: value for name, value in values.items() if value != getattr(under, name)}
    return [f"agent.{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in changed.items()]


def watchful(out: Path, seed: int) -> str:
    """A run on UMaze d0 whose displacement head is trained (preset timed), for triggers by surprise."""
    learn(out, "umaze", "d0", "gac", seed, timed_settings(), WATCHFUL)
    return replanning(trained(out, name=WATCHFUL))


def ablations(
    out: Path, updates: int, seed: int, chosen: Mapping[str, tuple[str, ...] | None] = MappingProxyType(ABLATIONS)
) -> str:
    """Medium d50 with one thing changed at a time. One seed: seeds differ by tens of points."""
    rows = []
    for name, change in chosen.items():
        stem, settings = name.replace(" ", "-"), [] if change is None else [*timed_settings(), *change]
        learn(out, "medium", "d50", "gac", seed, [*settings, f"steps={updates}", f"agent.updates={updates}"], stem)
        for run in trained(out, name=stem):
            scores = [run.record["scores"][mode]["score"] for mode in ("prior", "st", "kl", "max")]
            rows.append([name, *(f"{score:.1f}" for score in scores), f"{np.max(scores):.1f}"])
    return table(["Medium d50", "prior", "st", "kl", "max", "best"], rows)
