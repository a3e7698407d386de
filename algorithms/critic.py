"""Twin distributional critics with batch renormalisation, and CrossQ's joint pass through them.

Letters: T = 2 critics, B batch, M = 2B rows of a joint pass, I input features (O + A), H width, N atoms. Source:
arXiv 2605.08733; Bhatt et al., "CrossQ" (2024). Each critic: concat(s, a) -> BRN -> [Linear -> ReLU -> BRN] x layers
-> Linear -> N logits. Both critics live in one stack, so every layer is one batched product.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from algorithms import batch_renorm, loops
from algorithms.batch_renorm import Renorm
from algorithms.interface import Collective
from algorithms.trainer import FlatParameters, lecun_normal


class Joint(NamedTuple):
    """What a joint pass gives; no part of it has a gradient of its own."""

    logits_TMN: torch.Tensor  # of the M / 2 rows of the first half, then of the second
    batch: torch.Tensor  # the batch's statistics, laid out like ``TwinCritic.running``, for ``commit``
    passes: list[loops.Pass]  # of each layer, for ``backward``
    outputs: list[torch.Tensor]  # (T, M, in) of each layer's renormalisation


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
        *,
        bf16: bool = False,
    ) -> None:
        self.bf16 = bf16  # products take their factors in bfloat16
        sizes = [inputs, *[width] * layers, atoms]
        self.layers, self.constants, self.loops = layers + 1, constants, loops.choose(device)
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
        self._zero = torch.zeros(2, inputs, device=device)  # the first layer's running mean, relative to itself
        self.statistics: dict[str, torch.Tensor] = {}
        for half, kind in enumerate(("mean", "var")):
            spans = self.running[half * 2 * total : (half + 1) * 2 * total].split([2 * size for size in sizes[:-1]])
            for l, span in enumerate(spans):
                self.statistics[f"norm{l}.{kind}"] = span.view(2, -1)

    @torch.no_grad()
    def joint(self, x_MI: torch.Tensor, collective: Collective) -> Joint:
        """One train-mode pass over the rows [(s, a); (s', a')], which share their batch statistics."""
        p, s = self.parameters.named, self.statistics
        warm, origin_TI = self.passes >= self.constants.warmup, s["norm0.mean"]
        # Raw observations may lie far from 0: moments are taken about the running mean. The critics share their input.
        h = (x_MI - origin_TI[0]).unsqueeze(0).expand(2, *x_MI.shape)
        passes, outputs, norms = [], [], []
        for l in range(self.layers):
            mean_TI = s[f"norm{l}.mean"] if l else self._zero
            scales = p[f"norm{l}.scale"], p[f"norm{l}.bias"]
            norms.append(loops.Norm(*scales, mean_TI, s[f"norm{l}.var"], warm, self.constants))
        for l, norm in enumerate(self.loops.prepared(norms)):
            y, seen = self.loops.forward(h, l > 0, norm, collective)
            h = _affine(p[f"linear{l}.bias"].unsqueeze(1), y, self._factor(p[f"linear{l}.weight"]))
            passes.append(seen)
            outputs.append(y)
        means = [passes[0].mean_TI + origin_TI, *(seen.mean_TI for seen in passes[1:])]
        batch = torch.cat([t.reshape(-1) for t in (*means, *(seen.var_TI for seen in passes))])
        return Joint(h, batch, passes, outputs)

    @torch.no_grad()
    def backward(self, joint: Joint, grad_TBN: torch.Tensor, collective: Collective) -> None:
        """Writes the parameters' gradient into ``parameters.gradient``, from that of the first half's logits.

        Written out because no row of the second half is followed below its statistics, and so that every product ends where the
        optimiser reads it.
        """
        grads, g = self.parameters.grads, grad_TBN
        torch.sum(g, 1, out=grads[f"linear{self.layers - 1}.bias"])
        for l in reversed(range(self.layers)):
            y, weight = joint.outputs[l][:, : g.shape[1]], self.parameters.named[f"linear{l}.weight"]
            if self.bf16:
                low = g.bfloat16()
                grads[f"linear{l}.weight"].copy_(torch.bmm(y.bfloat16().mT, low))
                g = torch.bmm(low, weight.bfloat16().mT).float()
            else:
                torch.bmm(y.mT, g, out=grads[f"linear{l}.weight"])
                g = torch.bmm(g, weight.mT)
            scales = grads[f"norm{l}.scale"], grads[f"norm{l}.bias"]
            g = self.loops.backward(g, joint.passes[l], *scales, grads.get(f"linear{l - 1}.bias"), collective)

    def commit(self, batch: torch.Tensor, keep: torch.Tensor) -> None:
        """Moves the running statistics towards ``batch`` and counts a pass; neither where ``keep`` (0-d bool)."""
        moved = torch.lerp(self.running, batch, 1.0 - self.constants.decay)
        torch.where(keep, self.running, moved, out=self.running)
        self.passes.add_(~keep)

    def frozen(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Weights (T, in, out), biases (T, 1, out) of the eval-mode critics, renormalisation folded in, no gradient."""
        p, s, each = self.parameters.named, self.statistics, range(self.layers)
        linears = [(p[f"linear{l}.weight"], p[f"linear{l}.bias"]) for l in each]
        norms = [(p[f"norm{l}.scale"], p[f"norm{l}.bias"]) for l in each]
        statistics = [(s[f"norm{l}.mean"], s[f"norm{l}.var"]) for l in each]
        with torch.no_grad():
            folded = batch_renorm.folded(linears, norms, statistics, self.constants.eps)
            return [(self._factor(weight), bias) for weight, bias in folded]

    def _factor(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.bfloat16() if self.bf16 else weight


def _affine(bias: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """bias + x weight, float32; the product in the weight's type."""
    if weight.dtype == torch.float32:
        return torch.baddbmm(bias, x, weight)
    return bias + torch.bmm(x.to(weight.dtype), weight)


def evaluate(frozen: list[tuple[torch.Tensor, torch.Tensor]], x_BI: torch.Tensor) -> torch.Tensor:
    """Logits (T, B, N) of the eval-mode critics; gradients reach the input alone."""
    h = x_BI.expand(2, *x_BI.shape)
    for l, (weight, bias) in enumerate(frozen):
        h = _affine(bias, h if l == 0 else torch.relu(h), weight)
    return h
