"""FlowRL: FLAC's flow, drawn to the replay's actions where they beat its own (arXiv 2506.12811).

    actor:    mean[ -min_j Q_j(s, pi(s)) + w |f(s, x_t, t) - (a - x_0)|^2 / A ],   x_t = t a + (1 - t) x_0,  a of the replay
              w = clip(.1 exp(u - mean u), .001, 1),   u = max(0, min_j B_j(s, a) - min_j Q_j(s, pi(s))),  no gradient
    replay:   B_j regresses on r + gamma (1 - terminated) V(s'),  V on the .9 expectile of min_j of B's slow copy at (s, a)

B and V are networks of their own with layer norm N between their linear layers W, as in skypitcher/soft_gac_jax:

    B:  W N ( W gelu N ... ( W N ( W (s, a) ) ) )        V:  W N gelu W ... N gelu W s

Without it the pair feeds on its own errors and leaves the atoms for good. Rewards are in the atoms' units, as Q is.
Letters: R rows, O, A, H width, T = 2 critics.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F

from algorithms.actor_critic import ActorBatch, ActorLoss
from algorithms.ensemble import ensemble_parameters, layers, linear, normed
from algorithms.interface import AgentSpec
from algorithms.rivals.config import FlowRLConfig
from algorithms.rivals.flac import FlowActor
from algorithms.rivals.sampler import Rival, RivalPolicy, Tensors
from algorithms.trainer import FlatAdam, FlatParameters, Loss, Trainer, xavier_uniform
from replay.schema import Columns

BEHAVIOUR_METRICS = ("behaviour_loss", "behaviour_q", "behaviour_v")
NORM_EPS = 1e-6

gelu = functools.partial(F.gelu, approximate="tanh")


def behaviour_parameters(config: FlowRLConfig, obs_dim: int, action_dim: int, draw: torch.Generator) -> Tensors:
    """``q{l}`` of two networks with one linear layer more than ``v{l}`` of one: ``.weight``, ``.bias``, ``.scale``, ``.shift``."""
    hidden = [config.behaviour_width] * config.behaviour_layers
    sizes = {"q": (2, [obs_dim + action_dim, config.behaviour_width, *hidden, 1]), "v": (1, [obs_dim, *hidden, 1])}
    return {
        key: tensor
        for name, (networks, widths) in sizes.items()
        for key, tensor in ensemble_parameters(name, networks, widths, xavier_uniform, draw, layer_norm=True).items()
    }


def behaviour_q(x_RI: torch.Tensor, p: Tensors) -> torch.Tensor:
    """B_j (T, R) of joined states and actions."""
    h, last = linear("q0", x_RI.expand(2, *x_RI.shape), p), layers("q", p) - 1
    for l in range(1, last + 1):
        h = normed(f"q{l - 1}", h, p, NORM_EPS)
        h = linear(f"q{l}", gelu(h) if 1 < l < last else h, p)
    return h.squeeze(-1)


def behaviour_v(obs_RO: torch.Tensor, p: Tensors) -> torch.Tensor:
    """V (R,) of states."""
    h, last = linear("v0", obs_RO[None], p), layers("v", p) - 1
    for l in range(1, last + 1):
        h = linear(f"v{l}", normed(f"v{l - 1}", gelu(h), p, NORM_EPS), p)
    return h[0, :, 0]


def behaviour_loss(
    q_TR: torch.Tensor, target_R: torch.Tensor, v_R: torch.Tensor, slow_R: torch.Tensor, expectile: float
) -> torch.Tensor:
    """sum_j mean (B_j - target)^2 + mean |e - 1(d < 0)| d^2, d = slow B - V."""
    d_R = slow_R - v_R
    weight_R = torch.where(d_R < 0, 1.0 - expectile, expectile)
    return (q_TR - target_R).square().mean(-1).sum() + (weight_R * d_R.square()).mean()


class FlowRLActor(FlowActor):
    """The flow with FlowRL's loss; ``behaviour`` are the parameters of the replay's critic and value."""

    behaviour: Tensors

    def draw_loss_noise(self, rows: int, generator: torch.Generator) -> torch.Tensor:
        """(rows, 3, A): x_0 of the action, x_0 of the match, and t, uniform, first in the last slice."""
        shape, device = (rows, 1, self.action_dim), generator.device
        normal = torch.randn(rows, 2, self.action_dim, generator=generator, device=device)
        return torch.cat([normal, torch.rand(shape, generator=generator, device=device)], 1)

    def loss(self, batch: ActorBatch, parameters: Tensors) -> ActorLoss:
        """-Q of its own action, and the weighted flow-matching error of the replay's."""
        noise_RA, start_RA, t_RA = batch.noise.unbind(1)
        obs, a, x_0, t_R1 = batch.obs_RO, batch.action_BA, start_RA.clamp(-1.0, 1.0), t_RA[:, :1]
        own = self.rollout(obs, noise_RA, parameters)
        q_R = batch.q(obs, own.action_RA).amin(0)
        with torch.no_grad():
            u_R = (behaviour_q(torch.cat([obs, a], -1), self.behaviour).amin(0) - q_R).clamp_min(0.0)
            mean = u_R.mean()
            self.collective.mean_(mean)
            c = self.config
            w_R = (c.match_weight * (u_R - mean).exp()).clamp(c.match_least, c.match_most)
        time_RH = torch.addmm(parameters["in.bias"], t_R1, parameters["time.weight"])
        v_RA = self.field(self.field.state(obs, parameters), t_R1 * a + (1.0 - t_R1) * x_0, time_RH, parameters)
        match_R = (v_RA - (a - x_0)).square().mean(-1)
        return ActorLoss((w_R * match_R - q_R).mean(), own.cost_R.mean(), own.sigma_mean)


