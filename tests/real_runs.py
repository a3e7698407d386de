"""What runs of softgac, of gac and of its fine-tuning, one that fails, and one on Ray of which a worker is killed wrote and exported."""

from __future__ import annotations

import dataclasses
import urllib.request
from collections import defaultdict
from pathlib import Path
from typing import Any, ClassVar

import pytest
import ray_runs
import tiny_episodes
import tiny_runs
from prometheus_client.parser import text_string_to_metric_families

import cluster.drive
from cluster.cli import main
from cluster.metrics.exporter import Exporter, Line

Printed = dict[str, dict[str, set[str]]]  # series -> label -> its values


@dataclasses.dataclass(frozen=True)
class RealRuns:
    records: list[dict[str, Any]]  # every metrics record of the three runs that ended, in order
    printed: Printed  # what the endpoints of all four ever answered


class RecordingExporter(Exporter):
    """Keeps the values that every label of every series had whenever something changed."""

    printed: ClassVar[Printed] = defaultdict(lambda: defaultdict(set))

    def update(self, line: Line) -> None:
        super().update(line)
        self.scrape()

    def set_state(self, state: str) -> None:
        super().set_state(state)
        self.scrape()

    def scrape(self) -> None:
        with urllib.request.urlopen(self.url, timeout=10) as answer:
            for family in text_string_to_metric_families(answer.read().decode()):
                for sample in family.samples:
                    for label, value in sample.labels.items():
                        self.printed[sample.name][label].add(value)


def make_real_runs(folder: Path) -> RealRuns:
    """Runs them, inline, in ``folder``."""
    runs = [folder / name for name in ("softgac", "gac", "online")]
    often: dict[str, Any] = {"metrics__port": 0, "metrics__line_s": 0.1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster.drive, "Exporter", RecordingExporter)
        tiny_episodes.make_dataset(folder / "datasets", patch)
        assert tiny_runs.train_inline(runs[0], "Pendulum-v1", 1_600, evaluation__every_steps=400, **often) == 0
        words = tiny_episodes.train_words("gac", runs[1], "--backend", "inline", "--steps", "10", **often)
        assert main(words) == 0
        assert main(tiny_episodes.finetune_words(runs[1], runs[2], stages=1, **often)) == 0
        assert tiny_runs.train_inline(folder / "failed", "broken_envs:Raises-v0", 4_000, **often) == 1
    records = [record for run in runs for record in tiny_runs.lines(run / "metrics.jsonl")]
    return RealRuns(records, RecordingExporter.printed)


def make_killed_run(folder: Path) -> list[dict[str, Any]]:
    """Every metrics record of a run on Ray of which a worker was killed."""
    with ray_runs.ray_run(folder / "killed", "--steps", "100000000", "--workers", "2") as run:
        run.wait_for_steps(200)
        run.kill_one("ray::WorkerActor")
        run.wait(lambda: run.live()["workers_restarted"] == 1 and run.live()["workers"] == 2, "two workers again")
        run.process.terminate()
        assert run.end() == 143, run.output()[-3_000:]
    return tiny_runs.lines(run.run_dir / "metrics.jsonl")
