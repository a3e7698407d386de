"""Priors p_alpha(z | s_0): how z0 ~ N(0, I) becomes a plan that fits where the episode begins.

Letters: B plans, n tokens, d width, C units, X features of the first observation. Source: arXiv 2512.21527 [P]; the
implicit form [L, reading]; the others [C].
"""

from __future__ import annotations

import torch
from torch import nn

from algorithms.gac.config import GACConfig
from algorithms.gac.generator import Encoder, perceptron

LOG_STD_RANGE = (-4.0, 2.0)  # of a token given those before it


class ImplicitPrior(nn.Module):
    """z = z0 + a bidirectional Transformer over the tokens of z0 and one of s_0."""

    def __init__(self, config: GACConfig, features: int) -> None:
        super().__init__()
        width = config.prior_width
        self.inward, self.embed_obs = nn.Linear(config.token_width, width), nn.Linear(features, width)
        self.place_nC = nn.Parameter(0.02 * torch.randn(config.tokens, width))
        self.encoder = Encoder(width, config.prior_heads, config.prior_layers)
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
        self.law = perceptron(features, config.prior_width, config.tokens * self.shape[1], config.prior_layers + 1)
        with torch.no_grad():
            for parameter in self.law[-1].parameters():
                parameter.mul_(0.1)

    def forward(self, z0_Bnd: torch.Tensor, seen_BX: torch.Tensor) -> torch.Tensor:
        mean_Bnd, log_std_Bnd = self.law(seen_BX).float().unflatten(-1, self.shape).chunk(2, -1)
        return mean_Bnd + log_std_Bnd.clamp(*LOG_STD_RANGE).exp() * z0_Bnd


class AutoregressivePrior(nn.Module):
    """z_k = mu(z_<k, s_0) + sigma(z_<k, s_0) z0_k, by a GRU: stretches of an episode follow each other.

    The local posteriors live in z itself then: the KL of token k is that of two Gaussians given the posterior's own draw
    of the tokens before it. What is searched at inference is z0 still, whose prior is N(0, I).
    """

    def __init__(self, config: GACConfig, features: int) -> None:
        super().__init__()
        width = config.prior_width
        self.begin = nn.Linear(features, width)
        self.recurrent = nn.GRU(config.token_width, width, batch_first=True)
        self.law_of = nn.Linear(width, 2 * config.token_width)
        with torch.no_grad():
            self.law_of.weight.mul_(0.3)

    def start(self, seen_BX: torch.Tensor) -> torch.Tensor:
        """The state (B, C) before the first token."""
        return torch.tanh(self.begin(seen_BX))

    def law(self, state_BC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log standard deviation (B, d) of the next token; (B, n, d) for states (B, n, C)."""
        mean, log_std = self.law_of(state_BC).float().chunk(2, -1)
        return mean, log_std.clamp(*LOG_STD_RANGE)

    def follow(self, state_BC: torch.Tensor, token_Bd: torch.Tensor) -> torch.Tensor:
        """The state (B, C) after one more token."""
        return self.recurrent(token_Bd.unsqueeze(1), state_BC.unsqueeze(0))[1][0]

    def forward(self, z0_Bnd: torch.Tensor, seen_BX: torch.Tensor) -> torch.Tensor:
        state_BC, tokens = self.start(seen_BX), []
        for k, z0_Bd in enumerate(z0_Bnd.unbind(1)):
            mean, log_std = self.law(state_BC)
            tokens.append(mean + log_std.exp() * z0_Bd)
            if k < z0_Bnd.shape[1] - 1:
                state_BC = self.follow(state_BC, tokens[-1])
        return torch.stack(tokens, 1)

    def laws(self, z_Bnd: torch.Tensor, seen_BX: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log standard deviation (B, n, d) of each token of ``z_Bnd`` given those before it, all at once."""
        state_BC = self.start(seen_BX)
        after_BnC, _ = self.recurrent(z_Bnd[:, :-1], state_BC.unsqueeze(0))
        return self.law(torch.cat([state_BC.unsqueeze(1), after_BnC], 1))


PRIORS = {"implicit": ImplicitPrior, "explicit": ExplicitPrior, "autoregressive": AutoregressivePrior}
