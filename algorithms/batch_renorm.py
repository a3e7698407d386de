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
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from algorithms.interface import Collective

TINY = torch.finfo(torch.float32).tiny


@dataclasses.dataclass(frozen=True, kw_only=True)
class Renorm:
    """Constants of a batch renormalisation (see CriticConfig)."""

    decay: float
    eps: float
    r_max: float
    d_max: float
    warmup: int
    form: str = "ioffe"


class Reference(NamedTuple):
    """What a batch's statistics are held against: of the running ones (T, I), and the clips (0-d)."""

    inverse_TI: torch.Tensor  # 1 / sqrt(var + eps)
    r_least: torch.Tensor  # both 1 during warm-up
    r_most: torch.Tensor
    d_least: torch.Tensor  # both 0 during warm-up
    d_most: torch.Tensor


def references(running_vars: tuple[torch.Tensor, ...], warm: torch.Tensor, constants: Renorm) -> list[Reference]:
    """Of every layer at once, from its running variance (T, I). ``warm`` (0-d bool): plain batch normalisation is over."""
    warm = warm.to(running_vars[0].dtype)
    r_most, d_most = 1.0 + (constants.r_max - 1.0) * warm, constants.d_max * warm
    clips = r_most.reciprocal(), r_most, -d_most, d_most
    return [Reference(inverse_TI, *clips) for inverse_TI in inverse_deviations(running_vars, constants.eps)]


def inverse_deviations(vars_TI: tuple[torch.Tensor, ...], eps: float) -> tuple[torch.Tensor, ...]:
    """1 / sqrt(var + eps) of every layer at once."""
    return torch._foreach_rsqrt(torch._foreach_add(vars_TI, eps))


@dataclasses.dataclass(frozen=True)
class Pass:
    """What a train-mode pass leaves for its backward and for the running statistics."""

    x_TMI: torch.Tensor  # the input, minus ``shift``
    mean_TI: torch.Tensor  # of the shifted input, over all learners' rows
    var_TI: torch.Tensor
    spread_TI: torch.Tensor  # var + eps; of crossq var + r^2 eps
    r_TI: torch.Tensor
    factor_TI: torch.Tensor  # r / sqrt(spread): y = gamma ((x - mu) factor + shift) + beta
    shift_TI: torch.Tensor  # d; of crossq d sqrt(var / spread)
    scale_TI: torch.Tensor  # gamma factor
    constants: Renorm


def forward(
    x_TMI: torch.Tensor,
    gamma_TI: torch.Tensor,
    beta_TI: torch.Tensor,
    running_mean_TI: torch.Tensor,
    running_var_TI: torch.Tensor,
    warm: torch.Tensor,
    constants: Renorm,
    collective: Collective,
    reference: Reference | None = None,
) -> tuple[torch.Tensor, Pass]:
    """Train-mode output (T, M, I) and what the backward needs.

    ``running_mean_TI`` is relative to the same origin as x. ``warm`` (0-d bool): plain batch normalisation is over.
    Statistics are those of all learners' rows: one collective call. ``reference`` is that of ``running_var_TI`` and
    ``warm``, where it is known already.
    """
    inverse_TI, r_least, r_most, d_least, d_most = reference or references((running_var_TI,), warm, constants)[0]
    moments = torch.stack([x_TMI.mean(1), (x_TMI * x_TMI).mean(1)])
    collective.mean_(moments)
    mean_TI, square_TI = moments.unbind(0)
    var_TI = torch.addcmul(square_TI, mean_TI, mean_TI, value=-1.0).clamp_(min=0.0)
    spread_TI = var_TI + constants.eps
    root_TI = spread_TI.sqrt()
    r_TI = (root_TI * inverse_TI).clamp_(r_least, r_most)
    shift_TI = ((mean_TI - running_mean_TI) * inverse_TI).clamp_(d_least, d_most)
    if constants.form == "crossq":
        spread_TI = torch.addcmul(var_TI, r_TI, r_TI, value=constants.eps)
        root_TI = spread_TI.sqrt()
        shift_TI = shift_TI * var_TI.sqrt() / root_TI
    factor_TI = r_TI / root_TI
    scale_TI = gamma_TI * factor_TI
    offset_TI = torch.addcmul(beta_TI, gamma_TI, shift_TI).addcmul_(mean_TI, scale_TI, value=-1.0)
    y_TMI = torch.addcmul(offset_TI.unsqueeze(1), x_TMI, scale_TI.unsqueeze(1))
    return y_TMI, Pass(x_TMI, mean_TI, var_TI, spread_TI, r_TI, factor_TI, shift_TI, scale_TI, constants)


