"""CrossQ-SAC, the control of SoftGAC's paper: a tanh-Gaussian whose actor has batch renormalisation, too.

    obs -> BRN -> [Linear -> ReLU -> BRN] x layers -> Linear -> mean, raw;  log std = low + (high - low) (tanh(raw) + 1) / 2

The actor's loss takes the batch's statistics (train mode), everything else the running ones, folded into the linear layers.
The temperature descends log_alpha (A - mean log pi). Letters: R rows, O, A, H width. Source: arXiv 2605.08733 and Bhatt et
al., "CrossQ" (2024).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch

from algorithms import batch_renorm
from algorithms.acting import TracedPolicy
from algorithms.actor_critic import Actor, ActorBatch, ActorCritic, ActorLoss, Rollout, renorm_of
from algorithms.interface import AgentSpec
from algorithms.losses import actor_loss, log_prob, log_temperature_loss
from algorithms.sac.config import CrossQConfig
from algorithms.trainer import xavier_uniform
from replay.schema import Columns

Tensors = dict[str, torch.Tensor]
NormLayer = Callable[[int, torch.Tensor], torch.Tensor]


def initial_parameters(config: CrossQConfig, obs_dim: int, action_dim: int, draw: torch.Generator) -> Tensors:
    """``norm{l}.scale``, ``.bias`` (in,); ``linear{l}.weight`` (in, out) Xavier-uniform, ``.bias`` (out,) zero; the last gives 2A."""
    sizes = [obs_dim, *[config.actor_width] * config.actor_layers, 2 * action_dim]
    initial: Tensors = {}
    for l, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        initial |= {f"norm{l}.scale": torch.ones(fan_in), f"norm{l}.bias": torch.zeros(fan_in)}
        initial[f"linear{l}.weight"] = xavier_uniform((fan_in, fan_out), draw)
        initial[f"linear{l}.bias"] = torch.zeros(fan_out)
    return initial


def gaussian(
    config: CrossQConfig, action_dim: int, x: Any, linear: Tensors, norm: NormLayer | None = None
) -> tuple[Any, Any]:
    """Mean and log standard deviation (R, A); ``norm(l, x)`` where the linear layers have not taken it in."""
    for l in range(config.actor_layers + 1):
        x = torch.relu(x) if l else x
        x = norm(l, x) if norm else x
        x = torch.addmm(linear[f"linear{l}.bias"], x, linear[f"linear{l}.weight"])
    raw = torch.tanh(x[:, action_dim:])
    low, high = config.log_std_min, config.log_std_max
    return x[:, :action_dim], low + 0.5 * (high - low) * (raw + 1.0)


def act(config: CrossQConfig, action_dim: int, obs_BO: Any, noise_BA: Any, folded: Tensors) -> Any:
    """Actions (B, A); zero noise gives tanh(mean)."""
    mean_BA, log_std_BA = gaussian(config, action_dim, obs_BO, folded)
    return torch.tanh(mean_BA + torch.exp(log_std_BA) * noise_BA)


class CrossQActor(Actor):
    """The actor and its running statistics: ``mean`` and ``var`` of each layer's input, and the passes they have seen."""

    temperature_loss = staticmethod(log_temperature_loss)

    def __init__(self, config: CrossQConfig, spec: AgentSpec, constants: batch_renorm.Renorm) -> None:
        self.config, self.action_dim, self.collective, self.constants = (
            config,
            spec.action_dim,
            spec.collective,
            constants,
        )
        self.budget = -config.target_entropy * spec.action_dim
        self.budget_units = float(spec.action_dim)
        sizes = [spec.obs_dim, *[config.actor_width] * config.actor_layers]
        self.statistics = {f"norm{l}.mean": torch.zeros(n, device=spec.device) for l, n in enumerate(sizes)}
        self.statistics |= {f"norm{l}.var": torch.ones(n, device=spec.device) for l, n in enumerate(sizes)}
        self.passes = torch.zeros((), device=spec.device)
        self.batch: Tensors = {}  # of the last loss: what the statistics move towards

    def draw_noise(self, rows: int, generator: torch.Generator, particles: int) -> torch.Tensor:
        """Noise (rows, A), standard normal."""
        return torch.randn(rows * particles, self.action_dim, generator=generator, device=generator.device)

    def folded(self, parameters: Tensors) -> Tensors:
        """``linear{l}.weight`` and ``.bias`` that equal renormalisation by running statistics followed by the linear layer."""

        def pairs(tensors: Tensors, layer: str, one: str, two: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
            layers = [f"{layer}{l}" for l in range(self.config.actor_layers + 1)]
            return [(tensors[f"{name}.{one}"].unsqueeze(0), tensors[f"{name}.{two}"].unsqueeze(0)) for name in layers]

        linears, norms = pairs(parameters, "linear", "weight", "bias"), pairs(parameters, "norm", "scale", "bias")
        statistics = pairs(self.statistics, "norm", "mean", "var")
        folded: Tensors = {}
        for l, (weight, bias) in enumerate(batch_renorm.folded(linears, norms, statistics, self.constants.eps)):
            folded |= {f"linear{l}.weight": weight[0], f"linear{l}.bias": bias[0, 0]}
        return folded

    def rollout(self, obs_RO: torch.Tensor, noise: torch.Tensor, parameters: Tensors) -> Rollout:
        """One action a row from noise (R, A), by running statistics."""
        return self._rollout(noise, *gaussian(self.config, self.action_dim, obs_RO, self.folded(parameters)))

    def loss(self, batch: ActorBatch, parameters: Tensors) -> ActorLoss:
        """SAC's loss, by the batch's statistics, which ``commit`` takes over."""
        warm = self.passes >= self.constants.warmup

        def norm(l: int, x_RI: torch.Tensor) -> torch.Tensor:
            p, s = parameters, self.statistics
            given = (p[f"norm{l}.scale"], p[f"norm{l}.bias"], s[f"norm{l}.mean"], s[f"norm{l}.var"])
            y_RI, mean_I, var_I = batch_renorm.Renormalise.apply(x_RI, *given, warm, self.constants, self.collective)
            self.batch |= {f"norm{l}.mean": mean_I, f"norm{l}.var": var_I}
            return y_RI

        law = gaussian(self.config, self.action_dim, batch.obs_RO, parameters, norm)
        action_RA, cost_R, std = self._rollout(batch.noise, *law)
        value = actor_loss(batch.alpha, cost_R, batch.q(batch.obs_RO, action_RA))
        return ActorLoss(value, cost_R.detach().mean(), std)

    def commit(self, skipped: torch.Tensor) -> None:
        """Moves the running statistics towards those of the last loss and counts a pass; neither where ``skipped`` (0-d) is 1."""
        for name, running in self.statistics.items():
            moved = torch.lerp(running, self.batch[name], 1.0 - self.constants.decay)
            running.copy_(torch.where(skipped > 0, running, moved))
        self.passes.add_(1.0 - skipped)

    @staticmethod
    def _rollout(noise: torch.Tensor, mean_RA: torch.Tensor, log_std_RA: torch.Tensor) -> Rollout:
        std_RA = log_std_RA.exp()
        x_RA = torch.addcmul(mean_RA, std_RA, noise)
        return Rollout(torch.tanh(x_RA), log_prob(x_RA, log_std_RA, noise), std_RA.detach().mean())


class CrossQSAC(ActorCritic):
    """CrossQ-SAC's learner; the contract is algorithms.interface.Agent. The metric ``control_energy`` is its mean log pi."""

    def __init__(self, config: CrossQConfig, spec: AgentSpec) -> None:
        config.check()
        draw = torch.Generator().manual_seed(spec.seed)
        parameters = initial_parameters(config, spec.obs_dim, spec.action_dim, draw)
        self.gaussian = CrossQActor(config, spec, renorm_of(config))
        super().__init__(config, spec, self.gaussian, parameters, draw)

    def _actor_step(self, columns: Columns, noise: torch.Tensor, critic_skipped: torch.Tensor) -> torch.Tensor:
        skipped = super()._actor_step(columns, noise, critic_skipped)
        self.gaussian.commit(skipped)
        return skipped

    def tensors(self) -> Tensors:
        """The actor's statistics as well."""
        own = self.gaussian.statistics | {"passes": self.gaussian.passes}
        return super().tensors() | {f"actor.{name}": tensor for name, tensor in own.items()}

    @torch.no_grad()
    def policy_weights(self) -> Tensors:
        """``linear{l}.weight``, ``linear{l}.bias``: renormalisation is folded in."""
        return self.gaussian.folded(self.policy.named)


class CrossQPolicy(TracedPolicy):
    """The tanh-Gaussian for acting. ``noise`` is (B, A)."""

    def __init__(self, config: CrossQConfig, obs_dim: int, action_dim: int) -> None:
        config.check()
        initial = initial_parameters(config, obs_dim, action_dim, torch.Generator().manual_seed(0))
        linear = {name: tensor for name, tensor in initial.items() if name.startswith("linear")}
        super().__init__(functools.partial(act, config, action_dim), obs_dim, action_dim, (action_dim,), linear)
