"""Plans by gradient ascent on the objective, for a batch of environments at once.

Source: "Generative Actor Critic", arXiv 2512.21527: policy improvement is inference on the learned model. The fixed
target variance, the ascent from the mean and the chunks of equal size are ours. Letters: K environments, n plan tokens of
width d, S ascent steps, D draws, O observation dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import torch

from algorithms.gac.losses import (
    Weights,
    cautious,
    kl_to_prior,
    mode_weights,
    objective,
    posterior_draw,
    target_log_likelihood,
    within_ball,
)
from algorithms.gac.model import GACModel
from algorithms.gac.planning import PlanningConfig
from algorithms.gac.prior import AutoregressivePrior

ADAM_BETA1, ADAM_BETA2, ADAM_EPS = 0.9, 0.999, 1e-8

Likelihood = Callable[[torch.Tensor], torch.Tensor]  # z (K, n, d) -> log p(tau_<=t | z) (K,)


class PlanModel(Protocol):
    """What an ascent needs of a model: the prior's transformer and the return head, never the generator."""

    return_spread: torch.Tensor  # 0-d, deviation of the returns learned from, as ``normalise_return`` counts

    def plan(self, z0_Bnd: torch.Tensor, obs0_BO: torch.Tensor) -> torch.Tensor: ...

    def predict_return(self, z_Bnd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]: ...

    def return_terms(self, z_Bnd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]: ...

    def normalise_return(self, y: torch.Tensor) -> torch.Tensor: ...

    def best_gathered(self) -> torch.Tensor: ...

    def denormalise_return(
        self, mean_B: torch.Tensor, variance_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]: ...


class Trace(NamedTuple):
    """An ascent, step by step: row 0 is q before its first step (the start that was found), the last row what came of it. Environment units."""

    predicted_SK: torch.Tensor  # (S + 1, K) mean return predicted where E_q was taken
    variance_SK: torch.Tensor  # (S + 1, K)
    kl_SK: torch.Tensor  # (S + 1, K) nats


class Inferred(NamedTuple):
    """Plans and what was expected of them; no gradients."""

    mean_Knd: torch.Tensor  # of q(z_0)
    log_variance_Knd: torch.Tensor
    z0_Knd: torch.Tensor  # q's mean or a draw from it: what is acted by
    z_Knd: torch.Tensor  # plan(z_0, s_0)
    predicted_K: torch.Tensor  # mean return of z, environment units
    variance_K: torch.Tensor  # of that prediction
    kl_K: torch.Tensor  # nats
    trace: Trace


def noise_draws(weights: Weights) -> int:
    """D, the standard normal draws that one plan consumes: candidates, those of its ascent, and one to act by."""
    return 1 + weights.candidates + {"mean": 0, "reused": 1, "fresh": weights.steps + 1}[weights.noise]


def draw_noise(streams: list[np.random.Generator], draws: int, tokens: int, width: int) -> torch.Tensor:
    """Noise (D, K, n, d) float32, each environment's from its own stream."""
    drawn = [rng.standard_normal((draws, tokens, width), dtype=np.float32) for rng in streams]
    return torch.from_numpy(np.stack(drawn, 1))


def infer_plan(
    model: PlanModel,
    obs_KO: torch.Tensor,
    mode: str,
    target_K: torch.Tensor | None,
    config: PlanningConfig,
    noise_DKnd: torch.Tensor,
    *,
    likelihood: Likelihood | None = None,
) -> Inferred:
    """The plan of each environment: Adam ascent on the objective of ``mode`` from where ``config.infer_start`` says.

    One environment's result does not depend on the others: nothing is shared but the matrix products.

    Args:
        obs_KO: first observations, raw, float32.
        mode: prior (no search; the last draw of the noise), st, kl, max or explore.
        target_K: y+ in environment units; only st and explore read it.
        noise_DKnd: standard normal, D = ``noise_draws(mode_weights(config, mode))``; all zeros acts by the mean.
        likelihood: log p_beta(tau_<=t | z), for replanning (Eq. 3); weighted by ``config.replan_weight``.

    Raises:
        ValueError: an unknown mode, or one that needs a target and has none, or a noise of another shape.
    """
    weights = mode_weights(config, mode)
    if weights.targeted and target_K is None:
        raise ValueError(
            f"mode {mode} got no target return; expected one for each environment, in the environment's own units: "
            "there is nothing to plan for; give a target return or take a mode without one (prior, kl, max)"
        )
    if len(noise_DKnd) != noise_draws(weights) or noise_DKnd.shape[1] != len(obs_KO):
        raise ValueError(
            f"noise has shape {tuple(noise_DKnd.shape)}, expected ({noise_draws(weights)}, {len(obs_KO)}, n, d) for mode "
            f"{mode}: draws would be shared or missing; take draw_noise with noise_draws(mode_weights(config, mode))"
        )
    wanted_K = model.normalise_return(target_K).detach() if weights.targeted and target_K is not None else None
    ascent = _Ascent(model, obs_KO, weights, wanted_K, config, likelihood)
    mean, log_variance, trace = ascent.ascend(noise_DKnd)
    with torch.no_grad():
        z0 = posterior_draw(mean, log_variance, noise_DKnd[-1] if weights.sample else None)
        z = model.plan(z0, obs_KO)
        predicted_K, variance_K = _in_environment_units(model, *model.predict_return(z))
    return Inferred(mean, log_variance, z0, z, predicted_K, variance_K, kl_to_prior(mean, log_variance), trace)


