"""The algorithms by name: what the other folders need to know of each. Importing this imports no torch."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from algorithms.gac import config as gac_config
from algorithms.imitation import config as imitation_config
from algorithms.offline import config as offline_config
from algorithms.rivals import config as rivals_config
from algorithms.sac import config as sac_config
from algorithms.softgac import config as softgac_config

if TYPE_CHECKING:
    from algorithms.interface import Agent, AgentSpec, EpisodeAgent, EpisodePolicy, Policy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Algorithm:
    """One algorithm.

    Attributes:
        name: as the command line and config.json have it.
        title: as people write it.
        config_class: its settings.
        presets: functions that return settings, by name; "cpu" and "paper" at least.
        agent, policy: "module:class" of the learner's side and of the acting side, imported when one is made.
        items: what a batch is made of.
        shortest: fewest steps of an episode of a dataset that it learns from.
        light: whether its policy acts without torch on a machine with a C compiler.
        online: how it learns online: "always", in "stages" of gathering and learning, or "never".
        plans: whether its policy searches for a latent plan, in the modes of ``evaluation.mode``.
        returns: what it does with an episode's return: "asked" acts for the one that it is asked for, "ranked" chooses episodes by it,
            "unread" learns from single rewards or from none.
    """

    name: str
    title: str
    config_class: type[Any]
    presets: dict[str, Callable[[], Any]]
    agent: str
    policy: str
    items: Literal["transitions", "episodes"] = "transitions"
    shortest: int = 1
    light: bool = False
    online: Literal["always", "stages", "never"] = "always"
    plans: bool = False
    returns: Literal["unread", "ranked", "asked"] = "unread"

    @property
    def unit(self) -> str:
        """What the length of its runs is counted in, by its name in a metrics record."""
        return "env_steps" if self.online == "always" else "updates"

    @property
    def takes_requests(self) -> bool:
        """Whether its policy takes a PlanRequest: how to act, and for which return."""
        return self.online != "always"

    def make_agent(self, config: Any, spec: AgentSpec) -> Agent | EpisodeAgent:
        """The learner's side."""
        agent: Agent | EpisodeAgent = _load(self.agent)(config, spec)
        return agent

    def make_policy(self, config: Any, obs_dim: int, action_dim: int) -> Policy | EpisodePolicy:
        """The acting side."""
        policy: Policy | EpisodePolicy = _load(self.policy)(config, obs_dim, action_dim)
        return policy


def online_names() -> str:
    """Those that always learn online, for messages: "a, b or c"."""
    *names, last = [name for name, algorithm in ALGORITHMS.items() if algorithm.online == "always"]
    return f"{', '.join(names)} or {last}"


def finetuned_names() -> str:
    """Those that can go on online from a run on a dataset, for messages: "a, b or c"; those that make stages come first."""
    staged = [name for name, algorithm in ALGORITHMS.items() if algorithm.online == "stages"]
    return f"{', '.join(staged)}, {online_names()}"


def _load(path: str) -> Any:
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)


