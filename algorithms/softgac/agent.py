"""SoftGAC: the bridge as an actor, its learner and its policy.

Letters: B batch, R rows, P particles, K bridge steps, O, A. Source: arXiv 2605.08733.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from algorithms.actor_critic import Actor, ActorCritic, Rollout
from algorithms.interface import AgentSpec
from algorithms.loops import choose_bridge
from algorithms.softgac import bridge
from algorithms.softgac.config import SoftGACConfig
from algorithms.softgac.losses import VARIANCE_FLOOR, control_energy, energy_budget
from algorithms.weights import load_weights
from replay.schema import Columns

OBS_STATISTICS = ("obs.mean", "obs.var")  # of a policy with input_norm=running, by which it standardises observations


class BridgeActor(Actor):
    """The soft bridge with its control energy as cost, held at rho K A nats."""

    def __init__(self, config: SoftGACConfig, action_dim: int, device: torch.device) -> None:
        self.config, self.action_dim, self.particles = config, action_dim, config.particles
        self.budget = energy_budget(config.rho, config.bridge_steps, action_dim)
        self.budget_units = float(config.bridge_steps * action_dim)
        self.layer_norm = config.input_norm == "layer_norm"
        self.compiled = choose_bridge(device, self.layer_norm, VARIANCE_FLOOR)
        self.running: tuple[torch.Tensor, ...] = ()  # with input_norm=running: OBS_STATISTICS (O,)

    def rollout(self, obs_RO: torch.Tensor, noise: torch.Tensor, parameters: dict[str, torch.Tensor]) -> Rollout:
        """One action a row from noise (R, K+1, A)."""
        if self.running:
            mean_O, var_O = self.running
            obs_RO = bridge.standardised(obs_RO, mean_O, var_O, self.config.renorm_eps)
        if self.compiled:
            return Rollout(
                *bridge.CompiledRollout.apply(
                    self.compiled, obs_RO, noise, *(parameters[name] for name in bridge.STEP_PARAMETERS)
                )
            )
        z_KRA, u_KRA, sigma_KRA = bridge.bridge_path(obs_RO, noise, parameters, self.layer_norm)
        return Rollout(torch.tanh(z_KRA[-1]), control_energy(z_KRA[:-1], u_KRA, sigma_KRA), sigma_KRA.detach().mean())

    def draw_noise(self, rows: int, generator: torch.Generator, particles: int) -> torch.Tensor:
        """Noise (rows * particles, K+1, A); antithetic particles come in pairs (noise, -noise)."""
        config, mirrored = self.config, self.config.antithetic and particles > 1
        drawn = rows * particles // (2 if mirrored else 1)
        noise = bridge.draw_noise(drawn, config.bridge_steps, self.action_dim, config.base_law, generator)
        return torch.stack([noise, -noise], 1).flatten(0, 1) if mirrored else noise


class SoftGAC(ActorCritic):
    """SoftGAC's learner; the contract is algorithms.interface.Agent.

    Raises ValueError with every problem of ``config`` at once.
    """

    def __init__(self, config: SoftGACConfig, spec: AgentSpec) -> None:
        config.check()
        draw = torch.Generator().manual_seed(spec.seed)
        parameters = bridge.initial_parameters(
            spec.obs_dim, spec.action_dim, steps=config.bridge_steps, width=config.bridge_width, draw=draw
        )
        self.bridge = BridgeActor(config, spec.action_dim, torch.device(spec.device))
        super().__init__(config, spec, self.bridge, parameters, draw)
        if config.input_norm == "running":
            self.bridge.running = tuple(self._seen(name).clone() for name in ("mean", "var"))

    def _seen(self, name: str) -> torch.Tensor:
        """The critics' running ``mean`` or ``var`` of observations (O,): one, because both critics see one input."""
        return self.critic.statistics[f"norm0.{name}"][0, : self.obs_dim]

    def _actor_step(self, columns: Columns, noise: torch.Tensor, critic_skipped: torch.Tensor) -> torch.Tensor:
        for mine_O, name in zip(self.bridge.running, ("mean", "var")):  # the actor stands still between its steps
            mine_O.copy_(torch.where(critic_skipped > 0, mine_O, self._seen(name)))
        return super()._actor_step(columns, noise, critic_skipped)

    def tensors(self) -> dict[str, torch.Tensor]:
        """See docs/softgac.md for the list."""
        return super().tensors() | {f"actor.{name}": t for name, t in zip(OBS_STATISTICS, self.bridge.running)}

    def policy_weights(self) -> dict[str, torch.Tensor]:
        """Step k's tensors as ``bridge.{k}.{name}``, k = 0 .. K-1, in STEP_PARAMETERS' order; views, float32.

        With input_norm=running, ``obs.mean`` and ``obs.var`` (O,) follow.
        """
        named = {name: tensor.detach() for name, tensor in self.policy.named.items()}
        steps = named["heads.bias"].shape[0]
        weights = {f"bridge.{k}.{name}": named[name][k] for k in range(steps) for name in bridge.STEP_PARAMETERS}
        return weights | dict(zip(OBS_STATISTICS, self.bridge.running))


