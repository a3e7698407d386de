"""The return y+ that an exploring plan asks for, and what becomes of a target that nobody has reached.

The paper's y+ is a high quantile of the returns held plus a delta_y set by hand ("Generative Actor Critic", arXiv
2512.21527). Here delta_y is a gain times the predictor's own standard error, and the gain is a trust region's: it grows
after a stage that reached what was asked and shrinks after one that missed it (ours).
"""

from __future__ import annotations

import math
from typing import NamedTuple

from algorithms.gac.planning import PlanningConfig
from algorithms.interface import PlanRequestError
from replay.trajectories import ReturnSummary


class Target(NamedTuple):
    """What an agent keeps from one summary to the next; three numbers, so that a checkpoint can hold it."""

    value: float  # y+ in the environment's units; NaN before any return is known
    gain: float  # delta_y in standard errors of the predictor
    stage: int  # newest online stage whose outcome the gain has followed


def first_target(config: PlanningConfig) -> Target:
    """The state before any return was heard of."""
    return asked_for(config, Target(value=math.nan, gain=config.explore_gain, stage=0))


def asked_for(config: PlanningConfig, target: Target) -> Target:
    """``target``, or the return that was set by hand, whatever was asked for before."""
    return target if config.explore_return is None else target._replace(value=config.explore_return)


def next_target(
    config: PlanningConfig,
    returns: ReturnSummary,
    previous: Target,
    *,
    uncertainty: float,
    exploited: float = math.nan,
) -> Target:
    """y+ after the shards' newest summary. Pure: calling it again with the same summary changes nothing.

        y+ = max(quantile, mean of the newest stage, exploited) + gain * uncertainty

    All returns are in the environment's units, so that a model that is normalised anew asks for the same return.

    Args:
        returns: of the shards; ``quantile`` NaN (nothing held) leaves the target as it is.
        uncertainty: the predictor's standard error on the data, environment units; NaN adds no delta.
        exploited: return of exploitation where it is known, NaN where not: asking for less would teach nothing.
    """
    gain = _judged(config, returns, previous, uncertainty)
    stage = max(previous.stage, returns.stage)
    value = previous.value
    settled = not math.isnan(value) and config.explore_target == "fixed"
    if not (settled or math.isnan(returns.quantile)):
        delta = 0.0 if math.isnan(uncertainty) else gain * uncertainty
        known = [level for level in (returns.quantile, returns.stage_mean, exploited) if not math.isnan(level)]
        value = max(known) + delta
    return asked_for(config, Target(value, gain, stage))


def _judged(config: PlanningConfig, returns: ReturnSummary, previous: Target, uncertainty: float) -> float:
    """The gain after a stage that is over: as a trust region's radius after a step."""
    outcome_known = returns.stage_episodes > 0 and not math.isnan(returns.stage_target - returns.stage_mean)
    if returns.stage <= previous.stage or not outcome_known:
        return previous.gain
    missed_by = returns.stage_target - returns.stage_mean
    gain = previous.gain
    if missed_by <= 0:
        gain *= config.explore_grow
    elif math.isnan(uncertainty) or missed_by > uncertainty:
        gain *= config.explore_shrink
    return min(max(gain, config.explore_gain_low), config.explore_gain_high)


def settle_target(config: PlanningConfig, target: float, low: float, high: float) -> tuple[float, str]:
    """The return that is really asked for, and what to tell the user ("": nothing).

    Args:
        target: asked for, environment units.
        low, high: returns that the predictor has seen; NaN where that is not known, then nothing is outside.

    Raises:
        PlanRequestError: a target that is not finite.
    """
    if not math.isfinite(target):
        raise PlanRequestError(
            f"the target return is {target}, expected a finite number in the environment's own units: "
            "no plan has it; leave it out or give a number"
        )
    least, most = return_range(config, low, high)
    inside = min(max(target, least), most)
    if math.isnan(most) or inside == target or config.infer_target_policy == "go_on":
        return target, ""
    seen = f"target return {target:g} is outside the returns {low:g} to {high:g} that the predictor was trained on"
    if config.infer_target_policy == "clip":
        return inside, f"{seen}: {inside:g} is asked for instead; infer_target_policy=go_on takes it as it is"
    return target, f"{seen}: what it predicts there is a guess; infer_target_policy=clip would ask for {inside:g}"


def return_range(config: PlanningConfig, low: float, high: float) -> tuple[float, float]:
    """The returns that count as inside the data: those seen, and ``infer_target_margin`` of their range on either side."""
    margin = config.infer_target_margin * (high - low)
    return low - margin, high + margin
