"""The maths, and the registry of algorithms by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

from algorithms.interface import Agent, EpisodeAgent, EpisodePolicy, Policy
from algorithms.sac import config as sac_config
from algorithms.sac.agent import SAC, SACPolicy
from algorithms.softgac import config as softgac_config
from algorithms.softgac.agent import SoftGAC, SoftGACPolicy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Algorithm:
    """What the other folders need to know of an algorithm."""

    name: str
    config_class: type[Any]
    presets: dict[str, Callable[[], Any]]  # "cpu", "paper": functions returning a config
    make_agent: Callable[..., Agent | EpisodeAgent]  # (config, obs_dim, action_dim, *, device, seed, collective)
    make_policy: Callable[[Any, int, int], Policy | EpisodePolicy]  # (config, obs_dim, action_dim)
    items: Literal["transitions", "episodes"] = "transitions"  # what a batch is made of


ALGORITHMS: dict[str, Algorithm] = {
    "softgac": Algorithm(
        name="softgac",
        config_class=softgac_config.SoftGACConfig,
        presets={"cpu": softgac_config.cpu, "paper": softgac_config.paper},
        make_agent=SoftGAC,
        make_policy=SoftGACPolicy,
    ),
    "sac": Algorithm(
        name="sac",
        config_class=sac_config.SACConfig,
        presets={"cpu": sac_config.cpu, "paper": sac_config.paper},
        make_agent=SAC,
        make_policy=SACPolicy,
    ),
}
