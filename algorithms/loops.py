"""The passes of a critics' update between its matrix products: in torch, and the same in C (loops.c), each over its data once.

Letters: T critics, M rows of a joint pass, B = M / 2, I features, N atoms. The torch form is what CUDA uses, and a CPU without a
C compiler; the C form agrees with it to float32 rounding (tests/test_loops.py).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch

from algorithms import batch_renorm, c51, compiled
from algorithms.batch_renorm import Reference, Renorm
from algorithms.compiled import function
from algorithms.interface import Collective
from algorithms.losses import critic_loss


class Pass(Protocol):
    """What a renormalisation leaves for its backward and for the running statistics; moments of its shifted input, (T, I)."""

    @property
    def mean_TI(self) -> torch.Tensor: ...

    @property
    def var_TI(self) -> torch.Tensor: ...


class Norm(NamedTuple):
    """Parameters and running statistics of a batch renormalisation, (T, I)."""

    gamma_TI: torch.Tensor
    beta_TI: torch.Tensor
    mean_TI: torch.Tensor  # relative to the same origin as the input
    var_TI: torch.Tensor
    warm: torch.Tensor  # 0-d bool: plain batch normalisation is over
    constants: Renorm
    reference: Reference | None = None  # of var and warm, where they are prepared


class Target(NamedTuple):
    """What the critics regress on, besides their own logits: (B,), ``log_alpha`` 0-d, the atoms (N,)."""

    reward_B: torch.Tensor  # in the atoms' units
    discount_B: torch.Tensor
    cost_B: torch.Tensor
    log_alpha: torch.Tensor
    y_N: torch.Tensor
    v_min: float  # the atoms' ends
    v_max: float


class Head(NamedTuple):
    """The critics' loss, its gradient by their logits at (s, a), and means for the metrics; 0-d but for the gradient."""

    loss: torch.Tensor
    grad_TBN: torch.Tensor
    q: torch.Tensor  # in the atoms' units
    q_target: torch.Tensor
    entropy: torch.Tensor
    clipped: torch.Tensor


class TorchLoops:
    """The passes in torch."""

    def prepared(self, norms: Sequence[Norm]) -> Sequence[Norm]:
        """What ``forward`` takes of the layers of one network, computed for all at once."""
        running_vars = tuple(norm.var_TI for norm in norms)
        references = batch_renorm.references(running_vars, norms[0].warm, norms[0].constants)
        return [norm._replace(reference=reference) for norm, reference in zip(norms, references)]

    def forward(self, x_TMI: torch.Tensor, relu: bool, norm: Norm, collective: Collective) -> tuple[torch.Tensor, Any]:
        """Renormalised ``relu``-ed input (T, M, I), and its Pass. ``x_TMI`` is overwritten by its relu."""
        return batch_renorm.forward(x_TMI.relu_() if relu else x_TMI, *norm[:6], collective, norm.reference)

    def backward(
        self,
        grad_TBI: torch.Tensor,
        seen: Any,
        gamma_grad: torch.Tensor,
        beta_grad: torch.Tensor,
        bias_grad: torch.Tensor | None,
        collective: Collective,
    ) -> torch.Tensor:
        """Writes the gradients (T, I) of gamma, beta and, where ``bias_grad`` is given, of the bias before the relu.

        Returns the gradient (T, M, I) of what went into the relu; ``grad_TBI`` itself where ``bias_grad`` is None.
        """
        _, sum_TI, centred_TI = batch_renorm.affine_grads(grad_TBI, seen, gamma_grad, beta_grad)
        if bias_grad is None:
            return grad_TBI
        g = batch_renorm.input_grad(grad_TBI, sum_TI, centred_TI, seen, collective)
        g = torch.ops.aten.threshold_backward(g, seen.x_TMI, 0)
        torch.sum(g, 1, out=bias_grad)
        return g

    def head(self, logits_TMN: torch.Tensor, target: Target, entropy_weight: float) -> Head:
        """From logits at (s, a), then at (s', a')."""
        reward_B, discount_B, cost_B, log_alpha, y_N, *ends = target
        now_TBN, next_TBN = logits_TMN.chunk(2, 1)
        t_BN = c51.soft_target(reward_B, discount_B, cost_B, log_alpha.exp(), y_N)
        p_BN = torch.softmax(next_TBN, -1).mean(0)
        # Both critics' atoms land at the same places, so projecting the average is averaging the projections.
        target_BN = c51.project(p_BN, t_BN, *ends)
        log_p_TBN = torch.log_softmax(now_TBN, -1)
        loss, grad_TBN, now_p_TBN, entropy = critic_loss(log_p_TBN, target_BN, entropy_weight)
        q, q_target = now_p_TBN.mean((0, 1)).dot(y_N), target_BN.mean(0).dot(y_N)
        return Head(loss, grad_TBN, q, q_target, entropy, c51.clipped_share(p_BN, t_BN, y_N))