class SoftGACPolicy:
    """The bridge for acting; the contract is algorithms.interface.Policy. ``noise`` is (B, K+1, A)."""

    def __init__(self, config: SoftGACConfig, obs_dim: int, action_dim: int) -> None:
        config.check()
        self.config, self.obs_dim, self.action_dim = config, obs_dim, action_dim
        self.noise_shape: tuple[int, ...] = (config.bridge_steps + 1, action_dim)
        draw = torch.Generator().manual_seed(0)
        stacked = bridge.initial_parameters(
            obs_dim, action_dim, steps=config.bridge_steps, width=config.bridge_width, draw=draw
        )
        self._weights = {
            f"bridge.{k}.{name}": stacked[name][k].clone()
            for k in range(config.bridge_steps)
            for name in bridge.STEP_PARAMETERS
        }
        if config.input_norm == "running":
            self._weights |= dict(zip(OBS_STATISTICS, (torch.zeros(obs_dim), torch.ones(obs_dim))))
        names = [[f"bridge.{k}.{name}" for name in bridge.STEP_PARAMETERS] for k in range(config.bridge_steps)]
        self._steps = [[self._weights[name] for name in step] for step in names]

    def sample_noise(self, rng: np.random.Generator, batch: int) -> np.ndarray:
        """Exploration noise, float32 (batch, K+1, A); slice 0 follows the base law."""
        return bridge.sample_noise(rng, batch, self.config.bridge_steps, self.action_dim, self.config.base_law)

    def act(self, obs_BO: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Actions (B, A) in [-1, 1]; all-zero noise is the deterministic policy (z_0 = 0, every eps 0)."""
        if self.config.input_norm == "running":
            mean_O, var_O = (self._weights[name] for name in OBS_STATISTICS)
            obs_BO = bridge.standardised(obs_BO, mean_O, var_O, self.config.renorm_eps)
        return bridge.bridge_action(obs_BO, noise, self._steps, self.config.input_norm == "layer_norm")

    def load_weights(self, weights: dict[str, Any]) -> None:
        """Copies arrays or tensors named as in ``policy_weights``; raises ValueError on names or shapes that differ."""
        load_weights(self._weights, weights)

    def compiled(self) -> bridge.CompiledActing | None:
        """``act`` in C, where this machine has it."""
        fast = choose_bridge(torch.device("cpu"), self.config.input_norm == "layer_norm", VARIANCE_FLOOR)
        return None if fast is None else bridge.CompiledActing(fast, self._weights, self.config.renorm_eps)

    def onnx_model(self) -> bytes:
        """The serialised graph of ``act``; see algorithms/softgac/bridge.py."""
        from algorithms.softgac.bridge import bridge_model  # onnx is slow to import, and learners never need it

        return bridge_model(self.config, self.obs_dim, self.action_dim)
