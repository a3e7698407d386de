"""Settings of the baselines that imitate: behaviour cloning, cloning of the best episodes, the decision transformer."""

from __future__ import annotations

import dataclasses
import math

from replay.option import option, too_low


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImitationConfig:
    """The optimiser that all of them share: Adam with decoupled weight decay, linear warm-up, clipped gradient."""

    lr: float = option(3e-4, "1", "Adam step size after the warm-up (Fujimoto & Gu, 2021: 3e-4)")
    weight_decay: float = option(0.0, "1", "decoupled weight decay: each step shrinks parameters by lr times this")
    warmup: int = option(0, "updates", "updates over which the step size rises linearly from 0")
    grad_clip: float = option(math.inf, "1", "largest norm of the gradient; a longer one is scaled down to it")
    matmul: str = option("auto", "name", "CPU matrix products: mkl, onednn, or the faster", ("auto", "mkl", "onednn"))

    @property
    def posterior_floats(self) -> int:
        """Nothing is written back beside the episodes."""
        return 0

    def problems(self) -> list[str]:
        """Every value that cannot work, each with the consequence and a fix; empty when all is well."""
        found = too_low(self, (("warmup", 0, "a count of updates cannot be negative"),))
        if not 0 < self.lr < math.inf:
            found.append(f"lr is {self.lr}, expected a finite number above 0: nothing would be learned; take 3e-4")
        if not 0 <= self.weight_decay < math.inf:
            found.append(f"weight_decay is {self.weight_decay}, expected a finite number of 0 or more; take 1e-4")
        if not self.grad_clip > 0:
            found.append(
                f"grad_clip is {self.grad_clip}, expected above 0: no step would be taken; take .25, or inf for none"
            )
        if self.matmul not in ("auto", "mkl", "onednn"):
            found.append(f"matmul is {self.matmul!r}, expected one of auto, mkl, onednn")
        return found

    def check(self) -> None:
        """Raises ValueError with every problem at once; nothing is built from settings that cannot work."""
        if found := self.problems():
            raise ValueError("these settings cannot work:\n" + "\n".join(f"- {problem}" for problem in found))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CloningConfig(ImitationConfig):
    """Behaviour cloning of all episodes. Defaults: the networks and steps usual on D4RL (Fujimoto & Gu, 2021)."""

    width: int = option(256, "units", "hidden units of each layer (Fujimoto & Gu, 2021: 256)")
    layers: int = option(2, "layers", "hidden layers (Fujimoto & Gu, 2021: 2)")
    points: int = option(32, "steps", "time points drawn from each episode of a batch, with replacement (ours)")
    percent: float = option(100.0, "%", "share of the dataset's episodes, by return from the top, that is imitated")

    def problems(self) -> list[str]:
        """Every value that cannot work, each with the consequence and a fix; empty when all is well."""
        found = super().problems() + too_low(
            self,
            (
                ("width", 1, "a layer without units computes nothing"),
                ("layers", 1, "the policy would be linear"),
                ("points", 1, "there would be nothing to imitate"),
            ),
        )
        if not 0 < self.percent <= 100:
            found.append(
                f"percent is {self.percent}, expected above 0 and up to 100: nobody would be imitated; take 10"
            )
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class PercentCloningConfig(CloningConfig):
    """Behaviour cloning of the best episodes: %BC of Chen et al. (2021), 10 % by default."""

    percent: float = option(10.0, "%", "share of the dataset's episodes, by return from the top, that is imitated")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig(ImitationConfig):
    """The decision transformer. Defaults: Chen et al. (2021), "Decision Transformer", for Gym MuJoCo."""

    lr: float = option(1e-4, "1", "Adam step size after the warm-up (Chen et al.: 1e-4)")
    weight_decay: float = option(1e-4, "1", "decoupled weight decay of all parameters (Chen et al.: 1e-4)")
    warmup: int = option(10_000, "updates", "updates over which the step size rises linearly from 0 (their code: 10^4)")
    grad_clip: float = option(0.25, "1", "largest norm of the gradient (Chen et al.: .25)")
    context: int = option(20, "steps", "K, steps that the policy looks back on, three tokens each (Chen et al.: 20)")
    width: int = option(128, "units", "width of a token (Chen et al.: 128)")
    layers: int = option(3, "layers", "transformer blocks (Chen et al.: 3)")
    heads: int = option(1, "heads", "attention heads of a block (Chen et al.: 1)")
    dropout: float = option(0.1, "1", "share of activations dropped in training (Chen et al.: .1)")
    segments: int = option(1, "segments", "windows of K steps drawn from each episode of a batch (Chen et al.: 1)")
    max_steps: int = option(1000, "steps", "rows of the timestep embedding; later steps share the last (theirs: 1,000)")
    target_percentile: float = option(
        100.0, "%", "return asked for when nobody names one: this percentile of the dataset's returns (ours: its best)"
    )

    def problems(self) -> list[str]:
        """Every value that cannot work, each with the consequence and a fix; empty when all is well."""
        found = super().problems() + too_low(
            self,
            (
                ("context", 1, "the policy would not see the present step"),
                ("width", 1, "a token without units says nothing"),
                ("layers", 1, "no token would see another"),
                ("heads", 1, "no token would see another"),
                ("segments", 1, "there would be nothing to imitate"),
                ("max_steps", 1, "a step would have no embedding"),
            ),
        )
        if self.heads >= 1 and self.width % self.heads:
            found.append(f"width is {self.width}, expected a multiple of heads ({self.heads}): heads share it evenly")
        if not 0 <= self.dropout < 1:
            found.append(f"dropout is {self.dropout}, expected in [0, 1): nothing would be left; take .1")
        if not 0 <= self.target_percentile <= 100:
            found.append(f"target_percentile is {self.target_percentile}, expected 0 to 100; take 100, the best")
        return found


def cloning_paper() -> CloningConfig:
    """The networks and step size usual in published D4RL comparisons."""
    return CloningConfig()


def cloning_cpu() -> CloningConfig:
    """The same with a larger step, for runs of minutes on a core (ours)."""
    return CloningConfig(lr=1e-3)


def percent_cloning_paper() -> PercentCloningConfig:
    """``cloning_paper`` on the best tenth."""
    return PercentCloningConfig()


def percent_cloning_cpu() -> PercentCloningConfig:
    """``cloning_cpu`` on the best tenth."""
    return PercentCloningConfig(lr=1e-3)


def transformer_paper() -> TransformerConfig:
    """The settings of Chen et al. (2021) for Gym MuJoCo, unchanged; meant for a GPU."""
    return TransformerConfig()


def transformer_cpu() -> TransformerConfig:
    """The same function, narrower, with a larger step and without dropout, for runs of minutes on a core (ours)."""
    return TransformerConfig(lr=1e-3, warmup=200, grad_clip=1.0, width=64, layers=2, dropout=0.0)
