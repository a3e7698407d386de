"""What an online run takes over from the offline run that it goes on from."""

from __future__ import annotations

import dataclasses

from cluster.config import RunConfig, override
from cluster.errors import UsageError
from cluster.run_dir import RunDirectory


def finetuned(base: RunDirectory, settings: dict[str, str], target: str | None = None) -> RunConfig:
    """The configuration of the run that goes on online from ``base``.

    An algorithm that learns from whole episodes makes stages of gathering and learning, an actor-critic goes on acting and
    learning with its dataset mixed in; both begin with the base run's newest weights and statistics.

    Args:
        base: the run to go on from.
        settings: dotted keys over the base run's own.
        target: "moving" or "fixed" target of exploring plans; None: as the agent has it.

    Raises:
        UsageError: the settings do not fit the algorithm.
    """
    config = base.config()
    online = dataclasses.replace(config.online, base=str(base.path))
    if not config.learns_from_episodes:
        _refuse(config, settings, target)
        return override(dataclasses.replace(config, online=online), settings)
    online = dataclasses.replace(online, stages=3)
    if target is not None:
        settings = {"agent.explore_target": target, **settings}
    config = override(dataclasses.replace(config, online=online), settings)
    if not config.online.stages:
        raise UsageError(
            "online.stages is 0, so nothing would be gathered and nothing was started; give --stages 1 or more"
        )
    steps = config.online.stages * config.online.updates_per_stage
    if "agent.updates" not in settings:  # the schedule of step sizes goes on over both runs
        agent = dataclasses.replace(config.agent, updates=config.agent.updates + steps)
        config = dataclasses.replace(config, agent=agent)
    return dataclasses.replace(config, steps=steps)


def _refuse(config: RunConfig, settings: dict[str, str], target: str | None) -> None:
    staged = [key for key in settings if key.startswith("online.")]
    if staged or target is not None:
        raise UsageError(
            f"{', '.join(staged) or '--target'} was given to a run of {config.algorithm}, which makes no stages and no plans; "
            "nothing was started; leave it out, and give --steps and --set data.offline_fraction instead"
        )
