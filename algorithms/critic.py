"""Twin distributional critics with batch renormalisation, and CrossQ's joint pass through them.

Letters: T = 2 critics, B batch, M = 2B rows of a joint pass, I input features (O + A), H width, N atoms. Source:
arXiv 2605.08733; Bhatt et al., "CrossQ" (2024). Each critic: concat(s, a) -> BRN -> [Linear -> ReLU -> BRN] x layers
-> Linear -> N logits. Both critics live in one stack, so every layer is one batched product.
"""

from __future__ import annotations

from typing import Any

import torch

from algorithms import batch_renorm
from algorithms.batch_renorm import Renorm
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
