"""Settings of FLAC, FlowRL, QSM, QVPO and DIME. Defaults, preset paper, are those of SoftGAC's comparison
(arXiv 2605.08733), meant for a GPU; presets cpu have narrow networks and larger steps, for a core or two (ours).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from algorithms.config import ALPHA_BUDGET, CPU, INITIAL_ALPHA, ActorCriticConfig, CriticConfig
from replay.option import COUNT, FOLLOW, LAYERS, WEIGHT, WIDTH, option

STEPS: dict[str, Any] = {"at_least": 1, "at_most": 1_000, "why": "an action would be noise alone, or take too long"}
DRAWS: dict[str, Any] = {"at_least": 1, "at_most": 4_096, "why": "there would be nothing to choose from"}
# Preset cpu of all five: what preset cpu of softgac has, for a core or two. Its critics' support is fitted to the rewards, so that
# the returns that they allow are 800 units, where those of the paper's DMC tasks are 100: what is weighed against Q is weighed by
# UNITS to the same effect, unless a temperature learns it soon.
UNITS = 8.0
NARROW: dict[str, Any] = CPU | {"actor_width": 128}


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The actor's network."""

    actor_width: int = option(512, "units", "hidden units of each actor layer (paper: 512; DIME: 256)", **WIDTH)
    actor_layers: int = option(2, "layers", "hidden layers of the actor (paper: 2; DIME: 3)", **LAYERS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FLACConfig(ActorCriticConfig, NetworkConfig):
    """A velocity field whose kinetic energy is held at a budget."""

    flow_steps: int = option(1, "steps", "midpoint steps from noise to action, two passes each (paper: 1)", **STEPS)
    alpha_init: float = option(
        1.0,
        "1",
        "temperature at the start (paper: 1); 0 is allowed when it is constant",
        **INITIAL_ALPHA,
    )
    alpha_lr: float = option(3e-5, "1", "Adam step size of log alpha (paper: 3e-5)", above=0, at_most=1)
    target_energy: float = option(0.5, "nats", "kinetic energy that alpha holds, per coordinate (paper: .5)", **WEIGHT)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowRLConfig(CriticConfig, NetworkConfig):
    """A velocity field that is drawn to the better actions of the replay."""

    flow_steps: int = option(1, "steps", "midpoint steps from noise to action, two passes each (paper: 1)", **STEPS)
    behaviour_width: int = option(512, "units", "hidden units of the replay's critic and value (paper: 512)", **WIDTH)
    behaviour_layers: int = option(3, "layers", "hidden layers of the replay's critic and value (paper: 3)", **LAYERS)
    expectile: float = option(
        0.9,
        "1",
        "expectile of the replay's critic that its value learns (paper: .9)",
        above=0,
        below=1,
        why="the value would follow nothing",
    )
    behaviour_copy: float = option(
        0.95,
        "1",
        "share of the replay's critic that its slow copy takes over at each step of the actor (paper: .95)",
        **FOLLOW,
    )
    match_weight: float = option(0.1, "1", "weight of the flow-matching loss (paper: .1)", **WEIGHT)
    match_least: float = option(1e-3, "1", "smallest weight of a row's flow-matching loss (paper: .001)", **WEIGHT)
    match_most: float = option(1.0, "1", "largest weight of a row's flow-matching loss (paper: 1)", **WEIGHT)


@dataclasses.dataclass(frozen=True, kw_only=True)
class QSMConfig(CriticConfig, NetworkConfig):
    """A denoiser whose prediction follows the critics' gradient."""

    diffusion_steps: int = option(5, "steps", "T, denoising steps, a pass each (paper: 5)", **STEPS)
    q_scale: float = option(50.0, "1", "the prediction's target is this times -dQ/da (paper: 50)", **WEIGHT)
    target_noise: float = option(0.1, "1", "standard deviation of noise on next actions (paper: .1)", **WEIGHT)


@dataclasses.dataclass(frozen=True, kw_only=True)
class QVPOConfig(CriticConfig, NetworkConfig):
    """A denoiser that learns the best of its own samples, weighted by their advantage."""

    diffusion_steps: int = option(16, "steps", "T, denoising steps, a pass each (paper: 16)", **STEPS)
    candidates: int = option(4, "actions", "samples of which the best acts, and is the next action (paper: 4)", **DRAWS)
    train_samples: int = option(64, "actions", "samples a state in the actor's update (paper: 64)", **DRAWS)
    slow_rate: float = option(
        0.005,
        "1",
        "share of the actor that its slow copy, which gives the next actions, takes over in an update (paper: .005)",
        **FOLLOW,
    )
    uniform_actions: int = option(
        10, "actions", "uniform actions beside each sample (paper: 10)", **COUNT, at_most=4_096
    )
    entropy_weight: float = option(0.02, "1", "weight of the uniform actions at the start (paper: .02)", **WEIGHT)
    entropy_least: float = option(0.002, "1", "weight of the uniform actions at the end (paper: .002)", **WEIGHT)
    entropy_updates: int = option(
        2_000_000,
        "updates",
        "over which the weight of the uniform actions goes from its start to its end in a line; unless set, those of the run: "
        "steps x replay.replay_ratio (paper: those of the run)",
        at_least=1,
        why="the line would have no length",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DIMEConfig(ActorCriticConfig, NetworkConfig):
    """A denoising diffusion with a bound of its entropy as the cost."""

    actor_width: int = option(256, "units", "hidden units of each actor layer (paper: 256)", **WIDTH)
    actor_layers: int = option(3, "layers", "hidden layers of the actor (paper: 3)", **LAYERS)
    diffusion_steps: int = option(16, "steps", "T, steps of the diffusion, a pass each (paper: 16)", **STEPS)
    prior_std: float = option(
        2.5,
        "1",
        "standard deviation of the start, before tanh (paper: 2.5)",
        at_least=1e-3,
        at_most=1e3,
        why="every path would start at the edge, or at one point",
    )
    alpha_init: float = option(
        1.0,
        "1",
        "temperature at the start (paper: 1); 0 is allowed when it is constant",
        **INITIAL_ALPHA,
    )
    target_cost: float = option(
        4.0,
        "nats",
        "run cost that alpha holds, per coordinate (paper: 4)",
        **ALPHA_BUDGET,
    )


def flac_cpu() -> FLACConfig:
    """Narrow networks and larger steps, for a core or two (ours)."""
    return FLACConfig(**NARROW, alpha_init=UNITS, alpha_lr=3e-3)


def flowrl_cpu() -> FlowRLConfig:
    """Narrow networks and larger steps, for a core or two (ours)."""
    return FlowRLConfig(
        **NARROW, behaviour_width=128, match_weight=0.1 * UNITS, match_least=1e-3 * UNITS, match_most=UNITS
    )


def qsm_cpu() -> QSMConfig:
    """Narrow networks and larger steps, for a core or two (ours)."""
    return QSMConfig(**NARROW, q_scale=50.0 / UNITS)


def qvpo_cpu() -> QVPOConfig:
    """Narrow networks, larger steps and a quarter of the samples, for a core or two (ours)."""
    return QVPOConfig(**NARROW, train_samples=16, entropy_updates=25_000)


def dime_cpu() -> DIMEConfig:
    """Narrow networks and larger steps, for a core or two (ours)."""
    return DIMEConfig(**NARROW, alpha_lr=3e-3)
