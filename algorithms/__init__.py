"""The maths, and the registry of algorithms by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

from algorithms.gac import config as gac_config
from algorithms.gac.agent import GAC
from algorithms.gac.policy import GACPolicy
from algorithms.imitation import config as imitation_config
from algorithms.imitation.cloning import BehaviourCloning, CloningPolicy, PercentCloning
from algorithms.imitation.decision_transformer import DecisionTransformer, DecisionTransformerPolicy
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
    presets: dict[str, Callable[[], Any]]  # by name, "cpu" and "paper" at least: functions returning a config
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
    "gac": Algorithm(
        name="gac",
        config_class=gac_config.GACConfig,
        presets={"cpu": gac_config.cpu, "timed": gac_config.timed, "paper": gac_config.paper},
        make_agent=GAC,
        make_policy=GACPolicy,
        items="episodes",
    ),
    "bc": Algorithm(
        name="bc",
        config_class=imitation_config.CloningConfig,
        presets={"cpu": imitation_config.cloning_cpu, "paper": imitation_config.cloning_paper},
        make_agent=BehaviourCloning,
        make_policy=CloningPolicy,
        items="episodes",
    ),
    "percent-bc": Algorithm(
        name="percent-bc",
        config_class=imitation_config.PercentCloningConfig,
        presets={"cpu": imitation_config.percent_cloning_cpu, "paper": imitation_config.percent_cloning_paper},
        make_agent=PercentCloning,
        make_policy=CloningPolicy,
        items="episodes",
    ),
    "dt": Algorithm(
        name="dt",
        config_class=imitation_config.TransformerConfig,
        presets={"cpu": imitation_config.transformer_cpu, "paper": imitation_config.transformer_paper},
        make_agent=DecisionTransformer,
        make_policy=DecisionTransformerPolicy,
        items="episodes",
    ),
}
