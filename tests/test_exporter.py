"""The Prometheus endpoint: what it serves, how it is found, and that a real Prometheus reads it."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from real_runs import RealRuns

from cluster.cli import main
from cluster.errors import UsageError
from cluster.metrics.catalogue import CATALOGUE, METRICS, RESTARTED_PARTS, RestartReason, find_metric
from cluster.metrics.exporter import MAX_CONNECTIONS, Exporter
from cluster.metrics.record import CountedAgain

DOC = (
    (Path(__file__).resolve().parent.parent / "docs" / "metrics.md")
    .read_text()
    .split("## Names and meanings that changed")[0]
)
LINE = {
    "time_s": 12.5, "env_steps": 4000, "updates": 8000, "episodes": 4, "fill": 0.004, "size_rows": 4000,
    "rows_recorded": 4040, "rows_stored": 4000, "rows_dropped_nonfinite": 32, "rows_duplicate": 8,
    "replay_ratio": 2.01, "replay_ratio_now": 1.9, "target_replay_ratio": 2.0, "workers": 4, "workers_wanted": 6, "workers_pending": 2,
    "workers_restarted": 3, "workers_restarted_hung": 2, "workers_restarted_died": 1, "node_restarts_worker_node_lost_10.0.0.3": 2,
    "version": 62, "generation": 1, "policy_age_p50": 1, "policy_age_p95": 3, "publish_interval_s": 0.4,
    "learner_data_wait": 0.02, "learner_update": 0.95, "learner_publish": 0.01, "learner_data_wait_s": 3.5,
    "env_s": 1.5, "act_s": 1.0, "push_wait_s": 0.25, "blocked_insert_s": 3.0, "blocked_sample_s": 0.5,
    "restart_budget_left_worker": 7, "restart_budget_left_learner": 3, "restart_budget_left_shard": 2, "disk_free_bytes": 7e9,
    "checkpoint_every_s": 120.0, "snapshot_every_s": 300.0, "nonfinite_updates": 0,
    "failed_checkpoints": 0, "failed_snapshots": 2, "failed_reports": 5, "checkpoint_age_s": 30.0, "snapshot_age_s": 200.0,
    "return_mean": -10.0, "return_min": -50.0, "return_max": 30.0, "length_mean": 1000.0, "memory_bytes": 5e8,
    "eval_return_mean": 120.0, "eval_promise": 90.0, "eval_promise_limit": 240.0, "eval_env_steps": 4000, "loss_critic_loss": 3.2, "loss_alpha": 0.08,
    "stage": 2, "online_episodes": 40, "held_dataset_episodes": 100, "held_online_episodes": 32, "episode_rows": 3600,
    "open_rows": 300, "lost_rows_end_lost": 90, "lost_rows_cut": 10, "planned_episodes": 6, "plan_s": 0.5,
    "plan_target_mean": 60.0, "plan_predicted_mean": 55.0, "plan_predicted_std": 7.0, "loss_elbo": -90.0,
    "rss_bytes_worker": 4e8, "cpu_s_worker": 12.0, "checkpoint_seconds": 0.5, "snapshot_bytes": 4e6, "shard_stored_rows_1": 2000,
    "shard_held_rows_1": 1500, "gpu_bytes_learner": 3e9, "gpu_busy_learner": 0.4, "worker_steps_per_s_min": 12.0, "node_workers_10.0.0.3": 2,
    "node_steps_per_s_10.0.0.3": 24.5,
    "hop_fetch_s": 0.5, "hop_append_bytes": 2e6, "hop_sample_calls": 40, "queue_append": 3, "rows_in_flight": 16, "shm_bytes_shard": 1e6,
    "loss_kl_token": 1.5, "loss_active_dims": 0.9, "loss_collapse": 0.0, "alarm_promise": 0, "alarm_plan_return": 1,
}  # fmt: skip

FACTS = {"algorithm": "softgac", "env": "Hopper-v5", "user": "ada", "commit": "0123abc"}


@pytest.fixture
def exporter() -> Iterator[Exporter]:
    endpoint = Exporter("trial", facts=FACTS)
    yield endpoint
    endpoint.close()


def fetch(url: str, **headers: str) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
        return answer.read()


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return f"drawbridge_{name}", frozenset(labels.items())


NEW = {
    key("run_ended"): 0.0,
    key("run_start_time_seconds"): pytest.approx(time.time(), abs=3600),
}  # before any state or record

ELSEWHERE = (
    set() if torch.cuda.is_available() else {"drawbridge_part_gpu_memory_bytes", "drawbridge_part_gpu_utilization"}
)  # not without a device


def samples(exporter: Exporter) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample by its name and the labels it has beside run, role and, but for figures of one, shard, which are checked here."""
    found = {}
    for family in text_string_to_metric_families(fetch(exporter.url).decode()):
        for sample in family.samples:
            labels = dict(sample.labels)
            assert (labels.pop("run"), labels.pop("role")) == ("trial", "supervisor")
            assert labels["shard"] or labels.pop("shard") == ""
            found[sample.name, frozenset(labels.items())] = sample.value
    return found