class FlowRL(Rival):
    """FlowRL's learner, with the replay's critic, its value and a slow copy, which moves when the actor does."""

    sampler = FlowRLActor
    config: FlowRLConfig

    def __init__(self, config: FlowRLConfig, spec: AgentSpec) -> None:
        super().__init__(config, spec)
        draw = torch.Generator().manual_seed(spec.seed + 1)
        self.behaviour = FlatParameters(
            behaviour_parameters(config, spec.obs_dim, spec.action_dim, draw), self.device, extra=1
        )
        self.behaviour_adam = FlatAdam(self.behaviour.value, self.behaviour.gradient, lr=config.critic_lr)
        self.slow = {n: t.detach().clone() for n, t in self.behaviour.named.items() if n.startswith("q")}
        self.sampling.behaviour = self.behaviour.named  # type: ignore[attr-defined]
        self.behaviour_trainer = Trainer(self.behaviour, (self.behaviour_adam,), self.collective, BEHAVIOUR_METRICS)
        self.trainers = (*self.trainers, self.behaviour_trainer)

    def _critic_step(self, rows_BD: torch.Tensor, *following: torch.Tensor) -> torch.Tensor:
        skipped = super()._critic_step(rows_BD, *following)
        columns, named = self.layout.views(rows_BD), self.behaviour.named
        joined_BI = rows_BD[:, : self.obs_dim + self.action_dim]
        with torch.no_grad():
            discount_B = self.config.gamma * columns.discount
            units = self.support.units(columns.reward, discount_B, self.collective)
            following_B = behaviour_v(columns.next_obs, named)
            target_B = units.reward(columns.reward, discount_B) + discount_B * following_B
            slow_B = behaviour_q(joined_BI, self.slow).amin(0)
        q_TB, v_B = behaviour_q(joined_BI, named), behaviour_v(columns.obs, named)
        loss = behaviour_loss(q_TB, target_B, v_B, slow_B, self.config.expectile)
        step = self.behaviour_trainer.descend(Loss(loss))
        values = (step.loss, q_TB.detach().mean(), v_B.detach().mean())
        # A batch that was not finite has been counted with the critics.
        self.behaviour_trainer.record(step._replace(nonfinite=step.nonfinite * (1.0 - skipped)), values)
        return skipped

    def _actor_step(self, columns: Columns, noise: torch.Tensor, critic_skipped: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            share = self.config.behaviour_copy * (1.0 - critic_skipped)
            for name, slow in self.slow.items():
                slow.lerp_(self.behaviour.named[name], share)
        return super()._actor_step(columns, noise, critic_skipped)

    def tensors(self) -> Tensors:
        """The replay's critic and value as well, with their optimiser and slow copy."""
        own: dict[str, Any] = {f"behaviour.{name}": tensor for name, tensor in self.behaviour.named.items()}
        own |= {f"behaviour.slow.{name}": tensor for name, tensor in self.slow.items()}
        own |= {f"behaviour.adam.{name}": tensor for name, tensor in self.behaviour_adam.state().items()}
        return super().tensors() | own


class FlowRLPolicy(RivalPolicy):
    """FlowRL's acting side. ``noise`` is (B, A)."""

    sampler = FlowRLActor
