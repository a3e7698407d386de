"""What every hop of a run costs, and what breaks first with many workers.

    python benchmarks/scale.py hops              shards, store and driver as W workers load them, from two processes
    python benchmarks/scale.py hops --far        the same with these processes on a second host, a network namespace (as root)
    python benchmarks/scale.py runs --hops FILE  real runs with 2, 4, 8 and 16 workers on several raylets, against the prediction
    python benchmarks/scale.py driver            a real run whose workers are played by two processes: the driver's loop, and the loss of half
    python benchmarks/scale.py predict --hops FILE   what 100, 1,000 and 10,000 workers would need

`hops` drives the real shard, store, aggregator and endpoint: each of two processes plays half of the workers, which send chunks of made-up
HalfCheetah rows, as many at a time as real ones, and fetch weights. Figures are CPU times of the part that serves, so that other load on
the machine matters little. The model is in `predict`; docs/scaling.md explains it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import pickle
import signal
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import numpy as np
import psutil
from ray_runs import two_hosts

from benchmarks.load import (
    BATCH,
    ENVS,
    LAYOUT,
    PARAMETERS,
    PROCESSES,
    STEPS,
    UPDATES,
    Crowd,
    Shard,
    StandIn,
    StandIns,
    Store,
    spent_cpu_s,
    turns,
)
from cluster.checks import make_spec
from cluster.config import RunConfig, make_preset, override
from cluster.connection import connect, disconnect
from cluster.graph import RunSpec
from cluster.metrics.aggregator import MetricsAggregator
from cluster.metrics.exporter import Exporter
from cluster.remote import make_actor
from cluster.run_dir import RunDirectory
from replay.limiter import Limiter

SCRAPES_PER_S = 0.2  # deploy/prometheus.yml


def settings(run_dir: Path, **changed: Any) -> RunConfig:
    given = {"env": "HalfCheetah-v5", "replay.capacity_rows": 200_000, **changed}
    return override(make_preset("softgac", "cpu"), {key.replace("__", "."): str(value) for key, value in given.items()})


# --- the hops ---------------------------------------------------------------------------------------------------------


def hops(counts: list[int], seconds: float, steps: int, shards: int, far: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"append": {}, "stats": {}, "fetch": {}, "driver": {}}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        config = settings(Path(folder))
        spec = make_spec(config, RunDirectory(Path(folder) / "run"), 0)
        address = stack.enter_context(two_hosts({}))[0] if far else None
        own = connect(address, cpus=6, object_store_bytes=300_000_000)
        stack.callback(disconnect, own)
        for count in counts:
            through_ray(spec, count, seconds, steps, shards, far, found)
    for count in [*counts, 10_000]:
        found["driver"][str(count)] = in_driver(count)
    return found


def through_ray(
    spec: RunSpec, count: int, seconds: float, steps: int, shards: int, far: bool, found: dict[str, Any]
) -> None:
    """Append, sample, stats, fetch, publish and the driver's wait with ``count`` workers; they are on the host ``far`` if there is one."""
    import ray

    get: Any = ray.get

    from algorithms.weights import Weights

    here, there = ({"label_selector": {"name": name}} if far else {} for name in ("core", "far"))
    spec = dataclasses.replace(spec, run_dir=spec.run_dir / str(count))
    group = [make_actor(Shard, num_cpus=0, **here).remote(spec, index) for index in range(shards)]
    shard, store = group[0], make_actor(Store, num_cpus=0, **here).remote()
    crowd = [
        make_actor(Crowd, num_cpus=0, max_concurrency=2 * count + 10, **there).remote(i, count, group, store, steps)
        for i in range(PROCESSES)
    ]

    def shards_cpu_s() -> float:
        return sum(get([each.cpu.remote() for each in group]))

    get([part.place.remote() for part in crowd], timeout=120)
    get([part.append.remote(1.0) for part in crowd], timeout=120)  # every worker has a writer now
    before, began = shards_cpu_s(), time.monotonic()
    stored = sum(get([part.append.remote(seconds) for part in crowd], timeout=seconds + 120))
    cpu_s, wall_s = shards_cpu_s() - before, time.monotonic() - began
    found["append"][str(count)] = {"cpu_us": 1e6 * cpu_s / stored, "per_s": stored / wall_s}
    print(
        f"{count:6} workers: append {1e6 * cpu_s / stored:.0f} us CPU of the shard for a chunk, {stored / wall_s:,.0f} chunks/s"
    )

    before, blocks = get(shard.cpu.remote()), 0
    end = time.monotonic() + min(seconds, 3)
    while time.monotonic() < end:
        get(shard.sample.remote(UPDATES, BATCH, 0, 0, 1.0))
        blocks += 1
    found["sample"] = {"cpu_us": 1e6 * (get(shard.cpu.remote()) - before) / blocks}
    print(
        f"               sample {found['sample']['cpu_us']:.0f} us CPU of the shard for a block of {UPDATES} x {BATCH} rows"
    )

    get([part.append.remote(0.2) for part in crowd], timeout=120)
    began, before = time.monotonic(), get(shard.cpu.remote())
    report = get(shard.stats.remote())
    wall_s, cpu_s = time.monotonic() - began, get(shard.cpu.remote()) - before
    found["stats"][str(count)] = {
        "wall_ms": 1e3 * wall_s,
        "cpu_ms": 1e3 * cpu_s,
        "kib": len(pickle.dumps(report)) / 1024,
    }
    print(f"               stats of the shard: {1e3 * wall_s:.1f} ms, {len(pickle.dumps(report)) / 1024:,.0f} KiB")

    tensors, version, walls = {"actor": np.zeros(PARAMETERS, np.float32)}, 0, []

    def publish() -> None:
        nonlocal version
        version += 1
        at = time.monotonic()
        get(store.publish.remote(Weights.pack(tensors, generation=0, version=version, env_steps=0, updates=0)))
        walls.append(time.monotonic() - at)

    publish()  # the store is up now
    before, end, first = get(store.cpu.remote()), time.monotonic() + min(seconds, 2), version
    while time.monotonic() < end:
        publish()
    publish_us = 1e6 * (get(store.cpu.remote()) - before) / (version - first)
    found["publish"] = {"cpu_us": publish_us, "wall_ms": 1e3 * float(np.median(walls)), "kib": 4 * PARAMETERS / 1024}
    print(
        f"               publish {publish_us:.0f} us CPU of the store for a version, {found['publish']['wall_ms']:.1f} ms"
    )

    before, began, first = get(store.cpu.remote()), time.monotonic(), version
    while time.monotonic() < began + min(seconds, 3):
        publish()
        get([part.fetch.remote() for part in crowd], timeout=120)
    versions = version - first
    fetch_us = 1e6 * (get(store.cpu.remote()) - before) / versions - publish_us
    found["fetch"][str(count)] = {
        "cpu_us": max(0.0, fetch_us) / count,
        "all_ms": 1e3 * (time.monotonic() - began) / versions,
    }
    print(f"               fetch {found['fetch'][str(count)]['cpu_us']:.0f} us CPU of the store for a worker; all have a new version after "
          f"{found['fetch'][str(count)]['all_ms']:.0f} ms")  # fmt: skip

    runs = [crowd[i % PROCESSES].forever.remote(shard, store) for i in range(count)]
    times = []
    for _ in range(50):
        at = time.process_time()
        ray.wait(runs, num_returns=1, timeout=0)
        times.append(time.process_time() - at)
    found["wait"] = {**found.get("wait", {}), str(count): {"cpu_us": 1e6 * float(np.median(times))}}
    print(f"               ray.wait of the driver {found['wait'][str(count)]['cpu_us']:.0f} us")
    for actor in (*crowd, *group, store):
        ray.kill(actor)


