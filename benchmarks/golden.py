"""Golden runs: what inline runs of one seed write, value for value, in two versions of this tree.

    python benchmarks/golden.py record OUT.json [--tree DIR]     # DIR: another checkout with its own .venv
    python benchmarks/golden.py compare OLD.json NEW.json

A change of structure leaves every value as it was. ``compare`` prints each value that differs, appeared or went away, and
exits with 1 if there is one. Floating-point results depend on the processor: record both files on one machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from safetensors import safe_open

ROOT = Path(__file__).resolve().parent.parent
DATASET = "golden/maze-v0"
CLOCK = ("_s", "_per_s", "memory_bytes", "disk_free_bytes")  # values that follow the clock or the machine
CLOCK_NAMES = {"learner_data_wait", "learner_update", "learner_publish", "learner_other", "started", "written"}
MAZE = ["dataset", "make", "maze", "--env", "PointMaze_UMaze-v3", "--episodes", "12", "--id", DATASET]
SHORT = {
    "learner.checkpoint_s": 1e6,
    "metrics.tensorboard": "false",
    "metrics.port": -1,
    "metrics.line_s": 1e6,
    "evaluation.episodes": 2,
    "evaluation.final_episodes": 2,
}
ONLINE = SHORT | {
    "replay.capacity_rows": 4_000,
    "replay.min_size_rows": 256,
    "worker.random_steps": 256,
    "worker.envs_per_worker": 2,
    "worker.chunk_steps": 8,
    "learner.batch_size": 64,
    "evaluation.every_steps": 600,
}
OFFLINE = SHORT | {"learner.updates_per_call": 5, "learner.batch_size": 16, "evaluation.every_steps": 20}
GAC = {"agent.width": 32, "agent.infer_steps": 4, "agent.infer_max_steps": 4, "worker.envs_per_worker": 2}
RUNS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "softgac": (["train", "softgac", "--env", "Hopper-v5", "--steps", "1200", "--workers", "2"], ONLINE),
    "sac": (["train", "sac", "--env", "Pendulum-v1", "--steps", "1200", "--workers", "1"], ONLINE),
    "gac": (["train", "gac", "--dataset", DATASET, "--steps", "40"], OFFLINE | GAC),
    "bc": (["train", "bc", "--dataset", DATASET, "--steps", "40"], OFFLINE),
    "finetune": (
        ["finetune", "{gac}", "--stages", "1", "--episodes-per-stage", "4", "--updates-per-stage", "20"],
        {"evaluation.every_steps": 0},
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Golden runs: records them, or compares two recordings.")
    actions = parser.add_subparsers(required=True)
    recorder = actions.add_parser("record", help="run every golden run and write down what it wrote")
    recorder.add_argument("out", type=Path)
    recorder.add_argument("--tree", type=Path, default=ROOT, help="checkout to run (default: this one)")
    recorder.set_defaults(run=lambda words: record(words.tree.resolve(), words.out))
    comparer = actions.add_parser("compare", help="print what differs between two recordings")
    comparer.add_argument("old", type=Path)
    comparer.add_argument("new", type=Path)
    comparer.set_defaults(
        run=lambda words: compare(json.loads(words.old.read_text()), json.loads(words.new.read_text()))
    )
    words = parser.parse_args()
    return int(words.run(words))


def record(tree: Path, out: Path) -> int:
    """Runs every golden run with the checkout ``tree``; writes {run: {file and key: value}} to ``out``."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        _drawbridge(tree, base, MAZE)
        found = {}
        for name, (words, settings) in RUNS.items():
            print(f"{name} ...", file=sys.stderr, flush=True)
            target = "--out" if words[0] == "finetune" else "--run-dir"
            pairs = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
            filled = [word.format(gac=base / "gac") for word in words]
            _drawbridge(tree, base, [*filled, "--backend", "inline", "--seed", "3", target, str(base / name), *pairs])
            found[name] = written(base / name)
    out.write_text(json.dumps(found, indent=1, sort_keys=True))
    return 0


def _drawbridge(tree: Path, base: Path, words: list[str]) -> None:
    environment = {
        **os.environ,
        "MINARI_DATASETS_PATH": str(base / "datasets"),
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }
    python = tree / ".venv" / "bin" / "python"
    subprocess.run(
        [str(python), "-m", "cluster", *words], cwd=tree, env=environment, check=True, stdout=subprocess.DEVNULL
    )


def written(run: Path) -> dict[str, Any]:
    """What a run directory holds, flat: counters of the last metrics record, evaluations, tensors as digests."""
    found: dict[str, Any] = {}
    metrics = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    found |= {f"metrics {key}": value for key, value in metrics[-1].items() if not _of_the_clock(key)}
    for index, text in enumerate((run / "evaluations.jsonl").read_text().splitlines()):
        values = json.loads(text).items()
        found |= {f"evaluation {index} {key}": value for key, value in values if not _of_the_clock(key)}
    newest = sorted((run / "checkpoints").glob("checkpoint-*"))[-1]
    found |= _tensors("checkpoint", newest / "tensors.safetensors")
    for shard in sorted((run / "replay").glob("shard-*")):
        for segment in sorted(shard.glob("segment-*.safetensors")):
            found |= _tensors(f"{shard.name} {segment.name.split('-')[1]}", segment)
    return found


def _of_the_clock(key: str) -> bool:
    """Times and rates; losses too: the last record has their means over the updates since a report, and the clock says when."""
    return key.endswith(CLOCK) or key.startswith("loss_") or key in CLOCK_NAMES


def _tensors(what: str, path: Path) -> dict[str, str]:
    """A digest of each tensor in a safetensors file."""
    with safe_open(str(path), framework="numpy") as tensors:
        return {
            f"{what} {name}": hashlib.blake2b(tensors.get_tensor(name).tobytes(), digest_size=8).hexdigest()
            for name in sorted(tensors.keys())
        }


def compare(old: dict[str, dict[str, Any]], new: dict[str, dict[str, Any]]) -> int:
    """Prints what differs; returns 1 if anything does."""
    differences = 0
    for run in sorted(old.keys() | new.keys()):
        before, after = old.get(run, {}), new.get(run, {})
        for key in sorted(before.keys() | after.keys()):
            if before.get(key, ...) != after.get(key, ...):
                differences += 1
                print(f"{run}: {key}: {before.get(key, 'absent')} -> {after.get(key, 'absent')}")
        print(f"{run}: {len(before.keys() & after.keys())} values compared")
    print(f"{differences} differences")
    return int(differences > 0)


if __name__ == "__main__":
    sys.exit(main())
