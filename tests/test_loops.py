"""The passes in C against those in torch, their slow twin; how the library is built, and what happens without one."""

from __future__ import annotations

import dataclasses
import os
import stat
from typing import Any

import numpy as np
import pytest
import torch
from softgac_twin import RENORM
from test_softgac_update import NAMES, _agent, _equal, _rows

from algorithms import ALGORITHMS, compiled, loops
from algorithms.interface import Solo
from algorithms.softgac import bridge
from algorithms.softgac.compiled_bridge import choose_bridge
from algorithms.softgac.losses import control_energy
from rollout_workers.actor import StatelessPolicy

built = pytest.mark.skipif(compiled.problem() != "", reason=compiled.problem())


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def _close(one: torch.Tensor, two: torch.Tensor, words: str = "", size: float | None = None) -> None:
    """Equal to float32 rounding of the largest entry, or of ``size`` where larger terms cancelled."""
    size = float(two.detach().abs().max()) if size is None else size
    torch.testing.assert_close(one, two, rtol=1e-5, atol=2e-6 * size + 1e-12, msg=lambda m: f"{words}: {m}")


def _both() -> tuple[loops.TorchLoops, loops.TorchLoops]:
    fast = loops.choose(torch.device("cpu"))
    assert isinstance(fast, loops.CompiledLoops), compiled.load().words
    return fast, loops.TorchLoops()


@built
@pytest.mark.parametrize("form", ["ioffe", "crossq"])
@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize(("rows", "features", "given"), [(24, 19, 12), (13, 32, 13), (2, 1, 1), (4, 256, 4)])
def test_renormalisation_and_its_gradients_equal_torchs(form, warm, rows, features, given):
    x = (torch.randn(2, rows, features) + 0.3) * torch.logspace(-2, 1, features)
    if rows > 2:
        x[:, :, 0] = 0.25  # a constant feature
    scales = [torch.randn(2, features) for _ in range(3)] + [torch.rand(2, features) + 0.1]
    norm = loops.Norm(*scales, torch.tensor(warm), dataclasses.replace(RENORM, form=form))
    grad = torch.randn(2, given, features)
    seen = []
    for form_of in _both():
        y, passed = form_of.forward(x.clone(), True, norm, Solo())
        grads = [torch.full((2, features), torch.nan) for _ in range(3)]
        seen.append((y, passed.mean_TI, passed.var_TI, form_of.backward(grad, passed, *grads, Solo()), *grads))
        only = [torch.full((2, features), torch.nan) for _ in range(2)]
        assert form_of.backward(grad, passed, *only, None, Solo()) is grad
        assert torch.equal(only[0], grads[0]) and torch.equal(only[1], grads[1])
    for name, one, two in zip(("y", "mean", "var", "input", "gamma", "beta", "bias"), *seen):
        _close(one, two, name, float(seen[1][3].abs().sum(1).max()) if name == "bias" else None)


@built
def test_one_input_that_all_critics_share_is_read_once_for_each():
    x, norm = torch.randn(10, 6).expand(2, 10, 6), loops.Norm(*torch.rand(4, 2, 6), torch.tensor(True), RENORM)
    (fast, _), (slow, _) = (form_of.forward(x, False, norm, Solo()) for form_of in _both())
    _close(fast, slow)


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("form", ["ioffe", "crossq"])
def test_norms_of_several_layers_prepared_at_once_give_the_bits_of_each_alone(form, warm):
    constants, slow = dataclasses.replace(RENORM, form=form), loops.TorchLoops()
    norms = [loops.Norm(*torch.rand(4, 2, features), torch.tensor(warm), constants) for features in (3, 8)]
    for alone, prepared in zip(norms, slow.prepared(norms)):
        x = 3 * torch.randn(2, 10, alone.var_TI.shape[1])
        assert alone.reference is None and prepared.reference is not None
        assert torch.equal(*(slow.forward(x, False, norm, Solo())[0] for norm in (alone, prepared)))


def _target(rows: int, low: float = -4.0, high: float = 6.0, atoms: int = 21) -> loops.Target:
    reward, cost = 3 * torch.randn(rows), torch.randn(rows)
    discount = 0.99 * (torch.rand(rows) > 0.2).float()
    return loops.Target(reward, discount, cost, torch.tensor(-1.0), torch.linspace(low, high, atoms), low, high)


