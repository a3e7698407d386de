"""The trainer against torch's own optimiser on separate tensors and sums in Python loops."""

from __future__ import annotations

import math
import threading
from typing import Any

import pytest
import torch
from gac_batches import Pair

from algorithms.interface import AgentSpec, Collective, Solo
from algorithms.trainer import FlatAdam, FlatParameters, Loss, Step, TrainedAgent, Trainer

LR, DECAY, CLIP = 0.05, 0.1, 0.7
START = {"w": torch.tensor([[0.3, -0.2], [0.8, 0.5], [-0.6, 0.1]]), "b": torch.tensor([0.4, -0.9])}
ROWS = [torch.randn(8, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(6)]  # (B, inputs + outputs)


def error_B(parameters: dict[str, torch.Tensor], rows_BF: torch.Tensor) -> torch.Tensor:
    return (torch.tanh(rows_BF[:, :3] @ parameters["w"] + parameters["b"]) - rows_BF[:, 3:]).square().sum(1)


def made(collective: Collective | None = None, extra: int = 1, **fields: Any) -> Trainer:
    flat = FlatParameters(START, torch.device("cpu"), extra=extra)
    adam = FlatAdam(flat.value, flat.gradient, lr=LR, weight_decay=DECAY)
    return Trainer(flat, (adam,), collective or Solo(), ("loss", "norm"), **fields)


def learn(trainer: Trainer, rows_BF: torch.Tensor) -> Step:
    step = trainer.descend(Loss(error_B(trainer.parameters.named, rows_BF).mean()))
    trainer.record(step, (step.loss, step.norm))
    return step


class Agent(TrainedAgent):
    """An agent that is nothing but trainers."""

    def __init__(self, *trainers: Trainer, **spec: Any) -> None:
        super().__init__(AgentSpec(obs_dim=3, action_dim=2, **spec), "mkl")
        self.trainers = trainers

    def tensors(self) -> dict[str, torch.Tensor]:
        adams = {f"adam.{name}": tensor for name, tensor in self.trainers[0].adams[0].state().items()}
        return dict(self.trainers[0].parameters.named) | adams


@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_clipped_steps_are_those_of_torchs_adamw_on_separate_tensors_and_metrics_are_sums_of_a_loop(eps: float) -> None:
    trainer, losses, norms = made(clip=CLIP, clip_eps=eps), [], []
    twin = {name: tensor.clone().requires_grad_() for name, tensor in START.items()}
    adamw = torch.optim.AdamW(twin.values(), lr=LR, weight_decay=DECAY)
    for rows_BF in ROWS:
        adamw.zero_grad()
        loss = sum(((torch.tanh(row[:3] @ twin["w"] + twin["b"]) - row[3:]) ** 2).sum() for row in rows_BF) / len(
            rows_BF
        )
        loss.backward()
        squares = [entry.item() ** 2 for tensor in twin.values() for entry in tensor.grad.flatten()]
        losses.append(loss.item())
        norms.append(math.sqrt(sum(squares)))
        for tensor in twin.values():
            tensor.grad *= min(1.0, CLIP / (norms[-1] + eps))
        adamw.step()
        step = learn(trainer, rows_BF)
        assert float(step.loss) == pytest.approx(losses[-1], rel=1e-5) and float(step.skipped) == 0.0
        assert float(step.norm) == pytest.approx(norms[-1], rel=1e-5)
    assert max(norms) > CLIP
    for name, tensor in trainer.parameters.named.items():
        torch.testing.assert_close(tensor, twin[name], rtol=1e-4, atol=1e-6)
    metrics = Agent(trainer).read_metrics()
    assert float(metrics["loss"]) == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert float(metrics["norm"]) == pytest.approx(sum(norms) / len(norms), rel=1e-5)


def test_a_step_that_is_not_finite_leaves_every_bit_and_is_counted_but_not_averaged() -> None:
    trainer, clean = made(clip=CLIP), made(clip=CLIP)
    bad = ROWS[1].clone()
    bad[3, 0] = math.nan
    for rows_BF in (ROWS[0], bad, ROWS[2]):
        learn(trainer, rows_BF)
    for rows_BF in (ROWS[0], ROWS[2]):
        learn(clean, rows_BF)
    agent, twin = Agent(trainer), Agent(clean)
    assert all(torch.equal(tensor, twin.state()[name]) for name, tensor in agent.state().items())
    seen, expected = agent.read_metrics(), twin.read_metrics()
    assert (float(seen.pop("nonfinite")), float(expected.pop("nonfinite"))) == (1.0, 0.0) and seen == expected
    again = agent.read_metrics()  # sums were zeroed
    assert float(again.pop("nonfinite")) == 0.0 and all(bool(value.isnan()) for value in again.values())


def test_a_sum_with_its_weight_descends_the_weighted_mean_and_no_weight_changes_nothing() -> None:
    trainer, mean = made(extra=3), made()
    weight_B = torch.tensor([1.0, 0.0, 2.0, 1.0, 0.0, 0.5, 1.0, 1.0])

    def weighted(weight_B: torch.Tensor) -> Step:
        total = (error_B(trainer.parameters.named, ROWS[0]) * weight_B).sum()
        return trainer.descend(Loss(total, weight=weight_B.sum(), shared=(weight_B.max(),)))

    step = weighted(weight_B)
    value = (error_B(mean.parameters.named, ROWS[0]) * weight_B).sum() / 6.5
    twin = mean.descend(Loss(value))
    torch.testing.assert_close(trainer.parameters.value, mean.parameters.value)
    torch.testing.assert_close((step.loss, step.norm, step.shared), (twin.loss, twin.norm, torch.tensor([2.0])))
    before = trainer.parameters.value.clone()
    empty = weighted(torch.zeros(8))
    assert torch.equal(trainer.parameters.value, before)
    assert (float(empty.skipped), float(empty.nonfinite)) == (1.0, 0.0)


def test_a_temperature_is_descended_beside_the_loss_and_is_no_part_of_its_value() -> None:
    both = FlatParameters({"x": torch.tensor([2.0]), "log_alpha": torch.tensor(0.5)}, torch.device("cpu"), extra=1)
    adam = FlatAdam(both.value, both.gradient, lr=LR)
    x, log_alpha = both.named.values()
    step = Trainer(both, (adam,), Solo(), ()).descend(Loss(x.square().sum(), temperature=3.0 * log_alpha))
    assert float(step.loss) == 4.0 and float(step.norm) == pytest.approx(5.0)
    torch.testing.assert_close(both.value, torch.tensor([2.0 - LR, 0.5 - LR]))


def test_two_learners_of_half_the_rows_take_the_steps_of_one_and_report_its_metrics() -> None:
    alone, ends, seen = made(clip=CLIP), Pair.two(), {}
    for rows_BF in ROWS:
        learn(alone, rows_BF)

    def work(rank: int) -> None:
        trainer = made(ends[rank], clip=CLIP)
        for rows_BF in ROWS:
            learn(trainer, rows_BF.chunk(2)[rank])
        seen[rank] = trainer, Agent(trainer, collective=ends[rank]).read_metrics()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert torch.equal(seen[0][0].parameters.value, seen[1][0].parameters.value) and seen[0][1] == seen[1][1]
    torch.testing.assert_close(seen[0][0].parameters.value, alone.parameters.value, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(seen[0][1], Agent(alone).read_metrics(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_the_learners_noise_put_together_is_that_of_one_learner(kind: str) -> None:
    ends = Pair.two()
    agents = [Agent(made(), seed=4), *(Agent(made(), seed=4, collective=end) for end in ends)]
    for shape in ((3, 2), (5,), (2, 0)):
        whole = getattr(agents[0], kind)(6, *shape)
        parts = [getattr(agent, kind)(3, *shape) for agent in agents[1:]]
        assert torch.equal(whole, torch.cat(parts)) and whole.shape == (6, *shape)
    states = [agent.generator.get_state() for agent in agents]
    assert torch.equal(states[0], states[1]) and torch.equal(states[0], states[2])


def test_a_state_goes_round_and_the_next_steps_are_the_same() -> None:
    agent, other = Agent(made()), Agent(made(), seed=9)
    learn(agent.trainers[0], ROWS[0])
    agent.updates = 1
    agent.uniform(3)
    other.load_state(agent.state())
    assert other.updates == 1 and torch.equal(agent.uniform(5), other.uniform(5))
    for each in (agent, other):
        learn(each.trainers[0], ROWS[1])
    assert all(torch.equal(tensor, other.state()[name]) for name, tensor in agent.state().items())
    with pytest.raises(ValueError, match=r"b is missing.*unchanged|unchanged.*b is missing"):
        other.load_state({name: tensor for name, tensor in agent.state().items() if name != "b"})
