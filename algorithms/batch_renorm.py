"""Batch renormalisation, written out: statistics in, statistics out, its own backward.

Letters: T the two critics, M rows, I features. Source: Ioffe, "Batch Renormalization" (2017), as CrossQ uses it
(Bhatt et al. 2024); constants of arXiv 2605.08733. A train-mode pass computes

    y = gamma ((x - mu) / s * r + d) + beta,   s = sqrt(var + eps),  mu and biased var over the batch,
    r = clip(s / s_run, 1/r_max, r_max),  d = clip((mu - mu_run) / s_run, -d_max, d_max),

with r and d constants to the gradient, r = 1 and d = 0 for the first ``warmup`` passes (plain batch normalisation).
That is form "ioffe". The code of CrossQ, which SoftGAC's authors released with theirs, computes (form "crossq")

    y = gamma (x - mu + d sqrt(var) / r) / sqrt(var / r^2 + eps) + beta,   r and d as above,

the same during warm-up and, after it, for features whose variance is far above eps. The root of var has a gradient there.

An eval-mode pass uses mu_run and s_run. Written by hand and not by autograd because this is half of what an update does
beside its matrix products; the tests compare it with the plain form.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from algorithms.interface import Collective


@dataclasses.dataclass(frozen=True, kw_only=True)
class Renorm:
    """Constants of a batch renormalisation (see CriticConfig)."""

    decay: float
    eps: float
    r_max: float
    d_max: float
    warmup: int
    form: str = "ioffe"


@dataclasses.dataclass(frozen=True)
class Pass:
    """What a train-mode pass leaves for its backward and for the running statistics."""

    x_TMI: torch.Tensor  # the input, minus ``shift``
    mean_TI: torch.Tensor  # of the shifted input, over all learners' rows
    var_TI: torch.Tensor
    inverse_TI: torch.Tensor  # 1 / sqrt(var + eps); of crossq 1 / sqrt(var + r^2 eps)
    r_TI: torch.Tensor
    shift_TI: torch.Tensor  # what gamma multiplies beside the centred x: d; of crossq d sqrt(var) inverse
    scale_TI: torch.Tensor  # gamma r inverse: y = x * scale + constant
    bend_TI: torch.Tensor | None  # of crossq: d(gamma shift)/d var


def forward(
    x_TMI: torch.Tensor,
    gamma_TI: torch.Tensor,
    beta_TI: torch.Tensor,
    running_mean_TI: torch.Tensor,
    running_var_TI: torch.Tensor,
    warm: torch.Tensor,
    constants: Renorm,
    collective: Collective,
) -> tuple[torch.Tensor, Pass]:
    """Train-mode output (T, M, I) and what the backward needs.

    ``running_mean_TI`` is relative to the same origin as x. ``warm`` (0-d bool): plain batch normalisation is over.
    Statistics are those of all learners' rows: one collective call.
    """
    moments = torch.stack([x_TMI.mean(1), (x_TMI * x_TMI).mean(1)])
    collective.mean_(moments)
    mean_TI, square_TI = moments.unbind(0)
    var_TI = (square_TI - mean_TI * mean_TI).clamp_(min=0.0)
    inverse_TI = torch.rsqrt(var_TI + constants.eps)
    running_inverse_TI = torch.rsqrt(running_var_TI + constants.eps)
    r_TI = (running_inverse_TI / inverse_TI).clamp_(1 / constants.r_max, constants.r_max)
    d_TI = ((mean_TI - running_mean_TI) * running_inverse_TI).clamp_(-constants.d_max, constants.d_max)
    r_TI = torch.where(warm, r_TI, 1.0)
    d_TI = torch.where(warm, d_TI, 0.0)
    shift_TI, bend_TI = d_TI, None
    if constants.form == "crossq":
        floor_TI = r_TI * r_TI * constants.eps
        inverse_TI = torch.rsqrt(var_TI + floor_TI)
        shift_TI = d_TI * var_TI.sqrt() * inverse_TI
        bend_TI = gamma_TI * d_TI * floor_TI * inverse_TI.pow(3) * (0.5 * torch.rsqrt(var_TI))
        bend_TI = torch.where(var_TI > 0, bend_TI, 0.0)  # a constant feature has nothing to follow below
    scale_TI = gamma_TI * r_TI * inverse_TI
    offset_TI = beta_TI + gamma_TI * shift_TI - mean_TI * scale_TI
    y_TMI = torch.addcmul(offset_TI.unsqueeze(1), x_TMI, scale_TI.unsqueeze(1))
    return y_TMI, Pass(x_TMI, mean_TI, var_TI, inverse_TI, r_TI, shift_TI, scale_TI, bend_TI)


def affine_grads(grad_TBI: torch.Tensor, seen: Pass) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of gamma and beta (T, I), and sum (x - mu) dL/dy; dL/dy is of the FIRST B rows, the rest have none."""
    sum_TI = grad_TBI.sum(1)
    centred_TI = (grad_TBI * seen.x_TMI[:, : grad_TBI.shape[1]]).sum(1) - seen.mean_TI * sum_TI
    return centred_TI * (seen.r_TI * seen.inverse_TI) + seen.shift_TI * sum_TI, sum_TI, centred_TI


