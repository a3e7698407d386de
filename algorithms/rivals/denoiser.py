"""The denoiser that QSM and QVPO share: a network on (s, x, k) and a schedule of its noise.

    x_k = sqrt(abar_k) a + sqrt(1 - abar_k) eps;  the network predicts eps (QVPO) or what stands for it (QSM)

Code of step k: sinusoids -> Linear H -> Mish, for QVPO -> Linear of the sinusoids' number. Letters: T steps, R rows, A, H.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from algorithms.interface import AgentSpec
from algorithms.rivals.sampler import Field, Sampler, Tensors
from algorithms.trainer import xavier_uniform


def sinusoids(steps: int, size: int) -> torch.Tensor:
    """(T, size): sin and cos of k times frequencies that fall from 1 to about 1e-4."""
    frequency = torch.exp(-math.log(10_000.0) * torch.arange(size // 2) / (size // 2))
    angle = torch.arange(steps).unsqueeze(1) * frequency
    return torch.cat([angle.sin(), angle.cos()], -1)


def vp_schedule(steps: int) -> list[float]:
    """beta_k of a variance-preserving process, k = 0 .. T-1, with rates from .1 to 10."""
    rates = (0.1 / steps + (10.0 - 0.1) * (2 * k - 1) / (2 * steps**2) for k in range(1, steps + 1))
    return [min(1.0 - math.exp(-rate), 0.999) for rate in rates]


def cosine_schedule(steps: int) -> list[float]:
    """beta_k of Nichol & Dhariwal (2021): abar follows a squared cosine with offset .008."""
    kept = [math.cos((k / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for k in range(steps + 1)]
    return [min(max(1.0 - kept[k + 1] / kept[k], 0.0), 0.999) for k in range(steps)]


class Denoiser(Sampler):
    """The network with its time code, the schedule, and noised actions."""

    code_size: int  # of the sinusoids
    second_layer: bool  # of the time's code

    def __init__(self, config: Any, spec: AgentSpec, betas: list[float]) -> None:
        super().__init__(config, spec)
        self.steps, self.betas = len(betas), betas
        self.field = Field(config.actor_width, config.actor_layers, F.mish)
        self.kept = [math.prod(1.0 - beta for beta in betas[: k + 1]) for k in range(self.steps)]  # abar
        self.sinusoids_TC = sinusoids(self.steps, self.code_size).to(self.device)
        kept_T = torch.tensor(self.kept, device=self.device)
        self.mix_T2 = torch.stack([kept_T.sqrt(), (1.0 - kept_T).sqrt()], -1)
        self.step_T = torch.arange(self.steps, device=self.device)

    def initial(self, draw: torch.Generator) -> Tensors:
        """See Field.initial; ``code{l}.weight`` and ``.bias`` are those of the time's code."""
        width = self.field.width
        sizes = [(self.code_size, width), *([(width, self.code_size)] if self.second_layer else [])]
        code = {f"code{l}.weight": xavier_uniform(size, draw) for l, size in enumerate(sizes)}
        code |= {f"code{l}.bias": torch.zeros(size[1]) for l, size in enumerate(sizes)}
        return code | self.field.initial(self.obs_dim, self.action_dim, sizes[-1][1], draw)

    def fold(self, parameters: Tensors) -> Tensors:
        """See Field.fold."""
        code_TC = F.mish(torch.addmm(parameters["code0.bias"], self.sinusoids_TC, parameters["code0.weight"]))
        if self.second_layer:
            code_TC = torch.addmm(parameters["code1.bias"], code_TC, parameters["code1.weight"])
        return self.field.fold(parameters, code_TC)

    def at(self, uniform_R: torch.Tensor) -> torch.Tensor:
        """Steps drawn by uniform numbers, one-hot (R, T): a product with it picks a row, and its gradient sums in one order."""
        step_R1 = (uniform_R * self.steps).floor().clamp(max=self.steps - 1).unsqueeze(1)
        return (step_R1 == self.step_T).to(uniform_R.dtype)

    def noised(self, action_RA: torch.Tensor, eps_RA: torch.Tensor, step_RT: torch.Tensor) -> torch.Tensor:
        """sqrt(abar) a + sqrt(1 - abar) eps."""
        kept_R1, noise_R1 = (step_RT @ self.mix_T2).split(1, -1)
        return kept_R1 * action_RA + noise_R1 * eps_RA
