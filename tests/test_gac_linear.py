"""One plan an episode, read along with the return that it promises: each fast path beside its twin by hand; both presets."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gac_batches import ACTION, LENGTHS, OBS, SHAPES, episodes, made, small, summary
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from test_gac_agent import RETURNS, same
from test_learner import HostReads
from tiny_episodes import TINY, finetune_words, make_dataset, pairs
from tiny_runs import read

from algorithms.gac.agent import GAC
from algorithms.gac.bound import LOG_VARIANCE_RANGE, OBSERVED, Posterior, PosteriorEncoder
from algorithms.gac.config import GACConfig, cpu, linear, paper
from algorithms.gac.generator import Generated
from algorithms.gac.inference import draw_noise, infer_plan, noise_draws
from algorithms.gac.losses import mode_weights
from algorithms.gac.model import GACModel
from algorithms.gac.policy import GACPolicy
from algorithms.interface import AgentSpec, PlanRequest
from cluster.cli import main
from cluster.config import make_preset
from cluster.run_dir import RunDirectory
from replay.schema import Trajectories

BOTH = pytest.mark.parametrize("name", ["linear", "linear window"])
PRESETS = pytest.mark.parametrize("preset", [linear, cpu])
STEPS, PLANS = 9, 3


def model_of(name: str = "linear", **fields: Any) -> GACModel:
    torch.manual_seed(0)
    model = GACModel(small(**(SHAPES[name] | fields)), OBS, ACTION)
    model.fit(summary(episodes(0)))
    return model


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """z, observations and actions of PLANS episodes."""
    draw = torch.Generator().manual_seed(1)
    z, obs = torch.randn(PLANS, 4, 3, generator=draw), torch.randn(PLANS, STEPS, OBS, generator=draw)
    return z, obs, torch.rand(PLANS, STEPS, ACTION, generator=draw) - 0.5


def by_hand(model: GACModel, z_Bnd: torch.Tensor, obs_BSO: torch.Tensor, promised_B: torch.Tensor) -> Generated:
    """Outputs of an MLP of the state; each moves by its slope along every coordinate of the plan / sqrt(P), and the promise."""
    generator, outputs = model.generator, ACTION + OBS
    state_BSC = generator.norm(F.silu(generator.embed_obs(model.featurise(obs_BSO))))
    base_BSo, slope_BSx = generator.out(state_BSC), generator.slope(state_BSC)
    made_BSo = torch.zeros_like(base_BSo)
    for b, z_nd in enumerate(z_Bnd):
        read = z_nd[model.config.return_tokens :].flatten()
        coordinates = [*(read / math.sqrt(len(read))), promised_B[b]]
        for s in range(obs_BSO.shape[1]):
            for o in range(outputs):
                own = slope_BSx[b, s, o * len(coordinates) : (o + 1) * len(coordinates)]
                made_BSo[b, s, o] = base_BSo[b, s, o] + sum(c * x for c, x in zip(own, coordinates))
    return Generated(torch.tanh(made_BSo[..., :ACTION]), made_BSo[..., ACTION:])


@pytest.mark.parametrize("fields", [{}, {"return_tokens": 1}])
def test_linear_reading_moves_the_outputs_along_the_plan_and_the_return_it_promises(fields: dict[str, Any]) -> None:
    model, (z, obs, action) = model_of(**fields), inputs()
    with torch.no_grad():
        read = model.generate(model.memory(z), obs, action)
        twin = by_hand(model, z, obs, model.predict_return(z)[0])
    torch.testing.assert_close(read, twin, atol=1e-5, rtol=0)


@BOTH
def test_an_action_logit_is_a_straight_line_in_the_promised_return(name: str) -> None:
    model, (z, obs, action) = model_of(name), inputs()
    with torch.no_grad():
        memory, logits = model.memory(z), []
        for promised in (-1.0, 0.0, 3.0):
            memory.token_BGd[:, 0, -1] = promised
            logits.append(torch.atanh(model.generate(memory, obs, action).action_BSA))
    slope = logits[1] - logits[0]
    torch.testing.assert_close(logits[2] - logits[1], 3 * slope, atol=1e-4, rtol=1e-3)
    assert slope.abs().mean() > 1e-3


@BOTH
def test_of_a_hidden_plan_nothing_is_read_but_what_it_promises(name: str) -> None:
    model, (z, obs, action) = model_of(name), inputs()
    hidden = torch.tensor([True, False, True])
    memory, open_memory = model.memory(z, hidden), model.memory(z)
    promised = model.predict_return(z)[0]
    assert memory.token_BGd[hidden, 0, :-1].count_nonzero() == 0
    assert torch.equal(memory.token_BGd[:, 0, -1], promised.detach())  # of the plan as it is, hidden or not
    assert torch.equal(memory.token_BGd[1], open_memory.token_BGd[1])
    leaf = z.clone().requires_grad_()
    model.generate(model.memory(leaf, hidden), obs, action).action_BSA.sum().backward()
    assert leaf.grad is not None and leaf.grad[hidden].count_nonzero() == 0 and leaf.grad[1].count_nonzero() > 0


@BOTH
def test_actions_bend_neither_the_return_head_nor_the_plan_through_its_promise(name: str) -> None:
    model, (z, obs, action) = model_of(name), inputs()
    z.requires_grad_()
    model.generate(model.memory(z), obs, action).action_BSA.sum().backward()
    assert all(parameter.grad is None for parameter in model.return_head.parameters())
    assert z.grad is not None
    felt = z.grad.clone()
    assert felt[:, : model.config.return_tokens].count_nonzero() == 0
    if name == "linear":
        z.grad = None
        by_hand(model, z, obs, model.predict_return(z)[0].detach()).action_BSA.sum().backward()
        torch.testing.assert_close(felt, z.grad, atol=1e-5, rtol=0)


def test_the_share_of_hidden_plans_is_drawn_where_plans_are_read_linearly_and_nowhere_else() -> None:
    hidden = made(small(**SHAPES["linear"], plan_dropout=0.3), episodes(0))._draw(4_000).hidden_B
    assert (
        hidden is not None
        and hidden.dtype == torch.bool
        and hidden.float().mean().item() == pytest.approx(0.3, abs=0.04)
    )
    for fields in ({"plan_dropout": 0.0}, {"plan_reading": "attention", "layers": 1}):
        assert made(small(**(SHAPES["linear"] | fields)), episodes(0))._draw(4).hidden_B is None


def test_a_posterior_is_of_the_whole_plan_although_the_networks_do_not_see_it() -> None:
    batch = episodes(0)
    agent = made(small(**(SHAPES["linear"] | {"posterior": "fresh"})), batch)
    noise = agent._draw(len(batch))
    segments = agent.gather_segments(batch, noise.place_BK)
    hidden, plain = (
        agent._infer(batch, segments, noise._replace(hidden_B=torch.full((len(batch),), share)))
        for share in (True, False)
    )
    assert torch.equal(hidden.mean_Bnd, plain.mean_Bnd) and torch.equal(hidden.log_variance_Bnd, plain.log_variance_Bnd)


def set_by_hand(encoder: PosteriorEncoder, model: GACModel, batch: Trajectories, shift: float) -> Posterior:
    """One episode at a time, one step at a time: the mean of an MLP over the steps that are there."""
    config, laws = encoder.config, []
    count, horizon = OBSERVED, int(model.horizon)
    for b in range(len(batch)):
        rows = batch.rows_NF[batch.offset[b] : batch.offset[b + 1]]
        times = [int((k + shift) / count * horizon) for k in range(count)]
        seen = [rows[t, :-1] for t in times if t < len(rows)]
        each = [encoder.step(torch.cat([model.featurise(row[:OBS]), row[OBS:], torch.ones(1)])) for row in seen]
        mean = torch.stack(each).mean(0) if each else torch.zeros(config.posterior_width)
        if config.posterior_return:
            mean = torch.cat([mean, model.normalise_return(batch.return_B[b]).view(1)])
        laws.append(encoder.law(F.silu(encoder.read(F.silu(mean)))))
    law = torch.stack(laws).view(len(batch), 2, config.tokens, config.token_width)
    return Posterior(law[:, 0], law[:, 1].clamp(*LOG_VARIANCE_RANGE))


@pytest.mark.parametrize("with_return", [True, False])
@pytest.mark.parametrize("shift", [0.0, 0.3, 0.99])
def test_an_encoder_of_a_set_is_the_mean_over_its_steps(shift: float, with_return: bool) -> None:
    batch = episodes(0)  # one of them is a single step, which most shifts pass by
    agent = made(small(**(SHAPES["linear"] | {"posterior_return": with_return})), batch)
    assert agent.encoder is not None
    with torch.no_grad():
        q, twin = agent.encoder(batch, agent.model, shift), set_by_hand(agent.encoder, agent.model, batch, shift)
        other = agent.encoder(dataclasses.replace(batch, return_B=batch.return_B + 1), agent.model, shift)
    torch.testing.assert_close(q, twin, atol=1e-5, rtol=0)
    assert q.mean_Bnd.shape == (len(LENGTHS), 4, 3)
    assert torch.equal(q.mean_Bnd, other.mean_Bnd) != with_return


@given(order=st.permutations(range(OBSERVED)))
@settings(deadline=None, max_examples=10)
def test_an_encoder_of_a_set_does_not_see_the_order_of_its_steps(order: list[int]) -> None:
    batch = episodes(0, (OBSERVED, OBSERVED))  # as long as there are steps to look at
    agent = made(small(**SHAPES["linear"]), batch)
    assert agent.encoder is not None
    rows = torch.cat([batch.rows_NF[:OBSERVED][order], batch.rows_NF[OBSERVED:]])
    with torch.no_grad():
        q, turned = (agent.encoder(one, agent.model, 0.5) for one in (batch, dataclasses.replace(batch, rows_NF=rows)))
    torch.testing.assert_close(q, turned, atol=1e-5, rtol=0)


def worth(model: GACModel) -> torch.Tensor:
    """The gradient (n, d) of a return head of one layer, the same everywhere."""
    z = torch.zeros(1, model.config.tokens, model.config.token_width, requires_grad=True)
    (slope,) = torch.autograd.grad(model.predict_return(z)[0].sum(), z)
    return slope[0]


def climbed(model: GACModel, mode: str, envs: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean (K, n, d) of the ascent's end, and of its start: the candidate that is worth most, or 0."""
    config = model.config
    draws = noise_draws(mode_weights(config, mode))
    streams = [np.random.default_rng(seed) for seed in range(envs)]
    noise = draw_noise(streams, draws, config.tokens, config.token_width)
    obs = torch.zeros(envs, OBS)
    found = infer_plan(model, obs, mode, None, config, noise)
    starts = []
    for k in range(envs):
        candidates = [
            torch.zeros(config.tokens, config.token_width),
            *noise[: mode_weights(config, mode).candidates, k],
        ]
        starts.append(max(candidates, key=lambda z: (z * worth(model)).sum().item()))
    return found.mean_Knd, torch.stack(starts)