def in_driver(count: int) -> dict[str, float]:
    """CPU milliseconds of the driver once a second, for the counters of ``count`` workers, and a scrape of its endpoint."""
    import replay.shard as module
    from replay.config import ReplayConfig
    from replay.transition_store import TransitionStore

    rows = max(BATCH, 2 * ENVS * STEPS * count)  # a shard holds a batch at least
    shard = module.Shard(
        TransitionStore(LAYOUT, ReplayConfig(capacity_rows=rows)), Limiter(BATCH, 1.0, 1e18), shard=0, seed=0, batch_size=BATCH
    )  # fmt: skip
    crowd = Crowd(0, 1, [], None)
    crowd.sequence = dict.fromkeys(range(count), 0)
    aggregator = MetricsAggregator(min_size_rows=1, replay_ratio=1.0)
    add, line = [], []
    for _ in range(5):
        for worker in range(count):
            shard.append(crowd.chunk(worker))
        stats, reports = shard.stats(), shard.drain_stats()
        at = time.process_time()
        aggregator.add_shard(stats, reports)
        add.append(time.process_time() - at)
        at = time.process_time()
        record = aggregator.line()
        line.append(time.process_time() - at)
    exporter = Exporter("trial")
    try:
        exporter.update(record)
        at = time.process_time()
        with urllib.request.urlopen(exporter.url, timeout=30) as answer:
            size = len(answer.read())
        scrape = time.process_time() - at
    finally:
        exporter.close()
    print(f"{count:6} workers: the driver takes {1e3 * min(add):.1f} ms a second for their counters, {1e3 * min(line):.1f} ms for a record; a "
          f"scrape {1e3 * scrape:.1f} ms, {size / 1024:.0f} KiB")  # fmt: skip
    return {
        "counters_ms": 1e3 * min(add),
        "record_ms": 1e3 * min(line),
        "scrape_ms": 1e3 * scrape,
        "scrape_kib": size / 1024,
    }


