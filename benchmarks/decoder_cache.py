"""What an action costs with the generator's cache and without it, and how long plans and actions take.

    python benchmarks/decoder_cache.py

Side by side in one run: the cached step against decoding again at every step (a) the whole episode so far, (b) the last
tokens that the result depends on, layers times window steps; then GACPolicy.act and GACPolicy.begin for 1, 8 and 32
environments. CPU seconds of this process, medians over repeats, an untrained model (its values do not change the work).
Set OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from algorithms.gac.config import GACConfig, linear, paper
from algorithms.gac.model import GACModel
from algorithms.gac.policy import GACPolicy
from algorithms.interface import PlanRequest

OBS, ACTION, STEPS = 4, 2, 300
WINDOW = 16  # steps, of the preset that has none
SAMPLED = range(4, STEPS, 10)  # steps at which decoding again is timed: their mean is the episode's


def cpu_s(work: Callable[[], object], repeats: int) -> float:
    """Median CPU time of one call, in s."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return statistics.median(times)


class Episode:
    """One plan of an untrained model and an episode's worth of observations and actions for E environments."""

    def __init__(self, config: GACConfig, envs: int) -> None:
        torch.manual_seed(0)
        self.model = GACModel(config, OBS, ACTION).eval().requires_grad_(False)
        self.model.horizon.fill_(STEPS)
        self.memory = self.model.memory(torch.randn(envs, config.tokens, config.token_width))
        self.obs_EPO = torch.randn(envs, STEPS, OBS)
        self.action_EPA = torch.rand(envs, STEPS, ACTION) * 2 - 1
        self.time_PE = torch.arange(STEPS).unsqueeze(1).expand(-1, envs)

    def cached(self) -> torch.Tensor:
        """The actions of the whole episode, one token's work at a time."""
        envs = len(self.obs_EPO)
        cache, made = self.model.new_cache(envs), []
        for t in range(STEPS):
            made.append(self.model.step(self.memory, cache, self.obs_EPO[:, t], self.time_PE[t])[0])
            self.model.observe_action(cache, self.action_EPA[:, t])
        return torch.stack(made, 1)

    def uncached(self, history: int, steps: range) -> torch.Tensor:
        """The actions of ``steps``, each from the last ``history`` steps decoded again."""
        made = []
        for t in steps:
            seen = slice(max(0, t + 1 - history), t + 1)
            given = self.obs_EPO[:, seen], self.action_EPA[:, seen]
            made.append(self.model.generate(self.memory, *given).action_BSA[:, -1])
        return torch.stack(made, 1)


def compare(name: str, config: GACConfig, envs: int, repeats: int) -> None:
    """A line for each way: the mean over the episode's steps, the cost of its last step, and how far the actions are off."""
    episode = Episode(config, envs)
    with torch.inference_mode():
        base, cached = cpu_s(episode.cached, repeats) / STEPS, episode.cached()
        print(f"{name}, {envs} environments: cached {base * 1e6:.0f} us a step")
        for label, history in (
            ("the episode so far", STEPS),
            ("what it depends on", config.layers * (config.window - 1) + 1),
        ):
            mean, last = (
                cpu_s(functools.partial(episode.uncached, history, steps), repeats) / len(steps)
                for steps in (SAMPLED, range(STEPS - 3, STEPS))
            )
            off = float((episode.uncached(history, SAMPLED) - cached[:, SAMPLED.start :: SAMPLED.step]).abs().max())
            print(
                f"    decoding {label} again: {mean * 1e6:6.0f} us a step, {mean / base:5.1f} times; at step {STEPS}: "
                f"{last * 1e6:6.0f} us, {last / base:5.1f} times; actions differ by {off:.0e}"
            )


def latency(name: str, config: GACConfig, envs: int, repeats: int) -> None:
    """CPU time of one act of all environments, and of planning for all of them."""
    policy, rng = GACPolicy(config, OBS, ACTION), np.random.default_rng(0)
    policy.reset(envs)
    policy.aim = PlanRequest(mode="kl")
    env_E, obs_EO, reward_E = np.arange(envs), np.zeros((envs, OBS), np.float32), np.zeros(envs, np.float32)
    plan = cpu_s(lambda: policy.begin(env_E, obs_EO, rng), repeats)
    act = cpu_s(lambda: [policy.act(obs_EO, reward_E) for _ in range(STEPS)], repeats) / STEPS
    print(
        f"{name}, {envs:2d} environments: act {act * 1e6:5.0f} us ({act / envs * 1e6:4.0f} each), "
        f"begin ({config.infer_steps} ascent steps) {plan * 1e3:4.0f} ms ({plan / envs * 1e3:4.0f} each)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    windowed = dataclasses.replace(linear(), tokens=16, window=WINDOW, points=0, layers=2, plan_reading="attention")
    lpt = dataclasses.replace(paper(), autocast=False)
    for name, config in ((f"causal Transformer, window {WINDOW}", windowed), ("paper preset", lpt)):
        for envs in (1, 8):
            compare(name, config, envs, repeats)
    for name, config in (("linear preset", linear()), (f"causal Transformer, window {WINDOW}", windowed)):
        for envs in (1, 8, 32):
            latency(name, config, envs, repeats)


if __name__ == "__main__":
    main()
