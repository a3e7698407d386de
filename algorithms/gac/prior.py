"""Priors p_alpha(z | s_0): how z0 ~ N(0, I) becomes a plan that fits where the episode begins.

Letters: B plans, n tokens, d width, C units, X features of the first observation. Source: arXiv 2512.21527 [P]; the
implicit form [L, reading]; the others [C].
"""

from __future__ import annotations

import torch
from torch import nn

from algorithms.gac.config import PRIOR_HEADS, GACConfig
from algorithms.gac.generator import Encoder, perceptron

LAYERS = 2  # of the implicit prior's Transformer, and hidden ones of the explicit [C]
LOG_STD_RANGE = (-4.0, 2.0)  # of a token


class ImplicitPrior(nn.Module):
    """z = z0 + a bidirectional Transformer over the tokens of z0 and one of s_0."""

    def __init__(self, config: GACConfig, features: int) -> None:
        super().__init__()
        width = config.prior_width
        self.inward, self.embed_obs = nn.Linear(config.token_width, width), nn.Linear(features, width)
        self.place_nC = nn.Parameter(0.02 * torch.randn(config.tokens, width))
        self.encoder = Encoder(width, PRIOR_HEADS, LAYERS)
        self.outward = nn.Linear(width, config.token_width)
        with torch.no_grad():
            self.outward.weight.mul_(0.5)
            self.outward.bias.zero_()

    def forward(self, z0_Bnd: torch.Tensor, seen_BX: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.inward(z0_Bnd) + self.place_nC, self.embed_obs(seen_BX).unsqueeze(1)], 1)
        return z0_Bnd + self.outward(self.encoder(x)[:, :-1]).float()


class ExplicitPrior(nn.Module):
    """z = mu(s_0) + sigma(s_0) z0, by an MLP; begins near N(0, I)."""

    def __init__(self, config: GACConfig, features: int) -> None:
        super().__init__()
        self.shape = (config.tokens, 2 * config.token_width)
        self.law = perceptron(features, config.prior_width, config.tokens * self.shape[1], LAYERS + 1)
        with torch.no_grad():
            for parameter in self.law[-1].parameters():
                parameter.mul_(0.1)

    def forward(self, z0_Bnd: torch.Tensor, seen_BX: torch.Tensor) -> torch.Tensor:
        mean_Bnd, log_std_Bnd = self.law(seen_BX).float().unflatten(-1, self.shape).chunk(2, -1)
        return mean_Bnd + log_std_Bnd.clamp(*LOG_STD_RANGE).exp() * z0_Bnd


PRIORS = {"implicit": ImplicitPrior, "explicit": ExplicitPrior}
