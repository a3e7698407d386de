"""A storm of SIGKILLs over a run on Ray, counted by the environments themselves: what is lost, and whether every row of it is counted.

    python benchmarks/storm.py --kills 100 --minutes 10 --seed 1

A seeded order decides when a process dies and of which part it is: a worker, a shard, a learner, the store, the evaluator, or the
driver, after whose death `drawbridge resume` goes on. Each environment writes down every step that it makes (tests/counting_env.py).
At the end the run is stopped with SIGTERM, and three things are held against each other: the environments' own files, the run's
counters, and the rows in the shards' snapshots, each of which must be one step of the environment and be there once.

Exit code 1: a row is doubled or torn, the counters do not add up, or more rows are uncounted than a SIGKILL may cost (docs/recovery.md).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ |= {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]))

import numpy as np  # noqa: E402
import psutil  # noqa: E402
from counting_env import FOLDER, counted  # noqa: E402
from ray_runs import RayRun  # noqa: E402
from tiny_runs import lines, read, train_words  # noqa: E402

from benchmarks.markdown import table  # noqa: E402
from cluster.checks import spec_of  # noqa: E402
from cluster.graph import make_shard  # noqa: E402
from cluster.metrics.catalogue import RESTART_REASONS, RESTARTED_PARTS  # noqa: E402
from cluster.run_dir import RunDirectory  # noqa: E402
from replay import snapshot  # noqa: E402
from rollout_workers.env_ids import name_module  # noqa: E402

ENV, WORKERS, SHARDS, CHUNK, UNACKED, LINE_S = "counting_env:Counting-v0", 3, 2, 4, 2, 0.5
TOGETHER_S = 2.0  # between deaths of a worker and a shard, in which the driver may not have looked at what was recorded
PARTS = {  # how often each part is hit, of 20
    "worker": 7, "shard": 4, "learner": 4, "store": 2, "evaluator": 2, "driver": 1,
}  # fmt: skip
SETTINGS: dict[str, Any] = {
    "replay__snapshot_s": 2.0, "learner__checkpoint_s": 2.0, "learner__learners": 2, "replay__replay_ratio": 0.2,
    "replay__capacity_rows": 2_000_000, "evaluation__every_steps": 2_000, "worker__envs_per_worker": 1,
    "worker__chunk_steps": CHUNK, "worker__max_unacked": UNACKED, "worker__restart_budget": 10_000,
    "learner__restart_budget": 10_000, "ray__shard_restart_budget": 10_000, "metrics__line_s": LINE_S,
}  # fmt: skip


class Storm:
    """One run and what was done to it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.run_dir, self.rng = folder, folder / "run", random.Random(seed)
        self.killed: Counter[str] = Counter()
        self.kills: list[tuple[float, str, float]] = []  # when, of which part, env steps/s of the run then
        self.drivers: list[int] = []
        words = train_words(self.run_dir, ENV, "--backend", "ray", "--steps", "1000000000", "--workers", str(WORKERS),
                            "--shards", str(SHARDS), **SETTINGS)  # fmt: skip
        self.run = self._drive(words)

    def _drive(self, words: list[str]) -> RayRun:
        run = RayRun(self.run_dir, self.folder / f"log-{len(self.drivers)}", *words)
        self.drivers.append(run.process.pid)
        run.wait(lambda: run.live().get("state") == "running" and run.live()["pid"] == run.process.pid, "the run", 300)
        return run

    def kill(self) -> None:
        """One process of a part that has one now."""
        names, weights = list(PARTS), list(PARTS.values())
        rate = self.run.live().get("env_steps_per_s", 0.0)
        while True:
            part = self.rng.choices(names, weights)[0]
            if part == "driver":
                self._resume(kill=True)
                break
            if living := self.run.children(f"ray::{part.capitalize()}Actor"):
                with contextlib.suppress(psutil.NoSuchProcess):  # it ended by itself a moment ago: another one
                    self.rng.choice(living).kill()
                    break
        self.killed[part] += 1
        self.kills.append((time.monotonic(), part, rate))

    def most_uncounted(self) -> float:
        """Rows that nobody may know of: docs/recovery.md."""
        hands, most = (UNACKED + 1) * CHUNK + 1, 0.0  # of a worker: its chunk in hand and those on the way
        for at, part, rate in self.kills:
            if part == "driver":  # with it all workers, and what they recorded since its last look
                most += WORKERS * hands + 2 * LINE_S * rate
            if part == "worker":
                most += hands
                if any(other == "shard" and abs(then - at) < TOGETHER_S for then, other, _ in self.kills):
                    most += TOGETHER_S * rate / WORKERS  # nobody is left who had them
        return most

    def _resume(self, kill: bool) -> None:
        if kill:
            self.run.process.kill()
        self.run.close()
        self.run = self._drive(["resume", str(self.run_dir), "--env", ENV])

    def rage(self, kills: int, seconds: float) -> None:
        began = time.monotonic()
        moments = sorted(self.rng.uniform(0.0, seconds) for _ in range(kills))
        for number, moment in enumerate(moments, start=1):
            time.sleep(max(0.0, began + moment - time.monotonic()))
            if self.run.process.poll() is not None:
                print(f"the run ended by itself:\n{self.run.output()[-2_000:]}", flush=True)
                self.killed["(the run halted, and was resumed)"] += 1
                self._resume(kill=False)
            self.kill()
            print(f"{time.monotonic() - began:5.0f} s: {number} of {kills} kills, {dict(self.killed)}", flush=True)
        time.sleep(max(0.0, began + seconds - time.monotonic()))

    def end(self) -> None:
        before = self.run.live()["env_steps"]
        self.run.wait(lambda: self.run.live()["env_steps"] > before + 500, "rows after the storm", 300)
        self.run.process.terminate()
        assert self.run.end() == 143, self.run.output()[-3_000:]


