"""The return y+ that an exploring plan asks for, and what becomes of a target that nobody has reached.

The paper's y+ is a high quantile of the returns held plus a delta_y set by hand ("Generative Actor Critic", arXiv
2512.21527). Here delta_y is a gain times the predictor's own standard error, and the gain is a trust region's: it grows
after a stage that reached what was asked and shrinks after one that missed it (ours).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from algorithms.gac.config import ALIKE
from algorithms.gac.planning import PlanningConfig
from algorithms.interface import real_target
from replay.schema import ReturnSummary

# All of these are ours.
GROW = 1.5  # factor on the gain after a stage that reached its target
SHRINK = 0.5  # factor after one that missed it by a standard error
LEAST_GAIN, LARGEST_GAIN = 0.1, 4.0
LEAST_EPISODES = 10  # of a stage, to say that they are all alike
TARGET_MARGIN = 0.1  # how far outside the returns seen, in their range, is still inside
QUANTILE, MARGIN = 99, 1.5  # a prediction error is large above MARGIN times this percentile of those on the data
REST = 10  # steps after a plan in which it is not acted on


class Target(NamedTuple):
    """What an agent keeps from one summary to the next; three numbers, so that a checkpoint can hold it."""

    value: float  # y+ in the environment's units; NaN before any return is known
    gain: float  # delta_y in standard errors of the predictor
    stage: int  # newest online stage whose outcome the gain has followed


def first_target(config: PlanningConfig) -> Target:
    """The state before any return is known."""
    return asked_for(config, Target(value=math.nan, gain=config.explore_gain, stage=0))


def asked_for(config: PlanningConfig, target: Target) -> Target:
    """``target``, or the return that was set by hand, whatever was asked for before."""
    return target if config.explore_return is None else target._replace(value=config.explore_return)


def next_target(config: PlanningConfig, returns: ReturnSummary, previous: Target, *, uncertainty: float) -> Target:
    """y+ after the shards' newest summary. Pure: calling it again with the same summary changes nothing.

        y+ = max(quantile, mean of the newest stage) + gain * uncertainty

    All returns are in the environment's units, so that a model that is normalised anew asks for the same return.

    Args:
        returns: of the shards; ``quantile`` NaN (nothing held) leaves the target as it is.
        uncertainty: the predictor's standard error on the data, environment units; NaN adds no delta.
    """
    gain = _judged(returns, previous, uncertainty)
    stage = returns.stage if _over(returns, previous) else previous.stage
    value = previous.value
    settled = not math.isnan(value) and config.explore_target == "fixed"
    if not (settled or math.isnan(returns.quantile)):
        delta = 0.0 if math.isnan(uncertainty) else gain * uncertainty
        known = [level for level in (returns.quantile, returns.stage_mean) if not math.isnan(level)]
        value = max(known) + delta
    return asked_for(config, Target(value, gain, stage))


def _judged(returns: ReturnSummary, previous: Target, uncertainty: float) -> float:
    """The gain after a stage that is over: as a trust region's radius after a step."""
    if not _over(returns, previous):
        return previous.gain
    missed_by = returns.stage_target - returns.stage_reached
    gain = previous.gain
    if missed_by <= 0:
        gain *= GROW
    elif math.isnan(uncertainty) or missed_by > uncertainty:
        gain *= SHRINK
    return min(max(gain, LEAST_GAIN), LARGEST_GAIN)


def _over(returns: ReturnSummary, previous: Target) -> bool:
    """Whether a stage has been gathered whose outcome the gain has not followed yet."""
    return returns.stage > previous.stage and not math.isnan(returns.stage_target - returns.stage_reached)


def exploration(returns: ReturnSummary, data_std: torch.Tensor) -> dict[str, torch.Tensor]:
    """How the episodes of the newest stage differ, once it is over; empty before.

    explore_spread: deviation of their returns, in ``data_std``, the deviation of the data's. explore_collapse: 1 where they are all
    alike, miss their target and stay below the best return known: a stage that reaches the best has nothing left to explore.
    """
    missed_by = returns.stage_target - returns.stage_reached
    if not returns.stage or math.isnan(missed_by):
        return {}
    spread, below = returns.stage_std / data_std, (returns.best - returns.stage_mean) / data_std
    judged = missed_by > 0 and returns.stage_episodes >= LEAST_EPISODES
    return {"explore_spread": spread, "explore_collapse": ((spread < ALIKE) & (below > ALIKE)).float() * judged}


