"""What the rivals share: a network on (state, x, time), and how it samples, learns and acts.

Letters: R rows, O, A, H width, S the times at which a sampler looks at its network, C numbers of a time's code.

The network's first layer is a sum of three products, s W_s + x W_x + code(t) W_t + b. That is the layer on the joined
input, but the state's part is computed once an action, and the times' part once for all actions: ``fold`` works it out, so
that acting needs no code of the time.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from algorithms.acting import TracedPolicy
from algorithms.actor_critic import Actor, ActorCritic, Rollout
from algorithms.config import CriticConfig
from algorithms.interface import AgentSpec
from algorithms.trainer import xavier_uniform

Tensors = dict[str, torch.Tensor]
Draw = Callable[[tuple[int, ...], torch.Generator], torch.Tensor]
LAYER_NORM_EPS = 1e-6


class Field:
    """[Linear -> LayerNorm, if any -> activation] x layers -> Linear, on state, x and a code of the time."""

    def __init__(
        self,
        width: int,
        layers: int,
        activation: Callable[..., Any],
        *,
        norm: bool = False,
        draw: Draw = xavier_uniform,
    ) -> None:
        self.width, self.layers, self.activation, self.norm, self.draw = width, layers, activation, norm, draw

    def initial(self, obs_dim: int, action_dim: int, code_dim: int, draw: torch.Generator) -> Tensors:
        """``obs.weight`` (O, H), ``action.weight`` (A, H), ``time.weight`` (C, H), then the layers; biases are zero."""
        first = self.draw((obs_dim + action_dim + code_dim, self.width), draw)
        parts = first.split([obs_dim, action_dim, code_dim])
        initial = dict(zip(("obs.weight", "action.weight", "time.weight"), parts)) | {
            "in.bias": torch.zeros(self.width)
        }
        for l in range(self.layers):
            if l:
                initial[f"hidden{l}.weight"] = self.draw((self.width, self.width), draw)
                initial[f"hidden{l}.bias"] = torch.zeros(self.width)
            if self.norm:
                initial |= {f"norm{l}.scale": torch.ones(self.width), f"norm{l}.bias": torch.zeros(self.width)}
        return initial | {
            "out.weight": self.draw((self.width, action_dim), draw),
            "out.bias": torch.zeros(action_dim),
        }

    def fold(self, parameters: Tensors, code_SC: torch.Tensor) -> Tensors:
        """What ``__call__`` takes: the parameters with ``times`` (S, H) for their time's part."""
        own = ("obs.", "action.", "hidden", "norm", "out.")
        times = torch.addmm(parameters["in.bias"], code_SC, parameters["time.weight"])
        return {name: tensor for name, tensor in parameters.items() if name.startswith(own)} | {"times": times}

    def state(self, obs_RO: Any, weights: Tensors) -> Any:
        """The state's part (R, H) of the first layer."""
        return obs_RO @ weights["obs.weight"]

    def __call__(self, state_RH: Any, x_RA: Any, time: Any, weights: Tensors) -> Any:
        """The output (R, A) at ``time``: the time's part of the first layer, (H,) or (R, H)."""
        h = torch.addmm(state_RH + time, x_RA, weights["action.weight"])
        for l in range(self.layers):
            if l:
                h = torch.addmm(weights[f"hidden{l}.bias"], h, weights[f"hidden{l}.weight"])
            if self.norm:
                scale, bias = weights[f"norm{l}.scale"], weights[f"norm{l}.bias"]
                h = F.layer_norm(h, (self.width,), scale, bias, LAYER_NORM_EPS)
            h = self.activation(h)
        return torch.addmm(weights["out.bias"], h, weights["out.weight"])


class Sampler(Actor):
    """An actor that turns standard normal noise into actions by its network. ``act`` runs in torch and is traced to ONNX.

    Subclasses set ``noise_shape`` and ``field``.
    """

    noise_shape: tuple[int, ...]
    field: Field

    def __init__(self, config: Any, spec: AgentSpec) -> None:
        self.config, self.obs_dim, self.action_dim = config, spec.obs_dim, spec.action_dim
        self.device, self.collective = torch.device(spec.device), spec.collective

    @abc.abstractmethod
    def initial(self, draw: torch.Generator) -> Tensors:
        """The parameters to be learned."""

    @abc.abstractmethod
    def fold(self, parameters: Tensors) -> Tensors:
        """The weights that act: parameters whose part for each time is worked out."""

    @abc.abstractmethod
    def act(self, obs_RO: Any, noise: Any, weights: Tensors) -> Any:
        """Actions (R, A) in [-1, 1] from noise (R, *noise_shape)."""

    def first_weights(self) -> Tensors:
        """Tensors of the names and shapes that ``act`` takes."""
        return self.fold(self.initial(torch.Generator().manual_seed(0)))

    def draw_noise(self, rows: int, generator: torch.Generator, particles: int) -> torch.Tensor:
        """Noise (rows * particles, *noise_shape), standard normal."""
        return torch.randn(rows * particles, *self.noise_shape, generator=generator, device=generator.device)

    @staticmethod
    def unpaid(action_RA: torch.Tensor) -> Rollout:
        """Actions that cost nothing."""
        return Rollout(action_RA, action_RA.new_zeros(len(action_RA)), action_RA.new_zeros(()))


class Rival(ActorCritic):
    """The learner of a sampler; the contract is algorithms.interface.Agent."""

    sampler: ClassVar[type[Sampler]]

    def __init__(self, config: CriticConfig, spec: AgentSpec) -> None:
        config.check()
        draw = torch.Generator().manual_seed(spec.seed)
        self.sampling = self.sampler(config, spec)
        super().__init__(config, spec, self.sampling, self.sampling.initial(draw), draw)

    @torch.no_grad()
    def policy_weights(self) -> Tensors:
        """What the sampler's ``act`` takes."""
        return self.sampling.fold({name: tensor.detach() for name, tensor in self.policy.named.items()})


class RivalPolicy(TracedPolicy):
    """The acting side of a sampler."""

    sampler: ClassVar[type[Sampler]]

    def __init__(self, config: CriticConfig, obs_dim: int, action_dim: int) -> None:
        config.check()
        sampling = self.sampler(config, AgentSpec(obs_dim=obs_dim, action_dim=action_dim))
        super().__init__(sampling.act, obs_dim, action_dim, sampling.noise_shape, sampling.first_weights())
