"""The evidence lower bound of a batch of trajectories at one draw of their posteriors, and what is watched of it.

Letters: B trajectories, n tokens, d width, R rows, S steps, O, A. Source: arXiv 2512.21527 [P]; its terms one by one
stand in losses.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from algorithms.gac.config import LEARNED, GACConfig
from algorithms.gac.generator import perceptron
from algorithms.gac.losses import elbo, free_bits, gaussian_log_prob, kl_standard, step_log_prob
from algorithms.gac.model import GACModel
from algorithms.gac.segments import Segments, per_trajectory
from algorithms.trainer import FlatAdam
from replay.schema import Trajectories

MEASURES = (
    "elbo",  # nats a trajectory, as it is maximised
    "action_nll",  # nats a step
    "action_mse",
    "next_state_error",  # mean square, in data deviations
    "return_nll",  # nats, of the z-scored return
    "return_error",  # root mean square, environment units
    "kl_total",  # nats a trajectory
    "kl_token",  # nats
    "active_dims",  # share of the latent dimensions
    "collapse",  # 1: an alarm, see ``collapsed``
    "plan_return",  # share of what the plan says that is the return, see ``return_share``
)


class Bound(NamedTuple):
    """The ELBO of each trajectory and what it is made of."""

    elbo_B: torch.Tensor
    action_B: torch.Tensor  # log likelihood of the actions, over all steps
    return_B: torch.Tensor  # log density of the z-scored return
    return_gap_B: torch.Tensor  # predicted - true, z-scored
    kl_Bnd: torch.Tensor
    mean_Bnd: torch.Tensor  # of the posterior; no gradient
    action_RSA: torch.Tensor  # predicted; no gradient
    next_obs_RSO: torch.Tensor  # predicted displacements; no gradient


def lower_bound(
    model: GACModel,
    batch: Trajectories,
    segments: Segments,
    posterior: Posterior,
    eps_Bnd: torch.Tensor,
    *,
    kl_weight: float = 1.0,
    hidden_B: torch.Tensor | None = None,
) -> Bound:
    """At the draw mu + sigma eps; differentiable in the networks and in the posterior. ``hidden_B``: see GACModel.memory."""
    config, rows, count = model.config, segments.rows, len(batch)
    obs0_BO = batch.rows_NF[batch.offset[:-1], : model.obs_dim]
    z_Bnd, kl_Bnd = model.plan(posterior.draw(eps_Bnd), obs0_BO), kl_standard(*posterior)
    made = model.generate_rows(model.memory(z_Bnd, hidden_B), segments.obs_RSO, segments.action_RSA, segments.rows)
    moved_RSO = model.displacement(segments.obs_RSO, segments.later_RSO)
    action_R = step_log_prob(segments.action_RSA, made.action_BSA, model.action_log_variance(), segments.weight_RS)
    next_R = step_log_prob(moved_RSO, made.next_obs_BSO, model.next_log_variance(), segments.ahead_weight_RS)
    mean_B, log_variance_B = model.predict_return(z_Bnd)
    y_B = model.normalise_return(batch.return_B)
    return_B = gaussian_log_prob(y_B, mean_B, log_variance_B)
    action_B = per_trajectory(action_R, rows, count)
    total_B = elbo(
        action_B,
        per_trajectory(next_R, rows, count),
        return_B,
        free_bits(kl_Bnd, config.free_bits),
        next_state_weight=config.next_state_weight,
        kl_weight=kl_weight,
    )
    seen = posterior.mean_Bnd.detach(), made.action_BSA.detach(), made.next_obs_BSO.detach()
    return Bound(total_B, action_B, return_B, mean_B - y_B, kl_Bnd, *seen)


@torch.no_grad()
def measures(model: GACModel, batch: Trajectories, segments: Segments, bound: Bound, least: float) -> torch.Tensor:
    """The MEASURES of a batch, stacked; ``least``: nats a token of a posterior that has not collapsed."""
    kl, weight, ahead = bound.kl_Bnd, segments.weight_RS, segments.ahead_weight_RS
    moved = model.displacement(segments.obs_RSO, segments.later_RSO)
    values = (
        bound.elbo_B.mean(),
        -(bound.action_B / batch.offset.diff()).mean(),
        ((segments.action_RSA - bound.action_RSA).square().mean(-1) * weight).sum() / weight.sum(),
        ((moved - bound.next_obs_RSO).square().mean(-1) * ahead).sum() / ahead.sum().clamp(min=1e-9),
        -bound.return_B.mean(),
        bound.return_gap_B.square().mean().sqrt() * model.return_std,
        kl.sum((1, 2)).mean(),
        kl.sum(-1).mean(),
        active_share(kl),
        collapsed(kl, least),
        return_share(bound.mean_Bnd, kl, model.normalise_return(batch.return_B)),
    )
    return torch.stack(values)


LOG_VARIANCE_RANGE = (-8.0, 1.0)  # of the encoder
LOG_VARIANCE_START = -2.0  # of the encoder
OBSERVED = 64  # steps of an episode that the encoder looks at [C]
INNER_LR, INNER_LR_END = (
    0.3,
    0.1,
)  # of the steps of a local posterior: at their start, and the share of it at the last [LPT]
INNER_LOG_VARIANCE = -5.0  # log sigma^2 that a fresh posterior starts from [LPT]


class Posterior(NamedTuple):
    """A diagonal Gaussian over z0 for each trajectory."""

    mean_Bnd: torch.Tensor
    log_variance_Bnd: torch.Tensor

    def draw(self, eps_Bnd: torch.Tensor) -> torch.Tensor:
        """z0 = mu + sigma eps."""
        return self.mean_Bnd + (0.5 * self.log_variance_Bnd).exp() * eps_Bnd

    def packed(self) -> torch.Tensor:
        """(B, P) float32 without gradient, as it is written back beside the episodes."""
        return torch.cat([self.mean_Bnd.flatten(1), self.log_variance_Bnd.flatten(1)], 1).detach()


def fresh(config: GACConfig, trajectories: int, like: torch.Tensor) -> Posterior:
    """mu = 0 and log sigma^2 where every search begins [LPT]."""
    shape = (trajectories, config.tokens, config.token_width)
    return Posterior(like.new_zeros(shape), like.new_full(shape, INNER_LOG_VARIANCE))


def stored(config: GACConfig, batch: Trajectories) -> Posterior:
    """What was last written back, or ``fresh`` where nothing was; finite whatever was stored."""
    start = fresh(config, len(batch), batch.posterior_BP)
    halves = batch.posterior_BP.view(len(batch), 2, config.tokens, config.token_width)
    known = (batch.visits_B > 0) & halves.flatten(1).isfinite().all(1)
    return Posterior(*(torch.where(known[:, None, None], halves[:, i], start[i]) for i in range(2)))


def refine(config: GACConfig, start: Posterior, bound: Callable[[Posterior], torch.Tensor]) -> Posterior:
    """``inner_steps`` AdamW steps on (mu, log sigma^2), each trajectory's own, with the networks frozen [P, LPT].

    Args:
        bound: the ELBO (B,) of a posterior, by one eps that it reuses. Only its gradient with respect to the posterior
            is taken, so no network's gradient is touched.

    Returns:
        The last one, without gradient; ``start`` for a trajectory whose search left the finite numbers.
    """
    value = torch.stack(list(start)).detach().clone()
    grad, never = torch.zeros_like(value), torch.zeros((), device=value.device)
    adam = FlatAdam(value.view(-1), grad.view(-1), lr=INNER_LR, weight_decay=0.0)
    for step in range(config.inner_steps):
        adam.lr = INNER_LR * cosine(step / config.inner_steps, INNER_LR_END)
        leaf = value.detach().requires_grad_()
        with torch.enable_grad():
            (found,) = torch.autograd.grad(-bound(Posterior(leaf[0], leaf[1])).sum(), leaf)
        grad.copy_(found)
        adam.step(never)
    sound_B = value.isfinite().flatten(2).all(2).all(0)[:, None, None]
    return Posterior(*(torch.where(sound_B, value[i], start[i].detach()) for i in range(2)))


def cosine(share: float, end: float) -> float:
    """1 at share 0, ``end`` at share 1 and after, half a cosine between."""
    return end + (1.0 - end) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, share)))


class PosteriorEncoder(nn.Module):
    """The amortised form, trained with the networks on the same bound: one MLP looks at each of OBSERVED steps spread over the
    longest episode, and their mean gives every token. With ``posterior_return`` the return is seen too. Steps after the
    episode's end count as absent."""

    def __init__(self, config: GACConfig, features: int, obs_dim: int, action_dim: int) -> None:
        super().__init__()
        self.config, self.obs_dim, self.action_dim, width = config, obs_dim, action_dim, config.posterior_width
        self.step = perceptron(features + action_dim + 1, width, width, 3)
        self.read = nn.Linear(width + config.posterior_return, width)
        self.law = _law(width, config.tokens * config.token_width)

    def forward(self, batch: Trajectories, model: GACModel, shift: torch.Tensor | float = 0.5) -> Posterior:
        """q of each trajectory, in float32; differentiable in the encoder's parameters.

        ``shift`` in [0, 1): where in its share of the longest episode each step that is looked at lies.
        """
        with model.region():
            seen_BKX = self.observed(batch, model, shift)
            there_BK1 = seen_BKX[..., -1:]
            mean_BC = (self.step(seen_BKX) * there_BK1).sum(1) / there_BK1.sum(1).clamp(min=1.0)
            if self.config.posterior_return:
                mean_BC = torch.cat([mean_BC, model.normalise_return(batch.return_B).unsqueeze(1)], 1)
            law = self.law(F.silu(self.read(F.silu(mean_BC)))).float()
        mean, log_variance = law.unflatten(1, (2, self.config.tokens, self.config.token_width)).unbind(1)
        return Posterior(mean, log_variance.clamp(*LOG_VARIANCE_RANGE))

    def observed(self, batch: Trajectories, model: GACModel, shift: torch.Tensor | float = 0.5) -> torch.Tensor:
        """(B, K, X + A + 1): features of the observation, action, and 1 where there is such a step, 0 (all) elsewhere."""
        share = (torch.arange(OBSERVED, device=batch.offset.device) + shift) / OBSERVED
        time_K = (share * model.horizon).long()
        length_B1 = batch.offset.diff().unsqueeze(1)
        there_BK1 = (time_K < length_B1).float().unsqueeze(-1)
        rows = batch.rows_NF[batch.offset[:-1, None] + torch.minimum(time_K, length_B1 - 1)]
        obs, action = rows[..., : self.obs_dim], rows[..., self.obs_dim : self.obs_dim + self.action_dim]
        return torch.cat([model.featurise(obs) * there_BK1, action * there_BK1, there_BK1], -1)