def affine_grads(
    grad_TBI: torch.Tensor,
    seen: Pass,
    gamma_grad: torch.Tensor | None = None,
    beta_grad: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of gamma and beta (T, I), and sum (x - mu) dL/dy; dL/dy is of the FIRST B rows, the rest have none.

    The first two are written into ``gamma_grad`` and ``beta_grad`` where these are given.
    """
    sum_TI = torch.sum(grad_TBI, 1, out=beta_grad)
    product_TI = (grad_TBI * seen.x_TMI[:, : grad_TBI.shape[1]]).sum(1)
    centred_TI = torch.addcmul(product_TI, seen.mean_TI, sum_TI, value=-1.0)
    gamma_TI = torch.mul(centred_TI, seen.factor_TI, out=gamma_grad).addcmul_(seen.shift_TI, sum_TI)
    return gamma_TI, sum_TI, centred_TI


def input_grad(
    grad_TBI: torch.Tensor, sum_TI: torch.Tensor, centred_TI: torch.Tensor, seen: Pass, collective: Collective
) -> torch.Tensor:
    """dL/dx (T, M, I), through the batch statistics too: rows whose output has no gradient still shape the statistics.

    With L the mean of the learners' losses, each learner takes the mean of dL/d(statistics) over the learners.
    """
    pull_TI = seen.scale_TI * (-1.0 / seen.x_TMI.shape[1])
    slope_TI = centred_TI / seen.spread_TI
    if seen.constants.form == "crossq":  # the shift follows var, too; that of a constant feature is 0 and stays so
        bend_TI = seen.factor_TI * seen.shift_TI / seen.var_TI.clamp_min(TINY)
        slope_TI.addcmul_(sum_TI, bend_TI, value=-seen.constants.eps)
    by_square_TI = pull_TI * slope_TI  # 2 / M dL/dvar, which is 2 / M dL/d(mean of squares)
    by_mean_TI = (pull_TI * sum_TI).addcmul_(seen.mean_TI, by_square_TI, value=-1.0)  # 1 / M dL/d(mean)
    through = torch.stack([by_mean_TI, by_square_TI])
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
    linears: Sequence[tuple[torch.Tensor, torch.Tensor]],
    norms: Sequence[tuple[torch.Tensor, torch.Tensor]],
    statistics: Sequence[tuple[torch.Tensor, torch.Tensor]],
    eps: float,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Weight and bias of the linear layers that equal an eval-mode renormalisation followed by a linear layer, of every layer at once.

    Args:
        linears: weight (T, I, H) and bias (T, H) of each linear layer.
        norms: gamma and beta (T, I) of the renormalisation before it.
        statistics: its running mean and variance (T, I).
    """
    (gammas, betas), (means, variances) = zip(*norms), zip(*statistics)
    scales = torch._foreach_mul(gammas, inverse_deviations(variances, eps))
    offsets = torch._foreach_addcmul(betas, means, scales, value=-1.0)
    return [
        (
            weight_TIH * scale_TI.unsqueeze(-1),
            torch.baddbmm(bias_TH.unsqueeze(1), offset_TI.unsqueeze(1), weight_TIH),
        )
        for (weight_TIH, bias_TH), scale_TI, offset_TI in zip(linears, scales, offsets)
    ]
