"""The learner's side of a simulated run: a real learner, its checkpoints, its feed, and the store of weights."""

from __future__ import annotations

import dataclasses
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from line_agent import LineAgent
from linear_policy import LinearPolicy
from tagged_env import LAYOUT, assert_whole

from algorithms import ALGORITHMS
from algorithms.interface import AgentSpec
from algorithms.weights import Weights
from learners import checkpoint
from learners.config import LearnerConfig
from learners.feed import DirectFeed
from learners.learner import PART, Learner
from replay.limiter import apportioned
from replay.messages import Block, Wait

if TYPE_CHECKING:
    from simulated_run import SimulatedRun

    from cluster.metrics.aggregator import MetricsAggregator

CONFIG = LearnerConfig(batch_size=8, updates_per_call=2, publish_updates=8, nonfinite_skips=4, checkpoints_kept=3)
META = {"env": "tagged"}
DOWN_STEPS = 40  # of the simulation until a dead learner is started again


class ActingLine(LineAgent):
    """A LineAgent whose line is also a policy of tests.linear_policy."""

    def policy_weights(self) -> dict[str, torch.Tensor]:
        return {"w": self.w[:, None], "b": torch.zeros(1)}


class LearnerSide:
    """Starts, crashes and restarts the learner of ``run``; holds what it published."""

    def __init__(self, run: SimulatedRun, algorithm: str) -> None:
        self.run, self.algorithm = run, algorithm
        self.directory = run.directory / "checkpoints"
        self.store: Weights | None = None
        self.before: deque[Weights] = deque(maxlen=4)  # what an answer that took a detour would bring
        self.learner: Learner | None = None
        self.starts = self.asked = 0
        self.down_until = 0
        self.saved: list[tuple[int, Path]] = []  # updates and path of the good checkpoints kept, oldest first
        self.newest_order = (-1, -1)

    @property
    def updates(self) -> int:
        return self.learner.updates if self.learner else 0

    @property
    def ended(self) -> bool:
        return self.learner is not None and self.feed.ended

    @property
    def may_poison(self) -> bool:
        """NaN is put into the parameters only where nothing is being mended already."""
        return self.algorithm == "line" and self.learner is not None and self.learner._guard.rollbacks == 0

    def make_policy(self) -> Any:
        if self.algorithm == "line":
            return LinearPolicy(LAYOUT.obs_dim, LAYOUT.action_dim)
        return ALGORITHMS[self.algorithm].make_policy(self._agent_config(), LAYOUT.obs_dim, LAYOUT.action_dim)

    def make_agent(self) -> Any:
        if self.algorithm == "line":
            return ActingLine(seed=self.run.seed)
        spec = AgentSpec(obs_dim=LAYOUT.obs_dim, action_dim=LAYOUT.action_dim, seed=self.run.seed)
        return ALGORITHMS[self.algorithm].make_agent(self._agent_config(), spec)

    def _agent_config(self) -> Any:
        config = ALGORITHMS[self.algorithm].presets["cpu"]()
        sizes = {
            "critic_width": 16,
            "atoms": 21,
            "bridge_width": 8,
            "bridge_steps": 3,
            "actor_width": 8,
            "behaviour_width": 8,
        }
        return dataclasses.replace(config, **{name: size for name, size in sizes.items() if hasattr(config, name)})

    def start(self) -> None:
        """From the newest good checkpoint, in a new generation."""
        self.starts += 1
        self.learner = Learner(
            self.make_agent(),
            CONFIG,
            directory=self.run.directory / "dumps",
            publish=self.publish,
            newest=lambda: checkpoint.load_newest(self.directory, META),
            generation=self.starts - 1,
        )
        found = checkpoint.load_newest(self.directory, META)
        if found is None:
            self.save()
        else:
            self.learner.load_state(found.part(PART))
            assert self.learner.updates == self.saved[-1][0], "a learner lost more than one interval"
        self.fetched = self.learner.updates * CONFIG.batch_size
        self.align()
        self.feed = DirectFeed(self.fetch, device="cpu")
        self.learner.publish()

    def act(self) -> None:
        """One block, or one checkpoint; a dead learner is started when its time has come."""
        if self.learner is None:
            if self.run.steps >= self.down_until:
                self.start()
            return
        ready = self.feed.poll()
        if ready is not None:
            rollbacks = self.learner.rollbacks
            self.learner.step(ready)
            self.run.fired["rollback"] += self.learner.rollbacks > rollbacks
            self.run.progress_step = self.run.steps
        if self.run.rng.random() < 0.05:
            self.save()

    def fetch(self) -> Block | Wait | None:
        assert self.learner is not None
        exhausted, shards = 0, self.run.shards
        for _ in shards:
            shard = shards[self.asked % len(shards)]
            self.asked += 1
            answer = shard.sample(
                CONFIG.updates_per_call, CONFIG.batch_size, (self.learner.generation, self.learner.version)
            )
            if isinstance(answer, Block):
                self.fetched += answer.slot_UB.size
                assert np.isfinite(answer.rows_UBD).all()
                assert_whole(LAYOUT.views(answer.rows_UBD))
                return answer
            exhausted += answer.reason == "exhausted"
        return None if exhausted == len(shards) else answer

    def publish(self, weights: Weights) -> None:
        """What the store does; the message may be lost on the way to it."""
        assert np.isfinite(weights.flat).all(), "weights that are not finite were published"
        assert weights.order > self.newest_order, "a version was published twice, or after a newer one"
        self.newest_order = weights.order
        self.run.fired["published"] += 1
        if self.store is None or not self.run.chance("publication lost", self.run.faults.lost):
            self.store = weights
            self.before.append(weights)

    def save(self) -> None:
        assert self.learner is not None
        rollbacks = self.learner.rollbacks
        state = self.learner.state()
        self.run.fired["rollback"] += self.learner.rollbacks > rollbacks
        path = checkpoint.save(self.directory, checkpoint.prefixed(PART, state), META, keep=CONFIG.checkpoints_kept)
        self.saved = [*self.saved, (self.learner.updates, path)][-CONFIG.checkpoints_kept :]
        self.run.fired["checkpoint"] += 1

    def crash(self) -> None:
        if self.learner is None:
            return
        self.learner = None
        self.down_until = self.run.steps + DOWN_STEPS
        if len(self.saved) > 1 and self.run.chance("checkpoint rotten", self.run.faults.rotten):
            damage(self.saved.pop()[1] / "tensors.safetensors")

    def poison(self) -> None:
        assert self.learner is not None and isinstance(self.learner.agent, LineAgent)
        self.learner.agent.w[0] = torch.nan

    def align(self) -> None:
        """What the fleet tells the shards when the learner, or one of them, was restarted."""
        limiters = [shard.limiter for shard in self.run.shards]
        if self.learner is not None:
            missing = apportioned(
                self.fetched, [each.sampled for each in limiters], [each.inserted for each in limiters]
            )
            for shard, rows in zip(self.run.shards, missing):
                shard.align(rows)
                assert shard.limiter.sampled >= 0
            assert sum(each.sampled for each in limiters) == self.fetched
        for index in range(len(limiters)):
            self.run.disturbed(index)

    def tell(self, aggregator: MetricsAggregator) -> None:
        if self.learner is not None:
            aggregator.add_learner(self.learner.report())


def damage(path: Path) -> None:
    """One flipped bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
