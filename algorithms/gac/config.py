"""Settings of GAC, the Generative Actor Critic.

Source: arXiv 2512.21527 [P]; its author's published log [L]; the Latent Plan Transformer, arXiv 2402.04647, and its
code [LPT]; choices of ours [C]. What no tag claims for the paper is not the paper's.
"""

from __future__ import annotations

import dataclasses

from algorithms.config import LEADING_DIMS, OCTAVES
from algorithms.gac.planning import PlanningConfig
from replay.option import COUNT, DECAY, DRAWS, HEADS, LAYERS, RATE, SHARE, WEIGHT, WIDTH, option

PRIOR_HEADS = 4  # of the implicit prior's attention [C]
LEARNED = (
    0.75  # share of the updates after which plans that are read say more than is free, and more than the return [C]
)
ALIKE = 0.05  # of the data's deviation of returns: a stage that deviates less is all alike; ours that explored had .3 to 2.3 [C]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GACConfig(PlanningConfig):
    """The latent plan, its prior, the two heads that read it, local posteriors and the outer step.

    Defaults are the ``linear`` preset's [C]; ``paper`` has the sizes of [LPT] and the schedule of [L].
    """

    tokens: int = option(1, "tokens", "n, latent tokens of a plan [C]", **WIDTH)
    token_width: int = option(8, "1", "d, width of a latent token [C]", **WIDTH)
    return_tokens: int = option(
        0,
        "tokens",
        "m: the return head reads the first m, the generator the others [LPT]; 0: both read all [C]",
        **COUNT,
        at_most=10**6,
    )
    prior: str = option(
        "explicit",
        "name",
        "z from z0 ~ N(0, I) and s_0: implicit, by a Transformer [P, L]; explicit, mu(s_0) + sigma(s_0) z0; standard, z0 itself [C]",
        ("implicit", "explicit", "standard"),
    )
    prior_width: int = option(128, "units", "of the prior [C]", **WIDTH)
    obs_fourier: int = option(
        4,
        "octaves",
        "Fourier features of observations, from a period of 8 units down; 0: none [C]",
        **OCTAVES,
    )
    obs_fourier_dims: int = option(
        2,
        "1",
        "leading coordinates that have them (a maze's place); 0: all [C]",
        **LEADING_DIMS,
    )
    layers: int = option(
        0, "layers", "of the trajectory generator; 0: an MLP, without attention (3 [LPT])", **COUNT, at_most=256
    )
    heads: int = option(4, "heads", "of the generator's attention (1 [LPT])", **HEADS)
    width: int = option(128, "units", "of the generator (128 or 192 [LPT])", **WIDTH)
    window: int = option(
        1, "steps", "W, steps the generator's self-attention sees, this one included (32 [LPT])", **DRAWS
    )
    plan_reading: str = option(
        "linear",
        "name",
        "attention: cross-attention in every layer [LPT]; linear: outputs move along the plan and the return it promises, in "
        "directions that the state decides [C]",
        ("attention", "linear"),
    )
    plan_dropout: float = option(
        0.5,
        "1",
        "linear reading: share of trajectories in training of which only the promised return is read [C]",
        **SHARE,
    )
    return_layers: int = option(1, "layers", "of the return head, the last included (3 [LPT])", **LAYERS)
    return_variance: float = option(0.05, "1", "of the z-scored return given the plan; 0: learned [C]", **WEIGHT)
    action_std: float = option(
        0.0, "1", "of an action given the plan (1 [LPT]); 0: learned, one a coordinate [C]", **WEIGHT
    )
    next_state_weight: float = option(0.0, "1", "weight of the next-state term in the ELBO; 0: none [C]", **WEIGHT)
    points: int = option(
        32,
        "steps",
        "sampled of each trajectory for one update, in stretches of the window's length; 0: every step [C]",
        **COUNT,
        at_most=10**6,
    )
    free_bits: float = option(0.0, "nats", "lambda: KL of a token below it costs nothing less [P]", **WEIGHT)
    kl_weight: float = option(4.0, "1", "weight of the KL in the ELBO [C]; 1: the bound itself [P]", **WEIGHT)
    posterior: str = option(
        "amortised",
        "name",
        "local posteriors: fresh [P, LPT], stored with the episode, amortised [C]",
        ("amortised", "stored", "fresh"),
    )
    posterior_return: bool = option(True, "bool", "amortised: the encoder also sees the return [C]")
    posterior_width: int = option(128, "units", "amortised: of the encoder [C]", **WIDTH)
    inner_steps: int = option(
        16, "steps", "gradient steps on (mu, log sigma^2) before each outer step [LPT]", **COUNT, at_most=10**6
    )
    lr: float = option(1e-3, "1", "AdamW step size of the networks (1e-4 to 1e-3 [LPT])", **RATE)
    lr_end: float = option(0.05, "1", "share of lr at the schedule's end, by a cosine [C]", **WEIGHT)
    weight_decay: float = option(1e-4, "1", "AdamW's decay of the networks [LPT]", **DECAY)
    clip: float = option(
        0.5,
        "nats/step",
        "gradient norm of the ELBO a step that is never exceeded (.25 [LPT])",
        above=0,
        why="nothing would be learned",
    )
    warmup: float = option(
        0.05,
        "1",
        "share of the schedule in which the step size rises from 0 (.1 [LPT])",
        at_least=0,
        below=1,
        why="the full step size would never be reached",
    )
    updates: int = option(
        2_000,
        "updates",
        "length of the step-size schedule; it stays at its end after, unless in cycles (1,000 [L])",
        at_least=1,
        why="the schedule would have no length",
    )
    cycle: int = option(
        0,
        "updates",
        "length of each cycle of the step size that follows the schedule, with a warm-up of its own; 0: none; fine-tuning has one a stage [C]",
        **COUNT,
    )
    return_memory: float = option(
        0.0,
        "1",
        "share of its running moments that the spread of returns keeps an update; 0: it stays the dataset's; fine-tuning .98 [C]",
        at_least=0,
        below=1,
        why="the spread would follow nothing, or run away",
    )
    matmul: str = option("auto", "name", "CPU matrix products: mkl, onednn, or the faster", ("auto", "mkl", "onednn"))
    autocast: bool = option(False, "bool", "bf16 in the model's region on a GPU; the CPU always computes float32 [C]")

    @property
    def return_count(self) -> int:
        """How many tokens, from the first on, the return head reads."""
        return self.return_tokens or self.tokens

    @property
    def posterior_floats(self) -> int:
        """P, floats that are written back beside each episode: mu and log sigma^2, or none."""
        return 2 * self.tokens * self.token_width if self.posterior == "stored" else 0

    def validate(self) -> list[str]:
        """Every value that cannot work, each with the consequence and a fix; empty when all is well."""
        return super().validate() + self._mismatches()

    def _mismatches(self) -> list[str]:
        found = [
            f"{width} is {getattr(self, width)}, expected a multiple of {heads}: heads share the width; set "
            f"{width}={max(1, getattr(self, width) // heads) * heads}"
            for width, heads, used in (
                ("width", self.heads, self.layers > 0),
                ("prior_width", PRIOR_HEADS, self.prior == "implicit"),
            )
            if used and heads > 0 and getattr(self, width) % heads
        ]
        if self.return_tokens and self.return_tokens >= self.tokens:
            found.append(
                f"return_tokens is {self.return_tokens} of {self.tokens}, expected fewer than tokens: nothing would be left for the "
                f"generator to read; set return_tokens={self.tokens // 2}"
            )
        if not self.layers and (self.plan_reading == "attention" or self.window > 1):
            found.append(
                f"layers is 0 with plan_reading {self.plan_reading} and window {self.window}, expected at least 1: attention "
                "is in the layers; set layers=2"
            )
        if 0 < self.points < self.window:
            found.append(
                f"points is {self.points} with window {self.window}, expected at least one stretch of the window's length: nothing "
                f"would be sampled; set points={self.window} or more"
            )
        if self.replan == "prediction-error" and not self.next_state_weight:
            found.append(
                "replan is prediction-error with next_state_weight 0: nothing would have learned to predict what comes, and every error of it "
                "would be chance; train with next_state_weight=1, or set replan=scheduled or none"
            )
        return found


