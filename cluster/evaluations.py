"""Evaluations of a run on Ray: one evaluator beside the training, a bounded queue of policies before it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from cluster.actors import EvaluatorActor
from cluster.errors import RunError
from cluster.graph import Plan
from cluster.remote import SAME_FAILURE, cause, make_actor, root
from rollout_workers.evaluator import Evaluation

WAITING = 4  # policies that may wait for the evaluator; beyond, the oldest is given up and counted


class Evaluations:
    """Training never waits for any of this."""

    def __init__(self, plan: Plan, event: Callable[[str], None]) -> None:
        self.plan, self.event, self.config = plan, event, plan.config
        self._queue: deque[tuple[Any, int]] = deque()
        self._run: Any = None  # reference of the evaluation under way
        self._due = 0.0
        self._failures = 0
        self._done: list[Evaluation] = []
        self._start()

    @property
    def runs(self) -> list[Any]:
        """The reference that is ready when the evaluation under way has ended."""
        return [] if self._run is None else [self._run]

    @property
    def pending(self) -> bool:
        """Whether something is still to come in its time."""
        return bool(self._queue or self._run is not None) and time.monotonic() < self._due + 1

    @property
    def actors(self) -> list[Any]:
        return [self._evaluator]

    def request(self, weights: Any, episodes: int) -> None:
        """Queues an evaluation of the policy behind the reference ``weights``."""
        if len(self._queue) == WAITING:
            self._queue.popleft()
            self.event("an evaluation was given up: the evaluator is slower than evaluation.every_steps asks")
        self._queue.append((weights, episodes))
        self.go_on()

    def go_on(self) -> None:
        """Begins the next evaluation when the evaluator is free; gives up one that takes too long."""
        now = time.monotonic()
        if self._run is not None and now > self._due:
            self.event(f"an evaluation took longer than {self.config.evaluation.timeout_s:.0f} s and was given up")
            self._restart()
        if self._run is None and self._queue:
            weights, episodes = self._queue.popleft()
            self._run = self._evaluator.evaluate.remote(weights, episodes)
            self._due = now + self.config.evaluation.timeout_s + self.config.ray.start_timeout_s

    def look_at(self, ref: Any) -> None:
        """Takes the evaluation that is ready. The evaluator is replaced when it failed; SAME_FAILURE times in a row end the run."""
        try:
            self._done.append(ray.get(ref))
            self._run, self._failures = None, 0
        except (RayTaskError, RayActorError) as error:
            self._failures += 1
            if self._failures >= SAME_FAILURE:
                raise RunError(
                    f"the evaluator failed {self._failures} times in a row, so the run halts:\n{cause(error)}"
                ) from None
            self.event(f"an evaluation failed: {root(error)}")
            self._restart()

    def take(self) -> list[Evaluation]:
        """Evaluations finished since the last call."""
        taken, self._done = self._done, []
        return taken

    def _start(self) -> None:
        self._evaluator = make_actor(EvaluatorActor, num_cpus=0).remote(self.plan)

    def _restart(self) -> None:
        ray.kill(self._evaluator, no_restart=True)
        self._run = None
        self._start()
