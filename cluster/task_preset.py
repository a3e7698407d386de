"""What of an actor-critic follows from its task, in presets ``paper`` and ``paper-fleet``, and from the length of its run."""

from __future__ import annotations

import dataclasses
from collections.abc import Container
from typing import TYPE_CHECKING

from algorithms.config import GYM_SUPPORT, published
from replay.option import COUNT_LIMIT

if TYPE_CHECKING:
    from cluster.config import RunConfig


def for_task(config: RunConfig) -> RunConfig:
    """``config`` with what the paper sets for its environment; as it is where the paper has none, or of another preset."""
    task = published(config.env) if _by_task(config) else None
    if task is None:
        return config
    widths = {"bridge_width": task.bridge_width} if hasattr(config.agent, "bridge_width") else {}
    agent = dataclasses.replace(config.agent, v_min=-task.v_max, v_max=task.v_max, **widths)
    return scheduled(dataclasses.replace(config, agent=agent, steps=task.steps), ())


def scheduled(config: RunConfig, settings: Container[str]) -> RunConfig:
    """``config`` with an agent's schedule as long as the run, unless ``settings`` has its length."""
    updates = config.steps * config.replay.replay_ratio
    followed = hasattr(config.agent, "entropy_updates") and "agent.entropy_updates" not in settings
    if not followed or not 1 <= updates <= COUNT_LIMIT:  # a ratio out of its range is refused later
        return config
    return dataclasses.replace(config, agent=dataclasses.replace(config.agent, entropy_updates=round(updates)))


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