@built
@pytest.mark.parametrize("atoms", [2, 21, 101])
@pytest.mark.parametrize("entropy_weight", [0.0, 0.3])
def test_the_critics_loss_and_its_gradient_equal_torchs(atoms, entropy_weight):
    logits, target = 4 * torch.randn(2, 34, atoms), _target(17, atoms=atoms)
    logits[0, 0, 0], logits[1, 20, 1] = 80.0, -200.0  # one that is certain, and one that is impossible
    fast, slow = (form_of.head(logits, target, entropy_weight) for form_of in _both())
    for name, one, two in zip(loops.Head._fields, fast, slow):
        _close(one, two, name)
    assert fast.clipped > 0.1


@built
@pytest.mark.parametrize("where", ["logits", "next logits", "reward", "cost"])
@pytest.mark.parametrize("what", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_so(where, what):
    logits, target = torch.randn(2, 12, 21), _target(6)
    if "logits" in where:
        logits[1, 8 if "next" in where else 2, 20] = what
    else:
        getattr(target, f"{where}_B")[0], target.discount_B[0] = what, 0.9
    for form_of in _both():
        head = form_of.head(logits, target, 0.005)
        finite = bool(torch.isfinite(head.loss) & torch.isfinite(head.grad_TBN).all())
        assert finite == (what == torch.inf and where in ("reward", "cost")), form_of  # an infinite place is clipped
    hidden, norm = torch.randn(2, 12, 21), loops.Norm(*torch.rand(4, 2, 21), torch.tensor(True), RENORM)
    hidden[1, 3, 4] = torch.nan
    for form_of in _both():
        y, _ = form_of.forward(hidden.clone(), True, norm, Solo())
        assert y[1, :, 4].isnan().all() and y[0].isfinite().all()


@built
@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize(("rows", "obs", "action", "width"), [(1, 3, 1, 8), (7, 17, 6, 64), (8, 5, 9, 20)])
def test_the_bridge_and_its_gradients_equal_torchs(layer_norm, rows, obs, action, width):
    draw = torch.Generator().manual_seed(3)
    made = bridge.initial_parameters(obs, action, steps=4, width=width, draw=draw)
    p = {name: (t + 0.5 * torch.randn(t.shape, generator=draw)).requires_grad_() for name, t in made.items()}
    states, noise = 2 * torch.randn(rows, obs), bridge.draw_noise(rows, 4, action, "logistic", draw)
    fast = choose_bridge(layer_norm)
    assert fast is not None
    one = bridge.CompiledRollout.apply(fast, states, noise, *(p[name] for name in bridge.STEP_PARAMETERS))
    z, u, sigma = bridge.bridge_path(states, noise, p, layer_norm)
    two = torch.tanh(z[-1]), control_energy(z[:-1], u, sigma), sigma.detach().mean()
    for name, mine, twin in zip(("action", "energy", "sigma"), one, two):
        torch.testing.assert_close(mine, twin, rtol=2e-5, atol=2e-5, msg=name)
    weight = torch.randn(rows, action)
    grads = [torch.autograd.grad((a * weight).sum() + 0.1 * c.sum(), list(p.values())) for a, c, _ in (one, two)]
    for name, mine, twin in zip(p, *grads):
        torch.testing.assert_close(mine, twin, rtol=1e-4, atol=1e-5 * float(twin.abs().max()), msg=name)


@built
@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize(("obs", "action", "width"), [(3, 1, 8), (17, 6, 64), (5, 9, 20), (11, 3, 70)])
def test_a_row_alone_has_the_bits_it_has_in_a_batch(layer_norm, obs, action, width):
    draw = torch.Generator().manual_seed(0)
    made = bridge.initial_parameters(obs, action, steps=6, width=width, draw=draw)
    p = [t + 0.5 * torch.randn(t.shape, generator=draw) for t in made.values()]
    states, noise = 2 * torch.randn(11, obs), torch.randn(11, 7, action)
    fast: Any = choose_bridge(layer_norm)
    whole = fast.forward(states, noise, p)
    alone = [fast.forward(states[i : i + 1], noise[i : i + 1], p) for i in range(11)]
    for name, batch, rows, along in zip(("action", "energy", "sigma", "path"), whole, zip(*alone), (0, 0, None, 1)):
        if along is None:
            torch.testing.assert_close(torch.stack(rows).mean(), batch)
        else:
            assert torch.equal(torch.cat(rows, along), batch), name


@built
@pytest.mark.parametrize("name", [*NAMES, "fitted"])
def test_updates_equal_torchs_repeat_bit_for_bit_and_share_their_saved_state(name):
    with compiled.without():
        slow = _agent(name, actor_every=2, renorm_warmup=2)
    fast, again = (_agent(name, actor_every=2, renorm_warmup=2) for _ in range(2))
    assert type(slow.critic.loops) is loops.TorchLoops and type(fast.critic.loops) is loops.CompiledLoops
    rows = _rows(4)
    padding = torch.empty(3)  # the same rows at another place in memory
    elsewhere = torch.cat([padding, rows.flatten()])[3:].view(rows.shape)
    one, two = fast.update(rows), slow.update(rows)
    again.update(elsewhere)
    assert _equal(fast, again) == []
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-4, atol=1e-4, msg=key)
    slow.load_state(fast.state())
    assert _equal(fast, slow) == []
    one, two = fast.update(rows), slow.update(rows)
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-4, atol=1e-4, msg=key)