class _Constants(ctypes.Structure):
    _fields_ = (("eps", ctypes.c_float), ("r_max", ctypes.c_float), ("d_max", ctypes.c_float), ("crossq", ctypes.c_int))


class CompiledPass(NamedTuple):
    """Of ``CompiledLoops``: the input and what loops.c calls ``stats``."""

    x_TMI: torch.Tensor
    stats: torch.Tensor  # (8, T, I)

    @property
    def mean_TI(self) -> torch.Tensor:
        return self.stats[0]

    @property
    def var_TI(self) -> torch.Tensor:
        return self.stats[1]


class CompiledLoops(TorchLoops):
    """The passes in C, for float32 on the CPU."""

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, long, real, integer = ctypes.c_void_p, ctypes.c_long, ctypes.c_float, ctypes.c_int
        sizes = [long] * 4  # step, T, M, I
        self._moments = function(library.renorm_moments, pointer, *sizes, integer, pointer)
        self._apply = function(library.renorm_apply, pointer, *sizes, *[pointer] * 5, _Constants, pointer, pointer)
        self._sums = function(library.renorm_sums, pointer, pointer, *[long] * 5, *[pointer] * 4)
        self._input = function(library.renorm_input, pointer, pointer, *[long] * 4, *[pointer] * 4)
        self._head = function(library.critic_head, pointer, *[long] * 3, *[pointer] * 5, *[real] * 3, *[pointer] * 3)

    def prepared(self, norms: Sequence[Norm]) -> Sequence[Norm]:
        """The norms as they are."""
        return norms

    def forward(self, x_TMI: torch.Tensor, relu: bool, norm: Norm, collective: Collective) -> tuple[torch.Tensor, Any]:
        """See TorchLoops; ``x_TMI`` may be one (M, I) for all critics, expanded."""
        sizes, c = (x_TMI.stride(0), *x_TMI.shape), norm.constants
        stats, y_TMI = x_TMI.new_empty(8, x_TMI.shape[0], x_TMI.shape[2]), x_TMI.new_empty(x_TMI.shape)
        self._moments(x_TMI.data_ptr(), *sizes, relu, stats.data_ptr())
        collective.mean_(stats[:2])
        given = (tensor.data_ptr() for tensor in norm[:5])
        constants = _Constants(c.eps, c.r_max, c.d_max, c.form == "crossq")
        self._apply(x_TMI.data_ptr(), *sizes, *given, constants, stats.data_ptr(), y_TMI.data_ptr())
        return y_TMI, CompiledPass(x_TMI, stats)

    def backward(
        self,
        grad_TBI: torch.Tensor,
        seen: Any,
        gamma_grad: torch.Tensor,
        beta_grad: torch.Tensor,
        bias_grad: torch.Tensor | None,
        collective: Collective,
    ) -> torch.Tensor:
        """See TorchLoops."""
        x_TMI, stats = seen
        (critics, rows, features), given = x_TMI.shape, grad_TBI.shape[1]
        through, grad = x_TMI.new_empty(2, critics, features), (grad_TBI.data_ptr(), x_TMI.data_ptr())
        grads = (gamma_grad.data_ptr(), beta_grad.data_ptr(), through.data_ptr())
        self._sums(*grad, x_TMI.stride(0), critics, given, rows, features, stats.data_ptr(), *grads)
        if bias_grad is None:
            return grad_TBI
        collective.mean_(through)
        out = torch.empty_like(x_TMI)
        ends = (stats.data_ptr(), through.data_ptr(), out.data_ptr(), bias_grad.data_ptr())
        self._input(*grad, critics, given, rows, features, *ends)
        return out

    def head(self, logits_TMN: torch.Tensor, target: Target, entropy_weight: float) -> Head:
        """See TorchLoops."""
        critics, rows, atoms = logits_TMN.shape
        grad = logits_TMN.new_empty(critics, rows // 2, atoms)
        work, scalars = logits_TMN.new_empty(4, atoms), logits_TMN.new_empty(5)
        given = [tensor.contiguous() for tensor in target[:5]]  # kept until the call is over
        inputs = logits_TMN.data_ptr(), critics, rows // 2, atoms, *(tensor.data_ptr() for tensor in given)
        numbers = target.v_min, target.v_max, entropy_weight
        self._head(*inputs, *numbers, work.data_ptr(), grad.data_ptr(), scalars.data_ptr())
        loss, *means = scalars.unbind()
        return Head(loss, grad, *means)


def choose(device: torch.device) -> TorchLoops:
    """The fastest form for ``device`` on this machine."""
    library = compiled.library() if device.type == "cpu" else None
    return TorchLoops() if library is None else CompiledLoops(library)
