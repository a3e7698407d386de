"""What a record says of single workers, nodes and processes."""

from __future__ import annotations

import mmap
import sys
from types import SimpleNamespace

import pytest
import torch

from cluster.metrics import parts
from cluster.metrics.aggregator import MetricsAggregator
from cluster.metrics.alarms import alarms
from cluster.metrics.catalogue import restarts
from cluster.metrics.parts import NODES, NodeRestarts, Parts
from cluster.metrics.record import RecentRatio
from cluster.usage import Usage, usage
from learners.report import LearnerReport


def test_the_slowest_workers_are_named_with_their_nodes_and_reported_when_they_are_far_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(parts.time, "monotonic", lambda: now)
    seen, nodes = Parts(), {0: "a", 1: "a", 2: "b", 3: "b"}
    for worker, rows in enumerate((300.0, 360.0, 330.0, 90.0)):
        seen.add_worker(worker, {"recorded_rows": rows})
    now = 30.0
    record = seen.record(nodes)
    assert record["slowest_workers"] == "worker 3 on b: 3.0, worker 0 on a: 10.0, worker 2 on b: 11.0"
    assert (record["worker_steps_per_s_min"], record["worker_steps_per_s_max"]) == (3.0, 12.0)
    assert (record["node_workers_b"], record["node_steps_per_s_b"]) == (2, 14.0)
    assert "worker 3 on b: 3.0" in alarms(record)["slow_workers"]
    assert "slow_workers" not in alarms(record | {"worker_steps_per_s_min": 6.0})
    gone = seen.record({0: "a", 1: "a"})
    assert (gone["node_workers_b"], gone["node_steps_per_s_b"], gone["worker_steps_per_s_min"]) == (0, 0.0, 10.0)
    assert "node_workers_b" not in seen.record({0: "a"})


def test_no_worker_is_called_slow_in_the_first_seconds_when_not_every_one_has_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(parts.time, "monotonic", lambda: now)
    seen, nodes = Parts(), {0: "a", 1: "a"}
    seen.add_worker(0, {"recorded_rows": 1_500.0})
    now = 3.0
    record = seen.record(nodes)
    assert record["worker_steps_per_s_min"] == 0.0 and not alarms(record)
    seen.add_worker(0, {"recorded_rows": 9_000.0})
    now = 33.0
    assert "worker 1 on a: 0.0" in alarms(seen.record(nodes))["slow_workers"]


def test_no_worker_that_joined_or_was_replaced_within_the_window_is_called_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(parts.time, "monotonic", lambda: now)
    seen, nodes = Parts(), {0: "a", 1: "a", 2: "a"}
    now = 3.0
    seen.record(nodes)
    nodes |= {3: "b"}  # a run is scaled up, and worker 2 is replaced
    seen.forget("worker", 2)
    for worker, rows in enumerate((900.0, 960.0, 60.0, 90.0)):
        seen.add_worker(worker, {"recorded_rows": rows})
    now = 33.0
    record = seen.record(nodes)
    assert record["slowest_workers"] == "worker 0 on a: 30.0, worker 1 on a: 32.0" and not alarms(record)
    assert record["node_steps_per_s_b"] == 3.0
    for worker, rows in enumerate((900.0, 960.0, 930.0, 90.0)):
        seen.add_worker(worker, {"recorded_rows": rows})
    now = 63.0
    assert "worker 3 on b: 3.0" in alarms(seen.record(nodes))["slow_workers"], "a whole window of its own"


def test_memory_is_that_of_living_processes_and_cpu_time_that_of_all() -> None:
    seen = Parts()
    stats = {"recorded_rows": 4.0} | Usage(1e8, 5.0).stats()
    seen.add_worker(0, stats)
    assert stats == {"recorded_rows": 4.0}, "what is merged over workers is a sum"
    seen.add_usage("worker", 1, Usage(2e8, 7.0))
    seen.add_usage("worker", 0, Usage(1e8, 6.0))
    seen.forget("worker", 1)
    seen.add_usage("worker", 1, Usage(3e8, 1.0))  # its next incarnation
    record = seen.record({})
    assert (record["rss_bytes_worker"], record["cpu_s_worker"]) == (4e8, 14.0)
    assert record["rss_bytes_driver"] > 1e7
    assert not any(key.startswith("gpu_") for key in record), "a series of a device that is not there"


def test_gpu_memory_and_utilisation_are_those_of_the_parts_that_have_a_device() -> None:
    seen = Parts()
    seen.add_usage("learner", 0, Usage(1e8, 1.0, gpu_bytes=3e8, gpu_busy=0.5))
    seen.add_usage("learner", 1, Usage(1e8, 1.0, gpu_bytes=2e8, gpu_busy=0.75))
    seen.add_usage("shard", 0, Usage(1e8, 1.0))
    found = {key: value for key, value in seen.record({}).items() if key.startswith("gpu_")}
    assert found == {"gpu_bytes_learner": 5e8, "gpu_busy_learner": 0.625}, "a sum, and a mean"


def test_a_process_reports_its_gpu_memory_once_it_uses_a_device_and_starts_none_to_find_out() -> None:
    started = torch.cuda.is_initialized()
    assert (usage().gpu_bytes is None) == (not started) and (started or usage().gpu_busy is None)
    assert torch.cuda.is_initialized() == started
    if torch.cuda.is_available():
        held = torch.ones(1 << 20, device="cuda")
        assert (usage().gpu_bytes or 0) >= held.nbytes and 0 <= (usage().gpu_busy or 0) <= 1