def test_a_metrics_line_becomes_series_with_the_values_of_the_line(exporter: Exporter) -> None:
    exporter.update(LINE)
    found = samples(exporter)
    expected = {
        key("env_steps_total"): 4000,
        key("updates_total"): 8000,
        key("rows_total", outcome="stored", reason=""): 4000,
        key("rows_total", outcome="dropped", reason="nonfinite"): 32,
        key(
            "rows_total", outcome="dropped", reason="stale"
        ): 0,  # of a chunk: from 0, so that a first one is an increase
        key("rows_total", outcome="duplicate", reason=""): 8,
        key("replay_fill_ratio"): 0.004,
        key("replay_ratio"): 1.9,
        key("policy_age_versions", quantile="0.95"): 3,
        key("workers", state="running"): 4,
        key("workers", state="wanted"): 6,
        key("workers", state="pending"): 2,
        key("restart_budget_left", part="shard"): 2,
        key("disk_free_bytes"): 7e9,
        key("part_memory_bytes", part="worker"): 4e8,
        key("part_object_store_bytes", part="shard"): 1e6,
        key("hop_seconds_total", hop="fetch"): 0.5,
        key("hop_bytes_total", hop="append"): 2e6,
        key("hop_calls_total", hop="sample"): 40,
        key("queue_length", queue="append"): 3,
        key("rows_in_flight"): 16,
        key("part_gpu_memory_bytes", part="learner"): 3e9,
        key("part_gpu_utilization", part="learner"): 0.4,
        key("shard_held_rows", shard="1"): 1500,
        key("worker_env_steps_per_second", stat="min"): 12.0,
        key("node_workers", node="10.0.0.3"): 2,
        key("save_interval_seconds", what="snapshot"): 300.0,
        key("learner_seconds_total", part="data_wait"): 3.5,
        key("blocked_seconds_total", side="insert"): 3.0,
        key("episode_return", stat="min"): -50.0,
        key("learning", metric="alpha"): 0.08,
        key("evaluation_return"): 120.0,
        key("evaluation_promise", stat="limit"): 240.0,
        key("alarm", alarm="plan_return"): 1,
        key("alarm", alarm="promise"): 0,
        key("failed_writes_total", what="checkpoint"): 0,
        key("failed_writes_total", what="report"): 5,
        key("save_age_seconds", what="snapshot"): 200.0,
    }
    assert {name: found[name] for name in expected} == expected
    assert found[key("last_line_timestamp_seconds")] == pytest.approx(time.time(), abs=30)


def test_stages_plans_and_the_bound_of_a_run_on_episodes_become_series(exporter: Exporter) -> None:
    exporter.update(LINE)
    exporter.update({"planned_episodes": 4, "plan_s": 0.25, "loss_collapse": 0.4, "stage": 3})
    found = samples(exporter)
    expected = {
        key("stage"): 3,
        key("online_episodes_total"): 40,
        key("held_episodes", origin="dataset"): 100,
        key("episode_rows_total", outcome="complete", reason=""): 3600,
        key("episode_rows_total", outcome="lost", reason="end_lost"): 90,
        key("planned_episodes_total"): 10,
        key("plan_return", stat="target"): 60.0,
        key("plan_return", stat="predicted_std"): 7.0,
        key("rollout_seconds_total", part="plan"): 0.75,
        key("learning", metric="kl_token"): 1.5,
        key("learning", metric="active_dims"): 0.9,
        key("learning", metric="collapse"): 0.4,
    }
    assert {name: found[name] for name in expected} == expected


def test_every_series_has_a_sample_after_a_full_line_and_none_before_the_first(exporter: Exporter) -> None:
    assert samples(exporter) == NEW
    exporter.update(LINE)
    exporter.set_state("running")
    assert {name for name, _ in samples(exporter)} == {series.full_name for series in METRICS}


