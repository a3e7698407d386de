"""How the driver deals with actors: starting them, waiting for them, asking whether they answer, saying why one failed.

A ``Pulse`` has one question at a time and knows for how long it has gone unanswered; the driver never blocks on one.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import (
    ActorUnavailableError,
    ActorUnschedulableError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    RuntimeEnvSetupError,
)

from cluster.bounded import in_thread
from cluster.errors import RunError

ANSWER_WAIT_S = 0.3  # longest wait for answers, which normally come in milliseconds
RESOURCES_S = 0.5  # for the head to say what is free, and what there is
HOUR_S = 3_600.0  # in which a budget's restarts are counted
PAUSE_S = 5.0  # a part that answers later than this has kept others waiting
CALM_S = 300.0  # after which an earlier restart delays the next one no more
REFUSED = "the process before this one ended and only the driver replaces it"  # of an actor that Ray would restart
FIRST_DELAY_S, LONGEST_DELAY_S = 0.5, 30.0
# What a call raises whose actor ended without an answer, by how it ended; or which was given an object that ended with its owner.
DIED = (RayActorError, OutOfMemoryError, ActorUnschedulableError, RuntimeEnvSetupError, ObjectLostError)


def make_actor(kind: Any, **options: Any) -> Any:
    """A Ray actor class. Outside any placement group unless ``options`` name one: inside a Tune trial's it would never start.

    Its calls leave no events at the head, which would keep 100,000 of them: a run makes that many in minutes.
    """
    return _remote_class(kind).options(**{"scheduling_strategy": "DEFAULT", "enable_task_events": False} | options)


@functools.cache
def _remote_class(kind: Any) -> Any:
    """Ray sends a class to the head with its first actor and waits for the answer: with a new one each time, the driver would block
    when it replaces a part while the head hangs."""
    return ray.remote(kind)


def started(
    refs: list[Any], what: str, limit_s: float, check: Callable[[], None], event: Callable[[str], None]
) -> list[Any]:
    """The answers of actors that are starting; RunError says what was waited for in vain, or what failed.

    Args:
        check: called several times a second; what it raises ends the wait.
        event: called in words whenever more of them are up.
    """
    deadline = time.monotonic() + limit_s
    ready: list[Any] = []
    try:
        while len(ready) < len(refs):
            check()
            if time.monotonic() > deadline:
                raise RunError(no_place(limit_s, what))
            before = len(ready)
            ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0.25)
            if len(ready) > before:
                event(f"{len(ready)} of {len(refs)} {what} up")
            ray.get(ready)  # one that failed is not waited for with the others
        return list(ray.get(refs))
    except (RayTaskError, *DIED) as error:
        raise RunError(f"failed while waiting for {what}:\n{cause(error)}") from None


def no_place(limit_s: float, what: str) -> str:
    """Why nothing has started, as far as the cluster's resources tell."""
    try:
        free, total = (in_thread(ask).result(RESOURCES_S) for ask in (ray.available_resources, ray.cluster_resources))
        words = _free_in_words(dict(free), dict(total))
    except TimeoutError:
        words = "a head that does not say what is free"
    return (
        f"waited {limit_s:.0f} s for {what}, in vain; the cluster has {words}; give it more CPUs, ask for fewer "
        "(worker.cpus, learner.cpus), or raise ray.start_timeout_s"
    )


def _free_in_words(free: dict[str, float], total: dict[str, float]) -> str:
    """What a person can give or take away: no nodes, no parts of placement groups; bytes in GiB."""
    units = {"memory": (2**30, " GiB"), "object_store_memory": (2**30, " GiB")}
    found = []
    for name in sorted(name for name in total if "_group_" not in name and not name.startswith("node:")):
        scale, unit = units.get(name, (1, ""))
        found.append(f"{free.get(name, 0.0) / scale:,.4g} of {total[name] / scale:,.4g}{unit} {name} free")
    return ", ".join(found) or "no resources"


def cause(error: BaseException) -> str:
    """The traceback of what really failed, root cause last: the text of a RayTaskError is the remote one."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0] if isinstance(error, OutOfMemoryError) else text  # pages of advice follow


def without_a_word(error: BaseException) -> bool:
    """Whether an actor's process is gone and nobody knows why: Ray says so in three ways, and guesses, or refuses its next one."""
    return isinstance(error, ActorUnavailableError) or any(
        words in str(error) for words in (REFUSED, "unexpectedly exits")
    )


def ended(error: BaseException) -> str:
    """How an actor's process ended, as far as anybody knows; ``error`` is one of DIED."""
    if not without_a_word(error):
        return cause(error)
    return (
        "its process ended without a word: it was killed, by a signal or because its node ran out of memory, or native code crashed (Ray's "
        "log of the node says which)"
    )


def root(error: BaseException | str) -> str:
    """The last line of a cause: the root of it."""
    return (error if isinstance(error, str) else cause(error)).strip().splitlines()[-1]


class Budget:
    """Restarts of one kind of part: so many within any hour, those of one part ever later after each other.

    Args:
        an_hour: how many.
        clock: seconds.
    """

    def __init__(self, an_hour: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.an_hour, self._clock = an_hour, clock
        self._spent: list[tuple[float, int]] = []  # when, and by which part

    @property
    def left(self) -> int:
        self._spent = [(at, part) for at, part in self._spent if self._clock() - at < HOUR_S]
        return self.an_hour - len(self._spent)

    def spend(self, part: int = 0) -> bool:
        """Takes one restart of ``part``, where one is left; whether there was."""
        if self.left <= 0:
            return False
        self._spent.append((self._clock(), part))
        return True

    def delay_s(self, part: int = 0) -> float:
        """How long the next restart of ``part`` waits: the first one not at all, each later one twice as long as the one before."""
        recent = sum(who == part and self._clock() - at < CALM_S for at, who in self._spent)
        return min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** (recent - 1)) if recent else 0.0


class Pulse:
    """Asks one actor the same question again and again.

    Args:
        ask: makes the remote call and returns its reference.
    """

    def __init__(self, ask: Callable[[], Any]) -> None:
        self._ask = ask
        self._ref: Any = None
        self._since = 0.0
        self.asked_at = 0.0  # when the question of the answer that was taken last was asked, monotonic clock
        self.took_s = 0.0  # how long that answer had been waited for

    @property
    def silent_s(self) -> float:
        """For how long the question under way has had no answer; 0 when there is none."""
        return 0.0 if self._ref is None else time.monotonic() - self._since

    @property
    def refs(self) -> list[Any]:
        """The reference of the question under way, if there is one."""
        return [] if self._ref is None else [self._ref]

    def ask(self) -> None:
        """Asks, unless a question is under way."""
        if self._ref is None:
            self._ref, self._since = self._ask(), time.monotonic()

    def answer(self) -> Any | None:
        """The answer, once; None while there is none. Raises what the call raised: one of DIED, RayTaskError."""
        if self._ref is None or not ray.wait([self._ref], timeout=0)[0]:
            return None
        self.asked_at, self.took_s = self._since, self.silent_s
        ref, self._ref = self._ref, None
        return ray.get(ref)


def ask_all(pulses: Sequence[Pulse], seconds: float = ANSWER_WAIT_S) -> None:
    """Asks every actor and waits until all have answered, or for ``seconds``."""
    for pulse in pulses:
        pulse.ask()
    refs = [ref for pulse in pulses for ref in pulse.refs]
    if refs:
        ray.wait(refs, num_returns=len(refs), timeout=seconds)
