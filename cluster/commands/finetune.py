"""What an online run takes over from the offline run that it goes on from."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from algorithms import ALGORITHMS, finetuned_names
from algorithms.interface import AgentSpec
from cluster.config import RunConfig, override
from cluster.data_kind import evaluated_often
from cluster.errors import RunError, UsageError
from cluster.graph import RunSpec, base_state
from cluster.run_dir import RunDirectory
from cluster.saving import missing_checkpoint

STAGES_ARE_LEARNED_BY = {  # by default
    "data.offline_fraction": "0.125",
    "agent.return_memory": "0.98",
    "agent.kl_weight": "1",  # the bound itself: a plan has more to say of episodes that were gathered by plans
}


def finetuned(
    base: RunDirectory, settings: dict[str, str], target: str | None = None, problems: list[str] | None = None
) -> RunConfig:
    """The configuration of the run that goes on online from ``base``.

    An algorithm that learns from whole episodes makes stages of gathering and learning, an actor-critic goes on acting and
    learning with its dataset mixed in; both begin with the base run's newest weights and statistics.

    Args:
        base: the run to go on from.
        settings: dotted keys over the base run's own.
        target: "moving" or "fixed" target of exploring plans; None: as the agent has it.
        problems: takes what is wrong with single settings; None: they are one UsageError.

    Raises:
        UsageError: the settings do not fit the algorithm, or it has no way to go on online.
    """
    config = base.config()
    online = dataclasses.replace(config.online, base=str(base.path))
    way = ALGORITHMS[config.algorithm].online
    if way == "always":
        _refuse(config, settings, target)
        # its policy acts from the first step on: there is nothing that random actions would be better for
        config = dataclasses.replace(config, worker=dataclasses.replace(config.worker, random_steps=0))
        return override(dataclasses.replace(config, online=online), settings, problems)
    if way == "never":
        raise UsageError(
            f"{base.path} is a run of {config.algorithm}, which imitates its dataset and has no plan to explore by, expected one of "
            f"{finetuned_names()}; nothing was started; train gac on the same dataset and fine-tune that"
        )
    if "steps" in settings:
        raise UsageError(
            f"--steps {settings['steps']} was given to fine-tune a run of {config.algorithm}, whose length is that of its stages; nothing "
            "was started; give --stages and --updates-per-stage instead"
        )
    online = dataclasses.replace(online, stages=3)
    plans = ALGORITHMS[config.algorithm].plans
    if target is not None and not plans:
        raise UsageError(
            f"--target {target} was given to a run of {config.algorithm}, whose exploration asks for no return; nothing was started; "
            "leave it out (--stages, --episodes-per-stage and --updates-per-stage are what its stages have)"
        )
    asked = {} if target is None else {"agent.explore_target": target}
    learned = STAGES_ARE_LEARNED_BY if plans else {}
    config = override(dataclasses.replace(config, online=online), {**learned, **asked, **settings}, problems)
    if plans and "agent.cycle" not in settings:
        agent = dataclasses.replace(config.agent, cycle=config.online.updates_per_stage)
        config = dataclasses.replace(config, agent=agent)
    if not config.online.stages:
        raise UsageError(
            "online.stages is 0, so nothing would be gathered and nothing was started; give --stages 1 or more"
        )
    config = dataclasses.replace(config, steps=config.online.stages * config.online.updates_per_stage)
    return evaluated_often(config, settings)


def check_base(spec: RunSpec) -> None:
    """UsageError unless the newest checkpoint of the base run fits the agent that would go on from it."""
    config, base = spec.config, Path(spec.config.online.base)
    given = AgentSpec(obs_dim=spec.obs_dim, action_dim=spec.action_dim, seed=config.seed)
    agent = ALGORITHMS[config.algorithm].make_agent(config.agent, given)
    if lost := missing_checkpoint(RunDirectory(base)):
        raise UsageError(f"{lost}: there is nothing to go on from, so nothing was started; put them back")
    try:
        state = base_state(base, spec)
    except RunError as error:
        raise UsageError(str(error)) from error
    own = {name: tuple(tensor.shape) for name, tensor in agent.state().items() if name != "generator"}
    theirs = {name: tuple(tensor.shape) for name, tensor in state.items() if name != "generator"}  # a GPU's is another
    differing = sorted(name for name in own.keys() | theirs.keys() if own.get(name) != theirs.get(name))
    if differing:
        name = differing[0]
        raise UsageError(
            f"the networks of {base} are not those asked for: {len(differing)} of {len(own)} tensors differ, such as {name} with the shape "
            f"{theirs.get(name, 'absent')}, expected {own.get(name, 'absent')}; its weights cannot be gone on from and nothing was "
            "started; leave out the --set agent.* that change sizes"
        )


def _refuse(config: RunConfig, settings: dict[str, str], target: str | None) -> None:
    staged = [key for key in settings if key.startswith("online.")]
    if staged or target is not None:
        raise UsageError(
            f"{', '.join(staged) or '--target'} was given to a run of {config.algorithm}, which makes no stages and no plans; "
            "nothing was started; leave it out, and give --steps and --set data.offline_fraction instead"
        )