def unmoved(**fields: Any) -> GACModel:
    """One whose plan is z_0 itself, so that its return is linear in what is searched."""
    return model_of(prior="standard", infer_draws=12, **fields)


def test_max_walks_a_step_a_coordinate_uphill_as_far_as_its_steps_go() -> None:
    """Adam's step along a gradient that never changes is its step size, whatever the gradient's length."""
    model = unmoved(infer_max_steps=40, infer_lr=0.1)
    end, start = climbed(model, "max")
    torch.testing.assert_close(end, start + 40 * 0.1 * worth(model).sign(), atol=1e-3, rtol=0)
    assert end.norm(dim=-1).min() > 2 * 3**0.5


def test_kl_ends_where_a_nat_costs_what_it_brings() -> None:
    """J = <w, mu> - lambda |mu|^2 / 2 has its top at w / lambda."""
    model = unmoved(infer_steps=400, infer_kl_weight=0.05)
    end, _ = climbed(model, "kl")
    torch.testing.assert_close(end, (worth(model) / 0.05).expand_as(end), atol=0.02, rtol=0)


@PRESETS
@pytest.mark.parametrize("mode", ["prior", "st", "kl", "max", "explore"])
def test_an_episode_of_a_preset_does_not_depend_on_how_many_run_beside_it(
    mode: str, preset: Callable[[], GACConfig]
) -> None:
    config = dataclasses.replace(preset(), infer_steps=5, infer_max_steps=5)
    torch.manual_seed(0)
    model = GACModel(config, OBS, ACTION)
    model.fit(summary(episodes(0)))
    model.explore_target.fill_(3.0)
    weights = {name: tensor.nan_to_num(1.0) for name, tensor in model.state_dict().items()}
    obs_TEO = np.cumsum(0.1 * np.random.default_rng(0).standard_normal((12, 11, OBS)), 0).astype(np.float32)
    acted, result = [], []
    for envs in (11, 1):
        policy = GACPolicy(config, OBS, ACTION)
        policy.load_weights(weights)
        policy.aim = PlanRequest(mode=mode)
        policy.reset(envs)
        result.append(policy.begin(np.arange(envs), obs_TEO[0, :envs], np.random.default_rng(7))[0].predicted)
        none = np.zeros(envs, np.float32)
        acted.append(np.stack([policy.act(obs_EO[:envs], none)[0].copy() for obs_EO in obs_TEO]))
    assert result[0] == pytest.approx(result[1], abs=1e-3)
    np.testing.assert_allclose(acted[0], acted[1], atol=1e-5)


