"""What imitators share: the update (one flat buffer, one all-reduce, one Adam step a batch), and what is drawn from a batch.

Letters: U updates, B episodes of this learner's batch, P draws from each, N packed rows, G segments of all episodes together, K
steps of a window. Contract: algorithms.interface.EpisodeAgent. Episodes of a batch arrive drawn in proportion to their length.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch

from algorithms import runtime
from algorithms.fitted_agent import FittedAgent
from algorithms.imitation.config import FeatureConfig, ImitationConfig
from algorithms.interface import AgentSpec, PlanRequest
from algorithms.trainer import FlatAdam, FlatParameters, Loss, Trainer
from algorithms.weights import load_weights
from replay.schema import Trajectories

METRICS = ("action_mse", "grad_norm", "imitated")
C = TypeVar("C", bound=FeatureConfig)


class ImitationAgent(FittedAgent):
    """The learner's side; a subclass says what is drawn from a batch and how its loss arises, and may name more ``metrics``.

    Args:
        parameters: by name, the network's initial ones.
        data: what ``fit`` takes from the dataset, by name, float32; part of the policy's weights.
    """

    metrics: tuple[str, ...] = METRICS  # the loss, the gradient's norm, then what ``losses`` shares

    def __init__(
        self,
        config: ImitationConfig,
        spec: AgentSpec,
        parameters: dict[str, torch.Tensor],
        data: dict[str, torch.Tensor],
    ) -> None:
        super().__init__(spec, config.matmul)
        self.data = {name: tensor.to(self.device, torch.float32) for name, tensor in data.items()}
        self.parameters = FlatParameters(parameters, self.device, extra=len(self.metrics))
        self.adam = FlatAdam(
            self.parameters.value, self.parameters.gradient, lr=config.lr, weight_decay=config.weight_decay
        )
        self.trainer = Trainer(
            self.parameters, (self.adam,), spec.collective, self.metrics, clip=config.grad_clip, clip_eps=1e-6
        )
        self.trainers = (self.trainer,)
        self._settings = config

    @abc.abstractmethod
    def losses(self, batch: Trajectories) -> Loss:
        """The summed error on one batch, its weight, and the share of the drawn steps that had weight; noise by ``uniform``."""

    def update(self, batches: Sequence[Trajectories]) -> dict[str, torch.Tensor]:
        """U updates; metrics (0-d): ``action_mse`` (a coordinate), ``grad_norm``, ``imitated`` (share of the drawn steps
        that had weight), ``learning_rate``, ``nonfinite`` (their number). A batch without weight changes nothing.

        Raises ValueError for rows of another width, RuntimeError when ``fit`` was not called.
        """
        return super().update(batches) | {"learning_rate": torch.full((), self.adam.lr, device=self.device)}

    def policy_weights(self) -> dict[str, torch.Tensor]:
        """The network's parameters, then the entries of ``data``; views, float32."""
        return {name: tensor.detach() for name, tensor in self.parameters.named.items()} | self.data

    def learning_rate(self) -> float:
        """The step size of this update, which ``updates`` counts; linear over the warm-up."""
        return self._settings.lr * min(1.0, self.updates / max(1, self._settings.warmup))

    def _step(self, batch: Trajectories) -> None:
        loss = self.losses(batch)
        self.updates += 1
        self.adam.lr = self.learning_rate()
        step = self.trainer.descend(loss)
        self.trainer.record(step, (step.loss, step.norm, *step.shared))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Parameters, Adam's moments and the data's statistics."""
        named = {f"policy.{name}": tensor for name, tensor in self.parameters.named.items()}
        named |= {f"adam.{name}": tensor for name, tensor in self.adam.state().items()}
        return named | {f"data.{name}": tensor for name, tensor in self.data.items()}


class ImitationPolicy(Generic[C]):
    """What policies of imitators share for acting: weights by name, and what an episode is asked for in ``aim``."""

    _weights: dict[str, torch.Tensor]  # of the names and shapes that ``load_weights`` takes; the subclass makes them

    def __init__(self, config: C, obs_dim: int, action_dim: int) -> None:
        """Raises ValueError with every problem of ``config`` at once."""
        config.check()
        self.config, self.obs_dim, self.action_dim, self.aim = config, obs_dim, action_dim, PlanRequest()
        self._matmul = runtime.choose(config.matmul)

    def load_weights(self, weights: dict[str, Any]) -> None:
        """Copies arrays or tensors named as in ``policy_weights``; raises ValueError on names or shapes that differ."""
        load_weights(self._weights, weights)


class Points(NamedTuple):
    """Steps drawn one by one."""

    obs_BPO: torch.Tensor  # raw
    action_BPA: torch.Tensor


class Segments(NamedTuple):
    """Windows of K consecutive steps, padded at the end where the episode ends first."""

    to_go_GK: (
        torch.Tensor
    )  # float32, sum of the rewards from this step to the episode's end, in the environment's units
    obs_GKO: torch.Tensor  # raw
    action_GKA: torch.Tensor
    time_GK: torch.Tensor  # int64, step of the episode
    valid_GK: torch.Tensor  # bool, False where padded (with the episode's last row)


def draw_points(batch: Trajectories, noise_BP: torch.Tensor, obs_dim: int, action_dim: int) -> Points:
    """P steps of each episode, uniform over it, with replacement."""
    offset, length_B = batch.offset[:-1, None], batch.offset.diff()
    rows_BPF = batch.rows_NF[offset + _pick(noise_BP, length_B)]
    return Points(rows_BPF[..., :obs_dim], rows_BPF[..., obs_dim : obs_dim + action_dim])


def draw_segments(batch: Trajectories, noise_BP: torch.Tensor, context: int, obs_dim: int, action_dim: int) -> Segments:
    """P windows of each episode, G = B P; first steps are uniform over the episode (as Chen et al., 2021, draw them)."""
    length_B1 = batch.offset.diff()[:, None]
    start_G1 = _pick(noise_BP, length_B1[:, 0]).reshape(-1, 1)
    first_G1, length_G1 = (
        x_B1.expand(-1, noise_BP.shape[1]).reshape(-1, 1) for x_B1 in (batch.offset[:-1, None], length_B1)
    )
    step_GK = start_G1 + torch.arange(context, device=start_G1.device)
    time_GK = torch.minimum(step_GK, length_G1 - 1)
    row_GK = first_G1 + time_GK
    rows_GKF = batch.rows_NF[row_GK]
    # Rewards before each row, over the whole batch; float64, so that differences of long sums keep their digits.
    before_N = torch.nn.functional.pad(batch.rows_NF[:, obs_dim + action_dim].double().cumsum(0), (1, 0))
    to_go_GK = before_N[first_G1 + length_G1] - before_N[row_GK]
    return Segments(
        to_go_GK=to_go_GK.float(),
        obs_GKO=rows_GKF[..., :obs_dim],
        action_GKA=rows_GKF[..., obs_dim : obs_dim + action_dim],
        time_GK=time_GK,
        valid_GK=step_GK < length_G1,
    )


def _pick(noise_BP: torch.Tensor, length_B: torch.Tensor) -> torch.Tensor:
    """int64 steps in [0, length), clamped because noise next to 1 times a length rounds up to it."""
    return torch.minimum((noise_BP * length_B[:, None]).long(), length_B[:, None] - 1)


@dataclasses.dataclass(kw_only=True)
class History:
    """Windows of E environments, each at its own step; entries after a window's end are finite and change nothing."""

    to_go_EK: np.ndarray  # float64, return still asked for, in the environment's units
    obs_EKO: np.ndarray  # float32, raw
    action_EKA: np.ndarray  # float32; that of the newest step is not read before ``acted``
    length_E: np.ndarray  # int64, steps in the window, 0 after ``begin``, -1 before
    step_E: np.ndarray  # int64, of the episode, the newest in the window; -1 after ``begin``
    asked_E: np.ndarray  # float64, what the episode was begun with

    @classmethod
    def empty(cls, num_envs: int, context: int, obs_dim: int, action_dim: int) -> History:
        """No environment has begun."""
        return cls(
            to_go_EK=np.zeros((num_envs, context)),
            obs_EKO=np.zeros((num_envs, context, obs_dim), np.float32),
            action_EKA=np.zeros((num_envs, context, action_dim), np.float32),
            length_E=np.full(num_envs, -1, np.int64),
            step_E=np.full(num_envs, -1, np.int64),
            asked_E=np.zeros(num_envs),
        )

    def begin(self, env_K: np.ndarray, asked: float) -> None:
        """Forgets the windows of some environments and takes what their new episodes are asked for."""
        self.length_E[env_K], self.step_E[env_K], self.asked_E[env_K] = 0, -1, asked
        for window in (self.to_go_EK, self.obs_EKO, self.action_EKA):
            window[env_K] = 0.0  # a NaN of the last episode would reach this one: 0 weight times NaN is NaN

    def observe(self, obs_EO: np.ndarray, reward_E: np.ndarray) -> None:
        """A new step in each environment; what its last action brought is no longer asked for."""
        every = np.arange(len(self.length_E))
        first_E = self.length_E == 0
        newest_E = np.where(first_E, 0, self.to_go_EK[every, self.length_E - 1] - reward_E)
        self._forget_oldest(self.length_E == self.to_go_EK.shape[1])
        self.to_go_EK[every, self.length_E] = np.where(first_E, self.asked_E, newest_E)
        self.obs_EKO[every, self.length_E] = obs_EO
        self.length_E += 1
        self.step_E += 1

    def acted(self, action_EA: np.ndarray) -> None:
        """What was done at the newest step of each."""
        self.action_EKA[np.arange(len(self.length_E)), self.length_E - 1] = action_EA

    def time_EK(self) -> np.ndarray:
        """Step of the episode at each entry of the windows, int64."""
        return (self.step_E - self.length_E + 1)[:, None] + np.arange(self.to_go_EK.shape[1])

    def _forget_oldest(self, full_E: np.ndarray) -> None:
        for window in (self.to_go_EK, self.obs_EKO, self.action_EKA):
            if full_E.all():
                window[:, :-1] = window[:, 1:]
            elif full_E.any():
                window[full_E, :-1] = window[full_E, 1:]
        self.length_E -= full_E
