"""The learner inside a real Ray run against the same update in a bare loop on the same kind of data, in turn.

    python benchmarks/fleet.py [--repeats 3] [--seconds 20] [--json FILE]

Preset cpu on HalfCheetah-v5, one torch thread a process. The replay ratio is set so high that the learner is the bottleneck, as
it is on two cores anyway. Both wall clock and the CPU time of the learner's own process are given: on a machine that others
use, the second is the one to trust.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cluster.checks import make_spec
from cluster.config import RunConfig, make_preset, override
from cluster.run_dir import RunDirectory
from cluster.session import Session

SETTINGS = {"steps": "1e7", "replay.replay_ratio": "64", "evaluation.every_steps": "0", "metrics.line_s": "1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    config = override(make_preset("softgac", "cpu"), SETTINGS)
    results: list[dict[str, float]] = []
    for _ in range(arguments.repeats):
        fleet, bare = in_fleet(config, arguments.seconds), bare_loop(config, arguments.seconds)
        results.append({f"fleet_{k}": v for k, v in fleet.items()} | {f"bare_{k}": v for k, v in bare.items()})
        print(results[-1], flush=True)
    median = {name: float(np.median([r[name] for r in results])) for name in results[0]}
    for clock in ("wall", "cpu"):
        ratios = [r[f"fleet_{clock}"] / r[f"bare_{clock}"] for r in results]
        print(f"updates per {clock} second: fleet {median[f'fleet_{clock}']:.1f}, bare loop {median[f'bare_{clock}']:.1f}, "
              f"ratio {np.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")  # fmt: skip
    print(f"the learner waited for data {100 * median['fleet_data_wait']:.2f} % of its time")
    if arguments.json:
        arguments.json.write_text(json.dumps({"results": results, "median": median}, indent=1))


def in_fleet(config: RunConfig, seconds: float) -> dict[str, float]:
    """Updates per second of wall clock and of the learner process's CPU time, once learning is under way."""
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory.create(Path(folder) / "run", config)
        lines: list[dict[str, Any]] = []
        with Session(run, make_spec(config, run, 0), outputs=lines.append) as session:
            deadline = time.monotonic() + 120
            while session.aggregator.updates < 200 and time.monotonic() < deadline:
                session.advance()
            learner = next(
                p for p in psutil.Process().children(recursive=True) if "LearnerActor" in " ".join(p.cmdline())
            )
            began, cpu, updates = time.monotonic(), _cpu_s(learner), session.aggregator.updates
            while time.monotonic() < began + seconds:
                session.advance()
            wall_s, cpu_s, made = time.monotonic() - began, _cpu_s(learner) - cpu, session.aggregator.updates - updates
        run.release()
    waits = [line["learner_data_wait"] for line in lines if "learner_data_wait" in line]
    return {"wall": made / wall_s, "cpu": made / cpu_s, "data_wait": float(np.median(waits[len(waits) // 2 :]))}


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def bare_loop(config: RunConfig, seconds: float) -> dict[str, float]:
    """The same agent's update on blocks of random HalfCheetah rows, in this process, nothing else around it."""
    import torch

    from algorithms import ALGORITHMS
    from algorithms.interface import AgentSpec
    from rollout_workers.config import WorkerConfig
    from rollout_workers.worker import RolloutWorker

    torch.set_num_threads(1)
    make = ALGORITHMS["softgac"]
    settings = WorkerConfig(envs_per_worker=8, chunk_steps=256)
    worker = RolloutWorker(
        config=settings,
        env_id=config.env,
        policy=make.make_policy(config.agent, 17, 6),
        worker=0,
        incarnation=0,
        seed=1,
        random_steps=10**6,
    )
    rows_ND = torch.from_numpy(worker.collect().rows_ND)
    worker.close()
    agent: Any = make.make_agent(config.agent, AgentSpec(obs_dim=17, action_dim=6, seed=1))
    draw = torch.Generator().manual_seed(0)
    shape = (config.learner.updates_per_call, config.learner.batch_size)
    blocks = [rows_ND[torch.randint(len(rows_ND), shape, generator=draw)] for _ in range(4)]
    for block in blocks:
        agent.update(block)
    began, cpu, made = time.monotonic(), time.process_time(), 0
    while time.monotonic() < began + seconds:
        agent.update(blocks[made // shape[0] % len(blocks)])
        made += shape[0]
    return {"wall": made / (time.monotonic() - began), "cpu": made / (time.process_time() - cpu)}


if __name__ == "__main__":
    main()
