"""The return predictor p_gamma(y | z), of a z-scored return.

Letters: B plans, m tokens read, d width, K heads. Source: arXiv 2512.21527 [P]; the MLP on flattened tokens [LPT]; the
additive form, its bound and the ensemble [C].
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from algorithms.gac.attention import perceptron
from algorithms.gac.config import GACConfig

WORTH_SCALE = 4.0  # of a token's worth: outputs of order 1 then span the z-scored returns
WORTH_SHIFT = 2.0  # a bounded worth begins near its low end: most stretches earn little
LOG_VARIANCE_RANGE = (-6.0, 3.0)  # of a learned variance


class ReturnHead(nn.Module):
    """K predictors of mean and log-variance.

    additive: the mean over tokens of one function of each and its neighbours, its worth: a return is a sum over time,
    so a plan may join stretches that no episode had together. ``bounded``: a worth lies between two learned levels, so
    that no search can raise it without end.
    """

    def __init__(self, config: GACConfig) -> None:
        super().__init__()
        self.config, self.additive = config, config.return_head == "additive"
        inputs = config.token_width * (config.return_span if self.additive else config.return_count)
        outputs = 1 if config.return_variance else 2
        self.heads = nn.ModuleList(
            perceptron(inputs, config.return_width, outputs, config.return_layers) for _ in range(config.return_heads)
        )
        if self.additive and config.return_bounded:
            self.raw_scale, self.offset = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(-0.5))

    def forward(self, z_Bmd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log-variance (K, B)."""
        if self.additive:
            out_KBmo = self._outputs(z_Bmd)
            mean_KB, raw_KB = self._worth(out_KBmo[..., 0]).mean(-1), out_KBmo[..., -1].mean(-1)
        else:
            out_KBo = torch.stack([head(z_Bmd.flatten(1)).float() for head in self.heads])
            mean_KB, raw_KB = out_KBo[..., 0], out_KBo[..., -1]
        if self.config.return_variance:
            return mean_KB, torch.full_like(mean_KB, math.log(self.config.return_variance))
        return mean_KB, raw_KB.clamp(*LOG_VARIANCE_RANGE)

    def worth(self, z_Bmd: torch.Tensor) -> torch.Tensor:
        """What each token adds (K, B, m), z-scored: the additive head's mean is their mean. Any number of tokens m."""
        return self._worth(self._outputs(z_Bmd)[..., 0])

    def _outputs(self, z_Bmd: torch.Tensor) -> torch.Tensor:
        side = self.config.return_span // 2
        if side:
            ends = (z_Bmd[:, :1].expand(-1, side, -1), z_Bmd, z_Bmd[:, -1:].expand(-1, side, -1))
            joined, tokens = torch.cat(ends, 1), z_Bmd.shape[1]
            z_Bmd = torch.cat([joined[:, k : k + tokens] for k in range(2 * side + 1)], -1)
        return torch.stack([head(z_Bmd).float() for head in self.heads])

    def _worth(self, raw: torch.Tensor) -> torch.Tensor:
        if self.config.return_bounded:
            return F.softplus(self.raw_scale) * WORTH_SCALE * torch.sigmoid(raw - WORTH_SHIFT) + self.offset
        return WORTH_SCALE * raw
