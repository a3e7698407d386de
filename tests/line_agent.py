"""Agents to drive a learner with: the least there can be, which fits a line, and the real ones, small."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from algorithms import ALGORITHMS
from algorithms.interface import AgentSpec, Collective, Solo
from replay.schema import RowLayout

LAYOUT = RowLayout(obs_dim=3, action_dim=1)


class LineAgent:
    """Minimises mean (obs . w - reward - noise)^2 by gradient descent; an Agent and a CyclicAgent."""

    cycle = 2

    def __init__(
        self, seed: int = 0, collective: Collective | None = None, device: str = "cpu", lr: float = 0.1
    ) -> None:
        self.device = torch.device(device)
        self.generator = torch.Generator(device).manual_seed(seed)
        self.w = torch.zeros(3, device=device)
        self.sums = torch.zeros(3, device=device)  # of losses, of skipped updates, of updates
        self.updates = 0
        self._collective: Collective = Solo() if collective is None else collective
        self._lr = lr

    def update(self, rows_UBD: torch.Tensor) -> dict[str, torch.Tensor]:
        self.advance(rows_UBD)
        return self.read_metrics()

    def advance(self, rows_UBD: torch.Tensor) -> None:
        for rows_BD in rows_UBD:
            self._step(rows_BD)
        self.updates += len(rows_UBD)

    def step_cycle(self, rows_CBD: torch.Tensor) -> None:
        for rows_BD in rows_CBD:
            self._step(rows_BD)

    def read_metrics(self) -> dict[str, torch.Tensor]:
        loss, bad, count = self.sums.clone().unbind()
        self.sums.zero_()
        return {"loss": loss / count, "nonfinite": bad}

    def _step(self, rows_BD: torch.Tensor) -> None:
        columns = LAYOUT.views(rows_BD)
        noise_B = self._noise(len(rows_BD))
        error_B = columns.obs @ self.w - columns.reward - noise_B
        gradient = 2 * (error_B[:, None] * columns.obs).mean(0)
        self._collective.mean_(gradient)
        good = gradient.isfinite().all()
        self.w.copy_(torch.where(good, self.w - self._lr * gradient, self.w))
        bad = 1.0 - good.float()
        self.sums += torch.stack([error_B.square().mean(), bad, torch.ones_like(bad)])

    def _noise(self, rows: int) -> torch.Tensor:
        """This rank's share of the noise of all ranks' rows."""
        world, rank = self._collective.world_size, self._collective.rank
        noise = torch.randn(world * rows, generator=self.generator, device=self.w.device)
        return 0.01 * noise.view(world, rows)[rank]

    def policy_weights(self) -> dict[str, torch.Tensor]:
        return {"w": self.w}

    def state(self) -> dict[str, torch.Tensor]:
        return {"w": self.w.clone(), "updates": torch.tensor(self.updates), "generator": self.generator.get_state()}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        self.w.copy_(state["w"])
        self.updates = int(state["updates"])
        self.generator.set_state(state["generator"])


def small_agent(name: str, *, collective: Collective | None = None, device: str = "cpu", seed: int = 0) -> Any:
    """A real agent for 5 observations and 2 actions, narrow enough for tests."""
    algorithm = ALGORITHMS[name]
    config = dataclasses.replace(algorithm.presets["cpu"](), critic_width=16, atoms=21)
    if name == "softgac":
        config = dataclasses.replace(config, bridge_width=8, bridge_steps=3)
    elif algorithm.items == "transitions":
        config = dataclasses.replace(config, actor_width=8)
    spec = AgentSpec(obs_dim=5, action_dim=2, device=device, seed=seed, collective=collective or Solo())
    return algorithm.make_agent(config, spec)
