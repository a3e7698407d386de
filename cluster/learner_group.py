"""The learners of a run on Ray: all ranks start together, and are replaced together from the newest checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from cluster.errors import RunError
from cluster.graph import EPOCHS_A_START, Plan
from cluster.learner_actor import LearnerActor
from cluster.metrics.tally import Tally
from cluster.remote import SAME_FAILURE, cause, make_actor, root, started


class LearnerGroup:
    """L learner actors that share one update.

    ``astray`` is True from each start on, until the fleet has told the shards what these learners really had of them.
    """

    def __init__(self, plan: Plan, tally: Tally, event: Callable[[str], None], shards: list[Any], store: Any) -> None:
        self.plan, self.tally, self.event, self.config = plan, tally, event, plan.config
        self.actors: list[Any] = []
        self.runs: list[Any] = []  # references that are ready when a learner has returned or failed
        self.astray = False
        self._shards, self._store = shards, store
        self._starts = 0
        self._stopping = False
        self._rollbacks = 0  # of the learners that run now, as told
        self._failures: list[str] = []  # since the last progress
        self._progress = -1

    @property
    def finished(self) -> bool:
        """Whether every learner has made the updates that belong to the run."""
        return bool(self.actors) and not self.runs

    def start(self) -> None:
        """All ranks, from the newest checkpoint, in an epoch above all before."""
        config, limit_s = self.config.learner, self.config.ray.start_timeout_s
        self._starts += 1
        self._rollbacks = 0
        epoch = self.plan.start * EPOCHS_A_START + self._starts - 1
        make = make_actor(LearnerActor, num_cpus=config.cpus, num_gpus=config.gpus, max_concurrency=4)
        self.actors = [
            make.remote(self.plan, rank, epoch, self._shards, self._store) for rank in range(config.learners)
        ]
        meeting = started(self.actors[0].meeting.remote(), "the first learner to start", limit_s)
        begun = started([actor.begin.remote(meeting) for actor in self.actors], "learners to start", limit_s)
        for warning in begun[0].warnings:
            self.event(f"checkpoint passed over: {warning}")
        self.tally.begin_learning(begun[0].updates, begun[0].epoch, begun[0].version)
        self.astray = True

    def run(self) -> None:
        """Lets the learners begin to learn."""
        self.runs = [actor.run.remote() for actor in self.actors]

    def look_at(self, ref: Any) -> bool:
        """Takes a reference of ``runs`` that is ready; returns whether all learners were replaced and must be run again."""
        try:
            ray.get(ref)
        except (RayTaskError, RayActorError) as error:
            if not self._stopping:
                self._replace(cause(error))
                return True
            self.event(f"a learner did not end in order, its newest checkpoint stays: {root(error)}")
        self.runs.remove(ref)
        return False

    def report(self, limit_s: float | None = None) -> None:
        """Brings the first learner's reports to the tally; of a dead one its run() tells."""
        timeout_s = self.config.ray.call_timeout_s if limit_s is None else limit_s
        for actor in self.actors[:1]:
            try:
                reports = ray.get(actor.reports.remote(), timeout=timeout_s)
            except (RayActorError, GetTimeoutError):
                return
            for report in reports:
                self.tally.add_learner(report)
                if report.rollbacks > self._rollbacks:
                    self.event(
                        f"the learner rolled back to a checkpoint at update {report.updates:,}: updates were not finite"
                    )
                self._rollbacks = report.rollbacks

    def save(self, limit_s: float) -> str:
        """Writes a checkpoint now; returns why that was not possible within ``limit_s``, "" when it was."""
        if not self.actors:
            return "the learner had not started"
        try:
            ray.get(self.actors[0].save.remote(), timeout=limit_s)
        except GetTimeoutError:
            return f"not written within {limit_s:.0f} s"
        except (RayTaskError, RayActorError) as error:
            return root(error)
        return ""

    def stop(self) -> None:
        """Lets every learner return after the block in hand; does not wait, and replaces none from now on."""
        self._stopping = True
        for actor in self.actors:
            actor.stop.remote()

    def _replace(self, why: str) -> None:
        budget = self.config.learner.restart_budget
        if self.tally.updates > self._progress:
            self._failures.clear()
        self._progress = self.tally.updates
        self._failures.append(why)
        for actor in self.actors:
            ray.kill(actor, no_restart=True)
        self.runs = []
        if len(self._failures) >= SAME_FAILURE or self._starts > budget or "learners.guard.Halt" in why:
            raise RunError(
                f"the learner failed and is not restarted (starts: {self._starts}, learner.restart_budget {budget}), so the run "
                f"halts; it can be resumed. The first failure:\n{self._failures[0]}"
            )
        self.event(f"learner restarted from the newest checkpoint: {root(why)}")
        self.start()
