"""What of a trained model's behaviour the state, the promised return and the rest of the plan account for.

Letters: B trajectories, n tokens, d width, R rows, S steps, K environments, O, A.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import torch

from algorithms.gac.agent import GAC
from algorithms.gac.bound import ACTIVE_NATS, Posterior, fresh, lower_bound, refine, return_share
from algorithms.gac.config import GACConfig
from algorithms.gac.generator import LEAST_ROW, Memory
from algorithms.gac.losses import kl_standard
from algorithms.gac.model import GACModel
from algorithms.gac.policy import GACPolicy
from algorithms.gac.segments import whole
from replay.schema import Trajectories

REDRAWS = 16  # plans over which what a state or a promise alone predicts is averaged
STEPS = 50  # of Newton's method, until a redrawn plan promises the same; one is enough for a linear return head
INNER_STEPS = 64  # of a posterior that is searched for
VARIANTS = ("searched", "hidden", "redrawn", "one")  # what episodes are acted by


class Explained(NamedTuple):
    """Shares of the recorded actions' variance that the model explains, teacher-forced, by several plans; and how far plans differ.

    A plan of another trajectory may lead elsewhere: the mean over such plans explains less than the state does
    (``regression.explained_without_plan``).
    """

    others: float  # the mean over plans of other trajectories
    promise: float  # the mean over plans from the prior that promise what the trajectory's own does
    own: float  # the trajectory's own plan
    prior: float  # one plan drawn from the prior
    spread: float  # not explained: the variance of the actions that plans of the prior take in one state


class Contents(NamedTuple):
    """What local posteriors say of their trajectories."""

    active_dims: int  # with a mean KL above ACTIVE_NATS
    dims: int
    kl_token: float  # nats
    return_correlation: float  # of the return and what the return head reads off the posterior's mean
    return_share: float  # of what the plan says, see ``return_share``


def posteriors(agent: GAC, batch: Trajectories) -> Posterior:
    """q of each trajectory: the encoder's, or searched for from the prior."""
    if agent.encoder is not None:
        with torch.no_grad():
            return agent.encoder(batch, agent.model)
    config = dataclasses.replace(agent.config, inner_steps=INNER_STEPS)
    segments = agent.gather_segments(batch, agent.uniform(len(batch), config.points // config.window))
    eps = agent.normal(len(batch), config.tokens, config.token_width)
    weight, start = config.kl_weight, fresh(config, len(batch), batch.return_B)
    return refine(config, start, lambda q: lower_bound(agent.model, batch, segments, q, eps, kl_weight=weight).elbo_B)


@torch.no_grad()
def contents(model: GACModel, batch: Trajectories, q: Posterior) -> Contents:
    """Of the posteriors ``q`` of the trajectories of ``batch``."""
    kl_Bnd, y_B = kl_standard(*q), model.normalise_return(batch.return_B)
    promised_B, _ = model.predict_return(model.plan(q.mean_Bnd, _first(model, batch)))
    return Contents(
        active_dims=int((kl_Bnd.mean(0) > ACTIVE_NATS).sum()),
        dims=kl_Bnd[0].numel(),
        kl_token=float(kl_Bnd.sum(-1).mean()),
        return_correlation=float(torch.corrcoef(torch.stack([promised_B, y_B]))[0, 1].nan_to_num()),
        return_share=float(return_share(q.mean_Bnd, kl_Bnd, y_B)),
    )


@torch.no_grad()
def explained(model: GACModel, batch: Trajectories, q: Posterior, seed: int = 0) -> Explained:
    """By the plans at the posteriors' means. Means are over REDRAWS plans; what so few leave of their variance is taken off."""
    recorded, obs0_BO = _Recorded(model, batch), _first(model, batch)
    z_Bnd = model.plan(q.mean_Bnd, obs0_BO)
    noise = torch.Generator().manual_seed(seed)
    count = min(REDRAWS, len(batch) - 1)
    others = [z_Bnd.roll(k + 1, 0) for k in range(count)]
    again = [redrawn(model, z_Bnd, obs0_BO, torch.randn(z_Bnd.shape, generator=noise)) for _ in range(count)]
    by_others, by_promise, by_own = (recorded.left(recorded.actions(plans)) for plans in (others, again, [z_Bnd]))
    noise.manual_seed(seed)
    drawn = recorded.actions([model.plan(torch.randn(z_Bnd.shape, generator=noise), obs0_BO) for _ in range(REDRAWS)])
    by_prior = sum(recorded.left([one]) for one in drawn) / REDRAWS
    return Explained(1.0 - by_others, 1.0 - by_promise, 1.0 - by_own, 1.0 - by_prior, recorded.spread(drawn))


class _Recorded:
    """The actions of recorded trajectories, and what plans make of them on the recorded states."""

    def __init__(self, model: GACModel, batch: Trajectories) -> None:
        size = max(model.config.window, LEAST_ROW)
        self._model = model
        self._segments = whole(batch, size=size, obs_dim=model.obs_dim, action_dim=model.action_dim)
        self._real_RS1 = self._segments.weight_RS.unsqueeze(-1)
        mean_A = (self._segments.action_RSA * self._real_RS1).sum((0, 1)) / self._real_RS1.sum()
        self._total = self._squares(self._segments.action_RSA - mean_A)

    def actions(self, plans: list[torch.Tensor]) -> list[torch.Tensor]:
        """(R, S, A) of plans (B, n, d), teacher-forced."""
        model, segments = self._model, self._segments
        return [model.generate_rows(model.memory(z), *segments[:2], segments.rows).action_BSA for z in plans]

    def left(self, made: list[torch.Tensor]) -> float:
        """The share of the variance that the mean over ``made`` leaves, without what so few leave of theirs."""
        error = self._squares(self._segments.action_RSA - torch.stack(made).mean(0))
        return float(error / self._total) - (self.spread(made) / len(made) if len(made) > 1 else 0.0)

    def spread(self, made: list[torch.Tensor]) -> float:
        """The variance of at least two ``made`` in one state, over that of the recorded actions."""
        mean_RSA = torch.stack(made).mean(0)
        return float(sum(self._squares(one - mean_RSA) for one in made) / (len(made) - 1) / self._total)

    def _squares(self, value_RSA: torch.Tensor) -> torch.Tensor:
        return (value_RSA.square() * self._real_RS1).sum()


@torch.inference_mode(False)  # an ascent needs gradients, wherever it is called from
def redrawn(model: GACModel, z_Knd: torch.Tensor, obs0_KO: torch.Tensor, eps_Knd: torch.Tensor) -> torch.Tensor:
    """Plans from the prior, moved along the return head's gradient until they promise what ``z_Knd`` does."""
    with torch.no_grad():
        wanted_K, z = model.predict_return(z_Knd)[0], model.plan(eps_Knd, obs0_KO)
    for _ in range(STEPS):
        with torch.enable_grad():
            leaf = z.clone().detach().requires_grad_()  # the standard prior gives eps itself, made in inference mode
            promised_K = model.predict_return(leaf)[0]
            (slope_Knd,) = torch.autograd.grad(promised_K.sum(), leaf)
        missing_K = wanted_K - promised_K.detach()
        if bool((missing_K.abs() < 1e-3).all()):
            break
        steep_K = slope_Knd.square().sum((1, 2)).clamp(min=1e-6)
        z = z + (missing_K / steep_K)[:, None, None] * slope_Knd
    return z.detach()


class PartialPlan(GACPolicy):
    """Acts by a part of each plan.

    ``searched``: all of it; ``hidden``: zeros, and with linear reading what it promises; ``redrawn``: all but the promise drawn anew
    from the prior; ``one``: the mean of the plans that begin together. What is promised stays what the search promised.
    """

    def __init__(self, config: GACConfig, obs_dim: int, action_dim: int, variant: str) -> None:
        self.variant = variant
        super().__init__(config, obs_dim, action_dim)

    def read(self, z_Knd: torch.Tensor, env_K: np.ndarray, obs_KO: np.ndarray) -> Memory:
        """What the generator reads instead of the plans."""
        if self.variant == "hidden":
            return self.model.memory(z_Knd, torch.ones(len(z_Knd), dtype=torch.bool))
        if self.variant == "one":
            return self.model.memory(z_Knd.mean(0, keepdim=True).expand(z_Knd.shape))
        if self.variant == "redrawn":
            streams = [np.random.default_rng([int(seed), 1]) for seed in self._seed_E[env_K]]
            shape = z_Knd.shape[1:]
            eps = np.stack([stream.standard_normal(shape, dtype=np.float32) for stream in streams])
            z_Knd = redrawn(self.model, z_Knd, torch.from_numpy(obs_KO), torch.from_numpy(eps))
        return self.model.memory(z_Knd)


def _first(model: GACModel, batch: Trajectories) -> torch.Tensor:
    return batch.rows_NF[batch.offset[:-1], : model.obs_dim]
