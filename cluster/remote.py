"""How the driver deals with actors: starting them, waiting for them, and saying why one failed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from cluster.errors import RunError

SAME_FAILURE = 3  # failures of one part without progress between them that end the run


def make_actor(kind: Any, **options: Any) -> Any:
    """A Ray actor class. Scheduled outside any placement group: inside a Tune trial's it would never start."""
    return ray.remote(kind).options(scheduling_strategy="DEFAULT", **options)


def started(refs: list[Any], what: str, limit_s: float, check: Callable[[], None]) -> list[Any]:
    """The answers of actors that are starting; RunError says what was waited for in vain, or what failed.

    Args:
        check: called several times a second; what it raises ends the wait.
    """
    deadline = time.monotonic() + limit_s
    ready: list[Any] = []
    try:
        while len(ready) < len(refs):
            check()
            if time.monotonic() > deadline:
                raise RunError(no_place(limit_s, what))
            ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0.25)
            ray.get(ready)  # one that failed is not waited for with the others
        return list(ray.get(refs))
    except (RayTaskError, RayActorError) as error:
        raise RunError(f"failed while waiting for {what}:\n{cause(error)}") from None


def no_place(limit_s: float, what: str) -> str:
    """Why nothing has started, as far as the cluster's resources tell."""
    return (
        f"waited {limit_s:.0f} s for {what}, in vain; the cluster has {ray.available_resources()} free of "
        f"{ray.cluster_resources()}; give it more CPUs, ask for fewer (worker.cpus, learner.cpus), or raise ray.start_timeout_s"
    )


def cause(error: BaseException) -> str:
    """The traceback of what really failed, root cause last: the text of a RayTaskError is the remote one."""
    return str(error).strip() or type(error).__name__


def root(error: BaseException | str) -> str:
    """The last line of a cause: the root of it."""
    return (error if isinstance(error, str) else cause(error)).strip().splitlines()[-1]
