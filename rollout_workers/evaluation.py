"""What an evaluation gives."""

from __future__ import annotations

import dataclasses

import numpy as np


class EvaluationTimeout(TimeoutError):
    """An evaluation that did not end in its time."""


class BrokenEpisodes(FloatingPointError):
    """No episode of an evaluation could be finished."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What deterministic episodes of one policy gave.

    ``returns`` and ``lengths`` are those of the episodes that ended by themselves, in the order of their seeds, and so
    is every other list but ``errors``. An episode that met a NaN or an infinity has no return: it is named in ``errors``
    instead.
    """

    env_steps: int  # when the weights were made
    updates: int
    epoch: int
    version: int
    seed: int  # episode i started from seed + i
    returns: list[float]  # undiscounted
    lengths: list[int]  # env steps
    errors: list[str]
    wall_s: float
    mode: str = ""  # how plans were inferred; "" for a policy that makes none
    target: float | None = None  # return that was asked for (mean over the episodes), None where nothing was
    predicted: list[float] = dataclasses.field(
        default_factory=list
    )  # return; empty unless the policy predicts every one
    variance: list[float] = dataclasses.field(default_factory=list)  # of the prediction
    # The rest in mazes with one goal only, empty elsewhere.
    path_length: list[float] = dataclasses.field(default_factory=list)  # metres, until arrival or to the episode's end
    shortest_path: list[float] = dataclasses.field(default_factory=list)  # metres, from the start to the goal's edge
    reached: list[int] = dataclasses.field(default_factory=list)  # steps made on arrival at the goal, -1: never
    starts_in_goal: list[bool] = dataclasses.field(default_factory=list)
    paths: list[list[list[float]]] = dataclasses.field(default_factory=list)  # (steps + 1, 2) each, where recorded

    @property
    def return_mean(self) -> float:
        return float(np.mean(self.returns))

    @property
    def return_std(self) -> float:
        """Standard deviation over the episodes (of the population, not of the mean)."""
        return float(np.std(self.returns))