def input_grad(
    grad_TBI: torch.Tensor, sum_TI: torch.Tensor, centred_TI: torch.Tensor, seen: Pass, collective: Collective
) -> torch.Tensor:
    """dL/dx (T, M, I), through the batch statistics too: rows whose output has no gradient still shape the statistics.

    With L the mean of the learners' losses, each learner takes the mean of dL/d(statistics) over the learners.
    """
    rows = seen.x_TMI.shape[1]
    d_square_TI = centred_TI * seen.scale_TI * seen.inverse_TI.square() * -0.5  # dL/dvar = dL/d(mean of squares)
    if seen.bend_TI is not None:
        d_square_TI = d_square_TI + sum_TI * seen.bend_TI
    d_mean_TI = -seen.scale_TI * sum_TI - 2.0 * seen.mean_TI * d_square_TI
    through = torch.stack([d_mean_TI, 2.0 * d_square_TI]) * (1.0 / rows)
    collective.mean_(through)
    a_TI, b_TI = through.unsqueeze(2).unbind(0)
    grad_TMI = torch.addcmul(a_TI, seen.x_TMI, b_TI)
    grad_TMI[:, : grad_TBI.shape[1]].addcmul_(grad_TBI, seen.scale_TI.unsqueeze(1))
    return grad_TMI


class Renormalise(torch.autograd.Function):
    """One train-mode pass of one network, for autograd: ``apply(x_MI, gamma_I, beta_I, mean_I, var_I, warm, constants, collective)``.

    Returns y_MI, and the batch's mean and variance (I,), by which ``mean_I`` and ``var_I`` are to move. Moments are taken about
    ``mean_I``, so that inputs far from 0 keep their variance in float32.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x_MI, gamma_I, beta_I, mean_I, var_I, warm, constants, collective = args
        shifted_TMI, zero_TI = (x_MI - mean_I).unsqueeze(0), torch.zeros_like(mean_I).unsqueeze(0)
        scales = gamma_I.unsqueeze(0), beta_I.unsqueeze(0)
        y_TMI, seen = forward(shifted_TMI, *scales, zero_TI, var_I.unsqueeze(0), warm, constants, collective)
        ctx.seen, ctx.collective = seen, collective
        batch_mean_I, batch_var_I = seen.mean_TI[0] + mean_I, seen.var_TI[0]
        ctx.mark_non_differentiable(batch_mean_I, batch_var_I)
        return y_TMI[0], batch_mean_I, batch_var_I

    @staticmethod
    def backward(ctx: Any, *output_grads: Any) -> Any:
        grad_TMI = output_grads[0].unsqueeze(0)
        gamma_grad, beta_grad, centred = affine_grads(grad_TMI, ctx.seen)
        x_grad = None
        if ctx.needs_input_grad[0]:
            x_grad = input_grad(grad_TMI, beta_grad, centred, ctx.seen, ctx.collective)[0]
        return x_grad, gamma_grad[0], beta_grad[0], None, None, None, None, None


def folded(
    weight_TIH: torch.Tensor,
    bias_TH: torch.Tensor,
    gamma_TI: torch.Tensor,
    beta_TI: torch.Tensor,
    mean_TI: torch.Tensor,
    var_TI: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of the one linear layer that equals an eval-mode renormalisation followed by a linear layer."""
    scale_TI = gamma_TI * torch.rsqrt(var_TI + eps)
    offset_TI = beta_TI - mean_TI * scale_TI
    bias = torch.baddbmm(bias_TH.unsqueeze(1), offset_TI.unsqueeze(1), weight_TIH)
    return weight_TIH * scale_TI.unsqueeze(-1), bias