@PRESETS
def test_a_preset_goes_on_bit_by_bit_from_its_state_and_never_reads_the_device(preset: Callable[[], GACConfig]) -> None:
    config = dataclasses.replace(preset(), updates=8, matmul="mkl")
    whole, half = (made(config, episodes(0)) for _ in range(2))
    for agent, seeds in ((whole, range(4)), (half, range(2))):
        for seed in seeds:
            agent.update_returns(RETURNS)
            seen = agent.update([episodes(10 * seed), episodes(10 * seed + 1)])
            assert seen["nonfinite"].item() == 0 or agent is half
    resumed = GAC(config, AgentSpec(obs_dim=OBS, action_dim=ACTION, seed=5))
    resumed.load_state(half.state())
    for seed in (2, 3):
        resumed.update_returns(RETURNS)
        resumed.update([episodes(10 * seed), episodes(10 * seed + 1)])
    assert same(resumed.state(), whole.state())
    with HostReads() as reads:
        resumed.update_returns(dataclasses.replace(RETURNS))
        resumed.update([episodes(0)])
    assert reads.seen == []


@PRESETS
def test_a_batch_that_is_not_finite_leaves_a_presets_weights_as_they_are(preset: Callable[[], GACConfig]) -> None:
    agent = made(dataclasses.replace(preset(), matmul="mkl"), episodes(0))
    agent.update([episodes(1)])
    before, bad = agent.policy_weights(), episodes(2)
    kept = {name: tensor.clone() for name, tensor in before.items() if name != "surprise"}  # its states are finite
    bad.return_B[0] = math.inf
    assert agent.update([bad])["nonfinite"].item() == 1
    after = {name: tensor for name, tensor in agent.policy_weights().items() if name in kept}
    assert same(after, kept) and all(bool(tensor.isfinite().all()) for tensor in kept.values())


