"""Presets ``paper`` and ``paper-fleet`` of the actor-critics by task: the paper has another support, width and length for some of them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from algorithms.config import GYM_SUPPORT, published

if TYPE_CHECKING:
    from cluster.config import RunConfig


def for_task(config: RunConfig) -> RunConfig:
    """``config`` with what the paper sets for its environment; as it is where the paper has none, or of another preset."""
    task = published(config.env) if _by_task(config) else None
    if task is None:
        return config
    widths = {"bridge_width": task.bridge_width} if hasattr(config.agent, "bridge_width") else {}
    agent = dataclasses.replace(config.agent, v_min=-task.v_max, v_max=task.v_max, **widths)
    return dataclasses.replace(config, agent=agent, steps=task.steps)


def unpublished(config: RunConfig) -> str:
    """That the preset could not be resolved for the run's task, which the paper does not have; "" where it could."""
    if not _by_task(config) or published(config.env) is not None:
        return ""
    if (config.agent.v_min, config.agent.v_max) != (-GYM_SUPPORT, GYM_SUPPORT):
        return ""
    return (
        f"preset {config.preset}: the paper has no task {config.env}, so its support for Gym MuJoCo, [-1600, 1600], stands; a task whose discounted "
        "returns are smaller learns better with --set agent.v_min and agent.v_max of its own, or with none for both: fitted to the rewards"
    )


def _by_task(config: RunConfig) -> bool:
    return config.preset in ("paper", "paper-fleet") and hasattr(config.agent, "v_max")
