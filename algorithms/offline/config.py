"""Settings of the rivals that learn values: IQL, TD3+BC, CQL, Cal-QL, RLPD. Defaults are the published ones for Gym MuJoCo.

Presets ``cpu`` add the Fourier features of observations that GAC has there.
"""

from __future__ import annotations

import dataclasses

from algorithms.config import ALPHA_BUDGET
from algorithms.imitation.config import RewardConfig
from replay.option import COUNT, DRAWS, LAYERS, RATE, SHARE, WEIGHT, WIDTH, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValueConfig(RewardConfig):
    """An ensemble of critics with slow targets and an actor, all on steps drawn from whole episodes."""

    lr: float = option(3e-4, "1", "Adam step size of the critics (all five: 3e-4)", **RATE)
    actor_lr: float = option(3e-4, "1", "Adam step size of actor and temperature (all but CQL: 3e-4)", **RATE)
    gamma: float = option(
        0.99, "1", "discount of one step (all five: .99)", at_least=0, below=1, why="values would not be finite"
    )
    tau: float = option(
        0.005,
        "1",
        "share of the networks that their slow copies take in one update (all five: .005)",
        above=0,
        at_most=1,
        why="targets would never move",
    )
    width: int = option(256, "units", "hidden units of each layer (all five: 256)", **WIDTH)
    layers: int = option(2, "layers", "hidden layers of every network (2; Cal-QL: 3)", **LAYERS)
    critics: int = option(2, "critics", "ensemble of critics (2; RLPD: 10)", at_least=1, at_most=256, why="no value")
    layer_norm: bool = option(False, "bool", "critics normalise each hidden layer (RLPD: true)")
    actor_every: int = option(1, "updates", "critic updates to one of the actor (TD3: 2, RLPD: 20)", **DRAWS)
    points: int = option(4, "steps", "drawn from each episode of a batch: 64 x 4 steps are the usual 256", **DRAWS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class IQLConfig(ValueConfig):
    """Implicit Q-learning (Kostrikov et al., 2022, arXiv 2110.06169)."""

    expectile: float = option(0.7, "1", "of Q that V regresses on (IQL: .7; in mazes .9)", **SHARE)
    temperature: float = option(
        3.0, "1", "weight of advantages in the actor's exponent (IQL: 3; in mazes 10)", **WEIGHT
    )
    return_range: float = option(
        1000.0,
        "return",
        "rewards are scaled so that the dataset's best and worst returns are this far apart (IQL: 1,000); 0: as they are",
        **WEIGHT,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TD3BCConfig(ValueConfig):
    """TD3+BC (Fujimoto & Gu, 2021, arXiv 2106.06860)."""

    actor_every: int = option(2, "updates", "critic updates to one of the actor (TD3: 2)", **DRAWS)
    alpha: float = option(2.5, "1", "weight of the value against imitation, over mean |Q| (TD3+BC: 2.5)", **WEIGHT)
    target_noise: float = option(0.2, "action", "deviation of the noise on target actions (TD3: .2)", **WEIGHT)
    noise_clip: float = option(0.5, "action", "largest such noise (TD3: .5)", **WEIGHT)
    explore_std: float = option(0.1, "action", "deviation of the noise on gathering actions (TD3: .1)", **WEIGHT)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoftConfig(ValueConfig):
    """What those with a tanh-Gaussian actor and a temperature share."""

    alpha_init: float = option(
        1.0, "1", "temperature at the start (CQL, RLPD: 1)", above=0, why="its logarithm is learned"
    )
    target_entropy: float = option(
        -1.0, "nats", "entropy that alpha holds, per action coordinate (CQL: -1; RLPD: -.5)", **ALPHA_BUDGET
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CQLConfig(SoftConfig):
    """CQL(H) (Kumar et al., 2020, arXiv 2006.04779), constants of Cal-QL's comparison (arXiv 2303.05479) in CORL."""

    actor_lr: float = option(3e-5, "1", "Adam step size of actor and temperature (CORL: 3e-5)", **RATE)
    layers: int = option(3, "layers", "hidden layers of every network (CORL: 3)", **LAYERS)
    pessimism: float = option(10.0, "1", "weight of the conservative term (CORL: 10)", **WEIGHT)
    actions: int = option(10, "actions", "sampled of each kind for the conservative term (CORL: 10)", **DRAWS)
    calibrated: bool = option(False, "bool", "values of the policy's actions count at least the return to go (Cal-QL)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalQLConfig(CQLConfig):
    """Cal-QL (Nakamoto et al., 2023, arXiv 2303.05479): CQL whose pessimism stops at the return to go."""

    calibrated: bool = option(True, "bool", "values of the policy's actions count at least the return to go (Cal-QL)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RLPDConfig(SoftConfig):
    """RLPD (Ball et al., 2023, arXiv 2302.02948): SAC with ten normalised critics, half of each batch from the dataset."""

    target_entropy: float = option(
        -0.5, "nats", "entropy that alpha holds, per action coordinate (RLPD: -.5)", **ALPHA_BUDGET
    )
    critics: int = option(10, "critics", "ensemble of critics (RLPD: 10)", at_least=1, at_most=256, why="no value")
    layer_norm: bool = option(True, "bool", "critics normalise each hidden layer (RLPD: true)")
    actor_every: int = option(20, "updates", "critic updates to one of the actor (RLPD: 20)", **DRAWS)
    least_of: int = option(
        2, "critics", "drawn for each target, the least of which counts (RLPD: 2)", **COUNT | {"at_least": 1}
    )

    def validate(self) -> list[str]:
        """Every value that cannot work, each with the consequence and a fix; empty when all is well."""
        found = super().validate()
        if 1 <= self.critics < self.least_of:
            found.append(
                f"least_of is {self.least_of}, expected at most critics ({self.critics}): so many cannot be drawn; lower it"
            )
        return found


def iql_cpu() -> IQLConfig:
    """Narrower, with larger steps, faster slow copies, the mazes' constants and unscaled rewards, for minutes on a core (ours)."""
    return IQLConfig(
        width=128, lr=1e-3, actor_lr=1e-3, tau=0.05, expectile=0.9, temperature=10.0, return_range=0.0, obs_fourier=4
    )


def td3_bc_cpu() -> TD3BCConfig:
    """Narrower, with a larger step, for runs of minutes on a core (ours)."""
    return TD3BCConfig(width=128, lr=1e-3, actor_lr=1e-3, tau=0.05, obs_fourier=4)


def cql_cpu() -> CQLConfig:
    """Narrower, with a larger step and fewer sampled actions, for runs of minutes on a core (ours)."""
    return CQLConfig(width=128, layers=2, lr=1e-3, actor_lr=3e-4, tau=0.05, actions=2, obs_fourier=4)


def cal_ql_cpu() -> CalQLConfig:
    """``cql_cpu``, calibrated."""
    return CalQLConfig(width=128, layers=2, lr=1e-3, actor_lr=3e-4, tau=0.05, actions=2, obs_fourier=4)


def rlpd_cpu() -> RLPDConfig:
    """Five narrower critics and a more frequent actor, for runs of minutes on a core (ours)."""
    return RLPDConfig(width=128, critics=5, actor_every=2, lr=1e-3, actor_lr=1e-3, tau=0.05, obs_fourier=4)
