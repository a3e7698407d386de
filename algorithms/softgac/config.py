"""Settings of SoftGAC."""

from __future__ import annotations

import dataclasses
import math

from algorithms.config import CPU, WARM, ActorCriticConfig
from replay.option import WIDTH, WIDTH_LIMIT, option

# Constants of the method
EDGE = 1.0 - 1e-6  # the base law's U stays inside (-EDGE, EDGE), so that atanh is finite
BASE_STD = math.pi / math.sqrt(12.0)  # of atanh(U); the Gaussian base law takes the same
VARIANCE_FLOOR = 1e-6  # added to sigma^2 in the energy alone, so that its logarithm stays finite


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoftGACConfig(ActorCriticConfig):
    """The soft bridge and its control-energy budget, on top of the shared critic recipe (arXiv 2605.08733)."""

    bridge_steps: int = option(
        6,
        "steps",
        "K, steps of the bridge, each with its own network (paper: 6)",
        at_least=1,
        at_most=256,
        why="the action would be the base law's draw",
    )
    bridge_width: int = option(
        512, "units", "hidden units of each step's network (paper: 512; 256 for DMC's dog)", **WIDTH
    )
    input_norm: str = option(
        "layer_norm",
        "name",
        "how a step's input is normalised: over (s, z) (paper: layer_norm), or s by the critics' running mean and variance",
        ("layer_norm", "running"),
        former="layer_norm",
    )
    base_law: str = option("logistic", "name", "law of z_0 (paper: logistic)", ("logistic", "gaussian"))
    particles: int = option(
        1,
        "paths",
        "P, paths a state in the actor update (paper: 1)",
        at_least=1,
        at_most=WIDTH_LIMIT,
        why="the actor would have nothing to learn from",
    )
    antithetic: bool = option(
        False, "bool", "actor paths in mirrored pairs (z_0, eps), (-z_0, -eps); particles is even"
    )
    rho: float = option(
        0.2,
        "nats",
        "control-energy budget per bridge step and action coordinate (paper: .2)",
        at_least=0,
        why="control energy is never negative, so alpha would grow without end",
    )

    def validate(self) -> list[str]:
        """Every value that cannot work, each with the consequence and a fix; empty when all is well."""
        found = super().validate()
        if self.antithetic and self.particles % 2:
            found.append(
                f"antithetic is on with particles {self.particles}, expected an even number: a path would have no "
                f"mirror image; set particles={self.particles + 1} or antithetic=false"
            )
        return found


def paper() -> SoftGACConfig:
    """The paper's settings, those for Gym MuJoCo where they differ by task; meant for a GPU."""
    return SoftGACConfig()


def cpu() -> SoftGACConfig:
    """Narrow networks, larger steps, a support fitted to the rewards and inputs that keep their scale, for a core or two (ours).

    Its budget is looser than the paper's .2, and the temperature starts high (``WARM``): docs/softgac.md has what each is worth.
    """
    return SoftGACConfig(**CPU, **WARM, bridge_width=64, input_norm="running", rho=0.5)
