"""Environment steps per CPU second of one core: the physics alone, ours, and Gymnasium's, side by side.

    OMP_NUM_THREADS=1 python benchmarks/env_steps.py [--envs 16,64] [--tasks Hopper,Ant] [--repeats 5] [--json FILE]

``raw`` is mujoco.rollout on one thread with the model and frame_skip of the task, given random controls and started
over as often as the task starts over: the same physics without observations, rewards and resets. ``ours`` is
BatchEnv.step with random actions, everything included. Rates are env steps by process CPU time, medians over
repeats, all contenders in turn within each repeat, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium.vector import SyncVectorEnv
from mujoco import rollout

from rollout_workers.envs import make_batch_env, make_env

TASKS = ("HalfCheetah", "Hopper", "Walker2d", "Ant", "Humanoid")
Contender = Callable[[], int]  # steps for a while, returns the env steps made


def raw(env_id: str, steps: int, rng: np.random.Generator) -> Contender:
    """mujoco.rollout over the start states and episode lengths that random actions give."""
    env: Any = make_env(env_id).unwrapped
    model, data, frame_skip = env.model, mujoco.MjData(env.model), env.frame_skip
    low, high = env.action_space.low, env.action_space.high
    pieces = []
    for state, length in _episodes(env, gym.make(env_id), steps):
        ctrl = np.repeat(rng.uniform(low, high, (length, low.size)), frame_skip, axis=0)
        states = np.empty((1, len(ctrl), state.size))
        pieces.append((state[None], ctrl[None], states, np.empty((1, len(ctrl), model.nsensordata))))

    def run() -> int:
        for state, ctrl, states, sensors in pieces:
            rollout.rollout(model, data, state, ctrl, state=states, sensordata=sensors, skip_checks=False)
        return steps

    return run


def _episodes(physics: gym.Env, env: gym.Env, steps: int) -> list[tuple[np.ndarray, int]]:
    full = mujoco.mjtState.mjSTATE_FULLPHYSICS
    episodes, left = [], steps
    env.action_space.seed(0)
    while left > 0:
        env.reset(seed=left)
        inner: Any = env.unwrapped
        state = np.empty(mujoco.mj_stateSize(inner.model, full))
        mujoco.mj_getState(inner.model, inner.data, state, full)
        length, ended = 0, False
        while not ended and length < left:
            _, _, terminated, truncated, _ = env.step(env.action_space.sample())
            ended, length = terminated or truncated, length + 1
        episodes.append((state, length))
        left -= length
    return episodes


def ours(env_id: str, num_envs: int, steps: int, rng: np.random.Generator) -> Contender:
    """BatchEnv.step with random actions in [-1, 1], resets included."""
    env = make_batch_env(env_id, num_envs, seed=0)
    env.reset()
    actions = rng.uniform(-1, 1, (max(steps // num_envs, 1), num_envs, env.action_dim)).astype(np.float32)

    def run() -> int:
        for action_EA in actions:
            env.step(action_EA)
        return len(actions) * num_envs

    return run


def single(env_id: str, steps: int, rng: np.random.Generator) -> Contender:
    """gymnasium.make, one environment, reset when it ends."""
    env = gym.make(env_id)
    env.reset(seed=0)
    box: Any = env.action_space
    actions = rng.uniform(box.low, box.high, (steps, *box.shape)).astype(np.float32)

    def run() -> int:
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()
        return steps

    return run


def sync(env_id: str, num_envs: int, steps: int, rng: np.random.Generator) -> Contender:
    """gymnasium.vector.SyncVectorEnv."""
    env = SyncVectorEnv([lambda: gym.make(env_id)] * num_envs)
    env.reset(seed=0)
    box: Any = env.action_space
    actions = rng.uniform(box.low, box.high, (max(steps // num_envs, 1), *box.shape)).astype(np.float32)

    def run() -> int:
        for action_EA in actions:
            env.step(action_EA)
        return len(actions) * num_envs

    return run


def measure(contenders: dict[str, Contender], repeats: int) -> dict[str, dict[str, float]]:
    """Rates by contender and, for each, the median of its ratio to ``raw`` within a repeat."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run()
    for _ in range(repeats):
        for name, run in contenders.items():
            began = time.process_time()
            made = run()
            rates[name].append(made / (time.process_time() - began))
    ratios = {name: [rate / top for rate, top in zip(rates[name], rates["raw"])] for name in rates}
    return {
        name: {"steps_per_s": statistics.median(rates[name]), "of_raw": statistics.median(ratios[name])}
        for name in rates
    }


def main() -> None:
    """Measures and prints one line for each task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(TASKS), help="names of MuJoCo v5 tasks")
    parser.add_argument("--envs", default="16,64", help="batch sizes of ours")
    parser.add_argument("--repeats", type=int, default=5, help="repeats, each with every contender once")
    parser.add_argument("--seconds", type=float, default=0.5, help="about how long one contender runs in a repeat, s")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.envs.split(",")]
    names = ["raw", *(f"ours {size}" for size in sizes), "gymnasium 1", f"SyncVectorEnv {sizes[0]}"]
    print(f"{'task':24s}" + "".join(f"{name:>22s}" for name in names))
    figures = {}
    for task in arguments.tasks.split(","):
        figures[task] = task_figures(f"{task}-v5", sizes, arguments.repeats, arguments.seconds)
        cells = (f"{figure['steps_per_s']:12,.0f} {figure['of_raw']:8.3f}x" for figure in figures[task].values())
        print(f"{task:24s}" + "".join(cells), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"mujoco": mujoco.__version__, "tasks": figures}, indent=1) + "\n")


def task_figures(env_id: str, sizes: list[int], repeats: int, seconds: float) -> dict[str, dict[str, float]]:
    """The contenders' figures of one task."""
    rng = np.random.default_rng(0)
    probe = raw(env_id, 2_000, rng)
    began = time.process_time()
    steps = max(int(seconds * probe() / (time.process_time() - began)), 2_000)
    contenders = {"raw": raw(env_id, steps, rng)}
    contenders |= {f"ours {size}": ours(env_id, size, steps, rng) for size in sizes}
    contenders |= {
        "gymnasium 1": single(env_id, steps, rng),
        f"SyncVectorEnv {sizes[0]}": sync(env_id, sizes[0], steps, rng),
    }
    return measure(contenders, repeats)


if __name__ == "__main__":
    main()
