"""The driver does not wait for a head or a file system that hangs. test_own_cluster.py and test_head_watch.py stop a real head."""

from __future__ import annotations

import threading

import pytest
import ray
from tiny_runs import wait_for

from cluster import remote
from cluster.bounded import Look, in_thread


def test_a_call_that_never_returns_is_given_up_and_another_one_returns_or_raises_as_it_would() -> None:
    with pytest.raises(TimeoutError):
        in_thread(threading.Event().wait).result(0.01)
    assert in_thread(lambda: 1).result(30) == 1
    with pytest.raises(ZeroDivisionError):
        in_thread(lambda: 1 // 0).result(30)


def test_a_look_that_takes_long_is_waited_for_once_and_never_begun_twice() -> None:
    free, made = threading.Event(), []

    def look() -> int:
        made.append(free.wait(60))
        return len(made)

    looks = Look(look)
    assert [looks.result(0.01), looks.result(60), looks.result(60)] == [None] * 3, "only whoever begins one waits"
    free.set()
    wait_for(lambda: made, "the look")
    wait_for(lambda: looks.result(0) == 1, "its answer")
    assert looks.result(60) == 2
    with pytest.raises(ZeroDivisionError):
        Look(lambda: 1 // 0).result(60)


def test_what_is_free_is_not_waited_for_when_the_head_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "RESOURCES_S", 0.01)
    monkeypatch.setattr(ray, "available_resources", threading.Event().wait)
    assert "waited 5 s for a worker, in vain; the cluster has a head that does not say" in remote.no_place(
        5, "a worker"
    )


def test_what_is_free_is_said_without_nodes_and_parts_of_placement_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    total = {"CPU": 6.0, "memory": 3.0 * 2**30, "node:10.0.0.1": 1.0, "CPU_group_0_74f3": 1.0, "slots": 2.0}
    monkeypatch.setattr(ray, "cluster_resources", lambda: total)
    monkeypatch.setattr(ray, "available_resources", lambda: total | {"CPU": 5.4})
    words = remote.no_place(5, "a worker")
    assert "the cluster has 5.4 of 6 CPU free, 3 of 3 GiB memory free, 2 of 2 slots free; give it more" in words


def test_a_class_of_actors_is_sent_to_the_head_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Part:
        pass

    made, real = [], ray.remote
    monkeypatch.setattr(ray, "remote", lambda kind: made.append(kind) or real(kind))
    remote.make_actor(Part, num_cpus=1)
    remote.make_actor(Part, num_cpus=0, max_restarts=1)
    assert made == [Part]


def test_the_calls_of_an_actor_leave_no_events_at_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    class Part:
        pass

    given: list[dict[str, object]] = []
    monkeypatch.setattr(
        ray.actor.ActorClass, "_remote", lambda self, args=None, kwargs=None, **options: given.append(options)
    )
    remote.make_actor(Part, num_cpus=1).remote()
    (options,) = given
    assert (options["num_cpus"], options["enable_task_events"]) == (1, False)
