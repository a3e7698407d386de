"""What this machine must have for a run's learners and its metrics endpoint; proved before anything is started or written."""

from __future__ import annotations

import os

from cluster.config import RunConfig
from cluster.errors import UsageError


def on_this_machine(config: RunConfig) -> bool:
    """Whether every part of the run is on this machine: a running cluster has machines that are not known here."""
    address = config.ray.address or os.environ.get("RAY_ADDRESS", "")
    return config.backend == "inline" or address in ("", "local")


def device_problems(config: RunConfig) -> list[str]:
    """Learners that have no device, share one that only one can use, or update in blocks that no CUDA graph holds."""
    learner = config.learner
    here, found = on_this_machine(config), []
    wanted = learner.gpus if config.backend == "ray" else 0.0
    every = max(1, getattr(config.agent, "actor_every", 1))
    broken = learner.updates_per_call % every
    matters = learner.device == "cuda" or wanted > 0 or (learner.device == "auto" and (learner.learners > 1 or broken))
    devices = cuda_devices() if here and matters else None  # looking imports torch
    if devices == 0 and learner.device == "cuda":
        found.append(
            "learner.device is cuda and this machine has no CUDA device that torch can use, expected cpu or auto: no learner could "
            "start; set learner.device=cpu, or start the run where there is a GPU"
        )
    if devices is not None and wanted * learner.learners > devices:
        found.append(
            f"learner.gpus is {wanted:g} for {learner.learners} learners and this machine has {devices} CUDA devices: Ray would never "
            f"place them; set learner.gpus={devices and devices / learner.learners:g}, or give the --address of a cluster with GPUs"
        )
    if wanted > 1 and wanted != int(wanted):
        found.append(
            f"learner.gpus is {wanted:g}, expected a whole number above 1: Ray divides no more than one GPU; round it"
        )
    on_cuda = learner.device == "cuda" or (learner.device == "auto" and bool(devices if here else wanted))
    if on_cuda and learner.learners > 1 and config.backend == "ray" and wanted < 1:
        found.append(
            f"learner.gpus is {wanted:g} for {learner.learners} learners on CUDA, expected at least 1: two of them would be given one GPU, "
            "where NCCL lets none meet another; set learner.gpus=1, learner.learners=1, or learner.device=cpu"
        )
    if on_cuda and learner.cuda_graph and broken:
        found.append(
            f"learner.updates_per_call is {learner.updates_per_call} with agent.actor_every {every}, expected a multiple: a CUDA graph makes "
            f"whole cycles of {every} updates alone; set learner.updates_per_call={-(-learner.updates_per_call // every) * every}, or "
            "learner.cuda_graph=false"
        )
    return found


def cuda_devices() -> int:
    """CUDA devices of this machine that torch can use."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def endpoint_problems(config: RunConfig) -> list[str]:
    """An address on which the metrics endpoint cannot listen."""
    if config.metrics.problems() or config.metrics.port < 0:
        return []
    from cluster.metrics.exporter import check_can_listen

    try:
        check_can_listen(config.metrics.host, config.metrics.port)
    except UsageError as error:
        return [str(error)]
    return []
