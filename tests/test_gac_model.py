"""GAC's model: one function whichever way it is computed, causal, within its window, and saying what cannot work."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from gac_batches import ACTION, OBS, SHAPES, episodes, small, summary
from torch.distributions import Normal, kl_divergence

from algorithms.gac.config import GACConfig, cpu, paper, timed
from algorithms.gac.generator import attend
from algorithms.gac.model import GACModel
from algorithms.gac.prior import AutoregressivePrior
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
        made, cache = model.generate(memory, obs, action, time), model.new_cache(PLANS)
        for episode in range(2):  # the second one finds the first one's leavings in the ring
            for t in range(EPISODE - 20 * (1 - episode)):
                mean, ahead = model.step(memory, cache, obs[:, t], time[:, t])
                torch.testing.assert_close(mean, made.action_BSA[:, t], atol=1e-5, rtol=0)
                torch.testing.assert_close(ahead, made.next_obs_BSO[:, t], atol=1e-5, rtol=0)
                model.observe_action(cache, action[:, t])


@pytest.mark.parametrize("name", ["window", "point"])
def test_environments_at_different_times_of_their_episodes_share_a_cache(name: str) -> None:
    model, (z0, obs, action, time) = model_of(name), inputs()
    late = torch.tensor([0, 5, 11])  # environment e begins its episode at step late[e]
    with torch.inference_mode():
        memory = model.memory(model.plan(z0, obs[:, 0]))
        made, cache = model.generate(memory, obs, action, time), model.new_cache(PLANS)
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
    rows = whole(batch, size=16, obs_dim=OBS, action_dim=ACTION, ahead=3)
    with torch.no_grad():
        z = model.plan(z0, batch.rows_NF[batch.offset[:-1], :OBS])
        cut = model.generate_rows(model.memory(z), rows.obs_RSO, rows.action_RSA, rows.time_RS, rows.rows)
        for b in range(len(batch)):
            own = batch.rows_NF[batch.offset[b] : batch.offset[b + 1]]
            time = torch.arange(len(own))[None]
            long = model.generate(model.memory(z[b : b + 1]), own[None, :, :OBS], own[None, :, OBS:-1], time)
            mine = (rows.rows.plan_R == b).unsqueeze(1) & (rows.weight_RS > 0)
            torch.testing.assert_close(cut.action_BSA[mine], long.action_BSA[0], atol=1e-5, rtol=0)
            torch.testing.assert_close(cut.next_obs_BSO[mine], long.next_obs_BSO[0], atol=1e-5, rtol=0)


def test_an_output_sees_no_later_step_nor_its_own_action_nor_what_left_every_layers_window() -> None:
    model, (z0, obs, action, time) = model_of("window", layers=1), inputs()
    memory = model.memory(model.plan(z0, obs[:, 0]).detach())
    obs, action, t = obs.requires_grad_(), action.requires_grad_(), 20
    model.generate(memory, obs, action, time).action_BSA[:, t].sum().backward()
    assert obs.grad is not None and action.grad is not None
    assert obs.grad.abs().sum((0, 2)).nonzero().flatten().tolist() == [17, 18, 19, 20]
    assert action.grad.abs().sum((0, 2)).nonzero().flatten().tolist() == [17, 18, 19]


def test_a_step_without_history_sees_only_itself() -> None:
    model, (z0, obs, action, time) = model_of("window"), inputs()
    alone = torch.zeros_like(time, dtype=torch.bool)
    alone[:, 20] = True
    memory = model.memory(model.plan(z0, obs[:, 0]).detach())
    rows = whole(episodes(0, (1,)), size=1, obs_dim=OBS, action_dim=ACTION, ahead=1).rows
    rows = rows._replace(padding_RS=None, previous_R=None, plan_R=None, alone_RS=alone)
    obs = obs.requires_grad_()
    made = model.generate_rows(memory, obs, action, time, rows)
    made.action_BSA[:, 20].sum().backward()
    assert obs.grad is not None and obs.grad.abs().sum((0, 2)).nonzero().flatten().tolist() == [20]


def test_padding_changes_nothing_before_it() -> None:
    model, (z0, obs, action, time) = model_of("whole"), inputs()
    padding = time >= 33
    with torch.no_grad():
        memory = model.memory(model.plan(z0, obs[:, 0]))
        long = model.generate(memory, obs, action, time, padding)
        cut = model.generate(memory, obs[:, :33], action[:, :33], time[:, :33])
        whole_log, cut_log = (
            model.log_prob_trajectory(model.plan(z0, obs[:, 0]), *parts)
            for parts in ((obs, action, time, padding), (obs[:, :33], action[:, :33], time[:, :33]))
        )
    torch.testing.assert_close(long.action_BSA[:, :33], cut.action_BSA, atol=1e-5, rtol=0)
    torch.testing.assert_close(whole_log, cut_log, atol=1e-3, rtol=1e-5)


def test_plain_attention_is_torchs_fused_one() -> None:
    query, key, value = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 7, 4), torch.randn(2, 3, 7, 4)
    bias, look = torch.randn(2, 3, 5, 7), torch.rand(2, 1, 5, 7) < 0.7
    look[..., 0] = True
    for mask in (None, bias, look):
        fused = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        torch.testing.assert_close(attend(query, key, value, mask), fused)


def test_a_split_plan_keeps_the_return_heads_tokens_from_the_generator() -> None:
    model, (z0, obs, action, time) = model_of("paper-like"), inputs()
    z = model.plan(z0, obs[:, 0]).detach().requires_grad_()
    model.generate(model.memory(z), obs, action, time).action_BSA.sum().backward()
    assert z.grad is not None
    assert z.grad.abs().sum((0, 2))[:2].tolist() == [0.0, 0.0] and z.grad[:, 2:].abs().min() > 0
    z.grad = None
    model.predict_return(z)[0].sum().backward()
    assert z.grad[:, 2:].abs().sum() == 0 and z.grad[:, :2].abs().min() > 0


def test_an_autoregressive_plan_is_the_draw_of_its_own_laws_and_is_explained_token_by_token() -> None:
    model, (z0, obs, _, _) = model_of("autoregressive"), inputs()
    assert isinstance(model.prior, AutoregressivePrior)
    with torch.no_grad():
        z, seen = model.plan(z0, obs[:, 0]), model.featurise(obs[:, 0])
        mean, log_std = model.prior.laws(z, seen)
        torch.testing.assert_close((z - mean) / log_std.exp(), z0)
        state = model.prior.start(seen)
        for k in range(z.shape[1]):
            one_mean, one_log_std = model.prior.law(state)
            torch.testing.assert_close(one_mean, mean[:, k])
            torch.testing.assert_close(one_log_std, log_std[:, k])
            state = model.prior.follow(state, z[:, k])
        q_mean, q_log_variance = torch.randn(2, *z.shape).unbind(0)
        kept, kl = model.explain(q_mean, q_log_variance, z, obs[:, 0])
    assert torch.equal(kept, z)
    law = Normal(q_mean, (0.5 * q_log_variance).exp())
    torch.testing.assert_close(kl, kl_divergence(law, Normal(mean, log_std.exp())))


def test_an_additive_return_is_the_mean_of_its_tokens_worths_within_their_bounds() -> None:
    model, z = model_of("autoregressive"), torch.randn(5, 4, 3)
    worth = model.return_head.worth(z)
    assert worth.shape == (2, 5, 4)
    torch.testing.assert_close(model.return_terms(z)[0], worth.mean(-1))
    far = model.return_head.worth(1e3 * z)
    low = model.return_head.offset
    high = low + 4 * torch.nn.functional.softplus(model.return_head.raw_scale)
    assert bool((far >= low).all()) and bool((far <= high).all())
    changed = z.clone()
    changed[:, 3] += 1.0  # seen by tokens 2 and 3 alone
    torch.testing.assert_close(model.return_head.worth(changed)[..., :2], worth[..., :2])


def test_observations_are_seen_as_scores_and_waves_of_the_leading_ones() -> None:
    model, obs = model_of("autoregressive"), torch.randn(2, OBS)
    seen, scored = model.featurise(obs), model.normalise_obs(obs)
    assert seen.shape == (2, OBS + 2 * 2 * 2) and torch.equal(seen[:, :OBS], scored)
    wanted = [f(obs[1, i] * math.pi / 4 * 2**k) for f in (torch.sin, torch.cos) for i in (0, 1) for k in (0, 1)]
    torch.testing.assert_close(seen[1, OBS:], torch.stack(wanted))


def test_a_prior_without_waves_sees_first_observations_as_scores_alone() -> None:
    model, (z0, obs, _, _) = model_of("linear"), inputs()
    assert model.featurise(obs).shape[-1] == OBS + 4
    assert torch.equal(model.featurise_first(obs[:, 0]), model.normalise_obs(obs[:, 0]))
    assert torch.equal(model.plan(z0, obs[:, 0]), model.prior(z0, model.normalise_obs(obs[:, 0])))
    other = model_of("autoregressive")
    assert torch.equal(other.featurise_first(obs[:, 0]), other.featurise(obs[:, 0]))


def test_returns_go_to_z_scores_and_back_and_several_heads_are_a_mixture() -> None:
    model = model_of("stored", return_heads=3)
    y = torch.tensor([1.5, -2.0])
    mean, variance = model.denormalise_return(model.normalise_return(y), torch.ones(2))
    torch.testing.assert_close(mean, y)
    torch.testing.assert_close(variance, model.return_std.square().expand(2))
    z = torch.randn(2, 4, 3)
    mean_KB, log_variance_KB = model.return_terms(z)
    mean, log_variance = model.predict_return(z)
    torch.testing.assert_close(mean, mean_KB.mean(0))
    second_moment = (log_variance_KB.exp() + mean_KB.square()).mean(0)
    torch.testing.assert_close(log_variance.exp(), second_moment - mean.square())


def test_unknown_quantities_are_nan_until_they_are_known_and_travel_with_the_weights() -> None:
    names = dict(model_of("point").named_buffers())
    assert math.isnan(names["explore_target"].item()) and bool(names["surprise"].isnan().all())
    weights = model_of("point").state_dict()
    assert {"obs_mean_O", "return_std", "horizon", "return_low", "explore_target", "surprise"} <= weights.keys()
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())


@pytest.mark.parametrize("preset", [cpu, timed, paper])
def test_presets_have_no_problems(preset: Any) -> None:
    assert preset().validate() == []


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"width": 10, "heads": 4}, "width is 10.*multiple of heads = 4.*width=8"),
        ({"tokens": 0}, "tokens is 0.*at least 1"),
        ({"generator_tokens": "split"}, "split with return_tokens 0.*return_tokens=8"),
        ({"return_tokens": 17}, "return_tokens is 17.*at most tokens = 16"),
        ({"return_span": 2}, "return_span is 2.*odd"),
        ({"window": 8, "segment": 16, "points": 8}, "points is 8 with segment 16.*points=16"),
        ({"segment": 2}, "segment is 2 with window 1"),
        ({"window": 4, "points": 8}, "layers is 0 with plan_reading local and window 4.*layers=2"),
        ({"return_memory": 1.0}, r"return_memory is 1.0.*\[0, 1\)"),
        ({"kl_start": 2.0}, r"kl_start is 2.0.*\[0, 1\]"),
        ({"posterior": "magic"}, "posterior is 'magic'.*amortised, stored, fresh"),
        ({"lr": math.nan}, "lr is nan.*finite"),
        ({"history_dropout": 1.5}, r"history_dropout is 1.5.*\[0, 1\]"),
        ({"free_bits": -1.0}, "free_bits is -1.0"),
        ({"plan_reading": "local", "plan_time": False}, "plan_time=true"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_what_to_do(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        GACModel(dataclasses.replace(GACConfig(), **fields), OBS, ACTION)
