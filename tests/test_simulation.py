"""Whole runs in one process, seeded, with faults: what is promised holds after every step and at the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from simulated_parts import BATCH, CHUNK_ROWS, REPLAY, UPDATES, WORKER, Faults
from simulated_run import SimulatedRun

NETWORK = Faults(lost=0.1, late=0.1, twice=0.15, malformed=0.08, nonfinite=0.03, bad_weights=0.2)
EVERYTHING = Faults(
    lost=0.05, late=0.05, twice=0.1, malformed=0.06, nonfinite=0.03, raising=0.01, bad_weights=0.15,
    worker=0.08, shard=0.06, learner=0.08, poison=0.04, rotten=0.6,
)  # fmt: skip
SHARDS = Faults(lost=0.1, late=0.1, twice=0.1, malformed=0.05, nonfinite=0.03, shard=0.2, untold=0.5, rotten=0.4)
WORKERS = Faults(lost=0.05, late=0.05, twice=0.1, malformed=0.05, nonfinite=0.03, raising=0.03, worker=0.2, untold=0.3)
FIRED_BY_NETWORK = {
    "message lost", "message late", "message twice", "message overtook", "answer lost", "answer missed", "told duplicate",
    "told wait", "told rejected", "malformed", "weights lost", "weights damaged", "weights old", "publication lost",
    "not finite observation", "not finite reward",
}  # fmt: skip
FIRED_BY_CRASHES = {"worker crashed", "shard crashed", "learner crashed", "incarnation", "rows lost with a shard"}
FIRED_RARELY = {"snapshot rotten", "checkpoint rotten", "environment raised", "parameters poisoned", "rollback"}


def assert_promises(run: SimulatedRun) -> None:
    """What holds of every run that has ended; what must hold after every step was checked there."""
    for index in range(len(run.shards)):
        run.check_table(index)
    assert_ratio(run)
    stored = {key for keys in run.stored for key in keys}
    assert not stored & run.rejected.keys() and not stored & run.lost_with_shard
    left = run.chunks.keys() - stored - run.rejected.keys() - run.lost_with_shard
    alive = {(index, slot.incarnation) for index, slot in enumerate(run.slots)}
    for writer in {
        key[:2] for key in left
    }:  # of the dead what was on the way, of the living what came after the last row
        lost = {key for key in left if key[:2] == writer}
        assert writer in alive or lost <= run.in_hand[writer]
        assert len(lost) <= WORKER.max_unacked + (writer not in alive)


def assert_conserved_exactly(run: SimulatedRun) -> None:
    """Every env step that the environments ever made is stored or dropped by a reason, but for the last ones of workers that
    were killed: those the driver cannot have heard of."""
    unreported = {writer: worker._env.made - run.reported[writer] for writer, worker in run.workers.items()}  # type: ignore[attr-defined]
    assert run.made == run.aggregator.recorded + sum(unreported.values())
    assert run.aggregator.ledger.in_flight == 0
    killed = {writer for writer, rows in unreported.items() if rows}
    assert len(killed) <= run.fired["worker killed"] + run.fired["last counters untold"], unreported
    if not run.fired["shard crashed"]:
        assert all(rows <= (WORKER.max_unacked + 1) * CHUNK_ROWS for rows in unreported.values()), unreported
    stored = sum(len(run.chunks[key].rows_ND) for keys in run.stored for key in keys)
    assert run.aggregator.env_steps == stored == sum(shard.store.inserted for shard in run.shards)
    dropped = run.aggregator.dropped_rows()
    own = {"nonfinite_observation", "nonfinite_reward", "run_complete", "stopped", "worker_lost", "shard_restart"}
    assert set(dropped) - own <= set(run.rejected.values())
    assert ("shard_restart" in dropped) <= bool(run.fired["rows lost with a shard"])
    assert ("worker_lost" in dropped) <= bool(run.fired["incarnation"])


def assert_ratio(run: SimulatedRun) -> None:
    """Updates that the learner really holds against rows that the shards really hold, to less than a block a shard."""
    limiters = [shard.limiter for shard in run.shards]
    due = sum(limiter.samples_per_insert * (limiter.inserted - limiter.min_size) for limiter in limiters)
    left = due - run.learners.updates * BATCH
    assert -run.tolerance_rows <= left < len(limiters) * UPDATES * BATCH, (
        left,
        [limiter.credit for limiter in limiters],
    )


@pytest.fixture
def ended(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SimulatedRun]:
    run = SimulatedRun(**request.param, directory=tmp_path)
    try:
        run.run()
        yield run
    finally:
        run.close()


def runs(seeds: range, **options: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("ended", [{"seed": s, **options} for s in seeds], indirect=True, ids=map(str, seeds))


@runs(range(1), faults=Faults())
def test_without_faults_nothing_is_lost_refused_or_sent_twice(ended: SimulatedRun) -> None:
    assert_promises(ended)
    assert_conserved_exactly(ended)
    assert set(ended.rejected.values()) <= {"run_complete"} and set(ended.aggregator.dropped_rows()) <= {"run_complete"}
    assert not {"told duplicate", "told rejected", "answer missed", "rollback"} & set(+ended.fired)


@runs(range(3), faults=NETWORK)
def test_a_faulty_network_loses_no_row_and_stores_none_twice(ended: SimulatedRun) -> None:
    assert_promises(ended)
    assert_conserved_exactly(ended)
    assert set(+ended.fired) >= FIRED_BY_NETWORK, FIRED_BY_NETWORK - set(+ended.fired)


@runs(range(6), faults=EVERYTHING)
def test_everything_may_break_at_once_and_loses_no_more_than_the_recovery_points(ended: SimulatedRun) -> None:
    assert_promises(ended)
    assert_conserved_exactly(ended)
    expected = FIRED_BY_NETWORK | FIRED_BY_CRASHES
    assert set(+ended.fired) >= expected, expected - set(+ended.fired)
    assert len(FIRED_RARELY & set(+ended.fired)) >= 3, ended.fired


@runs(range(4), faults=SHARDS)
def test_rows_of_shards_that_die_are_all_counted_whatever_reports_die_with_them(ended: SimulatedRun) -> None:
    assert_promises(ended)
    assert_conserved_exactly(ended)
    assert ended.made == ended.aggregator.recorded, "no worker was killed, so the driver hears of every row"
    assert set(+ended.fired) >= {"shard crashed", "rows lost with a shard", "counters untold", "answer lost"}


@runs(range(4), faults=WORKERS)
def test_rows_of_workers_that_die_are_counted_but_for_the_last_chunks(ended: SimulatedRun) -> None:
    assert_promises(ended)
    assert_conserved_exactly(ended)
    assert set(+ended.fired) >= {"worker killed", "environment raised", "counters untold"}


@runs(range(37, 38), faults=EVERYTHING, rows=240)
def test_rows_that_a_late_copy_of_a_chunk_brings_back_after_its_worker_and_its_shard_died_are_not_counted_as_lost(
    ended: SimulatedRun,
) -> None:
    assert_promises(ended)
    assert_conserved_exactly(ended)


@runs(range(1), faults=EVERYTHING, rows=800, replay=dataclasses.replace(REPLAY, capacity_rows=512))
def test_rows_that_were_overwritten_stay_gone_across_crashes(ended: SimulatedRun) -> None:
    assert all(shard.store.inserted > 2 * shard.store.capacity for shard in ended.shards)
    assert_promises(ended)


@pytest.mark.parametrize(
    "ended",
    [{"seed": 0, "faults": EVERYTHING, "rows": 160, "algorithm": name} for name in ("softgac", "flowrl")],
    indirect=True,
    ids=("softgac", "flowrl"),
)
def test_the_same_holds_of_real_algorithms(ended: SimulatedRun) -> None:
    assert_promises(ended)
    assert set(+ended.fired) >= {"learner crashed", "weights damaged", "checkpoint"}


def test_a_simulated_run_is_a_function_of_its_seed(tmp_path: Path) -> None:
    fired = []
    for name in ("one", "other"):
        run = SimulatedRun(3, tmp_path / name, EVERYTHING, rows=120)
        run.run()
        run.close()
        fired.append((run.steps, run.fired, run.learners.updates, run.shards[0].store.rows.tobytes()))
    assert fired[0] == fired[1]