@built
def test_a_batch_that_is_not_finite_changes_nothing():
    agent, rows = _agent(), _rows(2)
    agent.update(rows)
    before = {name: tensor for name, tensor in agent.state().items() if name.startswith("critic.")}
    rows[0, 3, 2] = torch.nan
    assert agent.update(rows[:1])["nonfinite"] == 1.0
    assert all(torch.equal(tensor, agent.state()[name]) for name, tensor in before.items())


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiled.load.cache_clear()
    yield tmp_path / "drawbridge"
    compiled.load.cache_clear()


@built
def test_the_library_is_built_once_where_only_its_user_can_write_and_again_when_it_is_damaged(empty_cache):
    empty_cache.mkdir(mode=0o700)
    path = compiled._path()
    path.write_bytes(b"half of a library")
    first = compiled.load()
    assert first.library is not None and first.words == str(path)
    assert {*empty_cache.iterdir()} == {path, empty_cache / "lock"} and path.stat().st_size > 4_096
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    made = path.stat().st_mtime_ns
    compiled.load.cache_clear()
    assert compiled.load().library is not None and path.stat().st_mtime_ns == made
    # Another one in its place is not loaded where others could have put it there.
    for place in (path, empty_cache):
        place.chmod(0o770)
        compiled.load.cache_clear()
        assert compiled.load().library is None and "another user" in compiled.load().words
        place.chmod(0o700)


def test_without_a_compiler_torch_computes_and_doctor_can_say_so(empty_cache, monkeypatch):
    monkeypatch.setenv("PATH", os.devnull)
    assert compiled.problem() == compiled.load().words == compiled.NO_COMPILER
    assert type(_agent().critic.loops) is loops.TorchLoops
    _agent().update(_rows(2))


def test_a_source_that_no_compiler_takes_is_no_error_either(empty_cache, tmp_path, monkeypatch):
    source = tmp_path / "loops.c"
    source.write_text("this is not C\n")
    monkeypatch.setattr(compiled, "SOURCE", source)
    assert compiled.load().library is None and compiled.load().words


@built
@pytest.mark.parametrize("norm", ["layer_norm", "running"])
def test_acting_equals_torchs_for_new_weights_and_any_number_of_rows(norm):
    agent = _agent("softgac", input_norm=norm, renorm_warmup=0)
    made = ALGORITHMS["softgac"]
    fast, slow = (StatelessPolicy(made.make_policy(agent.config, 5, 3), backend) for backend in ("auto", "torch"))
    assert (fast.backend, slow.backend) == ("compiled", "torch")
    rng = np.random.default_rng(0)
    for rows in (1, 7, 1):
        agent.update(_rows(2, seed=rows))  # moves the statistics of observations too
        weights = {name: tensor.numpy().copy() for name, tensor in agent.policy_weights().items()}
        for policy in (fast, slow):
            policy.load_weights(weights)
        for array in weights.values():
            array.fill(np.nan)  # what was given is the caller's
        obs = 50 + rng.standard_normal((rows, 5), dtype=np.float32)
        noise = fast.inner.sample_noise(rng, rows)
        first = fast.act_on(obs, noise)
        np.testing.assert_allclose(first, slow.act_on(obs, noise), atol=1e-5)
        assert not np.array_equal(first, fast.act_on(obs)) and np.isfinite(first).all()
    before = fast.act_on(obs)
    with pytest.raises(ValueError, match=r"bridge\.0\.norm_in\.scale is missing"):
        fast.load_weights({})
    assert np.array_equal(before, fast.act_on(obs))
    obs[0, 0] = np.nan
    assert np.isnan(fast.act_on(obs)).all()
