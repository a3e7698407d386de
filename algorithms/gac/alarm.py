"""Posterior collapse, watched at every update: a plan that says nothing of its trajectory cannot be searched."""

from __future__ import annotations

import torch

ACTIVE_NATS = 0.01  # mean KL above which a dimension counts as active (Burda et al., 2016, have the same threshold)


def active_share(kl_Bnd: torch.Tensor) -> torch.Tensor:
    """Share (0-d) of the n d latent dimensions whose KL, averaged over trajectories, is above ACTIVE_NATS."""
    return (kl_Bnd.mean(0) > ACTIVE_NATS).float().mean()


def collapsed(kl_Bnd: torch.Tensor, least: float) -> torch.Tensor:
    """1 (0-d float32) where the mean KL a token is below ``least`` nats, else 0; on the device, without a look at it.

    The generator then works without the plan and the return cannot be steered: raise ``free_bits``, lower
    ``kl_weight``, shorten ``window`` or raise ``history_dropout``.
    """
    return (kl_Bnd.sum(-1).mean() < least).float()