@pytest.fixture
def records(real_runs: RealRuns) -> list[dict[str, Any]]:
    """Every metrics record of a run of softgac, one of gac, and one that fine-tunes it online."""
    return real_runs.records


@pytest.mark.cluster
def test_every_series_gets_a_value_from_the_records_of_real_runs(
    exporter: Exporter, records: list[dict[str, Any]], killed_run: list[dict[str, Any]]
) -> None:
    exporter.set_state("running")
    for record in records + killed_run:
        exporter.update(record)
    assert {name for name, _ in samples(exporter)} == {metric.full_name for metric in METRICS} - ELSEWHERE


@pytest.mark.cluster
def test_the_catalogue_has_every_key_of_real_records_and_each_of_its_keys_is_written(
    records: list[dict[str, Any]], killed_run: list[dict[str, Any]]
) -> None:
    written = {key for record in records + killed_run for key in record}
    assert [key for key in written if find_metric(key) is None] == []
    elsewhere = {
        *("heard_at", "started_at", "ended"),  # by the endpoint
        *(
            [] if torch.cuda.is_available() else ["gpu_bytes_*", "gpu_busy_*"]
        ),  # where there is a device: tests/test_parts.py
        "again_*",  # when a count falls: tests/test_resumed_counters.py
        "episodes_cut_*",  # when an inline run of an environment with hidden randomness resumes: tests/test_resumed_envs.py
    }
    listed = {key for metric in CATALOGUE for key in metric.keys} - elsewhere
    absent = {key for key in listed if not any(name == key or _begins(name, key) for name in written)}
    assert absent == set()


def test_the_replay_ratio_of_now_stays_where_the_limiter_holds_it_in_a_real_run(
    records: list[dict[str, Any]],
) -> None:
    found = [r["replay_ratio_now"] / r["target_replay_ratio"] for r in records if "replay_ratio_now" in r]
    assert len(found) > 3 and 0.9 < min(found) <= max(found) < 1.1, found


def test_every_value_of_a_label_that_a_counter_explains_is_there_from_the_first_record(
    exporter: Exporter, records: list[dict[str, Any]]
) -> None:
    exporter.update(next(record for record in records if "stage" in record))  # gac's, with what it alone has
    exporter.update(records[0])
    found = samples(exporter)
    for metric in METRICS:
        if metric.kind == "counter":
            shown = [dict(labels) for name, labels in found if name == metric.full_name]
            explained = set(re.findall(r"(\w+) \(", metric.help)) - set(metric.labels)
            assert shown and explained <= {value for labels in shown for value in labels.values()}, metric.full_name
    restarts = {labels: count for (name, labels), count in found.items() if name == "drawbridge_restarts_total"}
    assert len(restarts) == len(RESTARTED_PARTS) * len(get_args(RestartReason)) and set(restarts.values()) == {0}


def _begins(name: str, pattern: str) -> bool:
    return pattern.endswith("*") and name.startswith(pattern[:-1])


def test_each_key_belongs_to_one_quantity() -> None:
    keys = [key for metric in CATALOGUE for key in metric.keys]
    assert len(keys) == len(set(keys))
    for key in keys:
        assert sum(metric.match(key) is not None for metric in CATALOGUE) == 1, key


def test_what_people_are_shown_is_in_the_catalogue() -> None:
    """The live view, the plain lines, ``status`` and the report read no key that nobody writes."""
    folder = Path(main.__code__.co_filename).parent
    read = {
        key
        for name in ("metrics/view.py", "metrics/console.py", "commands/status.py", "pictures/report.py")
        for key in re.findall(r"""\b(?:line|live|last)(?:\.get\(|\[)["'](\w+)["']""", (folder / name).read_text())
    }
    assert read, "the expression above finds nothing"
    of_live = {"state", "pid", "written", "workers_in_words", "phase"}  # live.json holds these beside the record
    assert {key for key in read - of_live if find_metric(key) is None} == set()


def test_restarts_by_reason_add_up_to_all_restarts(exporter: Exporter) -> None:
    exporter.update(LINE)
    found = samples(exporter)
    assert found[key("restarts_total", part="worker", reason="hung")] == 2
    assert found[key("restarts_total", part="worker", reason="died")] == 1
    assert found[key("node_restarts_total", part="worker", reason="node_lost", node="10.0.0.3")] == 2