def rows_on_disk(run_dir: Path) -> tuple[int, int, int]:
    """Rows in the shards' snapshots; of them those that are there again, and those that are no step of the environment."""
    name_module(ENV)
    run = RunDirectory.open(run_dir)
    spec = spec_of(run.config(), run)
    held = doubled = torn = 0
    seen: set[tuple[int, int]] = set()
    for index in range(SHARDS):
        shard: Any = make_shard(spec, index)
        assert snapshot.load(shard, spec.shard_dir(index)) is not None
        store = shard.store
        assert store.inserted == store.size, "rows were overwritten: raise replay.capacity_rows"
        keys = list(zip(store.episode[: store.size].tolist(), store.step[: store.size].tolist()))
        held, doubled = held + len(keys), doubled + len(keys) - len(set(keys)) + len(seen & set(keys))
        seen |= set(keys)
        row = spec.layout.views(store.rows[: store.size])
        moved = np.abs(row.obs + 0.1 * row.action * [1, 0] - row.next_obs).max(axis=1) < 1e-5
        rewarded = np.abs(row.reward + np.abs(row.next_obs[:, 0])) < 1e-5
        torn += int((~(moved & rewarded)).sum())
    return held, doubled, torn


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="storm-") as name:
        folder = Path(name)
        os.environ[FOLDER] = str(folder)
        storm = Storm(folder, arguments.seed)
        try:
            storm.rage(arguments.kills, 60 * arguments.minutes)
            storm.end()
        finally:
            storm.run.close()
        made, rows = counted(folder, *storm.drivers), read(storm.run_dir / "summary.json")["rows"]
        last = lines(storm.run_dir / "metrics.jsonl")[-1]
        held, doubled, torn = rows_on_disk(storm.run_dir)
    restarts = {part: sum(last[f"{part}s_restarted_{why}"] for why in RESTART_REASONS) for part in RESTARTED_PARTS}
    allowed = storm.most_uncounted()
    uncounted, dropped = made - rows["recorded"], sum(rows["dropped"].values())
    print(table(["part", "SIGKILLs", "restarts"], [[part, f"{n}", f"{restarts.get(part, '')}"] for part, n in storm.killed.items()]))  # fmt: skip
    words = ", ".join(f"{reason} {count:,}" for reason, count in sorted(rows["dropped"].items()))
    found = [
        ("env steps made, by the environments' files", f"{made:,}"), ("stored", f"{rows['stored']:,}"),
        ("in the snapshots", f"{held:,}"), ("dropped and counted", f"{dropped:,} ({words})"),
        ("uncounted, made by processes that were killed", f"{uncounted:,} (at most {allowed:,.0f})"),
        ("doubled", f"{doubled}"), ("torn", f"{torn}"),
    ]  # fmt: skip
    print(table(["rows", ""], [list(row) for row in found]))
    whole = rows["recorded"] == rows["stored"] + dropped and rows["stored"] == held and 0 <= uncounted <= allowed
    return 0 if whole and not doubled and not torn else 1


if __name__ == "__main__":
    sys.exit(main())
