"""Evaluations of a run on Ray: one evaluator beside the training, a bounded queue of policies before it.

It reserves nothing, and runs on nodes that workers may run on (ray.worker_labels). Without evaluation.every_steps it is started for
the first evaluation that is asked for, the last of the run.

An evaluator that hangs is killed once its evaluation has taken evaluation.timeout_s (its own deadline) and ray.call_timeout_s
more, or ray.start_timeout_s more while its process starts. Nothing here blocks.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayTaskError

from cluster.actors import EXPENDABLE, EvaluatorActor
from cluster.errors import SAME_FAILURE, RunError
from cluster.graph import RunSpec
from cluster.metrics.aggregator import MetricsAggregator
from cluster.metrics.catalogue import RestartReason
from cluster.nodes import Nodes, Restarts
from cluster.remote import DIED, cause, make_actor, root
from cluster.setting_text import parse_labels
from rollout_workers.evaluator import BrokenEpisodes, Evaluation

WAITING = 4  # policies that may wait for the evaluator; beyond, the oldest is given up and counted


class Evaluations:
    """Training never waits for any of this."""

    def __init__(
        self, spec: RunSpec, aggregator: MetricsAggregator, event: Callable[[str], None], nodes: Nodes
    ) -> None:
        self.spec, self.aggregator, self.event, self.config = spec, aggregator, event, spec.config
        self._queue: deque[tuple[Any, int, float]] = deque()  # what the store is asked for, episodes, since when
        self._run: Any = None  # reference of the evaluation under way
        self._due = 0.0
        self._failures = 0
        limit_s = self.config.ray.start_timeout_s
        self._restarts = Restarts(nodes, lambda reason: aggregator.count_restart("evaluator", reason, ""), limit_s)
        labels = parse_labels(self.config.ray.worker_labels)
        self._options: dict[str, Any] = EXPENDABLE | {"num_cpus": 0} | ({"label_selector": labels} if labels else {})
        self.node = ""  # where the evaluator is, once that is known
        self._done: list[Evaluation] = []
        self._evaluator: Any = None
        if self.config.evaluation.every_steps:
            self._start()

    @property
    def runs(self) -> list[Any]:
        """The reference that is ready when the evaluation under way has ended."""
        return [] if self._run is None else [self._run]

    @property
    def pending(self) -> bool:
        """Whether something is still to come in its time."""
        return bool(self._queue) or (self._run is not None and time.monotonic() < self._due + 1)

    @property
    def actors(self) -> list[Any]:
        return [] if self._evaluator is None else [self._evaluator]

    def request(self, fetched: Any, episodes: int) -> None:
        """Queues an evaluation of the newest policy.

        Args:
            fetched: reference of the store's answer: a list with the policy's reference, empty before the first.
            episodes: how many to run.
        """
        if len(self._queue) == WAITING:
            self._queue.popleft()
            self.event("an evaluation was given up: the evaluator is slower than evaluation.every_steps asks")
        self._queue.append((fetched, episodes, time.monotonic()))
        self.go_on()

    def go_on(self) -> None:
        """Begins the next evaluation when the evaluator is free; gives up one that takes too long."""
        now, settings = time.monotonic(), self.config.evaluation
        self._restarts.count()
        if self._evaluator is not None:
            self._is_up()
        if self._run is not None and now > self._due:
            self.event(
                f"an evaluation took longer than {settings.timeout_s:.0f} s (evaluation.timeout_s) and was given up; the evaluator "
                "is replaced"
            )
            self._restart("hung")
        while self._run is None and self._queue:
            fetched, episodes, since = self._queue[0]
            try:
                refs = ray.get(fetched, timeout=0)
            except GetTimeoutError as error:
                if now - since < self.config.ray.call_timeout_s:
                    return
                refs = self._left_out(error)
            except DIED as error:
                refs = self._left_out(error)
            self._queue.popleft()
            if refs:
                if self._evaluator is None:
                    self._start()
                self._run = self._evaluator.evaluate.remote(refs[0], episodes)
                self._due = now + settings.timeout_s + self.config.ray.call_timeout_s
                self._due += 0.0 if self._is_up() else self.config.ray.start_timeout_s

    def look_at(self, ref: Any) -> None:
        """Takes the evaluation that is ready. The evaluator is replaced when it failed; SAME_FAILURE times in a row end the run."""
        try:
            evaluation, used = ray.get(ref)
            self.aggregator.add_usage("evaluator", 0, used)
            self._done.append(evaluation)
            self._run, self._failures = None, 0
        except BrokenEpisodes as error:  # no fault of the evaluator; training leaves out what is not finite, too
            self.event(f"an evaluation has no result: {root(error)}")
            self._run, self._failures = None, 0
        except (RayTaskError, *DIED) as error:
            self._failures += 1
            if self._failures >= SAME_FAILURE:
                raise RunError(
                    f"the evaluator failed {self._failures} times in a row, so the run halts:\n{cause(error)}"
                ) from None
            self.event(f"an evaluation failed: {root(error)}")
            self._restart("raised" if isinstance(error, RayTaskError) else "died")

    def take(self) -> list[Evaluation]:
        """Evaluations finished since the last call."""
        taken, self._done = self._done, []
        return taken

    def _is_up(self) -> bool:
        """Whether the evaluator's process has started, or has failed to; where it is, is known from then on."""
        up = bool(ray.wait([self._up], timeout=0)[0])
        if up and not self.node:
            with contextlib.suppress(*DIED, RayTaskError):
                self.node = ray.get(self._up)
        return up

    def _left_out(self, error: Exception) -> list[Any]:
        self.event(f"an evaluation was left out, the store of weights did not answer: {root(error)}")
        return []

    def _start(self) -> None:
        self._evaluator = make_actor(EvaluatorActor, **self._options).remote(self.spec)
        self._up, self.node = self._evaluator.place.remote(), ""

    def _restart(self, reason: RestartReason) -> None:
        self._restarts.note(reason, self.node)
        ray.kill(self._evaluator, no_restart=True)
        self._run = None
        self._start()
