"""Counters of a run that is killed twice and resumed on one port: Prometheus takes every fall for a restart from 0, so they fall to 0 or
not; and rows add up all the time."""

from __future__ import annotations

import os
import signal
import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_episodes
from prometheus_client.parser import text_string_to_metric_families
from tiny_runs import live, start, train_words, wait_for

import cluster.drive
from cluster.cli import main
from cluster.metrics.catalogue import METRICS
from cluster.metrics.exporter import Exporter, Line

SAVED_S = 1.0  # between saves
OF_WHAT_IS_KEPT = {  # not of what processes do and windows hold, which begins again
    m.full_name for m in METRICS if m.kind == "counter" and m.unit not in ("s", "bytes", "calls") and not m.window
}
Counts = dict[tuple[str, frozenset[tuple[str, str]]], float]  # by name and labels


def counts(url: str) -> Counts:
    """Every counter that an endpoint shows."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        samples = [sample for family in families for sample in family.samples]
    return {(s.name, frozenset(s.labels.items())): s.value for s in samples if s.name.endswith("_total")}


def not_accounted(scrape: Counts) -> float:
    """Recorded rows that are neither stored nor dropped, by what an endpoint shows."""
    rows = [(dict(labels), count) for (name, labels), count in scrape.items() if name == "drawbridge_rows_total"]
    signs = {"recorded": 1, "stored": -1, "dropped": -1, "recounted": 1, "duplicate": 0}
    return sum(signs[labels["outcome"]] * count for labels, count in rows)


def train_a_policy(folder: Path, settings: dict[str, Any]) -> list[str]:
    return train_words(folder / "run", "Pendulum-v1", "--backend", "inline", "--steps", "1000000", **settings)


def gather_episodes(folder: Path, settings: dict[str, Any]) -> list[str]:
    words = tiny_episodes.train_words("gac", folder / "base", "--backend", "inline", "--steps", "10")
    assert main(words) == 0
    return tiny_episodes.finetune_words(folder / "base", folder / "run", stages=1_000, **settings)


@pytest.mark.parametrize(
    ("begin", "rows"), [(train_a_policy, "shard_stored_rows_0"), (gather_episodes, "episode_rows")]
)
def test_no_counter_falls_to_more_than_0_and_rows_add_up_when_a_killed_run_is_resumed(
    begin: Callable[[Path, dict[str, Any]], list[str]], rows: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_episodes.make_dataset(tmp_path / "datasets", monkeypatch)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    run_dir, url = tmp_path / "run", f"http://127.0.0.1:{port}/metrics"
    settings = {"metrics__port": port, "metrics__line_s": 0.1, "learner__checkpoint_s": SAVED_S}
    seen: list[Counts] = []
    for words in (begin(tmp_path, settings), ["resume", str(run_dir)]):
        kept = live(run_dir).get("written_snapshots", 0)
        process = start(*words, log=tmp_path / "log")
        saved = dict[float, float]()  # rows at the first sight of a snapshot: at least those that are in it
        try:

            def has_more_than_it_saved(kept: float = kept, saved: dict[float, float] = saved) -> bool:
                line = live(run_dir)
                snapshots = line.get("written_snapshots", 0)
                more = snapshots > kept and line[rows] > saved.setdefault(snapshots, line[rows])
                return more and line["snapshot_age_s"] < SAVED_S / 2  # none will be written before the kill

            wait_for(has_more_than_it_saved, "rows beyond a snapshot", log=tmp_path / "log")
            seen.append(counts(url))
        finally:
            process.kill()
            process.wait(30)

    class Watched(Exporter):
        """Is scraped after every change."""

        def resume_from(self, line: Line) -> None:
            super().resume_from(line)
            seen.append(counts(self.url))

        def update(self, line: Line) -> None:
            super().update(line)
            seen.append(counts(self.url))
            if len(seen) == 11:
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(cluster.drive, "Exporter", Watched)
    assert main(["resume", str(run_dir)]) == 128 + signal.SIGTERM
    newest, falls = dict[Any, float](), dict[Any, tuple[float, float]]()
    for scrape in seen:
        for name, count in scrape.items():
            from_0 = scrape is seen[1] or count == 0  # the second process was not scraped before it counted
            if count < newest.get(name, 0.0) and (name[0] in OF_WHAT_IS_KEPT or not from_0):
                falls[name] = newest[name], count
        newest |= scrape
    assert falls == {}
    assert [not_accounted(scrape) for scrape in seen] == [0.0] * len(seen)
    (recounted,) = [count for (_, labels), count in seen[-1].items() if ("outcome", "recounted") in labels]
    assert recounted == live(run_dir)["again_rows_stored"]
    assert recounted > 0, "no stored row was lost, so nothing could fall"
