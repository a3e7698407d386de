"""What SoftGAC's policy consists of: names and shapes. Letters: K bridge steps, O, A, I = O + A, H width."""

from __future__ import annotations

from algorithms.softgac.config import SoftGACConfig

STEP_PARAMETERS = (
    "norm_in.scale",  # (I,)
    "norm_in.bias",  # (I,)
    "hidden.weight",  # (I, H)
    "hidden.bias",  # (H,)
    "norm_out.scale",  # (H,)
    "norm_out.bias",  # (H,)
    "heads.weight",  # (H, 2A), drift then raw sigma
    "heads.bias",  # (2A,)
)
OBS_STATISTICS = (
    "obs.mean",
    "obs.var",
)  # (O,) of a policy with input_norm=running, by which it standardises observations


def step_shapes(obs_dim: int, action_dim: int, width: int) -> dict[str, tuple[int, ...]]:
    """Of one step's parameters, in STEP_PARAMETERS' order."""
    inputs, outputs = obs_dim + action_dim, 2 * action_dim
    shapes = (inputs,), (inputs,), (inputs, width), (width,), (width,), (width,), (width, outputs), (outputs,)
    return dict(zip(STEP_PARAMETERS, shapes))


def policy_shapes(config: SoftGACConfig, obs_dim: int, action_dim: int) -> dict[str, tuple[int, ...]]:
    """Of all that ``policy_weights`` gives, in its order: step k's as ``bridge.{k}.{name}``, k = 0 .. K-1."""
    step = step_shapes(obs_dim, action_dim, config.bridge_width)
    shapes = {f"bridge.{k}.{name}": shape for k in range(config.bridge_steps) for name, shape in step.items()}
    return shapes | (dict.fromkeys(OBS_STATISTICS, (obs_dim,)) if config.input_norm == "running" else {})
