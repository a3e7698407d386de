"""Rollout workers as the driver sees them, without Ray: who is blamed for silence, what a restart costs, and when it comes."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    ActorUnschedulableError,
    ObjectLostError,
    OutOfMemoryError,
    RayTaskError,
)
from tagged_env import TaggedEnv
from test_replay_client_plans import ENVS, linear_policy, make_worker

from cluster.actors import REFUSED
from cluster.config import make_preset, override
from cluster.errors import RunError
from cluster.graph import RunSpec
from cluster.metrics.aggregator import MetricsAggregator
from cluster.nodes import Failure, Nodes
from cluster.remote import Budget, root
from cluster.replay_client import ReplayClient
from cluster.worker_group import SLICE_S, Member, WorkerGroup
from replay.messages import Ack
from rollout_workers.env import StepResult


@pytest.mark.parametrize("full", [False, True])
def test_a_worker_that_hangs_ends_a_run_without_restarts_unless_its_shard_has_all_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    config = override(make_preset("softgac", "cpu"), {"worker.restart_budget": "0", "worker.step_timeout_s": "5"})
    spec = RunSpec(config=config, obs_dim=3, action_dim=1, run_dir=tmp_path)
    events: list[str] = []
    aggregator = MetricsAggregator(min_size_rows=64, replay_ratio=1.0)
    group = WorkerGroup(spec, aggregator, events.append, Nodes(), [None, None], None, 0.0)
    monkeypatch.setattr(group, "_end", lambda members, reason, ask: None)
    monkeypatch.setattr(
        group, "_seen_to_hang", lambda _, silent_s, limit_s: f"is silent for {silent_s:.0f} s" * (silent_s > limit_s)
    )
    now = time.monotonic()
    for index, silent_s in enumerate((0.0, 60.0)):  # worker 1, of shard 1, hangs
        group._members[index] = Member(
            actor=None, run=index, incarnation=0, up=None, asked=now - 100, began=now - 90, rows=1.0
        )
        group._last_report[index] = now - silent_s
    group.note({1} if full else set(), set())
    if full:
        group.watch()
        assert not events and [member.finished for member in group._members.values()] == [False, False]
        group._members[0].finished = True
        assert group.finished, "the run waits for the worker that hangs"
    else:
        with pytest.raises(RunError, match=r"worker 1 of .* is silent for 60 s"):
            group.watch()


def test_workers_are_counted_once_a_turn_however_many_are_lost_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = RunSpec(config=make_preset("softgac", "cpu"), obs_dim=3, action_dim=1, run_dir=tmp_path)
    aggregator = MetricsAggregator(min_size_rows=64, replay_ratio=1.0)
    group = WorkerGroup(spec, aggregator, lambda text: None, Nodes(), [None], None, 0.0)
    for index in range(200):
        down = Failure(why="", reason="died", nodes=frozenset(("n",))) if index % 2 else None
        group._members[index] = Member(
            actor=None, run=index, incarnation=0, up=index, asked=0.0, began=1.0, node="n", down=down
        )
    counted, count = [], group._count
    monkeypatch.setattr(group, "_count", lambda: counted.append(count()))
    group.go_on()  # nothing is known of their node yet, so all wait
    assert len(counted) == 1 and (aggregator.workers, aggregator.workers_pending) == (100, 100)


ENDS = {
    "Ray killed it": (OutOfMemoryError("the node is running low on memory\npages of advice"), "the node is running low on memory"),
    "it is restarting": (ActorUnavailableError("restarting", None), "or because its node ran out of memory"),
    "it restarted it, and that process refused": (
        ActorDiedError(RayTaskError("WorkerActor.__init__", f"RuntimeError: {REFUSED}; the logs", RuntimeError(REFUSED))),
        "or because its node ran out of memory",
    ),
    "it has no place": (ActorUnschedulableError("no node has its label"), "no node has its label"),
    "its object is lost": (ObjectLostError("0" * 56, "", ""), "lost"),
}  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_whatever_ray_says_of_a_worker_that_ended_it_has_died_and_the_event_says_why_in_a_line(
    end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error, words = ENDS[end]
    spec = RunSpec(config=make_preset("softgac", "cpu"), obs_dim=3, action_dim=1, run_dir=tmp_path)
    aggregator = MetricsAggregator(min_size_rows=64, replay_ratio=1.0)
    group = WorkerGroup(spec, aggregator, lambda text: None, Nodes(), [None], None, 0.0)
    group._members[0] = member = Member(actor=None, run="run", incarnation=0, up=None, asked=0.0, began=1.0, node="a")
    asked: list[dict[int, Member]] = []
    monkeypatch.setattr(group, "_end", lambda members, reason, ask: asked.append(ask))
    monkeypatch.setattr(group, "_count", lambda: None)
    monkeypatch.setattr("ray.get", lambda ref: (_ for _ in ()).throw(error))
    group.look_at(["run"])
    assert member.down is not None and member.down.reason == "died" and words in root(member.down.why)
    assert asked == [{}], "a dead process is not waited for"


def test_workers_that_end_together_are_ended_together_and_come_back_in_turns_of_bounded_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers, each_s = 40, 0.02
    spec = RunSpec(config=make_preset("softgac", "cpu"), obs_dim=3, action_dim=1, run_dir=tmp_path)
    group = WorkerGroup(spec, MetricsAggregator(min_size_rows=64, replay_ratio=1.0), print, Nodes(), [None], None, 0.0)
    for index in range(workers):
        group._members[index] = Member(actor=None, run=index, incarnation=0, up=None, asked=0.0, began=1.0, node="a")
    now_s, ended, begun = 100.0, list[int](), list[int]()

    def end(members: dict[int, Member], reason: str, ask: dict[int, Member]) -> None:
        assert len(ask) == len(members), "each of them raised, so its process still knows its rows"
        ended.extend(members)

    def answer(ref: int) -> None:
        nonlocal now_s
        now_s += each_s
        raise RayTaskError("run", "RuntimeError: the licence server is down", RuntimeError())

    def start(index: int, *_: object) -> None:
        nonlocal now_s
        now_s += each_s
        begun.append(index)
        group._members[index].down = None

    monkeypatch.setattr("cluster.worker_group.time.monotonic", lambda: now_s)
    monkeypatch.setattr("ray.get", answer)
    for name, function in (("_end", end), ("_start", start), ("_count", lambda: None)):
        monkeypatch.setattr(group, name, function)
    monkeypatch.setattr(group._nodes, "verdict", lambda failure, limit_s: "lost")
    turns = 0
    while len(begun) < workers:
        turns, began_s = turns + 1, now_s
        down = [index for index, member in group._members.items() if member.down]
        group.look_at([index for index in range(workers) if index not in (*ended, *down)])
        assert now_s - began_s <= 2 * (SLICE_S + each_s)
    assert sorted(begun) == sorted(ended) == list(range(workers))
    assert turns <= 2 + workers * each_s / SLICE_S


@pytest.mark.parametrize("hangs", [False, True])
def test_last_words_count_every_step_that_was_made_and_wait_for_no_step_that_hangs(
    monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    worker = make_worker(linear_policy())
    env, stepping, go_on = worker._env, threading.Event(), threading.Event()

    def step(action_EA: np.ndarray) -> StepResult:
        stepping.set()
        assert go_on.wait(60)
        return TaggedEnv.step(env, action_EA)  # type: ignore[arg-type]

    monkeypatch.setattr(env, "step", step)
    ok = Ack(status="ok", generation=0, version=1)
    client = ReplayClient(
        worker,
        send=lambda chunk: ok,
        answer=lambda ack, limit_s: ack,
        fetch=lambda: None,
        max_unacked=1,
        timeout_s=60.0,
    )
    thread = threading.Thread(target=client.run)
    thread.start()
    assert stepping.wait(60)
    if not hangs:  # the chunk in hand can end while the driver waits for the counts
        threading.Timer(0.1, go_on.set).start()
    totals = client.last_words(0.05 if hangs else 60.0)
    told = env.made  # type: ignore[attr-defined]
    go_on.set()
    thread.join(60)
    assert totals.recorded == told == (0 if hangs else 4 * ENVS)
    assert hangs or env.made == told, "a step that no count of the run has"  # type: ignore[attr-defined]


def test_a_budget_is_of_any_hour_and_restarts_of_one_part_come_ever_later() -> None:
    now_s = 0.0
    budget = Budget(4, clock=lambda: now_s)
    assert budget.delay_s(1) == 0
    assert budget.spend(1) and budget.spend(1) and budget.spend(1) and (budget.delay_s(1), budget.delay_s(2)) == (2, 0)
    now_s = 301
    assert budget.delay_s(1) == 0, "a part that was calm for five minutes does not wait"
    assert budget.spend(1) and not budget.spend(2) and budget.left == 0
    now_s = 3_600
    assert budget.left == 3 and budget.spend(2) and budget.delay_s(2) == 0.5


def test_a_part_is_not_restarted_while_its_node_does_not_answer_and_costs_nothing_once_that_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raylet = grpc.server(ThreadPoolExecutor(1))
    with (
        socket.create_server(("127.0.0.1", 0)) as stopped,  # the kernel accepts what nobody reads
        socket.create_server(("127.0.0.1", 0)) as gone,
    ):
        ports = {"up": raylet.add_insecure_port("127.0.0.1:0"), "stopped": stopped.getsockname()[1]}
        ports["gone"] = gone.getsockname()[1]
        gone.close()
        raylet.start()
        table = [
            {"NodeID": name, "Alive": True, "NodeManagerAddress": "127.0.0.1", "NodeManagerPort": port}
            for name, port in ports.items()
        ]
        monkeypatch.setattr("ray.nodes", lambda: table)
        nodes = Nodes()
        failures = {name: Failure(why="", reason="died", nodes=frozenset((name,))) for name in ports}

        def verdicts(limit_s: float = 60.0) -> dict[str, str]:
            return {name: nodes.verdict(failure, limit_s) for name, failure in failures.items()}

        assert verdicts() == {"up": "", "stopped": "", "gone": ""}, "nobody has looked yet"
        nodes.look()
        nodes._answer.result(30)  # type: ignore[union-attr]
        assert nodes.look() == [] and verdicts() == {"up": "alive", "stopped": "", "gone": ""}
        late = verdicts(-1.0)
        assert late["stopped"] == late["gone"] == "alive", "they are not waited for without end"
        table[1], table[2] = table[1] | {"Alive": False}, table[2] | {"Alive": False}
        nodes._asked_at = -60.0
        nodes.look()
        nodes._answer.result(30)  # type: ignore[union-attr]
        assert nodes.look() == ["stopped", "gone"]
        assert verdicts() == {"up": "alive", "stopped": "lost", "gone": "lost"}
    raylet.stop(None)
