"""The update that all imitators share: one flat buffer of parameters, one all-reduce, one Adam step a batch.

Letters: U updates, B episodes of this learner's batch, P draws from each. Contract: algorithms.interface.EpisodeAgent.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence

import torch

from algorithms import runtime
from algorithms.imitation.config import ImitationConfig
from algorithms.interface import AgentSpec
from algorithms.trainer import FlatAdam, FlatParameters, Loss, TrainedAgent, Trainer
from replay.schema import DataSummary, ReturnSummary, Trajectories

METRICS = ("action_mse", "grad_norm", "imitated")


class ImitationAgent(TrainedAgent):
    """The learner's side; a subclass says what is drawn from a batch and how its loss arises.

    Args:
        parameters: by name, the network's initial ones.
        data: what ``fit`` takes from the dataset, by name, float32; part of the policy's weights.
    """

    def __init__(
        self,
        config: ImitationConfig,
        spec: AgentSpec,
        parameters: dict[str, torch.Tensor],
        data: dict[str, torch.Tensor],
    ) -> None:
        super().__init__(spec, config.matmul)
        self.data = {name: tensor.to(self.device, torch.float32) for name, tensor in data.items()}
        self.parameters = FlatParameters(parameters, self.device, extra=3)
        self.adam = FlatAdam(
            self.parameters.value, self.parameters.gradient, lr=config.lr, weight_decay=config.weight_decay
        )
        self.trainer = Trainer(
            self.parameters, (self.adam,), spec.collective, METRICS, clip=config.grad_clip, clip_eps=1e-6
        )
        self.trainers = (self.trainer,)
        self.fitted = False
        self._settings = config

    @abc.abstractmethod
    def _statistics(self, summary: DataSummary) -> dict[str, object]:
        """What each entry of ``data`` beyond the observations' mean and standard deviation becomes."""

    @abc.abstractmethod
    def losses(self, batch: Trajectories) -> Loss:
        """The summed error on one batch, its weight, and the share of the drawn steps that had weight; noise by ``uniform``."""

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
        for batch in batches:
            self._check(batch)
        with runtime.library(self.matmul):
            for batch in batches:
                self._step(batch)
        return self.read_metrics() | {"learning_rate": torch.full((), self.adam.lr, device=self.device)}

    def posteriors(self) -> list[torch.Tensor]:
        """None: imitation infers nothing about episodes."""
        return []

    def start_finetuning(self) -> None:
        """Does nothing: imitation gathers no episodes."""

    def update_returns(self, returns: ReturnSummary) -> None:
        """Does nothing: imitation has no exploration target."""

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

    def _step(self, batch: Trajectories) -> None:
        config = self._settings
        loss = self.losses(batch)
        self.updates += 1
        self.adam.lr = config.lr * min(1.0, self.updates / max(1, config.warmup))
        step = self.trainer.descend(loss)
        self.trainer.record(step, (step.loss, step.norm, *step.shared))

    def state(self) -> dict[str, torch.Tensor]:
        """Copies of everything that a bit-exact resume needs: parameters, Adam's moments, data, generator, counters."""
        return super().state() | {"fitted": torch.tensor(self.fitted)}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Takes what ``state`` gave, in place; raises ValueError naming every missing, surplus or misshapen entry."""
        super().load_state(state)
        self.fitted = bool(state["fitted"])

    def tensors(self) -> dict[str, torch.Tensor]:
        """Parameters, Adam's moments and the data's statistics."""
        named = {f"policy.{name}": tensor for name, tensor in self.parameters.named.items()}
        named |= {f"adam.{name}": tensor for name, tensor in self.adam.state().items()}
        return named | {f"data.{name}": tensor for name, tensor in self.data.items()}
