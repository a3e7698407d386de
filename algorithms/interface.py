"""What every algorithm offers to learners and rollout workers, and what it takes.

Letters: U updates of a block, B batch, O observation dim, A action dim, D packed row width, E environments, K of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from replay.option import SIZE_LIMIT
from replay.schema import DataSummary, EpisodeMetadata, ReturnSummary, Trajectories

if TYPE_CHECKING:
    import torch


class Collective(Protocol):
    """Learners that share one update. The losses do not know how many there are."""

    rank: int
    world_size: int

    def mean_(self, tensor: torch.Tensor) -> None:
        """Replaces ``tensor`` in place by its mean over the learners (no gradient)."""


class Solo:
    """One learner: every reduction is the identity."""

    rank = 0
    world_size = 1

    def mean_(self, tensor: torch.Tensor) -> None:
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class AgentSpec:
    """What an agent is made for, whatever its algorithm.

    Attributes:
        obs_dim, action_dim: of the environment, flattened.
        device: where it computes.
        seed: of its initial parameters and of its noise.
        collective: the learners that share one update.
    """

    obs_dim: int
    action_dim: int
    device: torch.device | str = "cpu"
    seed: int = 0
    collective: Collective = dataclasses.field(default_factory=Solo)


class Agent(Protocol):
    """The learner's side of an algorithm: parameters, optimisers, update."""

    device: torch.device

    def update(self, rows_UBD: torch.Tensor) -> dict[str, torch.Tensor]:
        """U updates on U batches of packed float32 rows, on the agent's device.

        Never synchronises with the host. Returns 0-d tensors on the device: each metric's mean over the U updates
        (plus ``nonfinite``, the number of the updates with a non-finite loss or gradient norm, whose
        parameter steps were skipped).
        """

    def policy_weights(self) -> dict[str, torch.Tensor]:
        """What a Policy needs to act, by name, in a fixed order, float32."""

    def state(self) -> dict[str, torch.Tensor]:
        """Everything a bit-exact resume needs (parameters, optimisers, statistics, RNG, counters)."""

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Takes what ``state`` gave; a missing, surplus or misshapen entry is an error that names it."""


class Policy(Protocol):
    """The acting side of an algorithm, as a torch module and as an ONNX graph of the same function."""

    obs_dim: int
    action_dim: int
    noise_shape: tuple[int, ...]  # of one action: (K+1, A) for the bridge, (A,) for a Gaussian

    def sample_noise(self, rng: np.random.Generator, batch: int) -> np.ndarray:
        """Noise of ``batch`` exploring actions, float32 (B, *noise_shape)."""

    def act(self, obs_BO: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Actions (B, A) in [-1, 1]; all-zero noise gives the deterministic policy."""

    def load_weights(self, weights: dict[str, Any]) -> None:
        """Takes arrays or tensors by the names of ``Agent.policy_weights``."""

    def onnx_model(self) -> bytes:
        """A serialised ONNX model: inputs ``obs`` (B, O) and ``noise``, and one input for each weight under
        its name; output ``action``. Weights are graph inputs, so one session serves every version."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """What a planning policy should plan for."""

    mode: str = ""  # prior, st, kl, max, explore; "": the algorithm's default
    target_return: float | None = None  # environment units; None where the mode needs none or has a default


class PlanRequestError(ValueError):
    """A policy cannot meet a plan request; the message says what it accepts."""


def refuse_mode(who: str, mode: str) -> None:
    """PlanRequestError if a policy that makes no plans, ``who`` in words, is asked for a mode."""
    if mode:
        raise PlanRequestError(f"{who} was asked for mode {mode}, expected none: it makes no plans; drop the mode")


def real_target(target: float) -> float:
    """A return that is asked for, environment units; PlanRequestError for one that no number stands for in float32 products."""
    if not abs(target) <= SIZE_LIMIT:
        raise PlanRequestError(
            f"the target return is {target}, expected a number from -{SIZE_LIMIT:g} to {SIZE_LIMIT:g} in the environment's own "
            "units: nothing returns that; leave it out or give a number"
        )
    return target


class EpisodeAgent(Protocol):
    """The learner's side of an algorithm that learns from whole episodes. ``state`` and ``load_state`` as in Agent."""

    device: torch.device

    def fit(self, summary: DataSummary) -> None:
        """Takes the data's statistics, once, before the first update of a new run; they are part of ``state`` from then on."""

    def update(self, batches: Sequence[Trajectories]) -> dict[str, torch.Tensor]:
        """U updates on U batches (tensors on the agent's device); metrics as in Agent.update."""

    def posteriors(self) -> list[torch.Tensor]:
        """(B, P) float32 for each batch of the last ``update``, to store with its episodes; an empty list if there is none."""

    def start_finetuning(self) -> None:
        """Called once, after a base run's state was loaded and before the first stage of gathering."""

    def update_returns(self, returns: ReturnSummary) -> None:
        """Takes the returns that the shards hold, before the update on a block; the exploration target follows them."""

    def policy_weights(self) -> dict[str, torch.Tensor]:
        """What an EpisodePolicy needs to act, by name, in a fixed order, float32 (normalisers and target included)."""

    def state(self) -> dict[str, torch.Tensor]: ...

    def load_state(self, state: dict[str, torch.Tensor]) -> None: ...


class EpisodePolicy(Protocol):
    """The acting side of an algorithm that carries something through an episode: a plan, a history, a return to go.

    All arrays are float32 numpy in the environments' own units (observations raw, actions in [-1, 1]).
    """

    obs_dim: int
    action_dim: int
    aim: PlanRequest  # may be set at any time; counts from the next ``begin`` on

    def load_weights(self, weights: dict[str, Any]) -> None:
        """Takes arrays or tensors by the names of ``EpisodeAgent.policy_weights``; running episodes keep their plans."""

    def reset(self, num_envs: int) -> None:
        """Forgets everything and makes room for E environments."""

    def begin(self, env_K: np.ndarray, obs_KO: np.ndarray, rng: np.random.Generator) -> list[EpisodeMetadata]:
        """Begins episodes in the environments ``env_K`` (int64) from their first observations, all in one batch; an EpisodeMetadata
        for each, in that order, with ``episode`` -1 (the recorder knows the id). Each environment's plan depends on its own
        observation and its own draw from ``rng`` (one independent stream an environment, spawned in order), so that an
        evaluation episode does not depend on how many others run. PlanRequestError when ``aim`` cannot be followed."""

    def act(self, obs_EO: np.ndarray, reward_E: np.ndarray) -> np.ndarray:
        """Actions (E, A) in [-1, 1]. ``reward_E``: what the previous action brought, 0 at an episode's first step."""

    def state(self) -> dict[str, np.ndarray]:
        """Everything that ``load_state`` needs for the next actions to be bit-identical."""

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Takes what ``state`` gave."""
