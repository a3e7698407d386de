"""A two-dimensional bandit with three modes: what the control-energy budget does, visible at a glance.

One state, actions in [-1, 1]^2, a known Q: the actor's loss and the temperature alone, no critic. Source: the toy of
arXiv 2605.08733 (its modes' places; their heights and widths are ours).
"""

from __future__ import annotations

import torch

from algorithms.losses import actor_loss, temperature_loss
from algorithms.softgac import bridge
from algorithms.softgac.losses import control_energy, energy_budget
from algorithms.trainer import FlatAdam, FlatParameters

MODES = ((-0.7, 0.5), (0.63, 0.5), (-0.05, -0.58))
HEIGHTS = (1.0, 1.0, 1.0)
WIDTH = 0.14  # standard deviation of a mode
ALPHA_INIT = 0.3
STATE = (1.0, -1.0)  # the one state; two unequal entries, or LayerNorm would hide how far z lies from 0
NEAR = 0.4  # an action this close to a mode counts as its own


def toy_q(action_R2: torch.Tensor) -> torch.Tensor:
    """Q (R,) of actions (R, 2): a sum of three Gaussian bumps."""
    modes_32, heights_3 = torch.tensor(MODES), torch.tensor(HEIGHTS)
    square_R3 = (action_R2.unsqueeze(-2) - modes_32).square().sum(-1)
    return (heights_3 * torch.exp(square_R3 / (-2 * WIDTH**2))).sum(-1)


def train_toy(
    rho: float, *, updates: int, seed: int = 0, rows: int = 256, steps: int = 6, width: int = 64
) -> torch.Tensor:
    """4,096 actions (4096, 2) of a bridge trained on ``toy_q`` at the budget ``rho``."""
    draw = torch.Generator().manual_seed(seed)
    initial = bridge.initial_parameters(2, 2, steps=steps, width=width, draw=draw)
    parameters = FlatParameters({**initial, "log_alpha": torch.tensor(ALPHA_INIT).log()}, torch.device("cpu"))
    log_alpha, n = parameters.named["log_alpha"], parameters.size
    adams = (
        FlatAdam(parameters.value[: n - 1], parameters.grad[: n - 1], lr=1e-3),
        FlatAdam(parameters.value[n - 1 :], parameters.grad[n - 1 :], lr=3e-3),
    )
    obs, never = torch.tensor(STATE).expand(rows, 2), torch.zeros(())
    for _ in range(updates):
        noise = bridge.draw_noise(rows, steps, 2, "logistic", draw)
        z, u, sigma = bridge.bridge_path(obs, noise, parameters.named)
        cost = control_energy(z[:-1], u, sigma)
        loss = actor_loss(log_alpha.detach().exp(), cost, toy_q(torch.tanh(z[-1])).unsqueeze(0))
        parameters.grad.zero_()
        (loss + temperature_loss(log_alpha, energy_budget(rho, steps, 2), cost.detach().mean())).backward()
        for adam in adams:
            adam.step(never)
    with torch.no_grad():
        noise = bridge.draw_noise(4096, steps, 2, "logistic", draw)
        return torch.tanh(bridge.bridge_path(torch.tensor(STATE).expand(4096, 2), noise, parameters.named).z_KRA[-1])


def mode_shares(action_R2: torch.Tensor) -> list[float]:
    """Share of the actions within NEAR of each mode."""
    distance_R3 = torch.cdist(action_R2, torch.tensor(MODES))
    return (distance_R3 < NEAR).float().mean(0).tolist()
