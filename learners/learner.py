"""The learner: blocks in, updates made, weights out.

Letters: U updates of a block, B batch, D packed row width.

One ``step`` takes one block, of transitions or of whole episodes. Nothing in it waits for the device: weights to publish and
metrics, one stacked tensor a block, are transferred and, on CUDA, read when the next block is already queued, so publication, the
guard and the report are one block late there. The same code runs alone and among L learners: each takes its own B/L
rows, the agent reduces through ``collective``, and rank 0 publishes.

Among L learners construction, ``load_state``, ``step`` and ``publish`` are made by all in the same order; ``state`` and
``report`` are each rank's own affair.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import torch

from algorithms.interface import Agent, Collective, EpisodeAgent, Solo
from algorithms.weights import Packing, Weights
from learners.checkpoint import Checkpoint
from learners.clock import Clock
from learners.collective import TorchCollective, share_state
from learners.config import LearnerConfig
from learners.feed import ReadyBatch
from learners.graph import CapturedCycle, CyclicAgent
from learners.guard import Guard
from learners.report import LearnerReport
from replay.messages import Block, EpisodeBlock
from replay.schema import ReturnSummary, together

PART = "learner"  # the learner's part of a checkpoint
AGENT = "agent/"  # prefix of the agent's entries in it
_COUNTERS = ("updates", "generation", "version", "published_updates", "nonfinite")


class Learner:
    """Makes updates with ``agent``, guards them, and publishes versioned weights.

    Args:
        agent: of ``ALGORITHMS[...].make_agent`` with the same ``collective``.
        config: settings of the learners.
        directory: where blocks of non-finite updates are dumped.
        publish: takes new weights (rank 0 only); must not block for long, its time counts as ``publish``.
        newest: finds the newest valid checkpoint to roll back to (rank 0 only), or None when there is none.
        write_back: takes what an agent inferred about the episodes of a block, (B, P) float32 for each of its batches.
        collective: the learners that share one update.
        shards: that give blocks. A stage is over when each has gathered its part.
        generation: at least this; a supervisor passes one more with each restart. ``load_state`` raises it as well.
    """

    def __init__(
        self,
        agent: Agent | EpisodeAgent,
        config: LearnerConfig,
        *,
        directory: Path,
        publish: Callable[[Weights], None],
        newest: Callable[[], Checkpoint | None] = lambda: None,
        write_back: Callable[[EpisodeBlock, list[np.ndarray]], None] = lambda block, values: None,
        collective: Collective | None = None,
        shards: int = 1,
        generation: int = 0,
    ) -> None:
        self._shards = shards
        self.agent, self.config, self.device = agent, config, agent.device
        self.updates, self.version, self.generation = 0, 0, generation
        self.rollbacks = 0
        self._collective: Collective = Solo() if collective is None else collective
        self._publish, self._newest, self._write_back = publish, newest, write_back
        self._guard = Guard(config, Path(directory))
        self._clock = Clock(("data_wait", "update", "publish"))
        self._blocks_late = 1 if self.device.type == "cuda" else 0
        self._pending: deque[_Pending] = deque()  # at most one more than _blocks_late
        self._graph: CapturedCycle | None = None
        self._leaving: tuple[Packing, dict[str, int]] | None = None  # weights to publish, on their way to the host
        self._inserted: dict[int, int] = {}  # by shard
        self._returns: dict[int, ReturnSummary] = {}  # by shard, of those that hold whole episodes
        self._published_updates = 0
        self._nonfinite_before = 0  # by earlier processes of this run
        self._seen: dict[str, list[float]] = {}  # finite values of each metric, a block each, since the last report
        self._reported_updates = 0
        if self._collective.world_size > 1:
            self._share(agent.state())

    @property
    def env_steps(self) -> int:
        """Rows the shards had accepted when they gave the newest blocks that were learned from."""
        return sum(self._inserted.values())

    @property
    def published_updates(self) -> int:
        """Updates that the newest policy has seen that was published, or taken for it (see ``flush``)."""
        return self._published_updates

    def step(self, ready: ReadyBatch) -> None:
        """Makes the U updates of one block.

        Raises:
            Halt: the updates stay non-finite although the learner rolled back.
            CheckpointError: a rollback was due and no checkpoint can be read.
            CollectiveError: another learner was lost.
        """
        self._clock.add("data_wait", ready.waited_s)
        with self._clock.measure("update"):
            metrics = self._update(ready)
            self.updates += ready.block.slot_UB.shape[0]
            self._inserted[ready.block.shard] = ready.block.inserted
            self._pending.append(_Pending(ready.block, self.updates, metrics))
            if len(self._pending) > self._blocks_late:
                self._look(self._pending.popleft())
        self.flush()  # what was taken before this block has arrived while it was queued
        if self.updates - self._published_updates >= self.config.publish_updates:
            self._take_weights()
            if not self._blocks_late:
                self.flush()

    def publish(self) -> None:
        """Publishes the policy as the next version; call it once before the first step, so that workers can act."""
        self._take_weights()
        self.flush()

    def flush(self) -> None:
        """Publishes what was taken for it: on CUDA that is one block later, so that no block waits for the transfer.

        Weights that are not finite are not published: the learner rolls back first.
        """
        if self._leaving is None:
            return
        with self._clock.measure("publish"):
            packing, facts = self._leaving
            weights = packing.done(**facts)
            if not bool(np.isfinite(weights.flat).all()):
                self._guard.note(f"the policy's weights were not finite at update {weights.updates}")
                self._roll_back()
                weights = self.weights()
            self._leaving = None
            self.version += 1
            if self._collective.rank == 0:
                self._publish(dataclasses.replace(weights, version=self.version))

    def weights(self) -> Weights:
        """The policy as it is now, under the version published last."""
        return Packing(self.agent.policy_weights()).done(**self._facts())

    def _take_weights(self) -> None:
        with self._clock.measure("publish"):
            self._leaving = Packing(self.agent.policy_weights()), self._facts()
            self._published_updates = self.updates

    def _facts(self) -> dict[str, int]:
        return {
            "generation": self.generation, "version": self.version, "env_steps": self.env_steps, "updates": self.updates
        }  # fmt: skip

    def report(self) -> LearnerReport:
        """What happened since the last report; metrics and counts lag one block on CUDA. Never waits for the device."""
        shares, wall_s = self._clock.lap()
        made = self.updates - self._reported_updates
        metrics = {name: math.fsum(v) / (1 if name == "nonfinite" else len(v)) for name, v in self._seen.items()}
        self._reported_updates, self._seen = self.updates, {}
        return LearnerReport(
            updates=self.updates,
            env_steps=self.env_steps,
            generation=self.generation,
            version=self.version,
            metrics=metrics,
            nonfinite=self._nonfinite(),
            rollbacks=self.rollbacks,
            updates_per_s=made / wall_s,
            wall_s=wall_s,
            time=shares,
        )

    def state(self) -> dict[str, torch.Tensor]:
        """Everything an exact resume needs, as copies on the CPU that later updates leave alone.

        With L learners all give the same, so rank 0's is enough. A state with a NaN is not given out, because a
        checkpoint of it would be what the next rollback goes to: a learner alone rolls back first; one of several
        raises Halt, because a rollback must be made by all, and is restarted with the others.
        """
        agent = self._agent_state()
        poisoned = [name for name, tensor in agent.items() if bool(tensor.isnan().any())]
        if poisoned:
            self._guard.note(f"{', '.join(poisoned)} held a NaN at update {self.updates}")
            if self._collective.world_size > 1:
                raise self._guard.halt_for_state(self.updates)
            self._roll_back()
            agent = self._agent_state()
        counters = (self.updates, self.generation, self.version, self._published_updates, self._nonfinite())
        state = {name: torch.tensor(value) for name, value in zip(_COUNTERS, counters)}
        shards = sorted(self._inserted.items())
        state["inserted_S2"] = torch.tensor(shards, dtype=torch.int64).reshape(len(shards), 2)
        if self._returns:
            known = [(shard, *dataclasses.astuple(summary)) for shard, summary in sorted(self._returns.items())]
            state["returns_SF"] = torch.tensor(known, dtype=torch.float64)
        return state | {AGENT + name: tensor for name, tensor in agent.items()}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Takes what ``state`` gave. Versions go on from there in a new generation, so they never go backwards.

        Among L learners all call this together; the agent's state is then rank 0's everywhere.
        """
        if "epoch" in state:  # what earlier versions called it
            state = state | {"generation": state["epoch"]}
        missing = [name for name in (*_COUNTERS, "inserted_S2") if name not in state]
        if missing:
            raise ValueError(
                f"a learner's state without {', '.join(missing)} was given, expected what Learner.state() returns: "
                "nothing was loaded; look for the part named 'learner' in the checkpoint"
            )
        self._share({name.removeprefix(AGENT): t for name, t in state.items() if name.startswith(AGENT)})
        updates, generation, version, published, nonfinite = (int(state[name]) for name in _COUNTERS)
        self.updates = self._reported_updates = updates
        self.version, self._published_updates = version, published
        self.generation = max(self.generation, generation + 1)
        self._nonfinite_before = nonfinite - self._guard.nonfinite
        self._inserted = {int(shard): int(inserted) for shard, inserted in state["inserted_S2"]}
        known = state["returns_SF"].tolist() if "returns_SF" in state else []
        self._returns = {int(shard): ReturnSummary.of(*summary) for shard, *summary in known}
        self._pending.clear()
        self._leaving = None

    def _update(self, ready: ReadyBatch) -> dict[str, torch.Tensor]:
        if isinstance(ready.block, EpisodeBlock):
            return self._update_on_episodes(cast(EpisodeAgent, self.agent), ready)
        rows_UBD = ready.batches
        if not (rows_UBD.is_cuda and self.config.cuda_graph):
            return cast(Agent, self.agent).update(rows_UBD)
        if self._graph is None:
            agent = cast(CyclicAgent, self.agent)
            self._graph = CapturedCycle(agent, batch=rows_UBD.shape[1], width=rows_UBD.shape[2])
        return self._graph.update(rows_UBD)

    def _update_on_episodes(self, agent: EpisodeAgent, ready: ReadyBatch) -> dict[str, torch.Tensor]:
        block = cast(EpisodeBlock, ready.block)
        self._returns[block.shard] = block.returns
        returns = together([known for _, known in sorted(self._returns.items())])
        agent.update_returns(returns if len(self._returns) >= self._shards else dataclasses.replace(returns, stage=0))
        metrics = agent.update(ready.batches)
        inferred = agent.posteriors()
        if inferred:
            self._write_back(block, [values_BP.detach().cpu().numpy() for values_BP in inferred])
        return metrics

    def _look(self, pending: _Pending) -> None:
        """Reads a block's metrics and lets the guard decide."""
        metrics = pending.read()
        for name, value in metrics.items():
            if math.isfinite(value):  # NaN: no finite update of that kind was in the block
                self._seen.setdefault(name, []).append(value)
        if self._guard.observe(pending.block, metrics, pending.updates):
            self._roll_back()

    def _roll_back(self) -> None:
        """Takes parameters, optimisers and statistics from the newest checkpoint; counters and versions go on."""
        self._guard.allow_rollback(self.updates)
        checkpoint = self._newest() if self._collective.rank == 0 else None
        saved = torch.tensor(-1)
        if checkpoint is not None:
            saved = checkpoint.part(PART)["updates"].clone()
        if isinstance(self._collective, TorchCollective):
            self._collective.broadcast_(saved)
        if saved < 0:
            raise self._guard.halt_without_checkpoint(self.updates)
        state = self.agent.state()
        if checkpoint is not None:
            part = checkpoint.part(PART)
            state = {name.removeprefix(AGENT): t for name, t in part.items() if name.startswith(AGENT)}
        self._share(state)
        self._pending.clear()
        self.rollbacks += 1
        self._guard.rolled_back(self.updates, int(saved))

    def _share(self, state: dict[str, torch.Tensor]) -> None:
        """Loads rank 0's ``state`` on every rank, noise generator included: each rank takes its share of one noise."""
        self.agent.load_state(share_state(state, self._collective))

    def _agent_state(self) -> dict[str, torch.Tensor]:
        return {name: tensor.detach().cpu().clone() for name, tensor in self.agent.state().items()}

    def _nonfinite(self) -> int:
        return self._nonfinite_before + self._guard.nonfinite


class _Pending:
    """A block's metrics on their way to the host: one stacked tensor, one transfer."""

    def __init__(self, block: Block | EpisodeBlock, updates: int, metrics: dict[str, torch.Tensor]) -> None:
        self.block, self.updates, self._names = block, updates, tuple(metrics)
        stacked = torch.stack([metric.detach().float() for metric in metrics.values()])
        self._arrived: torch.cuda.Event | None = None
        if stacked.is_cuda:
            self._host = torch.empty(stacked.shape, pin_memory=True)
            self._host.copy_(stacked, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        else:
            self._host = stacked

    def read(self) -> dict[str, float]:
        if self._arrived is not None:
            self._arrived.synchronize()
        return dict(zip(self._names, self._host.tolist()))
