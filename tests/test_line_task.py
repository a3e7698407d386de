"""Every actor-critic learns a task of one step: the best action is .6 times the state, and each update is real."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from algorithms import ALGORITHMS
from algorithms.interface import AgentSpec

UPDATES, BATCH = 240, 128
NAMES = [name for name, algorithm in ALGORITHMS.items() if algorithm.items == "transitions"]


def line_rows(updates: int, draw: torch.Generator) -> torch.Tensor:
    """Rows [s, a, r, 0, s']: r = -(a - .6 s)^2 and the episode ends."""
    obs = torch.rand(updates, BATCH, 1, generator=draw) * 2 - 1
    action = torch.rand(updates, BATCH, 1, generator=draw) * 2 - 1
    reward = -(action - 0.6 * obs).square()
    return torch.cat([obs, action, reward, torch.zeros_like(obs), obs], -1)


@pytest.mark.parametrize("name", NAMES)
def test_it_finds_the_best_action_of_every_state(name: str) -> None:
    algorithm, draw = ALGORITHMS[name], torch.Generator().manual_seed(0)
    width = {"bridge_width": 32} if name == "softgac" else {"actor_width": 32}
    quick = {
        "critic_width": 32,
        "critic_lr": 3e-3,
        "actor_lr": 3e-3,
        "renorm_decay": 0.9,
    }  # statistics that follow at once
    if name == "qsm":
        quick["q_scale"] = (
            3e-3  # one action decides the whole return: the slope of Q is a thousand times that of a usual task
        )
    config = dataclasses.replace(algorithm.presets["cpu"](), **quick, **width)
    agent: Any = algorithm.make_agent(config, AgentSpec(obs_dim=1, action_dim=1))
    policy: Any = algorithm.make_policy(config, 1, 1)
    agent.update(line_rows(400 if name == "dime" else UPDATES, draw))  # it begins far out, and its noise stays
    policy.load_weights(agent.policy_weights())
    obs = torch.linspace(-0.9, 0.9, 19).unsqueeze(1)
    error = (policy.act(obs, torch.zeros(19, *policy.noise_shape)) - 0.6 * obs).abs().mean()
    assert error < 0.15  # 0.5 for an action drawn at random, 0.28 for 0
