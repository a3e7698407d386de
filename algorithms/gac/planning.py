"""Settings of inference: how plans are climbed, what exploring ones ask for, when one is made again."""

from __future__ import annotations

import dataclasses

from replay.option import COUNT, LOG_VARIANCE, WIDTH_LIMIT, option, range_problems

MODES = ("prior", "st", "kl", "max", "explore")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanningConfig:
    """Everything between a trained model and an action. Defaults are ours unless a source is named."""

    infer_mode: str = option("kl", "name", "plan of an episode when none is asked for by name", MODES)
    infer_steps: int = option(
        60,
        "steps",
        "Adam steps of one ascent (log of the paper's author: 100)",
        at_least=1,
        at_most=1_000_000,
        why="a plan would stay the prior's mean",
    )
    infer_max_steps: int = option(
        30,
        "steps",
        "the same for max, which their number holds back",
        at_least=1,
        at_most=1_000_000,
        why="a plan would stay the prior's mean",
    )
    infer_lr: float = option(
        0.1,
        "1",
        "Adam step size of the ascent (the log: .8, which leaves the manifold)",
        above=0,
        at_most=100,
        why="the ascent would not climb",
    )
    infer_kl_weight: float = option(
        0.01,
        "1/nat",
        "kl: price of a nat, in standard deviations of the return",
        at_least=0,
        why="straying from the prior would be rewarded",
    )
    infer_target_variance: float = option(
        0.01,
        "1",
        "st, explore: variance of y+ about r(z), in normalised returns; a learned one explains y+ away",
        at_least=1e-8,
        why="the target would be infinitely sharp",
    )
    infer_target_kl_weight: float = option(
        1.0,
        "1",
        "st, explore: weight of KL(q || prior) (paper: 1)",
        at_least=0,
        why="straying from the prior would be rewarded",
    )
    infer_log_variance: float = option(
        0.0, "log", "log variance of q when the ascent begins (0: q is the prior)", **LOG_VARIANCE
    )
    infer_noise: str = option(
        "mean",
        "name",
        "where E_q is taken: q's mean, one draw reused, or a fresh one a step",
        ("mean", "reused", "fresh"),
    )
    infer_start: str = option(
        "search",
        "name",
        "q's mean begins at 0, at the best draw from the prior, or at a beam search's",
        ("mean", "best", "search"),
    )
    infer_beam: int = option(
        16,
        "plans",
        "width of the beam; search falls back on best where tokens are not in order",
        at_least=1,
        at_most=WIDTH_LIMIT,
        why="no plan would be kept",
    )
    infer_branches: int = option(
        6,
        "draws",
        "tried after each plan of the beam; best looks at beam times branches",
        at_least=1,
        at_most=WIDTH_LIMIT,
        why="no plan would go on",
    )
    infer_radius: float = option(
        2.0,
        "1",
        "a token of q's mean stays within this times sqrt(d); 0: anywhere",
        at_least=0,
        why="a radius cannot be negative",
    )
    infer_caution: float = option(1.0, "1", "standard deviations between return heads that a search leaves aside")
    infer_bounded: bool = option(
        True,
        "bool",
        "kl, max: no plan is believed to bring more than the best gathered, once that is above the dataset's",
    )
    infer_sample: bool = option(
        False, "bool", "st, kl, max act by a draw from q and not by its mean; prior always draws"
    )
    infer_target: str = option(
        "best", "name", "st without a target asks for the best return seen, or is refused", ("best", "required")
    )
    infer_target_reach: float = option(
        2.0,
        "1",
        "best: as far above the dataset's mean as its best return, times this, or the best return gathered if that is more",
    )
    infer_target_policy: str = option(
        "warn", "name", "a target outside the returns seen: warned of, clipped, or taken", ("warn", "clip", "go_on")
    )
    infer_target_margin: float = option(
        0.1,
        "1",
        "how far outside, in ranges of the returns seen, is still inside",
        at_least=0,
        why="returns that were seen would count as unseen",
    )
    explore_target: str = option(
        "moving", "name", "y+ follows the data, or stays what it first was", ("moving", "fixed")
    )
    explore_return: float | None = option(None, "return", "y+ itself, in the environment's units; None: from the data")
    explore_gain: float = option(
        1.0,
        "1",
        "delta_y at the start, in standard errors of the return predictor",
        at_least=0,
        why="the target would fall below the data's own",
    )
    explore_gain_low: float = option(
        0.1, "1", "least delta_y, in the same", at_least=0, why="the target would fall below the data's own"
    )
    explore_gain_high: float = option(
        4.0, "1", "largest delta_y, in the same", at_least=0, why="the target would fall below the data's own"
    )
    explore_grow: float = option(
        1.5,
        "1",
        "factor on delta_y after a stage that reached its target",
        at_least=1,
        why="reaching a target would make the next one easier",
    )
    explore_shrink: float = option(
        0.5,
        "1",
        "factor on delta_y after one that missed it by a standard error",
        at_least=0,
        why="the target would fall below the data's own",
    )
    explore_reach: float = option(
        6.0,
        "1",
        "how far above y+ plans ask, times how far above it exploitation predicts from their start; small shares of it more often; 0: y+",
        at_least=0,
        why="plans would ask for less than y+",
    )
    explore_noise: str = option(
        "fresh", "name", "where an exploring ascent takes E_q (see infer_noise)", ("mean", "reused", "fresh")
    )
    explore_log_variance: float = option(
        -3.0, "log", "log variance of an exploring q when its ascent begins", **LOG_VARIANCE
    )
    explore_sample: bool = option(True, "bool", "exploring plans are drawn from q (paper), not its mean")
    explore_action_std: float = option(
        0.4,
        "action",
        "an exploring episode's actions have noise of a deviation drawn from 0 to this; 0: none",
        at_least=0,
        why="a deviation cannot be negative",
    )
    replan: str = option(
        "none",
        "name",
        "when a running plan is made again: never, on a schedule, on surprise",
        ("none", "scheduled", "surprise"),
    )
    replan_from: str = option(
        "here", "name", "here: as if the episode began; start: Eq. 3, given the steps so far", ("here", "start")
    )
    replan_every: int = option(
        50,
        "steps",
        "between two plans of one episode under the schedule",
        at_least=1,
        why="there is no step between two plans",
    )
    replan_rest: int = option(10, "steps", "surprise is not acted on sooner than this after a plan", **COUNT)
    replan_signal: str = option(
        "jump",
        "name",
        "surprise is the prediction error's jump in one step, or its level (as with horizon 1)",
        ("jump", "level"),
    )
    replan_quantile: int = option(
        99,
        "percent",
        "of the calibrated errors: the edge of the band",
        at_least=0,
        at_most=100,
        why="it is a percentage",
    )
    replan_margin: float = option(
        1.5, "1", "an error leaves the band above this times its edge", above=0, why="every step would be a surprise"
    )
    replan_patience: int = option(
        1, "steps", "in a row outside the band before it is acted on", at_least=1, why="every step would be a surprise"
    )
    replan_history: int = option(
        32,
        "steps",
        "newest steps whose likelihood Eq. 3 counts",
        at_least=1,
        at_most=1_000_000,
        why="Eq. 3 would know nothing of the steps so far",
    )
    replan_weight: float = option(
        1.0, "1", "weight of that likelihood (paper: 1)", at_least=0, why="plans would be chosen against what happened"
    )

    def planning_problems(self) -> list[str]:
        """Every value here that cannot work, each with the consequence and a fix; empty when all is well."""
        found = range_problems(self)
        if not self.explore_gain_low <= self.explore_gain <= self.explore_gain_high:
            found.append(
                f"explore_gain is {self.explore_gain}, expected a number from explore_gain_low {self.explore_gain_low} to "
                f"explore_gain_high {self.explore_gain_high}: delta_y could not start there; widen the range or move it"
            )
        return found
