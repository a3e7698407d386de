"""The network between two hosts is cut under a run on Ray, and comes back: what the run does, and whether every row is counted.

    python benchmarks/partition.py --seconds 5 45

The second host is a network namespace (root alone may make one). Head, learner and shard are here, and one worker on each host; both
write down each step that their environments make (tests/counting_env.py). Each cut is made twice: with Ray's own health checks, and
with the quick ones of a cluster that a run starts for itself, by which the head gives the host up after 5 s.

Exit code 1: the counters do not add up, or more rows are uncounted than a killed worker may cost.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ |= {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]))

from counting_env import FOLDER, counted  # noqa: E402
from network import Host  # noqa: E402
from ray_runs import RayRun, driven, two_hosts  # noqa: E402
from tiny_runs import read, train_words, wait_for  # noqa: E402

from benchmarks.markdown import table  # noqa: E402
from cluster.connection import HEALTH  # noqa: E402

ENV, CHUNK, UNACKED = "counting_env:Counting-v0", 4, 2
QUICK = {f"RAY_health_check_{name}": value for name, value in HEALTH.items()}
SETTINGS: dict[str, Any] = {
    "worker__cpus": 1, "worker__envs_per_worker": 1, "worker__chunk_steps": CHUNK, "worker__max_unacked": UNACKED,
    "replay__replay_ratio": 0.2, "replay__snapshot_s": 5, "evaluation__every_steps": 0, "ray__shard_labels": "name=core",
    "ray__learner_labels": "name=core", "metrics__line_s": 0.5,
}  # fmt: skip


def cut(host: Host, seconds: float) -> None:
    """No packet goes between the hosts for so long."""
    began = time.monotonic()
    with host.cut_off():
        time.sleep(max(0.0, began + seconds - time.monotonic()))


def partition(seconds: float, quick: bool) -> tuple[list[str], bool]:
    """One run with one cut; its row, and whether its rows add up."""
    with tempfile.TemporaryDirectory(prefix="partition-") as name, two_hosts(QUICK if quick else {}) as (address, host):
        run_dir = Path(name) / "run"
        words = train_words(run_dir, ENV, "--backend", "ray", "--steps", "100000000", "--workers", "2", "--address", address,
                            **SETTINGS)  # fmt: skip
        with driven(run_dir, *words) as run:
            run.wait(lambda: run.live().get("workers") == 2 and run.live()["env_steps"] > 300, "both workers", 300)
            time.sleep(3)
            steps = run.live()["env_steps"]
            cut(host, seconds)
            meanwhile = run.live()["env_steps"] - steps
            healed = time.monotonic()
            run.wait(lambda: stepping(run), "env steps after it", 300)
            again_s = time.monotonic() - healed
            wait_for(lambda: time.monotonic() > healed + 20, "what comes of it", 40)
            line, events = run.live(), [text for text in run.output().splitlines() if " is lost (" in text]
            run.process.terminate()
            assert run.end() == 143, run.output()[-3_000:]
            rows = read(run_dir / "summary.json")["rows"]
            uncounted = counted(Path(os.environ[FOLDER]), run.process.pid) - rows["recorded"]
    restarts = {key: n for key, n in line.items() if "s_restarted_" in key and n}
    dropped = ", ".join(f"{why} {count}" for why, count in sorted(rows["dropped"].items())) or "none"
    whole = rows["recorded"] == rows["stored"] + sum(rows["dropped"].values())
    row = [f"{seconds:g} s", "quick" if quick else "Ray's own", f"{meanwhile:,}", f"{again_s:.0f} s", f"{len(events)}",
           ", ".join(f"{key} {n}" for key, n in restarts.items()) or "none", dropped, f"{uncounted}"]  # fmt: skip
    return row, whole and 0 <= uncounted <= (UNACKED + 1) * CHUNK + 1


def stepping(run: RayRun) -> bool:
    return bool(run.live()["env_steps_per_s"] > 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, nargs="+", default=[5.0, 45.0], help="length of each cut")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # with the cluster and the second host
    rows, good = [], True
    for seconds in parser.parse_args().seconds:
        for quick in (False, True):
            with tempfile.TemporaryDirectory(prefix="counted-") as folder:
                os.environ[FOLDER] = folder
                row, whole = partition(seconds, quick)
            rows.append(row)
            good = good and whole
            print(row, flush=True)
    head = [
        "cut",
        "health checks",
        "env steps meanwhile",
        "steps again after",
        "nodes lost",
        "restarts",
        "rows dropped",
        "uncounted",
    ]
    print(table(head, rows))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