def test_replanning_by_the_prediction_error_is_refused_where_nothing_learns_to_predict_the_next_state() -> None:
    assert "next_state_weight" in " ".join(dataclasses.replace(linear(), replan="prediction-error").validate())
    for preset in (cpu, paper):
        assert dataclasses.replace(preset(), replan="prediction-error").validate() == []


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tiny dataset, for the module."""
    with pytest.MonkeyPatch.context() as patch:
        yield make_dataset(tmp_path_factory.mktemp("datasets"), patch)


def train(dataset: str, run: Path, preset: str, steps: int) -> int:
    words = ["train", "gac", "--dataset", dataset, "--backend", "inline", "--run-dir", str(run), "--preset", preset]
    small_search = {"agent.infer_steps": 2, "agent.infer_draws": 4, "agent.updates": 20}
    return main([*words, "--steps", str(steps), *pairs(TINY, small_search), "--set", "agent.matmul=mkl"])


def learned(run: Path) -> dict[str, np.ndarray]:
    """The newest checkpoint's tensors of the learner, without the counter of its starts."""
    tensors = load_file(max((run / "checkpoints").iterdir()) / "tensors.safetensors")
    return {name: x for name, x in tensors.items() if name.startswith("learner/") and not name.endswith("generation")}


def test_two_halves_of_a_run_equal_the_whole(dataset: str, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(dataset, whole, "linear", 20) == 0 and train(dataset, parts, "linear", 10) == 0
    assert main(["resume", str(parts), "--steps", "20"]) == 0
    config = read(parts / "config.json")
    assert config["preset"] == "linear" and config["agent"]["plan_reading"] == "linear"
    one, other = learned(whole), learned(parts)
    assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name], equal_nan=True) for name in one)