def test_a_node_that_a_record_leaves_out_is_shown_no_more_and_its_restarts_are(exporter: Exporter) -> None:
    exporter.update(LINE)
    exporter.update({"node_workers_10.0.0.4": 2, "node_steps_per_s_10.0.0.4": 9.0})
    found = samples(exporter)
    assert {labels for name, labels in found if name == "drawbridge_node_workers"} == {
        frozenset({("node", "10.0.0.4")})
    }
    assert key("node_env_steps_per_second", node="10.0.0.3") not in found
    assert found[key("node_restarts_total", part="worker", reason="node_lost", node="10.0.0.3")] == 2


def test_sums_of_a_window_add_up_and_a_missing_key_keeps_its_last_value(exporter: Exporter) -> None:
    exporter.update(LINE)
    exporter.update({"env_s": 2.0, "episodes": 3, "env_steps": 4100})
    found = samples(exporter)
    assert found[key("rollout_seconds_total", part="env")] == 3.5
    assert found[key("rollout_seconds_total", part="act")] == 1.0
    assert found[key("episodes_total")] == 7
    assert found[key("env_steps_total")] == 4100
    assert found[key("updates_total")] == 8000


def test_the_state_of_a_run_is_there_before_its_first_line_and_follows_it(exporter: Exporter) -> None:
    for state, ended in (("starting", 0), ("running", 0), ("failed", -1), ("finishing", 0), ("ended", 1)):
        exporter.set_state(state)
        assert samples(exporter) == NEW | {key("run_info", state=state, **FACTS): 1, key("run_ended"): ended}


def test_a_count_that_goes_back_goes_on_growing_so_that_rates_are_those_of_the_work_done(exporter: Exporter) -> None:
    exporter.resume_from({"env_steps": 4000, "updates": 8000, "workers": 4, "state": "failed"})
    for env_steps, expected in ((3900, 4000), (3950, 4050), (3700, 4050), (3800, 4150)):
        exporter.update({"env_steps": env_steps})
        assert samples(exporter)[key("env_steps_total")] == expected
    assert samples(exporter)[key("updates_total")] == 8000
    assert key("workers", state="running") not in samples(exporter), "a state is of now"


def test_rows_add_up_and_no_count_falls_when_shards_lose_rows_and_late_copies_bring_them_back() -> None:
    happens = (  # what the aggregator knows then: rows stored, and dropped
        (100, 0),
        (60, 40),  # a shard is restarted
        (90, 20),  # a late copy brings 20 back, and 10 more come
        (70, 20),  # a shard loses rows that are sent again
        (110, 20),
        (80, 55),
        (200, 60),
    )
    for resumed_at in range(1, len(happens)):
        line: dict[str, Any] = {}
        shown: dict[str, float] = {}
        exporter = again = None
        for index, (stored, dropped) in enumerate(happens):
            if exporter is None or index == resumed_at:
                if exporter is not None:
                    exporter.close()
                exporter, again = Exporter("trial"), CountedAgain()
                exporter.resume_from(line)
                again.resume_from(line)
            assert again is not None
            line = {"rows_recorded": stored + dropped, "rows_stored": stored, "rows_dropped_shard_restart": dropped}
            line |= again.record(line)
            exporter.update(line)
            rows = {key: n for key, n in samples(exporter).items() if key[0] == "drawbridge_rows_total"}
            now = Counter[str]()
            for (_, labels), count in rows.items():
                now[dict(labels)["outcome"]] += int(count)
            assert now["recorded"] == now["stored"] + now["dropped"] - now["recounted"]
            assert all(now[outcome] >= count for outcome, count in shown.items()), (shown, now)
            shown = dict(now)
        assert exporter is not None
        exporter.close()


def test_values_that_are_no_numbers_do_not_break_a_scrape(exporter: Exporter) -> None:
    exporter.update({"env_steps": float("nan"), "loss_q_mean": float("inf"), "workers": None, "env_s": float("nan")})
    found = samples(exporter)
    assert key("env_steps_total") not in found
    assert found[key("learning", metric="q_mean")] == float("inf")
    assert found[key("rollout_seconds_total", part="env")] == 0.0


def test_the_page_of_metrics_lists_exactly_what_is_exported() -> None:
    rows = [line for line in DOC.splitlines() if line.startswith("| `drawbridge_")]
    output = [tuple(cell.strip() for cell in row.strip("|").split("|")) for row in rows]
    made = [
        (f"`{m.full_name}`", m.kind, m.unit, ", ".join(f"`{label}`" for label in m.labels), m.help) for m in METRICS
    ]
    assert output == made


