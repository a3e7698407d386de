"""The whole loop of a rollout worker (act, step, record) against RLlib's, in env steps per second of one core.

    OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 python -m benchmarks.worker [--envs ID ...] [--repeats N] [--json FILE]

Every contestant is built once and then measured in turn, ``--repeats`` times, in process CPU time; medians are
printed. Ours act with the bridge policy of the two presets and with the 2x256 Gaussian policy of SAC, record packed
rows, and hand out chunks. RLlib's is SingleAgentEnvRunner with SAC's default model (2x256), the same number of
environments, and its own connectors.

"stepping" is our environments with random actions and nothing else, which no worker on them can surpass; "bound" is
its rate over RLlib's, and so what the ratio can be at most: on heavy physics it is below the goal. "gymnasium" steps
one environment of Gymnasium's own with random actions and keeps nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from algorithms import ALGORITHMS
from algorithms.interface import AgentSpec
from algorithms.weights import Weights
from rollout_workers.config import WorkerConfig
from rollout_workers.envs import env_spec, make_batch_env
from rollout_workers.worker import RolloutWorker

ENVS = ["HalfCheetah-v5", "Hopper-v5", "Ant-v5"]
POLICIES = {"bridge 6x64": ("softgac", "cpu"), "bridge 6x512": ("softgac", "paper"), "gaussian 2x256": ("sac", "cpu")}
GOALS = {1: 5.0, 8: 4.0}  # ours with the bridge 6x64 over RLlib's, with so many environments in both

Contestant = Callable[[], int]  # one round of work; the env steps it made


def ours(env_id: str, envs: int, algorithm: str, preset: str) -> Contestant:
    """One chunk a call."""
    made, spec = ALGORITHMS[algorithm], env_spec(env_id)
    config = made.presets[preset]()
    agent = made.make_agent(config, AgentSpec(obs_dim=spec.obs_dim, action_dim=spec.action_dim))
    worker = RolloutWorker(
        config=WorkerConfig(envs_per_worker=envs),
        env_id=env_id,
        policy=made.make_policy(config, spec.obs_dim, spec.action_dim),
        worker=0,
        incarnation=0,
        seed=0,
        random_steps=0,
    )
    worker.load_weights(Weights.pack(agent.policy_weights(), generation=0, version=0, env_steps=0, updates=0))
    return lambda: len(worker.collect().rows_ND)


def rllib(env_id: str, envs: int) -> Contestant:
    """Sixteen steps of every environment a call, exploring, as SAC asks its env runner for them."""
    from ray.rllib.algorithms.sac import SACConfig
    from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

    config = SACConfig().environment(env_id).env_runners(num_env_runners=0, num_envs_per_env_runner=envs)
    runner = SingleAgentEnvRunner(config=config)
    steps = 16 * envs
    return lambda: sum(len(e) for e in runner.sample(num_timesteps=steps, random_actions=False, explore=True))


def gymnasium_alone(env_id: str) -> Contestant:
    """One environment of Gymnasium's own, a hundred random actions a call."""
    env = gym.make(env_id)
    env.reset(seed=0)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(100)]

    def run() -> int:
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()
        return len(actions)

    return run


def stepping_alone(env_id: str, envs: int) -> Contestant:
    """Our environments, sixteen random actions each a call: what no worker on them can surpass."""
    env = make_batch_env(env_id, envs, 0)
    env.reset()
    actions = np.random.default_rng(0).uniform(-1, 1, (16, envs, env.action_dim)).astype(np.float32)

    def run() -> int:
        for action_EA in actions:
            env.step(action_EA)
        return 16 * envs

    return run


def steps_per_cpu_second(contestant: Contestant, seconds: float) -> float:
    started, steps = time.process_time(), 0
    while time.process_time() - started < seconds:
        steps += contestant()
    return steps / (time.process_time() - started)


def measure(contestants: dict[str, Contestant], repeats: int, seconds: float) -> dict[str, float]:
    """Medians of interleaved repeats, after one that is thrown away."""
    for contestant in contestants.values():
        steps_per_cpu_second(contestant, seconds / 4)
    seen: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, contestant in contestants.items():
            seen[name].append(steps_per_cpu_second(contestant, seconds))
    return {name: statistics.median(rates) for name, rates in seen.items()}


def compare(env_id: str, counts: list[int], repeats: int, seconds: float) -> list[dict[str, Any]]:
    """One table row a policy and number of environments."""
    rows = []
    for envs in counts:
        contestants = {name: ours(env_id, envs, *which) for name, which in POLICIES.items()}
        contestants |= {"rllib": rllib(env_id, envs), "gymnasium": gymnasium_alone(env_id)}
        contestants["stepping"] = stepping_alone(env_id, envs)
        rates = measure(contestants, repeats, seconds)
        for name in POLICIES:
            row = {"env": env_id, "envs": envs, "policy": name, "steps_per_s": rates[name]}
            row |= {"rllib_steps_per_s": rates["rllib"], "over_rllib": rates[name] / rates["rllib"]}
            row |= {"gymnasium_steps_per_s": rates["gymnasium"], "stepping_steps_per_s": rates["stepping"]}
            row |= {"of_stepping": rates[name] / rates["stepping"], "bound": rates["stepping"] / rates["rllib"]}
            rows.append(row)
            print(line(row), flush=True)
    return rows


def line(row: dict[str, Any]) -> str:
    goal = GOALS.get(row["envs"]) if row["policy"] == "bridge 6x64" else None
    verdict = "" if goal is None else f"  goal {goal:g}: {'reached' if row['over_rllib'] >= goal else 'MISSED'}"
    start = f"{row['env']:16} {row['envs']:4} {row['policy']:15} {row['steps_per_s']:9,.0f}"
    rest = f"{row['bound']:6.1f} {row['stepping_steps_per_s']:9,.0f} {row['of_stepping']:6.2f}"
    rest += f" {row['gymnasium_steps_per_s']:10,.0f}{verdict}"
    return f"{start} {row['rllib_steps_per_s']:9,.0f} {row['over_rllib']:7.1f} {rest}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", default=ENVS, help="Gymnasium ids")
    parser.add_argument("--counts", nargs="+", type=int, default=[1, 8, 16, 64], help="environments of one worker")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved measurements of each (default 5)")
    parser.add_argument("--seconds", type=float, default=0.5, help="CPU seconds of each measurement (default 0.5)")
    parser.add_argument("--json", type=Path, help="write the table there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    heads = f"{'ours/s':>9} {'RLlib/s':>9} {'ratio':>7} {'bound':>6} {'stepping':>9} {'share':>6}"
    print(f"{'env':16} {'envs':>4} {'policy':15} {heads} {'gymnasium':>10}")
    rows = [
        row
        for env_id in arguments.envs
        for row in compare(env_id, arguments.counts, arguments.repeats, arguments.seconds)
    ]
    if arguments.json:
        machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        arguments.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
