"""What the agents share that learn from whole episodes without a plan: imitators, and rivals that learn values.

Letters: N packed rows, F = O + A + 1 columns. Contract: algorithms.interface.EpisodeAgent.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence

import torch

from algorithms import runtime
from algorithms.interface import AgentSpec
from algorithms.trainer import TrainedAgent
from replay.schema import DataSummary, ReturnSummary, Trajectories


class FittedAgent(TrainedAgent):
    """An agent that takes statistics of its dataset before it learns; nothing is inferred about episodes.

    Subclasses keep the statistics in ``data`` by name, of which ``obs_mean`` and ``obs_std`` are two.
    """

    data: dict[str, torch.Tensor]
    sums = False  # whether a step's reward is hidden and their sum shown at the episode's last step

    def __init__(self, spec: AgentSpec, library: str) -> None:
        super().__init__(spec, library)
        self.fitted = False

    def _statistics(self, summary: DataSummary) -> dict[str, object]:
        """What entries of ``data`` beyond the observations' mean and standard deviation become; ValueError where nothing could."""
        return {}

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

    @abc.abstractmethod
    def _step(self, batch: Trajectories) -> None:
        """One update."""

    def update(self, batches: Sequence[Trajectories]) -> dict[str, torch.Tensor]:
        """U updates; their metrics, see docs/metrics.md.

        Raises ValueError for rows of another width, RuntimeError when ``fit`` was not called.
        """
        if not self.fitted:
            raise RuntimeError("update came before fit: inputs would not be normalised; call fit(summary) first")
        expected = self.obs_dim + self.action_dim + 1
        for batch in batches:
            if batch.rows_NF.shape[1] != expected:
                raise ValueError(
                    f"a batch has rows of {batch.rows_NF.shape[1]} floats, expected {expected} = O + A + 1: columns would be "
                    "taken for others; feed episodes of the environment that the agent was made for"
                )
        with runtime.library(self.matmul):
            for batch in batches:
                self._step(summed(batch) if self.sums else batch)
        return self.read_metrics()

    def posteriors(self) -> list[torch.Tensor]:
        """None: nothing is inferred about episodes."""
        return []

    def start_finetuning(self) -> None:
        """Goes on as it is."""

    def update_returns(self, returns: ReturnSummary) -> None:
        """Does nothing: no return is explored for."""

    def state(self) -> dict[str, torch.Tensor]:
        """Copies of everything that a bit-exact resume needs."""
        return super().state() | {"fitted": torch.tensor(self.fitted)}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Takes what ``state`` gave, in place; raises ValueError naming every missing, surplus or misshapen entry."""
        super().load_state(state)
        self.fitted = bool(state["fitted"])


def summed(batch: Trajectories) -> Trajectories:
    """The same episodes with their return as the reward of their last step, and 0 before."""
    rows_NF = batch.rows_NF.clone()
    rows_NF[:, -1] = 0.0
    rows_NF[batch.offset[1:] - 1, -1] = batch.return_B
    return dataclasses.replace(batch, rows_NF=rows_NF)