# --- the driver's loop ------------------------------------------------------------------------------------------------


def driver_loop(count: int, seconds: float) -> None:
    """CPU time of the driver of a run with ``count`` workers that send a chunk a second, and its longest turn; then half are lost."""
    import ray

    from cluster.session import Session

    given: dict[str, Any] = {
        "steps": 10**9, "agent.critic_width": 16, "agent.bridge_width": 16, "agent.bridge_steps": 1,
        "learner.batch_size": 32, "replay.replay_ratio": 0.001, "evaluation.every_steps": 0, "replay.snapshot_s": 600,
        "learner.checkpoint_s": 600, "worker.restart_budget": 10_000, "worker.workers": 1,
    }  # fmt: skip
    stand_ins, kill = StandIns(count), ray.kill

    def kill_process(actor: Any, **how: Any) -> None:
        if not isinstance(actor, StandIn):
            kill(actor, **how)

    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch("cluster.worker_group.make_actor", lambda kind, **options: stand_ins))
        stack.enter_context(mock.patch.object(ray, "kill", kill_process))
        config = settings(Path(folder), **given)
        run = RunDirectory.create(Path(folder) / "run", config)
        stack.callback(run.release)
        spec = make_spec(config, run, 0)  # of one worker: this machine need not hold the others
        config = override(config, {"worker.workers": str(count)})
        session = stack.enter_context(Session(run, dataclasses.replace(spec, config=config)))
        senders = [part.append.remote(1e6, 1, 1.0) for part in stand_ins.crowd.values()]
        turns(session, lambda: session.aggregator.workers == count and session.env_steps > 0, 120)
        steps = session.env_steps
        cpu_s, longest_s, wall_s = turns(session, lambda: False, seconds)
        print(f"{count:6} workers, {(session.env_steps - steps) / wall_s:,.0f} env steps/s from {len(senders)} processes: the driver uses "
              f"{cpu_s / wall_s:.3f} CPUs, its longest turn takes {1e3 * longest_s:.0f} ms", flush=True)  # fmt: skip
        kill(stand_ins.crowd.pop(1))
        turns(session, lambda: session.aggregator.workers < count, 60)
        cpu_s, longest_s, wall_s = turns(session, lambda: session.aggregator.workers == count, 300)
        print(f"               half of them die at once: all run again after {wall_s:.1f} s and {cpu_s:.1f} s of CPU, the longest turn takes "
              f"{1e3 * longest_s:.0f} ms", flush=True)  # fmt: skip


# --- the model --------------------------------------------------------------------------------------------------------


