"""QVPO: a denoiser that learns the best of its own samples, weighted by their advantage (arXiv 2405.16173).

    sampler:  x_0 = clip((x - sqrt(1 - abar_k) e) / sqrt(abar_k));  x <- clip(c_k x_0 + d_k x + s_k z), the posterior's mean and
              standard deviation, k = T-1 .. 0, no z at 0
    acting:   the best of 4 samples by Q = min_j Q_j;  next actions: the same, from a slow copy of the actor (rate .005)
    actor:    of 64 samples a state the best one a*, with weight w = max(0, Q(s, a*) - mean of the 64 Q), and also 10
              uniform actions of weight .02 w (.002 w at the end):  mean of w (e(s, x_k, k) - eps)^2 over all of them

The gradient's norm is at most 2, Adam's eps 1e-5. Acting takes the critics, whose weights are published with the actor's.
Letters: R rows, O, A, H, T steps, N candidates, M samples. Without noise all candidates are one path from 0; the released code
takes the best of 32 samples to evaluate.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

import torch

from algorithms.actor_critic import ActorBatch, ActorLoss, Optimiser, Rollout
from algorithms.interface import AgentSpec
from algorithms.rivals.config import QVPOConfig
from algorithms.rivals.denoiser import Denoiser, cosine_schedule
from algorithms.rivals.sampler import Rival, RivalPolicy, Tensors


class QVPOActor(Denoiser):
    """The denoiser with QVPO's loss. ``updates`` (0-d) counts the critics' updates."""

    code_size, second_layer = 32, True
    optimiser = Optimiser(eps=1e-5, clip_norm=2.0)
    updates: torch.Tensor

    def __init__(self, config: QVPOConfig, spec: AgentSpec) -> None:
        super().__init__(config, spec, cosine_schedule(config.diffusion_steps))
        self.noise_shape = (config.candidates, self.steps, spec.action_dim)
        before = [1.0, *self.kept[:-1]]
        self.posterior = [
            (
                beta * math.sqrt(prior) / (1.0 - kept),
                (1.0 - prior) * math.sqrt(1.0 - beta) / (1.0 - kept),
                math.sqrt(max(beta * (1.0 - prior) / (1.0 - kept), 1e-20)),
            )
            for beta, kept, prior in zip(self.betas, self.kept, before)
        ]
        self.atom_N = torch.linspace(
            0.0, 1.0, config.atoms, device=self.device
        )  # whatever their units, the best is the same

    def first_weights(self) -> Tensors:
        """The actor's and those of ``critic_weights``."""
        c = self.config
        sizes = [self.obs_dim + self.action_dim, *[c.critic_width] * c.critic_layers, c.atoms]
        frozen = [(torch.zeros(2, i, o), torch.zeros(2, 1, o)) for i, o in itertools.pairwise(sizes)]
        return super().first_weights() | self.critic_weights(frozen)

    def critic_weights(self, frozen: list[tuple[torch.Tensor, torch.Tensor]]) -> Tensors:
        """``critic{j}.obs.weight``, ``.action.weight``, ``.bias0``, then ``.weight{l}``, ``.bias{l}``, of both critics."""
        named: Tensors = {}
        for j in range(2):
            for l, (weight, bias) in enumerate(frozen):
                named[f"critic{j}.bias{l}"] = bias[j, 0]
                if l:
                    named[f"critic{j}.weight{l}"] = weight[j]
            named[f"critic{j}.obs.weight"], named[f"critic{j}.action.weight"] = frozen[0][0][j].split(
                [self.obs_dim, self.action_dim]
            )
        return named

    def denoise(self, state: Any, noise: Any, weights: Tensors) -> Any:
        """Samples (R, A) from noise (R, T, A), x_T first."""
        x = noise[:, 0]
        for done, k in enumerate(reversed(range(self.steps)), start=1):
            to_first, to_x, std = self.posterior[k]
            e = self.field(state, x, weights["times"][k], weights)
            first = (x - e * math.sqrt(1.0 - self.kept[k])) * (1.0 / math.sqrt(self.kept[k]))
            mean = torch.clamp(first, -1.0, 1.0) * to_first + x * to_x
            x = torch.clamp(mean + noise[:, done] * std if k else mean, -1.0, 1.0)
        return x

    def act(self, obs_RO: Any, noise: Any, weights: Tensors) -> Any:
        """The best (R, A) of N candidates from noise (R, N, T, A)."""
        count, steps, dim = self.noise_shape
        state = self.field.state(obs_RO, weights).repeat(1, count).reshape(-1, self.field.width)
        x = self.denoise(state, noise.reshape(-1, steps, dim), weights)
        values = []
        for j in range(2):
            h = obs_RO @ weights[f"critic{j}.obs.weight"] + weights[f"critic{j}.bias0"]
            h = h.repeat(1, count).reshape(-1, self.config.critic_width) + x @ weights[f"critic{j}.action.weight"]
            for l in range(1, self.config.critic_layers + 1):
                h = torch.addmm(weights[f"critic{j}.bias{l}"], torch.relu(h), weights[f"critic{j}.weight{l}"])
            values.append(torch.sum(torch.softmax(h, -1) * self.atom_N, -1))
        return best(x.reshape(-1, count, dim), torch.minimum(*values).reshape(-1, count))

    def rollout(self, obs_RO: torch.Tensor, noise: torch.Tensor, parameters: Tensors) -> Rollout:
        """Next actions; ``parameters`` are the slow actor's, with ``critic_weights``."""
        critic = {name: tensor for name, tensor in parameters.items() if name.startswith("critic")}
        return self.unpaid(self.act(obs_RO, noise, self.fold(parameters) | critic))

    def draw_loss_noise(self, rows: int, generator: torch.Generator) -> torch.Tensor:
        """(rows, n), packed: M samples' noise, eps of the 1 + 10 actions, uniform actions, and a uniform number for each k."""
        c, dim = self.config, self.action_dim
        normals, uniforms = (
            (c.train_samples * self.steps + 1 + c.uniform_actions) * dim,
            c.uniform_actions * (dim + 1) + 1,
        )
        normal = torch.randn(rows, normals, generator=generator, device=generator.device)
        return torch.cat([normal, torch.rand(rows, uniforms, generator=generator, device=generator.device)], 1)

    def loss(self, batch: ActorBatch, parameters: Tensors) -> ActorLoss:
        """The weighted denoising error of the best samples and of the uniform actions beside them."""
        c, dim, obs, rows = self.config, self.action_dim, batch.obs_RO, len(batch.obs_RO)
        many, beside = c.train_samples, c.uniform_actions
        parts = batch.noise.split([many * self.steps * dim, (1 + beside) * dim, beside * dim, 1 + beside], 1)
        weights = self.fold(parameters)
        with torch.no_grad():
            state = self.field.state(obs, weights).repeat_interleave(many, 0)
            sample = self.denoise(state, parts[0].reshape(-1, self.steps, dim), weights)
            q_RM = batch.q(obs.repeat_interleave(many, 0), sample).amin(0).reshape(rows, many)
            chosen_RA = best(sample.reshape(rows, many, dim), q_RM)
            w_R1 = (q_RM.amax(1, True) - q_RM.mean(1, True)).clamp_min(0.0)
            gone = (self.updates / c.entropy_updates).clamp(max=1.0)
            left = c.entropy_weight + (c.entropy_least - c.entropy_weight) * gone
            w = torch.cat([w_R1, (left * w_R1).expand(rows, beside)], 1).reshape(-1, 1)
            action = torch.cat([chosen_RA, 2.0 * parts[2] - 1.0], 1).reshape(-1, dim)
        step, eps = self.at(parts[3].reshape(-1)), parts[1].reshape(-1, dim)
        state = self.field.state(obs, weights).repeat_interleave(1 + beside, 0)
        e = self.field(state, self.noised(action, eps, step), step @ weights["times"], weights)
        value = (w * (e - eps).square()).mean()
        return ActorLoss(value, value.new_zeros(()), value.new_zeros(()))


