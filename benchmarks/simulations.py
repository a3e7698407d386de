"""Seeded simulations of the whole graph under faults (tests/simulated_run.py): many seeds, long runs.

    python benchmarks/simulations.py --seeds 200 --events 2000

A run of each seed has real workers, shards, learner and files in one process, in a seeded order; messages are lost, late, doubled and
damaged, and every part crashes. Seed k runs under the k-th kind of faults, in turn. What is promised is checked after every event and
at the end. The gate runs 20 seeds (tests/test_simulation.py). A seed that breaks a promise is printed with its traceback, and the exit
code is 1; the same seed breaks it again.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from simulated_run import SimulatedRun  # noqa: E402
from test_simulation import (  # noqa: E402
    EVERYTHING,
    NETWORK,
    SHARDS,
    WORKERS,
    assert_conserved_exactly,
    assert_promises,
)

from benchmarks.markdown import table  # noqa: E402

KINDS = {"network": NETWORK, "everything": EVERYTHING, "shards": SHARDS, "workers": WORKERS}
ROWS = 240  # of each shard; more where a run would end before its events
FAULTS = (  # injected, crashes aside; SimulatedRun counts what follows of them too
    "message lost", "message late", "message twice", "answer lost", "malformed", "weights lost", "weights old", "weights damaged",
    "publication lost", "not finite observation", "not finite reward", "environment raised", "parameters poisoned",
    "snapshot rotten", "checkpoint rotten", "counters untold", "last counters untold",
)  # fmt: skip


def simulate(seed: int, events: int, kind: str, folder: Path) -> SimulatedRun:
    """A run of at least ``events`` events that has kept what is promised; AssertionError otherwise."""
    rows = ROWS
    while True:
        run = SimulatedRun(seed, folder / f"{seed}-{rows}", KINDS[kind], rows=rows)
        try:
            run.run()
            assert_promises(run)
            assert_conserved_exactly(run)
        finally:
            run.close()
        if run.steps >= events:
            return run
        rows *= 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument("--events", type=int, default=2_000)
    arguments = parser.parse_args()
    done: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    broken, began, names = [], time.monotonic(), list(KINDS)
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        kind = names[seed % len(names)]
        with tempfile.TemporaryDirectory(prefix="simulation-") as name:
            try:
                run = simulate(seed, arguments.events, kind, Path(name))
            except Exception:
                traceback.print_exc()
                print(f"seed {seed}, {kind}: BROKEN", flush=True)
                broken.append(seed)
                continue
        crashes = sum(run.fired[f"{part} crashed"] for part in ("worker", "shard", "learner"))
        done[kind].update({"runs": 1, "events": run.steps, "env steps": run.made, "crashes": crashes})
        done[kind].update({"faults": sum(run.fired[fault] for fault in FAULTS)})
    heads = ("runs", "events", "env steps", "crashes", "faults")
    print(
        table(
            ["faults of", *heads], [[kind, *(f"{counts[head]:,}" for head in heads)] for kind, counts in done.items()]
        )
    )
    print(f"broken: {broken or 'none'}; {time.monotonic() - began:.0f} s")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