def test_the_papers_form_goes_through_every_command(
    dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, online = tmp_path / "run", tmp_path / "online"
    assert train(dataset, run, "cpu", 20) == 0
    assert main(finetune_words(run, online, stages=1, episodes=3, updates=10, evaluation__every_steps=0)) == 0
    assert main(["plan", str(online), "--plot", str(tmp_path / "plans.png")]) == 0
    for path in (run, online):
        for mode in ("prior", "st", "kl", "max"):
            capsys.readouterr()
            assert main(["evaluate", str(path), "--mode", mode, "--episodes", "2", "--json"]) == 0
            found = json.loads(capsys.readouterr().out)
            assert found["mode"] == mode and np.isfinite(found["predicted"] + found["returns"]).all()
        assert main(["diagnose", str(path), "--episodes", "2", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["plan"]["dims"] == make_preset("gac", "cpu").agent.tokens * 8
        assert max(found["explained"].values()) < 1 and np.isfinite(found["scores"]["hidden"]["return_mean"])


@pytest.mark.parametrize("algorithm", ["softgac", "sac", "dt"])
def test_the_linear_preset_is_of_gac_alone(algorithm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["train", algorithm, "--preset", "linear", "--env", "Pendulum-v1", "--run-dir", str(run)]) == 2
    result = capsys.readouterr().err
    assert (
        f"{algorithm} has no preset 'linear'" in result and "cpu, paper" in result and "nothing was started" in result
    )
    assert "of gac alone" in result
    assert not run.exists()


def test_a_removed_preset_is_refused_with_what_to_take_instead(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "gac", "--preset", "timed", "--env", "Pendulum-v1"]) == 2
    result = capsys.readouterr().err
    assert "preset 'timed' was removed" in result and "--preset linear" in result


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda config: config.update(preset="timed"), "preset 'timed' was removed"),
        (lambda config: config["agent"].update(time_bias="learned"), "unknown fields ['agent.time_bias']"),
        (lambda config: config["agent"].update({f"infer_{i}": 0 for i in range(9)}), "'agent.infer_4'] and 4 more"),
    ],
    ids=["preset", "setting", "settings"],
)
@pytest.mark.parametrize("command", ["evaluate", "resume", "finetune"])
def test_a_run_of_a_version_with_other_settings_is_refused_by_name(
    command: str, edit: Any, said: str, dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    RunDirectory.create(run, make_preset("gac", "linear")).release()
    config = read(run / "config.json")
    edit(config)
    (run / "config.json").write_text(json.dumps(config))
    assert main([command, str(run)]) == 2
    result = capsys.readouterr().err
    assert said in result and ("train again" in result.lower())
