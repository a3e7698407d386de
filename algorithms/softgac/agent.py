"""SoftGAC: the bridge as an actor, and its learner.

Letters: B batch, R rows, P particles, K bridge steps, O, A. Source: arXiv 2605.08733.
"""

from __future__ import annotations

import torch

from algorithms.actor_critic import Actor, ActorCritic, Rollout
from algorithms.interface import AgentSpec
from algorithms.softgac import bridge
from algorithms.softgac.compiled_bridge import choose_bridge
from algorithms.softgac.config import SoftGACConfig
from algorithms.softgac.losses import control_energy, energy_budget
from algorithms.softgac.weights import OBS_STATISTICS, STEP_PARAMETERS
from replay.schema import Columns


class BridgeActor(Actor):
    """The soft bridge with its control energy as cost, held at rho K A nats."""

    def __init__(self, config: SoftGACConfig, action_dim: int, device: torch.device) -> None:
        self.config, self.action_dim, self.particles = config, action_dim, config.particles
        self.budget = energy_budget(config.rho, config.bridge_steps, action_dim)
        self.budget_units = float(config.bridge_steps * action_dim)
        self.layer_norm = config.input_norm == "layer_norm"
        self.compiled = choose_bridge(self.layer_norm, device.type)
        self.running: tuple[torch.Tensor, ...] = ()  # with input_norm=running: OBS_STATISTICS (O,)

    def rollout(self, obs_RO: torch.Tensor, noise: torch.Tensor, parameters: dict[str, torch.Tensor]) -> Rollout:
        """One action a row from noise (R, K+1, A)."""
        if self.running:
            mean_O, var_O = self.running
            obs_RO = bridge.standardised(obs_RO, mean_O, var_O, self.config.renorm_eps)
        if self.compiled:
            return Rollout(
                *bridge.CompiledRollout.apply(
                    self.compiled, obs_RO, noise, *(parameters[name] for name in STEP_PARAMETERS)
                )
            )
        z_KRA, u_KRA, sigma_KRA = bridge.bridge_path(obs_RO, noise, parameters, self.layer_norm)
        before_KRA, end_1RA = z_KRA.split([len(u_KRA), 1])
        energy_R = control_energy(before_KRA, u_KRA, sigma_KRA)
        return Rollout(torch.tanh(end_1RA.squeeze(0)), energy_R, sigma_KRA.detach().mean())

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
        if self.bridge.running:  # taken over here: the actor stands still between its steps
            keep = critic_skipped > 0
            for mine_O, name in zip(self.bridge.running, ("mean", "var")):
                torch.where(keep, mine_O, self._seen(name), out=mine_O)
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
        weights = {f"bridge.{k}.{name}": named[name][k] for k in range(steps) for name in STEP_PARAMETERS}
        return weights | dict(zip(OBS_STATISTICS, self.bridge.running))
