"""Settings of SAC and of CrossQ-SAC."""

from __future__ import annotations

import dataclasses

from algorithms.config import ALPHA_BUDGET, CPU, WARM, ActorCriticConfig
from replay.option import WIDTH, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class SACConfig(ActorCriticConfig):
    """A tanh-Gaussian actor with SoftGAC's critics, temperature and schedule: a control of ours.

    It is not the paper's control: that is CrossQConfig.
    """

    actor_width: int = option(256, "units", "hidden units of each actor layer (SAC: 256)", **WIDTH)
    actor_layers: int = option(
        2,
        "layers",
        "hidden layers of the actor (SAC: 2)",
        at_least=1,
        at_most=256,
        why="the actor would not see the observation",
    )
    target_entropy: float = option(
        -1.0,
        "nats",
        "entropy that alpha holds, per action coordinate (SAC: -1)",
        **ALPHA_BUDGET,
    )
    log_std_min: float = option(
        -20.0,
        "1",
        "lowest log standard deviation (SAC: -20)",
        at_least=-40,
        at_most=20,
        why="no float32 holds such a standard deviation",
    )
    log_std_max: float = option(
        2.0,
        "1",
        "highest log standard deviation (SAC: 2)",
        at_least=-40,
        at_most=20,
        why="no float32 holds such a standard deviation",
    )

    def validate(self) -> list[str]:
        """Every value that cannot work, each with the consequence and a fix; empty when all is well."""
        found = super().validate()
        if not self.log_std_min < self.log_std_max:
            found.append(
                f"log_std_min is {self.log_std_min} and log_std_max is {self.log_std_max}, expected finite numbers in "
                "rising order: no standard deviation would be allowed; the defaults are -20 and 2"
            )
        return found


def paper() -> SACConfig:
    """The paper's critics at full width under our actor, which the paper does not have; meant for a GPU."""
    return SACConfig()


def cpu() -> SACConfig:
    """The same equations with narrow critics, a larger step and a support fitted to the rewards, for a core or two (ours)."""
    return SACConfig(**CPU, **WARM)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossQConfig(SACConfig):
    """CrossQ-SAC, the paper's control: its actor has batch renormalisation, with the settings of the critics' (``renorm_*``).

    Defaults: the paper's control; meant for a GPU.
    """

    actor_width: int = option(512, "units", "hidden units of each actor layer (paper: 512)", **WIDTH)


def crossq_cpu() -> CrossQConfig:
    """Narrow networks, a larger step and a support fitted to the rewards, for a core or two (ours)."""
    return CrossQConfig(**CPU, **WARM, actor_width=128)