class _Ascent:
    """Gradient ascent on (mu, log sigma^2) of a batch of environments."""

    def __init__(
        self,
        model: PlanModel,
        obs_KO: torch.Tensor,
        weights: Weights,
        wanted_K: torch.Tensor | None,
        config: PlanningConfig,
        likelihood: Likelihood | None,
    ) -> None:
        self.model, self.obs_KO, self.weights, self.wanted_K = model, obs_KO, weights, wanted_K
        self.config, self.likelihood = config, likelihood
        self.best = float(model.best_gathered()) if config.infer_bounded else math.inf

    def ascend(self, noise_DKnd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Trace]:
        shape, candidates = noise_DKnd.shape[1:], noise_DKnd[: self.weights.candidates]
        noise_DKnd = noise_DKnd[self.weights.candidates :]
        mean, log_variance = self._start(candidates, shape), torch.full(shape, self.weights.log_variance)
        own = [mean, log_variance]
        first, second = [torch.zeros(shape) for _ in own], [torch.zeros(shape) for _ in own]
        rows = []
        with torch.enable_grad():
            for step in range(self.weights.steps):
                for leaf in own:
                    leaf.requires_grad_(True)
                value_K, row = self._value(mean, log_variance, self._noise_of(noise_DKnd, step))
                gradients = torch.autograd.grad(value_K.sum(), own, allow_unused=True)
                rows.append(row)
                for leaf, gradient, m, v in zip(own, gradients, first, second):
                    leaf.requires_grad_(False)
                    if gradient is not None:
                        _adam_ascend(leaf, gradient, m, v, step + 1, self.config.infer_lr)
                if self.config.infer_radius:
                    mean.copy_(within_ball(mean, self.config.infer_radius))
        with torch.no_grad():
            rows.append(self._value(mean, log_variance, self._noise_of(noise_DKnd, self.weights.steps))[1])
        predicted_SK, variance_SK = _in_environment_units(
            self.model, torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])
        )
        return mean, log_variance, Trace(predicted_SK, variance_SK, torch.stack([row[2] for row in rows]))

    def _value(
        self, mean: torch.Tensor, log_variance: torch.Tensor, noise: torch.Tensor | None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """J (K,), and (r(z), its log variance, KL) for the trace."""
        z = self.model.plan(posterior_draw(mean, log_variance, noise), self.obs_KO)
        predicted_HK, log_variance_HK = self.model.return_terms(z)
        term_K = self._term(predicted_HK)
        if self.likelihood is not None:
            term_K = term_K + self.config.replan_weight * self.likelihood(z)
        kl_K = kl_to_prior(mean, log_variance)
        with torch.no_grad():
            mean_K = predicted_HK.mean(0)
            spread_K = log_variance_HK.exp().mean(0) + (predicted_HK - mean_K).square().mean(0)
            seen = (mean_K, spread_K.log(), kl_K.detach())
        return objective(term_K, kl_K, self.weights.kl), seen

    def _term(self, predicted_HK: torch.Tensor) -> torch.Tensor:
        """What E_q is taken of (..., K), in deviations of the returns learned from: how likely y+ is by the cautious return; or that
        return itself, of which whatever lies beyond the best that was gathered counts against it: it was never kept."""
        spread = self.model.return_spread
        believed_K = cautious(predicted_HK, self.config.infer_caution)
        if self.wanted_K is not None:
            return target_log_likelihood(believed_K / spread, self.wanted_K / spread, self.config.infer_target_variance)
        if math.isfinite(self.best):
            believed_K = self.best - (believed_K - self.best).abs()
        return believed_K / spread

    @torch.no_grad()
    def _start(self, noise_CKnd: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """q's mean before the first step: 0, or the best of 0 and the candidates, or the beam's.

        0 with a likelihood: what is worth most may be far from what explains the steps so far.
        """
        config = self.config
        if not len(noise_CKnd) or self.likelihood is not None:
            return torch.zeros(shape)
        if config.infer_start == "search" and self.wanted_K is None and searchable(self.model):
            assert isinstance(self.model, GACModel)
            found = beam_search(self.model, self.obs_KO, noise_CKnd, config.infer_beam, config.infer_caution)
        else:
            z0_CKnd = torch.cat([torch.zeros(1, *shape), noise_CKnd])
            z = self.model.plan(z0_CKnd.flatten(0, 1), self.obs_KO.repeat(len(z0_CKnd), 1))
            predicted_HCK = self.model.return_terms(z)[0].unflatten(1, z0_CKnd.shape[:2])
            found = best_of(self._term(predicted_HCK), z0_CKnd)
        return within_ball(found, config.infer_radius) if config.infer_radius else found.clone()

    def _noise_of(self, noise_DKnd: torch.Tensor, step: int) -> torch.Tensor | None:
        if self.weights.noise == "mean":
            return None
        return noise_DKnd[step if self.weights.noise == "fresh" else 0]


def _adam_ascend(
    leaf: torch.Tensor, gradient: torch.Tensor, m: torch.Tensor, v: torch.Tensor, step: int, lr: float
) -> None:
    """One Adam step uphill, in place."""
    m.lerp_(gradient, 1 - ADAM_BETA1)
    v.mul_(ADAM_BETA2).addcmul_(gradient, gradient, value=1 - ADAM_BETA2)
    root = (v / (1 - ADAM_BETA2**step)).sqrt_().add_(ADAM_EPS)
    leaf.addcdiv_(m, root, value=lr / (1 - ADAM_BETA1**step))


def _in_environment_units(
    model: PlanModel, mean: torch.Tensor, log_variance: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return model.denormalise_return(mean, log_variance.exp())


def best_of(score_CK: torch.Tensor, z0_CKnd: torch.Tensor) -> torch.Tensor:
    """The candidate (K, n, d) of the highest score in each environment."""
    return z0_CKnd[score_CK.argmax(0), torch.arange(score_CK.shape[1])]


def searchable(model: object) -> bool:
    """Whether plans of ``model`` are laid and paid token by token."""
    return isinstance(model, GACModel) and isinstance(model.prior, AutoregressivePrior) and model.return_head.additive


@torch.no_grad()
def beam_search(
    model: GACModel, obs_KO: torch.Tensor, noise_CKnd: torch.Tensor, width: int, caution: float
) -> torch.Tensor:
    """z_0 (K, n, d) of the plan that is worth most by the cautious return head, among those that a beam keeps.

    Args:
        obs_KO: first observations, raw.
        noise_CKnd: standard normal, C a multiple of ``width``; token k of candidate c is drawn from noise[c, :, k].
    """
    prior = model.prior
    assert isinstance(prior, AutoregressivePrior)
    count, envs, tokens, token_width = noise_CKnd.shape
    branches = count // width
    first_K1 = torch.arange(envs).unsqueeze(1) * count
    # Rows of what follows: environment by environment, W of each.
    state = prior.start(model.featurise_first(obs_KO)).repeat_interleave(width, 0)
    z0, z = (noise_CKnd.new_empty(envs * width, 0, token_width) for _ in range(2))
    worth = _Worth(model, envs * width)
    for k in range(tokens):
        draw = noise_CKnd[:, :, k].transpose(0, 1).reshape(envs * width, branches, token_width)
        mean, log_std = (part.unsqueeze(1) for part in prior.law(state))
        token = (mean + log_std.exp() * draw).flatten(0, 1).unsqueeze(1)
        longer = torch.cat([z.repeat_interleave(branches, 0), token], 1)
        believed_KC = cautious(worth.grown(longer, branches), caution).view(envs, count)
        chosen = (believed_KC.topk(1 if k == tokens - 1 else width, 1).indices + first_K1).flatten()
        worth.keep(chosen)
        parent = chosen // branches
        z0, z = torch.cat([z0[parent], draw.flatten(0, 1)[chosen].unsqueeze(1)], 1), longer[chosen]
        if k < tokens - 1:
            state = prior.follow(state[parent], z[:, -1])
    return z0


class _Worth:
    """What plans are worth by each return head as they grow, from the tokens alone that the newest one touches."""

    def __init__(self, model: GACModel, rows: int) -> None:
        self.model, self.side = model, model.config.return_span // 2
        self.final_HR = torch.zeros(model.config.return_heads, rows)  # of the tokens whose neighbours are all laid
        self.total_HR = self.final_HR

    def grown(self, z_Rkd: torch.Tensor, branches: int) -> torch.Tensor:
        """The sum over tokens (H, R) of plans that are one token longer, ``branches`` of each that was kept."""
        length, self.final_HR = z_Rkd.shape[1], self.final_HR.repeat_interleave(branches, 1)
        if length > self.model.config.return_count:  # the newest token is not paid
            self.total_HR = self.total_HR.repeat_interleave(branches, 1)
            return self.total_HR
        tail_HRj = self.model.return_head.worth(z_Rkd[:, max(0, length - 2 * self.side - 1) :])
        newest_HRj = tail_HRj[..., -(self.side + 1) :]
        self.total_HR = self.final_HR + newest_HRj.sum(-1)
        if length > self.side:
            self.final_HR = self.final_HR + newest_HRj[..., 0]
        return self.total_HR

    def keep(self, chosen: torch.Tensor) -> None:
        """Goes on with the rows ``chosen`` alone."""
        self.final_HR, self.total_HR = self.final_HR[:, chosen], self.total_HR[:, chosen]
