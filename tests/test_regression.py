"""What the state, and state and return, explain of recorded actions without a plan: on episodes where it is known."""

from __future__ import annotations

import numpy as np
import pytest
from gac_batches import OBS, SHAPES, episodes, made, small

from algorithms.gac.regression import explained_without_plan
from replay.stored_episode import StoredEpisode


def walks(count: int, of_state: float, of_return: float, of_neither: float, seed: int) -> list[StoredEpisode]:
    """Episodes whose one action is the sum of a part that the state decides, one of the return and one of a number nobody is told;
    each part, before its factor, has a variance of 1."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(count):
        obs_TO = rng.standard_normal((50, OBS)).astype(np.float32)
        y, secret = rng.choice([-1.0, 1.0], 2)
        action_T = of_state * np.sign(obs_TO[:, 0]) + of_return * y + of_neither * secret
        rewards_T = np.append(np.zeros(49), y)
        found.append(StoredEpisode(0, obs_TO, action_T[:, None].astype(np.float32), rewards_T, False, True, obs_TO[-1]))
    return found


@pytest.mark.parametrize("others", [0, 5, 80], ids=["none", "few", "many"])
@pytest.mark.parametrize("parts", [(0.6, 0.0, 0.3), (0.3, 0.3, 0.3), (0.0, 0.6, 0.0)])
def test_shares_are_those_of_what_a_regression_is_told(parts: tuple[float, float, float], others: int) -> None:
    model = made(small(**SHAPES["linear"]), episodes(0)).model
    found = explained_without_plan(model, walks(60, *parts, seed=1), walks(others, *parts, seed=2))
    state, by_return, _ = np.square(parts) / np.square(parts).sum()
    assert found.state == pytest.approx(state, abs=0.15)
    assert found.state_return == pytest.approx(state + by_return, abs=0.15)


def test_what_was_learned_by_heart_explains_nothing() -> None:
    """Each episode has its own action and its own place: a regression that saw an episode would know it whole."""
    model = made(small(**SHAPES["linear"]), episodes(0)).model
    judged = walks(40, 0.0, 0.0, 0.8, seed=3)
    for i, one in enumerate(judged):
        one.obs_TO[:] = np.random.default_rng(i).standard_normal(OBS)
    assert explained_without_plan(model, judged, []).state < 0.1