def _law(width: int, floats: int) -> nn.Linear:
    """Means and log-variances of ``floats`` coordinates, near the prior's mean at first."""
    law = nn.Linear(width, 2 * floats)
    with torch.no_grad():
        law.weight.mul_(0.3)
        law.bias[floats:] = LOG_VARIANCE_START
    return law


ACTIVE_NATS = 0.01  # mean KL above which a dimension counts as active (Burda et al., 2016, have the same threshold)


COLLAPSE_NATS = 0.05  # mean KL a token below which a posterior collapse is reported [C]


def active_share(kl_Bnd: torch.Tensor) -> torch.Tensor:
    """Share (0-d) of the n d latent dimensions whose KL, averaged over trajectories, is above ACTIVE_NATS."""
    return (kl_Bnd.mean(0) > ACTIVE_NATS).float().mean()


def return_share(mean_Bnd: torch.Tensor, kl_Bnd: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
    """Share (0-d) of what posteriors say that is the return: R^2 of each dimension's mean by y over the trajectories, averaged
    with the dimensions' KL as weights; 0 where all returns are equal. Near 1 a plan is a copy of y."""
    mean_Bm, kl_m = mean_Bnd.flatten(1), kl_Bnd.flatten(1).mean(0)
    mean_Bm, y_B = mean_Bm - mean_Bm.mean(0), y_B - y_B.mean()
    scale_m = (mean_Bm.square().sum(0) * y_B.square().sum()).clamp(min=1e-12)
    return ((mean_Bm.T @ y_B).square() / scale_m * kl_m).sum() / kl_m.sum().clamp(min=1e-12)


def least_nats(config: GACConfig, update: int, *, in_stages: bool) -> float:
    """Nats a token of a posterior that has not collapsed: COLLAPSE_NATS, and late in the training on the dataset more than is free,
    which is there whether the generator reads it or not. Stages gather alike episodes, of which there is less to say.

    Args:
        update: its number, the first is 0; the last on the dataset is ``config.updates`` - 1.
        in_stages: whether it learns from what stages have gathered.
    """
    late = LEARNED * config.updates <= update < config.updates and not in_stages
    return max(COLLAPSE_NATS, config.free_bits) if late else COLLAPSE_NATS


def collapsed(kl_Bnd: torch.Tensor, least: float) -> torch.Tensor:
    """1 (0-d float32) where the mean KL a token is below ``least`` nats, else 0; on the device, without a look at it.

    The generator may then work without the plan, and the return is steered little.
    """
    return (kl_Bnd.sum(-1).mean() < least).float()
