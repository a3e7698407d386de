"""The model of benchmarks/scale.py, and its load on the parts that need no Ray."""

from __future__ import annotations

import pytest

from benchmarks.scale import fit, in_driver, predict
from benchmarks.soak import report

HOPS = {
    "append": {"10": {"cpu_us": 500.0}, "1000": {"cpu_us": 500.0}},
    "sample": {"cpu_us": 1000.0},
    "stats": {"10": {"cpu_ms": 10.0}, "1000": {"cpu_ms": 10.0}},
    "fetch": {"10": {"cpu_us": 600.0}, "1000": {"cpu_us": 150.0}},
    "publish": {"cpu_us": 1000.0},
    "driver": {
        "10": {"counters_ms": 0.1, "record_ms": 0.0, "scrape_ms": 2.0},
        "1010": {"counters_ms": 1.1, "record_ms": 0.0, "scrape_ms": 2.0},
    },
    "wait": {"10": {"cpu_us": 20.0}, "1000": {"cpu_us": 20.0}},
}


def test_costs_grow_with_the_workers_where_they_were_seen_to() -> None:
    assert fit(HOPS["driver"], "counters_ms") == pytest.approx((0.09, 0.001))
    assert fit(HOPS["fetch"], "cpu_us") == (150.0, 0.0)  # cheaper by the call with many: not with none


def test_the_load_of_a_part_is_the_sum_of_its_hops() -> None:
    found = predict(HOPS, 2_010, chunks_per_s=1_000, blocks_per_s=100, versions_per_s=2, scrapes_per_s=0.5)
    assert found["shard"] == pytest.approx(0.5 + 0.1 + 0.01)
    assert found["store"] == pytest.approx(2 * (1e-3 + 2_010 * 150e-6))
    assert found["driver"] == pytest.approx(2.1e-3 + 20 * 20e-6 + 0.5 * 2e-3)


def test_the_drivers_share_is_measured_on_the_real_shard_aggregator_and_endpoint() -> None:
    found = in_driver(50)
    assert set(found) == {"counters_ms", "record_ms", "scrape_ms", "scrape_kib"} and found["scrape_kib"] > 5


def test_a_process_whose_private_memory_grows_is_named(capsys: pytest.CaptureFixture) -> None:
    minutes = [i / 10 for i in range(61)]
    sizes = {
        ("leaky", 1): [(t, 100 + 3 * t, 50 + 2 * t) for t in minutes],
        ("mapping", 2): [(t, 100 + 3 * t, 50.0) for t in minutes],
        ("steady", 3): [(t, 100.0, 50.0) for t in minutes],
    }
    assert report(sizes) == 1
    assert "private above 1 MiB/min: leaky\n" in capsys.readouterr().out
    del sizes["leaky", 1]
    assert report(sizes) == 0