def settle_target(target: float, low: float, high: float) -> tuple[float, str]:
    """The return that is asked for, and what to tell the user about one outside the data ("": nothing).

    Args:
        target: asked for, environment units.
        low, high: returns that the predictor has seen; NaN where that is not known, then nothing is outside.

    Raises:
        PlanRequestError: a target that is not finite, or beyond SIZE_LIMIT.
    """
    real_target(target)
    least, most = return_range(low, high)
    if math.isnan(most) or least <= target <= most:
        return target, ""
    return target, (
        f"target return {target:g} is outside the returns {low:g} to {high:g} that the predictor was trained on: what it "
        f"predicts there is a guess; ask for {least:g} to {most:g} to stay inside"
    )


def return_range(low: float, high: float) -> tuple[float, float]:
    """The returns that count as inside the data: those seen, and TARGET_MARGIN of their range on either side."""
    margin = TARGET_MARGIN * (high - low)
    return low - margin, high + margin


def prediction_error(error_NO: np.ndarray, precision_O: np.ndarray) -> np.ndarray:
    """Mean over O of squared errors of z-scored observations, each by its own precision, (N,) float32."""
    return (np.square(error_NO) * precision_O).mean(-1, dtype=np.float32)


def band_edge(quantiles: np.ndarray) -> float:
    """The error above which a step is outside the band; ``quantiles`` (101,): percentiles of the errors on the data.

    Raises ValueError while the model has not been calibrated: no error could be called large.
    """
    if not np.isfinite(quantiles).all():
        raise ValueError(
            "replan=prediction-error needs a calibrated model, and this one's error quantiles are unknown: no error could be "
            "called large; train it (or replan=scheduled, replan=none)"
        )
    return float(quantiles[QUANTILE] * MARGIN)


class Trigger:
    """Watches E environments, each at its own step; ``fired`` says whose plan is to be made again now.

    ``edge`` and ``precision_O`` are the model's and set by who has it.
    """

    def __init__(self, config: PlanningConfig, num_envs: int, obs_dim: int) -> None:
        self.config, self.edge = config, np.inf
        self.precision_O = np.ones(obs_dim, np.float32)  # of the predictions, one over their variance
        self.since_E = np.zeros(num_envs, np.int64)  # steps since the plan in force was made
        self.expected_EO = np.zeros((num_envs, obs_dim), np.float32)  # of the normalised observation of now

    @property
    def watches(self) -> bool:
        """Whether predictions are needed."""
        return self.config.replan == "prediction-error"

    def begin(self, env_K: np.ndarray) -> None:
        """A new plan is in force in ``env_K``: what was expected under the old one counts no more."""
        self.since_E[env_K] = 0

    def fired(self, obs_EO: np.ndarray) -> np.ndarray:
        """The environments (K,) int64 to plan again, given the normalised observations of now.

        To be called once a step, before ``step``.
        """
        if self.config.replan == "scheduled":
            return np.flatnonzero(self.since_E >= self.config.replan_every)
        if not self.watches:
            return np.zeros(0, np.int64)
        outside_E = prediction_error(self.expected_EO - obs_EO, self.precision_O) > self.edge
        return np.flatnonzero(outside_E & (self.since_E >= REST))

    def step(self, expected_EO: np.ndarray | None) -> None:
        """One step is taken; ``expected_EO`` is what the plans say of the normalised observation of the next."""
        if self.watches and expected_EO is not None:
            self.expected_EO[:] = expected_EO
        self.since_E += 1


UNKNOWN = -3e38  # in float32's range, far beyond any return or error


def encode_nan(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of ``tensor`` (float) with UNKNOWN where it has NaN."""
    return torch.where(tensor.isnan(), UNKNOWN, tensor)


def decode_nan(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of ``tensor`` (float) with NaN where it has UNKNOWN."""
    return torch.where(tensor < UNKNOWN / 2, math.nan, tensor)