ALGORITHMS: dict[str, Algorithm] = {
    algorithm.name: algorithm
    for algorithm in (
        Algorithm(
            name="softgac",
            title="SoftGAC",
            config_class=softgac_config.SoftGACConfig,
            presets={"cpu": softgac_config.cpu, "paper": softgac_config.paper},
            agent="algorithms.softgac.agent:SoftGAC",
            policy="algorithms.softgac.acting:SoftGACPolicy",
            light=True,
        ),
        Algorithm(
            name="sac",
            title="SAC",
            config_class=sac_config.SACConfig,
            presets={"cpu": sac_config.cpu, "paper": sac_config.paper},
            agent="algorithms.sac.agent:SAC",
            policy="algorithms.sac.agent:SACPolicy",
        ),
        Algorithm(
            name="crossq-sac",
            title="CrossQ-SAC",
            config_class=sac_config.CrossQConfig,
            presets={"cpu": sac_config.crossq_cpu, "paper": sac_config.CrossQConfig},
            agent="algorithms.sac.crossq:CrossQSAC",
            policy="algorithms.sac.crossq:CrossQPolicy",
        ),
        Algorithm(
            name="dime",
            title="DIME",
            config_class=rivals_config.DIMEConfig,
            presets={"cpu": rivals_config.dime_cpu, "paper": rivals_config.DIMEConfig},
            agent="algorithms.rivals.dime:DIME",
            policy="algorithms.rivals.dime:DIMEPolicy",
        ),
        Algorithm(
            name="flac",
            title="FLAC",
            config_class=rivals_config.FLACConfig,
            presets={"cpu": rivals_config.flac_cpu, "paper": rivals_config.FLACConfig},
            agent="algorithms.rivals.flac:FLAC",
            policy="algorithms.rivals.flac:FLACPolicy",
        ),
        Algorithm(
            name="flowrl",
            title="FlowRL",
            config_class=rivals_config.FlowRLConfig,
            presets={"cpu": rivals_config.flowrl_cpu, "paper": rivals_config.FlowRLConfig},
            agent="algorithms.rivals.flowrl:FlowRL",
            policy="algorithms.rivals.flowrl:FlowRLPolicy",
        ),
        Algorithm(
            name="qsm",
            title="QSM",
            config_class=rivals_config.QSMConfig,
            presets={"cpu": rivals_config.qsm_cpu, "paper": rivals_config.QSMConfig},
            agent="algorithms.rivals.qsm:QSM",
            policy="algorithms.rivals.qsm:QSMPolicy",
        ),
        Algorithm(
            name="qvpo",
            title="QVPO",
            config_class=rivals_config.QVPOConfig,
            presets={"cpu": rivals_config.qvpo_cpu, "paper": rivals_config.QVPOConfig},
            agent="algorithms.rivals.qvpo:QVPO",
            policy="algorithms.rivals.qvpo:QVPOPolicy",
        ),
        Algorithm(
            name="gac",
            title="GAC",
            config_class=gac_config.GACConfig,
            presets={
                "cpu": gac_config.cpu,
                "linear": gac_config.linear,
                "paper": gac_config.paper,
            },
            agent="algorithms.gac.agent:GAC",
            policy="algorithms.gac.policy:GACPolicy",
            items="episodes",
            shortest=2,  # a single step has no course for a plan to stand for
            online="stages",
            plans=True,
            returns="asked",
        ),
        Algorithm(
            name="bc",
            title="BC",
            config_class=imitation_config.CloningConfig,
            presets={"cpu": imitation_config.cloning_cpu, "paper": imitation_config.cloning_paper},
            agent="algorithms.imitation.cloning:BehaviourCloning",
            policy="algorithms.imitation.cloning:CloningPolicy",
            items="episodes",
            online="never",
        ),
        Algorithm(
            name="percent-bc",
            title="%BC",
            config_class=imitation_config.PercentCloningConfig,
            presets={"cpu": imitation_config.percent_cloning_cpu, "paper": imitation_config.percent_cloning_paper},
            agent="algorithms.imitation.cloning:PercentCloning",
            policy="algorithms.imitation.cloning:CloningPolicy",
            items="episodes",
            online="never",
            returns="ranked",
        ),
        Algorithm(
            name="rvs",
            title="RvS",
            config_class=imitation_config.ConditionedConfig,
            presets={"cpu": imitation_config.conditioned_cpu, "paper": imitation_config.conditioned_paper},
            agent="algorithms.imitation.rvs:ReturnConditioned",
            policy="algorithms.imitation.rvs:ReturnConditionedPolicy",
            items="episodes",
            online="never",
            returns="asked",
        ),
        Algorithm(
            name="dt",
            title="DT",
            config_class=imitation_config.TransformerConfig,
            presets={"cpu": imitation_config.transformer_cpu, "paper": imitation_config.transformer_paper},
            agent="algorithms.imitation.decision_transformer:DecisionTransformer",
            policy="algorithms.imitation.decision_transformer:DecisionTransformerPolicy",
            items="episodes",
            online="never",
            returns="asked",
        ),
        Algorithm(
            name="odt",
            title="ODT",
            config_class=imitation_config.OnlineTransformerConfig,
            presets={
                "cpu": imitation_config.online_transformer_cpu,
                "paper": imitation_config.online_transformer_paper,
            },
            agent="algorithms.imitation.online_transformer:OnlineDecisionTransformer",
            policy="algorithms.imitation.online_transformer:OnlineDecisionTransformerPolicy",
            items="episodes",
            online="stages",
            returns="asked",
        ),
        Algorithm(
            name="iql",
            title="IQL",
            config_class=offline_config.IQLConfig,
            presets={"cpu": offline_config.iql_cpu, "paper": offline_config.IQLConfig},
            agent="algorithms.offline.iql:IQL",
            policy="algorithms.offline.policy:ValuePolicy",
            items="episodes",
            online="stages",
        ),
        Algorithm(
            name="td3-bc",
            title="TD3+BC",
            config_class=offline_config.TD3BCConfig,
            presets={"cpu": offline_config.td3_bc_cpu, "paper": offline_config.TD3BCConfig},
            agent="algorithms.offline.td3_bc:TD3BC",
            policy="algorithms.offline.policy:ValuePolicy",
            items="episodes",
            online="stages",
        ),
        Algorithm(
            name="cql",
            title="CQL",
            config_class=offline_config.CQLConfig,
            presets={"cpu": offline_config.cql_cpu, "paper": offline_config.CQLConfig},
            agent="algorithms.offline.cql:CQL",
            policy="algorithms.offline.policy:ValuePolicy",
            items="episodes",
            online="stages",
        ),
        Algorithm(
            name="cal-ql",
            title="Cal-QL",
            config_class=offline_config.CalQLConfig,
            presets={"cpu": offline_config.cal_ql_cpu, "paper": offline_config.CalQLConfig},
            agent="algorithms.offline.cql:CQL",
            policy="algorithms.offline.policy:ValuePolicy",
            items="episodes",
            online="stages",
        ),
        Algorithm(
            name="rlpd",
            title="RLPD",
            config_class=offline_config.RLPDConfig,
            presets={"cpu": offline_config.rlpd_cpu, "paper": offline_config.RLPDConfig},
            agent="algorithms.offline.rlpd:RLPD",
            policy="algorithms.offline.policy:ValuePolicy",
            items="episodes",
            online="stages",
        ),
    )
}
