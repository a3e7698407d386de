"""GAC's model: one function whichever way it is computed, causal, within its window, and saying what cannot work."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from gac_batches import ACTION, OBS, SHAPES, episodes, small, summary

from algorithms.gac.config import GACConfig, linear, paper
from algorithms.gac.generator import attend
from algorithms.gac.model import GACModel
from algorithms.gac.segments import whole

EPISODE = 45  # steps: several windows, several turns of the cache's ring
PLANS = 3
EVERY = pytest.mark.parametrize("name", sorted(SHAPES))


def model_of(name: str, **fields: Any) -> GACModel:
    torch.manual_seed(0)
    model = GACModel(small(**(SHAPES[name] | fields)), OBS, ACTION)
    model.fit(summary(episodes(0, (EPISODE, 3))))
    return model


def inputs(seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """z0, observations, actions and times of PLANS episodes."""
    generator = torch.Generator().manual_seed(seed)
    z0, obs = torch.randn(PLANS, 4, 3, generator=generator), torch.randn(PLANS, EPISODE, OBS, generator=generator)
    action = torch.rand(PLANS, EPISODE, ACTION, generator=generator) * 2 - 1
    return z0, obs, action, torch.arange(EPISODE).expand(PLANS, -1)


@EVERY
def test_the_cached_step_equals_generating_the_whole_episode(name: str) -> None:
    model, (z0, obs, action, time) = model_of(name), inputs()
    with torch.inference_mode():
        memory = model.memory(model.plan(z0, obs[:, 0]))
        made, cache = model.generate(memory, obs, action), model.new_cache(PLANS)
        for episode in range(2):  # the second one finds the first one's leavings in the ring
            for t in range(EPISODE - 20 * (1 - episode)):
                mean, ahead = model.step(memory, cache, obs[:, t], time[:, t])
                torch.testing.assert_close(mean, made.action_BSA[:, t], atol=1e-5, rtol=0)
                torch.testing.assert_close(ahead, made.next_obs_BSO[:, t], atol=1e-5, rtol=0)
                model.observe_action(cache, action[:, t])


@pytest.mark.parametrize("name", ["window", "point"])
def test_environments_at_different_times_of_their_episodes_share_a_cache(name: str) -> None:
    model, (z0, obs, action, _) = model_of(name), inputs()
    late = torch.tensor([0, 5, 11])  # environment e begins its episode at step late[e]
    with torch.inference_mode():
        memory = model.memory(model.plan(z0, obs[:, 0]))
        made, cache = model.generate(memory, obs, action), model.new_cache(PLANS)
        for t in range(30):
            at = (t - late).clamp(min=0)
            mean, _ = model.step(memory, cache, obs[range(PLANS), at], at)
            for e in range(PLANS):
                if t >= late[e]:
                    torch.testing.assert_close(mean[e], made.action_BSA[e, at[e]], atol=1e-5, rtol=0)
            model.observe_action(cache, action[range(PLANS), at])


@EVERY
def test_rows_that_follow_each_other_equal_one_long_row(name: str) -> None:
    model, batch = model_of(name), episodes(4, (EPISODE, 2, 31))
    z0 = torch.randn(len(batch), 4, 3)
    rows = whole(batch, size=16, obs_dim=OBS, action_dim=ACTION)
    with torch.no_grad():
        z = model.plan(z0, batch.rows_NF[batch.offset[:-1], :OBS])
        cut = model.generate_rows(model.memory(z), rows.obs_RSO, rows.action_RSA, rows.rows)
        for b in range(len(batch)):
            own = batch.rows_NF[batch.offset[b] : batch.offset[b + 1]]
            long = model.generate(model.memory(z[b : b + 1]), own[None, :, :OBS], own[None, :, OBS:-1])
            mine = (rows.rows.plan_R == b).unsqueeze(1) & (rows.weight_RS > 0)
            torch.testing.assert_close(cut.action_BSA[mine], long.action_BSA[0], atol=1e-5, rtol=0)
            torch.testing.assert_close(cut.next_obs_BSO[mine], long.next_obs_BSO[0], atol=1e-5, rtol=0)


def test_an_output_sees_no_later_step_nor_its_own_action_nor_what_left_every_layers_window() -> None:
    model, (z0, obs, action, _) = model_of("window", layers=1), inputs()
    memory = model.memory(model.plan(z0, obs[:, 0]).detach())
    obs, action, t = obs.requires_grad_(), action.requires_grad_(), 20
    model.generate(memory, obs, action).action_BSA[:, t].sum().backward()
    assert obs.grad is not None and action.grad is not None
    assert obs.grad.abs().sum((0, 2)).nonzero().flatten().tolist() == [17, 18, 19, 20]
    assert action.grad.abs().sum((0, 2)).nonzero().flatten().tolist() == [17, 18, 19]


def test_padding_changes_nothing_before_it() -> None:
    model, (z0, obs, action, time) = model_of("whole"), inputs()
    padding = time >= 33
    with torch.no_grad():
        memory = model.memory(model.plan(z0, obs[:, 0]))
        long = model.generate(memory, obs, action, padding)
        cut = model.generate(memory, obs[:, :33], action[:, :33])
        whole_log, cut_log = (
            model.log_prob_trajectory(model.plan(z0, obs[:, 0]), *parts)
            for parts in ((obs, action, padding), (obs[:, :33], action[:, :33]))
        )
    torch.testing.assert_close(long.action_BSA[:, :33], cut.action_BSA, atol=1e-5, rtol=0)
    torch.testing.assert_close(whole_log, cut_log, atol=1e-3, rtol=1e-5)


def test_plain_attention_is_torchs_fused_one() -> None:
    query, key, value = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 7, 4), torch.randn(2, 3, 7, 4)
    look = torch.rand(2, 1, 5, 7) < 0.7
    look[..., 0] = True
    for mask in (None, look):
        fused = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        torch.testing.assert_close(attend(query, key, value, mask), fused)


def test_a_split_plan_keeps_the_return_heads_tokens_from_the_generator() -> None:
    model, (z0, obs, action, _) = model_of("paper-like"), inputs()
    z = model.plan(z0, obs[:, 0]).detach().requires_grad_()
    model.generate(model.memory(z), obs, action).action_BSA.sum().backward()
    assert z.grad is not None
    assert z.grad.abs().sum((0, 2))[:2].tolist() == [0.0, 0.0] and z.grad[:, 2:].abs().min() > 0
    z.grad = None
    model.predict_return(z)[0].sum().backward()
    assert z.grad[:, 2:].abs().sum() == 0 and z.grad[:, :2].abs().min() > 0


def test_observations_are_seen_as_scores_and_waves_of_the_leading_ones() -> None:
    model, obs = model_of("linear", obs_fourier_dims=2), torch.randn(2, OBS)
    seen, scored = model.featurise(obs), model.normalise_obs(obs)
    assert seen.shape == (2, OBS + 2 * 2 * 2) and torch.equal(seen[:, :OBS], scored)
    wanted = [f(obs[1, i] * math.pi / 4 * 2**k) for f in (torch.sin, torch.cos) for i in (0, 1) for k in (0, 1)]
    torch.testing.assert_close(seen[1, OBS:], torch.stack(wanted))


def test_the_prior_sees_first_observations_as_scores_alone() -> None:
    model, (z0, obs, _, _) = model_of("linear"), inputs()
    assert model.featurise(obs).shape[-1] == OBS + 4
    assert torch.equal(model.plan(z0, obs[:, 0]), model.prior(z0, model.normalise_obs(obs[:, 0])))


def test_returns_go_to_z_scores_and_back() -> None:
    model = model_of("stored")
    y = torch.tensor([1.5, -2.0])
    mean, variance = model.denormalise_return(model.normalise_return(y), torch.ones(2))
    torch.testing.assert_close(mean, y)
    torch.testing.assert_close(variance, model.return_std.square().expand(2))


def test_unknown_quantities_are_nan_until_they_are_known_and_travel_with_the_weights() -> None:
    names = dict(model_of("point").named_buffers())
    assert math.isnan(names["explore_target"].item()) and bool(names["surprise"].isnan().all())
    weights = model_of("point").state_dict()
    assert {"obs_mean_O", "return_std", "horizon", "return_low", "explore_target", "surprise"} <= weights.keys()
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())


@pytest.mark.parametrize("preset", [linear, paper])
def test_presets_have_no_problems(preset: Any) -> None:
    assert preset().validate() == []


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"width": 10, "heads": 4, "layers": 1}, "width is 10.*multiple of 4.*width=8"),
        ({"prior": "implicit", "prior_width": 6}, "prior_width is 6.*multiple of 4.*prior_width=4"),
        ({"tokens": 0}, "tokens is 0.*at least 1"),
        ({"tokens": 16, "return_tokens": 17}, "return_tokens is 17 of 16.*return_tokens=8"),
        ({"tokens": 4, "return_tokens": 4}, "return_tokens is 4 of 4.*return_tokens=2"),
        ({"layers": 1, "window": 16, "points": 8}, "points is 8 with window 16.*points=16"),
        ({"window": 4, "points": 8}, "layers is 0 with plan_reading linear and window 4.*layers=2"),
        ({"return_memory": 1.0}, r"return_memory is 1.0.*\[0, 1\)"),
        ({"posterior": "magic"}, "posterior is 'magic'.*amortised, stored, fresh"),
        ({"lr": math.nan}, "lr is nan.*finite"),
        ({"plan_dropout": 1.5}, r"plan_dropout is 1.5.*\[0, 1\]"),
        ({"free_bits": -1.0}, "free_bits is -1.0"),
        ({"replan": "prediction-error"}, "next_state_weight=1"),
        ({"explore_gain": 9.0}, "explore_gain is 9.0.*4"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_what_to_do(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        GACModel(dataclasses.replace(GACConfig(), **fields), OBS, ACTION)