def fit(points: dict[str, dict[str, float]], key: str) -> tuple[float, float]:
    """(a, b) of a + b W, through the figures at the smallest and the largest number of workers; b is 0 if they do not grow."""
    counts = sorted(map(int, points))
    low, high = (points[str(count)][key] for count in (counts[0], counts[-1]))
    if high <= low or len(counts) == 1:
        return high, 0.0
    slope = (high - low) / (counts[-1] - counts[0])
    return low - slope * counts[0], slope


def predict(
    found: dict[str, Any],
    workers: int,
    chunks_per_s: float,
    blocks_per_s: float,
    versions_per_s: float,
    scrapes_per_s: float = 0.0,
) -> dict[str, float]:
    """CPU seconds a second of one shard that has all workers, of the store and of the driver.

    shard = chunks (a + b W) + blocks s + stats(W);  store = versions (p + W f);
    driver = counters(W) + record / 2 + 20 wait(W) + scrapes c
    """

    def at(name: str, key: str, scale: float) -> float:
        a, b = fit(found[name], key)
        return max(0.0, a + b * workers) / scale

    return {
        "shard": chunks_per_s * at("append", "cpu_us", 1e6) + blocks_per_s * found["sample"]["cpu_us"] / 1e6 + at("stats", "cpu_ms", 1e3),
        "store": versions_per_s * (found["publish"]["cpu_us"] / 1e6 + workers * at("fetch", "cpu_us", 1e6)),
        "driver": at("driver", "counters_ms", 1e3) + at("driver", "record_ms", 1e3) / 2 + 20 * at("wait", "cpu_us", 1e6)
        + scrapes_per_s * at("driver", "scrape_ms", 1e3),
    }  # fmt: skip


def predictions(found: dict[str, Any], steps_per_s: float, updates_per_s: float) -> None:
    """What 100, 1,000 and 10,000 workers need; a shard is to be busy for 70 % of its time."""
    print(
        f"workers that make {steps_per_s:g} env steps/s each, chunks of {ENVS * STEPS} rows, {updates_per_s:g} updates/s, a version a second, "
        f"a scrape each {1 / SCRAPES_PER_S:g} s"
    )
    print(
        "workers  env steps/s  updates/step  CPUs of all shards  shards  CPUs of the store  of the driver  weights GB/s"
    )
    for workers in (100, 1_000, 10_000):
        rows = workers * steps_per_s
        need = predict(found, workers, rows / (ENVS * STEPS), updates_per_s / UPDATES, 1.0, SCRAPES_PER_S)
        shards, gb = np.ceil(need["shard"] / 0.7), workers * found["publish"]["kib"] * 1024 / 1e9
        print(f"{workers:7,} {rows:12,.0f} {updates_per_s / rows:13.4f} {need['shard']:19.2f} {shards:7.0f} {need['store']:18.2f} "
              f"{need['driver']:14.3f} {gb:13.2f}")  # fmt: skip


# --- real runs --------------------------------------------------------------------------------------------------------


def real_runs(found: dict[str, Any], counts: list[int], seconds: float) -> None:
    """Runs of light environments on a head and two more raylets: CPU of shard, store and driver against the model.

    What a part takes beside the hops (Ray's own threads, being asked once a second) is fitted to the first run, and added to the others.
    """
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 8, "object_store_memory": 200_000_000})
    try:
        for _ in range(2):
            nodes.add_node(num_cpus=8, object_store_memory=200_000_000)
        nodes.wait_for_nodes(120)
        print("workers  env steps/s  CPUs used (predicted) of shard, store, driver")
        beside: dict[str, float] = {}
        for count in counts:
            rate, used, hops_alone = one_run(found, nodes.address, count, seconds)
            beside = beside or {part: used[part] - hops_alone[part] for part in used}
            pairs = (f"{part} {used[part]:.3f} ({hops_alone[part] + beside[part]:.3f})" for part in used)
            print(f"{count:7} {rate:12,.0f}  {', '.join(pairs)}", flush=True)
        print(
            "beside the hops, fitted to the first: " + ", ".join(f"{part} {cpus:.3f}" for part, cpus in beside.items())
        )
    finally:
        disconnect(True)
        nodes.shutdown()


