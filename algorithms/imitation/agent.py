"""The update that all imitators share: one flat buffer of parameters, one all-reduce, one Adam step a batch.

Letters: U updates, B episodes of this learner's batch, P draws from each. Contract: algorithms.interface.EpisodeAgent.
Nothing here looks at a device value from the host: a non-finite update is undone by arithmetic.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import NamedTuple

import torch

from algorithms import matmul
from algorithms.allocation import keep_freed_memory
from algorithms.flat import FlatAdam, FlatParameters
from algorithms.imitation.config import ImitationConfig
from algorithms.interface import Collective, Solo
from algorithms.state import check_state
from replay.trajectories import DataSummary, ReturnSummary, Trajectories

METRICS = ("action_mse", "grad_norm", "imitated")


class Error(NamedTuple):
    """The error on a batch as a sum and what to divide it by; both 0-d."""

    total: torch.Tensor
    weight: torch.Tensor
    possible: torch.Tensor | int  # the weight if no step had been left out


class ImitationAgent(abc.ABC):
    """The learner's side; a subclass says what is drawn from a batch and how its error arises.

    Args:
        parameters: by name, the network's initial ones.
        data: what ``fit`` takes from the dataset, by name, float32; part of the policy's weights.
    """

    def __init__(
        self,
        config: ImitationConfig,
        parameters: dict[str, torch.Tensor],
        data: dict[str, torch.Tensor],
        *,
        obs_dim: int,
        action_dim: int,
        device: torch.device | str,
        seed: int,
        collective: Collective | None,
    ) -> None:
        self.obs_dim, self.action_dim, self.device = obs_dim, action_dim, torch.device(device)
        self.collective: Collective = Solo() if collective is None else collective
        if self.device.type == "cpu":
            keep_freed_memory()
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.data = {name: tensor.to(self.device, torch.float32) for name, tensor in data.items()}
        self.parameters = FlatParameters(parameters, self.device, extra=3)
        size = self.parameters.size
        self.adam = FlatAdam(self.parameters.value, self.parameters.grad[:size], lr=config.lr)
        self.updates = 0  # tried; decides the step size while it warms up
        self.fitted = False
        self._settings, self._matmul = config, matmul.choose(config.matmul)

    @abc.abstractmethod
    def _statistics(self, summary: DataSummary) -> dict[str, object]:
        """What each entry of ``data`` beyond the observations' mean and standard deviation becomes."""

    @abc.abstractmethod
    def _error(self, batch: Trajectories) -> Error:
        """The error of the policy on one batch, with its randomness from ``_uniform``."""

    def fit(self, summary: DataSummary) -> None:
        """Takes the statistics of the dataset; raises ValueError where it cannot be learned from with these settings."""
        if (seen := summary.obs_mean_O.shape) != (self.obs_dim,):
            raise ValueError(
                f"the dataset's observations have shape {seen}, expected ({self.obs_dim},) as the environment's: the "
                "policy could not act there; take a dataset of this environment"
            )
        taken = {"obs_mean": summary.obs_mean_O, "obs_std": summary.obs_std_O, **self._statistics(summary)}
        for name, value in taken.items():
            self.data[name].copy_(torch.as_tensor(value))
        self.fitted = True

    def update(self, batches: Sequence[Trajectories]) -> dict[str, torch.Tensor]:
        """U updates; metrics (0-d): ``action_mse`` (a coordinate), ``grad_norm``, ``imitated`` (share of the drawn steps
        that had weight), ``learning_rate``, ``nonfinite`` (their number). A batch without weight changes nothing.

        Raises ValueError for rows of another width, RuntimeError when ``fit`` was not called.
        """
        if not self.fitted:
            raise RuntimeError("update came before fit: inputs would not be normalised; call fit(summary) first")
        sums = torch.zeros(len(METRICS) + 2, device=self.device)  # then: updates counted, non-finite ones
        with matmul.library(self._matmul):
            for batch in batches:
                self._check(batch)
                sums += self._step(batch)
        values = dict(zip(METRICS, (sums[:-2] / sums[-2]).unbind()))
        return values | {"learning_rate": torch.full((), self.adam.lr, device=self.device), "nonfinite": sums[-1]}

    def posteriors(self) -> list[torch.Tensor]:
        """Nothing is written back."""
        return []

    def go_online(self) -> None:
        """Imitation gathers nothing."""
        return None

    def hear(self, returns: ReturnSummary) -> None:
        """Imitation asks for what the dataset has; later returns change nothing."""
        return None

    def policy_weights(self) -> dict[str, torch.Tensor]:
        """The network's parameters, then the entries of ``data``; views, float32."""
        return {name: tensor.detach() for name, tensor in self.parameters.named.items()} | self.data

    def _check(self, batch: Trajectories) -> None:
        expected = self.obs_dim + self.action_dim + 1
        if batch.rows_NF.shape[1] != expected:
            raise ValueError(
                f"a batch has rows of {batch.rows_NF.shape[1]} floats, expected {expected} = O + A + 1: columns would be "
                "taken for others; feed episodes of the environment that the agent was made for"
            )

    def _uniform(self, *shape: int) -> torch.Tensor:
        """This learner's share of noise on [0, 1) for all learners' batches, first dimension: episodes or windows.

        Every rank draws all of it and keeps its own, so that learners draw what one with the whole batch would.
        """
        world, rank = self.collective.world_size, self.collective.rank
        noise = torch.rand((world * shape[0], *shape[1:]), generator=self.generator, device=self.device)
        return noise.view(world, *shape)[rank]

    def _step(self, batch: Trajectories) -> torch.Tensor:
        """One update; its metrics, 1 and 0, or zeros with a last 1 where it was not finite."""
        parameters, size = self.parameters, self.parameters.size
        parameters.grad.zero_()
        error = self._error(batch)
        error.total.backward()
        with torch.no_grad():
            parameters.extra.copy_(torch.stack([error.total, error.weight, error.weight / error.possible]))
            self.collective.mean_(parameters.grad)
            total, weight, imitated = parameters.extra.unbind()
            parameters.grad[:size].div_(weight.clamp_min(1e-12))
            loss, norm = total / weight.clamp_min(1e-12), parameters.grad[:size].square().sum().sqrt()
            bad, empty = 1.0 - torch.isfinite(norm + loss).float(), (weight == 0).float()
            parameters.grad[:size].mul_((self._settings.grad_clip / (norm + 1e-6)).clamp_max(1.0))
            self._descend(skip=torch.maximum(bad, empty))
            one = torch.ones_like(norm)
            made = torch.where(bad + empty > 0, 0.0, torch.stack([loss, norm, imitated, one, 0 * one]))
            return made + torch.stack([0 * one] * (len(METRICS) + 1) + [bad])

    def _descend(self, skip: torch.Tensor) -> None:
        config = self._settings
        self.updates += 1
        self.adam.lr = config.lr * min(1.0, self.updates / max(1, config.warmup))
        self.parameters.value.mul_(1.0 - self.adam.lr * config.weight_decay * (1.0 - skip))
        self.adam.step(skip)

    def state(self) -> dict[str, torch.Tensor]:
        """Copies of everything that a bit-exact resume needs: parameters, Adam's moments, data, generator, counters."""
        named = {name: tensor.detach().clone() for name, tensor in self._tensors().items()}
        counters = {"updates": torch.tensor(self.updates), "fitted": torch.tensor(self.fitted)}
        return named | {"generator": self.generator.get_state()} | counters

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Takes what ``state`` gave, in place; raises ValueError naming every missing, surplus or misshapen entry."""
        check_state(self.state(), state)
        for name, tensor in self._tensors().items():
            tensor.detach().copy_(state[name])
        self.generator.set_state(state["generator"].cpu())
        self.updates, self.fitted = int(state["updates"]), bool(state["fitted"])

    def _tensors(self) -> dict[str, torch.Tensor]:
        named = {f"policy.{name}": tensor for name, tensor in self.parameters.named.items()}
        named |= {f"adam.{name}": tensor for name, tensor in self.adam.state().items()}
        return named | {f"data.{name}": tensor for name, tensor in self.data.items()}