def test_every_expression_of_the_page_names_series_that_exist() -> None:
    known = {series.full_name for series in METRICS}
    named = set(re.findall(r"drawbridge_[a-z_]+", DOC))
    assert named <= known


def test_service_discovery_names_the_endpoint_itself(exporter: Exporter) -> None:
    groups = json.loads(fetch(f"http://127.0.0.1:{exporter.port}/sd"))
    assert groups == [{"targets": [f"127.0.0.1:{exporter.port}"], "labels": {"job": "drawbridge"}}]


def test_service_discovery_of_an_endpoint_on_all_addresses_names_the_one_the_asker_used() -> None:
    everywhere = Exporter("trial", host="0.0.0.0")
    try:
        groups = json.loads(fetch(f"http://localhost:{everywhere.port}/sd"))
        assert groups[0]["targets"] == [f"localhost:{everywhere.port}"]
    finally:
        everywhere.close()


def test_any_other_path_is_not_found_and_says_what_is_there(exporter: Exporter) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        fetch(f"http://127.0.0.1:{exporter.port}/secret")
    assert caught.value.code == 404
    assert b"/metrics" in caught.value.read()


def test_a_taken_port_is_an_error_that_says_what_to_do(exporter: Exporter) -> None:
    with pytest.raises(UsageError, match=rf"127\.0\.0\.1:{exporter.port}.*metrics\.port"):
        Exporter("other", port=exporter.port)


def test_close_frees_the_port_and_may_be_called_twice() -> None:
    first = Exporter("trial")
    first.close()
    first.close()
    with pytest.raises(urllib.error.URLError):
        fetch(first.url)
    again = Exporter("trial", port=first.port)
    again.close()


def test_idle_connections_neither_pile_up_nor_keep_a_scraper_out_for_ever(exporter: Exporter) -> None:
    exporter.update(LINE)
    idle = [socket.create_connection(("127.0.0.1", exporter.port), timeout=10) for _ in range(MAX_CONNECTIONS + 2)]
    idle[-1].settimeout(10)
    assert idle[-1].recv(1) == b"", "a connection beyond the bound is closed, not queued"
    for connection in idle:
        connection.close()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            assert samples(exporter)
            return
        except (OSError, urllib.error.URLError):
            time.sleep(0.02)
    pytest.fail("the endpoint did not answer within 10 s after the idle connections were closed")


def test_promtool_finds_the_exposition_well_formed(exporter: Exporter) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian package prometheus)")
    exporter.update(LINE)
    result = subprocess.run([promtool, "check", "metrics"], input=fetch(exporter.url), capture_output=True, timeout=60)
    # a gauge with the label quantile is on purpose: the ages are percentiles of a window, not a summary
    problems = [p for p in result.stderr.decode().splitlines() if "quantile" not in p]
    assert problems == []


def test_a_real_prometheus_finds_the_endpoint_by_discovery_and_reads_it(exporter: Exporter, tmp_path: Path) -> None:
    prometheus = shutil.which("prometheus")
    if prometheus is None:
        pytest.skip("prometheus is not installed (Debian package prometheus)")
    exporter.update(LINE)
    config = tmp_path / "prometheus.yml"
    config.write_text(
        "scrape_configs:\n  - job_name: drawbridge\n    scrape_interval: 1s\n    scrape_timeout: 1s\n"
        f"    http_sd_configs:\n      - url: http://127.0.0.1:{exporter.port}/sd\n        refresh_interval: 1s\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = tmp_path / "log"
    command = [prometheus, f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'tsdb'}"]
    with log.open("wb") as sink:
        server = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=sink, stderr=sink)
    try:
        query = urllib.parse.quote('drawbridge_rows_total{outcome="dropped",reason="nonfinite"}')
        result = eventually(f"http://127.0.0.1:{port}/api/v1/query?query={query}", server, log)
    finally:
        server.terminate()
        server.wait(timeout=30)
    assert [(r["metric"]["run"], r["metric"]["role"], r["value"][1]) for r in result] == [("trial", "supervisor", "32")]


def eventually(url: str, server: subprocess.Popen, log: Path, deadline_s: float = 60.0) -> list:
    """The first non-empty answer of a query; fails with the server's log after the deadline."""
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if result := json.loads(fetch(url))["data"]["result"]:
                return result
        except OSError:
            pass
        time.sleep(0.1)
    pytest.fail(f"no answer within {deadline_s} s, exit {server.poll()}: {log.read_text()[-2000:]}")
