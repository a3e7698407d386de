"""Settings of inference: how plans are climbed, what exploring ones ask for, when one is made again."""

from __future__ import annotations

import dataclasses

from algorithms.config import AgentConfig
from replay.option import COUNT, WIDTH_LIMIT, option

ACTING_MODES = ("prior", "st", "kl", "max")
MODES = (*ACTING_MODES, "explore")  # the last for the episodes of stages alone


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanningConfig(AgentConfig):
    """Everything between a trained model and an action. Defaults are ours unless a source is named."""

    infer_mode: str = option("kl", "name", "plan of an episode when none is asked for by name", ACTING_MODES)
    infer_steps: int = option(
        300,
        "steps",
        "Adam steps of one ascent (log of the paper's author: 100)",
        at_least=1,
        at_most=1_000_000,
        why="a plan would stay the prior's mean",
    )
    infer_max_steps: int = option(
        100,
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
        at_most=10,
        why="the ascent would not climb, or leave every number behind",
    )
    infer_kl_weight: float = option(
        0.1,
        "1/nat",
        "kl: price of a nat: linear reading counts it in standard deviations of the return, attention in how far the best is above the mean",
        at_least=0,
        why="straying from the prior would be rewarded",
    )
    infer_fresh: bool = option(
        False,
        "bool",
        "E_q of st, kl and max by a fresh draw a step, from the prior's deviation on [P]; else at q's mean",
    )
    infer_draws: int = option(
        96,
        "draws",
        "from the prior, the best of which an ascent starts at; 0: at the mean",
        **COUNT,
        at_most=WIDTH_LIMIT,
    )
    explore_target: str = option(
        "moving", "name", "y+ follows the data, or stays what it first was", ("moving", "fixed")
    )
    explore_return: float | None = option(None, "return", "y+ itself, in the environment's units; None: from the data")
    explore_gain: float = option(
        1.0,
        "1",
        "delta_y at the start, in standard errors of the return predictor",
        at_least=0.1,
        at_most=4.0,
        why="delta_y stays in this range",
    )
    explore_reach: float = option(
        6.0,
        "1",
        "how far above y+ plans ask, times how far above it exploitation predicts from their start; small shares of it more often; 0: y+",
        at_least=0,
        why="plans would ask for less than y+",
    )
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
        "when a running plan is made again: never, on a schedule, by the prediction error",
        ("none", "scheduled", "prediction-error"),
        choices_were={"prediction-error": "surprise"},
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
