"""Settings of the baselines that imitate: behaviour cloning, of the best episodes, return-conditioned regression, the decision transformer.

Presets ``cpu`` add the Fourier features of observations that GAC has there.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from algorithms.config import ALPHA_BUDGET, LEADING_DIMS, OCTAVES, AgentConfig
from replay.option import COUNT, DECAY, HEADS, RATE, WEIGHT, WIDTH, WIDTH_LIMIT, option

PERCENT: dict[str, Any] = {"above": 0, "at_most": 100, "why": "nobody would be imitated"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureConfig(AgentConfig):
    """What all baselines on whole episodes share: how observations are seen."""

    obs_fourier: int = option(
        0,
        "octaves",
        "Fourier features of observations, from a period of 8 units down (as GAC: 4 in preset cpu); 0: none",
        **OCTAVES,
    )
    obs_fourier_dims: int = option(
        2,
        "1",
        "leading coordinates that have them (a maze's place); 0: all",
        **LEADING_DIMS,
    )
    matmul: str = option("auto", "name", "CPU matrix products: mkl, onednn, or the faster", ("auto", "mkl", "onednn"))

    @property
    def posterior_floats(self) -> int:
        """Nothing is written back beside the episodes."""
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardConfig(FeatureConfig):
    """What those share that read the reward of each step."""

    rewards: str = option(
        "steps",
        "name",
        "steps: each as it was recorded; sum: none but their sum, at an episode's last step, all that GAC, bc, percent-bc and rvs see",
        ("steps", "sum"),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImitationConfig(FeatureConfig):
    """The optimiser that all of them share: Adam with decoupled weight decay, linear warm-up, clipped gradient."""

    lr: float = option(3e-4, "1", "Adam step size after the warm-up (Fujimoto & Gu, 2021: 3e-4)", **RATE)
    weight_decay: float = option(
        0.0, "1", "decoupled weight decay: each step shrinks parameters by lr times this", **DECAY
    )
    warmup: int = option(0, "updates", "updates over which the step size rises linearly from 0", **COUNT)
    grad_clip: float = option(
        math.inf,
        "1",
        "largest norm of the gradient; a longer one is scaled down to it",
        above=0,
        infinite=True,
        why="no step would be taken; inf clips none",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegressionConfig(ImitationConfig):
    """A feedforward network on single steps. Defaults: the networks usual on D4RL (Fujimoto & Gu, 2021)."""

    width: int = option(256, "units", "hidden units of each layer (Fujimoto & Gu, 2021: 256)", **WIDTH)
    layers: int = option(
        2, "layers", "hidden layers (Fujimoto & Gu, 2021: 2)", at_least=1, at_most=256, why="the policy would be linear"
    )
    points: int = option(
        32,
        "steps",
        "time points drawn from each episode of a batch, with replacement (ours)",
        at_least=1,
        at_most=WIDTH_LIMIT,
        why="there would be nothing to imitate",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CloningConfig(RegressionConfig):
    """Behaviour cloning of all episodes. Defaults: the networks and steps usual on D4RL (Fujimoto & Gu, 2021)."""

    percent: float = option(
        100.0, "%", "share of the dataset's episodes, by return from the top, that is imitated", **PERCENT
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PercentCloningConfig(CloningConfig):
    """Behaviour cloning of the best episodes: %BC of Chen et al. (2021), 10 % by default."""

    percent: float = option(
        10.0, "%", "share of the dataset's episodes, by return from the top, that is imitated", **PERCENT
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConditionedConfig(RegressionConfig):
    """The return-conditioned regression. Network, step size and schedule are those of GAC's preset ``linear`` (ours)."""

    lr: float = option(1e-3, "1", "Adam step size at the start (ours)", **RATE)
    lr_end: float = option(0.05, "1", "share of lr at the schedule's end, by a cosine (ours)", **WEIGHT)
    updates: int = option(
        2_000,
        "updates",
        "length of the schedule of the step size, which stays at its end after (ours)",
        at_least=1,
        why="the schedule would have no length",
    )
    width: int = option(128, "units", "hidden units of each layer (ours)", **WIDTH)
    layers: int = option(3, "layers", "hidden layers (ours)", at_least=1, at_most=256, why="the policy would be linear")
    return_noise: float = option(
        0.45, "1", "noise on the return of an episode in training, in deviations of the data's returns (ours)", **WEIGHT
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig(ImitationConfig, RewardConfig):
    """The decision transformer. Defaults: Chen et al. (2021), "Decision Transformer", for Gym MuJoCo."""

    lr: float = option(1e-4, "1", "Adam step size after the warm-up (Chen et al.: 1e-4)", **RATE)
    weight_decay: float = option(1e-4, "1", "decoupled weight decay of all parameters (Chen et al.: 1e-4)", **DECAY)
    warmup: int = option(
        10_000, "updates", "updates over which the step size rises linearly from 0 (their code: 10^4)", **COUNT
    )
    grad_clip: float = option(
        0.25,
        "1",
        "largest norm of the gradient (Chen et al.: .25)",
        above=0,
        infinite=True,
        why="no step would be taken; inf clips none",
    )
    context: int = option(
        20,
        "steps",
        "K, steps that the policy looks back on, three tokens each (Chen et al.: 20)",
        at_least=1,
        at_most=WIDTH_LIMIT,
        why="the policy would not see the present step",
    )
    width: int = option(128, "units", "width of a token (Chen et al.: 128)", **WIDTH)
    layers: int = option(
        3, "layers", "transformer blocks (Chen et al.: 3)", at_least=1, at_most=256, why="the policy would be linear"
    )
    heads: int = option(1, "heads", "attention heads of a block (Chen et al.: 1)", **HEADS)
    dropout: float = option(
        0.1,
        "1",
        "share of activations dropped in training (Chen et al.: .1)",
        at_least=0,
        below=1,
        why="nothing would be left",
    )
    segments: int = option(
        1,
        "segments",
        "windows of K steps drawn from each episode of a batch (Chen et al.: 1)",
        at_least=1,
        at_most=WIDTH_LIMIT,
        why="there would be nothing to imitate",
    )
    max_steps: int = option(
        1000,
        "steps",
        "rows of the timestep embedding; later steps share the last (theirs: 1,000)",
        at_least=1,
        at_most=10_000_000,
        why="a step would have no embedding",
    )
    target_percentile: float = option(
        100.0,
        "%",
        "return asked for when nobody names one: this percentile of the dataset's returns (ours: its best)",
        at_least=0,
        at_most=100,
        why="no return would be asked for",
    )

    def validate(self) -> list[str]:
        """Every value that cannot work, each with the consequence and a fix; empty when all is well."""
        found = super().validate()
        if self.heads >= 1 and self.width % self.heads:
            found.append(f"width is {self.width}, expected a multiple of heads ({self.heads}): heads share it evenly")
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnlineTransformerConfig(TransformerConfig):
    """The online decision transformer. Defaults: Zheng et al. (2022), "Online Decision Transformer", arXiv 2202.05607, for hopper."""

    weight_decay: float = option(5e-4, "1", "decoupled weight decay of all parameters (Zheng et al.: 5e-4)", **DECAY)
    width: int = option(512, "units", "width of a token (Zheng et al.: 512)", **WIDTH)
    layers: int = option(
        4, "layers", "transformer blocks (Zheng et al.: 4)", at_least=1, at_most=256, why="the policy would be linear"
    )
    heads: int = option(4, "heads", "attention heads of a block (Zheng et al.: 4)", **HEADS)
    alpha_init: float = option(
        0.1, "1", "temperature at the start (Zheng et al.: .1)", above=0, why="its logarithm is learned"
    )
    alpha_lr: float = option(1e-4, "1", "Adam step size of the temperature (Zheng et al.: 1e-4)", **RATE)
    target_entropy: float = option(
        -1.0, "nats", "entropy that alpha holds, per action coordinate (Zheng et al.: -1)", **ALPHA_BUDGET
    )
    explore_return: float = option(
        2.0, "1", "return asked for when gathering, in multiples of that of an evaluation (Zheng et al.: 2)", **WEIGHT
    )


def cloning_paper() -> CloningConfig:
    """The networks and step size usual in published D4RL comparisons."""
    return CloningConfig()


def cloning_cpu() -> CloningConfig:
    """The same with a larger step, for runs of minutes on a core (ours)."""
    return CloningConfig(lr=1e-3, obs_fourier=4)


def percent_cloning_paper() -> PercentCloningConfig:
    """``cloning_paper`` on the best tenth."""
    return PercentCloningConfig()


def percent_cloning_cpu() -> PercentCloningConfig:
    """``cloning_cpu`` on the best tenth."""
    return PercentCloningConfig(lr=1e-3, obs_fourier=4)


def conditioned_paper() -> ConditionedConfig:
    """Ours; no published one has this form."""
    return ConditionedConfig()


def conditioned_cpu() -> ConditionedConfig:
    """The same, with Fourier features."""
    return ConditionedConfig(obs_fourier=4)


def transformer_paper() -> TransformerConfig:
    """The settings of Chen et al. (2021) for Gym MuJoCo, unchanged; meant for a GPU."""
    return TransformerConfig()


def transformer_cpu() -> TransformerConfig:
    """The same function, narrower, with a larger step and without dropout, for runs of minutes on a core (ours)."""
    return TransformerConfig(lr=1e-3, warmup=200, grad_clip=1.0, width=64, layers=2, dropout=0.0, obs_fourier=4)


def online_transformer_paper() -> OnlineTransformerConfig:
    """The settings of Zheng et al. (2022) for hopper; meant for a GPU."""
    return OnlineTransformerConfig()


def online_transformer_cpu() -> OnlineTransformerConfig:
    """``transformer_cpu`` with the stochastic policy of Zheng et al. (ours)."""
    return OnlineTransformerConfig(
        lr=1e-3, alpha_lr=1e-3, warmup=200, grad_clip=1.0, width=64, layers=2, heads=1, dropout=0.0, obs_fourier=4
    )
