"""Parameters of one optimiser in one flat float32 buffer, gradients in another, and Adam over both.

One buffer means one all-reduce, one optimiser call and one norm, whatever the network looks like.
"""

from __future__ import annotations

import math

import torch


class FlatParameters:
    """Named leaf tensors that are views of ``value`` (n,), with ``.grad`` views of ``grad`` (n + extra,).

    ``gradient`` (n,) is the parameters' part of ``grad``. The ``extra`` last entries of ``grad`` belong to no parameter: they
    carry scalars, such as the loss, through the all-reduce of the gradient.
    """

    def __init__(self, initial: dict[str, torch.Tensor], device: torch.device, *, extra: int = 0) -> None:
        self.value = torch.cat([tensor.reshape(-1) for tensor in initial.values()]).to(device, torch.float32)
        self.size = self.value.numel()
        self.grad = torch.zeros(self.size + extra, device=device)
        self.gradient, self.extra = self.grad[: self.size], self.grad[self.size :]
        self.named: dict[str, torch.Tensor] = {}
        offset = 0
        for name, tensor in initial.items():
            span = slice(offset, offset + tensor.numel())
            leaf = self.value[span].view(tensor.shape).detach().requires_grad_()
            leaf.grad = self.grad[span].view(tensor.shape)
            self.named[name] = leaf
            offset = span.stop


class FlatAdam:
    """Adam (Kingma & Ba, 2015; bias-corrected, eps outside the root) on one flat buffer, with decoupled weight decay.

    The same numbers as torch.optim.Adam and optax.adam; where ``weight_decay`` is not 0 those of torch.optim.AdamW (Loshchilov
    & Hutter, 2019). ``lr`` may be set before each step: a schedule is the caller's. ``step`` counts on the device; a step with
    ``skip`` = 1 changes nothing, and needs no look at the device to know.
    """

    def __init__(
        self,
        value: torch.Tensor,
        grad: torch.Tensor,
        *,
        lr: float,
        beta1: float = 0.9,
        beta2: float = 0.999,
        weight_decay: float = 0.0,
    ) -> None:
        self.value, self.grad, self.lr, self.beta1, self.beta2 = value, grad, lr, beta1, beta2
        self.weight_decay = weight_decay
        self.m = torch.zeros_like(value)
        self.v = torch.zeros_like(value)
        self.count = torch.zeros((), device=value.device)

    def step(self, skip: torch.Tensor) -> None:
        """One step, or none where ``skip`` (0-d float32, 0 or 1) is 1."""
        self.count.add_(1.0 - skip)
        torch._fused_adamw_(
            [self.value],
            [self.grad],
            [self.m],
            [self.v],
            [],
            [self.count],
            lr=self.lr,
            beta1=self.beta1,
            beta2=self.beta2,
            weight_decay=self.weight_decay,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
            found_inf=skip,
        )

    def state(self) -> dict[str, torch.Tensor]:
        """The moments (n,) and the step count, by name."""
        return {"m": self.m, "v": self.v, "count": self.count}


def lecun_normal(shape: tuple[int, ...], draw: torch.Generator) -> torch.Tensor:
    """A (..., fan_in, fan_out) float32 weight: normal of std 1/sqrt(fan_in), cut at two standard deviations.

    Drawn wider by 1/.8796, so that the std after the cut is the one named (jax.nn.initializers.lecun_normal).
    """
    weight = torch.empty(shape)
    torch.nn.init.trunc_normal_(weight, std=1.0, a=-2.0, b=2.0, generator=draw)
    return weight * (1.0 / (math.sqrt(shape[-2]) * 0.87962566103423978))


def xavier_uniform(shape: tuple[int, ...], draw: torch.Generator) -> torch.Tensor:
    """A (..., fan_in, fan_out) float32 weight, uniform on +- sqrt(6 / (fan_in + fan_out))."""
    bound = math.sqrt(6.0 / (shape[-2] + shape[-1]))
    return torch.rand(shape, generator=draw) * (2 * bound) - bound
