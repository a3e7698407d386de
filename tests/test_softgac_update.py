"""The update of all actor-critics: equations, schedule, guard, state, learners that share it."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import numpy as np
import pytest
import torch
from softgac_twin import bridge_autograd, evaluate_autograd, joint_autograd, project_loop
from torch.utils._python_dispatch import TorchDispatchMode

from algorithms import ALGORITHMS, runtime
from algorithms.actor_critic import UpdateNoise
from algorithms.interface import AgentSpec, Solo

OBS, ACTION, BATCH = 5, 3, 32
SMALL: dict[str, Any] = {"critic_width": 32, "atoms": 21, "v_min": -20.0, "v_max": 20.0}
NAMES = tuple(name for name, algorithm in ALGORITHMS.items() if algorithm.items == "transitions")
FITTED = (*NAMES, "fitted")  # softgac with a support fitted to the rewards


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def _agent(name: str = "softgac", seed: int = 0, collective: Any = None, **fields: Any) -> Any:
    if name == "fitted":
        name, fields = "softgac", {"v_min": None, "v_max": None} | fields
    bridge = {"bridge_width": 16} if name == "softgac" else {"actor_width": 16}
    config = dataclasses.replace(ALGORITHMS[name].presets["cpu"](), **(SMALL | bridge | fields))
    spec = AgentSpec(obs_dim=OBS, action_dim=ACTION, seed=seed, collective=collective or Solo())
    return ALGORITHMS[name].make_agent(config, spec)


def _rows(updates: int, batch: int = BATCH, seed: int = 0) -> torch.Tensor:
    rows = torch.randn(updates, batch, 2 * OBS + ACTION + 2, generator=torch.Generator().manual_seed(seed))
    rows[..., OBS : OBS + ACTION].tanh_()
    rows[..., OBS + ACTION + 1] = (rows[..., OBS + ACTION + 1] > -1).float()
    return rows


def _equal(one: Any, two: Any) -> list[str]:
    """Names of the entries of two states that differ in any bit."""
    return [name for name, tensor in one.state().items() if not torch.equal(tensor, two.state()[name])]


@pytest.mark.parametrize("form", ["crossq", "ioffe"])
@pytest.mark.parametrize(("warmup", "norm"), [(0, "layer_norm"), (100, "running"), (0, "running")])
def test_two_softgac_updates_equal_the_equations_written_out_with_torch_adam(warmup, norm, form):
    agent = _agent(renorm_warmup=warmup, input_norm=norm, renorm_form=form)
    c, critic, rows = agent.config, agent.critic, _rows(2)
    p = {name: t.detach().clone().requires_grad_() for name, t in critic.parameters.named.items()}
    b = {name: t.detach().clone().requires_grad_() for name, t in agent.policy.named.items()}
    log_alpha = agent.log_alpha.detach().clone().requires_grad_()
    statistics = {name: t.clone() for name, t in critic.statistics.items()}
    critic_adam = torch.optim.Adam(p.values(), c.critic_lr, betas=(0.5, 0.999), eps=1e-8)
    actor_adam = torch.optim.Adam(b.values(), c.actor_lr)
    alpha_adam = torch.optim.Adam([log_alpha], c.alpha_lr)
    y = torch.linspace(c.v_min, c.v_max, c.atoms)

    def walk(obs: torch.Tensor, noise: torch.Tensor, mean: torch.Tensor, var: torch.Tensor) -> Any:
        if norm == "running":
            obs = (obs - mean) / torch.sqrt(var + c.renorm_eps)
        return bridge_autograd(obs, noise, b, norm == "layer_norm")

    for i in range(2):
        noise = UpdateNoise(agent.draw_noise(BATCH), agent.draw_noise(BATCH))
        metrics = agent.update_with(rows[i], noise, with_actor=i == 1)
        columns = agent.layout.views(rows[i])
        next_action, next_energy = (
            t.detach() for t in walk(columns.next_obs, noise.next, torch.zeros(OBS), torch.ones(OBS))
        )  # the statistics as they were when the actor last moved: never
        x = torch.cat([torch.cat([columns.obs, columns.action], -1), torch.cat([columns.next_obs, next_action], -1)])
        now, following = joint_autograd(x, p, statistics, float(i), 3, critic.constants)
        soft = y - log_alpha.detach().exp() * next_energy[:, None]
        target = columns.reward[:, None] + c.gamma * columns.discount[:, None] * soft
        both = [project_loop(one.softmax(-1).numpy(), target.numpy(), c.v_min, c.v_max) for one in following]
        m = torch.from_numpy((both[0] + both[1]) / 2).float()
        log_p = torch.log_softmax(now, -1)
        cross = -(m * log_p).sum(-1).mean(-1) + c.critic_entropy * (log_p.exp() * log_p).sum(-1).mean(-1)
        critic_adam.zero_grad()
        cross.sum().backward()
        critic_adam.step()
        torch.testing.assert_close(metrics["critic_loss"], cross.sum().detach(), rtol=1e-5, atol=1e-5)
        with torch.no_grad():  # how they move has a test of its own
            for name, tensor in statistics.items():
                tensor.copy_(critic.statistics[name])
    action, energy = walk(columns.obs, noise.actor, *(statistics[f"norm0.{kind}"][0, :OBS] for kind in ("mean", "var")))
    frozen = {name: t.detach() for name, t in p.items()}
    logits = evaluate_autograd(torch.cat([columns.obs, action], -1), frozen, statistics, 3, c.renorm_eps)
    q = (logits.softmax(-1) * y).sum(-1)
    alpha = log_alpha.detach().exp()
    loss = (alpha * energy - q.min(0).values).mean()
    loss.backward()
    (log_alpha.exp() * (c.rho * 6 * ACTION - energy.detach().mean())).backward()
    slope = float(log_alpha.grad)
    assert slope == pytest.approx(float(alpha) * (0.5 * 6 * ACTION - energy.mean().item()), rel=1e-5)
    actor_adam.step()
    alpha_adam.step()
    torch.testing.assert_close(metrics["actor_loss"], loss.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(agent.log_alpha, log_alpha, rtol=1e-5, atol=1e-6)
    # One Adam step moves an entry by at most lr, wherever its gradient's sign is certain.
    for mine, twin, lr in ((critic.parameters.named, p, c.critic_lr), (agent.policy.named, b, c.actor_lr)):
        for name, tensor in mine.items():
            differs = (tensor - twin[name]).abs() > 0.02 * lr
            assert differs.float().mean() < 0.01, name


@pytest.mark.parametrize("name", FITTED)
def test_an_update_looks_at_no_device_value_and_makes_no_tensor_from_host_data(name):
    agent, rows, seen = _agent(name), _rows(4), []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    with Watch():
        agent.update(rows)
    forbidden = {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "lift_fresh", "_to_cpu", "equal", "unique"}
    assert len(seen) > 200 and "_fused_adamw_" in seen
    assert forbidden.isdisjoint(seen)


def test_a_state_from_a_gpu_is_taken_on_the_cpu_and_its_noise_follows_from_it():
    """A generator on CUDA gives 16 bytes: its seed and its offset."""
    agent, rows = _agent(), _rows(2)
    agent.update(rows)
    result = {}
    for offset in (0, 4, 0):
        state = agent.state() | {
            "generator": torch.tensor([7, 0, 0, 0, 0, 0, 0, 0, offset, *[0] * 7], dtype=torch.uint8)
        }
        other = _agent(seed=offset + 1)
        other.load_state(state)
        assert [name for name in _equal(agent, other) if name != "generator"] == []
        noise = other.draw_noise(3)
        assert torch.equal(result.setdefault(offset, noise), noise)  # the same state, the same noise
    assert not torch.equal(result[0], result[4])
    with pytest.raises(ValueError, match=r"generator is torch\.uint8"):
        agent.load_state(agent.state() | {"generator": torch.zeros(9, dtype=torch.uint8)})


@pytest.mark.parametrize("name", FITTED)
def test_the_next_updates_after_a_loaded_state_are_bit_identical(name):
    agent, rows = _agent(name), _rows(9)
    agent.update(rows[:3])  # stops in the middle of a cycle
    other = _agent(name, seed=9)
    other.load_state(agent.state())
    assert _equal(agent, other) == []
    agent.update(rows[3:])
    other.update(rows[3:])
    assert _equal(agent, other) == []
    assert agent.state()["generator"].dtype == torch.uint8


@pytest.mark.parametrize("name", FITTED)
def test_one_call_of_six_updates_equals_six_calls_of_one_and_three_captured_cycles(name):
    one, six, cycles = (_agent(name) for _ in range(3))
    rows = _rows(6)
    one.update(rows)
    for i in range(6):
        six.update(rows[i : i + 1])
    for i in range(0, 6, 2):
        cycles.step_cycle(rows[i : i + 2])
    for other in (six, cycles):
        for key, tensor in one.state().items():
            if key != "updates":
                # A tenth of Adam's step: it moves an entry whose gradient is almost 0 by rounding alone.
                torch.testing.assert_close(tensor, other.state()[key], rtol=1e-4, atol=1e-4, msg=key)


@pytest.mark.parametrize("name", FITTED)
def test_metrics_of_captured_cycles_add_up_until_they_are_read(name):
    whole, cycles = _agent(name), _agent(name)
    rows = _rows(6)
    rows[2, 3, OBS + ACTION] = float("nan")  # one update whose reward, and so whose loss, is not finite
    expected = whole.update(rows)
    for i in range(0, 6, 2):
        cycles.step_cycle(rows[i : i + 2])
    seen = cycles.read_metrics()
    assert seen["nonfinite"] == 1 == expected["nonfinite"]
    for key, value in expected.items():
        torch.testing.assert_close(seen[key], value, rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize("name", FITTED)
@pytest.mark.parametrize("column", [0, OBS + ACTION, OBS + ACTION + 3])
def test_a_non_finite_batch_changes_nothing_but_the_count(name, column):
    agent = _agent(name)
    agent.update(_rows(2))
    before = agent.state()
    bad = _rows(2, seed=1)
    bad[:, 3, column] = float("nan")
    metrics = agent.update(bad)
    after = agent.state()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    actor_may_move = column != 0  # reward and next observation are not the actor's business
    moved = {key for key in changed if not (actor_may_move and key.startswith(("actor.", "alpha.", "log_alpha")))}
    assert moved == {"generator", "updates"}
    assert metrics["nonfinite"] == 2 and metrics["critic_loss"].isnan()
    fresh = agent.update(_rows(2, seed=2))
    assert fresh["nonfinite"] == 0 and all(value.isfinite() for value in fresh.values())


class _Ring:
    """W learners in threads of this process: every reduction meets at a barrier."""

    def __init__(self, world: int) -> None:
        self.slots: list[Any] = [None] * world
        self.barrier = threading.Barrier(world, timeout=30)


class _Member:
    def __init__(self, ring: _Ring, rank: int) -> None:
        self.ring, self.rank, self.world_size = ring, rank, len(ring.slots)

    def mean_(self, tensor: torch.Tensor) -> None:
        self.ring.slots[self.rank] = tensor.detach().clone()
        self.ring.barrier.wait()
        total = sum(self.ring.slots) / self.world_size
        self.ring.barrier.wait()
        with torch.no_grad():
            tensor.copy_(total)


@pytest.mark.parametrize("name", FITTED)
def test_two_learners_of_half_the_rows_give_the_parameters_of_one(name):
    rows, ring, errors = _rows(10), _Ring(2), []
    fields = {"renorm_warmup": 3} | ({"particles": 2, "antithetic": True} if name in ("softgac", "fitted") else {})
    alone = _agent(name, **fields)
    metrics = alone.update(rows)
    members = [_agent(name, collective=_Member(ring, rank), **fields) for rank in range(2)]
    shared: list[Any] = [None, None]

    def work(rank: int) -> None:
        try:
            shared[rank] = members[rank].update(rows[:, rank * BATCH // 2 : (rank + 1) * BATCH // 2])
        except BaseException as error:
            errors.append(error)
            ring.barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert _equal(members[0], members[1]) == []
    for key, tensor in alone.state().items():
        if ".adam." not in key:
            torch.testing.assert_close(tensor, members[0].state()[key], rtol=1e-3, atol=2e-4, msg=key)
    for key, value in metrics.items():
        torch.testing.assert_close(value, shared[0][key], rtol=1e-3, atol=1e-4, msg=key)


def test_one_shared_gradient_equals_one_learners_to_a_hundred_thousandth():
    """Before Adam, which turns the sign of a tiny gradient into a whole step."""
    rows, ring = _rows(1)[0], _Ring(2)
    alone = _agent(renorm_warmup=0)
    members = [_agent(renorm_warmup=0, collective=_Member(ring, rank)) for rank in range(2)]
    noise = UpdateNoise(alone.draw_noise(BATCH), alone.draw_noise(BATCH))
    alone.update_with(rows, noise, with_actor=True)

    def work(rank: int) -> None:
        half = slice(rank * BATCH // 2, (rank + 1) * BATCH // 2)
        members[rank].update_with(rows[half], UpdateNoise(noise.next[half], noise.actor[half]), with_actor=True)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    one, two = alone.critic.parameters.grad, members[1].critic.parameters.grad
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5 * float(one[:-1].abs().max()))


def test_the_temperature_falls_below_its_budget_and_rises_above_it():
    for rho, sign in ((5.0, -1), (0.0, 1)):
        agent = _agent(rho=rho)
        start = agent.log_alpha.item()
        agent.update(_rows(20))
        assert sign * (agent.log_alpha.item() - start) > 0


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_a_constant_temperature_stays(alpha):
    agent = _agent(alpha_mode="constant", alpha_init=alpha)
    assert agent.update(_rows(4))["alpha"].item() == pytest.approx(alpha)
    assert agent.state()["alpha.adam.count"] == 0 and agent.log_alpha.isfinite()


def test_antithetic_particles_are_mirrored_pairs_of_each_state():
    agent = _agent(particles=4, antithetic=True)
    noise = agent.draw_noise(BATCH, particles=4)
    assert noise.shape == (BATCH * 4, 7, ACTION)
    assert torch.equal(noise[0::2], -noise[1::2])
    assert agent.update(_rows(2))["nonfinite"] == 0


def test_the_actor_moves_on_every_second_update_alone():
    agent, rows = _agent(), _rows(4)
    moved = []
    for i in range(4):
        before = agent.policy.value.clone()
        agent.update(rows[i : i + 1])
        moved.append(not torch.equal(before, agent.policy.value))
    assert moved == [False, True, False, True]


@pytest.mark.parametrize("name", NAMES)
def test_update_names_its_metrics(name):
    metrics = _agent(name).update(_rows(2))
    own = {"behaviour_loss", "behaviour_q", "behaviour_v"} if name == "flowrl" else set()
    assert set(metrics) == {
        *("critic_loss", "actor_loss", "alpha", "control_energy", "control_energy_per_step_coord", "q_mean"),
        *("q_target_mean", "critic_grad_norm", "actor_grad_norm", "critic_entropy", "sigma_mean", "nonfinite"),
        *("clipped_mass", *own),
    }
    assert all(value.shape == () and value.isfinite() for value in metrics.values())


def test_a_state_that_does_not_fit_is_refused_with_every_name():
    agent = _agent()
    state = agent.state() | {"log_alpha": torch.zeros(2), "stranger": torch.zeros(1)}
    del state["critic.passes"]
    before = agent.state()
    with pytest.raises(ValueError, match=r"critic\.passes is missing; stranger is not known; log_alpha is .*expected"):
        agent.load_state(state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in agent.state().items())


@pytest.mark.parametrize("name", NAMES)
def test_settings_report_every_problem_at_once(name):
    algorithm = ALGORITHMS[name]
    assert all(preset().validate() == [] for preset in algorithm.presets.values())
    bad = dataclasses.replace(algorithm.presets["cpu"](), gamma=1.0, v_min=5.0, v_max=-5.0, atoms=1)
    result = r"(?s)atoms is 1,.*gamma is 1\.0.*v_min is 5\.0"
    if hasattr(bad, "alpha_init"):
        bad, result = dataclasses.replace(bad, alpha_init=0.0), result + r".*alpha_init is 0\.0"
    assert len(bad.validate()) == 3 + hasattr(bad, "alpha_init")
    with pytest.raises(ValueError, match=result):
        algorithm.make_agent(bad, AgentSpec(obs_dim=OBS, action_dim=ACTION))
    assert ALGORITHMS["softgac"].config_class(particles=3, antithetic=True).validate()


def test_the_paper_preset_has_the_published_constants():
    paper = ALGORITHMS["softgac"].presets["paper"]()
    assert (paper.bridge_steps, paper.bridge_width, paper.critic_width, paper.critic_layers) == (6, 512, 2048, 2)
    assert (paper.atoms, paper.v_min, paper.v_max, paper.gamma, paper.rho) == (101, -1600, 1600, 0.99, 0.2)
    assert (paper.critic_lr, paper.actor_lr, paper.alpha_lr, paper.critic_beta1) == (3e-4, 3e-4, 1e-3, 0.5)
    assert (paper.critic_entropy, paper.actor_every, paper.alpha_init, paper.renorm_warmup) == (0.005, 2, 0.1, 100_000)


def test_products_by_onednn_are_taken_only_where_they_keep_float32s_accuracy():
    choice = runtime.choose("auto")
    assert choice == "mkl" or runtime.onednn_error() < runtime.FLOAT32_ERROR
    before = torch.backends.mkldnn.matmul.fp32_precision
    with runtime.library("onednn"):
        pass
    assert torch.backends.mkldnn.matmul.fp32_precision == before
    with pytest.raises(ValueError, match="take auto"):
        runtime.choose("fastest")


def test_sac_pays_the_log_density_of_its_action():
    agent = _agent("sac")
    obs, noise = 0.1 * torch.randn(6, OBS), torch.randn(6, ACTION)
    action, cost, _ = agent.actor.rollout(obs, noise, agent.policy.named)
    with torch.no_grad():
        h = obs
        for l in range(3):
            h = h @ agent.policy.named[f"linear{l}.weight"] + agent.policy.named[f"linear{l}.bias"]
            h = torch.relu(h) if l < 2 else h
    law = torch.distributions.Normal(*(t if i == 0 else t.exp() for i, t in enumerate(h.chunk(2, -1))))
    law = torch.distributions.TransformedDistribution(law, torch.distributions.TanhTransform(cache_size=1))
    expected = law.log_prob(action.detach()).sum(-1).numpy()
    np.testing.assert_allclose(cost.detach().numpy(), expected, rtol=1e-3, atol=1e-3)
    assert agent.actor.budget == ACTION
