"""The paper's form at its small size learns a plan that carries the behaviour, and searches it: a walk to one of two hidden goals.

Letters: B trajectories, T steps, K starts.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from algorithms.gac.agent import GAC
from algorithms.gac.config import cpu
from algorithms.gac.diagnosis import PartialPlan, contents, explained, posteriors
from algorithms.interface import AgentSpec, PlanRequest
from cluster.diagnosis import packed
from replay.dataset import summarise
from replay.stored_episode import StoredEpisode

STEPS, STARTS = 30, np.linspace(-0.6, 0.6, 12, dtype=np.float32)
CONFIG = dataclasses.replace(
    cpu(),
    tokens=2, token_width=4, prior_width=16, width=16, posterior_width=16, obs_fourier=0, points=16, lr=3e-3, updates=300,
    infer_steps=30, infer_draws=8, matmul="mkl",
)  # fmt: skip


def episodes(rng: np.random.Generator, count: int) -> list[StoredEpisode]:
    """Walks to -1 or 1, which nothing but the walk itself tells; the return is the mean place."""
    found = []
    for index in range(count):
        place, goal, obs, action, reward = rng.uniform(-0.6, 0.6), rng.choice([-1.0, 1.0]), [], [], []
        for _ in range(STEPS):
            push = float(np.clip(2.0 * (goal - place) + 0.3 * rng.standard_normal(), -0.9, 0.9))
            obs.append([place])
            action.append([push])
            reward.append(place / STEPS)
            place += 0.1 * push
        parts = (np.array(obs, np.float32), np.array(action, np.float32), np.array(reward))
        found.append(StoredEpisode(index, *parts, False, True, np.array([place], np.float32)))
    return found


def walked(agent: GAC, variant: str, request: PlanRequest) -> np.ndarray:
    """Returns (K,) of plans acted out from STARTS."""
    policy = PartialPlan(agent.config, 1, 1, variant)
    policy.load_weights({name: tensor.numpy() for name, tensor in agent.policy_weights().items()})
    policy.aim = request
    policy.reset(len(STARTS))
    place_K1, total_K, none = STARTS[:, None].copy(), np.zeros(len(STARTS)), np.zeros(len(STARTS), np.float32)
    policy.begin(np.arange(len(STARTS)), place_K1, np.random.default_rng(0))
    for _ in range(STEPS):
        total_K += place_K1[:, 0] / STEPS
        place_K1 = place_K1 + 0.1 * policy.act(place_K1, none)
    return total_K


def test_the_papers_form_learns_which_goal_a_walk_has_and_goes_where_the_return_is_high() -> None:
    rng = np.random.default_rng(0)
    data = episodes(rng, 128)
    agent = GAC(CONFIG, AgentSpec(obs_dim=1, action_dim=1, seed=0))
    agent.fit(summarise(data))
    for _ in range(CONFIG.updates // 10):
        agent.update([packed([data[i] for i in rng.choice(len(data), 32, replace=False)]) for _ in range(10)])
    batch = packed(data[:64])
    q = posteriors(agent, batch)
    shares, said = explained(agent.model, batch, q), contents(agent.model, batch, q)
    assert shares.own - shares.others > 0.3 and said.return_correlation > 0.9
    high, low = (walked(agent, "searched", PlanRequest(mode="st", target_return=y)) for y in (0.7, -0.7))
    assert high.min() > 0.3 and low.max() < -0.3  # from every start
    hidden = walked(agent, "hidden", PlanRequest(mode="st", target_return=0.7))
    assert hidden.mean() < high.mean() - 0.3
    assert walked(agent, "searched", PlanRequest(mode="kl")).min() > 0.3
