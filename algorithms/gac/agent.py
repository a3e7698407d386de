"""GAC's learner: local posteriors first, then one step of the networks on the evidence lower bound.

Letters: U updates, B trajectories of this learner, n tokens, d width, R rows, S steps, P stored floats. Source: arXiv
2512.21527 [P], Algorithm 1.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from algorithms import runtime
from algorithms.gac.bound import (
    MEASURES,
    Bound,
    Posterior,
    PosteriorEncoder,
    cosine,
    fresh,
    least_nats,
    lower_bound,
    measures,
    refine,
    stored,
)
from algorithms.gac.config import GACConfig
from algorithms.gac.generator import LEAST_ROW
from algorithms.gac.model import LEARNED_LATE, PERCENTILES, GACModel
from algorithms.gac.segments import Segments, sampled, whole
from algorithms.gac.target import Target, asked_for, decode_nan, encode_nan, exploration, first_target, next_target
from algorithms.interface import AgentSpec
from algorithms.trainer import FlatAdam, FlatParameters, Loss, TrainedAgent, Trainer
from replay.schema import DataSummary, ReturnSummary, Trajectories

METRICS = (*MEASURES, "grad_norm", "learning_rate")
LEAST_SPREAD = 0.1  # of returns, in deviations of the dataset's
ERROR_MEMORY = 0.95  # of the running percentiles, a block


class Noise(NamedTuple):
    """Everything random in one update."""

    eps_Bnd: torch.Tensor  # of the posterior's draw
    place_BK: torch.Tensor  # uniform, where the K segments of each trajectory begin; (B, 0) with whole trajectories
    hidden_B: torch.Tensor | None  # bool, see GACModel.memory; None without plan dropout
    shift: torch.Tensor  # 0-d, uniform: where in its share of the episode the encoder looks at each step


class GAC(TrainedAgent):
    """The contract is algorithms.interface.EpisodeAgent. Raises ValueError with every problem of ``config`` at once."""

    def __init__(self, config: GACConfig, spec: AgentSpec) -> None:
        config.check()
        super().__init__(spec, config.matmul)
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.seed)
            model, encoder = GACModel(config, spec.obs_dim, spec.action_dim), None
            if config.posterior == "amortised":
                encoder = PosteriorEncoder(config, model.features, spec.obs_dim, spec.action_dim)
        self.model = model.to(self.device)
        self.encoder = None if encoder is None else encoder.to(self.device)
        parts = {"model": self.model} | ({} if self.encoder is None else {"encoder": self.encoder})
        modules: dict[str, nn.Parameter] = {
            f"{part}.{name}": parameter
            for part, module in parts.items()
            for name, parameter in module.named_parameters()
        }
        self.parameters = FlatParameters({k: p.detach() for k, p in modules.items()}, self.device, extra=3)
        for name, parameter in modules.items():
            parameter.data = self.parameters.named[name].data
        self.parameters.leaves = list(modules.values())
        self.adam = FlatAdam(
            self.parameters.value, self.parameters.gradient, lr=config.lr, weight_decay=config.weight_decay
        )
        self.trainer = Trainer(self.parameters, (self.adam,), spec.collective, METRICS, clip=config.clip)
        self.trainers = (self.trainer,)
        self.target = first_target(config)
        self.return_moments = torch.tensor([0.0, 1.0], device=self.device)  # running means of y and y^2, z-scored
        self.return_error = torch.full((), math.nan, device=self.device)  # root mean square, environment units
        self._returns: ReturnSummary | None = None  # the newest
        self._returns_digest = -1  # of the newest returns
        self._posteriors: list[torch.Tensor] = []

    def fit(self, summary: DataSummary) -> None:
        """Takes the data's scales and its longest episode; see EpisodeAgent.fit."""
        self.model.fit(summary)

    def start_finetuning(self) -> None:
        """Starts the learning-rate cycles of the stages; a target return that was set by hand applies at once."""
        self.updates = self.config.updates
        self.target = asked_for(self.config, self.target._replace(stage=0))
        self.model.explore_target.fill_(self.target.value)

    def update_returns(self, returns: ReturnSummary) -> None:
        """Moves the exploration target and the highest known return. Reads the predictor's error from the device only if the
        returns changed."""
        self._returns = returns
        digest = zlib.crc32(repr(returns).encode())  # without what moves no target: stage_std
        if digest == self._returns_digest:
            return
        self._returns_digest = digest
        self.target = next_target(self.config, returns, self.target, uncertainty=float(self.return_error))
        self.model.explore_target.fill_(self.target.value)
        if math.isfinite(returns.best):
            self.model.return_high.clamp_(min=returns.best)

    def update(self, batches: Sequence[Trajectories]) -> dict[str, torch.Tensor]:
        """One update a batch, this learner's share of it; metrics of METRICS, ``nonfinite`` and ``exploration``."""
        self._posteriors = []
        with runtime.library(self.matmul):
            for batch in batches:
                segments, bound = self.step(batch, self._draw(len(batch)))
        if batches:
            self._calibrate(segments, bound)
        explored = {} if self._returns is None else exploration(self._returns, self.model.return_std)
        return self.read_metrics() | explored

    def step(self, batch: Trajectories, noise: Noise) -> tuple[Segments, Bound]:
        """One update with everything random given: the posteriors, then the networks."""
        loss, segments, bound = self.losses(batch, noise)
        self.adam.lr = self.learning_rate(self.updates)
        step = self.trainer.descend(loss)
        self._follow_returns(step.shared)
        rate = torch.full_like(step.norm, self.adam.lr)
        least = least_nats(self.config, self.updates, in_stages=self._returns is not None and self._returns.stage > 0)
        seen = measures(self.model, batch, segments, bound, least)
        self.trainer.record(step, (*seen, step.norm, rate))
        self.updates += 1
        return segments, bound

    def losses(self, batch: Trajectories, noise: Noise) -> tuple[Loss, Segments, Bound]:
        """- mean_B ELBO / T, T the longest episode's steps; and the batch's mean of y and of y^2, z-scored.

        T is a constant, so that learners of half a batch each make the gradient of one.
        """
        segments = self.gather_segments(batch, noise.place_BK)
        bound = self._bound(batch, segments, self._infer(batch, segments, noise), noise)
        y_B = self.model.normalise_return(batch.return_B)
        loss = Loss(-bound.elbo_B.mean() / self.model.horizon, shared=(y_B.mean(), y_B.square().mean()))
        return loss, segments, bound

    def learning_rate(self, update: int) -> float:
        """Linear from 0 over the warm-up, times a cosine from 1 to ``lr_end`` over the schedule's ``updates``; then in cycles
        of ``cycle`` updates, each of the same form."""
        length = self.config.updates
        if update >= length and self.config.cycle:
            update, length = (update - length) % self.config.cycle, self.config.cycle
        rising = self.config.warmup * length
        warm = min(1.0, (update + 1) / rising) if rising else 1.0
        return self.config.lr * warm * cosine(update / length, self.config.lr_end)

    def gather_segments(self, batch: Trajectories, place_BK: torch.Tensor) -> Segments:
        """The steps that this update is made on."""
        c, dims = self.config, {"obs_dim": self.obs_dim, "action_dim": self.action_dim}
        if c.points:
            return sampled(batch, place_BK, steps=c.window, **dims)
        return whole(batch, size=max(c.window, LEAST_ROW), **dims)

    def posteriors(self) -> list[torch.Tensor]:
        """(B, P) of each batch of the last ``update`` with stored posteriors; an empty list with the other forms."""
        return self._posteriors

    def _infer(self, batch: Trajectories, segments: Segments, noise: Noise) -> Posterior:
        if self.encoder is not None:
            return self.encoder(batch, self.model, noise.shift)
        keeps = self.config.posterior == "stored"
        start = stored(self.config, batch) if keeps else fresh(self.config, len(batch), batch.return_B)
        seen = noise._replace(
            hidden_B=None
        )  # hiding a plan is a lesson for the networks: its posterior is of the whole
        found = refine(self.config, start, lambda q: self._bound(batch, segments, q, seen).elbo_B)
        if keeps:
            self._posteriors.append(found.packed())
        return found

    def _bound(self, batch: Trajectories, segments: Segments, posterior: Posterior, noise: Noise) -> Bound:
        weight, hidden_B = self.config.kl_weight, noise.hidden_B
        return lower_bound(self.model, batch, segments, posterior, noise.eps_Bnd, kl_weight=weight, hidden_B=hidden_B)

    def _draw(self, count: int) -> Noise:
        """This learner's noise for an update on ``count`` trajectories."""
        c = self.config
        eps = self.normal(count, c.tokens, c.token_width)
        place = self.uniform(count, c.points // c.window)
        hides = c.plan_reading == "linear" and c.plan_dropout
        hidden = self.uniform(count) < c.plan_dropout if hides else None
        shift = torch.rand((), generator=self.generator, device=self.device)
        return Noise(eps, place, hidden, shift)

    def _follow_returns(self, found: torch.Tensor) -> None:
        """Moves the spread of returns towards that of the batches: episodes gathered online lie far outside the dataset's."""
        if not self.config.return_memory:
            return
        self.return_moments.lerp_(found, 1.0 - self.config.return_memory)
        mean, square = self.return_moments.unbind()
        self.model.return_spread.copy_((square - mean.square()).clamp(min=LEAST_SPREAD**2).sqrt())

    @torch.no_grad()
    def _calibrate(self, segments: Segments, bound: Bound) -> None:
        """Follows, once a block, the return predictor's error and, where states are predicted, the percentiles of the surprise."""
        found = (bound.return_gap_B.square().mean() * self.model.return_std.square()).unsqueeze(0)
        if self.config.next_state_weight:
            seen_RS = self.model.prediction_errors(bound.next_obs_RSO, segments.obs_RSO, segments.later_RSO)
            seen_RS = torch.where(segments.ahead_weight_RS > 0, seen_RS, math.nan).flatten()
            share = torch.linspace(0.0, 1.0, PERCENTILES, device=self.device)
            found = torch.cat([found, seen_RS.nanquantile(share)])
        self.collective.mean_(found)
        _follow(self.return_error, found[0].sqrt())
        if self.config.next_state_weight:
            _follow(self.model.surprise, found[1:])

    def policy_weights(self) -> dict[str, torch.Tensor]:
        """The model's parameters and buffers by their names in ``GACModel.state_dict``, float32; see unknown.py."""
        weights = {name: tensor.detach() for name, tensor in self.model.state_dict().items()}
        return weights | {name: encode_nan(weights[name]) for name in LEARNED_LATE}

    def state(self) -> dict[str, torch.Tensor]:
        """Copies of everything that a bit-exact resume needs, by name."""
        named = super().state() | {"returns_digest": torch.tensor(self._returns_digest)}
        named["target"] = encode_nan(torch.tensor(self.target, dtype=torch.float64))
        late = ("return_error", *(f"model.{name}" for name in LEARNED_LATE))
        return named | {name: encode_nan(named[name]) for name in late}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Takes what ``state`` gave, in place; raises ValueError naming every missing, surplus or misshapen entry."""
        if "heard" in state:  # the older name
            state = {**state, "returns_digest": state["heard"]}
            del state["heard"]
        super().load_state(state)
        for late in (self.return_error, *(getattr(self.model, name) for name in LEARNED_LATE)):
            late.copy_(decode_nan(late))
        self._returns_digest = int(state["returns_digest"])
        value, gain, stage = decode_nan(state["target"]).tolist()
        self.target = Target(value, gain, int(stage))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Parameters, buffers, Adam's moments, and what follows the returns."""
        named = dict(self.parameters.named)
        named |= {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        named |= {f"adam.{name}": tensor for name, tensor in self.adam.state().items()}
        named["return_error"], named["return_moments"] = self.return_error, self.return_moments
        return named


def _follow(running: torch.Tensor, found: torch.Tensor) -> None:
    """Moves ``running`` (NaN: nothing yet) towards ``found``, in place; non-finite values are skipped."""
    moved = torch.where(running.isnan(), found, torch.lerp(found, running, ERROR_MEMORY))
    running.copy_(torch.where(found.isfinite(), moved, running))