def best(x_RNA: Any, q_RN: Any) -> Any:
    """Of N rows the one with the largest q, (R, A); those that are equally good are averaged."""
    top = torch.eq(q_RN, torch.amax(q_RN, 1, True)) * 1.0
    return torch.sum(x_RNA * top.unsqueeze(2), 1) / torch.sum(top, 1).unsqueeze(1)


class QVPO(Rival):
    """QVPO's learner, with a slow copy of the actor."""

    sampler = QVPOActor
    config: QVPOConfig

    def __init__(self, config: QVPOConfig, spec: AgentSpec) -> None:
        super().__init__(config, spec)
        self.sampling.updates = self.critic_adam.count  # type: ignore[attr-defined]
        self.slow = {name: tensor.detach().clone() for name, tensor in self.policy.named.items()}

    def _critic_weights(self) -> Tensors:
        return self.sampling.critic_weights(self.critic.frozen())  # type: ignore[attr-defined]

    def _followers(
        self, next_obs_CBO: torch.Tensor, noise: torch.Tensor
    ) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        """One update after the other: the critics that choose move in between."""
        for next_obs_BO, part in zip(next_obs_CBO.unbind(), noise.split(next_obs_CBO.shape[1])):
            following = self._follow(next_obs_BO, part)
            yield following.action_RA, following.cost_R

    @torch.no_grad()
    def _follow(self, next_obs_RO: torch.Tensor, noise: torch.Tensor) -> Rollout:
        return self.sampling.rollout(next_obs_RO, noise, self.slow | self._critic_weights())

    def _critic_step(self, rows_BD: torch.Tensor, *following: torch.Tensor) -> torch.Tensor:
        skipped = super()._critic_step(rows_BD, *following)
        with torch.no_grad():
            for name, slow in self.slow.items():
                slow.lerp_(self.policy.named[name], self.config.slow_rate * (1.0 - skipped))
        return skipped

    def tensors(self) -> Tensors:
        """The slow actor as well."""
        return super().tensors() | {f"actor.slow.{name}": tensor for name, tensor in self.slow.items()}

    @torch.no_grad()
    def policy_weights(self) -> Tensors:
        """The actor's and the critics'."""
        return super().policy_weights() | self._critic_weights()


class QVPOPolicy(RivalPolicy):
    """QVPO's acting side. ``noise`` is (B, N, T, A)."""

    sampler = QVPOActor
