"""The learner against the bare update, and against RLlib: ``python benchmarks/learner.py [--json FILE]``.

Three things in one run, each repeat of all before the next, so that a busy machine slows all alike; medians:

    bare      agent.update in a loop on blocks that were sampled before the clock started
    learner   the same update in a Learner: a Feed thread samples a real Shard of the same data, the guard looks,
              weights are published every 64 updates
    RLlib     SAC's training_step with no remote runner and training_intensity so high that updates dominate; its
              uniform episode buffer, which is the faster of its two, and networks of 2x256

Updates a second of wall time, and of CPU time of the process, feed thread included (RLlib's local learner runs in it
too). On a machine that others use, the ratios by CPU time are the ones to read. Preset cpu, 256 rows, HalfCheetah's
sizes. One torch thread: run with OMP_NUM_THREADS=1 MKL_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from algorithms import ALGORITHMS
from algorithms.interface import AgentSpec
from cluster.connection import connect, disconnect
from learners.config import LearnerConfig
from learners.feed import Feed
from learners.learner import Learner
from replay.config import ReplayConfig
from replay.limiter import Limiter
from replay.messages import TRUNCATED, Block, Chunk
from replay.schema import RowLayout
from replay.shard import Shard
from replay.transition_store import TransitionStore

LAYOUT = RowLayout(obs_dim=17, action_dim=6)
BATCH, ROWS, CHUNK = 256, 100_000, 500
CONFIG = LearnerConfig()
ACTOR_CRITICS = [name for name, algorithm in ALGORITHMS.items() if algorithm.items == "transitions"]


def filled_shard() -> Shard:
    """A shard of made-up transitions whose limiter lets a learner sample as fast as it can."""
    config = ReplayConfig(capacity_rows=ROWS, min_size_rows=BATCH)
    limiter = Limiter(BATCH, samples_per_insert=1e9, tolerance=1e9)
    shard = Shard(TransitionStore(LAYOUT, config), limiter, shard=0, seed=0, batch_size=BATCH)
    rng = np.random.default_rng(0)
    flag_N = np.zeros(CHUNK, np.uint8)
    flag_N[-1] = TRUNCATED
    for sequence in range(ROWS // CHUNK):
        rows_ND = rng.standard_normal((CHUNK, LAYOUT.width)).astype(np.float32)
        columns = LAYOUT.views(rows_ND)
        np.tanh(columns.action, out=columns.action)
        columns.discount[...] = 1.0
        ack = shard.append(
            Chunk(
                worker=0,
                incarnation=0,
                sequence=sequence,
                generation=0,
                version=0,
                rows_ND=rows_ND,
                episode_N=np.full(CHUNK, sequence, np.int64),
                step_N=np.arange(CHUNK, dtype=np.int32),
                flag_N=flag_N,
                stats={},
            )
        )
        if ack.status != "ok":
            raise RuntimeError(f"the shard took no chunk: {ack}")
    return shard


def agent_of(algorithm: str) -> Any:
    preset = ALGORITHMS[algorithm].presets["cpu"]()
    spec = AgentSpec(obs_dim=LAYOUT.obs_dim, action_dim=LAYOUT.action_dim)
    return ALGORITHMS[algorithm].make_agent(preset, spec)


def bare_loop(algorithm: str, shard: Shard) -> Callable[[float], int]:
    agent = agent_of(algorithm)
    sampled = [shard.sample(CONFIG.updates_per_call, BATCH) for _ in range(16)]
    blocks = [torch.from_numpy(block.rows_UBD) for block in sampled if isinstance(block, Block)]

    def run(seconds: float) -> int:
        end, updates = time.perf_counter() + seconds, 0
        while time.perf_counter() < end:
            agent.update(blocks[updates // CONFIG.updates_per_call % len(blocks)])
            updates += CONFIG.updates_per_call
        return updates

    return run


class FedLearner:
    """A Learner with a feed thread; runs for some seconds at a time."""

    def __init__(self, algorithm: str, shard: Shard, directory: pathlib.Path) -> None:
        def fetch() -> Any:
            return shard.sample(CONFIG.updates_per_call, BATCH)

        self.published = 0
        self.learner = Learner(agent_of(algorithm), CONFIG, directory=directory, publish=self._take)
        self.feed = Feed(fetch, depth=CONFIG.prefetch_blocks, device="cpu", deadline_s=30.0)
        self.shares: list[dict[str, float]] = []

    def _take(self, weights: object) -> None:
        self.published += 1

    def run(self, seconds: float) -> int:
        self.learner.report()
        end, before = time.perf_counter() + seconds, self.learner.updates
        while time.perf_counter() < end:
            ready = self.feed.get()
            assert ready is not None
            self.learner.step(ready)
        self.shares.append(self.learner.report().time)
        return self.learner.updates - before


class RLlibSAC:
    """RLlib's SAC with everything local and its updates counted at the learner group."""

    def __init__(self) -> None:
        from ray.rllib.algorithms.sac import SACConfig

        self._own_cluster = connect(None, cpus=1, object_store_bytes=1 << 30)
        config = (
            SACConfig()
            .environment("HalfCheetah-v5")
            .env_runners(num_env_runners=0)
            .learners(num_learners=0)
            .rl_module(model_config={"fcnet_hiddens": [256, 256], "fcnet_activation": "relu", "head_fcnet_hiddens": []})
            .training(
                train_batch_size_per_learner=BATCH,
                num_steps_sampled_before_learning_starts=1_000,
                training_intensity=64 * BATCH,
                replay_buffer_config={"type": "EpisodeReplayBuffer", "capacity": ROWS},
            )
        )
        self.algorithm = config.build_algo()
        self.updates = 0
        inner = self.algorithm.learner_group.update

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.updates += 1
            return inner(*args, **kwargs)

        self.algorithm.learner_group.update = counted
        while self.updates == 0:  # the steps before learning starts
            self.algorithm.training_step()

    def run(self, seconds: float) -> int:
        end, before = time.perf_counter() + seconds, self.updates
        while time.perf_counter() < end:
            self.algorithm.training_step()
        return self.updates - before

    def close(self) -> None:
        self.algorithm.stop()
        disconnect(self._own_cluster)


