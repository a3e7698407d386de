"""How the driver deals with actors: starting them, waiting for them, and saying why one failed."""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from cluster.errors import RunError

SAME_FAILURE = 3  # failures of one part without progress between them that end the run


def make_actor(kind: Any, **options: Any) -> Any:
    """A Ray actor class. Scheduled outside any placement group: inside a Tune trial's it would never start."""
    return ray.remote(kind).options(scheduling_strategy="DEFAULT", **options)


def started(refs: Any, what: str, limit_s: float) -> Any:
    """The answers of actors that are starting; RunError says what was waited for in vain, or what failed."""
    try:
        return ray.get(refs, timeout=limit_s)
    except GetTimeoutError:
        raise RunError(no_place(limit_s, what)) from None
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
