"""The evidence lower bound of a batch of trajectories at one draw of their posteriors, and what is watched of it.

Letters: B trajectories, n tokens, d width, R rows, S steps, O, A. Source: arXiv 2512.21527 [P]; its terms one by one
stand in losses.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from algorithms.gac.alarm import active_share, collapsed
from algorithms.gac.losses import elbo, free_bits, gaussian_log_prob, step_log_prob
from algorithms.gac.model import GACModel
from algorithms.gac.posterior import Posterior
from algorithms.gac.segments import Segments, per_trajectory
from replay.trajectories import Trajectories

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
    "collapse",  # 1: an alarm, see alarm.py
)


class Bound(NamedTuple):
    """The ELBO of each trajectory and what it is made of."""

    elbo_B: torch.Tensor
    action_B: torch.Tensor  # log likelihood of the actions, over all steps
    return_B: torch.Tensor  # log density of the z-scored return
    return_gap_B: torch.Tensor  # predicted - true, z-scored
    kl_Bnd: torch.Tensor
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
    return_eps_Bnd: torch.Tensor | None = None,
    hidden_B: torch.Tensor | None = None,
) -> Bound:
    """At the draw mu + sigma eps; differentiable in the networks and in the posterior.

    ``return_eps_Bnd`` is standard noise that ``return_noise`` scales and z carries into the return head alone; None: none.
    ``hidden_B``: see GACModel.memory.
    """
    config, rows, count = model.config, segments.rows, len(batch)
    obs0_BO = batch.rows_NF[batch.offset[:-1], : model.obs_dim]
    z_Bnd, kl_Bnd = model.explain(*posterior, posterior.draw(eps_Bnd), obs0_BO)
    made = model.generate_rows(
        model.memory(z_Bnd, hidden_B), segments.obs_RSO, segments.action_RSA, segments.time_RS, segments.rows
    )
    moved_RSO = model.displacement(segments.obs_RSO, segments.later_RSO)
    action_R = step_log_prob(segments.action_RSA, made.action_BSA, model.action_log_variance(), segments.weight_RS)
    next_R = step_log_prob(moved_RSO, made.next_obs_BSO, model.next_log_variance(), segments.ahead_weight_RS)
    shaken_Bnd = z_Bnd if return_eps_Bnd is None else z_Bnd + config.return_noise * return_eps_Bnd
    mean_KB, log_variance_KB = model.return_terms(shaken_Bnd)
    y_B = model.normalise_return(batch.return_B)
    return_B = gaussian_log_prob(y_B, mean_KB, log_variance_KB).mean(0)
    action_B = per_trajectory(action_R, rows, count)
    total_B = elbo(
        action_B,
        per_trajectory(next_R, rows, count),
        return_B,
        free_bits(kl_Bnd, config.free_bits, config.free_bits_per),
        next_state_weight=config.next_state_weight,
        kl_weight=kl_weight,
    )
    gap_B = mean_KB.mean(0) - y_B
    return Bound(total_B, action_B, return_B, gap_B, kl_Bnd, made.action_BSA.detach(), made.next_obs_BSO.detach())


@torch.no_grad()
def measures(model: GACModel, batch: Trajectories, segments: Segments, bound: Bound) -> torch.Tensor:
    """The MEASURES of a batch, stacked."""
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
        collapsed(kl, model.config.alarm_nats),
    )
    return torch.stack(values)
