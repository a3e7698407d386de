"""The support fitted to the rewards: returns of any size and sign, whatever constant is added to the rewards."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from algorithms import ALGORITHMS, c51
from algorithms.interface import AgentSpec, Solo
from algorithms.support import Support

CPU = torch.device("cpu")
UPDATES, BATCH = 300, 64


@pytest.mark.parametrize(("constant", "gap"), [(-10.0, 4.0), (0.0, 4.0), (10.0, 4.0), (0.0, 0.02), (0.0, 200.0)])
def test_preset_cpu_prefers_the_better_of_two_actions_whatever_the_size_and_sign_of_returns(constant, gap):
    """An action above 0 brings ``gap`` more than one below; no episode ends, so the returns are 100 times the rewards."""
    assert _chosen(constant, gap, torch.ones(UPDATES)) > 0.9


def _chosen(constant: float, gap: float, size_U: torch.Tensor) -> float:
    """The share of actions above 0 after updates on rewards of these sizes."""
    fast = {"critic_width": 32, "bridge_width": 16, "bridge_steps": 3, "critic_lr": 3e-3, "actor_lr": 5e-3}
    config = dataclasses.replace(ALGORITHMS["softgac"].presets["cpu"](), **fast)
    agent = ALGORITHMS["softgac"].make_agent(config, AgentSpec(obs_dim=1, action_dim=1))
    draw = torch.Generator().manual_seed(0)
    obs, action, next_obs = 2 * torch.rand(3, UPDATES, BATCH, 1, generator=draw) - 1
    reward = size_U[:, None, None] * (constant + gap / 2 * action.sign())
    agent.update(torch.cat([obs, action, reward, torch.ones_like(reward), next_obs], -1))
    with torch.no_grad():
        chosen = agent.actor.rollout(torch.zeros(512, 1), agent.draw_noise(512), agent.policy.named).action_RA
    return float((chosen > 0).float().mean())


@pytest.mark.parametrize("last", [1_000.0, 1e-3])
def test_preset_cpu_goes_on_to_prefer_the_better_action_while_rewards_grow_or_shrink(last):
    """From 1 at the first update to ``last`` at the final one; the support can only widen, so small returns must stay apart."""
    assert _chosen(0.0, 2.0, torch.logspace(0, math.log10(last), UPDATES)) > 0.9


def _rows(constant: float = 0.0, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    reward = constant + scale * torch.randn(64, generator=draw, dtype=torch.float64)
    return reward.float(), 0.99 * (torch.rand(64, generator=draw) > 0.1).float()


@pytest.mark.parametrize(("constant", "scale"), [(0.0, 1.0), (10.0, 0.3), (-10.0, 0.3), (0.0, 100.0), (0.0, 0.01)])
def test_a_target_in_units_is_the_return_it_stands_for_and_none_is_clipped(constant, scale):
    reward, discount = _rows(constant, scale)
    support = Support(None, None, 101, CPU)
    units = support.units(reward, discount, Solo())
    u = c51.soft_target(units.reward(reward, discount), discount, torch.zeros(64), torch.tensor(0.0), support.y_N)
    z = reward[:, None] + discount[:, None] * units.value(support.y_N)
    torch.testing.assert_close(units.value(u), z, rtol=1e-4, atol=1e-4 * float(z.abs().max()))
    assert c51.clipped_share(torch.full((64, 101), 1 / 101), u, support.y_N) == 0
    assert u.amin() == pytest.approx(-400, abs=0.1) and u.amax() == pytest.approx(400, abs=0.1)


def test_a_fixed_support_leaves_rewards_and_values_bit_for_bit():
    support, (reward, discount) = Support(-20.0, 30.0, 101, CPU), _rows()
    units = support.units(reward, discount, Solo())
    assert torch.equal(units.reward(reward, discount), reward)
    assert torch.equal(units.value(support.y_N), torch.linspace(-20, 30, 101))


def test_a_fitted_support_only_widens_and_takes_nothing_from_a_skipped_update():
    support, one, no = Support(None, None, 101, CPU), torch.ones(1), torch.tensor(False)
    for reward, skipped, expected in (
        ([3.0, 5.0], no, [3.0, 5.0]),
        ([4.0, float("nan"), float("inf"), float("-inf")], no, [3.0, 5.0]),
        ([-7.0], no, [-7.0, 5.0]),
        ([100.0], torch.tensor(True), [-7.0, 5.0]),
    ):
        rewards = torch.tensor(reward)
        support.commit(support.units(rewards, 0.0 * one.expand_as(rewards), Solo()), skipped)
        assert [support.low.item(), support.high.item()] == expected


@pytest.mark.parametrize("reward", [0.0, 1.0, -1e4])
def test_rewards_that_are_all_equal_give_a_support_of_some_width(reward):
    support, rewards = Support(None, None, 101, CPU), torch.full((8,), reward)
    units = support.units(rewards, torch.full((8,), 0.99), Solo())
    assert units.scale > 0 and units.reward(rewards, torch.full((8,), 0.99)).abs().amax() < 0.1


def test_a_state_of_a_fixed_support_is_refused_by_a_fitted_one_by_name():
    spec, algorithm = AgentSpec(obs_dim=3, action_dim=1), ALGORITHMS["sac"]
    fitted = algorithm.presets["cpu"]()
    fixed = dataclasses.replace(fitted, v_min=-400.0, v_max=400.0)
    state = algorithm.make_agent(fixed, spec).state()
    with pytest.raises(ValueError, match=r"critic\.support\.low is missing; critic\.support\.high is missing"):
        algorithm.make_agent(fitted, spec).load_state(state)
    algorithm.make_agent(fixed, spec).load_state(state)  # a run from before has its bounds in config.json


@pytest.mark.parametrize(("v_min", "v_max"), [(None, 400.0), (-400.0, None)])
def test_half_a_support_is_refused(v_min, v_max):
    (problem,) = dataclasses.replace(ALGORITHMS["sac"].presets["cpu"](), v_min=v_min, v_max=v_max).validate()
    assert "expected two numbers or none twice" in problem
