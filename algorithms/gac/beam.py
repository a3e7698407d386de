"""Where an ascent begins: the best of many draws from the prior, or of stretches joined one after the other.

All of this is ours. A return that is a sum over stretches of time, and a prior that lays tokens one after the other, allow a
beam search: each token's draws are judged by what the plan up to them is worth, so that n tokens of C draws each are searched
at the cost of n C and not C^n. Letters: K environments, C = W X candidates, W the beam's width, X branches of each, n tokens
of width d, H return heads.
"""

from __future__ import annotations

import torch

from algorithms.gac.model import GACModel
from algorithms.gac.objective import cautious
from algorithms.gac.prior import AutoregressivePrior


def best_of(score_CK: torch.Tensor, z0_CKnd: torch.Tensor) -> torch.Tensor:
    """The candidate (K, n, d) of the highest score in each environment."""
    return z0_CKnd[score_CK.argmax(0), torch.arange(score_CK.shape[1])]


def searchable(model: object) -> bool:
    """Whether plans of ``model`` are laid and paid token by token."""
    return isinstance(model, GACModel) and isinstance(model.prior, AutoregressivePrior) and model.return_head.additive


@torch.no_grad()
def beam_search(
    model: GACModel, obs_KO: torch.Tensor, noise_CKnd: torch.Tensor, width: int, caution: float
) -> torch.Tensor:
    """z_0 (K, n, d) of the plan that is worth most by the cautious return head, among those that a beam keeps.

    Args:
        obs_KO: first observations, raw.
        noise_CKnd: standard normal, C a multiple of ``width``; token k of candidate c is drawn from noise[c, :, k].
    """
    prior = model.prior
    assert isinstance(prior, AutoregressivePrior)
    count, envs, tokens, token_width = noise_CKnd.shape
    branches = count // width
    first_K1 = torch.arange(envs).unsqueeze(1) * count
    # Rows of what follows: environment by environment, W of each.
    state = prior.start(model.featurise_first(obs_KO)).repeat_interleave(width, 0)
    z0, z = (noise_CKnd.new_empty(envs * width, 0, token_width) for _ in range(2))
    worth = _Worth(model, envs * width)
    for k in range(tokens):
        draw = noise_CKnd[:, :, k].transpose(0, 1).reshape(envs * width, branches, token_width)
        mean, log_std = (part.unsqueeze(1) for part in prior.law(state))
        token = (mean + log_std.exp() * draw).flatten(0, 1).unsqueeze(1)
        longer = torch.cat([z.repeat_interleave(branches, 0), token], 1)
        believed_KC = cautious(worth.grown(longer, branches), caution).view(envs, count)
        chosen = (believed_KC.topk(1 if k == tokens - 1 else width, 1).indices + first_K1).flatten()
        worth.keep(chosen)
        parent = chosen // branches
        z0, z = torch.cat([z0[parent], draw.flatten(0, 1)[chosen].unsqueeze(1)], 1), longer[chosen]
        if k < tokens - 1:
            state = prior.follow(state[parent], z[:, -1])
    return z0


class _Worth:
    """What plans are worth by each return head as they grow, from the tokens alone that the newest one touches."""

    def __init__(self, model: GACModel, rows: int) -> None:
        self.model, self.side = model, model.config.return_span // 2
        self.final_HR = torch.zeros(model.config.return_heads, rows)  # of the tokens whose neighbours are all laid
        self.total_HR = self.final_HR

    def grown(self, z_Rkd: torch.Tensor, branches: int) -> torch.Tensor:
        """The sum over tokens (H, R) of plans that are one token longer, ``branches`` of each that was kept."""
        length, self.final_HR = z_Rkd.shape[1], self.final_HR.repeat_interleave(branches, 1)
        if length > self.model.config.return_count:  # the newest token is not paid
            self.total_HR = self.total_HR.repeat_interleave(branches, 1)
            return self.total_HR
        tail_HRj = self.model.return_head.worth(z_Rkd[:, max(0, length - 2 * self.side - 1) :])
        newest_HRj = tail_HRj[..., -(self.side + 1) :]
        self.total_HR = self.final_HR + newest_HRj.sum(-1)
        if length > self.side:
            self.final_HR = self.final_HR + newest_HRj[..., 0]
        return self.total_HR

    def keep(self, chosen: torch.Tensor) -> None:
        """Goes on with the rows ``chosen`` alone."""
        self.final_HR, self.total_HR = self.final_HR[:, chosen], self.total_HR[:, chosen]
