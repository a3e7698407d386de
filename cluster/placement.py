"""Where parts run: room for learners and shards is reserved for the whole run, so that nobody takes it while one of them is down.

Learners are packed together, for their reductions, and the store of weights is with the first; shards are spread, so that the loss
of a node takes few of them. Workers are outside of the reservation and take what is free. On a cluster that is given, memory is
reserved too.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.bounded import in_thread
from cluster.checks import LIGHT_BYTES, PROCESS_BYTES
from cluster.data_kind import kind_of
from cluster.errors import RunError
from cluster.graph import RunSpec
from cluster.remote import no_place
from cluster.setting_text import parse_labels

SLICE_S = 0.1
REMOVE_S = 1.0  # for the head to free what was reserved
LEAST_CPUS = 0.001  # of a part that reserves nothing: Ray refuses an empty bundle


class Reservation:
    """A place for every learner and every shard of a run.

    Args:
        own: whether the cluster is the run's own; what its machine holds was checked before.
    """

    def __init__(self, spec: RunSpec, own: bool) -> None:
        config = spec.config
        shard_bytes = 0 if own else LIGHT_BYTES + kind_of(config).replay_bytes(spec) // config.replay.shards
        learner = {"CPU": config.learner.cpus, "GPU": config.learner.gpus, "memory": 0 if own else PROCESS_BYTES}
        shard = {"CPU": config.ray.shard_cpus, "memory": shard_bytes}
        self._groups = {
            "learner": _group(learner, config.learner.learners, "PACK", config.ray.learner_labels),
            "shard": _group(shard, config.replay.shards, "SPREAD", config.ray.shard_labels),
        }

    def wait(self, limit_s: float, check: Callable[[], None]) -> None:
        """Until the room is reserved; RunError when there is none within ``limit_s``, or what ``check`` finds meanwhile."""
        by = time.monotonic() + limit_s
        for part, group in self._groups.items():
            ready = in_thread(lambda group=group: group.wait(max(SLICE_S, by - time.monotonic())))  # type: ignore[misc]
            while not ready.done():
                check()
                time.sleep(SLICE_S / 10)
            if not ready.result():
                raise RunError(no_place(limit_s, f"room for {len(group.bundle_specs)} {part}s to be reserved"))

    def place(self, part: str, index: int) -> Any:
        """Where learner or shard ``index`` runs: an actor's scheduling_strategy."""
        return PlacementGroupSchedulingStrategy(self._groups[part], index, placement_group_capture_child_tasks=False)

    def release(self) -> None:
        """Gives the room back; the actors in it end."""
        for group in self._groups.values():
            with contextlib.suppress(Exception):  # the head is gone: so is what was reserved
                in_thread(lambda group=group: remove_placement_group(group)).result(REMOVE_S)  # type: ignore[misc]


def _group(bundle: dict[str, float], count: int, strategy: str, labels: str) -> Any:
    needed = {name: amount for name, amount in bundle.items() if amount} or {"CPU": LEAST_CPUS}
    selector = [parse_labels(labels)] * count if labels else None
    return placement_group([needed] * count, strategy=strategy, bundle_label_selector=selector)