def cpu() -> GACConfig:
    """The paper's form at a size for two cores: several tokens, a Transformer that attends to them, states generated too, free bits
    at weight 1, an encoder that is not told y, a search on (mu, sigma) by fresh noise [P; sizes C].

    A step sees its own state alone: from the steps before it the generator copies what it did, and heeds the plan less [C].
    Exploring plans ask for y+ and more, up to what exploitation promises from their start [C].
    """
    return GACConfig(
        tokens=8,
        token_width=8,
        prior_width=64,
        layers=2,
        points=64,
        plan_reading="attention",
        plan_dropout=0.0,
        return_layers=3,
        next_state_weight=0.1,
        free_bits=0.5,
        kl_weight=1.0,
        posterior_return=False,
        updates=3_000,
        infer_steps=100,
        infer_fresh=True,
        explore_reach=1.0,
    )


def linear() -> GACConfig:
    """Return-conditioned with a latent: actions are linear in the plan and the return it promises; a minute on one core [C].

    It reaches returns beyond the data's; what its plan says is little more than the return: docs/notes.md.
    """
    return GACConfig()


def paper() -> GACConfig:
    """Sizes of the published predecessor for its larger mazes, and the log's schedule [LPT, L]; meant for a GPU.

    The paper does not state all of its own; docs/gac.md says which are whose.
    """
    return GACConfig(
        tokens=8,
        token_width=192,
        prior="implicit",
        return_tokens=4,
        prior_width=192,
        obs_fourier=0,
        layers=3,
        heads=1,
        width=192,
        window=32,
        plan_reading="attention",
        return_layers=3,
        return_variance=0.0,
        action_std=1.0,
        next_state_weight=1.0,
        points=0,
        free_bits=0.5,
        kl_weight=1.0,
        posterior="fresh",
        posterior_return=False,
        clip=0.25,
        lr_end=0.0,
        warmup=0.1,
        updates=1_000,
        autocast=True,
        explore_reach=0.0,
        infer_steps=60,
        infer_max_steps=30,
        infer_fresh=True,
    )