@pytest.mark.parametrize("known", [True, False])
def test_how_busy_a_device_is_says_the_drivers_library_of_the_one_that_the_process_sees(
    known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rates(handle: str) -> SimpleNamespace:
        if not known:
            raise RuntimeError("not supported")
        return SimpleNamespace(gpu={"device 3": 37}[handle])

    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: f"device {index}",
        nvmlDeviceGetUtilizationRates=rates,
        NVMLError_DriverNotLoaded=RuntimeError,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    for name, value in {"pynvml": nvml, "_HAS_PYNVML": True, "is_initialized": lambda: True}.items():
        monkeypatch.setattr(torch.cuda, name, value, raising=False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 5_000)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    assert (usage().gpu_bytes, usage().gpu_busy) == (5_000.0, 0.37 if known else None)


def test_pages_of_shared_memory_and_a_process_own_memory_are_separate() -> None:
    before = usage().shm_bytes
    if before is None:
        pytest.skip("only Linux says which memory is shared")
    shared = mmap.mmap(-1, 4 << 20)  # anonymous and shared: as the object store's pages are
    shared.write(b"1" * (4 << 20))
    own = bytearray(b"1" * (8 << 20))
    after = usage()
    assert after.shm_bytes is not None and 4 << 20 <= after.shm_bytes - before < 6 << 20 < len(own)
    shared.close()


def test_what_a_restarted_shard_or_store_has_served_goes_on_growing() -> None:
    seen = MetricsAggregator(min_size_rows=1, replay_ratio=1.0)
    for calls in (5.0, 8.0, 2.0):  # restarted after 8
        seen.add_served("store", {"publish_calls": calls})
    assert seen.line()["hop_publish_calls"] == 10


def test_the_replay_ratio_of_now_is_that_of_the_newest_env_steps_and_of_none_of_the_warm_up() -> None:
    seen, now = RecentRatio(tolerance_rows=100.0), None  # so over 2,000 env steps
    for steps in range(0, 1_001, 100):
        assert seen.take(steps, 0, warm=False) is None
    for steps in range(1_100, 3_001, 100):
        now = seen.take(steps, steps - 1_100, warm=True)
    assert now is None, "too few for the limiter's tolerance"
    for steps in range(3_100, 20_001, 100):
        now = seen.take(steps, steps - 1_100, warm=True)
    assert now == 1.0
    for steps in range(20_100, 22_001, 100):
        now = seen.take(steps, 18_900 + (steps - 20_000) // 2, warm=True)
    assert now == 0.5, "of the whole run it is 0.95"
    for updates in range(20_000, 22_901, 100):  # the learner catches up, nothing is stored meanwhile
        now = seen.take(22_000, updates, warm=True)
    assert now == 2.0


def test_restarts_by_node_begin_at_0_once_and_further_nodes_are_counted_together() -> None:
    seen = NodeRestarts()
    first = seen.record({"a"})
    assert first["node_restarts_worker_died_a"] == first["node_restarts_shard_node_lost_a"] == 0
    assert seen.record({"a"}) == {}, "what did not happen is in one record of a run, not in each"
    seen.count("worker", "died", "a")
    seen.count("learner", "hung", "")  # it had no place
    assert seen.record({"a"}) == {"node_restarts_worker_died_a": 1}
    for number in range(2 * NODES):
        seen.count("worker", "node_lost", f"n{number}")
    counts = seen.record(set())
    assert len(counts) == NODES + 1 and counts["node_restarts_worker_node_lost_other"] == NODES + 1
    later = NodeRestarts()
    later.resume_from(counts)
    assert later.record(set()) == counts


def test_updates_that_are_not_finite_are_counted_over_all_learners_that_a_run_had() -> None:
    seen = MetricsAggregator(min_size_rows=1, replay_ratio=1.0)
    facts = {
        "env_steps": 0,
        "generation": 0,
        "version": 0,
        "rollbacks": 0,
        "updates_per_s": 0.0,
        "wall_s": 1.0,
        "time": {},
    }
    for updates, skipped in (
        (8, 3),
        (16, 0),
        (8, 2),
    ):  # the last one of a learner that was restarted from its checkpoint
        metrics = {"nonfinite": float(skipped)}
        seen.add_learner(LearnerReport(updates=updates, metrics=metrics, nonfinite=skipped, **facts))
    assert seen.line()["nonfinite_updates"] == 5
    later = MetricsAggregator(min_size_rows=1, replay_ratio=1.0)
    later.resume_from(seen.line())
    assert later.line()["nonfinite_updates"] == 5


def test_the_summary_counts_the_restarts_of_every_part() -> None:
    seen = MetricsAggregator(min_size_rows=1, replay_ratio=1.0)
    seen.count_restart("worker", "died", "a")
    seen.count_restart("learner", "died", "a")
    seen.count_restart("learner", "hung", "a")
    expected = {"worker": 1, "learner": 2, "shard": 0, "store": 0, "evaluator": 0}
    assert seen.summary()["restarts"] == restarts(seen.line()) == expected
    assert restarts({"workers_restarted": 3})["worker"] == 3  # as versions wrote it that gave no reasons