def one_run(
    found: dict[str, Any], address: str, count: int, seconds: float
) -> tuple[float, dict[str, float], dict[str, float]]:
    """Env steps/s, CPUs used by each part, and what the hops alone predict."""
    from cluster.session import Session

    with tempfile.TemporaryDirectory() as folder:
        light = {
            "env": "InvertedPendulum-v5", "ray.address": address, "steps": 10**9, "worker.workers": count, "worker.cpus": 0.1,
            "learner.cpus": 0.1, "ray.shard_cpus": 0.1, "agent.critic_width": 16, "agent.bridge_width": 16, "agent.bridge_steps": 1,
            "learner.batch_size": 32, "replay.min_size_rows": 500, "worker.random_steps": 500, "evaluation.every_steps": 0,
            "replay.snapshot_s": 600, "learner.checkpoint_s": 600, "replay.replay_ratio": 0.25,
        }  # fmt: skip
        config = override(make_preset("softgac", "cpu"), {key: str(value) for key, value in light.items()})
        run = RunDirectory.create(Path(folder) / "run", config)
        with Session(run, make_spec(config, run, 0)) as session:
            deadline = time.monotonic() + 120
            while session.aggregator.workers < count or session.aggregator.updates < 100:
                session.advance()
                assert time.monotonic() < deadline, "the run did not get under way"
            parts = {"shard": "ray::ShardActor", "store": "ray::StoreActor"}
            processes = {name: _find(title) for name, title in parts.items()} | {"driver": psutil.Process()}
            before = {name: spent_cpu_s(process) for name, process in processes.items()}
            began, steps, versions, updates = (
                time.monotonic(), session.env_steps, session.aggregator.version, session.aggregator.updates
            )  # fmt: skip
            while time.monotonic() < began + seconds:
                session.advance()
            wall_s = time.monotonic() - began
            rate = (session.env_steps - steps) / wall_s
            blocks, fetched = (
                (session.aggregator.updates - updates) / UPDATES / wall_s,
                (session.aggregator.version - versions) / wall_s,
            )
            used = {name: (spent_cpu_s(process) - before[name]) / wall_s for name, process in processes.items()}
        run.release()
    return rate, used, predict(found, count, rate / (ENVS * STEPS), blocks, fetched)


def _find(title: str) -> psutil.Process:
    return next(p for p in psutil.Process().children(recursive=True) if " ".join(p.cmdline()).startswith(title))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["hops", "runs", "driver", "predict"])
    parser.add_argument(
        "--workers", type=int, nargs="+", help="(default: 10 100 1000; of runs: 2 4 8 16; of driver: 10 100 1000)"
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="of each figure (default: 5)")
    parser.add_argument(
        "--hops",
        type=Path,
        default=Path("runs/hops.json"),
        help="where hops writes its figures (default: runs/hops.json)",
    )
    parser.add_argument("--steps-per-s", type=float, default=200.0, help="of one worker, for predict (default: 200)")
    parser.add_argument("--updates-per-s", type=float, default=1000.0, help="of the learner (default: 1000)")
    parser.add_argument(
        "--chunk-steps", type=int, default=STEPS, help=f"of a chunk of {ENVS} environments (default: {STEPS})"
    )
    parser.add_argument("--shards", type=int, default=1, help="of hops: that share the workers (default: 1)")
    parser.add_argument("--far", action="store_true", help="of hops: the workers are on another host")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # with what was started
    if arguments.what == "hops":
        arguments.hops.parent.mkdir(parents=True, exist_ok=True)
        arguments.hops.write_text(
            json.dumps(
                hops(
                    arguments.workers or [10, 100, 1000],
                    arguments.seconds,
                    arguments.chunk_steps,
                    arguments.shards,
                    arguments.far,
                ),
                indent=1,
            )
        )
        return
    if arguments.what == "driver":
        for count in arguments.workers or [10, 100, 1000]:
            driver_loop(count, arguments.seconds)
        return
    found = json.loads(arguments.hops.read_text())
    if arguments.what == "runs":
        real_runs(found, arguments.workers or [2, 4, 8, 16], arguments.seconds)
    predictions(found, arguments.steps_per_s, arguments.updates_per_s)


if __name__ == "__main__":
    main()
