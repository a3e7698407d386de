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

from algorithms import progress
from algorithms.gac.losses import (
    TARGET_VARIANCE,
    Weights,
    kl_to_prior,
    mode_weights,
    objective,
    posterior_draw,
    target_log_likelihood,
)
from algorithms.gac.planning import PlanningConfig

ADAM_BETA1, ADAM_BETA2, ADAM_EPS = 0.9, 0.999, 1e-8

Likelihood = Callable[[torch.Tensor], torch.Tensor]  # z (K, n, d) -> log p(tau_<=t | z) (K,)


class PlanModel(Protocol):
    """What an ascent needs of a model: the prior's transformer and the return head, never the generator."""

    def plan(self, z0_Bnd: torch.Tensor, obs0_BO: torch.Tensor) -> torch.Tensor: ...

    def predict_return(self, z_Bnd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]: ...

    def normalise_return(self, y: torch.Tensor) -> torch.Tensor: ...

    def best_known(self) -> torch.Tensor: ...

    def return_unit(self) -> torch.Tensor: ...

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
    return 1 + weights.candidates + (weights.steps + 1 if weights.fresh else 0)


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
    """The plan of each environment: Adam ascent on the objective of ``mode`` from the best of 0 and the candidates.

    One environment's result does not depend on the others: nothing is shared but the matrix products.

    Args:
        obs_KO: first observations, raw, float32.
        mode: prior (no search; the last draw of the noise), st, kl, max or explore.
        target_K: y+ in environment units; only st and explore read it.
        noise_DKnd: standard normal, D = ``noise_draws(mode_weights(config, mode))``; all zeros acts by the mean.
        likelihood: log p_beta(tau_<=t | z), for replanning (Eq. 3).

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
        self.best, self.unit = float(model.best_known()), model.return_unit()

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
                progress.mark()
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
        predicted_K, predicted_log_variance_K = self.model.predict_return(z)
        past_K = None if self.likelihood is None else self.likelihood(z)
        kl_K = kl_to_prior(mean, log_variance)
        seen = (predicted_K.detach(), predicted_log_variance_K.detach(), kl_K.detach())
        return objective(self._term(predicted_K), kl_K, self.weights.kl, past_K), seen

    def _term(self, predicted_K: torch.Tensor) -> torch.Tensor:
        """What E_q is taken of (..., K), in the model's unit of returns: how likely y+ is; or the return itself, of which whatever
        lies beyond the best known counts against it: it was never kept."""
        if self.wanted_K is not None:
            return target_log_likelihood(predicted_K / self.unit, self.wanted_K / self.unit, TARGET_VARIANCE)
        if math.isfinite(self.best):
            predicted_K = self.best - (predicted_K - self.best).abs()
        return predicted_K / self.unit

    @torch.no_grad()
    def _start(self, noise_CKnd: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """q's mean before the first step: the best of 0 and the candidates.

        0 with a likelihood: what is worth most may be far from what explains the steps so far.
        """
        if not len(noise_CKnd) or self.likelihood is not None:
            return torch.zeros(shape)
        z0_CKnd = torch.cat([torch.zeros(1, *shape), noise_CKnd])
        z = self.model.plan(z0_CKnd.flatten(0, 1), self.obs_KO.repeat(len(z0_CKnd), 1))
        predicted_CK = self.model.predict_return(z)[0].unflatten(0, z0_CKnd.shape[:2])
        return best_of(self._term(predicted_CK), z0_CKnd)

    def _noise_of(self, noise_DKnd: torch.Tensor, step: int) -> torch.Tensor | None:
        return noise_DKnd[step] if self.weights.fresh else None


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
