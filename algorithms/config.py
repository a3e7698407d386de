"""Settings that the actor-critics share: the critic recipe, the schedule and, where there is one, the temperature."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from replay.option import COUNT, RATE, WIDTH, WIDTH_LIMIT, option, range_problems
from replay.task import name_of

INITIAL_ALPHA: dict[str, Any] = {"at_least": 0, "why": "its logarithm is what is learned"}
# Of Fourier features: octaves, and leading coordinates that have them; with the names that they had first.
OCTAVES: dict[str, Any] = {**COUNT, "at_most": 64, "was": "obs_waves"}
LEADING_DIMS: dict[str, Any] = {**COUNT, "at_most": 10**6, "was": "obs_wave_dims"}
ALPHA_BUDGET: dict[str, Any] = {"at_least": -1_000, "at_most": 1_000, "why": "alpha would grow or vanish without end"}
# What the presets cpu of all actor-critics share: narrow critics, larger steps, a support fitted to the rewards, Ioffe's form.
CPU: dict[str, Any] = {
    "critic_width": 256,
    "renorm_form": "ioffe",
    "critic_lr": 1e-3,
    "actor_lr": 1e-3,
    "v_min": None,
    "v_max": None,
}
# And those of softgac and its two controls: the temperature starts high, so that the actor stays broad until the critics know a few
# thousand steps, and falls fast. From the paper's .1 some seeds follow the first, wrong critics into a corner (docs/softgac.md).
WARM: dict[str, Any] = {"alpha_init": 2.0, "alpha_lr": 3e-3}


class AgentConfig:
    """How settings of an agent, a dataclass of options, are checked."""

    def validate(self) -> list[str]:
        """Every value that cannot work, each with the consequence and a fix; empty when all is well."""
        return range_problems(self)

    def check(self) -> None:
        """Raises ValueError with every problem at once; nothing is built from settings that cannot work."""
        if found := self.validate():
            raise ValueError("these settings cannot work:\n" + "\n".join(f"- {problem}" for problem in found))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CriticConfig(AgentConfig):
    """Twin C51 critics with batch renormalisation and no target network, and who updates when.

    Defaults are those of "Generative Actor-Critic with Soft Bridge Policies", arXiv 2605.08733, for Gym MuJoCo; preset paper
    takes what it sets by task from ``published_tasks``.
    """

    critic_width: int = option(2048, "units", "hidden units of each critic layer (paper: 2,048)", **WIDTH)
    critic_layers: int = option(
        2,
        "layers",
        "hidden layers of each critic (paper: 2)",
        at_least=1,
        at_most=256,
        why="batch renormalisation needs a hidden layer to act on",
    )
    atoms: int = option(
        101,
        "atoms",
        "atoms of the return distribution (paper: 101)",
        at_least=2,
        at_most=WIDTH_LIMIT,
        why="a distribution on one atom has no mean to learn",
    )
    v_min: float | None = option(
        -1600.0,
        "return",
        "lowest atom; none: fitted to the rewards (paper: -1600 on Gym MuJoCo, -200 on DMC, HumanoidBench)",
    )
    v_max: float | None = option(
        1600.0,
        "return",
        "highest atom; none: fitted to the rewards (paper: 1600 on Gym MuJoCo, 200 on DMC, HumanoidBench)",
    )
    gamma: float = option(
        0.99,
        "1",
        "discount of one step (paper: .99)",
        at_least=0,
        below=1,
        why="returns of endless episodes would not be finite",
    )
    critic_lr: float = option(3e-4, "1", "Adam step size of the critics (paper: 3e-4)", **RATE)
    actor_lr: float = option(3e-4, "1", "Adam step size of the actor (paper: 3e-4)", **RATE)
    critic_beta1: float = option(
        0.5,
        "1",
        "Adam's first decay for the critics (paper: .5; the actor and alpha keep .9)",
        at_least=0,
        below=1,
        why="Adam's average would never move",
    )
    critic_entropy: float = option(
        0.005,
        "1",
        "weight of sum p log p in the critics' loss (paper: .005)",
        at_least=0,
        why="the critics would be drawn to certainty without end",
    )
    actor_every: int = option(
        2,
        "updates",
        "critic updates to one update of actor and temperature (paper: 2)",
        at_least=1,
        at_most=1_000_000,
        why="the actor would never learn",
    )
    renorm_decay: float = option(
        0.99,
        "1",
        "decay of the running statistics of batch renormalisation (paper: .99)",
        at_least=0,
        below=1,
        why="running statistics would never move",
    )
    renorm_eps: float = option(
        1e-3,
        "1",
        "added to a variance before its root (paper: 1e-3)",
        at_least=1e-12,
        at_most=1,
        why="a constant input would be divided by zero",
    )
    renorm_r_max: float = option(
        3.0,
        "1",
        "the scale correction r stays in [1/r_max, r_max] (paper: 3)",
        at_least=1,
        why="[1/r_max, r_max] would be empty",
    )
    renorm_d_max: float = option(
        5.0,
        "1",
        "the shift correction d stays in [-d_max, d_max] (paper: 5)",
        at_least=0,
        why="[-d_max, d_max] would be empty",
    )
    renorm_warmup: int = option(
        100_000, "updates", "updates of plain batch normalisation first (paper: 100,000)", **COUNT
    )
    renorm_form: str = option(
        "crossq",
        "name",
        "batch renormalisation as in the released code of CrossQ and SoftGAC (paper: crossq), or as Ioffe has it",
        ("crossq", "ioffe"),
        former="ioffe",
    )
    precision: str = option(
        "float32",
        "name",
        "matrix products on a GPU: float32, its tensor cores' tf32, or the critics' in bf16 and all others in tf32",
        ("float32", "tf32", "bf16"),
        former="float32",
    )
    matmul: str = option("auto", "name", "CPU matrix products: mkl, onednn, or the faster", ("auto", "mkl", "onednn"))

    def validate(self) -> list[str]:
        """Every value that cannot work, each with the consequence and a fix; empty when all is well."""
        return super().validate() + _support_problems(self.v_min, self.v_max, self.atoms)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActorCriticConfig(CriticConfig):
    """The critics with a temperature that holds what the actor pays at a budget."""

    alpha_lr: float = option(1e-3, "1", "Adam step size of log alpha (paper: 1e-3)", **RATE)
    alpha_mode: str = option("auto", "name", "auto: alpha follows its budget; constant: stays", ("auto", "constant"))
    alpha_init: float = option(
        0.1,
        "1",
        "temperature at the start (paper: .1); 0 is allowed when it is constant",
        **INITIAL_ALPHA,
    )

    def validate(self) -> list[str]:
        """Every value that cannot work, each with the consequence and a fix; empty when all is well."""
        found = super().validate()
        if self.alpha_init == 0 and self.alpha_mode != "constant":
            found.append(
                f"alpha_init is {self.alpha_init} with alpha_mode {self.alpha_mode}, expected a finite number above 0 "
                "(or exactly 0 when constant): its logarithm is what is learned; the default is 0.1"
            )
        return found


def _support_problems(v_min: float | None, v_max: float | None, atoms: int) -> list[str]:
    if v_min is None and v_max is None:
        return []
    if v_min is None or v_max is None:
        return [
            f"v_min is {v_min} and v_max is {v_max}, expected two numbers or none twice: a support needs both ends; give the "
            "other bound, or set both to none for a support that is fitted to the rewards"
        ]
    if (v_max - v_min) / max(1, atoms - 1) > 1e-6 * max(abs(v_min), abs(v_max)):
        return []
    return [
        f"v_min is {v_min} and v_max is {v_max}, expected finite numbers with v_min < v_max: the critics' atoms would have "
        "no spacing; take bounds that hold every discounted return of the task, or none twice"
    ]


GYM_MUJOCO = (
    "Ant", "HalfCheetah", "Hopper", "Humanoid", "HumanoidStandup", "InvertedDoublePendulum", "InvertedPendulum", "Pusher",
    "Reacher", "Swimmer", "Walker2d",
)  # fmt: skip
ROBOTS = ("h1", "h1hand", "h1simplehand", "h1strong", "h1touch", "g1")  # HumanoidBench: h1-walk-v0, h1hand-push-v0
GYM_SUPPORT = 1600.0  # the support is [-1600, 1600]
THREE_MILLION = ("humanoid-run", "h1-hurdle")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """The paper's constants of one task."""

    suite: str
    v_max: float  # the support is [-v_max, v_max]
    bridge_width: int  # units
    steps: int  # env steps of a run


def published(env_id: str) -> Published | None:
    """What the paper sets for ``env_id``; None for a task of a suite that it does not name."""
    namespace, _, name = re.sub(r"-v\d+$", "", name_of(env_id)).rpartition("/")
    steps = 3_000_000 if name in THREE_MILLION else 1_000_000
    if namespace == "dm_control":
        dog = name.split("-")[0] == "dog"
        return Published(suite="DMC", v_max=200.0, bridge_width=256 if dog else 512, steps=steps)
    if not namespace and name.split("-")[0] in ROBOTS and "-" in name:
        return Published(suite="HumanoidBench", v_max=200.0, bridge_width=512, steps=steps)
    if not namespace and name in GYM_MUJOCO:
        return Published(suite="Gym MuJoCo", v_max=GYM_SUPPORT, bridge_width=512, steps=1_000_000)
    return None