def measure(runs: dict[str, Callable[[float], int]], repeats: int, seconds: float) -> dict[str, dict[str, float]]:
    """Median updates per wall second and per CPU-second of each run, repeats interleaved."""
    wall: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            wall_began, cpu_began = time.perf_counter(), time.process_time()
            updates = run(seconds if repeat else seconds / 4)
            if repeat:  # the first round warms up
                wall[name].append(updates / (time.perf_counter() - wall_began))
                cpu[name].append(updates / (time.process_time() - cpu_began))
    return {
        name: {"updates_per_s": statistics.median(wall[name]), "updates_per_cpu_s": statistics.median(cpu[name])}
        for name in runs
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="rounds measured; medians are printed")
    parser.add_argument("--seconds", type=float, default=3.0, help="s of each run in a round")
    parser.add_argument("--no-rllib", action="store_true", help="leave RLlib out")
    parser.add_argument("--json", type=pathlib.Path, help="write the figures to this file as well")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        learners = {name: FedLearner(name, filled_shard(), pathlib.Path(directory)) for name in ACTOR_CRITICS}
        runs: dict[str, Callable[[float], int]] = {}
        for name, learner in learners.items():
            runs |= {f"{name} bare": bare_loop(name, filled_shard()), f"{name} learner": learner.run}
        rllib = None if args.no_rllib else RLlibSAC()
        if rllib is not None:
            runs["RLlib SAC"] = rllib.run
        result = measure(runs, args.repeats, args.seconds)
        for learner in learners.values():
            learner.feed.stop()
        if rllib is not None:
            rllib.close()
    for name, learner in learners.items():
        shares = learner.shares[1:]
        result[f"{name} learner"] |= {kind: statistics.median(s[kind] for s in shares) for kind in shares[0]}
    show(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


def show(result: dict[str, dict[str, float]]) -> None:
    units = ("updates_per_s", "updates_per_cpu_s")
    print(f"{'':18s}{'updates/s':>11s}{'/CPU-s':>9s}{'of bare':>9s}{'by CPU':>9s}{'of RLlib':>10s}{'by CPU':>8s}")
    for name, row in result.items():
        bare, rllib = result[name.replace("learner", "bare")], result.get("RLlib SAC")
        of_bare = "".join(f"{row[unit] / bare[unit]:9.3f}" for unit in units)
        of_rllib = "".join(f"{row[unit] / rllib[unit]:9.1f}" for unit in units) if rllib else ""
        print(f"{name:18s}{row[units[0]]:11.1f}{row[units[1]]:9.1f}{of_bare}{of_rllib}")
    for name, row in result.items():
        shares = ", ".join(
            f"{kind} {row[kind]:.4f}" for kind in ("data_wait", "update", "publish", "other") if kind in row
        )
        if shares:
            print(f"{name}: share of wall time: {shares}")


if __name__ == "__main__":
    main()
