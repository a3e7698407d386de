"""Settings of GAC, the Generative Actor Critic.

Source: arXiv 2512.21527 [P]; its author's published log [L]; the Latent Plan Transformer, arXiv 2402.04647, and its
code [LPT]; choices of ours [C]. What no tag claims for the paper is not the paper's.
"""

from __future__ import annotations

import dataclasses

from algorithms.gac.planning import PlanningConfig
from replay.option import (
    COUNT,
    DECAY,
    DRAWS,
    HEADS,
    LAYERS,
    LOG_VARIANCE,
    RATE,
    SHARE,
    WEIGHT,
    WIDTH,
    option,
)

CHOICES = {
    "generator_tokens": ("all", "split"),
    "prior": ("autoregressive", "implicit", "explicit", "standard"),
    "plan_reading": ("attention", "local", "linear"),
    "time_bias": ("learned", "none"),
    "return_head": ("additive", "mlp"),
    "free_bits_per": ("token", "dimension"),
    "posterior_sees": ("stretches", "set"),
    "posterior": ("amortised", "stored", "fresh"),
    "matmul": ("auto", "mkl", "onednn"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GACConfig(PlanningConfig):
    """The latent plan, its prior, the two heads that read it, local posteriors and the outer step.

    Defaults are the ``timed`` preset's [C]; ``paper`` has the sizes of [LPT] and the schedule of [L].
    """

    tokens: int = option(16, "tokens", "n, latent tokens of a plan [C]", **WIDTH)
    token_width: int = option(8, "1", "d, width of a latent token [C]", **WIDTH)
    return_tokens: int = option(
        0, "tokens", "m, the first tokens, read by the return head; 0: all of them [C]", **COUNT, at_most=10**6
    )
    generator_tokens: str = option(
        "all",
        "name",
        "split: the generator reads what the return head does not [LPT]; all [C]",
        CHOICES["generator_tokens"],
    )
    prior: str = option(
        "autoregressive",
        "name",
        "z from z0 ~ N(0, I) and s_0: implicit [P, L]; token after token, explicit, z0 itself [C]",
        CHOICES["prior"],
    )
    prior_layers: int = option(
        2, "layers", "of the implicit prior's Transformer, or hidden ones of the explicit [C]", **LAYERS
    )
    prior_width: int = option(128, "units", "of the prior [C]", **WIDTH)
    prior_heads: int = option(4, "heads", "of the implicit prior's attention [C]", **HEADS)
    obs_waves: int = option(
        4,
        "octaves",
        "sines and cosines of observations beside them, from a period of 8 units down; 0: none [C]",
        **COUNT,
        at_most=64,
    )
    obs_wave_dims: int = option(
        2, "1", "leading coordinates that have them (a maze's place); 0: all [C]", **COUNT, at_most=10**6
    )
    prior_waves: bool = option(
        True, "bool", "the prior sees them too; a dataset has one first observation an episode [C]"
    )
    layers: int = option(
        0, "layers", "of the trajectory generator; 0: an MLP, without attention (3 [LPT])", **COUNT, at_most=256
    )
    heads: int = option(4, "heads", "of the generator's attention (1 [LPT])", **HEADS)
    width: int = option(128, "units", "of the generator (128 or 192 [LPT])", **WIDTH)
    window: int = option(
        1, "steps", "W, steps the generator's self-attention sees, this one included (32 [LPT])", **DRAWS
    )
    history_dropout: float = option(0.0, "1", "share of steps that see no step but their own in training [C]", **SHARE)
    plan_reading: str = option(
        "local",
        "name",
        "attention: cross-attention in every layer [LPT]; local: tokens around now join the state; linear: outputs move "
        "along the plan and the return it promises, in directions that the state decides [C]",
        CHOICES["plan_reading"],
    )
    plan_dropout: float = option(
        0.5,
        "1",
        "linear reading: share of trajectories in training of which only the promised return is read [C]",
        **SHARE,
    )
    plan_ahead: int = option(
        2, "tokens", "local reading: tokens ahead of now's that are read [C]", **COUNT, at_most=10**6
    )
    plan_behind: int = option(
        1, "tokens", "local reading: tokens behind now's that are read [C]", **COUNT, at_most=10**6
    )
    plan_time: bool = option(True, "bool", "tokens and queries carry a time embedding (LPT: no positions) [C]")
    time_bias: str = option(
        "learned",
        "name",
        "cross-attention prefers tokens near now: token k governs its stretch [C]",
        CHOICES["time_bias"],
    )
    return_head: str = option(
        "additive",
        "name",
        "additive: mean over tokens of one MLP [C]; mlp: of all, flattened [LPT]",
        CHOICES["return_head"],
    )
    return_span: int = option(3, "tokens", "additive head: neighbouring tokens that one term reads, odd [C]", **DRAWS)
    return_width: int = option(100, "units", "hidden units of the return head [LPT]", **WIDTH)
    return_layers: int = option(3, "layers", "of the return head, the last included [LPT]", **LAYERS)
    return_bounded: bool = option(True, "bool", "additive: a token's worth has learned bounds [C]")
    return_noise: float = option(0.3, "1", "deviation of noise on z before the return head, in training [C]", **WEIGHT)
    return_heads: int = option(4, "heads", "an ensemble of return heads; their spread joins the variance [C]", **DRAWS)
    return_variance: float = option(0.01, "1", "of the z-scored return given the plan; 0: learned [C]", **WEIGHT)
    action_std: float = option(
        0.0, "1", "of an action given the plan (1 [LPT]); 0: learned, one a coordinate [C]", **WEIGHT
    )
    next_state_weight: float = option(1.0, "1", "weight of the next-state term in the ELBO; 0: none [C]", **WEIGHT)
    next_state_steps: int = option(64, "steps", "how far ahead the displacement that is predicted lies [C]", **DRAWS)
    points: int = option(
        32, "steps", "sampled of each trajectory for one update; 0: every step [C]", **COUNT, at_most=10**6
    )
    segment: int = option(1, "steps", "consecutive steps that are sampled together, with window above 1 [C]", **DRAWS)
    free_bits: float = option(0.0, "nats", "lambda: KL below it costs nothing less [P]", **WEIGHT)
    free_bits_per: str = option(
        "token", "name", "what lambda is counted for [P: dimension or token]", CHOICES["free_bits_per"]
    )
    kl_weight: float = option(4.0, "1", "weight of the KL in the ELBO [C]; 1: the bound itself [P]", **WEIGHT)
    kl_start: float = option(0.02, "1", "share of kl_weight at the first update [C]", **SHARE)
    kl_warmup: float = option(0.5, "1", "share of the schedule in which it rises to the whole [C]", **SHARE)
    posterior: str = option(
        "amortised",
        "name",
        "local posteriors: fresh [P, LPT], stored with the episode, amortised [C]",
        CHOICES["posterior"],
    )
    posterior_sees: str = option(
        "stretches",
        "name",
        "amortised: each token its own stretch, then attention; or all one unordered set of steps [C]",
        CHOICES["posterior_sees"],
    )
    posterior_points: int = option(3, "steps", "amortised: observed steps of each token's stretch [C]", **DRAWS)
    posterior_return: bool = option(False, "bool", "amortised: the encoder also sees the return [C]")
    posterior_width: int = option(32, "units", "amortised: of the encoder [C]", **WIDTH)
    posterior_heads: int = option(4, "heads", "amortised: of its attention [C]", **HEADS)
    posterior_layers: int = option(2, "layers", "amortised: of the encoder's Transformer [C]", **LAYERS)
    inner_steps: int = option(
        16, "steps", "gradient steps on (mu, log sigma^2) before each outer step [LPT]", **COUNT, at_most=10**6
    )
    inner_lr: float = option(
        0.3, "1", "of these steps, at their start [LPT]", above=0, at_most=100, why="nothing would be learned"
    )
    inner_lr_end: float = option(0.1, "1", "share of inner_lr at the last of them, by a cosine [LPT]", **WEIGHT)
    inner_weight_decay: float = option(
        0.0, "1", "AdamW's decay of mu and log sigma^2, beside the KL's own pull [C]", **DECAY
    )
    inner_log_variance: float = option(
        -5.0, "nats", "log sigma^2 that a fresh posterior starts from [LPT]", **LOG_VARIANCE
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
    alarm_nats: float = option(
        0.05, "nats", "mean KL a token below which a posterior collapse is reported [C]", **WEIGHT
    )
    matmul: str = option("auto", "name", "CPU matrix products: mkl, onednn, or the faster", ("auto", "mkl", "onednn"))
    autocast: bool = option(False, "bool", "bf16 in the model's region on a GPU; the CPU always computes float32 [C]")

    @property
    def generator_first(self) -> int:
        """The first token that the generator reads."""
        return self.return_tokens if self.generator_tokens == "split" else 0

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
        return self.planning_problems() + self._mismatches()

    def _mismatches(self) -> list[str]:
        found = [
            f"{width} is {getattr(self, width)}, expected a multiple of {heads} = {getattr(self, heads)}: heads share the "
            f"width; set {width}={max(1, getattr(self, width) // max(1, getattr(self, heads))) * getattr(self, heads)}"
            for width, heads in (
                ("width", "heads"),
                ("prior_width", "prior_heads"),
                ("posterior_width", "posterior_heads"),
            )
            if getattr(self, heads) > 0 and getattr(self, width) % getattr(self, heads)
        ]
        if self.return_tokens > self.tokens:
            found.append(
                f"return_tokens is {self.return_tokens}, expected at most tokens = {self.tokens}: there are no more; lower it"
            )
        if self.generator_tokens == "split" and not 0 < self.return_tokens < self.tokens:
            found.append(
                f"generator_tokens is split with return_tokens {self.return_tokens} of {self.tokens}, expected 1 to "
                f"{self.tokens - 1}: one of the heads would read nothing; set return_tokens={max(1, self.tokens // 2)}"
            )
        if not self.layers and (self.plan_reading == "attention" or self.window > 1):
            found.append(
                f"layers is 0 with plan_reading {self.plan_reading} and window {self.window}, expected at least 1: attention "
                "is in the layers; set layers=2"
            )
        if self.return_span % 2 == 0:
            found.append(
                f"return_span is {self.return_span}, expected an odd number: a span is centred on its token; set {self.return_span + 1}"
            )
        if self.window > 1 and 0 < self.points < self.segment:
            found.append(
                f"points is {self.points} with segment {self.segment}, expected at least one segment: nothing would be "
                f"sampled; set points={self.segment} or more"
            )
        if self.window == 1 and self.segment > 1:
            found.append(
                f"segment is {self.segment} with window 1, expected 1: a step that sees only itself gains nothing from neighbours"
            )
        if self.replan == "surprise" and not self.next_state_weight:
            found.append(
                "replan is surprise with next_state_weight 0: nothing would have learned to predict what comes, and every error of it "
                "would be chance; train with next_state_weight=1, or set replan=scheduled or none"
            )
        if self.plan_reading == "local" and not self.plan_time:
            found.append(
                "plan_reading is local with plan_time false: which tokens are near now is a matter of time; set plan_time=true"
            )
        return found

    def check(self) -> None:
        """Raises ValueError with every problem at once; nothing is built from settings that cannot work."""
        if found := self.validate():
            raise ValueError("these settings cannot work:\n" + "\n".join(f"- {problem}" for problem in found))


def timed() -> GACConfig:
    """A plan laid out in time, for long episodes that go through many intentions in turn; minutes on one core [C]."""
    return GACConfig()


def cpu() -> GACConfig:
    """One plan for the whole episode, read along with the return that it promises; a minute on one core [C]."""
    return GACConfig(
        tokens=1,
        token_width=8,
        prior="explicit",
        prior_waves=False,
        plan_reading="linear",
        plan_time=False,
        return_head="mlp",
        return_layers=1,
        return_heads=1,
        return_noise=0.0,
        return_variance=0.05,
        next_state_weight=0.0,
        kl_warmup=0.0,
        posterior_sees="set",
        posterior_points=64,
        posterior_width=128,
        posterior_return=True,
        infer_kl_weight=0.1,
        infer_steps=300,
        infer_max_steps=100,
        infer_radius=0.0,
    )


def paper() -> GACConfig:
    """Sizes of the published predecessor for its larger mazes, and the log's schedule [LPT, L]; meant for a GPU.

    The paper does not state all of its own; docs/gac.md says which are whose.
    """
    return GACConfig(
        tokens=8,
        token_width=192,
        prior="implicit",
        return_tokens=4,
        generator_tokens="split",
        prior_width=192,
        obs_waves=0,
        layers=3,
        heads=1,
        width=192,
        window=32,
        plan_reading="attention",
        plan_time=False,
        time_bias="none",
        return_head="mlp",
        return_heads=1,
        return_noise=0.0,
        return_variance=0.0,
        action_std=1.0,
        next_state_steps=1,
        points=0,
        kl_weight=1.0,
        kl_warmup=0.0,
        posterior="fresh",
        clip=0.25,
        lr_end=0.0,
        warmup=0.1,
        updates=1_000,
        autocast=True,
    )
