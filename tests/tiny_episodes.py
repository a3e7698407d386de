"""Runs on whole episodes that end in seconds: a dataset of Pendulum swings, and a GAC of a few units."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from replay.dataset import write_dataset
from replay.stored_episode import StoredEpisode

ENV, DATASET = "Pendulum-v1", "tiny/pendulum-v0"
BARREN = "broken_envs:Barren-v0"
STEPS = 200  # of every episode
LEARNER = {"learner.batch_size": 8, "learner.updates_per_call": 5, "learner.publish_updates": 10}
TINY = {
    "evaluation.every_steps": 0,
    "evaluation.episodes": 2,
    "evaluation.final_episodes": 2,
    "worker.envs_per_worker": 2,
    "worker.chunk_steps": 25,
    "metrics.tensorboard": "false",
    "metrics.port": -1,
} | LEARNER
TINY_GAC = {
    "agent.tokens": 4,
    "agent.token_width": 4,
    "agent.prior_width": 8,
    "agent.width": 16,
    "agent.posterior_width": 8,
    "agent.points": 8,
    "agent.obs_fourier": 0,
    "agent.infer_steps": 2,
    "agent.infer_max_steps": 2,
    "agent.infer_draws": 4,
    "agent.matmul": "mkl",
}
TINY_CLONE = {"agent.width": 16}


def make_dataset(root: Path, patch: pytest.MonkeyPatch, episodes: int = 8) -> str:
    """A dataset of random swings below ``root``, which MINARI_DATASETS_PATH then names, for processes too; its id."""
    patch.setenv("MINARI_DATASETS_PATH", str(root))
    bound = np.array([2.0])
    about = {"random_return": -1_200.0, "expert_return": -150.0, "reference_episodes": 0, "algorithm_name": "random"}
    write_dataset(DATASET, swings(episodes), env_id=ENV, action_low_A=-bound, action_high_A=bound, **about)
    return DATASET


def make_barren_dataset(root: Path, patch: pytest.MonkeyPatch) -> str:
    """The same of BARREN, whose recorded episodes return what none can that is gathered there."""
    patch.setenv("MINARI_DATASETS_PATH", str(root))
    bound = np.array([1.0])
    about = {"random_return": 0.0, "expert_return": 350.0, "reference_episodes": 0, "algorithm_name": "random"}
    episodes = map(rewarded, range(8))
    write_dataset(DATASET, episodes, env_id=BARREN, action_low_A=-bound, action_high_A=bound, **about)
    return DATASET


def rewarded(index: int, steps: int = 50) -> StoredEpisode:
    rng = np.random.default_rng(index)
    obs_NO = rng.normal(size=(steps + 1, 2)).astype(np.float32)
    action_TA = rng.uniform(-1, 1, (steps, 1)).astype(np.float32)
    return StoredEpisode(index, obs_NO[:-1], action_TA, np.full(steps, float(index)), False, True, obs_NO[-1])


def swings(episodes: int) -> Iterator[StoredEpisode]:
    env, rng = gym.make(ENV), np.random.default_rng(0)
    for index in range(episodes):
        obs = [env.reset(seed=index)[0]]
        action_TA = rng.uniform(-1, 1, (STEPS, 1)).astype(np.float32)
        rewards = []
        for action_A in action_TA:
            seen, reward, *_ = env.step(2.0 * action_A)
            obs.append(seen)
            rewards.append(float(reward))
        obs_TO = np.array(obs, np.float32)
        yield StoredEpisode(index, obs_TO[:-1], action_TA, np.array(rewards), False, True, obs_TO[-1])


def pairs(*settings: dict[str, Any], **more: Any) -> list[str]:
    """--set words; fields of ``more`` have __ for the dot."""
    merged: dict[str, Any] = {}
    for each in (*settings, {name.replace("__", "."): value for name, value in more.items()}):
        merged |= each
    return [word for key, value in merged.items() for word in ("--set", f"{key}={value}")]


def train_words(algorithm: str, run_dir: Path, *flags: str, **more: Any) -> list[str]:
    """The words of ``train ALGORITHM`` on the tiny dataset."""
    agent = TINY_GAC if algorithm == "gac" else TINY_CLONE
    return ["train", algorithm, "--dataset", DATASET, "--run-dir", str(run_dir), *flags, *pairs(TINY, agent, **more)]


def finetune_words(
    base: Path, run_dir: Path, *flags: str, stages: int = 2, episodes: int = 8, updates: int = 20, **more: Any
) -> list[str]:
    """The words of ``finetune`` with small stages."""
    sizes = ("--stages", str(stages), "--episodes-per-stage", str(episodes), "--updates-per-stage", str(updates))
    return ["finetune", str(base), "--out", str(run_dir), *sizes, *flags, *pairs(**more)]
