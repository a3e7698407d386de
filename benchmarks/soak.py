"""Memory of every process of a run that goes on: resident size over time, and its slope in MiB a minute; beside it that of the private part.

    python benchmarks/soak.py                    60 minutes
    python benchmarks/soak.py --minutes 10       the same for less

The first third is left out: replay fills, caches warm up. A slope comes with its standard error; of several processes of one kind the
steepest is shown. What is resident and not private is files and the object store, which every process maps as it touches it: bounded by
ray.object_store_bytes. The exit code is 1 if a private slope is above LIMIT by more than two standard errors.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import psutil

LIMIT = 1.0  # MiB a minute
EVERY_S = 5.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="(default: 60)")
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shards", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [
            sys.executable, "-m", "cluster", "train", "softgac", "--env", arguments.env, "--steps", "1000000000",
            "--workers", str(arguments.workers), "--shards", str(arguments.shards), "--run-dir", str(run),
            "--set", "replay.capacity_rows=20000", "--set", "replay.snapshot_s=60", "--set", "learner.checkpoint_s=60",
            "--set", "evaluation.every_steps=5000", "--set", "evaluation.episodes=1",
        ]  # fmt: skip
        tree = Path(__file__).resolve().parents[1]
        with open(Path(folder) / "log", "wb") as log:
            driver = subprocess.Popen(command, cwd=tree, stdout=log, stderr=log)
            try:
                sizes = watch(driver, run, 60 * arguments.minutes)
            finally:
                ended = driver.poll() is not None
                driver.terminate()
                driver.wait(120)
        line = json.loads((run / "live.json").read_text())
        print(
            f"{arguments.minutes:g} minutes, {line['env_steps']:,} env steps, {line['updates']:,} updates, exit code {driver.returncode}"
        )
    return report(sizes) or int(ended)


def watch(
    driver: subprocess.Popen[bytes], run: Path, seconds: float
) -> dict[tuple[str, int], list[tuple[float, float, float]]]:
    """(minutes, resident MiB, private MiB) of every process, by its kind and id, from the first metrics record on."""
    while not (run / "metrics.jsonl").exists():
        if driver.poll() is not None:
            raise SystemExit((run.parent / "log").read_text()[-3_000:])
        time.sleep(0.5)
    sizes: dict[tuple[str, int], list[tuple[float, float, float]]] = defaultdict(list)
    began = time.monotonic()
    while (now := time.monotonic() - began) < seconds:
        if driver.poll() is not None:
            print(f"the run ended after {now:.0f} s\n" + (run.parent / "log").read_text()[-1_000:])
            break  # what was seen until then is reported all the same
        whole = psutil.Process(driver.pid)
        for process in [whole, *whole.children(recursive=True)]:
            try:
                kind = "driver" if process.pid == driver.pid else kind_of(process)
                memory = process.memory_info()
                sizes[kind, process.pid].append((now / 60, memory.rss / 2**20, (memory.rss - memory.shared) / 2**20))
            except psutil.Error:
                continue
        time.sleep(EVERY_S)
    return sizes


def kind_of(process: psutil.Process) -> str:
    """ShardActor, raylet, gcs_server, ...: what a person calls a process of Ray."""
    words = process.cmdline()
    title = " ".join(words[:1])
    if title.startswith("ray::"):
        return title.removeprefix("ray::").split(".")[0].split(":")[0].strip() or "idle worker"
    script = next((word for word in words[1:] if word.endswith(".py")), "")
    return Path(script).stem if "python" in Path(title).name and script else Path(title).name


def report(sizes: dict[tuple[str, int], list[tuple[float, float, float]]]) -> int:
    """Prints a line for each kind of process; 1 if the private memory of one of them grows too fast."""
    found: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    last = max(samples[-1][0] for samples in sizes.values())
    for (kind, _), samples in sizes.items():
        minutes, resident, private = np.array([one for one in samples if one[0] >= last / 3]).reshape(-1, 3).T
        if len(minutes) < 10 or minutes[-1] - minutes[0] < last / 3:
            continue  # it lived for too short a time
        slopes = []
        for mib in (private, resident):
            (slope, _), covariance = np.polyfit(minutes, mib, 1, cov=True)
            slopes += [float(slope), float(covariance[0, 0] ** 0.5)]
        found[kind].append((*slopes, float(resident[0]), float(resident[-1])))
    print(
        f"{'process':18} {'count':>5} {'MiB at 1/3':>10} {'at the end':>10} {'MiB/min':>8} {'+/-':>5} {'private':>8} {'+/-':>5}"
    )
    for kind, all_ in sorted(found.items(), key=lambda item: -max(item[1])[0]):
        slope, error, whole, whole_error, first, end = max(all_)
        print(
            f"{kind:18} {len(all_):5} {first:10.1f} {end:10.1f} {whole:8.2f} {whole_error:5.2f} {slope:8.2f} {error:5.2f}"
        )
    steep = [kind for kind, all_ in found.items() if any(slope - 2 * error > LIMIT for slope, error, *_ in all_)]
    print(f"private above {LIMIT:g} MiB/min: {', '.join(steep) or 'none'}")
    return 1 if steep else 0


if __name__ == "__main__":
    sys.exit(main())
