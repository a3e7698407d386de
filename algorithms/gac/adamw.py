"""AdamW on one flat buffer."""

from __future__ import annotations

import torch

from algorithms.flat import FlatAdam


class FlatAdamW(FlatAdam):
    """Adam with decoupled weight decay (Loshchilov & Hutter, 2019): the same numbers as torch.optim.AdamW.

    ``lr`` may be set before each step: a schedule is the caller's.
    """

    def __init__(self, value: torch.Tensor, grad: torch.Tensor, *, lr: float, weight_decay: float) -> None:
        super().__init__(value, grad, lr=lr)
        self.weight_decay = weight_decay

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
