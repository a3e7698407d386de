"""Twin distributional critics with batch renormalisation, and CrossQ's joint pass through them.

Letters: T = 2 critics, B batch, M = 2B rows of a joint pass, I input features (O + A), H width, N atoms. Source:
arXiv 2605.08733; Bhatt et al., "CrossQ" (2024). Each critic: concat(s, a) -> BRN -> [Linear -> ReLU -> BRN] x layers
-> Linear -> N logits. Both critics live in one stack, so every layer is one batched product.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from algorithms import critic as batch_renorm
from algorithms.interface import Collective
from algorithms.trainer import FlatParameters, lecun_normal


class TwinCritic:
    """Parameters, running statistics and the two ways through the critics.

    Parameters (``parameters.named``), l = 0 .. layers: ``norm{l}.scale``, ``norm{l}.bias`` (T, in);
    ``linear{l}.weight`` (T, in, out), ``linear{l}.bias`` (T, out). Statistics (``statistics``): ``norm{l}.mean``,
    ``norm{l}.var`` (T, in), views of one buffer; ``passes``, float32, counts train-mode passes.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        layers: int,
        atoms: int,
        constants: Renorm,
        draw: torch.Generator,
        device: torch.device,
    ) -> None:
        sizes = [inputs, *[width] * layers, atoms]
        self.layers, self.constants = layers + 1, constants
        initial: dict[str, torch.Tensor] = {}
        for l in range(self.layers):
            initial[f"norm{l}.scale"] = torch.ones(2, sizes[l])
            initial[f"norm{l}.bias"] = torch.zeros(2, sizes[l])
            initial[f"linear{l}.weight"] = lecun_normal((2, sizes[l], sizes[l + 1]), draw)
            initial[f"linear{l}.bias"] = torch.zeros(2, sizes[l + 1])
        self.parameters = FlatParameters(initial, device, extra=1)
        total = sum(sizes[:-1])
        self.running = torch.cat([torch.zeros(2 * total), torch.ones(2 * total)]).to(device)
        self.passes = torch.zeros((), device=device)
        self.statistics: dict[str, torch.Tensor] = {}
        for half, kind in enumerate(("mean", "var")):
            spans = self.running[half * 2 * total : (half + 1) * 2 * total].split([2 * size for size in sizes[:-1]])
            for l, span in enumerate(spans):
                self.statistics[f"norm{l}.{kind}"] = span.view(2, -1)

    def joint(self, x_MI: torch.Tensor, collective: Collective) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """One train-mode pass over the rows [(s, a); (s', a')], which share their batch statistics.

        Returns logits (T, B, N) of the first half; logits (T, B, N) of the second half, with the gradient stopped; and
        the batch statistics, laid out like ``running``, for ``commit``.
        """
        return _JointPass.apply(x_MI, self, collective, *self.parameters.named.values())

    def commit(self, batch: torch.Tensor, keep: torch.Tensor) -> None:
        """Moves the running statistics towards ``batch`` and counts a pass; neither where ``keep`` (0-d bool)."""
        moved = torch.lerp(self.running, batch, 1.0 - self.constants.decay)
        self.running.copy_(torch.where(keep, self.running, moved))
        self.passes.add_(torch.where(keep, 0.0, 1.0))

    def frozen(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Weights (T, in, out), biases (T, 1, out) of the eval-mode critics, renormalisation folded in, no gradient."""
        p, s = self.parameters.named, self.statistics
        with torch.no_grad():
            return [
                batch_renorm.folded(
                    p[f"linear{l}.weight"],
                    p[f"linear{l}.bias"],
                    p[f"norm{l}.scale"],
                    p[f"norm{l}.bias"],
                    s[f"norm{l}.mean"],
                    s[f"norm{l}.var"],
                    self.constants.eps,
                )
                for l in range(self.layers)
            ]


def evaluate(frozen: list[tuple[torch.Tensor, torch.Tensor]], x_BI: torch.Tensor) -> torch.Tensor:
    """Logits (T, B, N) of the eval-mode critics; gradients reach the input alone."""
    h = x_BI.expand(2, *x_BI.shape)
    for l, (weight, bias) in enumerate(frozen):
        h = torch.baddbmm(bias, h if l == 0 else torch.relu(h), weight)
    return h


class _JointPass(torch.autograd.Function):
    """The joint pass with its gradient written out: no row of the second half is followed below its statistics."""

    @staticmethod
    def forward(
        ctx: Any, x_MI: torch.Tensor, critic: TwinCritic, collective: Collective, *parameters: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        named = dict(zip(critic.parameters.named, parameters))
        warm = critic.passes >= critic.constants.warmup
        origin_TI = critic.statistics["norm0.mean"]
        # Raw observations may lie far from 0: moments are taken about the running mean. The critics share their input.
        h = (x_MI - origin_TI[0]).unsqueeze(0).expand(2, *x_MI.shape)
        passes, outputs = [], []
        for l in range(critic.layers):
            mean = torch.zeros_like(origin_TI) if l == 0 else critic.statistics[f"norm{l}.mean"]
            y, seen = batch_renorm.forward(
                h if l == 0 else h.relu_(),
                named[f"norm{l}.scale"],
                named[f"norm{l}.bias"],
                mean,
                critic.statistics[f"norm{l}.var"],
                warm,
                critic.constants,
                collective,
            )
            h = torch.baddbmm(named[f"linear{l}.bias"].unsqueeze(1), y, named[f"linear{l}.weight"])
            passes.append(seen)
            outputs.append(y)
        means = [passes[0].mean_TI + origin_TI, *(seen.mean_TI for seen in passes[1:])]
        batch = torch.cat([t.reshape(-1) for t in (*means, *(seen.var_TI for seen in passes))])
        half = x_MI.shape[0] // 2
        now_TBN, next_TBN = h[:, :half].contiguous(), h[:, half:].contiguous()
        ctx.passes, ctx.outputs, ctx.collective = passes, outputs, collective
        ctx.weights = [named[f"linear{l}.weight"] for l in range(critic.layers)]
        ctx.mark_non_differentiable(next_TBN, batch)
        ctx.set_materialize_grads(False)
        return now_TBN, next_TBN, batch

    @staticmethod
    def backward(ctx: Any, *output_grads: Any) -> Any:
        g = output_grads[0]
        grads: list[torch.Tensor] = []
        for l in reversed(range(len(ctx.weights))):
            seen, y = ctx.passes[l], ctx.outputs[l][:, : g.shape[1]]
            weight_grad, bias_grad = torch.bmm(y.mT, g), g.sum(1)
            g = torch.bmm(g, ctx.weights[l].mT)
            scale_grad, norm_bias_grad, centred = batch_renorm.affine_grads(g, seen)
            grads[:0] = [scale_grad, norm_bias_grad, weight_grad, bias_grad]
            if l > 0:
                g = batch_renorm.input_grad(g, norm_bias_grad, centred, seen, ctx.collective)
                g = torch.ops.aten.threshold_backward(g, seen.x_TMI, 0)
        return None, None, None, *grads


@dataclasses.dataclass(frozen=True, kw_only=True)
class Renorm:
    """Constants of a batch renormalisation (see ActorCriticConfig)."""

    decay: float
    eps: float
    r_max: float
    d_max: float
    warmup: int


@dataclasses.dataclass(frozen=True)
class Pass:
    """What a train-mode pass leaves for its backward and for the running statistics."""

    x_TMI: torch.Tensor  # the input, minus ``shift``
    mean_TI: torch.Tensor  # of the shifted input, over all learners' rows
    var_TI: torch.Tensor
    inverse_TI: torch.Tensor  # 1 / sqrt(var + eps)
    r_TI: torch.Tensor
    d_TI: torch.Tensor
    scale_TI: torch.Tensor  # gamma r / s: y = x * scale + constant


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
    scale_TI = gamma_TI * r_TI * inverse_TI
    offset_TI = beta_TI + gamma_TI * d_TI - mean_TI * scale_TI
    y_TMI = torch.addcmul(offset_TI.unsqueeze(1), x_TMI, scale_TI.unsqueeze(1))
    return y_TMI, Pass(x_TMI, mean_TI, var_TI, inverse_TI, r_TI, d_TI, scale_TI)


def affine_grads(grad_TBI: torch.Tensor, seen: Pass) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of gamma and beta (T, I), and sum (x - mu) dL/dy; dL/dy is of the FIRST B rows, the rest have none."""
    sum_TI = grad_TBI.sum(1)
    centred_TI = (grad_TBI * seen.x_TMI[:, : grad_TBI.shape[1]]).sum(1) - seen.mean_TI * sum_TI
    return centred_TI * (seen.r_TI * seen.inverse_TI) + seen.d_TI * sum_TI, sum_TI, centred_TI


def input_grad(
    grad_TBI: torch.Tensor, sum_TI: torch.Tensor, centred_TI: torch.Tensor, seen: Pass, collective: Collective
) -> torch.Tensor:
    """dL/dx (T, M, I), through the batch statistics too: rows whose output has no gradient still shape the statistics.

    With L the mean of the learners' losses, each learner takes the mean of dL/d(statistics) over the learners.
    """
    rows = seen.x_TMI.shape[1]
    d_square_TI = centred_TI * seen.scale_TI * seen.inverse_TI.square() * -0.5  # dL/dvar = dL/d(mean of squares)
    d_mean_TI = -seen.scale_TI * sum_TI - 2.0 * seen.mean_TI * d_square_TI
    through = torch.stack([d_mean_TI, 2.0 * d_square_TI]) * (1.0 / rows)
    collective.mean_(through)
    a_TI, b_TI = through.unsqueeze(2).unbind(0)
    grad_TMI = torch.addcmul(a_TI, seen.x_TMI, b_TI)
    grad_TMI[:, : grad_TBI.shape[1]].addcmul_(grad_TBI, seen.scale_TI.unsqueeze(1))
    return grad_TMI


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
